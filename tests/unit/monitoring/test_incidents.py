"""Incidents: each fires once and resolves, is told to whom it concerns, and is the same after a restart."""

import copy
from collections.abc import Sequence
from typing import Final

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from knhk.monitoring.incidents import Audience, Incident, Ledger, Silence
from knhk.monitoring.objectives import Condition

SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
BAD = Condition("slo.success", "critical", "Workflows fail", {"why": "x"})
ALL = Audience("all", "info")


def ledger() -> Ledger:
    return Ledger("node-1", cooldown_ns=5 * MINUTE, resolve_after_ns=MINUTE)


def restarted(before: Ledger) -> Ledger:
    """What a new process makes of the rows."""
    after = ledger()
    incidents = [*before.firing.values(), *before.resolved]
    after.load(
        [msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Incident) for one in incidents],
        copy.copy(list(before.silences.values())),
    )
    return after


def tell(book: Ledger, audience: Audience, now_ns: int) -> tuple[list[str], list[str]]:
    fires, over = book.to_tell(audience, now_ns)
    book.was_told(fires, audience.channel, now_ns, over=False)
    book.was_told(over, audience.channel, now_ns, over=True)
    return [one.name for one in fires], [one.name for one in over]


def test_it_fires_once_and_resolves_when_the_cause_has_been_gone_for_a_while() -> None:
    book = ledger()
    book.observe([BAD], MINUTE)
    assert tell(book, ALL, MINUTE) == (["slo.success"], [])
    book.observe([BAD], 2 * MINUTE)
    assert tell(book, ALL, 2 * MINUTE) == ([], [])
    book.observe([], 3 * MINUTE)
    assert tell(book, ALL, 3 * MINUTE) == ([], [])
    book.observe([BAD], 3 * MINUTE + 1)  # it was not over
    book.observe([], 4 * MINUTE)
    book.observe([], 5 * MINUTE)
    assert tell(book, ALL, 5 * MINUTE) == ([], ["slo.success"])
    book.observe([], 6 * MINUTE)
    assert tell(book, ALL, 6 * MINUTE) == ([], [])


def test_the_same_again_waits_for_the_cooldown() -> None:
    book = ledger()
    book.observe([BAD], 0)
    book.observe([], MINUTE)
    book.observe([], 2 * MINUTE)
    assert not book.firing
    book.observe([BAD], 3 * MINUTE)
    assert not book.firing
    book.observe([BAD], 7 * MINUTE)
    assert [one.started_at_ns for one in book.firing.values()] == [7 * MINUTE]


def test_severity_and_time_decide_who_is_told() -> None:
    book = ledger()
    book.observe([BAD._replace(severity="warning")], 0)
    pager = Audience("pager", "critical")
    boss = Audience("boss", "warning", 15 * MINUTE)
    assert tell(book, pager, MINUTE) == ([], [])
    assert tell(book, boss, MINUTE) == ([], [])
    book.observe([BAD], 2 * MINUTE)  # it became worse
    assert tell(book, pager, 2 * MINUTE) == (["slo.success"], [])
    assert tell(book, boss, 14 * MINUTE) == ([], [])
    assert tell(book, boss, 15 * MINUTE) == (["slo.success"], [])
    book.observe([], 16 * MINUTE)
    book.observe([], 17 * MINUTE)
    never = Audience("never", "info", 3600 * SECOND)
    assert [tell(book, one, 17 * MINUTE)[1] for one in (pager, boss, never)] == [["slo.success"], ["slo.success"], []]


def test_a_silence_holds_the_beginning_back_and_not_the_end() -> None:
    book = ledger()
    book.silences["s"] = Silence("s", "slo.*", 10 * MINUTE, 0)
    book.observe([BAD, BAD._replace(name="health.x")], 0)
    assert tell(book, ALL, MINUTE) == (["health.x"], [])
    assert tell(restarted(book), ALL, MINUTE) == ([], [])
    assert tell(book, ALL, 10 * MINUTE) == (["slo.success"], [])
    book.silences["t"] = Silence("t", "*", 60 * MINUTE, 0)
    book.observe([], 11 * MINUTE)
    book.observe([], 12 * MINUTE)
    assert sorted(tell(book, ALL, 12 * MINUTE)[1]) == ["health.x", "slo.success"]


def test_a_channel_that_fails_is_told_again_after_a_pause_that_grows() -> None:
    book = ledger()
    book.observe([BAD], 0)
    now, pauses = 0, []
    for _ in range(9):
        fires, _ = book.to_tell(ALL, now)
        assert fires
        book.was_not_told(fires, "all", now, "refused", 0)
        told = fires[0].told["all"]
        assert book.to_tell(ALL, told.next_at_ns - 1) == ([], [])
        pauses.append((told.next_at_ns - now) // SECOND)
        now = told.next_at_ns
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert book.failing() == {"all": "refused"}
    fires, _ = book.to_tell(ALL, now)
    book.was_not_told(fires, "all", now, "busy", 1_000 * SECOND)
    assert fires[0].told["all"].next_at_ns == now + 1_000 * SECOND
    assert tell(book, ALL, now + 1_000 * SECOND) == (["slo.success"], [])
    assert book.failing() == {}


NAMES = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(st.sets(st.sampled_from(NAMES)), st.integers(1, 90), st.booleans(), st.booleans()), max_size=60
)


@given(STEPS)
def test_whatever_happens_every_incident_is_told_once_and_ends_once(
    steps: Sequence[tuple[set[str], int, bool, bool]],
) -> None:
    book, now = ledger(), 0
    told: list[tuple[str, bool]] = []
    for holding, seconds, restart, failing in steps:
        now += seconds * SECOND
        if restart:
            book = restarted(book)
        book.observe([BAD._replace(name=name) for name in sorted(holding)], now)
        fires, over = book.to_tell(ALL, now)
        if failing:
            book.was_not_told([*fires, *over], "all", now, "no", 0)
        else:
            book.was_told(fires, "all", now, over=False)
            book.was_told(over, "all", now, over=True)
            told += [(one.id, True) for one in fires] + [(one.id, False) for one in over]
        assert set(book.firing) <= set(NAMES)
    assert len(told) == len(set(told))
    for identity, begins in told:
        if not begins:
            assert told.index((identity, True)) < told.index((identity, False))


def test_what_is_long_gone_is_forgotten() -> None:
    book = ledger()
    for number in range(1_100):
        at = number * 10 * MINUTE
        book.observe([BAD], at)
        book.observe([], at + MINUTE)
        book.observe([], at + 3 * MINUTE)
    assert len(book.resolved) <= 1_000
    book.observe([], 365 * 24 * 60 * MINUTE)
    assert book.resolved == []
    assert None in book.changed.values()
