"""Each back end is killed in turn, or hangs, while runs come in: none fails, all are counted, and what is lost is told.

`pytest -s` prints the throughput of each phase, `python -m bench.back_ends` measures it. It is not asserted: the
noise of the machine is larger than any difference.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.acknowledged import until
from tests.acceptance.server import ROOT, Server, free_port
from tests.acceptance.test_monitoring import GOOD, ask, submit
from tests.services.alert_receivers import HttpReceiver, MailReceiver

SECONDS = 2.0
CLIENTS = 6


class Collector:
    """The OTLP receiver as a process of its own, to be killed and stopped."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.services.otlp"], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[0])

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


class Load:
    """Clients that submit one run after the other and wait for each."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.completed = 0
        self.problems: list[str] = []

    def run(self, seconds: float) -> float:
        """Runs a second, over so many seconds."""
        before, ends = self.completed, time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(ends,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return (self.completed - before) / seconds

    def _client(self, ends: float) -> None:
        with httpx.Client(base_url=self._server.api, timeout=30) as client:
            while time.monotonic() < ends:
                answer = client.post("/workflows?wait=30s", content=GOOD)
                if answer.status_code == 200 and answer.json()["state"] == "completed":
                    self.completed += 1
                else:
                    self.problems.append(answer.text)


def test_no_back_end_can_fail_or_hold_up_a_run(tmp_path: Path, collector: Collector) -> None:
    hook, mail = HttpReceiver(), MailReceiver(free_port())
    server = Server(
        tmp_path,
        observability={"endpoint": f"grpc://127.0.0.1:{collector.port}", "export_interval": "200ms"},
        monitoring={
            "check_interval": "200ms",
            "min_failures": 1,
            "alert_channels": [
                {"type": "webhook", "webhook_url": hook.url},
                {"type": "email", "addresses": ["ops-team@company.com"]},
            ],
            "smtp": {"host": "127.0.0.1", "port": mail.port},
        },
    )
    try:
        server.start()
        load = Load(server)
        rates = {"all is well": load.run(SECONDS)}
        assert ask(server, "/health/detailed")["checks"]["observability"] == "ok"
        collector.process.send_signal(signal.SIGSTOP)
        rates["the collector hangs"] = load.run(SECONDS)
        collector.close()
        rates["the collector is dead"] = load.run(SECONDS)
        until(lambda: "does not take what is sent" in ask(server, "/health/detailed")["checks"]["observability"])
        hook.close()
        mail.close()
        submit(server, GOOD.replace("process, params: {output: 1}", "fail, params: {message: no}"), 1)
        until(lambda: "channel" in ask(server, "/health/detailed")["checks"]["monitoring"])
        rates["no alert channel answers either"] = load.run(SECONDS)
        for phase, rate in rates.items():
            print(f"{phase}: {rate:.0f} workflows/s")
        assert not load.problems
        figures = httpx.get(f"{server.ops}/metrics").text
        assert f'knhk_workflows_total{{department="none",status="completed"}} {load.completed}.0' in figures
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 30
    finally:
        server.close()
    assert server.verify()["valid"]
