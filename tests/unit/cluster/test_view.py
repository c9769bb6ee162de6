"""What etcd holds, as data."""

import msgspec

from knhk.cluster.etcd import Entry
from knhk.cluster.view import Home, Node, Owner, View, free_number, read


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


def test_journals_of_their_own_stay_with_their_nodes() -> None:
    homes = {0: Home("a", "a", 3), 1: Home("b", "b", 1), 2: Home("c", "a", 9)}
    nodes = {"a": node("a"), "b": node("b"), "c": node("c")}

    def wanted(view: View, *, movable: bool = True, takeover: bool = True) -> dict[int, str]:
        return view.at_home(movable=movable, takeover=takeover)

    assert wanted(View(nodes, homes=homes)) == {0: "a", 1: "b", 2: "c"}, "what was made by a node goes back to it"
    assert wanted(View(nodes, homes=homes), movable=False) == {0: "a", 1: "b", 2: "a"}
    without_b = View({"a": node("a"), "c": node("c")}, homes=homes)
    assert wanted(without_b, takeover=False) == {0: "a", 2: "c"}, "nobody may have what b has"
    assert wanted(without_b)[1] in ("a", "c")
    assert wanted(View(nodes, drained=frozenset("b"), homes=homes), takeover=False)[1] in ("a", "c")
    assert wanted(View(nodes, drained=frozenset("b"), homes=homes), movable=False)[1] == "b"
    leaving = View({**nodes, "b": node("b", leaving=True)}, homes=homes)
    assert wanted(leaving, takeover=False)[1] == "b", "it will be back, and loses nothing"
    assert wanted(leaving)[1] in ("a", "c")


def test_the_first_free_number_is_a_new_nodes() -> None:
    assert [free_number(taken) for taken in ([], [0, 1], [1], [0, 2])] == [0, 2, 0, 1]


def test_a_node_with_its_own_journal_does_not_join_those_that_share_one() -> None:
    sharing, other = node("a"), msgspec.structs.replace(node("b"), own_journal=True)
    view = View({"a": sharing, "b": other}, joined={"a": 1, "b": 2})
    assert view.against(other) == sharing
    assert view.against(sharing) is None
