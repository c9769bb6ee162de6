"""`steps`: a block that runs as one step, and gives what the block gives."""

from knhk.domain.expressions import Scope
from knhk.domain.frame import InnerFrame
from knhk.domain.plan import Group
from knhk.engine.blocks.answers import Answer, Give, Open
from knhk.engine.blocks.values import Values, given_by


def begin(_body: Group, _scope: Scope) -> Answer:
    """It begins."""
    return Open()


def end(_body: Group, frame: InnerFrame, values: Values) -> Answer:
    """All of its steps have ended."""
    return Give(given_by(frame.block, values))
