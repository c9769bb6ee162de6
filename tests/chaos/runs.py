"""The kinds of run that a load submits, and what must have become of them.

Steps that may run again, a chain of steps that must not (`at_most_once`), and runs that wait for a signal before such a
step. Each effect is a line in a file.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

UNKNOWN: Final = "KNHK-STEP-OUTCOME-UNKNOWN"
_HEAD: Final = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: {kind}-{number}}}
spec:
  retries: 5
  timeout: 1200s
  steps:
"""
_AGAIN: Final = (
    _HEAD
    + """
    - {{name: a, action: test.append, params: {{path: "{path}", line: "{number} a", milliseconds: {pause}}}}}
    - {{name: shape, action: process, params: {{output: "${{{{ steps.a.output.line }}}}"}}, depends_on: [a]}}
    - {{name: nap, action: wait, params: {{duration: {nap}ms}}, depends_on: [shape]}}
    - {{name: b, action: test.append, params: {{path: "{path}", line: "{number} b"}}, depends_on: [nap]}}
"""
)
_ONCE: Final = (
    _HEAD
    + """
    - name: once1
      action: test.append
      semantics: at_most_once
      params: {{path: "{path}", line: "{number} once1", milliseconds: {pause}}}
    - {{name: nap, action: wait, params: {{duration: {nap}ms}}, depends_on: [once1]}}
    - name: once2
      action: test.append
      semantics: at_most_once
      depends_on: [nap]
      params: {{path: "{path}", line: "{number} once2", milliseconds: {pause}}}
"""
)
_GATE: Final = (
    _HEAD
    + """
    - {{name: gate, wait_for: {{event: go}}}}
    - name: once1
      action: test.append
      semantics: at_most_once
      depends_on: [gate]
      params: {{path: "{path}", line: "{number} once1", milliseconds: {pause}}}
"""
)
KINDS: Final = {"again": _AGAIN, "once": _ONCE, "gate": _GATE, "held": _GATE}
_EFFECTS: Final = {"again": ("a", "b"), "once": ("once1", "once2"), "gate": ("once1",), "held": ("once1",), "probe": ()}


@dataclass
class Run:
    """A run that was asked for; `workflow_id` is empty until somebody has acknowledged it."""

    number: int
    kind: str
    key: str
    text: str
    workflow_id: str = ""
    cancelled: bool = False
    """Whether anybody asked to cancel it."""


def asked_for(number: int, kind: str, key: str, effects: Path, chosen: Random) -> Run:
    """A run of a kind, whose steps take chosen times."""
    text = KINDS[kind].format(
        kind=kind,
        number=number,
        path=effects,
        pause=chosen.choice([0, 5, 100]),
        nap=chosen.choice([1, 300, 3000]),
    )
    return Run(number, kind, key, text)


class Outcome(NamedTuple):
    """What became of all runs. The first three say of each run what is wrong with it."""

    lost: list[str]
    duplicated: list[str]
    contradictions: list[str]
    """Histories that no order of the requests explains."""
    unknown: int
    """Runs whose at_most_once step had begun when its node was lost: they end with that error, and never run twice."""
    repeated: int
    """Effects of steps that may run again, and did."""

    def check(self) -> None:
        """Raises AssertionError if anything is wrong."""
        for wrong in (self.lost, self.duplicated, self.contradictions):
            assert not wrong, f"{len(wrong)} of them, such as\n" + "\n".join(wrong[:3])


def judged(runs: list[tuple[Run, dict[str, Any] | None]], effects: Path, contradictions: list[str]) -> Outcome:
    """What became of acknowledged runs, from their last status (None: it did not end) and the file of effects."""
    lines = Counter(effects.read_text().splitlines())
    again = {line: times for line, times in lines.items() if times > 1}  # also of runs that were never acknowledged
    duplicated = [f"{line}: ran {times} times" for line, times in again.items() if "once" in line]
    repeated = sum(times - 1 for line, times in again.items() if "once" not in line)
    lost, unknown = [], 0
    for run, status in runs:
        if status is None:
            lost.append(f"{run.workflow_id} ({run.kind}) is not there, or did not end")
        elif status["state"] == "completed":
            missing = [step for step in _EFFECTS[run.kind] if not lines[f"{run.number} {step}"]]
            lost += [f"{run.workflow_id} completed, and steps did nothing: {missing}"] if missing else []
        elif run.kind in ("once", "gate", "held") and status["failure"] and status["failure"]["code"] == UNKNOWN:
            unknown += 1
        elif status["state"] != "cancelled" or not run.cancelled:
            lost.append(f"{run.workflow_id} ({run.kind}) ended as {status['state']}: {status['failure']}")
    return Outcome(lost, duplicated, contradictions, unknown, repeated)
