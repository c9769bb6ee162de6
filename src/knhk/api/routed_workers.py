"""Remote workers, asked of any node: attempts come from all partitions, whoever owns them.

A worker asks one node. That node gives what it has itself. While its workers wait, it has a question open at each other
node, whether there is work there for any of them, which leases nothing; if so, it takes attempts from there in their
name. An answer that nobody waits for any more gives its leases back. Results go to the owner of the run's partition
(see routing.py), heartbeats to the owners of the leases.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from knhk.actions.registry import Outcome
from knhk.api.places import FORWARDED, Places
from knhk.api.router import Router
from knhk.api.workers import Attempt, Attempts, Found, Leases, attempt_of
from knhk.domain.errors import KnhkError
from knhk.engine.leases import partition_of_token
from knhk.engine.workers import Workers, settle

_LOOK_S: Final = 20
_RETRY_S: Final = 0.5
_BREATH_S: Final = 0.02
_Want = tuple[tuple[str, ...], tuple[str, ...]]


class _Waiting:
    """A worker that waits at this node, and the nodes that have something for it."""

    def __init__(self, want: _Want, woken: "asyncio.Future[None]") -> None:
        self.want, self.woken = want, woken
        self.at: list[str] = []


class RoutedWorkers:
    """Implements api.workers.Face for one of several nodes."""

    def __init__(self, here: Workers, router: Router) -> None:
        self._here, self._router, self._places = here, router, router.places
        self._waiting: dict[_Waiting, None] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._wants: frozenset[_Want] = frozenset()
        self._giving_back: set[asyncio.Future[Any]] = set()

    async def poll(
        self,
        worker: str,
        queues: Sequence[str],
        actions: Sequence[str],
        *,
        limit: int,
        wait_s: float,
        lease_ns: int | None = None,
    ) -> list[Attempt]:
        """See Workers.poll."""
        loop = asyncio.get_running_loop()
        over = loop.time() + wait_s
        at: Sequence[str] = () if wait_s > 0 else self._places.others()
        while True:
            given = await self._here.poll(worker, queues, actions, limit=limit, wait_s=0.0, lease_ns=lease_ns)
            if given or FORWARDED.get():
                return [attempt_of(task) for task in given]
            for url in at:
                found = await self._take(url, worker, queues, actions, limit, lease_ns)
                if found:
                    return found
            if loop.time() >= over:
                return []
            with self._here.waiting(queues, actions) as woken, self._looked_for(queues, actions, woken) as waiting:
                if not self._here.fitting(queues, actions):  # nothing has come while other nodes were asked
                    await self._here.until(woken, over - loop.time())
                at = waiting.at

    async def sought(self, wants: Sequence[tuple[Sequence[str], Sequence[str]]], wait_s: float) -> list[int]:
        """See Workers.sought: of this node alone."""
        return await self._here.sought(wants, wait_s)

    async def heartbeat(self, worker: str, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """See Workers.heartbeat. A lease whose owner is not known or does not answer is neither held nor over."""
        here, elsewhere = _shares(self._places, tokens)
        answers = await self._ask_all(
            {} if FORWARDED.get() else elsewhere,
            lambda share: ("/workers/heartbeat", {"worker": worker, "tokens": [str(token) for token in share]}),
        )
        held, lost = await self._here.heartbeat(worker, here)
        for answer in answers:
            leases = msgspec.convert(answer, Leases)
            held += map(int, leases.held)
            lost += map(int, leases.lost)
        return held, lost

    async def report(self, workflow_id: str, step: str, token: int, outcome: Outcome) -> bool:
        """See Workers.report: the request is at the owner's node already."""
        return await self._here.report(workflow_id, step, token, outcome)

    async def release(self, worker: str, tokens: Sequence[int] | None = None) -> list[int]:
        """See Workers.release."""
        shares: dict[str, list[int]] = {}
        here = None
        if tokens is not None:
            here, shares = _shares(self._places, tokens)
        elif not FORWARDED.get():
            shares = {url: [] for url in self._places.others()}
        answers = await self._ask_all(
            {} if FORWARDED.get() else shares,
            lambda share: (
                "/workers/release",
                {"worker": worker, "tokens": None if tokens is None else [str(token) for token in share]},
            ),
        )
        over = await self._here.release(worker, here)
        return over + [int(token) for answer in answers for token in msgspec.convert(answer, Leases).lost]

    async def overview(self) -> dict[str, Any]:
        """See Workers.overview: of all nodes; `missing` are those that do not answer."""
        shown = await self._here.overview()
        if FORWARDED.get():
            return shown
        others = list(self._places.others())
        answers = await asyncio.gather(*(self._overview_of(url) for url in others))
        missing = [url for url, answer in zip(others, answers, strict=True) if answer is None]
        return {**_merged([shown, *(answer for answer in answers if answer is not None)]), "missing": missing}

    async def _overview_of(self, url: str) -> dict[str, Any] | None:
        try:
            return dict(await self._router.at(url, "GET", "/workers"))
        except KnhkError:
            return None

    async def _ask_all(self, shares: dict[str, list[int]], request: Any) -> list[Any]:
        """What the nodes answer, each about its share; those that do not answer are left out."""

        async def one(url: str, share: list[int]) -> Any:
            try:
                return await self._router.at(url, "POST", *request(share))
            except KnhkError:
                return None

        answers = await asyncio.gather(*(one(url, share) for url, share in shares.items()))
        return [answer for answer in answers if answer is not None]

    # -- work of other nodes

    async def _take(
        self,
        url: str,
        worker: str,
        queues: Sequence[str],
        actions: Sequence[str],
        limit: int,
        lease_ns: int | None,
    ) -> list[Attempt]:
        """Attempts of another node; none if it does not answer."""
        lease = None if lease_ns is None else f"{lease_ns}ns"
        body = {"worker": worker, "queues": queues, "actions": actions, "max": limit, "wait": "0s", "lease": lease}
        taking = asyncio.ensure_future(self._router.at(url, "POST", "/workers/poll", body))
        try:
            return msgspec.convert(await asyncio.shield(taking), Attempts).tasks
        except KnhkError:
            return []
        except asyncio.CancelledError:  # the worker went away: what it would have got is for others
            taking.add_done_callback(lambda taken: self._give_back(url, worker, taken))
            raise

    def _give_back(self, url: str, worker: str, taken: "asyncio.Future[Any]") -> None:
        if taken.cancelled() or taken.exception() is not None:
            return
        tokens = [task["token"] for task in taken.result()["tasks"]]
        if tokens:
            giving = asyncio.ensure_future(
                self._ask_all({url: []}, lambda _: ("/workers/release", {"worker": worker, "tokens": tokens}))
            )
            self._giving_back.add(giving)
            giving.add_done_callback(self._giving_back.discard)

    @contextmanager
    def _looked_for(
        self, queues: Sequence[str], actions: Sequence[str], woken: "asyncio.Future[None]"
    ) -> Iterator[_Waiting]:
        """As long as a worker waits, other nodes are asked whether they have something for it."""
        waiting = _Waiting((tuple(sorted(set(queues))), tuple(sorted(set(actions)))), woken)
        self._waiting[waiting] = None
        self._look()
        try:
            yield waiting
        finally:
            del self._waiting[waiting]

    def _look(self) -> None:
        """Have a question open at each other node, which asks for all that somebody waits for."""
        if not self._wants.issuperset(one.want for one in self._waiting):
            self._wants = frozenset(one.want for one in self._waiting)
            for task in self._looking.values():  # nothing is lost: the question leases nothing
                task.cancel()
            self._looking.clear()
        for url in self._places.others():
            if url not in self._looking:
                self._looking[url] = task = asyncio.create_task(self._look_at(url), name=f"look {url}")
                task.add_done_callback(partial(self._looked, url))

    def _looked(self, url: str, task: "asyncio.Task[None]") -> None:
        if self._looking.get(url) is task:
            del self._looking[url]

    async def _look_at(self, url: str) -> None:
        wants = sorted(self._wants)
        body = {"wants": [{"queues": one, "actions": more} for one, more in wants], "wait": f"{_LOOK_S}s"}
        while self._waiting and url in self._places.others():
            try:
                counts = msgspec.convert(await self._router.at(url, "POST", "/workers/sought", body), Found).counts
            except KnhkError:
                await asyncio.sleep(_RETRY_S)
                continue
            for want, count in zip(wants, counts, strict=True):
                for waiting in [one for one in self._waiting if one.want == want and not one.woken.done()][:count]:
                    waiting.at.append(url)
                    settle(waiting.woken)
            await asyncio.sleep(_BREATH_S)  # until they have taken it

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [*self._looking.values(), *self._giving_back]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _shares(places: Places, tokens: Sequence[int]) -> tuple[list[int], dict[str, list[int]]]:
    """The tokens of leases by where their partitions are: here, as what is none, or at which node."""
    here: list[int] = []
    elsewhere: dict[str, list[int]] = {}
    for token in tokens:
        partition = partition_of_token(token)
        if partition >= places.partitions or places.local(partition) is not None:
            here.append(token)
        elif (url := places.remote(partition)) is not None:
            elsewhere.setdefault(url, []).append(token)
    return here, elsewhere


def _merged(overviews: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several nodes have and know, as one."""
    queues: dict[str, dict[str, Any]] = {}
    workers: dict[str, dict[str, Any]] = {}
    for shown in overviews:
        for one in shown["queues"]:
            known = queues.setdefault(one["queue"], {"queue": one["queue"], "waiting": 0, "held": 0})
            known["waiting"] += one["waiting"]
            known["held"] += one["held"]
        for one in shown["workers"]:
            known = workers.setdefault(one["worker"], {**one, "held": 0})
            known["held"] += one["held"]
            known["queues"] = sorted({*known["queues"], *one["queues"]})
            known["last_seen"] = max(known["last_seen"], one["last_seen"])
    return {
        "queues": [one for _, one in sorted(queues.items())],
        "workers": [one for _, one in sorted(workers.items())],
    }
