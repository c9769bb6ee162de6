"""Plain scalars and `${VAR}`: what a word in the configuration stands for."""

import re
from collections.abc import Mapping
from typing import Final

_SECRET_NAME: Final = re.compile(r"secret|passw|pwd|token|key|credential|webhook|private|dsn", re.IGNORECASE)
_REFERENCE: Final = re.compile(
    r"\$\$\{"  # an escaped one
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<fallback>:-[^}]*)?\}"
    r"|\$\{(?P<broken>[^}]*)\}?"
)
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})


def is_null(text: str) -> bool:
    """Whether a plain scalar says that there is no value."""
    return text in _NULLS


def resolve(text: str) -> str | int | float | bool:
    """What a plain scalar stands for in YAML 1.2 (core schema): `yes`, `on` and `1:30` are words, not values."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def expand(text: str, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Fill in `${VAR}` and `${VAR:-default}`; `$${` stands for a plain `${`. Also says whether a secret was filled in.

    As in a shell, the default serves for an empty variable too. Raises ValueError if a variable is not set, and if a
    reference cannot be read.
    """
    if "${" not in text:
        return text, False
    secret = False

    def fill(match: re.Match[str]) -> str:
        nonlocal secret
        name, fallback = match["name"], match["fallback"]
        if match["broken"] is not None:
            raise ValueError(f"{match[0]!r} is not a reference: write ${{NAME}}, or $${{ for a plain ${{")
        if name is None:
            return "${"
        value = environ.get(name)
        if fallback is not None and not value:
            return fallback[2:]
        if value is None:
            raise ValueError(
                f"the environment variable {name} is not set; set it, or give a default with ${{{name}:-default}}"
            )
        secret = secret or looks_secret(name)
        return value

    return _REFERENCE.sub(fill, text), secret


def looks_secret(name: str) -> bool:
    """Whether an environment variable of this name probably holds something that must not be shown."""
    return _SECRET_NAME.search(name) is not None
