"""What must have become of every workflow that a server acknowledged, whatever died meanwhile."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

ENDED = ("completed", "failed", "cancelled", "timed_out")


_Found = TypeVar("_Found")


def until(ask: Callable[[], _Found], timeout_s: float = 60.0, *, holds: Callable[[_Found], object] = bool) -> _Found:
    """Ask until the answer is as it should be, and give it."""
    deadline = time.monotonic() + timeout_s
    while not holds(found := ask()):
        assert time.monotonic() < deadline, f"it did not come to be in time: {found}"
        time.sleep(0.02)
    return found


def ended(name: str, ask: Callable[[str], httpx.Response]) -> dict[str, Any]:
    """The status of a workflow once it has ended. It is never unknown; 503 says that it cannot be told just now."""
    deadline = time.monotonic() + 90
    while True:
        answer = ask(f"/workflows/{name}")
        if answer.status_code == 200 and answer.json()["state"] in ENDED:
            return dict(answer.json())
        assert answer.status_code in (200, 503), f"{name} is lost: {answer.text}"
        assert time.monotonic() < deadline, f"{name} did not end: {answer.text}"
        time.sleep(0.02)


def check(
    acknowledged: Mapping[str, tuple[int, str]], effects: Path, ended_of: Callable[[str], dict[str, Any]]
) -> None:
    """Every acknowledged run ends well; at_most_once effects are never doubled, the others never missing.

    The runs are those of `test_crash.DESCRIPTOR` ("crash") and `ONCE` ("once"), with their numbers.
    """
    statuses = {name: ended_of(name) for name in acknowledged}
    lines = Counter(effects.read_text().splitlines())
    for name, (number, kind) in acknowledged.items():
        shown = statuses[name]
        if kind == "once":
            unknown = shown["failure"] and shown["failure"]["code"] == "KNHK-STEP-OUTCOME-UNKNOWN"
            assert shown["state"] == "completed" or unknown, shown
            assert lines[f"{number} once"] <= 1, f"{name}: an at_most_once step ran twice"
        else:
            assert shown["state"] == "completed", shown
            assert all(lines[f"{number} {step}"] >= 1 for step in "abc"), name
