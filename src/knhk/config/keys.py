"""Every key there is: its dotted name, its environment variables, and what may stand there. Derived from the model."""

import types
import typing
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from knhk.config.model import Config
from knhk.config.values import Unit, key_of

SHORT_VARIABLES: Final = {
    "KNHK_NODE_ID": "platform.node_id",
    "KNHK_LOG_LEVEL": "platform.log_level",
    "KNHK_TELEMETRY_ENDPOINT": "observability.endpoint",
    "KNHK_METRICS_PORT": "observability.metrics_port",
    "KNHK_SLA_TARGET": "monitoring.sla_target",
    "KNHK_MIN_REPLICAS": "scaling.min_replicas",
    "KNHK_MAX_REPLICAS": "scaling.max_replicas",
}
"""Variables that do not follow the rule KNHK_<SECTION>_<KEY>; the rule's own name works for these keys too."""

INCLUDES: Final = frozenset({"persistence.rocksdb"})
"""Sections that may also be given as the path of a file that holds them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand at one place of the configuration. `fields` are those of a mapping, `item` that of a list."""

    kind: str
    """What the documentation calls it: `duration`, `whole number`, `true or false`, ..."""
    text: bool = False
    """Whether a scalar is taken as it is written, instead of read as a number or a truth value."""
    optional: bool = False
    secret: bool = False
    fields: Mapping[str, "Shape"] | None = None
    item: "Shape | None" = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """One key: `attributes` leads from the Config to its value; the first of `variables` is the one to advertise."""

    name: str
    shape: Shape
    field: FieldInfo
    attributes: tuple[str, ...]
    variables: tuple[str, ...]

    def value(self, config: Config) -> Any:
        """This key's value in a configuration."""
        found: Any = config
        for attribute in self.attributes:
            found = getattr(found, attribute)
        return found


@cache
def root() -> Shape:
    """The shape of the whole file."""
    return _shape_of(Config, ())


@cache
def known() -> Mapping[str, Key]:
    """Every key by its dotted name, in the order of the documentation."""
    return {key.name: key for key in _walk(Config, root(), "", ())}


@cache
def variables() -> Mapping[str, str]:
    """The dotted name that each environment variable sets: a key, or a section that may be a file's path."""
    rule = {variable_for(name): name for name in (*known(), *INCLUDES)}
    return {**rule, **SHORT_VARIABLES}


def variable_for(name: str) -> str:
    """The environment variable that the rule gives a key: `KNHK_PERSISTENCE_MIN_FREE` for `persistence.min_free`."""
    return "KNHK_" + name.upper().replace(".", "_")


def advertised(name: str, given: Container[str]) -> str:
    """The one of a key's variables that sets it: of those that are given, the shortest spelling."""
    spellings = known()[name].variables if name in known() else (variable_for(name),)
    return next((variable for variable in spellings if variable in given), "")


def nearest(word: str, among: Iterable[str], cutoff: float = 0.6) -> str:
    """The valid word that was probably meant, or nothing."""
    return next(iter(get_close_matches(word, list(among), n=1, cutoff=cutoff)), "")


def suggestion(section: str, key: str, shape: Shape) -> str:
    """What was probably meant by an unknown key of a section: a sibling, or a key of that name in another section."""
    prefix = f"{section}." if section else ""
    if near := nearest(key, shape.fields or {}):
        return prefix + near
    return next((name for name in known() if name.rpartition(".")[2] == key), "")


def model_at(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The model of the section with a dotted name."""
    for part in name.split("."):
        model = _model_in(model.model_fields[part].annotation)
    return model


def _walk(model: type[BaseModel], shape: Shape, prefix: str, above: tuple[str, ...]) -> Iterator[Key]:
    for attribute, field in model.model_fields.items():
        name = prefix + key_of(attribute)
        inner = (shape.fields or {})[key_of(attribute)]
        if inner.fields is not None:
            yield from _walk(_model_in(field.annotation), inner, f"{name}.", (*above, attribute))
        else:
            short = tuple(variable for variable, target in SHORT_VARIABLES.items() if target == name)
            yield Key(name, inner, field, (*above, attribute), (*short, variable_for(name)))


def _shape_of(annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    """The shape that a field's type allows. Only the types that the model uses are known."""
    alternatives, optional = _alternatives(annotation)
    (only,) = alternatives
    unit = next((mark.name for mark in metadata if isinstance(mark, Unit)), "")
    if isinstance(only, type) and issubclass(only, BaseModel):
        fields = {
            key_of(name): _shape_of(field.annotation, tuple(field.metadata))
            for name, field in only.model_fields.items()
        }
        return Shape("mapping", fields=fields, optional=optional)
    if typing.get_origin(only) is tuple:
        item = _shape_of(typing.get_args(only)[0], ())
        return Shape(f"list of {item.kind}s", item=item, optional=optional, choices=item.choices)
    if typing.get_origin(only) is Literal:
        return Shape("word", text=True, optional=optional, choices=typing.get_args(only))
    if unit:
        return Shape(unit, text=True, optional=optional)
    kinds = {bool: "true or false", int: "whole number", float: "number", Path: "path"}
    return Shape(kinds.get(only, "text"), only in (str, SecretStr, Path), optional, only is SecretStr)


def _alternatives(annotation: Any) -> tuple[list[Any], bool]:
    """The types of a union but None, without what annotates them, and whether None was among them."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    bare = [typing.get_args(part)[0] if typing.get_origin(part) is Annotated else part for part in parts]
    kept = [part for part in bare if part is not types.NoneType]
    return kept, len(kept) < len(bare)


def _model_in(annotation: Any) -> type[BaseModel]:
    (model,), _ = _alternatives(annotation)
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model
