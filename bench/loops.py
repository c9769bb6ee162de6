"""The two ways of putting load on a server: the closed loop and the open loop.

Closed: as many requests in flight as there are connections; says how much the server can do. Open: requests at a fixed
rate, each one's latency measured from when it was meant to be sent, so that a server which stalls cannot hide the
requests that a closed loop would not have sent meanwhile (coordinated omission).
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from functools import partial

from bench.connection import Connection
from bench.cost import Cost, sample
from bench.descriptors import RequestTemplate
from bench.load_spec import LoadResult, LoadSpec
from bench.percentiles import summarise
from bench.schedule import ArrivalSchedule, Ticker
from bench.tally import Tally

START_DELAY_NS = 20_000_000
PAUSE_AFTER_REFUSAL_S = 0.01


class Load(ABC):
    """Opens the connections, lets the subclass send, and waits until every request has its answer."""

    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        self.template = RequestTemplate(spec.descriptor, host=spec.host, port=spec.port, target=spec.target)
        self.start_ns = 0
        self.sent = 0
        self.in_flight = 0
        self.cost_after_warmup = Cost()
        self._cpu_after_warmup_s = 0.0
        self._done = asyncio.Event()

    @abstractmethod
    def begin(self, connections: list[Connection]) -> None:
        """Arrange for the first requests to be sent at `start_ns`, not before."""

    @abstractmethod
    def answered(self, connection: Connection, *, taken: bool) -> None:
        """`connection` is free again; `taken` is False if the server was too busy."""

    @abstractmethod
    def sending_is_over(self) -> bool:
        """Whether nothing more will be sent."""

    async def run(self) -> LoadResult:
        """Put the load on the server and say what came of it."""
        spec, loop = self.spec, asyncio.get_running_loop()
        connections = [Connection(self._on_answer, self._on_lost) for _ in range(spec.connections)]
        for connection in connections:
            await loop.create_connection(partial(_same, connection), spec.host, spec.port)
        self.start_ns = time.monotonic_ns() + START_DELAY_NS
        window_start_ns = self.start_ns + int(spec.warmup_s * 1e9)
        self.tally = Tally(spec, window_start_ns)
        loop.call_later((window_start_ns - time.monotonic_ns()) / 1e9, self._warmed_up)
        self.begin(connections)
        try:
            async with asyncio.timeout(spec.warmup_s + spec.seconds + spec.answer_timeout_s):
                await self._done.wait()
        except TimeoutError:
            self.tally.error(f"{self.in_flight} requests without an answer")
        finally:
            for connection in connections:
                connection.close()
        return self._result()

    def _warmed_up(self) -> None:
        self.cost_after_warmup = sample(self.spec.server_pid)
        self._cpu_after_warmup_s = time.process_time()

    def send(self, connection: Connection, began_ns: int) -> None:
        """Send the next request."""
        self.in_flight += 1
        connection.send(self.template.render(self.spec.first_serial + self.sent), began_ns)
        self.sent += 1

    def _on_answer(self, connection: Connection, status: int, body: bytes) -> None:
        self.in_flight -= 1
        taken = self.tally.answer(connection.began_ns, time.monotonic_ns(), status, body)
        self.answered(connection, taken=taken)
        if not self.in_flight and self.sending_is_over():
            self._done.set()

    def _on_lost(self, why: str) -> None:
        self.tally.error(why)
        self._done.set()

    def _result(self) -> LoadResult:
        tally = self.tally
        return LoadResult(
            sent=self.sent,
            accepted=tally.accepted,
            completed=tally.completed,
            failed=tally.failed,
            unfinished=tally.unfinished,
            refused=tally.refused,
            errors=tally.errors,
            window_s=tally.window_s(count_limited=0 < self.spec.max_count <= tally.accepted),
            window_answers=tally.window_answers,
            answers_after_warmup=tally.answers_after_warmup,
            latencies=summarise(tally.latencies_ns),
            send_lag=summarise(tally.lags_ns),
            client_cpu_s=time.process_time() - self._cpu_after_warmup_s,
            server_cost_after_warmup=self.cost_after_warmup,
            next_serial=self.spec.first_serial + self.sent,
        )


def _same(connection: Connection) -> Connection:
    """`create_connection` wants a factory; the connections are made beforehand, to be able to close them all."""
    return connection


class ClosedLoop(Load):
    """Each connection sends as soon as it has its answer, until the time is over or `max_count` are sent."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._end_ns = 0

    def begin(self, connections: list[Connection]) -> None:
        """Send on every connection."""
        # Event loops may call a millisecond early, and what begins before `start_ns` does not count.
        asyncio.get_running_loop().call_later(START_DELAY_NS / 1e9 + 0.005, self._begin, connections)

    def _begin(self, connections: list[Connection]) -> None:
        self._end_ns = self.start_ns + int((self.spec.warmup_s + self.spec.seconds) * 1e9)
        for connection in connections:
            self._next(connection)

    def answered(self, connection: Connection, *, taken: bool) -> None:
        """Send again; after a refusal only when the server has had a moment to catch up."""
        if taken:
            self._next(connection)
        else:
            # The pause counts as in flight, or the load could be taken for finished while all connections pause.
            self.in_flight += 1
            asyncio.get_running_loop().call_later(PAUSE_AFTER_REFUSAL_S, self._resume, connection)

    def sending_is_over(self) -> bool:
        """By time or by number."""
        limit = self.spec.max_count
        return time.monotonic_ns() >= self._end_ns or bool(limit and self.sent - self.tally.refused >= limit)

    def _resume(self, connection: Connection) -> None:
        self.in_flight -= 1
        self._next(connection)
        if not self.in_flight:
            self._done.set()

    def _next(self, connection: Connection) -> None:
        if not self.sending_is_over():
            self.send(connection, time.monotonic_ns())


class OpenLoop(Load):
    """Sends at the times of the schedule. Without a free connection a request queues here, and its latency grows."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._free: list[Connection] = []
        self._backlog: deque[int] = deque()
        self._scheduled = 0

    def begin(self, connections: list[Connection]) -> None:
        """Start the timer."""
        spec = self.spec
        total = int(spec.rate * (spec.warmup_s + spec.seconds))
        self._schedule = ArrivalSchedule(self.start_ns, spec.rate, total)
        self._free = list(connections)
        self._ticker = Ticker(self._schedule.start_ns, self._schedule.tick_ns)
        asyncio.get_running_loop().add_reader(self._ticker.fileno(), self._tick)

    def answered(self, connection: Connection, *, taken: bool) -> None:
        """Send what has waited longest for a connection."""
        if self._backlog:
            self._send_arrival(connection, self._backlog.popleft())
        else:
            self._free.append(connection)

    def sending_is_over(self) -> bool:
        """When the schedule has come to its end and nothing queues."""
        return self._scheduled == self._schedule.total and not self._backlog

    def _tick(self) -> None:
        self._ticker.acknowledge()
        due = self._schedule.due(time.monotonic_ns())
        for index in range(self._scheduled, due):
            if self._free:
                self._send_arrival(self._free.pop(), index)
            else:
                self._backlog.append(index)
        self._scheduled = due
        if due == self._schedule.total:
            asyncio.get_running_loop().remove_reader(self._ticker.fileno())
            self._ticker.close()

    def _send_arrival(self, connection: Connection, index: int) -> None:
        intended_ns = self._schedule.intended_ns(index)
        self.tally.lags_ns.append(time.monotonic_ns() - intended_ns)
        self.send(connection, intended_ns)
