"""What the faces ask of the engine, and what a submission is answered with."""

from collections.abc import Mapping
from typing import Any, Final, Self

import msgspec

from knhk.domain import event as ev
from knhk.domain.errors import InvalidParameter
from knhk.domain.run import RunState
from knhk.domain.summary import Summary
from knhk.engine.live import LiveRun


class Submission(msgspec.Struct, frozen=True):
    """A request to run a workflow: the descriptor's text, the inputs, who asks and how often they may have asked.

    In place of the text, `definition` and `version` may name a registered one; no version is the newest.
    """

    descriptor: bytes = b""
    inputs: Mapping[str, Any] = {}
    idempotency_key: str = ""
    actor: str = "api"
    traceparent: str = ""
    definition: str = ""
    version: str = ""
    parent: int = 0
    parent_step: str = ""
    depth: int = 0
    forked_from: int = 0
    fork_step: str = ""


class Reused(msgspec.Struct, frozen=True):
    """What a step gave in the run that is forked, as stored bytes, by which receipt, and after how many attempts."""

    step: str
    raw: bytes
    seq: int
    attempts: int


class Accepted(msgspec.Struct, frozen=True):
    """A committed submission. `replayed`: the idempotency key was known, and this is the run of the first request."""

    workflow_id: int
    state: str
    replayed: bool = False
    results: Mapping[str, Any] | None = None
    failure: ev.Failure | None = None

    @classmethod
    def of(cls, live: LiveRun) -> Self:
        """The answer to a new submission, now that it is committed."""
        run = live.run
        if run.ended and not live.uncommitted:
            return cls(run.workflow_id, run.state, results=live.results, failure=run.failure)
        return cls(run.workflow_id, RunState.RUNNING if run.ended else run.state)


_LONGEST_KEY: Final = 255


def checked_key(key: str) -> str:
    """An idempotency key as it was given. Raises InvalidParameter if it can be none."""
    if len(key) > _LONGEST_KEY or "\0" in key:
        raise InvalidParameter(f"Idempotency-Key: at most {_LONGEST_KEY} characters, and none of them NUL")
    return key


class Filter(msgspec.Struct, frozen=True):
    """Which runs to list; empty fields do not restrict."""

    state: str = ""
    name: str = ""
    department: str = ""

    def admits(self, row: Summary) -> bool:
        """Whether a row is one of those asked for."""
        return (
            (not self.state or row.state == self.state)
            and (not self.name or row.name == self.name)
            and (not self.department or row.department == self.department)
        )
