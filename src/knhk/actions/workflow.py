"""`workflow`: run a registered definition as a child, and give what it gives. The engine keeps the link."""

from typing import Annotated, Any, Final

import msgspec

from knhk.actions.parameters import parse
from knhk.actions.registry import Action, Failed, Invocation, Outcome, StartWorkflow
from knhk.actions.schema import schema_of
from knhk.domain.plan import ActionTraits

NAME: Final = "workflow"


class WorkflowParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The definition, its version (number, label or digest; the newest if nothing is said), and what it is given."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    version: str | int = ""
    input: dict[str, Any] = {}


def run(invocation: Invocation) -> Outcome:
    """Asks for the child."""
    params = parse(invocation, NAME, WorkflowParams)
    if isinstance(params, Failed):
        return params
    return StartWorkflow(params.name, str(params.version), params.input)


TRAITS: Final = ActionTraits(
    NAME, pure=False, guarantee="exactly-once", params_schema=schema_of(WorkflowParams), reads_dependencies=False
)
ACTION: Final = Action(TRAITS, "inline", run, __name__, about="runs a registered definition as a child")
