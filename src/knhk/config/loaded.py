"""What loading gives: the configuration and where each value came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from knhk.config.entries import Place
from knhk.config.model import Config


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and its story; `path` is the file that was read, if any.

    `sources` has every dotted key: "default", "file:/etc/knhk/config.yaml:12", "env:KNHK_METRICS_PORT" or "command
    line". `warnings` are sentences for the log. `secrets` are the places, by key, that a secret variable was filled
    into.
    """

    config: Config
    sources: Mapping[str, str]
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    secrets: Mapping[str, frozenset[Place]] = field(default_factory=dict)
