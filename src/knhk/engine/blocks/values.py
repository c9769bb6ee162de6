"""The values of open frames: what the expressions in each can see, and what its steps gave."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from knhk.domain.expressions import Scope
from knhk.domain.frame import InnerFrame, Role
from knhk.domain.plan import Block, Foreach, Loop


class Values:
    """Those of one frame.

    `outputs` are of its own steps and of those around it, by name. Of what is repeated, `items` are what it is repeated
    for and `results` what each time gave, by index. Of what is undone, `items` are what was given and given back.
    `memo` is what an action that chose the block keeps.
    """

    __slots__ = ("frame", "items", "memo", "outputs", "results", "scope")

    def __init__(self, frame: InnerFrame, around: Scope, variables: Mapping[str, Any]) -> None:
        self.frame = frame
        self.outputs: ChainMap[str, Any] = ChainMap({}, around.outputs)  # type: ignore[arg-type]  # only read
        extra = {**around.extra, **variables} if variables else around.extra
        self.scope = Scope(around.inputs, self.outputs, around.run, extra)
        self.items: list[Any] = []
        self.memo: Any = None
        self.results: dict[int, Any] = {}

    def scope_at(self, index: int) -> Scope:
        """What the expressions of one step can see."""
        if not self.frame.block.repeats:
            return self.scope
        return self.scope_with(self.variables_at(index))

    def scope_with(self, variables: Mapping[str, Any]) -> Scope:
        """What an expression that has further variables can see."""
        return Scope(self.scope.inputs, self.outputs, self.scope.run, {**self.scope.extra, **variables})

    def variables_at(self, index: int) -> dict[str, Any]:
        """The variables of one time of what is repeated."""
        if self.frame.role is Role.UNWIND:
            return dict(self.items[index])
        match self.frame.parent.step(self.frame.index).body:
            case Foreach(item_name=item_name, index_name=index_name):
                return {item_name: self.items[index], index_name: index}
            case Loop(last_name=last_name, index_name=index_name):
                return {last_name: self.results.get(index - 1), index_name: index}
        raise AssertionError("nothing else is repeated")

    def put(self, index: int, output: Any) -> None:
        """A step has given something."""
        block = self.frame.block
        if block.repeats:
            if self.frame.role is not Role.UNWIND:
                self.results[index] = output
        elif (step := block.steps[index]).keep_output:
            self.outputs[step.name] = output


def given_by(block: Block, values: Values) -> Any:
    """What a block gives: its `output`, or what its last steps gave by name. Raises InvalidExpression."""
    if block.output is not None:
        return block.output.evaluate(values.scope)
    own = values.outputs.maps[0]
    names = [block.steps[index].name for index in block.last]
    return {name: own[name] for name in names if name in own}
