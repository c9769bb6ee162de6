"""Reads what stands outside of the file: environment variables, and what the command line overrides."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from knhk.config import document, keys, scalars
from knhk.config.entries import Entry, Layer, Origin
from knhk.config.keys import Shape

SECRETS: Final = "KNHK_WEBHOOK_"
"""Variables that begin so are secrets of webhooks and no part of the configuration (docs/triggers.md)."""
FILE_VARIABLE: Final = "KNHK_CONFIG"
"""Names the configuration file when the command line does not."""

_OTHER_VARIABLES: Final = frozenset({FILE_VARIABLE, "KNHK_SERVER", "KNHK_OPERATIONS"})
"""Variables that other parts of KNHK read."""

_LINK_NAME: Final = re.compile(r"KNHK_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Read every KNHK_* variable. An empty one counts as not set, as Docker Compose passes variables that are not."""
    layer = Layer()
    variables = keys.variables()
    ours = {
        name: environ[name]
        for name in sorted(environ)
        if name.startswith("KNHK_") and not name.startswith(SECRETS) and environ[name]
    }
    links = {name for name, value in ours.items() if _is_service_link(name, value)}
    given = {name: value for name, value in ours.items() if name in variables and name not in links}
    for name in sorted(ours.keys() - given.keys() - links - _OTHER_VARIABLES):
        _unknown_variable(layer, name)
    for name in sorted(links & variables.keys()):
        layer.warnings.append(
            f"{name} is ignored: its value is a Kubernetes service link, not a setting; "
            "set `enableServiceLinks: false` in the pod to be rid of it"
        )
    # Sorted, so that a file named by KNHK_PERSISTENCE_ROCKSDB comes before KNHK_PERSISTENCE_ROCKSDB_COMPRESSION.
    for name, text in given.items():
        key, origin = variables[name], Origin(f"env:{name}", f"from {name}")
        rule = keys.variable_for(key)
        if key in keys.INCLUDES:
            layer.absorb(document.read_file(Path(text).expanduser(), environ, key))
        elif name != rule and given.get(rule, text) != text:
            layer.complain(f"{name} and {rule} contradict each other; set one of them", key, Origin(origin.label))
        elif name == keys.advertised(key, given):
            layer.absorb(_read(text, key, origin))
    return layer


def read_overrides(overrides: Mapping[str, object], environ: Mapping[str, str]) -> Layer:
    """Read values by dotted key: text as it would stand in the environment, or values. None means not given."""
    layer = Layer()
    origin = Origin("command line", "on the command line")
    for name, value in overrides.items():
        if value is None:
            continue
        if name in keys.INCLUDES:
            layer.absorb(document.read_file(Path(str(value)).expanduser(), environ, name))
        elif name in keys.known():
            layer.absorb(_read(value, name, origin))
        else:
            layer.complain("unknown key", name, origin, keys.nearest(name, keys.known()))
    return layer


def _read(value: object, key: str, origin: Origin) -> Layer:
    """One key's value from text or from a Python value."""
    shape = keys.known()[key].shape
    if isinstance(value, str) and shape.item is not None and value.lstrip().startswith("["):
        return document.read_value(value, key, origin)
    return Layer({key: Entry(_typed(value, shape), origin)})


def _typed(value: object, shape: Shape) -> Any:
    if isinstance(value, str) and shape.item is not None:
        words = (word.strip() for word in value.split(","))
        return tuple(_typed(word, shape.item) for word in words if word)
    if isinstance(value, str):
        return value if shape.text else scalars.resolve(value.strip())
    if isinstance(value, list):
        return tuple(value)
    # A number where text is wanted is read as text, so that 300 for a duration is refused here as in the file.
    return str(value) if shape.text and isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes put the variable there, as it does for each service called `knhk` or `knhk-...`.

    KNHK_METRICS_PORT is then both a setting and, as `tcp://10.0.0.1:9090`, the address of a service `knhk-metrics`.
    """
    if name.endswith("_PORT") and _LINK_VALUE.match(value):
        return True
    return name not in keys.variables() and _LINK_NAME.fullmatch(name) is not None


def _unknown_variable(layer: Layer, name: str) -> None:
    # A near miss is a setting that would silently not apply; anything else may belong to someone else.
    near = keys.nearest(name.removeprefix("KNHK_"), [known.removeprefix("KNHK_") for known in keys.variables()], 0.85)
    if near:
        layer.complain("unknown environment variable", name, Origin(f"env:{name}"), f"KNHK_{near}")
    else:
        layer.warnings.append(f"the environment variable {name} is not known and is ignored")
