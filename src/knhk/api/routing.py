"""Any node answers any request: here if this node owns the workflow's partition, else by asking the node that does.

    /workflows/wf-…           the partition in the id; reading needs no owner where the journal is shared
    POST /workflows           with an Idempotency-Key the partition of the key, else one of this node's
    definitions, events,      partition 0, the leader's, and so are runs with limits, which one place counts
    webhooks
    what is about many runs   here, and from here each part of it where it belongs: routed_control.py
    all other reading         here, or in partition 0 where each has a journal of its own; lists are merged (listing.py)

"Node" stands for a process that owns partitions: one of a cluster, or one of several on the same machine. A partition
that is between two owners is waited for (router.py).
"""

import re
from hashlib import sha256
from typing import Any, Final

import msgspec

from knhk.api import listing
from knhk.api.listing import ASKED
from knhk.api.places import CONTROL, FORWARDED, HOME
from knhk.api.relaying import kept_headers, parts_of, read_body, replay, send_answer, target_of
from knhk.api.router import FORWARDED_HEADER, REFUSALS, Router, is_refusal
from knhk.api.submit import PATH, Answer, Headers, SubmitRoute, problem_answer
from knhk.domain import identifier
from knhk.domain.errors import KnhkError, PartitionMoving, Unsupported, WorkflowNotFound
from knhk.engine.control import Control

_IN_A_ROW: Final = 64
_LIMITED: Final = (b"concurrency", b"rate_limit", b"priority")
_MAY_HAVE_CHILDREN: Final = re.compile(rb"""workflow["']?\s*:|:\s*["']?workflow["']?\s*([,}#\r\n]|$)""")
"""A step that starts another workflow: `action: workflow`, or `run: {workflow: ...}`. It may match more than that."""
_HOME_ROUTES: Final = ("/definitions", "/hooks/", "/events")
_EVERYWHERE: Final = ("/workflows/bulk", "/departments/", "/workers")
"""Answered by the node that is asked, which asks others for their part."""
_SAME_EVERYWHERE: Final = (
    "/actions",
    "/openapi.json",
    "/schema",
    "/cluster",
    "/partitions/",
    "/scaling/load",
)
_BLOBS: Final = "/blobs"
_LEADERS_ROUTES: Final = ("/scaling", "/scaling/explain")
_RESULTS: Final = ("/workers/complete", "/workers/fail")
"""What is about a run that the body names."""
_TRIGGERS: Final = re.compile(r"/definitions/[^/]+")
"""Shown by the leader, who alone has the triggers."""
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_DIGEST: Final = b"sha256:"
"""In the reference to a blob."""


class RoutedSubmit(SubmitRoute):
    """Answers submissions in the partition where they belong."""

    def __init__(self, router: Router, max_body_bytes: int) -> None:
        super().__init__(router.places.reader, max_body_bytes)
        self._router, self._places = router, router.places
        self._count = 0

    async def answer(self, headers: Headers, query: bytes, body: bytes) -> Answer:
        try:
            return await self._answered(list(headers), query, body)
        except KnhkError as error:  # of what was asked before the submission, such as where its key was used
            return problem_answer(error)

    async def _answered(self, given: list[tuple[bytes, bytes]], query: bytes, body: bytes) -> Answer:
        key = next((value for name, value in given if name == b"idempotency-key"), b"")
        forwarded = any(name == FORWARDED_HEADER for name, _ in given)
        partition = _named(given) if forwarded else self._place(key, body)
        target = f"{PATH}?{query.decode()}" if query else PATH
        if key and not forwarded:
            partition = await self._where_used(key, partition)

        async def attempt() -> Answer | None:
            if partition is None:
                place = self._anywhere(forwarded)
            else:
                place = self._router.place(partition, forwarded=forwarded)
            if place is None:
                return None
            if isinstance(place, str):
                named = [] if partition is None else [(listing.PARTITIONS, b"%d" % partition)]
                sent = await self._router.send(place, "POST", target, [*given, *named], body, repeatable=bool(key))
                return None if sent is None else (sent.status_code, kept_headers(sent), sent.content)
            answer = await SubmitRoute(place, self.max_body_bytes).answer(given, query, body)
            refused = answer[0] in REFUSALS and is_refusal(answer[2])
            return None if refused and not forwarded else answer

        return await self._router.patiently(attempt, partition, once=forwarded)

    async def _where_used(self, key: bytes, partition: int | None) -> int | None:
        """Where a key stands for a run already: from when there were fewer partitions, or under another rule of
        `_place`; else the partition that the submission belongs to."""
        for other in self._places.homes(key):
            if other != partition and await self._router.claimed(other, _digest(key)):
                return other
        return partition

    def _place(self, key: bytes, body: bytes) -> int | None:
        """The partition that a submission belongs to; None if any will do.

        Limits are counted by one owner, so that whatever might have some goes to the same partition; a run by name too,
        whose descriptor is not at hand here. What starts other workflows is there too: these are in the partition of
        their parent, and might have limits.
        """
        if (body[:1] == b"{" and b'"name"' in body[:4096] and b'"steps"' not in body) or any(
            word in body for word in _LIMITED
        ):
            return HOME
        if _MAY_HAVE_CHILDREN.search(body) or (_DIGEST in body and not self._places.shares_blobs):
            return HOME
        return self._places.homes(key)[0] if key else None

    def _anywhere(self, forwarded: bool) -> Control | str | None:
        """One of this node's partitions, many submissions in a row the same, which share its commits; else any node."""
        mine = self._places.open()
        if mine:
            self._count += 1
            control = self._places.local(mine[(self._count // _IN_A_ROW) % len(mine)])
            if control is not None:
                return control
        return None if forwarded else self._places.somewhere()


class Routing:
    """The application, with each request in the partition that it is about."""

    def __init__(self, application: Any, router: Router, max_body_bytes: int) -> None:
        self._application, self._router, self._max_body_bytes = application, router, max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        forwarded = any(name == FORWARDED_HEADER for name, _ in scope["headers"])
        token = FORWARDED.set(forwarded)
        try:
            partition = self._partition(scope)
            if scope["path"] in _RESULTS:
                body = await read_body(receive, self._max_body_bytes)
                partition, receive = _partition_in(body), replay(body, receive)
            ASKED.set(listing.asked(scope["headers"]))
            owned = forwarded or self._router.places.shares_blobs or not scope["path"].startswith(f"{_BLOBS}/")
            if partition is None and not owned and (url := await self._with_blob(scope)) is not None:
                answer = await self._router.send(
                    url, scope["method"], target_of(scope), scope["headers"], b"", streamed=True
                )
                if answer is None:
                    raise PartitionMoving(f"{url} has the blob and does not answer", retry_after_s=1.0)
                await self._router.relay(url, answer, send)
            elif partition is None:
                await self._application(scope, receive, send)
            else:
                await self._in(partition, forwarded, scope, receive, send)
        except KnhkError as error:
            await send_answer(send, problem_answer(error))
        finally:
            FORWARDED.reset(token)

    def _partition(self, scope: Any) -> int | None:
        """The partition whose owner must answer; None if it does not matter which node does.

        Raises Unsupported for what changes the runs of many partitions, or is not known to be about one.
        """
        path, method = scope["path"], scope["method"]
        reads = method in ("GET", "HEAD", "OPTIONS")
        if path.startswith(_BLOBS) and not self._router.places.shares_blobs:
            return None if reads else HOME  # and so are the runs that are given some
        if path == PATH or path.startswith((_BLOBS, *_SAME_EVERYWHERE, *_EVERYWHERE)):
            return None
        if path.startswith(f"{PATH}/"):
            name, _, rest = path.removeprefix(f"{PATH}/").partition("/")
            try:
                partition = identifier.partition_of(identifier.parse(name))
            except WorkflowNotFound:
                if reads or rest:
                    return None  # answered with 404
                raise Unsupported(f"{method} {path} is not for clusters: it would reach one partition alone") from None
            local = self._router.places.local(partition) is not None
            needs_owner = not reads or rest == "events" or not self._router.places.shared
            return partition if local or needs_owner else None
        if path in _LEADERS_ROUTES or (path.startswith(_HOME_ROUTES) and (not reads or _TRIGGERS.fullmatch(path))):
            return HOME
        if reads:
            return None if self._router.places.shared else HOME
        raise Unsupported(f"{method} {path} is not for clusters: it would reach one partition alone")

    async def _in(self, partition: int, forwarded: bool, scope: Any, receive: Any, send: Any) -> None:
        if partition >= self._router.places.partitions:
            raise WorkflowNotFound(f"there is no partition {partition}: no workflow of it can exist")
        if scope["path"].startswith(_BLOBS):
            await self._stream(partition, forwarded, scope, receive, send)
            return
        reads = scope["method"] == "GET"
        method, target, headers = scope["method"], target_of(scope), scope["headers"]
        body = b"" if reads else await read_body(receive, self._max_body_bytes)

        async def attempt() -> bool | None:
            place = self._router.place(partition, forwarded=forwarded)
            if place is None:
                return None
            if isinstance(place, str):
                answer = await self._router.send(
                    place, method, target, headers, body, streamed=reads, repeatable=_is_repeatable(scope, body)
                )
                if answer is None:
                    return None
                await self._router.relay(place, answer, send)
            elif reads:
                await self._here(place, scope, receive, send)
            else:
                kept = _Kept()
                await self._here(place, scope, replay(body, receive), kept.take)
                if kept.refused and not forwarded:
                    return None
                await kept.give(send)
            return True

        await self._router.patiently(attempt, partition, once=forwarded)

    async def _stream(self, partition: int, forwarded: bool, scope: Any, receive: Any, send: Any) -> None:
        """A body of any length: it is not kept, and so not sent twice."""
        place = await self._router.owner(partition, forwarded=forwarded)
        if not isinstance(place, str):
            await self._here(place, scope, receive, send)
            return
        headers = scope["headers"]
        answer = await self._router.send(
            place, scope["method"], target_of(scope), headers, parts_of(receive), streamed=True
        )
        if answer is None:
            raise PartitionMoving(f"the owner of partition {partition} does not answer", retry_after_s=1.0)
        await self._router.relay(place, answer, send)

    async def _with_blob(self, scope: Any) -> str | None:
        """The other node that has a blob, where each has its own; None if there is none."""
        for url in self._router.places.others():
            found = await self._router.send(url, "HEAD", target_of(scope), (), b"")
            if found is not None:
                await found.aclose()
                if found.status_code == 200:
                    return url
        return None

    async def _here(self, control: Control, scope: Any, receive: Any, send: Any) -> None:
        token = CONTROL.set(control)
        try:
            await self._application(scope, receive, send)
        finally:
            CONTROL.reset(token)


class _Kept:
    """An answer of this process that is kept until it is clear that nobody else has to give it."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    async def take(self, message: Any) -> None:
        """As ASGI's send."""
        self._messages.append(message)

    @property
    def refused(self) -> bool:
        """Whether nothing was done, because the partition is on its way to another owner."""
        status = self._messages[0]["status"] if self._messages else 0
        return status in REFUSALS and is_refusal(b"".join(one.get("body", b"") for one in self._messages))

    async def give(self, send: Any) -> None:
        """Pass it on."""
        for message in self._messages:
            await send(message)


class _Result(msgspec.Struct):
    workflow_id: str


class _Named(msgspec.Struct):
    id: str = ""


def _is_repeatable(scope: Any, body: bytes) -> bool:
    """Whether the same request once more does nothing more: results of workers, signals and events that have an id."""
    path = scope["path"]
    if path in _RESULTS:
        return True
    if path != "/events" and not path.endswith("/signals"):
        return False
    if any(name == b"idempotency-key" and value for name, value in scope["headers"]):
        return True
    try:
        return bool(msgspec.json.decode(body, type=_Named).id)
    except _UNREADABLE:
        return False


def _partition_in(body: bytes) -> int | None:
    """The partition of the run that a result is about; None if it names none, which this node can say too."""
    try:
        return identifier.partition_of(identifier.parse(msgspec.json.decode(body, type=_Result).workflow_id))
    except (*_UNREADABLE, WorkflowNotFound):
        return None


def _named(headers: Headers) -> int | None:
    """The partition that whoever sent a submission on has chosen; None if any will do."""
    found = listing.asked(headers)
    return found[0] if found else None


def _digest(key: bytes) -> bytes:
    return sha256(key.decode("latin-1").encode()).digest()
