"""Loads the configuration: command line over environment over file over defaults, and where each value came from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from knhk.config import complaints, document, keys, outside
from knhk.config.entries import Entry, Layer, Origin
from knhk.config.keys import Shape
from knhk.config.loaded import Loaded
from knhk.config.model import Config
from knhk.config.sections import data_path
from knhk.domain.errors import InvalidConfiguration

DEFAULT_FILE: Final = Path("/etc/knhk/config.yaml")
_DEFAULT: Final = Origin("default")


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    *,
    default_path: Path = DEFAULT_FILE,
) -> Loaded:
    """Load the configuration from a file, `environ` and `overrides` (dotted keys; None means not given).

    Without a path the file is the one that KNHK_CONFIG names, else `default_path` if it exists, else none. Raises
    InvalidConfiguration with every problem at once: a file that cannot be read, unknown keys, bad values, variables
    that are not set.
    """
    file = _file(path, environ, default_path)
    layer = Layer()
    if file is not None:
        layer.absorb(document.read_file(file, environ, main=True))
    layer.absorb(outside.read_environment(environ))
    layer.absorb(outside.read_overrides(overrides, environ))
    # Not left to the model, whose default would come from the environment of this process instead of `environ`.
    layer.entries.setdefault("persistence.path", Entry(str(data_path(environ)), _DEFAULT))
    config = _validated(layer)
    if layer.problems or config is None:
        raise _error(layer, file)
    sources = {name: layer.entries[name].origin.label if name in layer.entries else "default" for name in keys.known()}
    secrets = {name: entry.secrets for name, entry in layer.entries.items() if entry.secrets}
    return Loaded(config, sources, file, tuple(layer.warnings), secrets)


def _file(path: Path | None, environ: Mapping[str, str], default_path: Path) -> Path | None:
    if path is not None:
        return path
    if named := environ.get(outside.FILE_VARIABLE):
        return Path(named).expanduser()
    return default_path if default_path.exists() else None


def _validated(layer: Layer) -> Config | None:
    """The model of the entries, or None with what is wrong among the layer's problems."""
    # Every section is there, if empty: a section's own validator, which its default would need, is never built.
    tree = _sections(keys.root())
    for name, entry in layer.entries.items():
        *sections, key = name.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = entry.value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            # Follows from another error: a default that builds on a value which is wrong.
            if detail["type"] != "default_factory_not_called":
                complaints.complain(detail, layer.entries, layer)
        return None


def _sections(shape: Shape) -> dict[str, Any]:
    """The sections inside of one, all empty."""
    return {name: _sections(inner) for name, inner in (shape.fields or {}).items() if inner.fields is not None}


def _error(layer: Layer, file: Path | None) -> InvalidConfiguration:
    problems = sorted(layer.problems, key=lambda problem: (problem.line == 0, problem.line, problem.path))
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    where = f" in {file}" if file and any(problem.line for problem in problems) else ""
    return InvalidConfiguration(f"{count}{where}", problems=problems)
