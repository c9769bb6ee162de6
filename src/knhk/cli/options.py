"""The options that several commands take, and the configuration that they lead to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli.output import Output

if TYPE_CHECKING:
    from knhk.config import Loaded

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the answer on stdout.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file; by default KNHK_CONFIG, then /etc/knhk/config.yaml."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data directory; by default the persistence.path of the configuration.")
]
ServerOption = Annotated[str, typer.Option("--server", envvar="KNHK_SERVER", help="URL of the server's API.")]
OperationsOption = Annotated[
    str, typer.Option("--operations", envvar="KNHK_OPERATIONS", help="URL of the server's operations port.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Workflow id, such as wf-1234567890.")]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="NAME=VALUE", help="An input; the value is JSON, or else text. Repeatable."),
]
InputsOption = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE", help="A YAML or JSON file with the inputs.")
]
PublicKeyOption = Annotated[
    list[Path] | None,
    typer.Option("--public-key", metavar="PEM", help="Trust only this key, not the journal's own list. Repeatable."),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the receipt.")]
SERVER = "http://127.0.0.1:8080"
OPERATIONS = "http://127.0.0.1:9090"


def load_config(config: Path | None, *, context: typer.Context | None = None, data: Path | None = None) -> "Loaded":
    """The configuration: of this command's --config, or else of the one before the command's name.

    Raises InvalidConfiguration.
    """
    from knhk.config import load

    # A directory that is named on the command line is meant, whatever database the configuration names.
    overrides: dict[str, Any] = (
        {} if data is None else {"persistence.path": str(data.absolute()), "persistence.url": ""}
    )
    return load(config or given_before(context), os.environ, overrides)


def given_before(context: typer.Context | None) -> Path | None:
    """The --config that stands before the command's name, as in `knhk --config FILE verify`."""
    found = None if context is None else context.find_root().params.get("config")
    return found if isinstance(found, Path) else None
