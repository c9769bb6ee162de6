"""`s3`: get, put, list, copy and delete objects in buckets that the configuration names. Off until it names one.

Any store that speaks S3. Repeating an operation after a crash changes nothing: an object that was put already is put
again, and one that had to be new is known by the step's key in its metadata. Large objects go to and come from blobs in
pieces.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from knhk.actions.blob_streams import PIECE_BYTES, Keep, Spill, pieces
from knhk.actions.bounds import within
from knhk.actions.parameters import NOT_ALLOWED_CODE, parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.actions.texts import text_of
from knhk.config.actions_section import S3Connection, S3Options
from knhk.domain.blob import OCTETS, BlobReference, is_media_type
from knhk.domain.errors import PayloadTooLarge
from knhk.domain.plan import ActionTraits
from knhk.domain.times import rfc3339
from knhk.domain.units import SECOND, format_duration, format_size, parse_duration_ns
from knhk.ports.blobs import Blobs

if TYPE_CHECKING:
    from obstore.store import S3Store

NAME: Final = "s3"
S3_CODE: Final = "KNHK-S3"
MISSING_CODE: Final = "KNHK-S3-NOT-FOUND"
CONDITION_CODE: Final = "KNHK-S3-CONDITION"
TOO_LARGE_CODE: Final = "KNHK-S3-TOO-LARGE"
UNAVAILABLE_CODE: Final = "KNHK-S3-UNAVAILABLE"
_STEP: Final = "knhk-step"
_PART_BYTES: Final = 8 << 20
_PARTS_AT_ONCE: Final = 2
_IN_ONE_PIECE: Final = 64 << 20
_CONNECT_S: Final = 10
_SILENCE_S: Final = 60
_LONGEST_S: Final = 24 * 3600
_ATTEMPTS: Final = 2
_WRITING: Final = frozenset({"put", "copy", "delete"})
Key = Annotated[str, msgspec.Meta(max_length=1024)]


class S3Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to an object. One of `content`, `base64` and `json` is put; `to` is where a copy goes."""

    connection: str
    key: Key = ""
    operation: Literal["get", "put", "list", "head", "copy", "delete"] = "get"
    content: str | BlobReference | None = None
    base64: str | None = None
    json: Any = msgspec.UNSET
    media_type: str | None = None
    if_absent: bool = False
    if_match: str | None = None
    to: Key | None = None
    after: Key | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    format: Literal["text", "json"] = "text"
    blob: Keep = "auto"
    max_size: str | None = None
    timeout: str | None = None


class Buckets:
    """The buckets of this process."""

    def __init__(self, options: S3Options, blobs: Blobs) -> None:
        self._options, self._blobs = options, blobs
        self._connections = {one.name: one for one in options.connections}
        self._stores: dict[str, S3Store] = {}

    async def run(self, invocation: Invocation) -> Outcome:
        """Does it, and gives what was read or what is there now."""
        params = parse(invocation, NAME, S3Params)
        if isinstance(params, Failed):
            return params
        connection = self._connections.get(params.connection)
        if connection is None:
            known = ", ".join(self._connections) or "none"
            return Failed(
                NOT_ALLOWED_CODE, f"s3: {params.connection[:100]!r} is no connection of `actions.s3`: {known}"
            )
        if params.operation in _WRITING and not connection.write:
            return Failed(NOT_ALLOWED_CODE, f"s3: the connection {connection.name!r} is only read (`write: false`)")
        where = f"{params.operation} {connection.name}:{params.key[:200]}"
        try:
            timeout_ns = self._options.timeout_ns if params.timeout is None else parse_duration_ns(params.timeout)
            if not params.key and params.operation != "list":
                raise ValueError("`key` is empty")
            async with asyncio.timeout(timeout_ns / SECOND):
                return await self._done(self._store(connection), params, invocation.idempotency_key, where)
        except TimeoutError:
            return RetryLater(UNAVAILABLE_CODE, f"{where}: not done after {format_duration(timeout_ns)}")
        except PayloadTooLarge as error:
            return Failed(TOO_LARGE_CODE, f"{where}: {error.message} (`max_size`)")
        except ValueError as error:
            return wrong(NAME, str(error))

    async def _done(self, store: "S3Store", params: S3Params, step: str, where: str) -> Outcome:
        from obstore import exceptions

        try:
            match params.operation:
                case "get":
                    return await self._get(store, params, where)
                case "put":
                    return await self._put(store, params, step)
                case "list":
                    return await self._list(store, params)
                case "head":
                    return Succeeded(_shown(await store.head_async(params.key)))
                case "copy":
                    if not params.to:
                        raise ValueError("`to` says where to copy it")
                    await store.copy_async(params.key, params.to)
                    return Succeeded({"from": params.key, **_shown(await store.head_async(params.to))})
                case "delete":
                    await store.delete_async(params.key)
                    return Succeeded({"key": params.key, "deleted": True})
        except (exceptions.NotFoundError, FileNotFoundError):
            if params.operation == "delete":
                return Succeeded({"key": params.key, "deleted": True})
            if params.operation == "head":
                return Succeeded({"key": params.key, "exists": False})
            return Failed(MISSING_CODE, f"{where}: there is no such object")
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            if params.if_absent and await self._is_mine(store, params.key, step):
                return Succeeded(_shown(await store.head_async(params.key)))
            return Failed(CONDITION_CODE, f"{where}: the object is there, or is not the one of `if_match`")
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            return Failed(NOT_ALLOWED_CODE, f"{where}: the store does not allow it")
        except (exceptions.InvalidPathError, exceptions.NotSupportedError) as error:
            return Failed(S3_CODE, f"{where}: {_first_line(error)}")
        except (exceptions.BaseError, OSError) as error:
            return RetryLater(UNAVAILABLE_CODE, f"{where}: {_first_line(error)}")

    async def _get(self, store: "S3Store", params: S3Params, where: str) -> Outcome:
        found = await store.get_async(params.key)
        keep: Keep = "never" if params.format == "json" or not self._blobs.max_bytes else params.blob
        size, most = found.meta["size"], self._options.max_read_bytes
        in_blob = keep == "always" or (keep == "auto" and size > self._blobs.inline_bytes)
        most = self._blobs.max_bytes if in_blob else most
        spill = Spill(self._blobs, keep, within("max_size", params.max_size, most, most, size=True))
        try:
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                await spill.write(bytes(piece))
            given = str(found.attributes.get("Content-Type", ""))
            content = await spill.finish(given if is_media_type(given) else OCTETS)
        finally:
            await spill.abort()
        output = _shown(found.meta)
        if isinstance(content, BlobReference):
            return Succeeded({**output, "content": content.to_dict(), "content_encoding": "blob"})
        if params.format == "text":
            return Succeeded({**output, **text_of(content, "content")})
        try:
            return Succeeded({**output, "content": msgspec.json.decode(content)})
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Failed(S3_CODE, f"{where}: not JSON: {error}")

    async def _put(self, store: "S3Store", params: S3Params, step: str) -> Outcome:
        """An object that must be new, or replace a certain one, is sent in one piece: S3 has no condition for more."""
        content, size, media_type = await self._content(params)
        conditional = params.if_absent or params.if_match is not None
        if conditional and size > _IN_ONE_PIECE:
            raise PayloadTooLarge(f"more than {format_size(_IN_ONE_PIECE)} with `if_absent` or `if_match`")
        attributes: Any = {"Content-Type": params.media_type or media_type, _STEP: step}
        if not conditional:
            await store.put_async(
                params.key,
                content,
                attributes=attributes,
                use_multipart=size > _PART_BYTES,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
        else:
            mode: Any = "create" if params.if_absent else {"e_tag": params.if_match}
            whole = content if isinstance(content, bytes) else b"".join([piece async for piece in content])
            await store.put_async(params.key, whole, attributes=attributes, mode=mode)
        return Succeeded(_shown(await store.head_async(params.key)))

    async def _content(self, params: S3Params) -> tuple[bytes | AsyncIterator[bytes], int, str]:
        """What is put: the bytes or their pieces, their size, and their media type."""
        given = [params.content is not None, params.base64 is not None, params.json is not msgspec.UNSET]
        if sum(given) != 1 or (params.if_absent and params.if_match is not None):
            raise ValueError("a put needs exactly one of `content`, `base64` and `json`, and at most one condition")
        if isinstance(params.content, BlobReference):
            digest = params.content.digest
            size = await asyncio.to_thread(self._blobs.size, digest)
            return pieces(self._blobs.pieces(digest)), size, params.content.media_type
        if params.content is not None:
            raw, media_type = params.content.encode(), "text/plain; charset=utf-8"
        elif params.base64 is not None:
            raw, media_type = base64.b64decode(params.base64, validate=True), OCTETS
        else:
            raw, media_type = msgspec.json.encode(params.json), "application/json"
        return raw, len(raw), media_type

    async def _list(self, store: "S3Store", params: S3Params) -> Outcome:
        most = min(params.limit or self._options.max_entries, self._options.max_entries)
        found: list[dict[str, Any]] = []
        async for page in store.list(params.key or None, offset=params.after, chunk_size=min(1000, most + 1)):
            found.extend(_shown(one) for one in page)
            if len(found) > most:
                break
        return Succeeded({"entries": found[:most], "more": len(found) > most})

    async def _is_mine(self, store: "S3Store", key: str, step: str) -> bool:
        """Whether an attempt before this one put the object, and died before its receipt."""
        return (await store.get_async(key)).attributes.get(_STEP) == step

    def _store(self, connection: S3Connection) -> "S3Store":
        if connection.name not in self._stores:
            self._stores[connection.name] = _opened(connection)
        return self._stores[connection.name]


def _opened(connection: S3Connection) -> "S3Store":
    from obstore.store import S3Store

    config: Any = {"region": connection.region}
    if connection.endpoint:
        config["endpoint"] = connection.endpoint
    if connection.access_key_id.get_secret_value():
        config["access_key_id"] = connection.access_key_id.get_secret_value()
        config["secret_access_key"] = connection.secret_access_key.get_secret_value()
    return S3Store(
        connection.bucket,
        prefix=connection.prefix.strip("/") or None,
        config=config,
        client_options={
            "timeout": timedelta(seconds=_LONGEST_S),
            "read_timeout": timedelta(seconds=_SILENCE_S),
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "allow_http": connection.endpoint.startswith("http://"),
        },
        retry_config={"max_retries": _ATTEMPTS, "retry_timeout": timedelta(seconds=_SILENCE_S)},
    )


def _shown(meta: Any) -> dict[str, Any]:
    modified = rfc3339(round(meta["last_modified"].timestamp() * 1e9))
    return {"key": meta["path"], "exists": True, "size": meta["size"], "e_tag": meta["e_tag"], "modified_at": modified}


def _first_line(error: Exception) -> str:
    """What the store says, without the dump of the request that obstore adds, and which may have secrets."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def action(options: S3Options, blobs: Blobs) -> Action:
    """The action with these buckets."""
    disabled = "" if options.connections else "`actions.s3.connections` names no bucket"
    traits = ActionTraits(
        NAME, pure=False, params_schema=schema_of(S3Params), reads_dependencies=False, disabled=disabled
    )
    return Action(traits, "async", Buckets(options, blobs).run, __name__, about="gets and puts objects in buckets")
