"""How data flow through a task: filters before and after it, and the variables that its expressions can read.

A task is given a flow (data, context, variables) and gives a result {data, context, then}. In between, in the order of
the standard: the raw input is validated and filtered (`input`), `if` may leave the task out, it does its work, its raw
output is filtered and validated (`output`), and the context may change (`export`).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from knhk.actions.jq import JqPool
from knhk.actions.registry import Failed, Invocation, Succeeded
from knhk.domain.dsl.problem import standard_error
from knhk.domain.dsl.task import CONTINUE, Data, Document, Task
from knhk.domain.errors import InvalidExpression
from knhk.domain.json_schemas import check_schema

ERROR_CODE: Final = "KNHK-SERVERLESS-ERROR"
_RUNTIME: Final = {"name": "knhk", "version": "5"}


class Flow(msgspec.Struct, frozen=True):
    """What a task is given: the raw input, the context, and the variables of the loops and catches around it."""

    data: Any = None
    context: Any = None
    variables: Mapping[str, Any] = {}

    def to_data(self) -> dict[str, Any]:
        """The flow as JSON-like data."""
        return {"data": self.data, "context": self.context, "variables": dict(self.variables)}

    def result(self, then: str = CONTINUE) -> dict[str, Any]:
        """What a task gives that leaves the flow like this."""
        return {"data": self.data, "context": self.context, "then": then}


class Fault(Exception):
    """The task fails with an error of the standard's form."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or problem.get("type")))
        self.problem = problem

    def outcome(self) -> Failed:
        """The fault as the outcome of a step."""
        problem = self.problem
        said = " ".join(str(problem[key]) for key in ("title", "status") if problem.get(key) is not None)
        detail = str(problem.get("detail") or "")
        message = ": ".join(part for part in (said or str(problem.get("type")), detail) if part)
        return Failed(ERROR_CODE, message, problem=dict(problem))


class Turn:
    """One call of the action for one task."""

    def __init__(self, jq: JqPool, document: Document, task: Task, invocation: Invocation) -> None:
        self._jq, self.document, self.task, self.invocation = jq, document, task, invocation
        self.flow = _flow(invocation)
        self.input: Any = self.flow.data

    async def enter(self) -> bool:
        """Filter the raw input; whether the task is to be done at all. Raises Fault."""
        filtered = self.task.input
        self._validate(self.flow.data, filtered, "input")
        self.input = await self._filtered(filtered, self.flow.data, self.variables())
        return not self.task.condition or bool(await self.evaluate(self.task.condition, self.input))

    async def leave(self, raw: Any, then: str = "", context: Any = None) -> Succeeded:
        """The task's result from its raw output; `context` is the one that tasks inside have left. Raises Fault."""
        task = self.task
        before = self.flow.context if context is None else context
        variables = {**self.variables(), "input": self.input, "context": before}
        output = await self._filtered(task.output, raw, variables)
        self._validate(output, task.output, "output")
        exported = before
        if task.export.value is not None:
            exported = await self._filtered(task.export, output, {**variables, "output": output})
            self._validate(exported, task.export, "export")
        return Succeeded(Flow(output, exported).result(then or task.then))

    async def evaluate(self, source: str, given: Any, **more: Any) -> Any:
        """The value of an expression. Raises Fault."""
        try:
            return await self._jq.evaluate(source, given, {**self.variables(), "input": self.input, **more})
        except InvalidExpression as error:
            raise self.fault("expression", error.message) from None

    async def fill(self, template: Any, **more: Any) -> Any:
        """A template's value over the task's input. Raises Fault."""
        try:
            return await self._jq.fill(template, self.input, {**self.variables(), "input": self.input, **more})
        except InvalidExpression as error:
            raise self.fault("expression", error.message) from None

    def fault(self, kind: str, detail: str, status: int | None = None) -> Fault:
        """An error of a standard kind at this task."""
        return Fault(standard_error(kind, detail, instance=self.task.reference, status=status))

    def variables(self) -> dict[str, Any]:
        """Everything that an expression may name, but for `$input` and `$output`."""
        invocation, document = self.invocation, self.document
        return {
            **self.flow.variables,
            "context": self.flow.context,
            "task": {
                "name": self.task.name,
                "reference": self.task.reference,
                "input": self.flow.data,
                "startedAt": _moment(invocation.now_ns),
            },
            "workflow": {
                "id": invocation.workflow_id,
                "definition": {
                    "document": {
                        "dsl": "1.0.0",
                        "namespace": document.namespace,
                        "name": document.name,
                        "version": document.version,
                    }
                },
                "input": dict(invocation.scope.inputs),
                "startedAt": invocation.scope.run.get("submitted_at"),
            },
            "runtime": _RUNTIME,
        }

    async def _filtered(self, filtered: Data, data: Any, variables: Mapping[str, Any]) -> Any:
        value = filtered.value
        if value is None:
            return data
        try:
            if isinstance(value, str):
                return await self._jq.evaluate(value, data, variables)
            return await self._jq.fill(value, data, variables)
        except InvalidExpression as error:
            raise self.fault("expression", error.message) from None

    def _validate(self, value: Any, filtered: Data, what: str) -> None:
        if filtered.schema is None:
            return
        problems = check_schema(filtered.schema, value, what)
        if problems:
            raise self.fault("validation", "; ".join(str(one) for one in problems))


def _flow(invocation: Invocation) -> Flow:
    """What the task is given; the outermost gets the inputs of the run."""
    if invocation.given is None:
        return Flow(dict(invocation.scope.inputs))
    return Flow(*(invocation.given[key] for key in ("data", "context", "variables")))


def _moment(at_ns: int) -> dict[str, Any]:
    """A time as the standard's expressions see it."""
    written = datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"iso8601": written, "epoch": {"seconds": at_ns // 1_000_000_000, "milliseconds": at_ns // 1_000_000}}
