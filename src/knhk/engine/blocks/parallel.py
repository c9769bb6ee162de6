"""`parallel`: branches side by side. It gives what each gave by its name, if they compete only that of the first."""

from knhk.domain.expressions import Scope
from knhk.domain.frame import InnerFrame
from knhk.domain.plan import Parallel
from knhk.engine.blocks.answers import Answer, Give, Open
from knhk.engine.blocks.values import Values, given_by


def begin(_body: Parallel, _scope: Scope) -> Answer:
    """All branches begin."""
    return Open()


def end(_body: Parallel, frame: InnerFrame, values: Values) -> Answer:
    """All branches have ended, or one has won."""
    if frame.winner >= 0:
        name = frame.block.steps[frame.winner].name
        return Give({name: values.outputs.maps[0][name]})
    return Give(given_by(frame.block, values))
