"""What commands read from files, stdin and NAME=VALUE options."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knhk.domain.errors import InvalidInput, InvalidInputs, NotFound, Problem

if TYPE_CHECKING:
    from knhk.ports.environment import PublicKey


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
            inputs[name] = _value(text)
    if problems:
        raise InvalidInputs("the inputs cannot be read", problems=problems)
    return inputs


def _value(text: str) -> Any:
    """JSON if it is JSON, or else the text itself: `3` is a number, `"3"` and `abc` are text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _inputs_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(read_bytes(path), Loader=_inputs_loader())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = {} if mark is None else {"line": mark.line + 1, "column": mark.column + 1}
        problem = Problem(str(getattr(error, "problem", None) or error), **place)
        raise InvalidInputs(f"{path} is neither YAML nor JSON", problems=[problem]) from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InvalidInputs(f"{path} must hold a mapping of input names to values")
    return found


def _inputs_loader() -> Any:
    """YAML's safe loader without what JSON cannot say: dates stay text, and so do `yes`, `no`, `on` and `off`."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    kept = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in kept]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    return Loader


def read_public_key(path: Path) -> "PublicKey":
    """An Ed25519 public key from a PEM file. Raises NotFound or InvalidInput."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from knhk.ports.environment import PublicKey
    from knhk.security.signing import key_id

    try:
        key = load_pem_public_key(read_bytes(path))
    except ValueError as error:
        raise InvalidInput(f"{path} is not a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput(f"{path} is not an Ed25519 key")
    raw = key.public_bytes_raw()
    return PublicKey(key_id(raw), raw, 0)
