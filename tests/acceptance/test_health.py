"""What health says of trouble that no error tells of, on a real server."""

import shutil
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server
from tests.acceptance.test_wedged import read

JUMP = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: jump}
spec:
  steps: [{name: only, action: test.jump, params: {seconds: 60}}]
"""


def detailed(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.ops}/health/detailed", timeout=10).json())


def test_a_disk_that_is_nearly_full_and_a_clock_that_was_set_degrade_a_node_that_works_on(tmp_path: Path) -> None:
    least = shutil.disk_usage(tmp_path).free // 4  # eight times that is more than there is
    server = Server(
        tmp_path,
        persistence={"min_free": f"{least >> 20}MB"},
        actions={"modules": ["tests.acceptance.blocking_actions"]},
    )
    try:
        server.start()
        shown = until(lambda: detailed(server), holds=lambda found: found["status"] == "degraded")
        assert "the disk is nearly full" in shown["checks"]["persistence"]
        server.wait_for(server.submit(JUMP))
        shown = detailed(server)
        assert "+60" in shown["checks"]["observability"]
        assert shown["status"] == "degraded"
        assert httpx.get(f"{server.ops}/health").json() == {"status": "degraded"}
        assert httpx.get(f"{server.ops}/ready").status_code == 200
        assert (read(server, "knhk_ready"), read(server, "knhk_halted")) == (1, 0)
        text = httpx.get(f"{server.ops}/metrics").text
        assert 'knhk_check_ok{check="persistence"} 0.0' in text
        assert 'knhk_check_ok{check="observability"} 0.0' in text
    finally:
        server.close()
