"""The only writer of the journal: events become sealed receipts, receipts a signed block, a block one durable append.

Many runs share one append: while one group commit is being synced the next one collects, and it is cut the moment the
sync is done. So an idle system commits at once and a busy one in bulk, with no timer. Nothing that hangs on a commit
(answers, steps with effects, waiters) happens before it is durable.

When the store fails, the same commit is tried again until it is in the journal: the runs stay in memory, admission is
closed through `fault`, and nothing that was acknowledged is lost.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from knhk.domain.errors import KnhkError, ShuttingDown, StorageUnavailable, Unavailable
from knhk.domain.event import Event
from knhk.domain.histogram import SHORT_S, Histogram
from knhk.domain.receipt import (
    BLOCK_PREFIX,
    NO_HASH,
    Block,
    SignedBlock,
    Slice,
    encode_block,
    merkle_root,
    seal,
)
from knhk.domain.run import apply
from knhk.engine.live import LiveRun
from knhk.ports.append import Append, Commit, Payload, RunSlice
from knhk.ports.environment import Clock, Signer
from knhk.ports.journal import Claim, Journal

INPUT: Final = 0
OUTPUT: Final = 1
_FIRST_RETRY_S: Final = 0.05
_LONGEST_RETRY_S: Final = 2.0
_BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Piece:
    """What one run adds to one group commit, with the events themselves for the projector."""

    __slots__ = ("events", "live", "slice")

    def __init__(self, live: LiveRun) -> None:
        self.live = live
        self.slice = RunSlice(live.run.workflow_id, live.run.seq, [], [], live.run.plan.department)
        self.events: list[Event] = []


class Batch:
    """One group commit while it collects and until it is durable."""

    __slots__ = (
        "after",
        "answers",
        "claims",
        "descriptors",
        "durable",
        "erased",
        "failure",
        "height",
        "pieces",
        "receipts",
        "waiters",
    )

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.descriptors: dict[bytes, bytes] = {}
        self.claims: list[Claim] = []
        self.erased: list[int] = []
        self.after: list[Callable[[], None]] = []
        self.receipts = 0
        self.height = -1
        self.durable = False
        self.failure: KnhkError | None = None
        self.waiters: list[asyncio.Future[None]] = []
        self.answers: list[Callable[[KnhkError | None], None]] = []
        """Called once, soon after the batch is durable, or with what has kept it from that."""

    async def committed(self) -> None:
        """Wait until the batch is durable. Raises what has kept it from that, while it is being tried again."""
        if self.durable:
            return
        if self.failure is not None:
            raise _same(self.failure)
        # A future for each who waits: if one of them is cancelled, that is nothing to the others.
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        await waiter


class CommitterStatistics:
    """What the metrics read. `commit_seconds` and `batch_receipts` have one value for each group commit."""

    __slots__ = ("batch_receipts", "commit_seconds", "failures", "receipt_bytes", "receipts")

    def __init__(self) -> None:
        self.receipts = self.receipt_bytes = self.failures = 0
        self.commit_seconds = Histogram(SHORT_S)
        self.batch_receipts = Histogram(_BATCH_SIZES)


class Committer:
    """Commits the receipts of one partition.

    `placement` tells, for a run at the moment its batch is cut, whether a restart must load it at once and when it
    is to be woken (Unix time in ns, 0 for no timer). `committed` is called with each durable batch, `halted` once if
    this process must never write again (another owner, damage).
    """

    def __init__(
        self,
        partition: int,
        append: Append,
        journal: Journal,
        signer: Signer,
        clock: Clock,
        node_id: str,
        *,
        placement: Callable[[LiveRun], tuple[bool, int]],
        committed: Callable[[Batch], None],
        halted: Callable[[KnhkError], None],
    ) -> None:
        self.partition = partition
        self.fault: Unavailable | None = None
        self.statistics = CommitterStatistics()
        self._append, self._journal, self._signer, self._clock = append, journal, signer, clock
        self._node_id = node_id
        self._placement, self._committed, self._halted = placement, committed, halted
        self._epoch = 0
        self._height = self.durable_height = -1
        self._offset = 0
        self._block_hash = NO_HASH
        self._idle: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._open: Batch

    @property
    def uncommitted_receipts(self) -> int:
        """How many receipts wait for the next cut."""
        return self._open.receipts

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        return self._task is not None and self._idle is None and not self._task.done()

    @property
    def height(self) -> int:
        """Height of the newest block that was cut, -1 before the first."""
        return self._height

    async def start(self) -> None:
        """Become the partition's owner and begin to commit."""
        ownership = await self._append.acquire(self.partition)
        self._epoch = ownership.epoch
        if ownership.head is not None:
            head = ownership.head.block()
            self._height, self._offset = head.height, head.first_offset + head.count
            self.durable_height = self._height
            self._block_hash = ownership.head.hash()
        await self._append.register_key(self._signer.public_key)
        self._open = Batch()
        self._task = asyncio.create_task(self._commit_forever(), name=f"committer-{self.partition}")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Commit what is open, then end. While the store is down what is not durable is given up."""
        self._stopping = True
        if self._task is None:
            return
        if self.fault is not None:
            self._task.cancel()
        self._wake()
        await asyncio.gather(self._task, return_exceptions=True)
        _fail(self._open, self.fault or ShuttingDown("the engine has stopped; nothing was written"))

    def add(self, live: LiveRun, event: Event, *, given: bytes | None = None, output: bytes | None = None) -> None:
        """Seal an event at the end of its run's chain, apply it, and let the open batch carry it.

        `given` and `output` are the payloads whose digests the event holds and that are to be kept.
        """
        run, batch = live.run, self._open
        piece = live.piece
        if piece is None:
            piece = live.piece = Piece(live)
            live.batch = batch
            batch.pieces.append(piece)
            if self._idle is not None:
                self._wake()
        seq = run.seq
        sealed = seal(event, run.workflow_id, seq, run.plan.digest, live.previous_hash)
        live.previous_hash = sealed.hash
        piece.slice.receipts.append(sealed)
        piece.events.append(event)
        if given is not None:
            piece.slice.payloads.append(Payload(seq, INPUT, given))
        if output is not None:
            piece.slice.payloads.append(Payload(seq, OUTPUT, output))
        batch.receipts += 1
        apply(run, event)

    def keep_descriptor(self, digest: bytes, text: bytes) -> None:
        """Let the open batch carry a descriptor's text."""
        self._open.descriptors[digest] = text

    def claim(self, claim: Claim) -> None:
        """Let the open batch carry an idempotency key."""
        self._open.claims.append(claim)

    def erase(self, workflow_id: int) -> None:
        """Let the open batch delete all payloads of a run."""
        self._open.erased.append(workflow_id)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fault = StorageUnavailable(f"the committer stopped: {type(error).__name__}: {error}")
            _fail(self._open, self.fault)
            self._halted(self.fault)

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None

    async def _commit_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._open.pieces:
                if self._stopping:
                    return
                self._idle = loop.create_future()
                await self._idle
                continue
            batch, self._open = self._open, Batch()
            commit = self._cut(batch)
            began = loop.time()
            try:
                await self._write(batch, commit)
            except KnhkError as error:
                # The journal belongs to somebody else, or is damaged: this process must not go on writing.
                self.fault = StorageUnavailable(error.message)
                _fail(batch, error)
                _fail(self._open, error)
                self._halted(error)
                return
            self._tell(batch, commit, loop.time() - began)

    def _tell(self, batch: Batch, commit: Commit, seconds: float) -> None:
        statistics = self.statistics
        statistics.receipts += batch.receipts
        statistics.receipt_bytes += sum([len(sealed.body) for part in commit.slices for sealed in part.receipts])
        statistics.batch_receipts.add(batch.receipts)
        statistics.commit_seconds.add(seconds)
        batch.durable = True
        batch.height = self.durable_height = commit.block.height
        for waiter in batch.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if batch.answers:  # Their turn comes when the next commit is under way.
            asyncio.get_running_loop().call_soon(_answer, batch.answers)
        for callback in batch.after:
            callback()
        self._committed(batch)

    def _cut(self, batch: Batch) -> Commit:
        """Close a batch: its Merkle tree, its signed block, and what the store must remember about its runs."""
        slices: list[RunSlice] = []
        hashes: list[bytes] = []
        live_now: list[int] = []
        not_live: list[int] = []
        timers_set: list[tuple[int, int]] = []
        timers_cleared: list[tuple[int, int]] = []
        for piece in batch.pieces:
            live = piece.live
            live.piece = None
            slices.append(piece.slice)
            hashes.extend([sealed.hash for sealed in piece.slice.receipts])
            workflow_id = live.run.workflow_id
            load_at_once, timer_ns = self._placement(live)
            if load_at_once is not live.marked_live:
                (live_now if load_at_once else not_live).append(workflow_id)
                live.marked_live = load_at_once
            if timer_ns != live.timer_row_ns:
                if live.timer_row_ns:
                    timers_cleared.append((live.timer_row_ns, workflow_id))
                if timer_ns:
                    timers_set.append((timer_ns, workflow_id))
                live.timer_row_ns = timer_ns
        block, signed = self._sign(hashes, slices)
        return Commit(
            block,
            signed,
            slices,
            list(batch.descriptors.items()),
            batch.claims,
            live_now,
            not_live,
            timers_set,
            timers_cleared,
            batch.erased,
        )

    def _sign(self, hashes: list[bytes], slices: list[RunSlice]) -> tuple[Block, SignedBlock]:
        block = Block(
            self.partition,
            self._epoch,
            self._height + 1,
            self._offset,
            len(hashes),
            merkle_root(hashes),
            self._block_hash,
            self._clock.now_ns(),
            self._node_id,
            self._signer.public_key.key_id,
        )
        body = encode_block(block)
        signed = SignedBlock(
            body,
            self._signer.sign(BLOCK_PREFIX + body),
            tuple([Slice(one.workflow_id, one.first_seq, len(one.receipts)) for one in slices]),
        )
        self._height += 1
        self._offset += len(hashes)
        self._block_hash = signed.hash()
        return block, signed

    async def _write(self, batch: Batch, commit: Commit) -> None:
        """Append until it is in the journal. Raises only what no retry can mend (Fenced, Corrupt)."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                if self.fault is None or not await self._arrived(commit):
                    await self._append.append(commit)
            except Unavailable as error:
                self.statistics.failures += 1
                self.fault = error
                _fail(batch, error)
                _fail(self._open, error)  # it cannot be written before this one
                if self._stopping:
                    raise
                await self._clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_RETRY_S)
                continue
            self.fault = None
            self._open.failure = None
            return

    async def _arrived(self, commit: Commit) -> bool:
        """Bring the store back; whether the failed append had reached the journal after all."""
        await self._append.reopen()
        head = await self._journal.head(self.partition)
        return head is not None and head.block().height >= commit.block.height


def _fail(batch: Batch, error: KnhkError) -> None:
    """Tell those who wait that the outcome is open: the commit is still being tried."""
    batch.failure = error
    for waiter in batch.waiters:
        if not waiter.done():
            waiter.set_exception(_same(error))
    batch.waiters.clear()
    _answer(batch.answers, error)
    batch.answers.clear()


def _answer(answers: list[Callable[[KnhkError | None], None]], error: KnhkError | None = None) -> None:
    for answer in answers:
        try:
            answer(None if error is None else _same(error))
        except Exception as unforeseen:  # the others must still be told
            context = {"message": "an answer to a submission failed", "exception": unforeseen}
            asyncio.get_running_loop().call_exception_handler(context)


def _same(error: KnhkError) -> KnhkError:
    """The error once more, for another who waits: an exception that is raised twice carries two tracebacks."""
    return type(error)(error.message, retry_after_s=error.retry_after_s or 1.0)
