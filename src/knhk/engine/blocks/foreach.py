"""`foreach`: the step once for each item. It gives the list of what each gave, in order, null for those that failed."""

from typing import Any, Final

from knhk.domain.event import Failure
from knhk.domain.expressions import Scope
from knhk.domain.frame import InnerFrame
from knhk.domain.plan import Foreach
from knhk.engine.blocks.answers import Answer, Give, Open
from knhk.engine.blocks.values import Values

MAX_ITEMS: Final = 100_000
"""How many items there can be; each takes a receipt and some memory while the step runs."""
_CODE: Final = "KNHK-STEP-FOREACH"


def begin(body: Foreach, scope: Scope) -> Answer:
    """The items are found and kept. Raises InvalidExpression."""
    items: Any = body.items.evaluate(scope)
    if isinstance(items, dict):
        items = [{"key": key, "value": value} for key, value in items.items()]
    if not isinstance(items, list):
        return Failure(_CODE, f"`in` must give a list or a map, not {type(items).__name__}")
    if len(items) > MAX_ITEMS:
        return Failure(_CODE, f"{len(items)} items; at most {MAX_ITEMS} are allowed")
    return Open(count=len(items), items=items)


def end(_body: Foreach, frame: InnerFrame, values: Values) -> Answer:
    """Every item is done."""
    return Give([values.results.get(index) for index in range(len(frame.steps))])
