"""`knhk actions`: which actions there are, what each promises and takes. Needs no server."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli.options import ConfigOption, OutputOption, load_config
from knhk.cli.output import Output, emit, print_fields, print_table

if TYPE_CHECKING:
    from knhk.actions.registry import Registry

app = typer.Typer(
    name="actions",
    help="The actions that steps may name, as the configuration allows them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _registry(context: typer.Context, config: Any) -> "Registry":
    from knhk.actions.catalogue import catalogue

    return catalogue(load_config(config, context=context).config.actions)


@app.command("list")
def list_(context: typer.Context, config: ConfigOption = None, output: OutputOption = Output.TABLE) -> None:
    """All actions with what each guarantees."""
    from knhk.actions.listing import listed

    found = listed(_registry(context, config))
    columns = ("name", "guarantee", "allowed", "pure", "about")
    rows = [[one[column] for column in columns] for one in found]
    emit({"actions": found}, output, lambda: print_table(columns, rows, folds=("about",)))


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The action, such as http.")],
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """One action: its guarantee, and the schemas of its params and its output."""
    from knhk.actions.listing import described

    found = described(_registry(context, config), name)
    emit(found, output, lambda: print_fields(found.items()))
