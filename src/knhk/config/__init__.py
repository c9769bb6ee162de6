"""The configuration: one frozen section for each room, read from YAML, the environment and the command line.

`load` gives a `Loaded`: the `Config`, and for every key where its value came from. Reads the configuration file and
the files that it names; writes nothing. Invariant: what `load` returns is complete, valid, and never changes.
"""

from knhk.config.absent import absent_sections
from knhk.config.actions_section import Actions, PythonOptions, ShellOptions, SqlOptions
from knhk.config.loaded import Loaded
from knhk.config.loading import DEFAULT_FILE, load
from knhk.config.model import Config
from knhk.config.recovery_section import Recovery
from knhk.config.redaction import Row, redacted, secrets_of
from knhk.config.sections import Api, Observability, Persistence, Platform, RocksDbOptions

__all__ = [
    "DEFAULT_FILE",
    "Actions",
    "Api",
    "Config",
    "Loaded",
    "Observability",
    "Persistence",
    "Platform",
    "PythonOptions",
    "Recovery",
    "RocksDbOptions",
    "Row",
    "ShellOptions",
    "SqlOptions",
    "absent_sections",
    "load",
    "redacted",
    "secrets_of",
]
