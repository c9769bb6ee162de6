"""Each failure of a cluster under load: nothing acknowledged is lost, no at_most_once effect doubled, all verifies.

Two of them run one after the other on one cluster too; each on a cluster of its own, they print a table at the end:
`.venv/bin/pytest -s -m soak tests/chaos`.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.fleet import Fleet, verified
from tests.chaos import scenarios
from tests.chaos.load import Load
from tests.chaos.scenarios import Scenario
from tests.services import etcd, postgres

SCENARIOS: Final[dict[str, Scenario]] = {
    "SIGKILL of an owner": scenarios.kill_owner,
    "SIGKILL of the leader": scenarios.kill_leader,
    "SIGKILL of an etcd member": scenarios.kill_etcd_member,
    "SIGKILL of two etcd members": scenarios.lose_etcd,
    "SIGKILL of PostgreSQL": scenarios.kill_postgres,
    "SIGSTOP past the lease, SIGCONT": scenarios.zombie,
    "SIGSTOP, lease revoked, SIGCONT": scenarios.zombie_that_believes,
    "node cut from etcd (refused)": scenarios.cut_from_etcd("refuse"),
    "node cut from etcd (packets dropped)": scenarios.cut_from_etcd("swallow"),
    "node cut from etcd (answers dropped)": scenarios.cut_from_etcd("swallow-answers"),
    "node cut from PostgreSQL (refused)": scenarios.cut_from_postgres("refuse"),
    "node cut from PostgreSQL (packets dropped)": scenarios.cut_from_postgres("swallow"),
    "node cut from PostgreSQL (stalled)": scenarios.cut_from_postgres("stall"),
    "node cut from PostgreSQL (half-closed)": scenarios.cut_from_postgres("half-close"),
    "rolling restart": scenarios.rolling_restart,
    "3 -> 5 -> 2 nodes": scenarios.three_five_two,
    "clock of a node an hour ahead": scenarios.wrong_clock(3600),
    "clock of a node an hour behind": scenarios.wrong_clock(-3600),
}
ALWAYS: Final = ("SIGKILL of the leader", "SIGSTOP past the lease, SIGCONT")
IN_FLIGHT: Final = 200
"""So many runs wait for their signal when something fails, and more are under way."""
_ROWS: Final[list[str]] = []
_FORM: Final = "{:44} {:>9} {:>12} {:>5} {:>10} {:>8} {:>9} {:>10} {:>9}  {}"
_HEADING: Final = _FORM.format(
    *("scenario", "in flight", "acknowledged", "lost", "duplicated", "unknown", "receipts", "operations", "recovered"),
    "remark; requests that were repeated",
)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    if why := etcd.missing() or postgres.missing():
        pytest.skip(why)
    made = Fleet(tmp_path)
    try:
        made.add("a")
        made.add_behind_proxies("b")
        made.add("c")
        made.settled()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """All results once more, together."""
    yield
    if len(_ROWS) > 1:
        print(f"\n\n{_HEADING}")
        print(*_ROWS, sep="\n")


def conclude(fleet: Fleet, load: Load, name: str, under_way: int, shown: scenarios.Shown) -> None:
    """What must hold after each scenario, and its row in the table."""
    outcome = load.finish()
    for node in sorted(fleet.running):
        fleet.stop(node)
    verdict = verified(fleet)
    acknowledged = len(load.acknowledged)
    row = _FORM.format(
        name,
        under_way,
        acknowledged,
        len(outcome.lost),
        len(outcome.duplicated),
        outcome.unknown,
        verdict["total_count"],
        load.operations,
        f"{shown.seconds:.1f} s",
        f"{shown.remark}; {dict(load.refused) or 'none'}",
    )
    _ROWS.append(row)
    print(f"\n{row}")
    outcome.check()
    assert acknowledged <= verdict["workflows"] <= len(load.runs), "a run was taken in twice, or is not there"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 1).start()
    under_way = load.fill(IN_FLIGHT)
    load.release()
    shown = SCENARIOS[name](fleet, load)
    time.sleep(2)
    conclude(fleet, load, name, under_way, shown)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_some_of_the_scenarios(fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, tmp_path / "effects.txt", 1).start()
    under_way = load.fill(50)
    load.release(5.0)
    for name in ALWAYS:
        shown = SCENARIOS[name](fleet, load)
        print(f"\n{name}: {shown.seconds:.1f} s, {shown.remark}")
    conclude(fleet, load, "together", under_way, shown)
