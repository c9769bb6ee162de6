"""Rendezvous hashing: everybody computes the same, and who comes or goes moves only what is theirs."""

from hypothesis import given
from hypothesis import strategies as st

from knhk.cluster.assignment import assignment, owner_of, partition_of_key

NAMES = st.sets(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8), max_size=8)


@given(NAMES, st.integers(1, 128))
def test_every_partition_has_one_owner_that_is_there(nodes: set[str], partitions: int) -> None:
    found = assignment(partitions, nodes)
    assert set(found.values()) <= nodes
    assert len(found) == (partitions if nodes else 0)
    assert found == assignment(partitions, sorted(nodes, reverse=True))


@given(NAMES, st.text(min_size=9, max_size=9))
def test_a_node_that_comes_takes_and_one_that_goes_gives_and_nothing_else_moves(nodes: set[str], new: str) -> None:
    before, after = assignment(64, nodes), assignment(64, {*nodes, new})
    for partition, owner in after.items():
        assert owner in (new, before.get(partition))


def test_shares_are_about_equal() -> None:
    shares = [list(assignment(1024, ["a", "b", "c", "d"]).values()).count(node) for node in "abcd"]
    assert all(200 < share < 320 for share in shares), shares


def test_nobody_owns_anything_where_nobody_is() -> None:
    assert owner_of(3, []) is None


@given(st.binary(max_size=40), st.integers(1, 1024))
def test_a_key_always_belongs_to_the_same_partition(key: bytes, partitions: int) -> None:
    assert partition_of_key(key, partitions) == partition_of_key(bytes(key), partitions) < partitions
