"""Starts the processes of a server, tells them which partitions are theirs, and starts again what dies.

The supervisor owns no partition and answers no workflow request. If it dies, the kernel ends its processes, so that no
orphan keeps a database locked. That two processes never write the same partition does not depend on it: RocksDB's lock
and PostgreSQL's epochs see to that.
"""

import asyncio
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from knhk.domain import errors
from knhk.domain.errors import Conflict, KnhkError, Refused, StorageUnavailable
from knhk.ports.environment import Clock
from knhk.processes.assignment import assignment
from knhk.processes.channel import Channel, Plan, Report

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_LIVED_WELL_S: Final = 30.0
_KILL_AFTER_S: Final = 10.0
_POLL_S: Final = 0.02
_RELEASE_S: Final = 60.0

Launch = Callable[[int, socket.socket], Awaitable[Process]]
"""Starts the process of a number and gives it its end of the channel."""


class Child:
    """A process of the server. `ended` is None while it lives."""

    def __init__(self, number: int, process: Process, channel: Channel[Report]) -> None:
        self.number, self.process, self.channel = number, process, channel
        self.report = Report()
        self.began_s = asyncio.get_running_loop().time()


class Supervisor:
    """`partitions` is how many there are, and so the most processes that have work. `note` gets what happens, in words;
    `stop_s` is how long a process may take to stop."""

    def __init__(
        self, launch: Launch, partitions: int, clock: Clock, note: Callable[..., None], *, stop_s: float
    ) -> None:
        self.partitions = partitions
        self.count = 0
        """How many processes are wanted."""
        self.children: dict[int, Child] = {}
        """Those that live, by number."""
        self.restarts: dict[int, int] = {}
        self.last_words: dict[int, str] = {}
        """How each that does not live ended."""
        self._launch, self._clock, self._note, self._stop_s = launch, clock, note, stop_s
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._failure: KnhkError | None = None
        self._resizing: asyncio.Task[None] | None = None
        self._started = self._stopping = False

    async def start(self, count: int) -> None:
        """Start so many processes; returns when all are ready. Raises why one cannot start, after stopping all."""
        self._want(count)
        while not (self._failure is not None or self.all_ready):
            await self._change()
        if self._failure is not None:
            await self.stop()
            raise self._failure
        self._started = True

    @property
    def all_ready(self) -> bool:
        """Whether every process that is wanted is there and answers."""
        return all(number in self.children and self.children[number].report.ready for number in range(self.count))

    async def resize(self, count: int) -> None:
        """Want another number of processes; returns when those that are too many have drained and are gone.

        Their partitions go to the others, and come back when there are more processes again. Raises Refused if there
        are not so many partitions, Conflict if another change is under way.
        """
        if not 1 <= count <= self.partitions:
            raise Refused(
                f"{count} processes: there are {self.partitions} partitions, and every process needs one",
                hint="platform.processes says at the start how many partitions there are at least.",
            )
        if self._stopping or any(number >= self.count for number in self._tasks):
            raise Conflict("the number of processes is being changed already", hint="Wait until it is done.")
        before = self.count
        self._want(count)
        for number in range(count, before):
            self._terminate(number)
        await asyncio.gather(*(self._tasks[number] for number in range(count, before)))
        for number in range(count, before):
            self._tasks.pop(number, None)

    async def stop(self) -> None:
        """Have all processes drain and end; those that do not in time are killed."""
        self._stopping = True
        for number, task in self._tasks.items():
            if number in self.children:
                self._terminate(number)
            else:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._stop_s + _KILL_AFTER_S)
        for child in list(self.children.values()):
            self._note("a process does not stop and is killed", process=child.number)
            with suppress(ProcessLookupError):
                child.process.kill()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def states(self) -> list[dict[str, object]]:
        """Every process, for people."""
        return [self._state(number) for number in sorted({*range(self.count), *self.children})]

    def _state(self, number: int) -> dict[str, object]:
        child = self.children.get(number)
        state = "restarting" if child is None else "starting"
        if child is not None and child.report.ready:
            state = "running" if number < self.count else "draining"
        return {
            "process": number,
            "state": state,
            "pid": None if child is None else child.process.pid,
            "partitions": [] if child is None else list(child.report.owned),
            "restarts": self.restarts.get(number, 0),
            "last_end": self.last_words.get(number, ""),
        }

    def _want(self, count: int) -> None:
        self.count = count
        for number in range(count):
            if number not in self._tasks:
                self._tasks[number] = asyncio.create_task(self._keep(number), name=f"process-{number}")
        self._publish()

    async def _keep(self, number: int) -> None:
        """Have the process of a number live as long as it is wanted."""
        await self._released(number)
        failures = 0
        while self._is_wanted(number):
            child = await self._start(number)
            code = await self._lived(child)
            lived_s = asyncio.get_running_loop().time() - child.began_s
            if not self._is_wanted(number):
                return
            self.last_words[number] = _words(code)
            if not self._started and not child.report.ready:
                self._fail(child, code)
                return
            self.restarts[number] = self.restarts.get(number, 0) + 1
            failures = 1 if child.report.ready and lived_s > _LIVED_WELL_S else failures + 1
            pause_s = 0.0 if failures == 1 else min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S)
            self._note("a process has ended and is started again", process=number, how=_words(code), pause_s=pause_s)
            await self._clock.sleep(pause_s)

    def _is_wanted(self, number: int) -> bool:
        return number < self.count and not self._stopping

    async def _released(self, number: int) -> None:
        """Wait until no other process has the partition that comes with this one."""
        over = asyncio.get_running_loop().time() + _RELEASE_S
        while any(number in child.report.owned for child in self.children.values()):
            if asyncio.get_running_loop().time() > over:
                return  # it finds the store locked, and is started again until it is not
            await self._clock.sleep(_POLL_S)

    async def _start(self, number: int) -> Child:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await self._launch(number, theirs)
        child = Child(number, process, Channel(ours, Report))
        await child.channel.open()
        self.children[number] = child
        self._publish()
        return child

    async def _lived(self, child: Child) -> int:
        """Listen to a process until it has ended; its exit code."""
        while (report := await child.channel.hear()) is not None:
            wish, child.report = report.asked if report.asked != child.report.asked else 0, report
            self._publish()
            if wish and wish != self.count:
                self._resizing = asyncio.create_task(self._resize_for(child.number, wish))
        code = await child.process.wait()
        await child.channel.close()
        del self.children[child.number]
        self._publish()
        return code

    async def _resize_for(self, process: int, count: int) -> None:
        self._note("another number of processes is wanted", process=process, processes=count)
        try:
            await self.resize(count)
        except KnhkError as error:
            self._note("the number of processes stays", reason=error.message)

    def _terminate(self, number: int) -> None:
        child = self.children.get(number)
        if child is not None:
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)

    def _fail(self, child: Child, code: int) -> None:
        failure = child.report.failure
        kind = getattr(errors, failure[0], None) if failure is not None else None
        if failure is not None and isinstance(kind, type) and issubclass(kind, KnhkError):
            self._failure = kind(failure[1], hint=failure[2])
        else:
            self._failure = StorageUnavailable(f"process {child.number} cannot start: {_words(code)}; see the log")
        self._changed.set()

    def _publish(self) -> None:
        """Tell every process who owns what."""
        wanted = assignment(self.partitions, self.count)
        owners = {one: number for number, child in self.children.items() for one in child.report.owned}
        apis = {number: child.report.api for number, child in self.children.items() if child.report.ready}
        plan = Plan(self.partitions, wanted, owners, apis)
        for child in self.children.values():
            child.channel.say(plan)
        self._changed.set()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()


def _words(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
