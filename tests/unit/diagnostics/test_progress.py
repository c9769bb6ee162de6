"""What stands still is noticed, though nothing raises an error."""

import pytest

from knhk.diagnostics.progress import Moment, Progress
from knhk.ops.operations import DEGRADED, HEALTHY, UNHEALTHY, all_rooms, status_of
from tests.unit.observability.test_uptime import HandClock

QUIET = {"commits": 5, "committing": False, "height": 9, "projected": 9, "free_bytes": 10 << 30}
S = 1_000_000_000


class Node:
    """A node whose progress a test sets, looked at every second."""

    def __init__(self) -> None:
        self.now = dict(QUIET)
        self.clock = HandClock()
        self.progress = Progress(self.clock, lambda: Moment(**self.now), 1 << 30)

    def passes(self, seconds: int, **changed: int) -> str:
        self.now |= changed
        for _ in range(seconds):
            self.clock.at_ns += S
            self.progress.check()
        return self.progress.health()

    @property
    def status(self) -> str:
        return status_of(all_rooms({"persistence": self.progress.health()}), None)


@pytest.fixture
def node() -> Node:
    return Node()


def test_nothing_to_do_is_no_stand_still(node: Node) -> None:
    assert node.passes(1_000) == "ok"
    assert node.status == HEALTHY


def test_a_commit_that_never_ends_makes_the_node_unhealthy(node: Node) -> None:
    assert node.passes(10, committing=True) == "ok"
    text = node.passes(3)
    assert "under way for 12 s" in text
    assert node.progress.stuck == text
    assert node.status == UNHEALTHY
    assert node.passes(1, commits=6) == "ok"
    assert node.progress.stuck is None
    assert node.passes(5) == "ok"


def test_one_commit_after_another_is_progress(node: Node) -> None:
    for number in range(100):
        assert node.passes(1, commits=number, committing=True) == "ok"


def test_projections_that_do_not_follow_degrade_it(node: Node) -> None:
    assert node.passes(10, height=12) == "ok"
    assert "3 blocks behind for 12 s" in node.passes(3)
    assert node.progress.stuck is None
    assert node.status == DEGRADED
    assert node.passes(1, projected=10) == "ok"  # behind, and moving
    assert node.passes(1, projected=12) == "ok"
    assert node.passes(100) == "ok"


def test_a_disk_that_is_nearly_full_is_said_before_it_is(node: Node) -> None:
    text = node.passes(1, free_bytes=700 << 20)
    assert text == "warning: the disk is nearly full: 700 MiB are free"
    assert node.status == DEGRADED
    assert node.passes(1, free_bytes=2 << 30) == "ok"
