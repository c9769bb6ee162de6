"""From a Serverless Workflow document to the plan that the engine runs.

Every task is a step of the action `serverless`, which knows the task by its definition; a task with tasks inside has
them as blocks, and the action says which comes next. Data go from step to step as what each block is given.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from knhk.domain.compile_values import ONCE
from knhk.domain.complaints import Complaints
from knhk.domain.dsl.reading import parse
from knhk.domain.dsl.task import (
    CallAction,
    CallHttp,
    CallOpenApi,
    Do,
    Document,
    For,
    Fork,
    Listen,
    RunProcess,
    RunWorkflow,
    Task,
    Try,
)
from knhk.domain.expressions import Scope, Template
from knhk.domain.plan import (
    GIVEN,
    NEVER,
    WHOLE,
    ActionTraits,
    Block,
    Directed,
    Output,
    Plan,
    Step,
    block_of,
)

NAME: Final = "serverless"
"""The action that performs tasks."""
ROOT: Final = "do"
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9_.-]")
_EFFECTS: Final = (CallHttp, CallOpenApi)
_PURE: Final = ActionTraits(NAME, pure=True, guarantee="exactly-once", reads_dependencies=False)
_EFFECT: Final = ActionTraits(NAME, pure=False, reads_dependencies=False)
_NOTHING: Final = Template(None, None, None)


class Definition(msgspec.Struct, frozen=True):
    """A task and the document that it is of."""

    document: Document
    task: Task


class GivenParams(Template):
    """The params of a step are part of what its block was given: a list with those of each of the block's steps."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        super().__init__(None, None, None)
        self.dynamic = True
        self._index = index

    def evaluate(self, scope: Scope) -> Any:
        return scope.extra[GIVEN]["params"][self._index]


class FinalData(Template):
    """What a workflow gives: the data that its outermost task leaves."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.dynamic = True

    def evaluate(self, scope: Scope) -> Any:
        return scope.outputs[ROOT]["data"]


def compile_document(
    value: Mapping[str, Any],
    digest: bytes,
    actions: Mapping[str, ActionTraits],
    complaints: Complaints,
    *,
    max_steps: int,
    default_timeout_ns: int,
) -> Plan:
    """The plan of a document's data. Complains of what is wrong; then the plan is not to be used."""
    document = parse(value, actions, complaints)
    for key, absent in (("schedule", document.schedule), ("use", document.secrets)):
        if absent:
            what = "secrets" if key == "use" else "schedules"
            complaints.add(f"{what} are not supported; docs/serverless-workflow.md says what is", (key,))
    compiler = _Compiler(document, actions, complaints)
    root = compiler.step(0, root_task(document))
    if compiler.count > max_steps:
        complaints.add(f"{compiler.count} tasks; at most {max_steps} are allowed", ("do",))
    return Plan(
        digest=digest,
        name=document.name,
        department=document.tags.get("department", ""),
        cost_center=document.tags.get("cost_center", ""),
        labels=document.tags,
        covenant="Sigma",
        timeout_ns=document.timeout_ns or default_timeout_ns,
        root=block_of((root,)),
        inputs_schema=document.input.schema,
        outputs=(Output(WHOLE, FinalData()),),
        invariants=(),
    )


def inner_tasks(task: Task) -> tuple[Task, ...]:
    """The tasks inside a task, in the order in which its blocks are numbered."""
    match task.body:
        case Do(tasks=tasks) | For(tasks=tasks) | Fork(branches=tasks):
            return tasks
        case Try(tasks=tasks, handler=handler):
            return (*tasks, *handler)
    return ()


def root_task(document: Document) -> Task:
    """The whole workflow as one task."""
    return Task(ROOT, "", Do(document.tasks), input=document.input, output=document.output)


class _Compiler:
    """Makes the steps of one document; `count` is how many there are."""

    def __init__(self, document: Document, actions: Mapping[str, ActionTraits], complaints: Complaints) -> None:
        self._document, self._actions, self._complaints = document, actions, complaints
        self.count = 0

    def step(self, index: int, task: Task) -> Step:
        """The step of a task, at its place in its block."""
        blocks = self._blocks(task)
        body = Directed(blocks, _competes(task)) if blocks else None
        return self._step(
            index,
            _UNUSUAL.sub("-", task.name),
            NAME,
            _EFFECT if isinstance(task.body, _EFFECTS) else _PURE,
            timeout_ns=task.timeout_ns,
            body=body,
            definition=Definition(self._document, task),
        )

    def _blocks(self, task: Task) -> tuple[Block, ...]:
        match task.body:
            case Fork(branches=branches):
                return (block_of(self._apart(branches)),)
            case CallAction(action=action):
                return (self._call(action, task=task),)
            case Listen(filters=filters):
                return (self._call(*["wait_for"] * len(filters), task=task),)
            case RunProcess():
                return (self._call("shell", task=task),)
            case RunWorkflow():
                return (self._call("workflow", task=task),)
        return tuple(block_of((self.step(0, inner),)) for inner in inner_tasks(task))

    def _apart(self, tasks: Sequence[Task]) -> tuple[Step, ...]:
        """Steps side by side, whose names must differ."""
        steps: list[Step] = []
        for index, task in enumerate(tasks):
            step = self.step(index, task)
            if any(step.name == other.name for other in steps):
                step = msgspec.structs.replace(step, name=f"{step.name}-{index}")
            steps.append(step)
        return tuple(steps)

    def _call(self, *actions: str, task: Task) -> Block:
        """A block of other actions, side by side."""
        return block_of(
            tuple(
                self._step(index, f"{action}-{index}" if index else action, action, self._traits(action, task), index)
                for index, action in enumerate(actions)
            )
        )

    def _traits(self, action: str, task: Task) -> ActionTraits:
        traits = self._actions.get(action)
        if traits is None or traits.disabled:
            why = f": {traits.disabled}" if traits is not None else ""
            self._complaints.add(f"the action {action!r} is not available here{why}", place(task))
            return _EFFECT
        if traits.literal and isinstance(task.body, CallAction) and "${" in str(task.body.params):
            message = f"the params of {action!r} must be written out: an expression could turn data into code"
            self._complaints.add(message, (*place(task), "with"))
        return traits

    def _step(
        self,
        index: int,
        name: str,
        action: str,
        traits: ActionTraits,
        given: int | None = None,
        *,
        timeout_ns: int = NEVER,
        body: Directed | None = None,
        definition: Definition | None = None,
    ) -> Step:
        self.count += 1
        return Step(
            index=index,
            name=name,
            action=action,
            traits=traits,
            params=_NOTHING if given is None else GivenParams(given),
            depends_on=(),
            dependents=(),
            timeout_ns=timeout_ns,
            retry=ONCE,
            semantics="at_least_once",
            keep_output=True,
            body=body,
            definition=definition,
        )


def _competes(task: Task) -> bool:
    match task.body:
        case Fork(compete=compete):
            return compete
        case Listen(strategy=strategy):
            return strategy == "any"
    return False


def place(task: Task) -> tuple[str | int, ...]:
    """The path of a task in its document, from its reference."""
    parts = task.reference.strip("/").split("/")
    return tuple(int(part) if part.isdigit() else part for part in parts)
