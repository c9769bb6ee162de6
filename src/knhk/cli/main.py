"""The command `knhk`: puts the commands together and turns errors into messages and exit codes."""

from typing import Any

import typer
from typer.core import TyperGroup

from knhk.cli import (
    actions,
    alerts,
    archive,
    backup,
    blob,
    cluster,
    debug,
    definition,
    diagnostics,
    erase,
    exit_codes,
    keys,
    logs,
    profile,
    receipts,
    recover,
    retention,
    run,
    scaling,
    server,
    signals,
    support,
    testing,
    time_machine,
    top,
    trace,
    verify,
    worker,
    workflow,
)
from knhk.cli.options import ConfigOption
from knhk.cli.output import print_error
from knhk.domain.errors import KnhkError


class Root(TyperGroup):
    """The outermost group: whatever command raises a KnhkError, its message and exit code are made here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KnhkError as error:
            print_error(error)
            raise typer.Exit(exit_codes.of(error)) from error
        except BrokenPipeError:
            _leave_quietly()
            raise typer.Exit(exit_codes.OK) from None


app = typer.Typer(
    name="knhk",
    cls=Root,
    help="Durable workflow orchestration: every step survives a crash and can be proved afterwards.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in exit_codes.MEANINGS.items()) + ".",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich takes longer to import than all the rest of `knhk --help`
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def root(context: typer.Context, config: ConfigOption = None) -> None:
    """Durable workflow orchestration: every step survives a crash and can be proved afterwards.

    Without a command, the server is started.
    """
    if context.invoked_subcommand is None:
        server.start(config)


app.command("serve")(server.serve)
app.command("run")(run.run)
app.command("worker")(worker.worker)
app.command("init")(server.init)
workflow.app.command("test")(testing.run_cases)
app.add_typer(workflow.app)
app.add_typer(definition.app)
app.add_typer(cluster.app)
app.add_typer(scaling.app)
app.add_typer(signals.app)
assert time_machine  # it adds its commands to those of `workflow`
app.add_typer(receipts.app)
app.add_typer(erase.app)
app.add_typer(keys.app)
app.add_typer(retention.app)
app.add_typer(archive.app)
app.add_typer(logs.app)
app.add_typer(alerts.app)
app.add_typer(alerts.sla_app)
app.add_typer(actions.app)
app.add_typer(blob.app)
app.add_typer(diagnostics.app)
app.add_typer(trace.app)
app.add_typer(profile.app)
app.add_typer(debug.app)
app.add_typer(support.app)
app.command("top")(top.top)
app.command("verify")(verify.verify)
app.add_typer(recover.app)
app.add_typer(backup.app)
app.add_typer(server.config_app)
app.command("schema")(server.schema)
app.command("version")(server.version)


def main() -> None:
    """The entry point of the script `knhk` and of `python -m knhk`."""
    import sys

    sys.path.append("")  # modules of actions in the working directory; last, so that they hide nothing
    app(prog_name="knhk")


def _leave_quietly() -> None:
    """Whoever read our output has gone, as `head` does; the interpreter must not complain about it at its end."""
    import os
    import sys

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
