"""Decides what runs next: takes runs through apply and decide, and hands attempts to the executor.

One scheduler per partition. All of its state can be rebuilt from the journal: `active` and `pending` are the runs whose
receipts say so. A run that only waits leaves memory and is loaded again when its timer comes (see sleepers.py).
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final, assert_never

from knhk.actions.registry import Cancelled, Enter, Failed, Outcome, RetryLater, StartWorkflow
from knhk.domain import event as ev
from knhk.domain.covenants import CHATMAN_MAX_TICKS
from knhk.domain.errors import InvalidInput
from knhk.domain.event import Event, Failure
from knhk.domain.frame import FIRST_INSIDE, InnerFrame, frame_number, is_halted
from knhk.domain.limits import NO_LIMITS
from knhk.domain.plan import Directed
from knhk.domain.run import (
    Deliver,
    EndFrame,
    Expire,
    ExpireStep,
    FailLost,
    Finish,
    FireTimer,
    Run,
    RunState,
    RunStep,
    SkipStep,
    decide,
)
from knhk.domain.unwinding import instead_of
from knhk.engine.caching import Hit
from knhk.engine.committer import Batch, Committer, Piece
from knhk.engine.composites import Composites
from knhk.engine.deadlines import RUN, WAKE, Deadlines, Key
from knhk.engine.executor import Attempt, Executor
from knhk.engine.holders import Holders, Obstacle
from knhk.engine.live import LiveRun
from knhk.engine.queue import Active, Queue, refuses
from knhk.engine.recorder import Recorder
from knhk.ports.environment import Clock

_OPENING: Final[Key] = (0, RUN)
"""The deadline at which the next run that waits for its rate limit may start; no run has the id 0."""
_STEPS_A_TURN: Final = 128
"""So many attempts may begin before other runs get their turn."""

PARK_AFTER_NS: Final = 5_000_000_000
"""A run that will do nothing for longer than this leaves memory."""


class Scheduler:
    """Takes the runs of one partition forward.

    `max_active` bounds the runs that have a slot; `tick_ns` is the unit of covenant Chatman's latency. `ended` is
    called with each run whose end is durable, `parked` with each that left memory because it only waits.
    """

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        *,
        max_active: int,
        tick_ns: int,
        ended: Callable[[LiveRun], None],
        parked: Callable[[LiveRun], None],
    ) -> None:
        self.active = Active()
        self.holders = Holders()
        self.pending = Queue(self.holders, self.active)
        self.deadlines = Deadlines(clock, self._due)
        self.committer: Committer
        self.executor: Executor
        self.began_to_wait: Callable[[int, str, str, int], None] = lambda _id, _event, _correlate, _height: None
        self.start_child: Callable[[Attempt, StartWorkflow], None]
        self.left_children: Callable[[LiveRun], None] = lambda _live: None
        self.look_up: Callable[[Attempt], bool | Failed]
        self.woken: Callable[[int], None] = lambda _workflow_id: None
        self._clock, self._rng = clock, rng
        self._max_active, self._tick_ns = max_active, tick_ns
        self._ended, self._parked = ended, parked
        self._turns: deque[LiveRun] = deque()
        self._turn_planned = False
        self._closed = False
        self._recorder: Recorder
        self._composites: Composites

    def connect(
        self, committer: Committer, executor: Executor, max_payload_bytes: int, require_blobs: Callable[[bytes], None]
    ) -> None:
        """Give the scheduler its neighbours (they call back into it, so they are made after it)."""
        self.committer, self.executor = committer, executor
        self._recorder = Recorder(committer, self._clock, self._rng, max_payload_bytes, require_blobs)
        self._composites = Composites(committer, self._clock, self._recorder, self._cancel_inside, self._perform)

    @property
    def has_slot(self) -> bool:
        """Whether another run may start now."""
        return len(self.active) < self._max_active

    def find(self, workflow_id: int) -> LiveRun | None:
        """The run if it is in memory."""
        return self.active.get(workflow_id) or self.pending.get(workflow_id)

    def admit(self, live: LiveRun) -> None:
        """Take in a run that has been submitted: it starts now, or waits until it is its turn."""
        if self.has_slot and not self.pending and live.run.plan.limits is NO_LIMITS:
            self.start(live)
            return
        obstacle = self.holders.obstacle(live, self._clock.now_ns())
        if obstacle is not None and refuses(live, obstacle):
            self._turn_away(live, obstacle)
            return
        self.pending.add(live)
        if self.has_slot:
            self.fill_slots()

    def start(self, live: LiveRun) -> None:
        """Give a run a slot."""
        run = live.run
        self.active[run.workflow_id] = live
        now = self._clock.now_ns()
        until, limits = 0, run.plan.limits
        if limits is not NO_LIMITS:
            until = now + limits.rate_limit.per_ns if limits.rate_limit is not None else 0
            self.holders.hold(live)
            self.holders.count_start(live, until)
        self.committer.add(live, Event(now, ev.Started(deadline_ns=self.deadline_of(run, now), counts_until_ns=until)))
        self.advance(live)

    def take_in(self, live: LiveRun) -> None:
        """Give a run that was loaded, or that an operator changed, the one place that its state calls for."""
        workflow_id = live.run.workflow_id
        if live.run.state is RunState.PENDING:
            self.active.remove(live)
            self.pending.add(live)
            return
        self.pending.remove(workflow_id)
        self.active[workflow_id] = live
        if live.run.started_at_ns and not live.run.ended:
            self.holders.hold(live)
        self.advance(live)

    def deadline_of(self, run: Run, from_ns: int) -> int:
        """When a run that starts now times out: its own timeout, and for Chatman its latency bound since submission."""
        timeout = run.plan.timeout_ns
        deadline = from_ns + timeout if timeout else 0
        if run.plan.covenant == "Chatman":
            bound = run.submitted_at_ns + CHATMAN_MAX_TICKS * self._tick_ns
            return min(deadline, bound) if deadline else bound
        return deadline

    def advance(self, live: LiveRun) -> None:
        """Do all that can be done for a run now, up to a turn's worth."""
        run = live.run
        if self._closed:
            return
        left = _STEPS_A_TURN
        while left > 0:
            commands = decide(run, self._clock.now_ns(), left)
            if not commands:
                break
            left -= len(commands)
            for command in commands:
                match command:
                    case RunStep() if run.first_failed >= 0 or (
                        command.position >= FIRST_INSIDE and not run.may_begin(command.position)
                    ):
                        pass  # A step before it in this very turn has failed: no other one begins.
                    case RunStep():
                        self._begin(live, command)
                    case SkipStep():
                        self._recorder.skip(live, command.position, "dependency")
                    case FireTimer():
                        self._recorder.timer_fired(live, command.position)
                    case Deliver():
                        self._recorder.deliver(live, command.position)
                    case ExpireStep():
                        self._composites.expire(live, command.position)
                    case EndFrame():
                        self._composites.end(live, command.number)
                    case FailLost():
                        self._recorder.lost(live, command.position, command.attempt)
                    case Finish():
                        self._recorder.finish(live, command.failure)
                    case Expire():
                        self._expire(live)
                    case _:
                        assert_never(command)
                if run.ended:
                    return
        if left <= 0 and not live.queued:
            self._queue_turn(live)
        self._watch(live)

    def cancel_attempts(self, live: LiveRun) -> None:
        """End all attempts of a run; their results are not recorded."""
        for attempt in tuple(live.attempts.values()):
            self.executor.end(attempt, Cancelled())
            if attempt.deadline_ns:
                self.deadlines.clear((live.run.workflow_id, attempt.position))
            attempt.frame.count_attempt(-1)
        live.attempts.clear()

    def _cancel_inside(self, live: LiveRun, frame: InnerFrame) -> None:
        numbers = {one.number for one in frame.inside()}
        for position in [one for one in live.attempts if frame_number(one) in numbers]:
            attempt = live.attempts.pop(position)
            attempt.frame.count_attempt(-1)
            self.executor.end(attempt, Cancelled())
            if attempt.deadline_ns:
                self.deadlines.clear((live.run.workflow_id, position))
        for position in [one for one in live.held_outputs if frame_number(one) in numbers]:
            del live.held_outputs[position]

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """The executor's report: record it and go on with the run."""
        live = attempt.live
        position = attempt.position
        if live.attempts.get(position) is not attempt or self._closed:
            return  # The run ended, or the attempt was given up, before this came.
        del live.attempts[position]
        attempt.frame.count_attempt(-1)
        if attempt.deadline_ns:
            self.deadlines.clear((live.run.workflow_id, position))
        self._record(attempt, outcome)
        self.advance(live)

    def leased(self, attempt: Attempt, worker: str, token: int) -> Batch:
        """Journal that a worker takes an attempt; the commit on which the answer to the worker must wait."""
        live, step, now = attempt.live, attempt.step, self._clock.now_ns()
        if step.timeout_ns and not attempt.deadline_ns:
            attempt.deadline_ns = now + step.timeout_ns
            self.deadlines.set((live.run.workflow_id, attempt.position), attempt.deadline_ns)
        started = ev.StepStarted(attempt.deadline_ns, worker, token)
        self.committer.add(live, Event(now, started, step=attempt.path, attempt=attempt.number))
        assert live.batch is not None
        return live.batch

    def placement(self, live: LiveRun) -> tuple[bool, int]:
        """Whether a restart must load the run at once, and its durable wake time (Unix time in ns, 0 for none)."""
        run = live.run
        if run.ended:
            return run.unsettled, 0
        if run.state is RunState.PENDING or not run.idle or live.queued:
            return True, 0
        wake = run.wake_at_ns()
        if wake and wake - self._clock.now_ns() < PARK_AFTER_NS:
            return True, 0
        return False, wake

    def committed(self, batch: Batch) -> None:
        """After a commit: let go of the runs that ended or only wait, and fill their slots."""
        for piece in batch.pieces:
            live = piece.live
            if live.run.waits is not None:
                self._tell_of_waits(piece, batch.height)
            if live.batch is not batch:
                continue  # It has newer receipts in a later batch, which will come here too.
            live.batch = None  # Run and batch name each other: untied, both go without the garbage collector's help.
            run = live.run
            if run.ended:
                self._release(live)
                self._ended(live)
            elif run.waits is not None and run.waits.orphans:
                self.left_children(live)
            elif run.workflow_id in self.active and not live.marked_live and self._is_parked(live):
                self._release(live)
                self._parked(live)
        self.fill_slots()

    def _tell_of_waits(self, piece: Piece, height: int) -> None:
        """Steps have durably begun to wait: an event that came before may be kept for them."""
        for event in piece.events:
            detail = event.detail
            if isinstance(detail, ev.StepWaiting) and detail.what == "event" and detail.correlate:
                self.began_to_wait(piece.live.run.workflow_id, detail.event, detail.correlate, height)

    def let_go(self, live: LiveRun) -> None:
        """Let a run that only waits leave memory, now that nobody waits for its end any more."""
        known = self.active.get(live.run.workflow_id)
        if known is live and not live.uncommitted and not live.marked_live and self._is_parked(live):
            self._release(live)
            self._parked(live)
            self.fill_slots()

    def is_due(self, run: Run) -> bool:
        """Whether a parked run's time has come."""
        return 0 < run.wake_at_ns() <= self._clock.now_ns()

    def fill_slots(self) -> None:
        """Start runs that wait while there are slots, and see to it that those with a rate limit start in time."""
        while self.pending and self.has_slot and not self._closed:
            taken = self.pending.take(self._clock.now_ns())
            if taken is None:
                opens = self.pending.opens_at_ns()
                if opens:
                    self.deadlines.set(_OPENING, opens)
                return
            live, obstacle = taken
            if obstacle is not None:
                self._turn_away(live, obstacle)
            else:
                self.start(live)

    def _turn_away(self, live: LiveRun, obstacle: Obstacle) -> None:
        """End a run that would not wait for those that hold its concurrency key."""
        now, limit = self._clock.now_ns(), live.run.plan.limits.concurrency
        assert limit is not None
        message = f"{limit.limit} run(s) with the concurrency key {obstacle.key!r} were under way"
        if limit.on_limit == "cancel":
            self.committer.add(live, Event(now, ev.Cancelled(message)))
        else:
            failure = Failure("KNHK-CONCURRENCY-LIMIT", message, guard="concurrency")
            self.committer.add(live, Event(now, ev.Failed(failure)))

    def close(self) -> None:
        """Begin nothing any more."""
        self._closed = True
        self.deadlines.close()

    def _is_parked(self, live: LiveRun) -> bool:
        return live.run.idle and not live.queued and not live.waiters

    def _release(self, live: LiveRun) -> None:
        workflow_id = live.run.workflow_id
        self.active.remove(live)
        self.pending.remove(workflow_id)
        if live.run.ended and live.run.plan.limits.concurrency is not None:
            self.pending.let_go(self.holders.let_go(live))
        self.deadlines.clear((workflow_id, RUN))

    def _watch(self, live: LiveRun) -> None:
        """See to it that the run is looked at when its next timer or deadline comes."""
        run = live.run
        wake = run.wake_at_ns()
        if wake and not run.ended:
            self.deadlines.set((run.workflow_id, RUN), wake)

    def _begin(self, live: LiveRun, command: RunStep) -> None:
        now = self._clock.now_ns()
        attempt = Attempt(live, command.position, command.attempt, now)
        step = attempt.step
        if step.when is not None and command.attempt == 1 and not self._holds(live, attempt):
            return
        refused = self._recorder.before(live, attempt)
        if refused is not None:
            self._recorder.outcome(live, attempt, refused)
            return
        if step.cache is not None:
            looking = self.look_up(attempt)
            if isinstance(looking, Failed):
                self._recorder.outcome(live, attempt, looking)
                return
            if looking:
                self._count(attempt)
                return
        self._carry_out(live, attempt, command.deadline_ns)

    def _carry_out(self, live: LiveRun, attempt: Attempt, journaled_ns: int) -> None:
        """Perform an attempt; `journaled_ns` is the deadline that it was given before a crash, 0 if there is none."""
        step, now = attempt.step, attempt.started_at_ns
        directed = isinstance(step.body, Directed)
        if step.body is not None and not directed:
            self._composites.begin(live, attempt)
            return
        remote = step.traits.queue
        if step.timeout_ns and not directed:
            # The time of a remote attempt begins when a worker takes it (see `leased`).
            attempt.deadline_ns = journaled_ns or (0 if remote else now + step.timeout_ns)
        at_most_once = step.semantics == "at_most_once"
        if not remote and (at_most_once or (attempt.deadline_ns and not step.traits.pure and not journaled_ns)):
            started = ev.StepStarted(deadline_ns=attempt.deadline_ns)
            self.committer.add(live, Event(now, started, step=attempt.path, attempt=attempt.number))
        if step.traits.pure and not at_most_once:
            self._perform(attempt)
        elif live.uncommitted and live.batch is not None:
            # An effect must not happen before what it depends on is durable.
            self._count(attempt)
            live.batch.after.append(lambda: self._perform_counted(attempt))
        else:
            self._perform(attempt)

    def looked_up(self, attempt: Attempt, hit: Hit | None) -> None:
        """A step has what another gave, or runs, as there is nothing."""
        live = attempt.live
        if live.attempts.get(attempt.position) is not attempt or self._closed:
            return  # The run ended, or something around the step did.
        del live.attempts[attempt.position]
        attempt.frame.count_attempt(-1)
        if hit is not None:
            self._recorder.reuse(live, attempt, hit)
        elif live.run.state is RunState.PAUSED:
            live.run.give_back(attempt.frame, attempt.index)
        elif live.run.first_failed < 0 and not is_halted(attempt.frame):
            attempt.started_at_ns = self._clock.now_ns()
            self._carry_out(live, attempt, live.run.started_deadlines.get(attempt.position, 0))
        self.advance(live)

    def _holds(self, live: LiveRun, attempt: Attempt) -> bool:
        """Whether a step's condition lets it run. If not, the step has been skipped, or has failed."""
        assert attempt.step.when is not None
        try:
            if attempt.step.when.evaluate(live.scope_at(attempt.frame, attempt.index)):
                return True
        except InvalidInput as error:
            self._recorder.outcome(live, attempt, Failed("KNHK-STEP-WHEN", error.message))
            return False
        self._recorder.skip(live, attempt.position, "when")
        return False

    def _count(self, attempt: Attempt) -> None:
        attempt.live.attempts[attempt.position] = attempt
        attempt.frame.count_attempt(1)

    def _perform_counted(self, attempt: Attempt) -> None:
        live = attempt.live
        if attempt.ended or live.attempts.get(attempt.position) is not attempt or self._closed:
            return
        attempt.started_at_ns = self._clock.now_ns()
        outcome = self._start(attempt)
        if outcome is not None:
            self.attempt_ended(attempt, outcome)

    def _perform(self, attempt: Attempt) -> None:
        outcome = self._start(attempt)
        if outcome is not None:
            self._record(attempt, outcome)
        else:
            self._count(attempt)

    def _record(self, attempt: Attempt, outcome: Outcome) -> None:
        if isinstance(outcome, Enter):
            self._composites.enter(attempt.live, attempt, outcome)
        else:
            self._recorder.outcome(attempt.live, attempt, outcome)

    def _start(self, attempt: Attempt) -> Outcome | None:
        outcome = self.executor.begin(attempt)
        if isinstance(outcome, StartWorkflow):
            self.start_child(attempt, outcome)
            outcome = None
        if outcome is None and attempt.deadline_ns:
            self.deadlines.set((attempt.live.run.workflow_id, attempt.position), attempt.deadline_ns)
        return outcome

    def _expire(self, live: LiveRun) -> None:
        self.cancel_attempts(live)
        run = live.run
        now = self._clock.now_ns()
        bound = run.submitted_at_ns + CHATMAN_MAX_TICKS * self._tick_ns
        if run.plan.covenant == "Chatman" and run.deadline_ns == bound:
            message = f"took longer than {CHATMAN_MAX_TICKS} ticks of {self._tick_ns / 1e6:g} ms"
            failure = Failure("KNHK-COVENANT-CHATMAN", message, guard="chatman.latency")
            self.committer.add(live, Event(now, instead_of(run, ev.Failed(failure))))
        else:
            failure = Failure("KNHK-RUN-TIMEOUT", f"not finished after {run.plan.timeout_ns / 1e9:g} s")
            self.committer.add(live, Event(now, instead_of(run, ev.TimedOut(failure))))

    def _due(self, key: Key) -> None:
        workflow_id, position = key
        if key == _OPENING:
            self.fill_slots()
            return
        if position == WAKE:
            self.woken(workflow_id)
            return
        live = self.active.get(workflow_id)
        if live is None:
            return
        if position >= 0:
            attempt = live.attempts.get(position)
            if attempt is not None:
                seconds = attempt.step.timeout_ns / 1e9
                self.executor.end(attempt, RetryLater("KNHK-STEP-TIMEOUT", f"no result after {seconds:g} s"))
        else:
            self.advance(live)

    def _queue_turn(self, live: LiveRun) -> None:
        live.queued = True
        self._turns.append(live)
        if not self._turn_planned:
            self._turn_planned = True
            asyncio.get_running_loop().call_soon(self._take_turns)

    def _take_turns(self) -> None:
        self._turn_planned = False
        for _ in range(len(self._turns)):
            live = self._turns.popleft()
            live.queued = False
            self.advance(live)
