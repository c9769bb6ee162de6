"""What etcd holds, as data."""

import msgspec

from knhk.cluster.etcd import Entry
from knhk.cluster.view import Node, Owner, View, read


def entry(value: object, lease: int = 1) -> Entry:
    return Entry(msgspec.json.encode(value).decode(), lease, 1)


def node(name: str, leaving: bool = False) -> Node:
    return Node(name, f"http://{name}", "5.0.0", 1, leaving)


def test_a_view_of_nodes_owners_and_drains() -> None:
    view = read(
        {
            "/knhk/x/nodes/a": entry(node("a")),
            "/knhk/x/nodes/b": entry(node("b")),
            "/knhk/x/nodes/newer": Entry("{", 3, 1),
            "/knhk/x/owners/0": entry(Owner("a", 7), 5),
            "/knhk/x/owners/nonsense": entry(Owner("a", 7), 5),
            "/knhk/x/drained/b": Entry("a", 0, 1),
        },
        "/knhk/x",
    )
    assert (sorted(view.nodes), view.leader, view.api_of(0), view.api_of(1)) == (["a", "b"], "a", "http://a", None)
    assert view.owners[0].lease == 5
    assert view.candidates() == ["a"]
    assert set(view.wanted(8).values()) == {"a"}


def test_if_all_are_drained_those_who_stay_own_all_the_same() -> None:
    nodes = {"a": node("a"), "b": node("b", leaving=True)}
    assert View(nodes, {}, frozenset({"a", "b"})).candidates() == ["a"]
    assert View({"b": node("b", leaving=True)}, {}).candidates() == []
