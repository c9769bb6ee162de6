"""A parent and its child over `kill -9`, with real processes."""

from pathlib import Path

from tests.acceptance.server import Server

CHILD = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: part}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 500ms}}
    - {name: double, action: process, depends_on: [nap], params: {output: "${{ inputs.n * 2 }}"}}
  outputs: {m: "${{ steps.double.output }}"}
"""
PARENT = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: whole}
spec:
  steps:
    - {name: first, action: workflow, params: {name: part, input: {n: 1}}}
    - name: then
      action: workflow
      depends_on: [first]
      params: {name: part, input: {n: "${{ steps.first.output.m }}"}}
  outputs: {m: "${{ steps.then.output.m }}"}
"""


def test_parents_and_children_outlive_kills(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        assert server.client.put("/definitions/part", content=CHILD).status_code == 201
        ids = [server.submit(PARENT) for _ in range(5)]
        for _ in range(3):
            server.kill()
            server.start()
        for one in ids:
            server.wait_for(one, timeout_s=60)
            assert server.status(one, verbose=True)["outputs"] == {"m": 4}
        rows = server.cli("workflow", "list", "--name", "part", "--limit", "100", "-o", "json")["workflows"]
        parents = [row["parent"]["workflow_id"] for row in rows]
        assert sorted(parents) == sorted(ids * 2)
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        server.close()
