"""Writes the tables of docs/configuration.md from the model: `python -m knhk.config.reference FILE`."""

import sys
from pathlib import Path
from typing import Final

from pydantic_core import PydanticUndefined

from knhk.config import keys
from knhk.config.absent import has_effect
from knhk.config.keys import Key
from knhk.config.model import Config
from knhk.config.redaction import written

BEGIN: Final = "<!-- The tables below are written by `python -m knhk.config.reference docs/configuration.md`. -->"
_INERT: Final = " *Without effect in this version.*"


def reference() -> str:
    """A table for every section: its keys, their types, defaults, environment variables and meaning."""
    sections: dict[str, list[Key]] = {}
    for key in keys.known().values():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    return "\n".join(_section(name, members) for name, members in sections.items())


def written_page(page: str) -> str:
    """The page with its tables brought up to date."""
    return f"{page.partition(BEGIN)[0]}{BEGIN}\n\n{reference()}"


def _section(name: str, members: list[Key]) -> str:
    lines = [f"### `{name}`", "", _about(name), ""]
    lines += ["| Key | Type | Default | Environment | Meaning |", "|---|---|---|---|---|"]
    lines += [_row(key) for key in members]
    return "\n".join([*lines, ""])


def _about(name: str) -> str:
    model = keys.model_at(Config, name)
    text = (model.__doc__ or "").strip().partition("\n")[0]
    if name in keys.INCLUDES:
        text += f" `{name}` may also be the path of a YAML file with these keys (`{keys.variable_for(name)}`)."
    return text + (" **This version reads and checks this section but does not act on it.**" if _is_inert(name) else "")


def _is_inert(section: str) -> bool:
    return not any(has_effect(name) for name in keys.known() if name.startswith(f"{section}."))


def _row(key: Key) -> str:
    shape = key.shape
    choices = ", ".join(f"`{choice}`" for choice in shape.choices)
    kind = choices if choices and shape.item is None else f"{shape.kind}: {choices}" if choices else shape.kind
    variables = ", ".join(f"`{variable}`" for variable in key.variables)
    section, _, name = key.name.rpartition(".")
    meaning = (key.field.description or "") + ("" if has_effect(key.name) or _is_inert(section) else _INERT)
    return f"| `{name}` | {kind} | {_default(key)} | {variables} | {meaning} |"


def _default(key: Key) -> str:
    extra = key.field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return str(extra["default"])
    default = key.field.default
    text = "" if default is PydanticUndefined else written(default, key.shape.kind)
    return f"`{text}`" if text else "none"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        target = Path(argument)
        target.write_text(written_page(target.read_text(encoding="utf-8")), encoding="utf-8")
