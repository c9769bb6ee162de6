"""`while` and `until`: the step again and again. It gives what the last time gave, null if there was none."""

from knhk.domain.event import Failure
from knhk.domain.expressions import Scope
from knhk.domain.frame import InnerFrame
from knhk.domain.plan import Loop
from knhk.engine.blocks.answers import Answer, Give, Open
from knhk.engine.blocks.values import Values


def begin(body: Loop, scope: Scope) -> Answer:
    """The first time. Raises InvalidExpression."""
    if not body.until:
        first = {**scope.extra, body.last_name: None, body.index_name: 0}
        if not body.condition.evaluate(Scope(scope.inputs, scope.outputs, scope.run, first)):
            return Give(None)
    return Open(count=1)


def end(body: Loop, frame: InnerFrame, values: Values) -> Answer:
    """A time is over. Raises InvalidExpression."""
    done = len(frame.steps)
    last = values.results.get(done - 1)
    values.results = {done - 1: last}  # Nobody asks for what earlier times gave.
    index = done - 1 if body.until else done
    holds = body.condition.evaluate(values.scope_with({body.last_name: last, body.index_name: index}))
    if holds is body.until:
        return Give(last)
    if done >= body.bound:
        still = "does not hold yet" if body.until else "still holds"
        return Failure("KNHK-STEP-LOOP", f"after {done} times {body.condition.source!r} {still}")
    return Open(count=done + 1)
