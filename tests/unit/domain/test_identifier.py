"""Workflow ids: what is put in can be read out, and they sort by time."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import identifier
from knhk.domain.errors import WorkflowNotFound
from knhk.domain.identifier import EPOCH_MS, MAX_SEQUENCE

times = st.integers(EPOCH_MS, EPOCH_MS + 2**41 - 1)
partitions = st.integers(0, 1023)
sequences = st.integers(0, MAX_SEQUENCE)


@given(times, partitions, sequences)
def test_time_and_partition_can_be_read_from_an_id(at_ms: int, partition: int, sequence: int) -> None:
    number = identifier.compose(at_ms, partition, sequence)
    assert 0 <= number < 2**63
    assert identifier.at_ms(number) == at_ms
    assert identifier.partition_of(number) == partition
    assert identifier.parse(identifier.to_text(number)) == number


@given(partitions, st.tuples(times, sequences), st.tuples(times, sequences))
def test_ids_of_a_partition_sort_by_time_and_sequence(
    partition: int, first: tuple[int, int], second: tuple[int, int]
) -> None:
    one = identifier.compose(first[0], partition, first[1])
    other = identifier.compose(second[0], partition, second[1])
    assert (one < other) == (first < second)


@given(st.tuples(times, partitions), st.tuples(times, partitions))
def test_ids_of_different_milliseconds_sort_by_time_over_all_partitions(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    one = identifier.compose(*first, MAX_SEQUENCE)
    other = identifier.compose(*second, 0)
    if first[0] < second[0]:
        assert one < other


@pytest.mark.parametrize(
    "text",
    ["", "wf-", "wf-x", "wf--1", "1", "WF-1", "wf-1 ", " wf-1", "wf-٣", f"wf-{2**63}", "wf-" + "9" * 50, "wf-1\n"],
)
def test_what_is_no_id_names_no_workflow(text: str) -> None:
    with pytest.raises(WorkflowNotFound):
        identifier.parse(text)


@given(st.text(max_size=40) | st.integers(0, 2**64).map(lambda number: f"wf-{number}"))
def test_parsing_answers_or_says_that_there_is_no_such_workflow(text: str) -> None:
    with suppress(WorkflowNotFound):
        assert identifier.to_text(identifier.parse(text)).lstrip("wf-0") == text.lstrip("wf-0")
