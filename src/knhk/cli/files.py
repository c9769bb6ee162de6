"""What commands read from files, stdin and NAME=VALUE options."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from knhk.domain.errors import InvalidDescriptor, InvalidInput, InvalidInputs, NotFound, Problem

if TYPE_CHECKING:
    from knhk.ports.environment import PublicKey

_LARGEST_INPUTS_BYTES: Final = 64 << 20  # the server has its own, smaller limit


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or of stdin for `-`. Raises NotFound or InvalidInput."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def write_bytes(path: Path, raw: bytes) -> None:
    """Write a file. Raises InvalidInput."""
    try:
        path.write_bytes(raw)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error


def read_inputs(given: list[str] | None, file: Path | None) -> dict[str, Any]:
    """The inputs from a file and from NAME=VALUE options, which win. Raises InvalidInputs or NotFound."""
    inputs = {} if file is None else _inputs_file(file)
    problems = []
    for one in given or []:
        name, equals, text = one.partition("=")
        if not equals or not name:
            problems.append(Problem(f"--input {one!r} is not NAME=VALUE"))
        else:
            inputs[name] = read_value(text)
    if problems:
        raise InvalidInputs("the inputs cannot be read", problems=problems)
    return inputs


def read_value(text: str) -> Any:
    """JSON if it is JSON, or else the text itself: `3` is a number, `"3"` and `abc` are text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _inputs_file(path: Path) -> dict[str, Any]:
    """The mapping in a file, read as carefully, and with the same rules of YAML 1.2, as descriptors are."""
    from knhk.domain.document import read

    raw = read_bytes(path)
    if not raw.strip():
        return {}
    try:
        return dict(read(raw, max_bytes=_LARGEST_INPUTS_BYTES).value)
    except InvalidDescriptor as error:
        raise InvalidInputs(f"{path} cannot be read", problems=error.problems) from error


def read_public_key(path: Path) -> "PublicKey":
    """An Ed25519 public key from a PEM file. Raises NotFound or InvalidInput."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from knhk.ports.environment import PublicKey
    from knhk.security.signing import UNREADABLE, key_id

    try:
        key = load_pem_public_key(read_bytes(path))
    except UNREADABLE as error:
        raise InvalidInput(f"{path} is not a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput(f"{path} is not an Ed25519 key")
    raw = key.public_bytes_raw()
    return PublicKey(key_id(raw), raw, 0)
