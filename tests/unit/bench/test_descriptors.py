"""The descriptors are well formed, and no two submits are alike."""

import pytest
import yaml
from bench import descriptors
from bench.descriptors import FIRST_SERIAL, RequestTemplate

ALL = {
    "two": (descriptors.two(), 2),
    "two-effect": (descriptors.two_effect(), 2),
    "ten": (descriptors.ten(), 10),
    "layered": (descriptors.layered(1000), 1000),
    "wide": (descriptors.wide("sales", "process"), 100),
    "each": (descriptors.each(50), 1),
    "waiting": (descriptors.waiting(), 1),
}


def body_of(descriptor: str, serial: int) -> bytes:
    request = RequestTemplate(descriptor, host="127.0.0.1", port=1, target="/workflows").render(serial)
    head, body = request.split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head
    return body


@pytest.mark.parametrize("name", ALL)
def test_each_descriptor_is_a_dag_in_which_dependencies_come_first(name: str) -> None:
    descriptor, count = ALL[name]
    parsed = yaml.safe_load(body_of(descriptor, FIRST_SERIAL + 42))
    assert parsed["apiVersion"] == "knhk/v1"
    assert parsed["metadata"]["name"].endswith(str(FIRST_SERIAL + 42))
    seen: set[str] = set()
    for step in parsed["spec"]["steps"]:
        assert set(step.get("depends_on", [])) <= seen
        seen.add(step["name"])
    assert len(seen) == count


def test_two_submits_differ_in_name_and_params() -> None:
    first, second = (yaml.safe_load(body_of(descriptors.two(), FIRST_SERIAL + i)) for i in (1, 2))
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["spec"]["steps"][0]["params"] != second["spec"]["steps"][0]["params"]


def test_percent_signs_survive_the_template() -> None:
    assert body_of("name: 100%d SERIAL", FIRST_SERIAL) == b"name: 100%d 1000000000"


def test_the_layered_dag_is_the_same_each_time_and_really_layered() -> None:
    assert descriptors.layered(500) == descriptors.layered(500)
    steps = yaml.safe_load(descriptors.layered(500))["spec"]["steps"]
    assert all(not step["depends_on"] for step in steps[:100])
    assert all(1 <= len(step["depends_on"]) <= 3 for step in steps[100:])
