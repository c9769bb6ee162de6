"""The kinds of values in the configuration, and the base of its sections.

A key of the file is the attribute's name without its unit: `workflow_timeout: 300s` becomes `workflow_timeout_ns`.
In code a section may be built with either name, and a duration or size may be given as text or as a number.
"""

from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from pydantic import AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field

from knhk.domain.units import parse_duration_ns, parse_size_bytes


class Unit(NamedTuple):
    """Marks a field whose number is written as text with a unit."""

    name: str


def _duration(value: object) -> object:
    return parse_duration_ns(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return parse_size_bytes(value) if isinstance(value, str) else value


def _location(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("a path cannot be empty")  # Path("") is the working directory, which nobody means
    return Path(value).expanduser()


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Duration = Annotated[int, BeforeValidator(_duration), Unit("duration")]
"""Nanoseconds, written `300s` or `1h30m`."""
Size = Annotated[int, BeforeValidator(_size), Unit("size")]
"""Bytes, written `64MB`."""
Location = Annotated[Path, BeforeValidator(_location)]
"""A path; `~` stands for the home directory."""
CaseBlind = BeforeValidator(_lower)
"""For a word from a list that may be written in capitals too."""
Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 takes any free one."""


def key_of(attribute: str) -> str:
    """The key in the file that belongs to an attribute: its name without the unit."""
    return attribute.removesuffix("_ns").removesuffix("_bytes")


class Section(BaseModel):
    """Base of every section: frozen, strict (true is not 1, "5" is not 5) and closed (no unknown key)."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        alias_generator=AliasGenerator(validation_alias=key_of),
        # A rejected value may be a secret; the loader decides what may be shown.
        hide_input_in_errors=True,
        # Only what is loaded is built, which keeps `knhk --help` quick.
        defer_build=True,
    )
