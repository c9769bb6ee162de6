"""`switch`: the first case whose condition holds. It gives what that gives, null if there is none."""

from knhk.domain.expressions import Scope
from knhk.domain.frame import InnerFrame
from knhk.domain.plan import Switch
from knhk.engine.blocks.answers import Answer, Give, Open
from knhk.engine.blocks.values import Values, given_by


def begin(body: Switch, scope: Scope) -> Answer:
    """A case is chosen. Raises InvalidExpression."""
    for choice, case in enumerate(body.cases):
        if case.condition is None or case.condition.evaluate(scope):
            return Open(choice=choice)
    return Give(None)


def end(_body: Switch, frame: InnerFrame, values: Values) -> Answer:
    """The steps of the case have ended."""
    return Give(given_by(frame.block, values))
