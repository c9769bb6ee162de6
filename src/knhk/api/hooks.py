"""The route of webhooks: signed requests of other systems that start runs."""

from typing import Annotated, Any

from litestar import Request, post
from litestar.params import PathParameter

from knhk.api.description import Submitted, WebhookOperation, problem_responses
from knhk.domain.identifier import to_text
from knhk.engine.control import Control

_RESPONSES = problem_responses(403, 404, 409, 413, 422, 429, 501, 503)


def hook_handlers(control: Control) -> list[Any]:
    """The handlers, for the application."""

    @post(
        "/hooks/{definition:str}/{trigger:str}",
        status_code=202,
        summary="Fire a webhook trigger",
        operation_class=WebhookOperation,
        responses=_RESPONSES,
    )
    async def fire_webhook(
        request: Request[Any, Any, Any],
        definition: Annotated[str, PathParameter(description="The name of a definition.")],
        trigger: Annotated[str, PathParameter(description="The name of its trigger.")],
    ) -> Submitted:
        """The body is anything, signed with the trigger's secret (HMAC-SHA256). A repeated delivery is one run."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        accepted = await control.triggers.receive(definition, trigger, headers, await request.body())
        return Submitted(to_text(accepted.workflow_id), accepted.state, accepted.replayed)

    return [fire_webhook]
