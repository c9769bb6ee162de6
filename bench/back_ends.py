"""What the death of a back end costs, `python -m bench.back_ends`: throughput before and after, and failed runs.

One server has an OpenTelemetry collector (every run traced), a real Prometheus that scrapes it each second, and an
alert that goes to a webhook and a mail server. Each of them in turn is killed (SIGKILL) while runs come in; the stretch
that follows is compared with the one before, in which all of them live. So is a stretch in which nothing is killed:
how far those two are apart is the machine's noise.
"""

import argparse
import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import descriptors
from bench.results import Phase
from bench.server import Server
from bench.server_config import HOST, environment, free_ports
from bench.session import Session
from bench.settings import BenchFailure, Settings
from bench.verification import verify

_WARM_UP_S: Final = 1.5
_KILLED_AFTER_S: Final = 0.7
_START_LIMIT_S: Final = 60.0
_TOLD_LIMIT_S: Final = 60.0
_TOLD: Final = "knhk_alert_notifications_total{"


class Pair(NamedTuple):
    """A stretch with all back ends alive, and the one after in whose warm-up one was killed."""

    before: Phase
    after: Phase


class BackEnd:
    """A process that listens on a port, to be killed and started again there."""

    def __init__(self, name: str, port: int, *command: str) -> None:
        self.name, self._port, self._command = name, port, command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        null, ends = subprocess.DEVNULL, time.monotonic() + _START_LIMIT_S
        self._process = subprocess.Popen(self._command, stdin=null, stdout=null, stderr=null, env=environment())
        while True:
            try:
                socket.create_connection((HOST, self._port), timeout=5).close()
                return
            except ConnectionError:
                if time.monotonic() > ends or self._process.poll() is not None:
                    raise BenchFailure(f"the {self.name} did not start") from None
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; what was connected to it is cut off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


def measure(rounds: int, seconds: float, directory: Path, remarks: Console) -> dict[str, list[Pair]]:
    """So many pairs for each back end, and for none. Raises BenchFailure if a run failed or a receipt is missing."""
    home = Path(tempfile.mkdtemp(prefix="knhk-bench-back-ends-", dir=directory))
    grpc, hook = free_ports().api, free_ports().api
    mail, scraper = free_ports().api, free_ports().api
    settings = Settings(
        directory=directory, seconds=seconds, warmup_s=_WARM_UP_S, base_config=_config(home, grpc, hook, mail)
    )
    try:
        with Server(settings, home) as server, contextlib.ExitStack() as stack:
            back_ends = list(_back_ends(home, server, grpc=grpc, hook=hook, mail=mail, scraper=scraper))
            for one in back_ends:
                stack.callback(one.kill)
                one.start()
            server.start()
            session = Session(settings, server)
            results = _pairs(rounds, session, back_ends, lambda: _until_told(server), remarks)
            if session.problems:
                raise BenchFailure("\n".join(session.problems))
            server.stop()
        verify(settings, server.config_file, server.data, runs=session.accepted)
        return results
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _pairs(
    rounds: int, session: Session, back_ends: Sequence[BackEnd], told: Callable[[], None], remarks: Console
) -> dict[str, list[Pair]]:
    results: dict[str, list[Pair]] = {}
    session.load(descriptors.two(), wait=True)  # what is loaded late is loaded now, and an alert begins
    told()
    turns = [(victim, number) for number in range(rounds) for victim in (None, *back_ends)]
    for victim, _ in track(turns, "back ends die", console=remarks, transient=True):
        before = session.load(descriptors.two(), wait=True)
        killer = threading.Timer(_KILLED_AFTER_S, victim.kill if victim else lambda: None)
        killer.start()
        after = session.load(descriptors.two(), wait=True)
        killer.join()
        results.setdefault(victim.name if victim else "nothing", []).append(Pair(before, after))
        if victim is not None:
            victim.start()
    return results


def _until_told(server: Server) -> None:
    """Wait until both channels have taken an alert: what nobody uses costs nothing when it dies."""
    url, ends = f"http://{HOST}:{server.ports.operations}/metrics", time.monotonic() + _TOLD_LIMIT_S
    while True:
        lines = httpx.get(url, timeout=30).text.splitlines()
        told = [one for one in lines if one.startswith(_TOLD) and 'result="told"' in one and not one.endswith(" 0.0")]
        if len(told) >= 2:
            return
        if time.monotonic() > ends:
            raise BenchFailure("no alert was told")
        time.sleep(0.5)


def _back_ends(home: Path, server: Server, *, grpc: int, hook: int, mail: int, scraper: int) -> Iterator[BackEnd]:
    """The collector's second port takes what the webhook gets in another process of it."""
    collector = (sys.executable, "-m", "bench.collector")
    yield BackEnd("collector", grpc, *collector, str(grpc), "0")
    yield BackEnd("webhook", hook, *collector, "0", str(hook))
    sink = ("-n", "-l", f"{HOST}:{mail}", "-c", "aiosmtpd.handlers.Sink")
    yield BackEnd("mail server", mail, sys.executable, "-m", "aiosmtpd", *sink)
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        return
    target = {"job_name": "knhk", "static_configs": [{"targets": [f"{HOST}:{server.ports.operations}"]}]}
    config = home / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [target]}))
    flags = (f"--config.file={config}", f"--storage.tsdb.path={home / 'prometheus'}")
    yield BackEnd("Prometheus", scraper, prometheus, *flags, f"--web.listen-address={HOST}:{scraper}")


def _config(home: Path, grpc: int, hook: int, mail: int) -> Path:
    """Telemetry of every run, and an alert for as long as there is load: each run takes too long."""
    channels = [
        {"type": "webhook", "webhook_url": f"http://{HOST}:{hook}/"},
        {"type": "email", "addresses": ["operations@example.com"]},
    ]
    monitoring: dict[str, Any] = {"check_interval": "500ms", "cooldown": "1s", "latency_target": "10us"}
    monitoring |= {"min_failures": 1, "alert_channels": channels, "smtp": {"host": HOST, "port": mail}}
    endpoint = {"endpoint": f"grpc://{HOST}:{grpc}", "sampling_rate": 1.0, "export_interval": "1s"}
    path = home / "base.yaml"
    path.write_text(yaml.safe_dump({"observability": endpoint, "monitoring": monitoring}))
    return path


def _show(results: dict[str, list[Pair]], console: Console) -> None:
    table = Table("killed", "before, workflows/s", "after", "throughput", "worst pair", "best pair", "server's CPU")
    for name, pairs in results.items():
        rates = [pair.after.per_s / pair.before.per_s for pair in pairs]
        costs = [pair.after.server_cpu_us / pair.before.server_cpu_us for pair in pairs]
        table.add_row(
            name,
            *(
                f"{statistics.median(one):.0f}"
                for one in zip(*((p.before.per_s, p.after.per_s) for p in pairs), strict=True)
            ),
            *(f"{(one - 1) * 100:+.1f} %" for one in (statistics.median(rates), min(rates), max(rates))),
            f"{(statistics.median(costs) - 1) * 100:+.1f} %",
        )
    console.print(table)
    runs = sum(pair.before.runs + pair.after.runs for pairs in results.values() for pair in pairs)
    console.print(f"{runs} runs, none failed, all receipts verified")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.back_ends", description="What a dead back end costs.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each back end is killed (5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each stretch (4)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the data go: a real disk (/var/tmp)")
    given = parser.parse_args(arguments)
    if not 0 < given.rounds <= 100 or not 0 < given.seconds <= 600:
        parser.error("--rounds is at most 100, --seconds at most 600")
    try:
        results = measure(given.rounds, given.seconds, given.dir, Console(stderr=True))
    except BenchFailure as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    _show(results, Console(width=None if sys.stdout.isatty() else 130))
    return 0


if __name__ == "__main__":
    sys.exit(main())
