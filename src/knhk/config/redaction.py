"""The configuration as it may be shown: every key, its value as text, where it came from, and no secret."""

import re
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, SecretStr

from knhk.config import keys
from knhk.config.entries import Place
from knhk.config.loaded import Loaded
from knhk.config.values import key_of
from knhk.domain.units import format_duration, format_size

MASK: Final = "********"
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
