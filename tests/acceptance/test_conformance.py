"""The conformance features of the Serverless Workflow specification, scenario by scenario, against a real server.

The features are read from beside the repository, where they are; nothing of them is copied. They call hosts on the
internet: those are played by a peer on loopback, whose address is put in the place of theirs in the document.
"""

import base64
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from pytest_bdd import given, parsers, scenarios, then, when

from tests.acceptance.flaky_peer import Peer, Reply
from tests.acceptance.server import ROOT, Server

FEATURES = ROOT.parent / "shared" / "ctk"
if not FEATURES.is_dir():
    pytest.skip(f"there are no conformance features at {FEATURES}", allow_module_level=True)

scenarios(str(FEATURES))

HOSTS = ("https://petstore.swagger.io", "https://httpbin.org")
PETS = [{"id": number, "name": f"pet {number}", "status": "available"} for number in (1, 2, 3)]


class Run:
    """What one scenario has said and seen."""

    def __init__(self) -> None:
        self.text, self.inputs = "", {}
        self.shown: dict[str, Any] = {}

    @property
    def output(self) -> Any:
        return self.shown["outputs"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("conformance"))
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="module")
def internet() -> Iterator[Peer]:
    peer = Peer(lambda _number: answer(peer))
    yield peer.start()
    peer.close()


def answer(peer: Peer) -> Reply:
    """What the pet store and the echo service of the features answer to the newest request."""
    _, target, headers, _ = peer.requests[-1]
    url = urlsplit(target)
    parts = url.path.strip("/").split("/")
    match parts:
        case ["v2", "swagger.json"]:
            return 200, {}, swagger(peer)
        case ["v2", "pet", "findByStatus"]:
            wanted = parse_qs(url.query)["status"]
            return 200, {}, [pet for pet in PETS if pet["status"] in wanted]
        case ["v2", "pet", number] if number.isdigit() and int(number) <= len(PETS):
            return 200, {}, PETS[int(number) - 1]
        case ["basic-auth", user, password]:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            good = headers.get("authorization") == f"Basic {pair}"
            return (200, {}, {"authenticated": True, "user": user}) if good else (401, {}, {})
    return 404, {}, {"message": "not found"}


def swagger(peer: Peer) -> dict[str, Any]:
    query = {"name": "status", "in": "query", "required": True, "type": "array"}
    path = {"name": "petId", "in": "path", "required": True, "type": "integer"}
    return {
        "swagger": "2.0",
        "host": urlsplit(peer.url).netloc,
        "basePath": "/v2",
        "schemes": ["http"],
        "paths": {
            "/pet/findByStatus": {"get": {"operationId": "findPetsByStatus", "parameters": [query]}},
            "/pet/{petId}": {"get": {"operationId": "getPetById", "parameters": [path]}},
        },
    }


@pytest.fixture
def run() -> Run:
    return Run()


@given("a workflow with definition:")
def definition(run: Run, internet: Peer, docstring: str) -> None:
    run.text = docstring
    for host in HOSTS:
        run.text = run.text.replace(host, internet.url)


@given("given the workflow input is:")
def inputs(run: Run, docstring: str) -> None:
    run.inputs = yaml.safe_load(docstring)


@when("the workflow is executed")
def execute(run: Run, house: Server) -> None:
    body = {"descriptor": run.text, "inputs": run.inputs}
    response = house.client.post("/workflows", params={"wait": "30s"}, json=body)
    assert response.status_code == 200, response.text
    run.shown = response.json()


@then("the workflow should complete")
def completes(run: Run) -> None:
    assert run.shown["state"] == "completed", run.shown


@then("the workflow should complete with output:")
def completes_with(run: Run, docstring: str) -> None:
    completes(run)
    assert run.output == yaml.safe_load(docstring)


@then("the workflow should fault")
def faults(run: Run) -> None:
    assert run.shown["state"] == "failed", run.shown


@then("the workflow should fault with error:")
def faults_with(run: Run, docstring: str) -> None:
    faults(run)
    assert run.shown["failure"]["problem"] == yaml.safe_load(docstring)


@then(parsers.parse("the workflow output should have properties {names}"))
def has_properties(run: Run, names: str) -> None:
    for name in names.split(", "):
        found(run.output, name.strip("'"))


@then(parsers.parse("the workflow output should have a '{name}' property with value:"))
def has_value(run: Run, name: str, docstring: str) -> None:
    assert found(run.output, name) == yaml.safe_load(docstring)


@then(parsers.parse("the workflow output should have a '{name}' property containing {count:d} items"))
def has_items(run: Run, name: str, count: int) -> None:
    assert len(found(run.output, name)) == count


@then(parsers.parse("{task} should run first"))
def runs_first(run: Run, house: Server, task: str) -> None:
    assert order(run, house)[0] == task


@then(parsers.parse("{task} should run last"))
def runs_last(run: Run, house: Server, task: str) -> None:
    assert order(run, house)[-1] == task


@then(parsers.parse("{task} should run after {other}"))
def runs_after(run: Run, house: Server, task: str, other: str) -> None:
    names = order(run, house)
    assert names.index(task) > names.index(other)


def found(output: Any, name: str) -> Any:
    for part in name.split("."):
        assert part in output, f"{name}: {output}"
        output = output[part]
    return output


def order(run: Run, house: Server) -> list[str]:
    """The names of the tasks in the order in which they completed, as the receipts tell it."""
    receipts = house.client.get(f"/workflows/{run.shown['workflow_id']}/receipts").json()["receipts"]
    paths = [one["step"] for one in receipts if one["kind"] == "step.completed"]
    return [path.rpartition("/")[2] for path in paths if "/" in path]
