"""Which actions there are, what each promises and takes."""

from typing import Annotated, Any

from litestar import get
from litestar.params import PathParameter

from knhk.actions.listing import described, listed
from knhk.actions.registry import Registry
from knhk.api.description import problem_responses


def action_handlers(registry: Registry) -> list[Any]:
    """The routes under /actions."""

    @get("/actions", summary="List actions", responses=problem_responses(), sync_to_thread=False)
    def list_actions() -> dict[str, list[dict[str, Any]]]:
        """Every action that a step may name, with its guarantee: exactly-once, at-least-once or at-most-once."""
        return {"actions": listed(registry)}

    @get("/actions/{name:path}", summary="One action", responses=problem_responses(404), sync_to_thread=False)
    def get_action(name: Annotated[str, PathParameter(description="Such as http.")]) -> dict[str, Any]:
        """The same with the JSON Schemas of its params and its output."""
        return described(registry, name.removeprefix("/"))

    return [list_actions, get_action]
