"""What the operations server of several processes may know and do: it asks each of them on its own operations port."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from knhk import __version__
from knhk.domain.errors import KnhkError, NotFound, Unavailable
from knhk.observability.metrics import exposition
from knhk.observability.readings import ABSENT, OK, WARNING
from knhk.ops.together import Answer, Headers
from knhk.processes.exposition import Merger
from knhk.processes.supervisor import Supervisor
from knhk.recovery.snapshots import Snapshot
from knhk.sdk.answers import error_of

_ROOM: Final = "processes"
_SHORT_S: Final = 10.0
_LONG_S: Final = 3600.0
_HOP: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"content-length"})
_VITAL: Final = "persistence"


class Together:
    """Implements ops.together.Processes."""

    version = __version__
    halted: str | None = None
    """Never: a process that can do nothing more is started again."""

    def __init__(
        self, supervisor: Supervisor, stopping: asyncio.Event, compose: Callable[[Mapping[int, Path]], Snapshot] | None
    ) -> None:
        """`compose` makes one snapshot of those of the partitions; None where all are in one database."""
        self._supervisor, self._stopping, self._compose = supervisor, stopping, compose
        self._began_s = time.monotonic()
        self._merger = Merger()
        self._client = httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(_SHORT_S, read=_LONG_S))
        self.started = False

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._began_s

    def numbers(self) -> Sequence[int]:
        return sorted(number for number, child in self._supervisor.children.items() if child.report.operations)

    def states(self) -> list[dict[str, Any]]:
        return self._supervisor.states()

    async def resize(self, count: int) -> None:
        await self._supervisor.resize(count)

    async def ask(self, process: int, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Answer:
        child = self._supervisor.children.get(process)
        if child is None and process >= self._supervisor.count:
            raise NotFound(f"there is no process {process}", hint="See GET /processes.")
        if child is None or not child.report.operations:
            raise Unavailable(f"process {process} is being started", retry_after_s=1.0)
        kept = [(name, value) for name, value in headers if name.lower() not in _HOP]
        try:
            answer = await self._client.request(method, child.report.operations + target, headers=kept, content=body)
        except httpx.HTTPError as error:
            raise Unavailable(f"process {process} does not answer: {type(error).__name__}") from error
        given = [
            (name, value) for name, value in answer.headers.raw if name.lower() not in (*_HOP, b"content-encoding")
        ]
        return answer.status_code, given, answer.content

    async def health(self) -> Mapping[str, str]:
        """What the processes say: `ok` if all say so, else who says what."""
        answers = await self._all("/health/detailed")
        said = {number: dict(answer["checks"]) for number, (_, answer) in answers.items()}
        rooms = dict.fromkeys(room for checks in said.values() for room in checks)
        checks = {
            room: _merged(room, {one: found[room] for one, found in said.items() if room in found}) for room in rooms
        }
        missing = [one for one in self._supervisor.states() if one["process"] not in said]
        wrong = [
            f"process {one['process']} is {one['state']} ({one['last_end'] or 'the first time'})" for one in missing
        ]
        if not said:
            checks[_VITAL] = "no process answers"
        own = checks.get(_ROOM, OK)
        return {**checks, _ROOM: "; ".join([*wrong, *([] if own == OK else [own])]) or OK}

    async def ready(self) -> tuple[bool, str]:
        """Ready if one process is: each takes requests for all."""
        if not self.started:
            return False, "starting"
        if self._stopping.is_set():
            return False, "shutting down"
        answers = await self._all("/ready")
        if any(status == 200 for status, _ in answers.values()):
            return True, ""
        reasons = {str(answer.get("detail", "")): None for _, answer in answers.values()}
        return False, "; ".join(reasons) or "no process answers"

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        async def scraped(number: int, pid: int) -> tuple[int, tuple[int, str]] | None:
            try:
                status, _, raw = await self.ask(number, "GET", "/metrics")
            except KnhkError:
                return None
            return (number, (pid, raw.decode())) if status == 200 else None

        children = {number: self._supervisor.children[number].process.pid for number in self.numbers()}
        found = await asyncio.gather(*(scraped(number, pid) for number, pid in children.items()))
        families = self._merger.merged(dict(one for one in found if one is not None))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families([*families, *self._families()]))
        return exposition(registry, accept)

    async def checkpoint(self) -> Mapping[str, Any]:
        """One of all partitions, made of those that each process writes. Raises what the first that fails raises."""
        numbers = [0] if self._compose is None else range(self._supervisor.count)
        answers = await asyncio.gather(*(self.ask(number, "POST", "/checkpoint") for number in numbers))
        written = [_decoded(answer) for answer in answers]
        partitions = sorted((one for each in written for one in each["partitions"]), key=lambda one: one["partition"])
        first, path = partitions[0], partitions[0]["path"]
        if self._compose is not None and len(partitions) > 1:
            parts = {one["partition"]: Path(one["path"]) for one in partitions}
            path = str((await asyncio.to_thread(self._compose, parts)).path)
        return {"path": path, "height": first["height"], "partitions": partitions}

    async def drill(self) -> Mapping[str, Any]:
        return _decoded(await self.ask(0, "POST", "/drill"))

    async def shutdown(self) -> None:
        self._stopping.set()

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()

    async def _all(self, target: str) -> dict[int, tuple[int, dict[str, Any]]]:
        """Status and JSON of those that answer."""

        async def one(number: int) -> tuple[int, tuple[int, dict[str, Any]]] | None:
            try:
                async with asyncio.timeout(_SHORT_S):
                    status, _, raw = await self.ask(number, "GET", target)
                return number, (status, msgspec.json.decode(raw))
            except (KnhkError, TimeoutError, msgspec.DecodeError):
                return None

        found = await asyncio.gather(*(one(number) for number in self.numbers()))
        return dict(each for each in found if each is not None)

    def _families(self) -> Iterator[Metric]:
        alive = GaugeMetricFamily("knhk_process_up", "1 if the process answers requests.", labels=("process",))
        restarts = CounterMetricFamily(
            "knhk_process_restarts", "How often the process ended and was started again.", labels=("process",)
        )
        for one in self.states():
            alive.add_metric((str(one["process"]),), float(one["state"] in ("running", "draining")))
            restarts.add_metric((str(one["process"]),), one["restarts"])
        yield from (alive, restarts)


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _decoded(answer: Answer) -> dict[str, Any]:
    status, _, raw = answer
    if status >= 400:
        raise error_of(status, raw, None)
    return dict(msgspec.json.decode(raw))


def _merged(room: str, said: Mapping[int, str]) -> str:
    """One text for a room. Nothing can be recorded only if that is so in every process."""
    wrong = {number: text for number, text in said.items() if text not in (OK, ABSENT)}
    if not wrong:
        return OK if OK in said.values() else ABSENT
    text = "; ".join(f"process {number}: {text.removeprefix(WARNING)}" for number, text in wrong.items())
    harmless = all(one.startswith(WARNING) for one in wrong.values()) or (room == _VITAL and len(wrong) < len(said))
    return f"{WARNING}{text}" if harmless else text
