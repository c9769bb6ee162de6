"""A load on a fleet: clients that submit, signal, cancel and look, and know in the end what must be true.

What is to be asked stands in one queue by time, and threads take it from there. A request that fails is asked again of
any node, with the same key, until it has an answer. Everything is written down for the checker of histories. Signals
and cancellations are held back until `release`, so that as many runs as wanted are under way when something fails;
some runs are submitted and signalled by two clients at the same time.
"""

import heapq
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import httpx

from tests.acceptance.acknowledged import ENDED, until
from tests.acceptance.fleet import Fleet
from tests.chaos.clients import Reply, about, ask
from tests.chaos.linearizability import History, linearizable, smallest_prefix
from tests.chaos.runs import Outcome, Run, asked_for, judged
from tests.chaos.specification import Missing, State, step

RUNS_PER_S: Final = 12.0
MANY: Final = 600
FEW_PER_S: Final = 2.0
"""Once there are so many runs, so few more are submitted, however long a failure lasts: each costs time to check."""
THREADS: Final = 16
LATEST_S: Final = 2.0
"""A look that comes later than this is left out: on a busy machine the rest is enough to do."""
TIMEOUT_S: Final = 20.0
LONGEST_S: Final = 150.0
"""How long runs may take to end, and requests to be answered, after all failures are over."""


class _Task(NamedTuple):
    """Something to ask when its time has come."""

    at: float
    number: int
    verb: str
    run: Run


class Load:
    """`refused` counts, by what it was, every attempt that had to be repeated."""

    def __init__(self, fleet: Fleet, effects: Path, seed: int) -> None:
        self.fleet, self.effects, self.seed = fleet, effects, seed
        self.history, self.refused = History(), Counter[str]()
        self.runs: list[Run] = []
        self.strange: list[str] = []
        self._chosen = Random(f"{seed} load")
        self._numbers, self._tasks = count(1), list[_Task]()
        self._lock, self._busy = threading.Condition(), 0
        self._released_at, self._streams, self._stopped = 0.0, True, False
        self._threads = [threading.Thread(target=self._work, args=(at,), daemon=True) for at in range(THREADS)]
        self._threads.append(threading.Thread(target=self._stream, daemon=True))

    def start(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    @property
    def acknowledged(self) -> list[Run]:
        return [run for run in self.runs if run.workflow_id]

    def fill(self, gates: int) -> int:
        """Submit runs until so many wait for their signal; how many are under way then, by the listing."""
        for _ in range(gates):
            self._submit("gate")
        until(lambda: sum(run.kind == "gate" for run in self.acknowledged) >= gates, 120)
        found, cursor = 0, None
        while True:
            query: dict[str, str] = {"state": "running", "limit": "500", **({"cursor": cursor} if cursor else {})}
            page = self.fleet.any().client.get("/workflows", params=query).json()
            found, cursor = found + len(page["workflows"]), page["next_cursor"]
            if cursor is None:
                return found

    def hold(self, runs: int) -> list[Run]:
        """So many acknowledged runs that wait for their signal until `open`."""
        held = [self._submit("held") for _ in range(runs)]
        until(lambda: all(run.workflow_id for run in held), 120)
        return held

    def ask(self, run: Run, verb: str, node: str) -> Reply:
        """What one node answers to a request about a run."""
        with _client() as client:
            return self._asked(client, Random(run.key), verb, run, node=node)

    def release(self, within_s: float = 10.0) -> None:
        """Let signals and cancellations go, spread over some seconds."""
        with self._lock:
            self._released_at = time.monotonic()
            held = [run for run in self.acknowledged if run.kind == "gate"]
        for run in held:
            self.open(run, within_s)

    def open(self, run: Run, within_s: float) -> None:
        """Two clients signal a run within some seconds, others look at it meanwhile, and some runs are cancelled."""
        after_s = within_s * self._chosen.random()
        for _ in range(2):
            self._later(after_s, "signal", run)
        for _ in range(4):
            self._later(after_s + self._chosen.uniform(-0.2, 1.0), "status", run)
        if run.number % 5 == 0:
            run.cancelled = True
            self._later(after_s + self._chosen.uniform(-0.5, 0.5), "cancel", run)

    def probe(self, key: str, text: str, without: str = "") -> dict[str, Any]:
        """Submit a run that ends soon, and wait for its end, whatever has to be repeated; one node is not asked."""
        run = Run(next(self._numbers), "probe", key, text)
        with self._lock:
            self.runs.append(run)
        deadline, chosen = time.monotonic() + LONGEST_S, Random(key)
        with _client() as client:
            while True:
                node = chosen.choice(sorted(self.fleet.running - {without}))
                reply = self._asked(client, chosen, "submit", run, "?wait=10s", node)
                if reply.body is not None and reply.body["state"] in ENDED:
                    return reply.body
                assert time.monotonic() < deadline, f"{key}: {reply}"
                time.sleep(0.05)

    def finish(self) -> Outcome:
        """Stop submitting; wait until all has been answered and all runs have ended."""
        self._streams = False
        if not self._released_at:
            self.release()
        until(lambda: self.strange or (not self._tasks and not self._busy), LONGEST_S)
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join(timeout=2 * TIMEOUT_S)
            assert not thread.is_alive(), "a client does not come to an end"
        assert not self.strange, self.strange[:5]
        deadline = time.monotonic() + LONGEST_S
        known = self.acknowledged
        with ThreadPoolExecutor(4) as pool, _client() as client:
            last = list(pool.map(lambda run: self._end(client, run, deadline), known))
        return judged(list(zip(known, last, strict=True)), self.effects, self._contradictions())

    def _contradictions(self) -> list[str]:
        """The runs whose history no order of the requests explains, each with the operations that show it."""
        kinds = {run.key: run.kind for run in self.runs}
        found = []
        for key, operations in self.history.objects().items():
            initial = State(gated=kinds[key] in ("gate", "held"))
            if not linearizable(operations, initial, step):
                shown = "\n    ".join(map(str, smallest_prefix(operations, initial, step)))
                found.append(f"{key}:\n    {shown}")
        return found

    @property
    def operations(self) -> int:
        """How many the history has."""
        return sum(map(len, self.history.objects().values()))

    def _stream(self) -> None:
        kinds = ("again", "once", "gate")
        while self._streams and not self._stopped:
            self._submit(kinds[len(self.runs) % 3])
            time.sleep(1 / (RUNS_PER_S if len(self.runs) < MANY else FEW_PER_S))

    def _submit(self, kind: str) -> Run:
        with self._lock:
            number = next(self._numbers)
            run = asked_for(number, kind, f"{id(self)}-{number}", self.effects, self._chosen)
            self.runs.append(run)
        for _ in range(2 if number % 2 else 1):
            self._later(0.0, "submit", run)
        return run

    def _acknowledged(self, run: Run, workflow_id: str) -> None:
        """Somebody has an answer to a submission: what comes next for the run."""
        with self._lock:
            known, run.workflow_id = run.workflow_id, workflow_id
            released = self._released_at > 0
        if known:
            return
        for after_s in (0.0, 1.0, 4.0):
            self._later(after_s * self._chosen.random(), "status", run)
        if released and run.kind == "gate":
            self.open(run, 3.0)

    def _later(self, after_s: float, verb: str, run: Run) -> None:
        with self._lock:
            heapq.heappush(self._tasks, _Task(time.monotonic() + after_s, next(self._numbers), verb, run))
            self._lock.notify()

    def _work(self, at: int) -> None:
        chosen = Random(f"{self.seed} {at}")
        with _client() as client:
            while (task := self._taken()) is not None:
                try:
                    reply = self._asked(client, chosen, task.verb, task.run)
                    if reply.trouble and task.verb != "status":
                        self._later(0.1 + 0.2 * chosen.random(), task.verb, task.run)
                except Exception as error:
                    self.strange.append(f"{task.run.key}: {error!r}")
                finally:
                    with self._lock:
                        self._busy -= 1

    def _taken(self) -> _Task | None:
        """The next task that is due; None at the end."""
        with self._lock:
            while not self._stopped:
                left_s = self._tasks[0].at - time.monotonic() if self._tasks else 1.0
                if left_s > 0:
                    self._lock.wait(left_s)
                    continue
                task = heapq.heappop(self._tasks)
                if task.verb != "status" or left_s > -LATEST_S:
                    self._busy += 1
                    return task
        return None

    def _asked(
        self, client: httpx.Client, chosen: Random, verb: str, run: Run, query: str = "", node: str = ""
    ) -> Reply:
        """One request about a run to some node, written down."""
        node = node or chosen.choice(sorted(self.fleet.running))
        reply = ask(client, self.fleet.nodes[node].api, about(run, verb, query))
        if reply.operation is not None:
            self.history.add(run.key, reply.operation)
        if reply.trouble:
            self.refused[reply.trouble] += 1
        elif verb == "submit" and reply.body is not None:
            self._acknowledged(run, reply.body["workflow_id"])
        return reply

    def _end(self, client: httpx.Client, run: Run, deadline: float) -> dict[str, Any] | None:
        """The last status of a run; None if there is no such run, or it does not end in time."""
        chosen = Random(run.key)
        while True:
            reply = self._asked(client, chosen, "status", run)
            if reply.body is not None and reply.body["state"] in ENDED:
                return reply.body
            missing = reply.operation is not None and isinstance(reply.operation.answer, Missing)
            if missing or time.monotonic() >= deadline:
                return None
            time.sleep(0.05)


def _client() -> httpx.Client:
    """Without the certificates, which are not needed and take long to load."""
    return httpx.Client(timeout=TIMEOUT_S, verify=False)
