"""A run in memory: its fold, its end of the chain, and what this process is doing for it. None of it is the truth."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from knhk.domain.expressions import Scope
from knhk.domain.frame import FIRST_INSIDE, Frame, frame_number, index_in_frame
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


class LiveRun:
    """One run that is being worked on.

    `outputs` are the values that further steps may read, `results` what the run gives: its declared outputs, or else
    those of the steps that nothing depends on; `values` are the same of the frames inside. `previous_hash` is the end
    of the chain, committed or not.
    `signals` is the data of signals that no step has taken, by their receipt's seq.
    `batch` is the group commit that holds its newest receipts.
    `marked_live` and `timer_row_ns` say what the store holds about it, so that a commit writes only the differences.
    """

    __slots__ = (
        "attempts",
        "batch",
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
            self.scope_cache = Scope(self.inputs, self.outputs, self._facts())
        return self.scope_cache

    def scope_at(self, frame: Frame, index: int) -> Scope:
        """What the expressions of one step can see."""
        return self.values[frame.number].scope_at(index) if frame.number else self.scope

    def keep(self, position: int, step: Step, output: Any) -> None:
        """A step has given something."""
        if position >= FIRST_INSIDE:
            self.values[frame_number(position)].put(index_in_frame(position), output)
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
        child = frame.children[index]
        values = self.values.get(child.number)
        if values is None:
            values = self.values[child.number] = Values(child, self.scope_at(frame, index), variables or {})
            values.items = items or []
        return values

    def _facts(self) -> dict[str, Any]:
        run = self.run
        return {
            "id": to_text(run.workflow_id),
            "name": run.plan.name,
            "department": run.plan.department,
            "labels": dict(run.plan.labels),
            "covenant": run.plan.covenant,
            "submitted_at": rfc3339(run.submitted_at_ns),
        }

    @property
    def uncommitted(self) -> bool:
        """Whether the newest receipts are not durable yet."""
        return self.batch is not None and not self.batch.durable
