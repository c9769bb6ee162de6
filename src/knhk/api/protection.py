"""Routes for the protection of data: erasure, and the keys that encrypt."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import delete, get, post
from litestar.params import Body, PathParameter

from knhk.api.description import ReasonOperation, problem_responses
from knhk.domain import identifier
from knhk.domain.errors import IllegalTransition, Unsupported
from knhk.engine.control import Control
from knhk.protection.erasure import Erasure
from knhk.protection.keys import KeyManagement
from knhk.protection.retention import Retention
from knhk.protection.services import Services
from knhk.protection.signing_keys import SigningKeys

_ACTOR = "api"
_CHANGES = problem_responses(404, 409, 503)
_KEYS = problem_responses(409, 503)


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    """Why an operator does something; kept in the receipts."""

    reason: str = ""


class DepartmentErasure(msgspec.Struct, forbid_unknown_fields=True):
    """Whose data, and why; the reason is kept in the receipts. The name is as in `metadata.department`."""

    department: str
    reason: str = ""


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be rotated: the keys that encrypt data, the one that wraps them, or the one that signs blocks."""

    what: Literal["data", "key_encryption_key", "signing"] = "data"


WorkflowId = Annotated[str, PathParameter(description="Such as wf-1234567890.")]
Generation = Annotated[int, PathParameter(description="As GET /keys lists them.")]
Reasoned = Annotated[Reason | None, Body(description="Optional: a reason, kept in the receipts.")]


def protection_handlers(control: Control, services: Services) -> list[Any]:
    """The handlers."""
    return [
        *_erasure_handlers(control, services.erasure),
        *_key_handlers(services.keys, services.signing),
        *_retention_handlers(services.retention),
    ]


def _retention_handlers(retention: Retention | None) -> list[Any]:
    def present() -> Retention:
        if retention is None:
            raise Unsupported("nothing is pruned in a cluster: see docs/retention.md")
        return retention

    @get("/retention", summary="What is pruned, and when", responses=_KEYS)
    async def get_retention() -> dict[str, Any]:
        """What was pruned and archived, what the last pass did, and whether the clock is believed."""
        return await present().status()

    @post("/retention/run", status_code=200, summary="Prune now", responses=_KEYS)
    async def run_retention() -> dict[str, Any]:
        """One pass over everything; answers when it is done."""
        return await present().run()

    @post("/retention/confirm", status_code=200, summary="Confirm the clock", responses=_KEYS)
    async def confirm_retention() -> dict[str, Any]:
        """The machine's clock is right, although it is far ahead of when the store was last used."""
        present().confirm()
        return await present().status()

    return [get_retention, run_retention, confirm_retention]


def _erasure_handlers(control: Control, erasure: Erasure) -> list[Any]:
    @post(
        "/workflows/{workflow_id:str}/erase",
        status_code=200,
        summary="Erase a workflow's inputs and outputs",
        responses=_CHANGES,
        operation_class=ReasonOperation,
    )
    async def erase_workflow(workflow_id: WorkflowId, data: Reasoned = None) -> dict[str, Any]:
        """Deletes them, and destroys the key that copies of them are encrypted with. Receipts stay and still verify."""
        number = identifier.parse(workflow_id)
        await control.erase(number, actor=_ACTOR, reason=data.reason if data else "")
        return {"workflow_id": workflow_id, "erased": True}

    @post("/departments/erase", status_code=200, summary="Erase a department's inputs and outputs", responses=_KEYS)
    async def erase_department(data: DepartmentErasure) -> dict[str, Any]:
        """Erases all of its ended workflows. 409 while some have not ended."""
        erased = await erasure.department(data.department, actor=_ACTOR, reason=data.reason)
        return {"department": data.department, "workflows_erased": erased}

    return [erase_workflow, erase_department]


def _key_handlers(keys: KeyManagement | None, signing: SigningKeys) -> list[Any]:
    def present() -> KeyManagement:
        if keys is None:
            raise IllegalTransition(
                "the data are not encrypted", hint="Set `persistence.encryption: true` and start the server again."
            )
        return keys

    @get("/keys", summary="Keys that encrypt data")
    async def get_keys() -> dict[str, Any]:
        """Generations of data keys and the state of re-encryption; no secrets."""
        if keys is None:
            return {"encryption": False, "key_encryption_key": None, "generations": []}
        return await keys.status()

    @post("/keys/rotate", status_code=200, summary="Rotate keys", responses=_KEYS)
    async def rotate_keys(
        data: Annotated[
            Rotation | None, Body(description="Optional: what to rotate; the data keys by default.")
        ] = None,
    ) -> dict[str, Any]:
        """New data are encrypted with new keys at once, older ones in the background. Blocks are signed at once."""
        if data is not None and data.what == "signing":
            return {"signing_key": (await signing.rotate()).key_id}
        if data is not None and data.what == "key_encryption_key":
            await present().rotate_key_encryption_key()
        else:
            await present().rotate_data_keys()
        return await present().status()

    @delete("/keys/{generation:int}", status_code=200, summary="Destroy retired keys", responses=_KEYS)
    async def destroy_keys(generation: Generation) -> dict[str, Any]:
        """Backups whose data are encrypted with them can never be read again."""
        present().destroy(generation)
        return await present().status()

    return [get_keys, rotate_keys, destroy_keys]
