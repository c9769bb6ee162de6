"""`file`: read, write, list, copy, move and delete below directories that the configuration names; off until it does.

Repeating an operation after a crash changes nothing: a write writes the same again, what is gone was deleted, and
a file that was moved is where it should be. directories.py keeps all of it inside its root.
"""

import base64
import errno
import os
from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

import msgspec

from knhk.actions import directories
from knhk.actions.blob_streams import PIECE_BYTES, Keep
from knhk.actions.bounds import within
from knhk.actions.directories import Place
from knhk.actions.parameters import NOT_ALLOWED_CODE, parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.actions.texts import text_of
from knhk.config.actions_section import FileOptions, FileRoot
from knhk.domain.blob import BlobReference
from knhk.domain.plan import ActionTraits
from knhk.domain.units import format_size
from knhk.ports.blobs import Blobs

NAME: Final = "file"
FILE_CODE: Final = "KNHK-FILE"
TOO_LARGE_CODE: Final = "KNHK-FILE-TOO-LARGE"
UNAVAILABLE_CODE: Final = "KNHK-FILE-UNAVAILABLE"
_FINAL: Final = frozenset(
    {
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EXDEV,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENAMETOOLONG,
        errno.ENOTEMPTY,
        errno.EINVAL,
    }
)
"""What the next attempt would meet again; anything else (no room, too many files, a broken disk) may pass."""
_WRITING: Final = frozenset({"write", "delete", "move"})
Path = Annotated[str, msgspec.Meta(max_length=4096)]


class FileParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to a path inside a root. One of `content`, `base64` and `json` is written; `to` is where to."""

    root: str
    path: Path
    operation: Literal["read", "write", "list", "stat", "copy", "move", "delete"] = "read"
    content: str | BlobReference | None = None
    base64: str | None = None
    json: Any = msgspec.UNSET
    to: Path | None = None
    to_root: str | None = None
    overwrite: bool = True
    format: Literal["text", "json"] = "text"
    blob: Keep = "auto"
    max_size: str | None = None


class Files:
    """The roots of this process."""

    def __init__(self, options: FileOptions, blobs: Blobs) -> None:
        self._options, self._blobs = options, blobs
        self._roots = {root.name: root for root in options.roots}

    def run(self, invocation: Invocation) -> Outcome:
        """Does it, and gives what was read or what is there now."""
        params = parse(invocation, NAME, FileParams)
        if isinstance(params, Failed):
            return params
        where = f"{params.root}:{params.path[:200]}"
        try:
            return self._done(params, where)
        except PermissionError as error:
            if error.errno is None:
                return Failed(NOT_ALLOWED_CODE, f"file: {error}")
            return Failed(FILE_CODE, f"{where}: {os.strerror(error.errno)}")
        except OSError as error:
            reason = f"{where}: {os.strerror(error.errno or 0)}"
            return Failed(FILE_CODE, reason) if error.errno in _FINAL else RetryLater(UNAVAILABLE_CODE, reason)
        except ValueError as error:
            return wrong(NAME, str(error))

    def _done(self, params: FileParams, where: str) -> Outcome:
        root = self._root(params.root, writes=params.operation in _WRITING)
        parts = directories.parts_of(params.path)
        if not parts and params.operation not in ("list", "stat"):
            raise ValueError("`path` is empty: it is the root itself")
        with directories.reached(os.fspath(root.path), parts, make=params.operation == "write") as place:
            match params.operation:
                case "read":
                    return self._read(place, params, where)
                case "write":
                    return self._write(place, params)
                case "list":
                    found = directories.entries(place, self._options.max_entries)
                    if found is None:
                        most = self._options.max_entries
                        return Failed(TOO_LARGE_CODE, f"{where}: more than {most} entries (`max_entries`)")
                    return Succeeded({"path": params.path, "entries": found})
                case "stat":
                    return Succeeded(_stat(place, params.path))
                case "copy" | "move":
                    return self._to(place, params)
                case "delete":
                    return Succeeded({"path": params.path, "deleted": directories.delete(place)})

    def _root(self, name: str, *, writes: bool) -> FileRoot:
        """Raises PermissionError if there is no such root, or it is only read."""
        root = self._roots.get(name)
        if root is None:
            known = ", ".join(self._roots) or "none"
            raise PermissionError(f"{name[:100]!r} is no root of `actions.file.roots`: {known}")
        if writes and not root.write:
            raise PermissionError(f"the root {name!r} is only read (`write: false`)")
        return root

    def _read(self, place: Place, params: FileParams, where: str) -> Outcome:
        with directories.opened(place) as file:
            size = os.fstat(file.fileno()).st_size
            keep = "never" if params.format == "json" or not self._blobs.max_bytes else params.blob
            if keep == "always" or (keep == "auto" and size > self._blobs.inline_bytes):
                return self._as_blob(file, params, where)
            most = self._options.max_read_bytes
            limit = within("max_size", params.max_size, most, most, size=True)
            raw = bytearray()
            while len(raw) <= limit and (piece := file.read(min(PIECE_BYTES, limit + 1 - len(raw)))):
                raw += piece
        if len(raw) > limit:
            return _too_large(where, limit)
        output: dict[str, Any] = {"path": params.path, "size": len(raw), "sha256": sha256(raw).hexdigest()}
        if params.format == "text":
            return Succeeded({**output, **text_of(bytes(raw), "content")})
        try:
            return Succeeded({**output, "content": msgspec.json.decode(raw)})
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Failed(FILE_CODE, f"{where}: not JSON: {error}")

    def _as_blob(self, file: Any, params: FileParams, where: str) -> Outcome:
        limit = within("max_size", params.max_size, self._blobs.max_bytes, self._blobs.max_bytes, size=True)
        sink = self._blobs.begin()
        try:
            while piece := file.read(PIECE_BYTES):
                if sink.size + len(piece) > limit:
                    return _too_large(where, limit)
                sink.write(piece)
            reference = sink.finish(_media_type(params.path))
        finally:
            sink.abort()
        digest = reference.digest.removeprefix("sha256:")
        output = {"path": params.path, "size": reference.size, "sha256": digest, "content": reference.to_dict()}
        return Succeeded({**output, "content_encoding": "blob"})

    def _write(self, place: Place, params: FileParams) -> Outcome:
        found, size = sha256(), 0

        def pieces() -> Iterator[bytes]:
            nonlocal size
            for piece in self._content(params):
                found.update(piece)
                size += len(piece)
                yield piece

        try:
            directories.write(place, pieces(), overwrite=params.overwrite)
        except FileExistsError:
            # What an attempt before a crash wrote is not somebody else's.
            if params.overwrite or not directories.same(place, self._content(params)):
                raise
        return Succeeded({"path": params.path, "size": size, "sha256": found.hexdigest()})

    def _content(self, params: FileParams) -> Iterator[bytes]:
        given = [params.content is not None, params.base64 is not None, params.json is not msgspec.UNSET]
        if sum(given) != 1:
            raise ValueError("a write needs exactly one of `content`, `base64` and `json`")
        if isinstance(params.content, BlobReference):
            return self._blobs.pieces(params.content.digest)
        if params.content is not None:
            return iter((params.content.encode(),))
        if params.base64 is not None:
            return iter((base64.b64decode(params.base64, validate=True),))
        return iter((msgspec.json.encode(params.json),))

    def _to(self, place: Place, params: FileParams) -> Outcome:
        """Copy or move. A file that is not there any more, but where it was to go, was moved by an attempt before."""
        if params.to is None or not (parts := directories.parts_of(params.to)):
            raise ValueError(f"`to` says where to {params.operation} it")
        root = self._root(params.to_root or params.root, writes=True)
        with directories.reached(os.fspath(root.path), parts, make=True) as target:
            if params.operation == "copy":
                with directories.opened(place) as file:
                    try:
                        directories.write(target, iter(lambda: file.read(PIECE_BYTES), b""), overwrite=params.overwrite)
                    except FileExistsError:
                        file.seek(0)
                        if params.overwrite or not directories.same(target, iter(lambda: file.read(PIECE_BYTES), b"")):
                            raise
            else:
                try:
                    directories.move(place, target, overwrite=params.overwrite)
                except FileNotFoundError:
                    directories.described(target)  # raises if it is not there either
            return Succeeded({**_stat(target, params.to), "from": params.path})


def _stat(place: Place, path: str) -> dict[str, Any]:
    try:
        return {"path": path, "exists": True, **directories.described(place)}
    except FileNotFoundError:
        return {"path": path, "exists": False}


def _too_large(where: str, limit: int) -> Failed:
    return Failed(TOO_LARGE_CODE, f"{where}: larger than {format_size(limit)} (`max_size`)")


def _media_type(path: str) -> str:
    import mimetypes

    return mimetypes.guess_type(path)[0] or "application/octet-stream"


def action(options: FileOptions, blobs: Blobs) -> Action:
    """The action with these roots."""
    disabled = "" if options.roots else "`actions.file.roots` names no directory"
    traits = ActionTraits(
        NAME, pure=False, params_schema=schema_of(FileParams), reads_dependencies=False, disabled=disabled
    )
    return Action(traits, "thread", Files(options, blobs).run, __name__, about="reads, writes and lists files in roots")
