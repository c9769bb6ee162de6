"""`knhk cluster`: who is there, who owns what; drain a node, let all take part again. Any node will do."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from knhk.cli.options import SERVER, OutputOption, ServerOption
from knhk.cli.output import Output, emit, note, print_fields, print_table
from knhk.cli.workflow import connect

app = typer.Typer(name="cluster", help="Several nodes as one.", no_args_is_help=True, rich_markup_mode=None)

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's name: its platform.node_id.")]
_NODE = ("node_id", "role", "state", "answers", "partitions", "api", "version", "started_at")
_PARTITION = ("partition", "owner", "epoch", "wanted", "active", "lag_blocks")


@app.command()
def status(
    partitions: Annotated[bool, typer.Option("--partitions", help="Also every partition.")] = False,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Nodes, roles, partitions, etcd, as the node that is asked knows them.

    While etcd does not answer, what was read last is shown, and what is not known.
    """
    with connect(server) as client:
        shown = client.request("GET", "/cluster")
    emit(shown, output, lambda: _table(shown, partitions))


def _table(shown: dict[str, Any], partitions: bool) -> None:
    print_table(_NODE, [[row[name] for name in _NODE] for row in shown["nodes"]])
    if partitions:
        print_table(_PARTITION, [[row[name] for name in _PARTITION] for row in shown["partitions"]])
    fields = ("known", "leader", "unowned", "moving", "lease_left_s", "age_s", "trouble")
    print_fields([(name, shown[name] if shown[name] != "" else None) for name in fields])
    for member in shown["etcd"]:
        note(f"etcd {member['endpoint']}: {member['trouble'] or member['role']}")
    for what in shown["unknown"]:
        note(f"not known: {what}")


@app.command()
def drain(
    node: NodeArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take its share again.")] = False,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move all partitions of a node to the others; it stays a member, and answers."""
    with connect(server) as client:
        shown = client.request("POST", f"/cluster/nodes/{quote(node, safe='')}/{'undrain' if undo else 'drain'}")
    emit(shown, output, lambda: print_fields(shown.items()))


@app.command()
def rebalance(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """End all drains: each live node takes its share. Says how many partitions will move."""
    with connect(server) as client:
        shown = client.request("POST", "/cluster/rebalance")
    emit(shown, output, lambda: print_fields(shown.items()))
