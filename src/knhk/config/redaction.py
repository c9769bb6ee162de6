"""The configuration as it may be shown: every key, its value as text, where it came from, and no secret."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, SecretStr

from knhk.config import keys
from knhk.config.entries import Place
from knhk.config.loaded import Loaded
from knhk.config.scalars import looks_secret
from knhk.config.values import key_of
from knhk.domain.units import format_duration, format_size

MASK: Final = "********"
_PASSWORD_OF_URL: Final = re.compile(r"(?<=://)[^/@\s:]*:([^/@\s]*)@")
_SHORTEST: Final = 4
_LONG: Final = 8
_PASSWORD_IN_URL: Final = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@")


class Row(NamedTuple):
    """One key as `knhk config show` prints it."""

    key: str
    value: str
    source: str


def redacted(loaded: Loaded) -> list[Row]:
    """Every key with its effective value.

    Masked are secrets by type (`client_secret`, `service_key`, `webhook_url`), values that were filled in from a
    variable whose name looks like a secret's, and passwords in URLs. A secret that is not set shows as empty.
    """
    rows = []
    for name, key in keys.known().items():
        secrets = loaded.secrets.get(name, frozenset())
        value = written(key.value(loaded.config), key.shape.kind, secrets)
        rows.append(Row(name, value, loaded.sources[name]))
    return rows


def written(value: object, kind: str, secrets: frozenset[Place] = frozenset()) -> str:
    """A value as it would stand in the file, without its secrets. `secrets` are places in it, () the whole."""
    if () in secrets:
        return MASK
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if kind == "duration" and isinstance(value, int):
        return format_duration(value)
    if kind == "size" and isinstance(value, int):
        return format_size(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        items = (written(item, "", _inside(secrets, index)) for index, item in enumerate(value))
        return f"[{', '.join(items)}]"
    if isinstance(value, BaseModel):
        given = ((key_of(name), getattr(value, name)) for name in type(value).model_fields)
        parts = (f"{key}: {written(item, '', _inside(secrets, key))}" for key, item in given if item)
        return f"{{{', '.join(parts)}}}"
    if value is None:
        return ""
    return _PASSWORD_IN_URL.sub(rf"\1:{MASK}@", str(value)) if not isinstance(value, Path) else str(value)


def _inside(secrets: frozenset[Place], step: str | int) -> frozenset[Place]:
    return frozenset(place[1:] for place in secrets if place and place[0] == step)


def secrets_of(loaded: Loaded, environ: Mapping[str, str]) -> frozenset[str]:
    """Every secret that is known here, to be looked for in what leaves the machine.

    Those of the configuration, passwords in its URLs, and the values of variables whose names look like a secret's,
    each also in its parts: what stands behind the host of a URL, and the values in `name=value,name=value`. Shorter
    ones than 4 characters are left out: they are in every text.
    """
    found: set[str] = set()
    for name, key in keys.known().items():
        _collect(key.value(loaded.config), loaded.secrets.get(name, frozenset()), found)
    for name, value in environ.items():
        if looks_secret(name) and not value.startswith("/"):  # the path of a key is none
            found.add(value)
        found.update(_passwords(value))
    parts = {part for one in found for part in (_behind_host(one), *_passwords(one), *_values(one))}
    return frozenset(one for one in found | parts if len(one) >= _SHORTEST)


def _collect(value: object, secrets: frozenset[Place], found: set[str]) -> None:
    """Take the secrets that are in a value. `secrets` are places in it, () the whole."""
    if isinstance(value, SecretStr):
        found.add(value.get_secret_value())
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            _collect(item, _inside(secrets, index), found)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _collect(getattr(value, name), _inside(secrets, key_of(name)), found)
    elif isinstance(value, str):
        if () in secrets:
            found.add(value)
        found.update(_passwords(value))


def _passwords(text: str) -> set[str]:
    return {match[1] for match in _PASSWORD_OF_URL.finditer(text)}


def _values(text: str) -> list[str]:
    """What stands behind the equals signs of `name=value,name=value`."""
    return [value for part in text.split(",") if (value := part.partition("=")[2].strip()) and len(value) >= _LONG]


def _behind_host(text: str) -> str:
    _, scheme, rest = text.partition("://")
    return rest.partition("/")[2] if scheme else ""
