"""A support bundle: an archive of parts, each scrubbed and capped, with a manifest of what is in it and what is not."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

MANIFEST: Final = "manifest.json"
_MOST_PART_BYTES: Final = 16 << 20


class Part(msgspec.Struct, frozen=True):
    """A file of the bundle. `source` says who told it. Of one that is too long its end is kept if `tail`."""

    name: str
    text: str
    source: str
    tail: bool = False


class Missing(msgspec.Struct, frozen=True):
    """A part that could not be had."""

    name: str
    reason: str


def as_json(name: str, value: Any, source: str) -> Part:
    """A part of JSON-like data."""
    return Part(name, msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode(), source)


def write(
    path: Path,
    parts: Iterable[Part],
    missing: Iterable[Missing],
    about: dict[str, Any],
    *,
    scrub: Callable[[str], str],
    most_bytes: int,
    at_s: float,
) -> dict[str, Any]:
    """Write the archive (tar, gzip; readable by its owner alone) and return its manifest.

    Parts come in the order of their worth: what does not fit into `most_bytes`, before compression, is cut or left out,
    and the manifest says so. Replaces a file that is there only once all is written. Raises OSError.
    """
    left, rows, files = most_bytes, [], []
    absent = list(missing)
    for part in parts:
        raw = scrub(part.text).encode("utf-8", "replace")
        room = min(left, _MOST_PART_BYTES, len(raw))
        kept = raw[len(raw) - room :] if part.tail else raw[:room]
        if raw and not kept:
            absent.append(Missing(part.name, "the bundle is full"))
            continue
        left -= len(kept)
        files.append((part.name, kept))
        digest = hashlib.sha256(kept).hexdigest()
        row = {"name": part.name, "bytes": len(kept), "sha256": digest, "source": part.source}
        rows.append(row | ({"cut_from_bytes": len(raw)} if len(kept) < len(raw) else {}))
    manifest = {**about, "files": rows, "missing": [msgspec.structs.asdict(one) for one in absent]}
    encoded = scrub(msgspec.json.format(msgspec.json.encode(manifest, enc_hook=str)).decode()).encode()
    files.insert(0, (MANIFEST, encoded))
    _archive(path, files, at_s)
    return manifest


def _archive(path: Path, files: list[tuple[str, bytes]], at_s: float) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    folder = path.name.partition(".")[0]
    try:
        with (
            open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for name, raw in files:
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(raw), int(at_s), 0o600
                archive.addfile(entry, io.BytesIO(raw))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
