"""Verification of a journal: everything in it, or one run. In the memory of one run, however long the journal is.

Two passes. The first follows each run: hashes, the chain, payloads and descriptor against the digests that the receipts
hold. The second follows each partition's blocks: heights, offsets, the chain, the Merkle root over the stored receipts,
the signature. What ties them together is that both must have seen the very same receipts, each once.

Reads through the ports, writes nothing. Invariant: what the store cannot read is a problem of the report and never an
exception, so that a report says all that is wrong.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from typing import Final, Protocol

from knhk.domain.errors import Corrupt, DataErased, EncryptionKeyUnavailable, WorkflowNotFound
from knhk.domain.identifier import partition_of, to_text
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.blob_check import check_blobs, references
from knhk.persistence.pruning_check import PruningCheck
from knhk.persistence.scanner import ERASED_ROW, LOCKED_ROW, JournalScanner, Progress
from knhk.persistence.verification import UNDECODABLE, BlockChain, Report, RunCheck, Trust
from knhk.ports.journal import Journal

_PROGRESS_EVERY: Final = 256
_PAGE: Final = 256
_REMEMBERED: Final = 100_000
_HASHES_MODULUS: Final = 1 << 256


class Descriptors(Protocol):
    """What has descriptors: a journal, or an archive."""

    async def descriptor(self, digest: bytes) -> bytes | None:
        """As in ports.journal.Journal."""
        ...


class _JournalCheck:
    """One verification of a whole journal."""

    def __init__(
        self, journal: Journal, scanner: JournalScanner, trust: Trust, progress: Progress, blobs: BlobArea | None
    ) -> None:
        self.report = Report()
        self._blobs, self._used = blobs, dict[str, int]()
        self._journal, self._scanner, self._trust, self._progress = journal, scanner, trust, progress
        self._descriptors: dict[bytes, bool] = {}
        self._pruning = PruningCheck()
        self._faulty: set[bytes] = set()
        self._uncounted_faulty = 0
        self._stored = self._in_blocks = 0  # sums of hashes: equal only if both passes saw the same receipts
        self._gaps = self._blocks_total = self._receipts_total = 0

    async def run(self, *, payloads: bool) -> Report:
        report = self.report
        for partition in self._read(self._scanner.partitions, []):
            try:
                head = await self._journal.head(partition)
                block = None if head is None else head.block()
            except (Corrupt, *UNDECODABLE):
                continue  # the second pass names it; this was for the progress alone
            if block is not None:
                self._blocks_total += block.height + 1
                self._receipts_total += block.first_offset + block.count
        self._pruning.open(self._scanner, self._trust, report)
        await self._receipts(payloads)
        if self._blobs is not None:
            check_blobs(self._blobs, self._used, report, self._progress)
        self._pruning.close(report)
        contents = report.missing
        in_blocks = self._blocks()
        # A lost receipt shows in both passes. The blocks know the exact number, unless blocks are lost as well.
        report.missing = contents + max(self._gaps, report.missing - contents)
        stored = report.total_count + report.pruned
        if stored != in_blocks or self._stored != self._in_blocks:
            report.note(
                "chain_break",
                f"{stored} receipts are stored and {in_blocks} are in blocks: not each is in exactly one",
            )
        return report

    async def _receipts(self, with_payloads: bool) -> None:
        rows = _Grouped(self._scanner.scan_payloads(), self._used) if with_payloads else None
        try:
            for workflow_id, sealed in self._scanner.scan_receipts():
                check = RunCheck(workflow_id, self.report)
                check.chain(sealed)
                if rows is not None:
                    await self._contents(check, rows)
                self._count(check, sealed)
            if rows is not None:
                self._orphans(rows.rest())
        except Corrupt as error:
            self.report.note("corrupt", error.message)
        self._progress("receipts", self.report.total_count, max(self.report.total_count, self._receipts_total))

    async def _contents(self, check: RunCheck, rows: "_Grouped") -> None:
        """Payloads and descriptor of a run. Damage in the payloads is named once, and receipts are checked on."""
        if not rows.damaged:
            try:
                self._orphans(rows.before(check.workflow_id))
                check.payloads(rows.of(check.workflow_id))
            except Corrupt as error:
                rows.damaged = True
                self.report.note("corrupt", error.message)
        if rows.damaged:
            check.faulty.update(receipt_hash for _, receipt_hash, _ in check.expected_payloads())
        for digest in check.descriptor_digests:
            if not await self._descriptor(digest, check.workflow_id):
                check.faulty.update(hash_ for receipt, hash_ in check.receipts if receipt.descriptor_digest == digest)

    def _orphans(self, workflow_ids: Iterator[int]) -> None:
        for workflow_id in workflow_ids:
            self.report.note("missing", f"{to_text(workflow_id)}: there are payloads, but no receipts")

    def _count(self, check: RunCheck, sealed: list[Sealed]) -> None:
        report, before = self.report, self.report.total_count
        report.workflows += 1
        report.total_count += sum(one.pruned_by is None for one in sealed)
        self._pruning.take(check.workflow_id, sealed, report)
        self._gaps += check.gap
        self._stored += sum(int.from_bytes(one.hash) for one in sealed)
        self._stored %= _HASHES_MODULUS
        if len(self._faulty) < _REMEMBERED:
            self._faulty |= check.faulty
        else:
            self._uncounted_faulty += len(check.faulty)
        if before // _PROGRESS_EVERY != report.total_count // _PROGRESS_EVERY:
            self._progress("receipts", report.total_count, max(report.total_count, self._receipts_total))

    async def _descriptor(self, digest: bytes, workflow_id: int) -> bool:
        known = self._descriptors.get(digest)
        if known is not None:
            return known
        good = await check_descriptor(self._journal, digest, to_text(workflow_id), self.report)
        if len(self._descriptors) >= _REMEMBERED:
            self._descriptors.clear()
        self._descriptors[digest] = good
        return good

    def _blocks(self) -> int:
        """Check all blocks; how many receipts they have."""
        in_blocks = 0
        for partition in self._read(self._scanner.partitions, []):
            chain = BlockChain(partition, self._trust, self.report)
            try:
                for signed, receipts in self._scanner.scan_block_receipts(partition):
                    in_blocks += self._block(chain, signed, receipts)
                    if not self.report.blocks % _PROGRESS_EVERY:
                        self._progress("blocks", self.report.blocks, max(self.report.blocks, self._blocks_total))
            except Corrupt as error:
                self.report.note("corrupt", error.message)
        self._progress("blocks", self.report.blocks, max(self.report.blocks, self._blocks_total))
        # Where the first pass could not read on, blocks may have receipts whose chain was not followed.
        verified = min(self.report.verified_count, self.report.total_count)
        self.report.verified_count = max(0, verified - self._uncounted_faulty)
        return in_blocks

    def _block(self, chain: BlockChain, signed: SignedBlock, found: list[Sealed] | Corrupt) -> int:
        block = chain.link(signed)
        receipts: list[Sealed] = []
        if isinstance(found, Corrupt):
            self.report.note("corrupt", found.message)
        else:
            receipts = found
        self._in_blocks += sum(int.from_bytes(one.hash) for one in receipts)
        self._in_blocks %= _HASHES_MODULUS
        if block is not None and chain.seal(signed, block, receipts):
            self.report.verified_count += sum(one.has_body and one.hash not in self._faulty for one in receipts)
        return len(receipts) if block is None else block.count

    def _read(self, reading: Callable[[], list[int]], otherwise: list[int]) -> list[int]:
        try:
            return reading()
        except Corrupt as error:
            self.report.note("corrupt", error.message)
            return otherwise


class _Grouped:
    """Payloads run by run, in step with the receipts. Keeps digests only, and one run's at a time."""

    def __init__(self, rows: Iterator[tuple[int, int, int, bytes]], used: dict[str, int]) -> None:
        self._rows, self._used = rows, used
        self._next: tuple[int, int, int, bytes] | None = None
        self._ended = self.damaged = False

    def before(self, workflow_id: int) -> Iterator[int]:
        """The runs that come earlier than this one: their receipts are not there."""
        while (row := self._peek()) is not None and _order(row[0]) < _order(workflow_id):
            self._skip(row[0])
            yield row[0]

    def of(self, workflow_id: int) -> dict[tuple[int, int], bytes]:
        """The digests of this run's payloads, by seq and slot."""
        found = {}
        while (row := self._peek()) is not None and row[0] == workflow_id:
            found[row[1], row[2]] = sha256(row[3]).digest()
            for _, digest in references(iter((row,))):
                self._used.setdefault(digest, workflow_id)
            self._next = None
        return found

    def rest(self) -> Iterator[int]:
        """The runs that are left over."""
        while not self.damaged and (row := self._peek()) is not None:
            self._skip(row[0])
            yield row[0]

    def _skip(self, workflow_id: int) -> None:
        while (row := self._peek()) is not None and row[0] == workflow_id:
            self._next = None

    def _peek(self) -> tuple[int, int, int, bytes] | None:
        if self._next is None and not self._ended:
            self._next = next(self._rows, None)
            self._ended = self._next is None
        return self._next


def _order(workflow_id: int) -> tuple[int, int]:
    return partition_of(workflow_id), workflow_id


async def verify_all(
    journal: Journal,
    scanner: JournalScanner,
    trust: Trust,
    progress: Progress,
    *,
    payloads: bool = True,
    blobs: BlobArea | None = None,
) -> Report:
    """Verify everything. Without `payloads`, no inputs, outputs, descriptors and blobs are read, which is quicker;
    receipts, blocks and signatures are always verified."""
    return await _JournalCheck(journal, scanner, trust, progress, blobs).run(payloads=payloads)


async def verify_workflow(journal: Journal, workflow_id: int, trust: Trust) -> Report:
    """Verify one run: its receipts, what they hold digests of, and the blocks that they are in.

    All blocks from the run's first to the partition's newest are followed, by their chain, for receipts of the run that
    are no longer there; Merkle root and signature are verified of the run's own blocks. Raises WorkflowNotFound.
    """
    sealed = await journal.receipts(workflow_id)
    if not sealed:
        raise WorkflowNotFound(f"there is no workflow {to_text(workflow_id)}")
    report = Report(total_count=len(sealed), workflows=1)
    check = RunCheck(workflow_id, report)
    check.chain(sealed)
    await _verify_contents(journal, check, report)
    at_ns = check.receipts[0][0].at_ns if check.receipts else 0
    start = await first_height(journal, partition_of(workflow_id), at_ns)
    found, proven = await _proven(journal, workflow_id, trust, start)
    if start and not {one.hash for one in sealed} <= proven.keys():
        found, proven = await _proven(journal, workflow_id, trust, 0)  # the clock was wrong: look everywhere
    report.absorb(found)
    for seq, one in enumerate(sealed):
        if one.hash not in proven:
            report.note("chain_break", f"{to_text(workflow_id)}: receipt {seq} is in no block")
    report.verified_count = sum(proven.get(one.hash, False) and one.hash not in check.faulty for one in sealed)
    return report


async def _verify_contents(journal: Journal, check: RunCheck, report: Report) -> None:
    """The payloads that must be there, and the descriptor."""
    name = to_text(check.workflow_id)
    found = {}
    for receipt, _, slot in check.expected_payloads():
        try:
            raw = await journal.payload(check.workflow_id, receipt.seq, slot)
        except EncryptionKeyUnavailable:
            found[receipt.seq, LOCKED_ROW] = b""
            continue
        except DataErased:
            found[receipt.seq, ERASED_ROW] = b""
            continue
        except Corrupt as error:
            report.note("corrupt", f"{name}: {error.message}")
            continue
        if raw is not None:
            found[receipt.seq, slot] = sha256(raw).digest()
    check.payloads(found)
    for digest in check.descriptor_digests:
        await check_descriptor(journal, digest, name, report)


async def check_descriptor(journal: Descriptors, digest: bytes, name: str, report: Report) -> bool:
    """Whether the descriptor with this digest is there and whole; what is wrong goes to the report."""
    try:
        text = await journal.descriptor(digest)
    except EncryptionKeyUnavailable:
        report.locked += 1
        return False
    except Corrupt as error:
        report.note("corrupt", f"{name}: its descriptor {digest.hex()}: {error.message}")
        return False
    if text is None:
        report.note("missing", f"{name}: its descriptor {digest.hex()} is missing")
    elif sha256(text).digest() != digest:
        report.note("corrupt", f"{name}: its descriptor {digest.hex()} is not what its digest says")
    else:
        return True
    return False


async def _proven(journal: Journal, workflow_id: int, trust: Trust, start: int) -> tuple[Report, dict[bytes, bool]]:
    """What the blocks from a height on say about a run: by receipt hash, whether its block verifies."""
    partition = partition_of(workflow_id)
    report, proven, holding = Report(), dict[bytes, bool](), 0
    try:
        before = await journal.blocks(partition, start - 1, 1) if start else []
        chain = BlockChain.after(before[0], trust, report) if before else BlockChain(partition, trust, report)
        async for signed in blocks_from(journal, partition, start):
            block = chain.link(signed)
            if not any(part.workflow_id == workflow_id for part in signed.slices):
                continue
            holding += 1
            receipts = await journal.block_receipts(signed)
            good = block is not None and chain.seal(signed, block, receipts)
            proven.update((one.hash, good) for one in receipts)
    except (Corrupt, *UNDECODABLE) as error:
        report.note("corrupt", str(error))
    report.blocks = holding
    return report, proven


async def blocks_from(journal: Journal, partition: int, height: int) -> AsyncIterator[SignedBlock]:
    """The partition's blocks from a height on."""
    while page := await journal.blocks(partition, height, _PAGE):
        for signed in page:
            yield signed
        height += len(page)


async def first_height(journal: Journal, partition: int, at_ns: int) -> int:
    """The lowest height at which a receipt of this time can be, by bisection: a block is younger than its receipts.

    Wrong if the clock ran backwards between two processes, so that who finds nothing must begin at 0.
    """
    try:
        head = await journal.head(partition)
        low, high = 0, head.block().height if head is not None else 0
        while low < high:
            middle = (low + high) // 2
            page = await journal.blocks(partition, middle, 1)
            if page and page[0].block().at_ns >= at_ns:
                high = middle
            else:
                low = middle + 1
    except (Corrupt, *UNDECODABLE):
        return 0  # reading all of it will name what is wrong
    return low
