"""A run in memory: its fold, its end of the chain, and what this process is doing for it. None of it is the truth."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from knhk.domain import payload
from knhk.domain.event import error_variable
from knhk.domain.expressions import Scope
from knhk.domain.frame import FIRST_INSIDE, Frame, InnerFrame, Role
from knhk.domain.identifier import to_text
from knhk.domain.plan import Step
from knhk.domain.receipt import NO_HASH
from knhk.domain.run import Run
from knhk.domain.times import rfc3339
from knhk.engine.blocks.values import Values

if TYPE_CHECKING:
    from asyncio import Future

    from knhk.engine.committer import Batch, Piece
    from knhk.engine.executor import Attempt


_FACTS: Final[dict[str, Callable[[Run], Any]]] = {
    "id": lambda run: to_text(run.workflow_id),
    "name": lambda run: run.plan.name,
    "department": lambda run: run.plan.department,
    "labels": lambda run: dict(run.plan.labels),
    "covenant": lambda run: run.plan.covenant,
    "submitted_at": lambda run: rfc3339(run.submitted_at_ns),
}


class Facts(Mapping[str, Any]):
    """What expressions can read of a run as `run`, made when it is read: most runs have no expression that does."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getitem__(self, name: str) -> Any:
        return _FACTS[name](self._run)

    def __iter__(self) -> Iterator[str]:
        return iter(_FACTS)

    def __len__(self) -> int:
        return len(_FACTS)


class LiveRun:
    """One run that is being worked on.

    `outputs` are the values that further steps may read, `results` what the run gives: its declared outputs, or else
    those of the steps that nothing depends on; `values` are the same of the frames inside. `previous_hash` is the end
    of the chain, committed or not.
    `done` is what steps that can be undone were given and gave, by their receipt's seq.
    `signals` is the data of signals that no step has taken, by their receipt's seq.
    `batch` is the group commit that holds its newest receipts.
    `marked_live` and `timer_row_ns` say what the store holds about it, so that a commit writes only the differences.
    """

    __slots__ = (
        "attempts",
        "batch",
        "done",
        "held_outputs",
        "inputs",
        "marked_live",
        "outputs",
        "piece",
        "previous_hash",
        "queued",
        "results",
        "run",
        "scope_cache",
        "signals",
        "timer_row_ns",
        "values",
        "waiters",
    )

    def __init__(self, run: Run, inputs: Mapping[str, Any]) -> None:
        self.run = run
        self.inputs = inputs
        self.outputs: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.values: dict[int, Values] = {}
        self.held_outputs: dict[int, bytes] = {}
        self.signals: dict[int, bytes] = {}
        self.done: dict[int, tuple[bytes, bytes]] = {}
        self.previous_hash = NO_HASH
        self.batch: Batch | None = None
        self.piece: Piece | None = None
        self.marked_live = False
        self.timer_row_ns = 0
        self.attempts: dict[int, Attempt] = {}
        self.waiters: list[Future[None]] = []
        self.queued = False
        self.scope_cache: Scope | None = None

    @property
    def scope(self) -> Scope:
        """What expressions of this run can see. Outputs appear in it as steps complete."""
        if self.scope_cache is None:
            self.scope_cache = Scope(self.inputs, self.outputs, Facts(self.run))
        return self.scope_cache

    def scope_at(self, frame: Frame, index: int) -> Scope:
        """What the expressions of one step can see."""
        return self.values_of(frame).scope_at(index) if isinstance(frame, InnerFrame) else self.scope

    def values_of(self, frame: InnerFrame) -> Values:
        """The values of an open frame; of one that the run itself needs, made when they are first asked for."""
        values = self.values.get(frame.number)
        if values is None:
            around = self.scope if frame.index < 0 else self.scope_at(frame.parent, frame.index)
            values = self.values[frame.number] = Values(frame, around, self._of_ending(frame))
            if frame.undoes is not None:
                values.items = [self._undo(one.seq) for one in frame.undoes]
        return values

    def _of_ending(self, frame: InnerFrame) -> dict[str, Any]:
        ending = self.run.ending
        if frame.role not in (Role.ON_FAILURE, Role.FINALLY) or ending is None:
            return {}
        failure = ending.failure
        error = None if failure is None else error_variable(failure, "", 0)
        return {"error": error, "outcome": ending.state}

    def _undo(self, seq: int) -> dict[str, Any]:
        """What the compensation of something sees of it: what it was given, and what it gave."""
        given, output = self.done.get(seq, (b"", b""))
        return {
            "input": payload.decode(given) if given else None,
            "output": payload.decode(output) if output else None,
        }

    def keep(self, position: int, step: Step, output: Any) -> None:
        """A step has given something."""
        if position >= FIRST_INSIDE:
            frame, index = self.run.at(position)
            assert isinstance(frame, InnerFrame)
            self.values_of(frame).put(index, output)
            return
        if step.keep_output:
            self.outputs[step.name] = output
        if not step.dependents and not self.run.plan.outputs:
            self.results[step.name] = output

    def opened(
        self, frame: Frame, index: int, *, items: list[Any] | None = None, variables: Mapping[str, Any] | None = None
    ) -> Values:
        """A frame was opened for a step, or goes on."""
        assert frame.children is not None
        return self.enter(frame.children[index], items=items, variables=variables)

    def enter(
        self, frame: InnerFrame, *, items: list[Any] | None = None, variables: Mapping[str, Any] | None = None
    ) -> Values:
        """The values of a frame, with what it is repeated for and its variables if there are none yet."""
        values = self.values.get(frame.number)
        if values is None:
            around = self.scope_at(frame.parent, frame.index)
            values = self.values[frame.number] = Values(frame, around, variables or {})
            values.items = items or []
        return values

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, and nothing follows from that for others."""
        return self.run.ended and self.run.waits is None

    @property
    def uncommitted(self) -> bool:
        """Whether the newest receipts are not durable yet."""
        return self.batch is not None and not self.batch.durable
