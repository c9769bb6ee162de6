"""Routes of registered definitions: put, list, show, compare, retire."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.params import PathParameter, QueryParameter

from knhk.api.description import DefinitionOperation, problem_responses
from knhk.domain.definition import Definition, DefinitionRow, Version
from knhk.domain.identifier import to_text
from knhk.domain.times import rfc3339
from knhk.engine.control import Control
from knhk.engine.definitions import Definitions

_LARGEST_PAGE = 1_000
_ACTOR = "api"
_READS = problem_responses(404, 503)
_CHANGES = problem_responses(404, 409, 413, 422, 503)

Name = Annotated[str, PathParameter(description="The name of a definition, as in its `metadata.name`.")]


class DefinitionPage(msgspec.Struct):
    """Definitions by name, each with its newest version. `next_cursor` is null after the last page."""

    definitions: list[dict[str, Any]]
    next_cursor: str | None


def definition_handlers(control: Control) -> list[Any]:
    """The handlers, for the application."""
    return [*_read_handlers(control), *_change_handlers(control.definitions)]


def _read_handlers(control: Control) -> list[Any]:
    definitions = control.definitions

    @get("/definitions", summary="List definitions", responses=problem_responses(503))
    async def list_definitions(
        limit: Annotated[int, QueryParameter(ge=1, le=_LARGEST_PAGE, description="At most so many.")] = 100,
        cursor: Annotated[str | None, QueryParameter(description="The `next_cursor` of the page before.")] = None,
    ) -> DefinitionPage:
        """By name, each with its newest version."""
        rows, following = await definitions.listing(after=cursor, limit=limit)
        return DefinitionPage([_row(one) for one in rows], following)

    @get("/definitions/{name:str}", summary="Versions of a definition", responses=_READS)
    async def get_definition(name: Name) -> dict[str, Any]:
        """All versions, oldest first, and the triggers of the newest with the next times of schedules."""
        return {**_shown(await definitions.get(name)), "triggers": control.triggers.shown(name)}

    @get("/definitions/{name:str}/versions/{version:str}", summary="One version of a definition", responses=_READS)
    async def get_version(
        name: Name, version: Annotated[str, PathParameter(description="Number, label, digest, or `latest`.")]
    ) -> dict[str, Any]:
        """The version with the text of its descriptor."""
        definition = await definitions.get(name)
        found = definition.version(version)
        text = await definitions.text(found)
        return {"name": name, **_version(found), "descriptor": text.decode(errors="replace")}

    @get("/definitions/{name:str}/diff", summary="Compare two versions", responses=_READS)
    async def get_diff(
        name: Name,
        before: Annotated[str, QueryParameter(name="from", description="The older version: number, label or digest.")],
        after: Annotated[str, QueryParameter(name="to", description="The newer one.")] = "",
    ) -> dict[str, Any]:
        """A unified diff of the texts, and the steps that were added, removed and changed."""
        return await definitions.compare(name, before, after)

    return [list_definitions, get_definition, get_version, get_diff]


def _change_handlers(definitions: Definitions) -> list[Any]:
    @put(
        "/definitions/{name:str}",
        status_code=201,
        summary="Put a version of a definition",
        operation_class=DefinitionOperation,
        responses=_CHANGES,
    )
    async def put_definition(
        request: Request[Any, Any, Any],
        name: Name,
        label: Annotated[str, QueryParameter(description="A second name for the version, such as 1.4.0.")] = "",
        note: Annotated[str, QueryParameter(description="What is new; kept in the receipt.")] = "",
    ) -> Response[dict[str, Any]]:
        """The body is a descriptor in YAML or JSON. Sent again, it is answered with the version that it is (200)."""
        done = await definitions.put(await request.body(), name=name, label=label, note=note, actor=_ACTOR)
        shown = {"name": name, **_version(done.version), "created": done.created}
        return Response(shown, status_code=201 if done.created else 200)

    @delete("/definitions/{name:str}", status_code=200, summary="Retire a definition", responses=_CHANGES)
    async def retire_definition(
        name: Name, reason: Annotated[str, QueryParameter(description="Why; kept in the receipt.")] = ""
    ) -> dict[str, Any]:
        """Nothing starts from it any more. Runs go on, versions can still be read, and putting a version revives it."""
        return _shown(await definitions.retire(name, actor=_ACTOR, reason=reason))

    return [put_definition, retire_definition]


def _row(row: DefinitionRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "label": row.label or None,
        "department": row.department,
        "put_at": rfc3339(row.at_ns),
        "retired": row.retired,
        "digest": row.digest.hex(),
    }


def _shown(definition: Definition) -> dict[str, Any]:
    return {
        "name": definition.name,
        "retired": definition.retired,
        "record": to_text(definition.record_id),
        "versions": [_version(one) for one in definition.versions],
    }


def _version(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "label": version.label or None,
        "note": version.note or None,
        "put_at": rfc3339(version.at_ns),
        "put_by": version.actor,
        "digest": version.digest.hex(),
    }
