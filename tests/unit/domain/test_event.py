"""Events: every detail comes back from its bytes, and old readers understand what newer writers add."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import event as ev
from knhk.domain.event import DETAILS, KIND_OF, TERMINAL, Kind, decode_detail, encode_detail

text = st.text(max_size=30)
numbers = st.integers(0, 2**63 - 1)
failures = st.builds(ev.Failure, text, text, text, text)
_OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: text,
    int: numbers,
    bool: st.booleans(),
    bytes: st.binary(max_size=40),
    ev.Failure: failures,
    ev.Failure | None: st.none() | failures,
    ev.Origin: st.builds(ev.Origin, workflow_id=numbers, step=text, depth=numbers),
    Mapping[str, str]: st.dictionaries(text, text, max_size=4),
    tuple[str, ...]: st.lists(text, max_size=4).map(tuple),
}


def details(kind: Kind) -> st.SearchStrategy[Any]:
    """Details of a kind, with any value in every field."""
    fields = msgspec.structs.fields(DETAILS[kind])
    return st.builds(DETAILS[kind], **{field.name: _OF_TYPE[field.type] for field in fields})


@pytest.mark.parametrize("kind", Kind)
@given(data=st.data())
def test_every_detail_comes_back_from_its_bytes(kind: Kind, data: st.DataObject) -> None:
    detail = data.draw(details(kind))
    raw = encode_detail(detail)
    assert decode_detail(kind.value, raw) == detail
    assert encode_detail(decode_detail(kind.value, raw)) == raw


@pytest.mark.parametrize("kind", Kind)
@given(data=st.data())
def test_fields_of_a_later_version_are_passed_over(kind: Kind, data: st.DataObject) -> None:
    detail = data.draw(details(kind))
    fields = msgspec.msgpack.decode(encode_detail(detail))
    later = {**fields, "added_in_version_9": data.draw(text), "another": [1, {"deep": None}]}
    assert decode_detail(kind.value, msgspec.msgpack.encode(later)) == detail


@pytest.mark.parametrize("kind", Kind)
def test_fields_of_an_earlier_version_are_filled_in(kind: Kind) -> None:
    """What was added later has a default: bytes without it can still be read."""
    kind_type = DETAILS[kind]
    samples: dict[Any, Any] = {str: "x", int: 1, bool: True, bytes: b"x", ev.Failure: {"code": "C", "message": "m"}}
    required = [field for field in msgspec.structs.fields(kind_type) if field.required]
    raw = msgspec.msgpack.encode({field.name: samples[field.type] for field in required})
    assert isinstance(decode_detail(kind.value, raw), kind_type)


def test_kinds_and_details_belong_together_one_to_one() -> None:
    assert set(DETAILS) == set(Kind)
    assert len(set(DETAILS.values())) == len(Kind)
    assert {KIND_OF[detail] for detail in DETAILS.values()} == {kind.value for kind in Kind}
    assert set(DETAILS.values()) == set(ev.AnyDetail.__args__)
    assert {kind.value for kind in Kind} >= TERMINAL


def test_names_of_kinds_are_the_format_and_do_not_change() -> None:
    assert sorted(kind.value for kind in Kind) == [
        "approval.given",
        "child.ended",
        "definition.put",
        "definition.retired",
        "event.received",
        "payload.erased",
        "recovery.drilled",
        "scaling.decided",
        "scaling.ended",
        "signal.received",
        "step.caught",
        "step.compensated",
        "step.completed",
        "step.entered",
        "step.failed",
        "step.opened",
        "step.retrying",
        "step.reused",
        "step.skipped",
        "step.started",
        "step.unwinding",
        "step.waiting",
        "timer.fired",
        "timer.set",
        "workflow.cancelled",
        "workflow.completed",
        "workflow.ending",
        "workflow.failed",
        "workflow.paused",
        "workflow.resumed",
        "workflow.retried",
        "workflow.settled",
        "workflow.started",
        "workflow.submitted",
        "workflow.timed_out",
    ]


def test_an_unknown_kind_and_wrong_bytes_are_refused() -> None:
    with pytest.raises(KeyError):
        decode_detail("workflow.teleported", b"\x80")
    with pytest.raises(msgspec.ValidationError):
        decode_detail("timer.set", b"\x80")
    with pytest.raises(msgspec.DecodeError):
        decode_detail("timer.set", b"\xc1")


def test_every_detail_is_encoded_in_its_shortest_form() -> None:
    """With more than 15 fields msgspec leaves room for a longer head of the map, and the bytes are not canonical."""
    assert all(len(detail.__struct_fields__) <= 15 for detail in DETAILS.values())
