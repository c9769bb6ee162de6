"""Files below a root directory, reached without ever leaving it: what the `file` action is made of. Everything blocks.

A path is walked from the root's open directory, component by component, and no symbolic link is followed: nothing
outside is touched, whatever is moved or linked meanwhile. A write goes to a file without a name (or a hidden one, where
the file system knows no such), is synced, and gets its name in one step: readers see the old file or the new one.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final, NamedTuple

HIDDEN: Final = ".knhk-"
_NO_UNNAMED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.EACCES})


class Place(NamedTuple):
    """A name in an open directory."""

    directory: int
    name: str


def parts_of(path: str) -> list[str]:
    """The components of a path inside a root, none for the root itself. Raises PermissionError if it would leave it."""
    if path in ("", "."):
        return []
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise PermissionError(f"{path[:200]!r} is no path inside a root: no leading /, no empty part, no . and no ..")
    if any(part.startswith(HIDDEN) for part in parts):
        raise PermissionError(f"names that begin with {HIDDEN} are the action's own")
    return parts


@contextmanager
def reached(root: str, parts: list[str], *, make: bool = False) -> Iterator[Place]:
    """The place at a path below the root. With `make`, directories that are missing on the way are made."""
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                    os.fsync(current)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = inner
        yield Place(current, parts[-1] if parts else ".")
    finally:
        os.close(current)


@contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """An ordinary file, for reading. Raises OSError; IsADirectoryError, or EINVAL for a pipe, a device and the like."""
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(place.name, flags, dir_fd=place.directory), "rb", buffering=0) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, os.strerror(number))
        yield file


def write(place: Place, pieces: Iterator[bytes], *, overwrite: bool) -> None:
    """Put a file there, whole and durable or not at all. Raises FileExistsError unless it may be overwritten."""
    file, hidden = _new_file(place.directory)
    try:
        with file:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
            if hidden is None:
                hidden = _hidden_name()
                os.link(f"/proc/self/fd/{file.fileno()}", hidden, dst_dir_fd=place.directory, follow_symlinks=True)
        _name(Place(place.directory, hidden), place, overwrite=overwrite)
    except BaseException:
        if hidden is not None:
            with suppress(FileNotFoundError):
                os.unlink(hidden, dir_fd=place.directory)
        raise
    os.fsync(place.directory)


def move(place: Place, target: Place, *, overwrite: bool) -> None:
    """Give a file or directory another name, durably. Raises OSError, EXDEV from one file system to another."""
    if overwrite:
        os.rename(place.name, target.name, src_dir_fd=place.directory, dst_dir_fd=target.directory)
    else:
        _name(place, target, overwrite=False)
    os.fsync(target.directory)
    os.fsync(place.directory)


def delete(place: Place) -> bool:
    """Remove a file or an empty directory, durably; whether there was one. Raises OSError."""
    try:
        if stat.S_ISDIR(os.stat(place.name, dir_fd=place.directory, follow_symlinks=False).st_mode):
            os.rmdir(place.name, dir_fd=place.directory)
        else:
            os.unlink(place.name, dir_fd=place.directory)
    except FileNotFoundError:
        return False
    os.fsync(place.directory)
    return True


def described(place: Place) -> dict[str, Any]:
    """What is there: its kind (file, directory or other), size in bytes and Unix time of its last change in ns."""
    found = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "file" if stat.S_ISREG(found.st_mode) else "other"
    return {"kind": kind, "size": found.st_size, "modified_ns": found.st_mtime_ns}


def entries(place: Place, most: int) -> list[dict[str, Any]] | None:
    """What is in a directory, by name; None if it is more than `most`."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(place.name, flags, dir_fd=place.directory)
    try:
        names = []
        with os.scandir(directory) as found:
            for one in found:
                if not one.name.startswith(HIDDEN):
                    names.append(one.name)
                if len(names) > most:
                    return None
        return [{"name": name, **described(Place(directory, name))} for name in sorted(names)]
    finally:
        os.close(directory)


def same(place: Place, pieces: Iterator[bytes]) -> bool:
    """Whether the file there has these contents."""
    try:
        with opened(place) as file:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    found = file.read(len(view))
                    if not found or found != view[: len(found)]:
                        return False
                    view = view[len(found) :]
            return not file.read(1)
    except OSError:
        return False


def _new_file(directory: int) -> tuple[BinaryIO, str | None]:
    """A file without a name, or where that cannot be one with a hidden name."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, 0o644, dir_fd=directory)

    try:
        return os.fdopen(opener(".", os.O_WRONLY | os.O_TMPFILE), "wb", buffering=0), None
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
    name = _hidden_name()
    return os.fdopen(opener(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=0), name


def _name(hidden: Place, target: Place, *, overwrite: bool) -> None:
    if overwrite:
        os.rename(hidden.name, target.name, src_dir_fd=hidden.directory, dst_dir_fd=target.directory)
        return
    # A link fails where a rename would replace.
    directories = {"src_dir_fd": hidden.directory, "dst_dir_fd": target.directory}
    os.link(hidden.name, target.name, **directories, follow_symlinks=False)
    os.unlink(hidden.name, dir_fd=hidden.directory)


def _hidden_name() -> str:
    return f"{HIDDEN}{os.urandom(12).hex()}"
