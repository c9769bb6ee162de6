"""Turns outcomes into events: the step's result, its retry or its end, and the end of the run."""

import random
import resource
from collections.abc import Callable
from typing import Any, Final

from knhk.actions.registry import Cancelled, Failed, Outcome, RetryLater, StartWorkflow, Succeeded, WaitFor, WaitUntil
from knhk.domain import event as ev
from knhk.domain import payload, unwinding, waits
from knhk.domain.blob import KEY_BYTES
from knhk.domain.compile import check_schema
from knhk.domain.covenants import violated
from knhk.domain.errors import InvalidInput, KnhkError
from knhk.domain.event import Event, Failure, error_variable, is_final
from knhk.domain.expressions import Scope
from knhk.domain.frame import FIRST_INSIDE, Frame, InnerFrame, Role, is_halted
from knhk.domain.identifier import to_text
from knhk.domain.plan import WHOLE, RetryPolicy
from knhk.domain.receipt import merkle_root
from knhk.domain.run import Run, RunState, StepState, attempts_made, retry_at_ns
from knhk.domain.waits import Waiting
from knhk.engine.caching import Hit
from knhk.engine.committer import Committer
from knhk.engine.executor import Attempt
from knhk.engine.live import LiveRun
from knhk.ports.environment import Clock

_KIB: Final = 1024
_COMPLETED: Final = ev.Completed()


class Recorder:
    """Adds to the journal what happened to steps and runs. It decides nothing but whether an attempt is repeated."""

    def __init__(
        self,
        committer: Committer,
        clock: Clock,
        rng: random.Random,
        max_payload_bytes: int,
        require_blobs: Callable[[bytes], None],
    ) -> None:
        self._committer, self._clock, self._rng = committer, clock, rng
        self._max_payload_bytes, self._require_blobs = max_payload_bytes, require_blobs

    def before(self, live: LiveRun, attempt: Attempt) -> Failed | None:
        """What forbids the attempt: an invariant of covenant Q that does not hold."""
        return self._invariant(live, "before", attempt) if live.run.plan.invariants else None

    def outcome(self, live: LiveRun, attempt: Attempt, outcome: Outcome) -> None:
        """Record how an attempt ended."""
        match outcome:
            case Succeeded():
                self._succeeded(live, attempt, outcome.output)
            case Failed():
                failure = Failure(outcome.code, outcome.message, outcome.guard, problem=outcome.problem)
                self.fail(live, attempt, failure, again=False)
            case RetryLater():
                failure = Failure(outcome.code, outcome.message)
                self.fail(live, attempt, failure, again=True, after_ns=outcome.after_ns)
            case WaitUntil():
                self._wait(live, attempt, outcome)
            case WaitFor():
                self._wait_for(live, attempt, outcome)
            case StartWorkflow():
                self.fail(
                    live, attempt, Failure("KNHK-CHILD-START", "no workflow can be started from here"), again=False
                )
            case Cancelled():
                self.fail(live, attempt, Failure("KNHK-ACTION-CANCELLED", "the action gave up"), again=False)

    def reuse(self, live: LiveRun, attempt: Attempt, hit: Hit) -> None:
        """A step has what another gave, by the receipt of that."""
        output = payload.decode(hit.raw)
        if live.run.plan.invariants:
            broken = self._invariant(live, "after", attempt, output)
            if broken is not None:
                self.fail(live, attempt, Failure(broken.code, broken.message, broken.guard), again=False)
                return
        detail = ev.StepReused(hit.cached.workflow_id, hit.cached.seq, "cache")
        event = Event(
            self._clock.now_ns(),
            detail,
            step=attempt.path,
            attempt=attempt.number,
            output_digest=hit.cached.output_digest,
        )
        live.keep(attempt.position, attempt.step, output)
        self._committer.add(live, event, output=hit.raw)

    def timer_fired(self, live: LiveRun, position: int) -> None:
        """A waiting step's time has come: it completes with what it said it would give, or nobody came in time."""
        run = live.run
        self._committer.add(live, Event(self._clock.now_ns(), ev.TimerFired(), step=run.path_of(position)))
        waiting = None if run.waits is None else run.waits.positions.get(position)
        if waiting is None:
            raw = live.held_outputs.pop(position, b"")
            self._complete(live, position, payload.decode(raw) if raw else None, raw)
        else:
            self._fail_waiting(live, position, waits.timed_out(waiting))

    def deliver(self, live: LiveRun, position: int) -> None:
        """What a step waited for has come: it completes, or fails with it."""
        found = live.run.waits
        assert found is not None
        waiting, signal = found.positions[position], found.deliveries[position]
        if isinstance(signal, waits.ChildResult):
            output: Any = self._of_child(live, position, waiting, signal)
            if output is None:
                return
        elif signal is not None:
            output = waits.output_of(signal, payload.decode(live.signals.pop(signal.seq)))
        else:
            output = waits.judged(waiting, found.verdicts[position])
        if isinstance(output, Failure):
            self._fail_waiting(live, position, output)
            return
        try:
            raw = self.encode(output)
        except KnhkError as error:
            self._fail_waiting(live, position, Failure("KNHK-STEP-OUTPUT", error.message))
            return
        frame, index = live.run.at(position)
        schema = frame.step(index).output_schema
        if schema is not None and (problems := check_schema(schema, output, "output")):
            self._fail_waiting(live, position, Failure("KNHK-STEP-OUTPUT", "; ".join(map(str, problems))))
            return
        self._complete(live, position, output, raw, waiting.since_ns)

    def _of_child(self, live: LiveRun, position: int, waiting: Waiting, result: waits.ChildResult) -> Any:
        """What a child gave; how the step fails with it; None if there will be another attempt."""
        raw = live.signals.pop(result.seq)
        if result.state == RunState.COMPLETED:
            return payload.decode(raw)
        name, why = to_text(result.child), result.failure.message if result.failure is not None else ""
        if result.state == RunState.CANCELLED:
            return Failure("KNHK-CHILD-CANCELLED", f"{name} was {why or 'cancelled'}")
        frame, index = live.run.at(position)
        attempt = Attempt(live, position, frame.attempts[index], waiting.since_ns)
        self.fail(live, attempt, Failure("KNHK-CHILD-FAILED", f"{name} {result.state}: {why}"), again=True)
        return None

    def _complete(self, live: LiveRun, position: int, value: Any, raw: bytes, started_at_ns: int = 0) -> None:
        """A step that waited is done."""
        frame, index = live.run.at(position)
        step = frame.step(index)
        live.keep(position, step, value)
        done = Event(
            self._clock.now_ns(),
            ev.StepCompleted(started_at_ns=started_at_ns),
            step=frame.path(index),
            attempt=frame.attempts[index],
            output_digest=payload.digest(raw) if raw else b"",
        )
        if step.compensate is not None:
            live.done[live.run.seq] = (b"", raw)
        undone = _undone_by(frame, index)
        self._committer.add(live, done, output=raw or None)
        self._compensated(live, undone)

    def _fail_waiting(self, live: LiveRun, position: int, failure: Failure) -> None:
        frame, index = live.run.at(position)
        self.fail(live, Attempt(live, position, frame.attempts[index], 0), failure, again=False)

    def _wait_for(self, live: LiveRun, attempt: Attempt, outcome: WaitFor) -> None:
        given, digest = self._given(live, attempt)
        timeout_ns = attempt.step.timeout_ns
        until_ns = outcome.until_ns or (attempt.started_at_ns + timeout_ns if timeout_ns else 0)
        detail = ev.StepWaiting(
            outcome.what,
            until_ns,
            outcome.event,
            outcome.correlate,
            outcome.approvers,
            outcome.required,
            outcome.on_reject,
            outcome.message,
            outcome.child,
        )
        event = Event(self._clock.now_ns(), detail, step=attempt.path, attempt=attempt.number, input_digest=digest)
        self._committer.add(live, event, given=given)

    def _compensated(self, live: LiveRun, undone: str) -> None:
        """A step has completed: if it undoes another, that one is compensated."""
        if undone:
            self._committer.add(live, Event(self._clock.now_ns(), ev.StepCompensated(), step=undone))

    def skip(self, live: LiveRun, position: int, reason: str) -> None:
        """A step is not run: `reason` is `when` or `dependency`."""
        event = Event(self._clock.now_ns(), ev.StepSkipped(reason), step=live.run.path_of(position))
        self._committer.add(live, event)

    def lost(self, live: LiveRun, position: int, attempt: int) -> None:
        """An at_most_once step was begun before a crash: nobody knows how it ended, and it must not run again."""
        failure = Failure(
            "KNHK-STEP-OUTCOME-UNKNOWN",
            "the process ended while this at_most_once step was running; it is not known whether it took effect",
        )
        self.fail(live, Attempt(live, position, attempt, 0), failure, again=False)

    def finish(self, live: LiveRun, failure: Failure | None) -> None:
        """Nothing is left to do: the run completes with its outputs, or fails."""
        run, now = live.run, self._clock.now_ns()
        raw = None
        if failure is None and run.plan.outputs and (run.ending is None or run.ending.state == RunState.COMPLETED):
            evaluated = self._outputs(live)
            if isinstance(evaluated, Failure):
                failure = evaluated
            else:
                raw = evaluated
        if run.ending is not None:
            failure = run.ending.failure or run.finally_failed or failure
        if failure is not None or (run.ending is not None and run.ending.state != RunState.COMPLETED):
            self._committer.add(live, Event(now, self._end(run, failure)))
            return
        if run.plan.finally_ is not None and run.ending is None:
            self._committer.add(live, Event(now, unwinding.instead_of(run, _COMPLETED)))
            return
        root = merkle_root(run.output_digests) if run.plan.covenant == "Pi" else b""
        event = Event(now, ev.Completed(results_root=root), output_digest=payload.digest(raw) if raw else b"")
        self._committer.add(live, event, output=raw)

    @staticmethod
    def _end(run: Run, failure: Failure | None) -> ev.AnyDetail:
        """How a run ends that does not complete."""
        ending = run.ending
        if ending is not None and ending.state == RunState.CANCELLED:
            return ev.Cancelled(ending.reason)
        assert failure is not None
        if ending is not None and ending.state == RunState.TIMED_OUT:
            return ev.TimedOut(failure)
        return unwinding.instead_of(run, ev.Failed(failure))

    def _outputs(self, live: LiveRun) -> bytes | Failure:
        try:
            values: dict[str, Any] = {}
            for output in live.run.plan.outputs:
                values[output.name] = value = output.value.evaluate(live.scope)
                if output.schema is not None and (problems := check_schema(output.schema, value, output.name)):
                    return Failure("KNHK-RUN-OUTPUTS", f"outputs: {'; '.join(map(str, problems))}")
            live.results = values.get(WHOLE, values)
            return self.encode(live.results)
        except KnhkError as error:
            return Failure("KNHK-RUN-OUTPUTS", f"outputs: {error.message}")

    def _succeeded(self, live: LiveRun, attempt: Attempt, output: Any) -> None:
        step = attempt.step
        try:
            raw = self.encode(output)
        except KnhkError as error:
            return self.fail(live, attempt, Failure("KNHK-STEP-OUTPUT", error.message), again=False)
        of_action = None if step.catch is not None and _is_caught(attempt) else step.traits.output_schema
        for schema in (of_action, step.output_schema):
            if schema is not None and (problems := check_schema(schema, output, "output")):
                failure = Failure("KNHK-STEP-OUTPUT", "; ".join(map(str, problems)))
                return self.fail(live, attempt, failure, again=False)
        if live.run.plan.invariants:
            broken = self._invariant(live, "after", attempt, output)
            if broken is not None:
                failure = Failure(broken.code, broken.message, broken.guard)
                return self.fail(live, attempt, failure, again=False)
        # A step that gives what it was given (most `process` steps) needs no second encoding.
        given_raw = raw if output is attempt.params else None
        given, given_digest = self._given(live, attempt, given_raw)
        digest = given_digest if given_raw is not None else payload.digest(raw)
        now = self._clock.now_ns()
        if step.cache is None:
            detail = ev.StepCompleted(attempt.started_at_ns, attempt.queued_ns)
        else:
            until_ns = now + step.cache.ttl_ns
            detail = ev.StepCompleted(attempt.started_at_ns, attempt.queued_ns, attempt.cache_key, until_ns)
        event = Event(
            now,
            detail,
            step=attempt.path,
            attempt=attempt.number,
            input_digest=given_digest,
            output_digest=digest,
        )
        if attempt.position < FIRST_INSIDE and step.body is None and step.compensate is None and step.catch is None:
            # As nearly all steps are: nothing inside, around or undone.
            if step.keep_output:
                live.outputs[step.name] = output
            if not step.dependents and not live.run.plan.outputs:
                live.results[step.name] = output
            self._committer.add(live, event, given=given, output=raw)
            return None
        if step.compensate is not None:
            live.done[live.run.seq] = (given or b"", raw)
        live.keep(attempt.position, step, output)
        undone = _undone_by(attempt.frame, attempt.index)
        self.add(live, attempt, event, given, raw)
        self._compensated(live, undone)
        return None

    def _given(self, live: LiveRun, attempt: Attempt, raw: bytes | None = None) -> tuple[bytes | None, bytes]:
        """The attempt's input: its bytes if they are to be kept (covenant O), and their digest."""
        if raw is None:
            if attempt.params is None:
                return None, b""
            raw = payload.encode(attempt.params)
        kept = live.run.plan.covenant == "O" or attempt.step.compensate is not None
        return (raw if kept else None), payload.digest(raw)

    def fail(
        self, live: LiveRun, attempt: Attempt, failure: Failure, *, again: bool, after_ns: int | None = None
    ) -> None:
        """An attempt failed: there is another if `again` and the policy allow it, else the step's `catch`, or the end.

        `after_ns` is the shortest pause before another attempt, in nanoseconds.
        """
        given, digest = self._given(live, attempt)
        detail: ev.AnyDetail | None = self._retry(live, attempt, failure, after_ns) if again else None
        variables = None
        if detail is None and attempt.step.catch is not None:
            variables = self._catch(live, attempt, failure)
            if variables is not None:
                detail = ev.StepCaught(failure, attempt.started_at_ns, attempt.queued_ns)
        if self._must_unwind(attempt, failure, dealt_with=detail is not None):
            detail, variables = ev.StepUnwinding(failure), None
        if detail is None:
            detail = ev.StepFailed(failure, attempt.started_at_ns, attempt.queued_ns)
        now = self._clock.now_ns()
        event = Event(now, detail, step=attempt.path, attempt=attempt.number, input_digest=digest)
        self.add(live, attempt, event, given)
        if variables is not None:
            live.opened(attempt.frame, attempt.index, variables=variables)

    @staticmethod
    def _must_unwind(attempt: Attempt, failure: Failure, *, dealt_with: bool) -> bool:
        """Whether a failure is dealt with here, and something was done inside of the step that must be undone first."""
        frame = attempt.frame
        child = (frame.children or {}).get(attempt.index)
        if child is None or child.role is Role.UNWIND or is_final(failure):
            return False
        tolerated = isinstance(frame, InnerFrame) and frame.tolerance > 0
        if not (dealt_with or attempt.step.failure_is_handled or tolerated):
            return False
        return bool(child.take_done())

    def _catch(self, live: LiveRun, attempt: Attempt, failure: Failure) -> dict[str, Any] | None:
        """The variables of the step's `catch`, None if that is not for this failure."""
        catch = attempt.step.catch
        assert catch is not None
        child = (attempt.frame.children or {}).get(attempt.index)
        if is_final(failure) or (child is not None and child.role is Role.CATCH):
            return None
        variables = {catch.error_name: error_variable(failure, attempt.path, attempt.number)}
        if catch.when is not None:
            scope = live.scope_at(attempt.frame, attempt.index)
            try:
                if not catch.when.evaluate(_with(scope, variables)):
                    return None
            except InvalidInput:
                return None  # A condition that cannot be evaluated does not hold.
        return variables

    def add(
        self, live: LiveRun, attempt: Attempt, event: Event, given: bytes | None = None, output: bytes | None = None
    ) -> None:
        """Add an event with which a step leaves the frame inside of it, if there is one."""
        children = attempt.frame.children
        child = children.get(attempt.index) if children else None
        gone = [] if child is None else [one.number for one in child.inside()]
        self._committer.add(live, event, given=given, output=output)
        for number in gone:
            live.values.pop(number, None)

    def _retry(self, live: LiveRun, attempt: Attempt, failure: Failure, after_ns: int | None) -> ev.StepRetrying | None:
        """When there is another attempt, None if there is none."""
        step, run, now = attempt.step, live.run, self._clock.now_ns()
        made = attempts_made(run, attempt.position, attempt.number)
        if step.semantics == "at_most_once" or made >= step.retry.max_attempts or is_halted(attempt.frame):
            return None
        if is_final(failure) or not _may_retry(step.retry, failure, attempt, live):
            return None
        next_at = retry_at_ns(step.retry, made, now, self._rng.random())
        if after_ns is not None:
            next_at = max(next_at, now + after_ns)
        return ev.StepRetrying(failure, next_at, attempt.started_at_ns, attempt.queued_ns)

    def _wait(self, live: LiveRun, attempt: Attempt, outcome: WaitUntil) -> None:
        try:
            raw = self.encode(outcome.output)
        except KnhkError as error:
            return self.fail(live, attempt, Failure("KNHK-STEP-OUTPUT", error.message), again=False)
        given, digest = self._given(live, attempt)
        event = Event(
            self._clock.now_ns(),
            ev.TimerSet(fire_at_ns=outcome.fire_at_ns),
            step=attempt.path,
            attempt=attempt.number,
            input_digest=digest,
            output_digest=payload.digest(raw),
        )
        live.held_outputs[attempt.position] = raw
        self._committer.add(live, event, given=given, output=raw)
        return None

    def encode(self, value: Any) -> bytes:
        """A value's bytes. Raises InvalidInput if it is none or too large, BlobNotFound, Unsupported."""
        raw = payload.encode(value)
        if len(raw) > self._max_payload_bytes:
            raise InvalidInput(f"{len(raw)} bytes; at most {self._max_payload_bytes} can be kept")
        if KEY_BYTES in raw:
            self._require_blobs(raw)
        return raw

    def _invariant(self, live: LiveRun, when: str, attempt: Attempt, output: Any = None) -> Failed | None:
        run, steps = live.run, live.run.plan.steps
        completed = {step.name for step, state in zip(steps, run.steps, strict=True) if state is StepState.COMPLETED}
        outputs = live.outputs
        if when == "after":
            completed.add(attempt.step.name)
            outputs = {**outputs, attempt.step.name: output}
        scope = Scope(live.inputs, outputs, live.scope.run, {"resources": self._resources(live)})
        try:
            broken = violated(run.plan.invariants, scope, completed)
        except InvalidInput as error:
            return Failed("KNHK-COVENANT-Q", f"{when} {attempt.path}: {error.message}", "invariants")
        if broken is None:
            return None
        message = f"{when} step {attempt.path}: invariant {broken.name!r} does not hold: {broken.rule.source}"
        return Failed("KNHK-COVENANT-Q", message, broken.name)

    def _resources(self, live: LiveRun) -> dict[str, Any]:
        """What invariants may say about resources: times in milliseconds, memory in bytes."""
        run = live.run
        return {
            "elapsed_ms": (self._clock.now_ns() - run.started_at_ns) // 1_000_000,
            "attempts": sum(run.attempts),
            "steps_completed": run.completed,
            "steps_running": run.in_flight,
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        }


def _is_caught(attempt: Attempt) -> bool:
    """Whether what a step gives comes from its `catch`, not from its action."""
    child = (attempt.frame.children or {}).get(attempt.index)
    return child is not None and child.role is Role.CATCH


def _undone_by(frame: Frame, index: int) -> str:
    """The path of the step that this one undoes, empty if it is no compensation."""
    return frame.undoes[index].path if isinstance(frame, InnerFrame) and frame.undoes is not None else ""


def _may_retry(policy: RetryPolicy, failure: Failure, attempt: Attempt, live: LiveRun) -> bool:
    """Whether the policy's conditions let this failure be retried. One that cannot be evaluated does not."""
    if policy.when is None and policy.except_when is None:
        return True
    error = error_variable(failure, attempt.path, attempt.number)
    scope = _with(live.scope_at(attempt.frame, attempt.index), {"error": error})
    try:
        if policy.when is not None and not policy.when.evaluate(scope):
            return False
        return policy.except_when is None or not policy.except_when.evaluate(scope)
    except InvalidInput:
        return False


def _with(scope: Scope, variables: dict[str, Any]) -> Scope:
    return Scope(scope.inputs, scope.outputs, scope.run, {**scope.extra, **variables})
