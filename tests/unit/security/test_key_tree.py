"""The tree of keys: every path has one key, and a path that was cut out has none, while all others keep theirs."""

import random

from hypothesis import given
from hypothesis import strategies as st

from knhk.security.key_tree import BRANCH_DEPTH, DEPTH, DIGITS, KeyTree, child

ROOT = bytes(range(32))
BRANCH = "0123456789abcdef"
paths = st.builds(
    lambda branch, rest: f"{branch:016x}{rest:016x}",
    st.integers(0, 3),
    st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1)),
)


def derived(path: str) -> bytes:
    """The key by the definition, without any of the shortcuts."""
    node = ROOT
    for digit in path:
        node = child(node, digit)
    return node


@given(st.lists(paths, min_size=1, max_size=20))
def test_the_key_of_a_path_is_that_of_the_definition_in_whatever_order_they_are_asked_for(asked: list[str]) -> None:
    tree = KeyTree({"": ROOT})
    for path in asked:
        assert tree.key(path) == derived(path)


@given(st.lists(paths, max_size=6), st.lists(paths, min_size=1, max_size=12))
def test_destroyed_paths_have_no_key_and_all_others_keep_theirs(destroyed: list[str], others: list[str]) -> None:
    tree = KeyTree({"": ROOT})
    for path in destroyed:
        tree.key(path)
        tree.destroy(path)
    stored = KeyTree(tree.nodes)
    for path in destroyed + others:
        expected = None if path in destroyed else derived(path)
        assert tree.key(path) == expected
        assert stored.key(path) == expected


def test_what_is_stored_leads_to_no_destroyed_path() -> None:
    tree = KeyTree({"": ROOT})
    path = BRANCH + "fedcba9876543210"
    tree.destroy(path)
    assert len(tree.nodes) == DEPTH * (len(DIGITS) - 1)
    assert not [known for known in tree.nodes if path.startswith(known)]
    forbidden = {derived(path[:depth]) for depth in range(DEPTH + 1)}
    assert not forbidden & set(tree.nodes.values())


def test_a_whole_branch_goes_with_all_that_was_cut_out_of_it_before() -> None:
    tree = KeyTree({"": ROOT})
    rng = random.Random(1)
    runs = [BRANCH + f"{rng.getrandbits(64):016x}" for _ in range(20)]
    for run in runs[:10]:
        tree.destroy(run)
    tree.destroy(BRANCH)
    assert all(tree.key(run) is None for run in runs)
    assert len(tree.nodes) == BRANCH_DEPTH * (len(DIGITS) - 1)
    other = "1" * BRANCH_DEPTH + runs[0][BRANCH_DEPTH:]
    assert tree.key(other) == derived(other)
    tree.destroy(BRANCH)
    tree.destroy(runs[0])
    assert tree.key(other) == derived(other)


def test_keys_of_many_branches_do_not_grow_memory() -> None:
    tree = KeyTree({"": ROOT})
    for branch in range(1000):
        tree.key(f"{branch:016x}{branch:016x}")
    assert len(tree._ways) <= 256
