"""The routes of registered definitions, and submissions by name."""

from tests.unit.api.descriptors import FAILS, SUM
from tests.unit.api.node import Node, problem_of

OTHER = SUM.replace("inputs.left +", "inputs.left * 10 +")


async def test_a_definition_from_put_to_run(node: Node) -> None:
    first = await node.http.put("/definitions/sum", content=SUM, params={"label": "1.0.0", "note": "the first"})
    assert first.status_code == 201, first.text
    assert {key: first.json()[key] for key in ("name", "version", "label", "note", "created")} == {
        "name": "sum",
        "version": 1,
        "label": "1.0.0",
        "note": "the first",
        "created": True,
    }
    again = await node.http.put("/definitions/sum", content=SUM)
    assert (again.status_code, again.json()["version"], again.json()["created"]) == (200, 1, False)
    assert (await node.http.put("/definitions/sum", content=OTHER)).json()["version"] == 2
    listed = (await node.http.get("/definitions")).json()
    assert [(one["name"], one["version"]) for one in listed["definitions"]] == [("sum", 2)]
    shown = (await node.http.get("/definitions/sum")).json()
    assert [one["label"] for one in shown["versions"]] == ["1.0.0", None]
    assert (await node.http.get("/definitions/sum/versions/1.0.0")).json()["descriptor"] == SUM
    changed = (await node.http.get("/definitions/sum/diff", params={"from": "1"})).json()
    assert changed["steps"]["changed"] == ["add"]

    for version, total in (("1.0.0", 5), (2, 23), ("", 23)):
        body = {"name": "sum", "version": version, "inputs": {"left": 2, "right": 3}}
        answer = await node.http.post("/workflows", json=body, params={"wait": "5s"})
        assert answer.json()["outputs"] == {"sum": total}, answer.text
    workflow_id = answer.json()["workflow_id"]
    assert (await node.http.get(f"/workflows/{workflow_id}")).json()["definition"] == {"name": "sum", "version": 2}
    assert (await node.listed())[0]["definition"] == {"name": "sum", "version": 2}

    assert (await node.http.delete("/definitions/sum", params={"reason": "over"})).json()["retired"] is True
    problem_of(await node.http.post("/workflows", json={"name": "sum"}), 404, "KNHK-3003")


async def test_mistakes_are_told(node: Node) -> None:
    problem = problem_of(await node.http.put("/definitions/other", content=SUM), 400, "KNHK-1005")
    assert "called 'sum'" in problem["detail"]
    problem_of(await node.http.put("/definitions/sum", content="nonsense"), 422, "KNHK-1001")
    problem_of(await node.http.get("/definitions/sum"), 404, "KNHK-3003")
    problem_of(await node.http.delete("/definitions/sum"), 404, "KNHK-3003")
    await node.http.put("/definitions/fails", content=FAILS, params={"label": "a"})
    problem_of(await node.http.put("/definitions/fails", content=FAILS, params={"label": "b"}), 409, "KNHK-4005")
    problem_of(await node.http.get("/definitions/fails/versions/9"), 404, "KNHK-3003")
    problem_of(await node.http.get("/definitions/fails/diff"), 400)


async def test_an_envelope_names_one_thing(node: Node) -> None:
    for body in (
        {"name": "sum", "descriptor": SUM},
        {"descriptor": SUM, "version": 1},
        {"name": "sum", "versoin": 1},
        {"name": ""},
        {"name": 3},
    ):
        problem = problem_of(await node.http.post("/workflows", json=body), 400, "KNHK-1005")
        assert '"name"' in problem["hint"]
