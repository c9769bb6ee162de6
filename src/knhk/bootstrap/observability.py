"""What measures a node and tells others about it."""

from knhk.bootstrap.node import Node
from knhk.observability.interpreter import Interpreter
from knhk.ports.duty import Duty


def duties(node: Node) -> list[Duty]:
    """The duties of the room observability; what they measure is shown in the node's metrics."""
    interpreter = Interpreter(node.clock)
    node.metrics.show("interpreter", interpreter.families)
    return [interpreter]
