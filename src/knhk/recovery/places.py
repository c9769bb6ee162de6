"""Where backups and segments are kept: a directory, NFS, or a bucket of any S3-compatible store, Google or Azure.

    /backup/knhk            a directory
    s3://bucket/prefix      credentials, region and endpoint as all S3 clients read them: AWS_ACCESS_KEY_ID,
                            AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, or the instance's role
    gs://..., az://...      likewise

Everything blocks: call it in a thread. What is put into a place is there, whole and durable, or not at all, as far as
the place keeps its word; who must know reads it back. Errors are KNHK's: NotFound, DiskFull, BackupUnavailable.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from knhk.domain.errors import BackupUnavailable, DiskFull, InvalidParameter, KnhkError, NotFound
from knhk.persistence.sync import sync_path

_SCHEMES: Final = ("s3", "gs", "az", "file")
_PIECE_BYTES: Final = 1 << 20
_LONGEST_S: Final = 3600
_CONNECT_S: Final = 10
_SILENCE_S: Final = 60
_ATTEMPTS: Final = 2


class Entry(NamedTuple):
    """An object of a place: its name, parts separated by `/`, its size in bytes, and when it was put there."""

    name: str
    size: int
    modified_ns: int


class Place:
    """A directory or bucket; its text is its absolute path or its URL."""

    def __init__(self, url: str, store: Any, root: Path | None) -> None:
        self._url, self._store = url.rstrip("/"), store
        self.root = root
        """The directory, if it is one."""

    def __str__(self) -> str:
        return self._url

    @classmethod
    def of(cls, url: str, *, make: bool = False, timeout_s: int = _LONGEST_S) -> "Place":
        """The place with this URL or path; `make` makes the directory, `timeout_s` is the limit of one request.

        Raises InvalidParameter, NotFound.
        """
        from obstore.store import LocalStore, from_url

        scheme, marker, rest = url.partition("://")
        if not marker or scheme == "file":
            root = Path(rest if marker else url).expanduser().absolute()
            try:
                if make:
                    root.mkdir(parents=True, exist_ok=True)
                if not root.is_dir():
                    raise NotFound(f"there is no directory {root}")
                return cls(str(root), LocalStore(root, mkdir=True), root)
            except OSError as error:
                raise _translated(error, url) from error
        if scheme not in _SCHEMES:
            raise InvalidParameter(f"{url!r} is neither a path nor a URL that starts with {', '.join(_SCHEMES)}")
        limit = timedelta(seconds=timeout_s)
        try:
            store = from_url(
                url,
                client_options={
                    "timeout": limit,
                    "read_timeout": timedelta(seconds=min(timeout_s, _SILENCE_S)),
                    "connect_timeout": timedelta(seconds=min(timeout_s, _CONNECT_S)),
                    "allow_http": _is_plain_http(),
                },
                retry_config={"max_retries": _ATTEMPTS, "retry_timeout": limit},
            )
        except Exception as error:
            raise InvalidParameter(f"{url}: {_first_line(error)}") from error
        return cls(url, store, None)

    def entries(self, prefix: str = "", after: str = "") -> Iterator[Entry]:
        """Everything below a folder, in no order; with `after`, only names that sort behind it."""
        try:
            for page in self._store.list(prefix or None, offset=after or None, chunk_size=1000):
                for one in page:
                    if not _is_partial(one["path"]):
                        yield Entry(one["path"], one["size"], round(one["last_modified"].timestamp() * 1e9))
        except Exception as error:
            raise self._failed(error, "listing", prefix) from error

    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders in a folder, sorted."""
        try:
            found = self._store.list_with_delimiter(prefix or None)["common_prefixes"]
        except Exception as error:
            raise self._failed(error, "listing", prefix) from error
        return sorted(str(one).rstrip("/").rpartition("/")[2] for one in found)

    def read(self, name: str) -> bytes:
        """A whole object. Raises NotFound."""
        try:
            return bytes(self._store.get(name).bytes())
        except Exception as error:
            raise self._failed(error, "reading", name) from error

    def stream(self, name: str) -> Iterator[bytes]:
        """An object piece by piece. Raises NotFound."""
        try:
            for piece in self._store.get(name).stream(min_chunk_size=_PIECE_BYTES):
                yield bytes(piece)
        except Exception as error:
            raise self._failed(error, "reading", name) from error

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            self._store.head(name)
        except Exception as error:
            failed = self._failed(error, "looking for", name)
            if isinstance(failed, NotFound):
                return False
            raise failed from error
        return True

    def put(self, name: str, content: bytes | Path) -> None:
        """Keep bytes, or a file's, under a name, in place of what was there."""
        try:
            self._store.put(name, content)
            if self.root is not None:
                path = self.root / name
                sync_path(path)
                for folder in path.parents:
                    sync_path(folder)
                    if folder == self.root:
                        break
        except Exception as error:
            raise self._failed(error, "writing", name) from error

    def delete(self, names: list[str]) -> None:
        """Remove objects; one that is not there is no error."""
        try:
            for start in range(0, len(names), 1000):
                self._store.delete(names[start : start + 1000])
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed(error, "deleting", names[0]) from error

    def remove_folder(self, name: str) -> None:
        """Remove a folder that is empty; buckets have none."""
        if self.root is None:
            return
        for folder, _, _ in os.walk(self.root / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()

    def _failed(self, error: Exception, doing: str, name: str) -> KnhkError:
        if isinstance(error, KnhkError):
            return error
        return _translated(error, f"{self}: {doing} {name}".rstrip())


def _translated(error: Exception, where: str) -> KnhkError:
    text = _first_line(error)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{where}: there is no such thing")
    if "No space left" in text or "os error 28" in str(error):
        return DiskFull(f"{where}: {text}", hint="Free space there.")
    return BackupUnavailable(f"{where}: {text}")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _is_partial(name: str) -> bool:
    """Whether it is the unfinished part of a file that is being written: LocalStore puts `#` and a number behind it."""
    return "#" in name.rpartition("/")[2]


def _is_plain_http() -> bool:
    """An endpoint that the operator gave as http:// is meant so."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return given.startswith("http://")
