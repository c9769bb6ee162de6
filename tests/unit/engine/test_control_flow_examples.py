"""Every file under examples/control_flow runs, and does what its first line says."""

from typing import Any

import pytest
import yaml

from knhk.domain.run import RunState
from tests.acceptance.server import ROOT
from tests.simulation.house import House

EXAMPLES = sorted((ROOT / "examples" / "control_flow").glob("*.yaml"))
PAGE = ROOT / "docs" / "control-flow.md"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
async def test_an_example_ends_and_gives_what_it_says(house: House, file: Any) -> None:
    """The labels of an example say how its run ends, with its defaults as inputs."""
    text = file.read_bytes()
    labels = yaml.safe_load(text)["metadata"]["labels"]
    run = await house.run(text)
    assert run.state == labels["ends"], run.failure
    if run.state is RunState.COMPLETED:
        _, results = await house.control.results(run.workflow_id)
        assert yaml.safe_load(labels["gives"]) == results
    assert file.name in PAGE.read_text()
