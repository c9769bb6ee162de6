"""GET /actions: what each action promises and takes."""

from tests.unit.api.node import Node


async def test_every_action_states_its_guarantee(node: Node) -> None:
    answer = await node.http.get("/actions")
    assert answer.status_code == 200
    found = {one["name"]: one for one in answer.json()["actions"]}
    assert {"process", "validate", "wait", "http", "fail", "shell", "python", "sql"} <= set(found)
    assert {one["guarantee"] for one in found.values()} <= {"exactly-once", "at-least-once", "at-most-once"}
    assert (found["http"]["guarantee"], found["http"]["allowed"]) == ("at-least-once", True)
    assert (found["sql"]["guarantee"], found["sql"]["allowed"]) == ("exactly-once", False)
    assert "actions.shell.commands" in found["shell"]["reason"]
    assert all(one["about"] for one in found.values())


async def test_one_action_with_its_schemas(node: Node) -> None:
    answer = await node.http.get("/actions/sql")
    assert answer.status_code == 200
    assert answer.json()["literal_params"] == ["statement", "statements.*.statement"]
    assert "connection" in answer.json()["params_schema"]["properties"]
    unknown = await node.http.get("/actions/sqll")
    assert (unknown.status_code, "did you mean 'sql'" in unknown.json()["detail"]) == (404, True)


OFF = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: off}
spec: {steps: [{name: a, action: shell, params: {command: [id]}}]}
"""


async def test_what_is_off_is_refused_at_submit(node: Node) -> None:
    answer = await node.http.post("/workflows", content=OFF)
    assert answer.status_code == 422
    problem = answer.json()["problems"][0]
    assert "not allowed here" in problem["message"]
    assert problem["path"] == "spec.steps[0].action"
