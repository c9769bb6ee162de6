"""`knhk support bundle`: everything that somebody who helps needs, in one archive, without a secret."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli.options import OPERATIONS, ConfigOption, OperationsOption, load_config
from knhk.cli.output import note
from knhk.domain.errors import KnhkError

if TYPE_CHECKING:
    import httpx

    from knhk.config import Loaded
    from knhk.diagnostics.bundle import Missing, Part

app = typer.Typer(name="support", help="Get help.", no_args_is_help=True, rich_markup_mode=None)
_PROBE_S: Final = 3.0
_ANSWER_S: Final = 20.0
_DUMP_S: Final = 3.0
_LOG_TAIL_BYTES: Final = 8 << 20
_HERE: Final = "this machine"
_SERVER: Final = "the server"
_ROUTES: Final = (
    ("health.json", "GET", "/health/detailed"),
    ("resources.json", "GET", "/debug/resources"),
    ("tasks.json", "GET", "/debug/tasks"),
    ("metrics.txt", "GET", "/metrics"),
    ("config.json", "GET", "/debug/config"),
    ("heap.json", "POST", "/debug/heap"),
    ("log.txt", "GET", "/debug/logs?limit=2000"),
)


@app.callback()
def root() -> None:
    """Get help."""


@app.command()
def bundle(
    context: typer.Context,
    path: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The archive to write.")] = Path(
        "knhk-support.tar.gz"
    ),
    max_size: Annotated[str, typer.Option("--max-size", help="Most that it may hold, before compression.")] = "64MB",
    config: ConfigOption = None,
    operations: OperationsOption = OPERATIONS,
) -> None:
    """Collect what is needed to find a fault, from the running server and from this machine.

    System, configuration, logs, metrics, heap, threads and tasks. Secrets are masked, inputs and outputs of workflows
    are not in it. Works too when the server is wedged or down, with what can be had then; the manifest says what is
    missing.
    """
    from knhk.cli.bars import size
    from knhk.config import secrets_of
    from knhk.diagnostics import bundle as bundles
    from knhk.diagnostics.scrubbing import Scrubber
    from knhk.domain.units import parse_size_bytes

    gathered = _Gathered()
    loaded = _configuration(context, config, gathered)
    secrets = secrets_of(loaded, os.environ) if loaded is not None else frozenset()
    running = _server_file(loaded, gathered)
    url = running.get("operations", operations) if operations == OPERATIONS else operations
    state = _ask_server(url, gathered, running)
    _ask_machine(loaded, gathered)
    about = {"made_at_unix": time.time(), "knhk": _version(), "server": url, "server_state": state}
    manifest = bundles.write(
        path,
        gathered.parts,
        gathered.missing,
        about,
        scrub=Scrubber(secrets),
        most_bytes=parse_size_bytes(max_size),
        at_s=time.time(),
    )
    for one in manifest["missing"]:
        note(f"Missing: {one['name']}: {one['reason']}")
    note(f"The server {state}.")
    typer.echo(f"{path}: {len(manifest['files'])} files, {size(path.stat().st_size)}")


class _Gathered:
    """The parts so far, and what could not be had."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.missing: list[Missing] = []

    def add(self, name: str, source: str, make: Callable[[], Any], *, tail: bool = False) -> None:
        """A part of what `make` returns: text as it is, else JSON. If that fails, it is missing for that reason."""
        from knhk.diagnostics.bundle import Missing, Part, as_json

        try:
            value = make()
            part = Part(name, value, source, tail) if isinstance(value, str) else as_json(name, value, source)
        except Exception as error:  # whatever it is, the other parts are worth having
            reason = error.message if isinstance(error, KnhkError) else f"{type(error).__name__}: {error}"
            self.missing.append(Missing(name, reason))
        else:
            self.parts.append(part)


def _configuration(context: typer.Context, config: Path | None, gathered: _Gathered) -> "Loaded | None":
    """The configuration as this command sees it; without one, the bundle is made all the same."""
    from knhk.config import redacted

    loaded: list[Loaded] = []

    def shown() -> Any:
        loaded.append(load_config(config, context=context))
        return [row._asdict() for row in redacted(loaded[0])]

    gathered.add("local-config.json", _HERE, shown)
    return loaded[0] if loaded else None


def _server_file(loaded: "Loaded | None", gathered: _Gathered) -> dict[str, Any]:
    """How to find the running process, as it has left word in the diagnostics directory."""
    import msgspec

    from knhk.diagnostics.flight_recorder import SERVER_FILE

    if loaded is None:
        return {}
    try:
        raw = (loaded.config.diagnostics.path / SERVER_FILE).read_bytes()
        found: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return {}
    gathered.add(SERVER_FILE, _HERE, lambda: found)
    return found


def _ask_server(url: str, gathered: _Gathered, running: dict[str, Any]) -> str:
    """What the server tells of itself; if it does not, what can be seen of it. Returns how it was found."""
    import httpx

    with httpx.Client(base_url=url, timeout=_ANSWER_S, trust_env=False) as http:
        try:
            http.get("/health", timeout=_PROBE_S)
        except httpx.HTTPError as error:
            alive = _is_alive(running)
            if alive:
                _look_at_process(running["pid"], gathered)
            return f"does not answer ({error or type(error).__name__}); its process {'is there' if alive else 'is not'}"
        for name, method, path in _ROUTES:
            gathered.add(name, _SERVER, partial(_answer, http, method, path), tail=name == "log.txt")
    return "answers"


def _answer(http: "httpx.Client", method: str, path: str) -> Any:
    response = http.request(method, path)
    if response.is_error and not path.startswith("/health"):
        response.raise_for_status()
    if path == "/metrics":
        return response.text
    found = response.json()
    return "\n".join(found["lines"]) if "lines" in found else found


def _is_alive(running: dict[str, Any]) -> bool:
    """Whether the process of the server file is still the one that wrote it."""
    import psutil

    try:
        started = psutil.Process(running["pid"]).create_time()
    except (KeyError, psutil.Error):
        return False
    return abs(started - float(running.get("process_started", 0))) < 1


def _look_at_process(pid: int, gathered: _Gathered) -> None:
    """From outside: what the kernel says, a dump of the stacks by signal, and py-spy's view if that is installed."""
    from knhk.diagnostics import machine
    from knhk.diagnostics.watchdog import DUMP_SIGNAL

    gathered.add("process.json", _HERE, lambda: machine.process(pid))

    def signalled() -> str:
        os.kill(pid, DUMP_SIGNAL)
        time.sleep(_DUMP_S)
        return "asked for a dump of the stacks: see stuck.txt"

    gathered.add("stacks-asked-for.txt", _HERE, signalled)
    gathered.add("py-spy.txt", _HERE, lambda: _py_spy(pid))


def _py_spy(pid: int) -> str:
    import shutil
    import subprocess

    found = shutil.which("py-spy")
    if found is None:
        raise FileNotFoundError("py-spy is not installed")
    done = subprocess.run([found, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


def _ask_machine(loaded: "Loaded | None", gathered: _Gathered) -> None:
    """What lies on this machine: the system, the flight recorder, the store's own log and its files."""
    from knhk.diagnostics import machine
    from knhk.diagnostics.flight_recorder import LOG_FILE, OLDER_LOG_FILE
    from knhk.diagnostics.watchdog import STUCK_FILE

    if loaded is None:
        gathered.add("system.json", _HERE, lambda: machine.describe([Path.cwd()]))
        return
    data, directory = loaded.config.persistence.path, loaded.config.diagnostics.path
    gathered.add("system.json", _HERE, lambda: machine.describe([data, directory]))
    for name in (STUCK_FILE, LOG_FILE, OLDER_LOG_FILE):
        if (directory / name).exists():
            gathered.add(name, _HERE, partial(_tail, directory / name), tail=True)
    gathered.add("store/files.txt", _HERE, lambda: _files(data))
    if (data / "LOG").exists():
        gathered.add("store/LOG", _HERE, lambda: _tail(data / "LOG"), tail=True)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _files(directory: Path) -> str:
    rows = [(one.stat(), one.relative_to(directory)) for one in sorted(directory.rglob("*")) if one.is_file()]
    return "".join(f"{stat.st_size:>14}  {stat.st_mtime:.0f}  {name}\n" for stat, name in rows)


def _version() -> str:
    import knhk

    return knhk.__version__
