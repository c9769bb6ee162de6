"""/openapi.json is a valid description of all that is there."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from knhk.domain.problems import MEDIA_TYPE
from tests.unit.api.node import Node

OPERATIONS = {
    ("/actions", "get"),
    ("/actions/{name}", "get"),
    ("/workers", "get"),
    *((f"/workers/{verb}", "post") for verb in ("poll", "heartbeat", "complete", "fail", "release", "sought")),
    ("/workflows", "get"),
    ("/workflows", "post"),
    ("/workflows/{workflow_id}", "get"),
    ("/workflows/{workflow_id}", "delete"),
    ("/definitions", "get"),
    ("/events", "post"),
    ("/workflows/bulk", "post"),
    ("/hooks/{definition}/{trigger}", "post"),
    *(("/definitions/{name}", method) for method in ("get", "put", "delete")),
    ("/definitions/{name}/diff", "get"),
    ("/definitions/{name}/versions/{version}", "get"),
    *((f"/workflows/{{workflow_id}}/{name}", "get") for name in ("receipts", "events")),
    *(
        (f"/workflows/{{workflow_id}}/{verb}", "post")
        for verb in ("cancel", "pause", "resume", "retry", "signals", "approve", "reject", "fork")
    ),
    ("/workflows/{workflow_id}/kept-events/{record}", "post"),
}


@pytest.fixture
async def described(node: Node) -> dict[str, Any]:
    answer = await node.http.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return dict(answer.json())


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def within(value: Any, key: str) -> Iterator[Any]:
    """Every value under a key, at any depth."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        if name == key:
            yield child
        yield from within(child, key)


def test_every_route_is_described(described: dict[str, Any], node: Node) -> None:
    assert described["openapi"].startswith("3.1")
    assert described["info"]["version"] == "5.0.0"
    assert {(path, method) for path, method, _ in operations(described)} == OPERATIONS
    routed = {
        (route.path_format, method.lower())
        for route in node.application.routes
        for method in route.methods
        if method != "OPTIONS" and not route.path_format.startswith(("/openapi.json", "/schema"))
    }
    assert routed == OPERATIONS


def test_operations_are_complete(described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(names)) == len(names)
    for path, method, operation in operations(described):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        in_path = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), where
        assert any(status.startswith("2") for status in operation["responses"]), where
        for status, response in operation["responses"].items():
            assert response["description"], where
            if int(status) >= 400:
                assert list(response["content"]) == [MEDIA_TYPE], where
        assert "400" in operation["responses"], where
        named = in_path or path in ("/workers/complete", "/workers/fail")  # they name a run in the body
        assert ("404" in operation["responses"]) is bool(named), where


def test_the_submission_names_its_bodies_and_refusals(described: dict[str, Any]) -> None:
    submission = described["paths"]["/workflows"]["post"]
    assert submission["requestBody"]["required"] is True
    assert submission["requestBody"]["content"].keys() == {"application/yaml", "application/json"}
    assert submission["responses"].keys() == {"200", "202", "400", "409", "413", "422", "429", "503"}
    assert {(one["name"], one["in"]) for one in submission["parameters"]} == {
        ("wait", "query"),
        ("Idempotency-Key", "header"),
    }


def test_events_are_a_stream_and_reasons_may_be_left_out(described: dict[str, Any]) -> None:
    paths = described["paths"]
    assert list(paths["/workflows/{workflow_id}/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]
    for verb in ("cancel", "pause", "resume"):
        assert paths[f"/workflows/{{workflow_id}}/{verb}"]["post"]["requestBody"]["required"] is False


def test_schemas_are_valid_and_references_resolve(described: dict[str, Any]) -> None:
    schemas = [*within(described, "schema"), *described["components"]["schemas"].values()]
    assert len(schemas) > 20
    for schema in schemas:
        assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    for reference in within(described, "$ref"):
        kind, _, name = reference.removeprefix("#/components/").partition("/")
        assert name in described["components"][kind], reference
