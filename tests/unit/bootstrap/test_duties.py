"""What a node puts together: its duties."""

from pathlib import Path

from knhk.bootstrap import observability
from knhk.bootstrap.node import Node
from knhk.config.model import Config


async def test_duties_start_and_stop(tmp_path: Path) -> None:
    node = Node(Config.model_validate({"persistence": {"path": str(tmp_path / "data")}}))
    duties = observability.duties(node)
    await node.start()
    try:
        for duty in duties:
            await duty.start()
        assert [duty.health() for duty in duties] == ["ok"] * len(duties)
    finally:
        for duty in reversed(duties):
            await duty.stop()
        await node.stop()
