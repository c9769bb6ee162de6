"""Bytes as JSON has them: text where they are text, base64 where they are not."""

import base64
from typing import Any


def text_of(raw: bytes, name: str) -> dict[str, Any]:
    """The field `name`, and if the bytes are not UTF-8 another one, `<name>_encoding: base64`."""
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        return {name: base64.b64encode(raw).decode("ascii"), f"{name}_encoding": "base64"}
