"""A server that is set up as the production guide says, but for paths, ports and hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.server import Server
from tests.unit.config.test_config_guide import AUDIT, AUTH, FILE, SECRETS


class GuideServer(Server):
    """Started by `knhk --config FILE`, as the guide's systemd unit does, with the guide's file."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory)
        text = FILE.replace("/var/lib/knhk", str(directory)) + AUTH + AUDIT.replace("/var/log", str(directory))
        collector = "  endpoint: http://otel-collector:4317\n"
        assert collector in text
        # The guide's collector is not here, and health would rightly say so.
        text = text.replace(collector, f'  metrics_port: {self.ops_port}\n  endpoint: ""\n')
        self.config.write_text(text + f"api:\n  port: {self.api_port}\n")
        self.arguments = ["--config", str(self.config)]
        secrets = {name: value for name, value in SECRETS.items() if name != "HOME"}
        self.variables = {**secrets, "KNHK_CONFIG": str(self.config)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuideServer]:
    running = GuideServer(tmp_path_factory.mktemp("guide"))
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[GuideServer]:
    """One that a test starts and stops by itself."""
    own = GuideServer(tmp_path)
    try:
        yield own
    finally:
        own.close()
