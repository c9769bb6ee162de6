"""What verification checks: the receipts and payloads of one run, the blocks of one partition, and what it reports.

Pure: given what is stored, says what is wrong with it. journal_check.py reads a store and drives this; docs/receipts.md
describes the checks. Invariant: damaged data is a problem of the report and never an exception.
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, Self

import msgspec

from knhk.domain import payload as payloads_of
from knhk.domain.event import Kind, Submitted
from knhk.domain.identifier import to_text
from knhk.domain.receipt import (
    BLOCK_PREFIX,
    NO_HASH,
    Block,
    ChainState,
    Receipt,
    Sealed,
    SignedBlock,
    merkle_root,
)
from knhk.persistence.scanner import ERASED_ROW, LOCKED_ROW
from knhk.ports.environment import PublicKey

INPUT: Final = 0
OUTPUT: Final = 1
NAMED_PROBLEMS: Final = 100
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding damaged bytes raises."""
_NO_INPUTS: Final = payloads_of.digest(payloads_of.encode({}))

CheckSignature = Callable[[PublicKey, bytes, bytes], bool]
"""Whether a key made a signature over a message."""


class Trust(msgspec.Struct, frozen=True):
    """The keys whose blocks are accepted, by key id, and the function that checks a signature."""

    keys: Mapping[str, PublicKey]
    check: CheckSignature

    @classmethod
    def of(cls, keys: list[PublicKey], check: CheckSignature) -> Self:
        """Trust in these keys, each under the id that its bytes give, whatever it is stored under."""
        return cls({sha256(key.raw).hexdigest()[:16]: key for key in keys}, check)

    def objection(self, signed: SignedBlock, block: Block) -> str:
        """Why the block's signature is not accepted; empty if it is."""
        key = self.keys.get(block.key_id)
        if key is None:
            return f"its key {block.key_id!r} is not among those that are trusted"
        if key.retired_at_ns and block.at_ns > key.retired_at_ns:
            return f"its key {block.key_id!r} was retired before"
        if not self.check(key, BLOCK_PREFIX + signed.body, signed.signature):
            return f"the signature does not verify with key {block.key_id!r}"
        return ""


class Report(msgspec.Struct):
    """What a verification found. Counts are of receipts, except `blocks`, `workflows`, and `missing`.

    `missing` counts receipts, blocks, payloads and descriptors that must be there and are not. `locked` counts the
    receipts, rows of payloads and descriptors that are encrypted with a key which is not at hand: of such a receipt the
    hash alone was verified, by the signed block that has it. `pruned` counts receipts, not in `total_count`, of which
    the hash alone is kept; `notes` say what was pruned. `problems` names the first hundred different ones of
    `problem_count`. Time reversals alone do not make a journal invalid: the chain proves the order of what happened,
    the clock of a machine does not.
    """

    total_count: int = 0
    verified_count: int = 0
    signature_failures: int = 0
    chain_breaks: int = 0
    time_reversals: int = 0
    missing: int = 0
    corrupt: int = 0
    locked: int = 0
    pruned: int = 0
    blocks: int = 0
    workflows: int = 0
    problem_count: int = 0
    problems: list[str] = []
    notes: list[str] = []

    @property
    def valid(self) -> bool:
        """Whether everything is as it was written."""
        return self.problem_count == self.time_reversals

    def note(self, what: str, message: str, count: int = 1) -> None:
        """Count something under `what` (as in ChainFault, or `signature`), and name it."""
        match what:
            case "signature":
                self.signature_failures += 1
            case "chain_break" | "foreign":
                self.chain_breaks += 1
            case "time_reversal":
                self.time_reversals += 1
            case "missing":
                self.missing += count
            case _:
                self.corrupt += 1
        self.problem_count += 1
        if len(self.problems) < NAMED_PROBLEMS and message not in self.problems:  # damage is met more than once
            self.problems.append(message)

    def absorb(self, other: "Report") -> None:
        """Take what another report found into this one."""
        for name in msgspec.structs.asdict(other):
            if name not in ("problems", "notes"):
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems = (self.problems + other.problems)[:NAMED_PROBLEMS]
        self.notes = (self.notes + other.notes)[:NAMED_PROBLEMS]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-like data."""
        return {"valid": self.valid, **msgspec.structs.asdict(self)}


class RunCheck:
    """Checks the receipts of one run, and which payloads and descriptors must be there because of them."""

    def __init__(self, workflow_id: int, report: Report) -> None:
        self.workflow_id, self._report = workflow_id, report
        self.faulty: set[bytes] = set()
        self.receipts: list[tuple[Receipt, bytes]] = []
        self.gap = 0
        self.locked = False
        self.key_destroyed = False

    def chain(self, sealed: list[Sealed]) -> None:
        """Hash, form, position and predecessor of each receipt whose body can be had."""
        state = ChainState(self.workflow_id)
        for one in sealed:
            if not one.has_body:  # its block proves the hash, nobody the contents
                self._report.locked += one.pruned_by is None
                self._report.pruned += one.pruned_by is not None
                self.locked = True
                state.next_seq, state.previous_hash = state.next_seq + 1, one.hash
                continue
            expected = state.next_seq
            for fault in state.check(one):
                self._report.note(fault.what, f"{to_text(self.workflow_id)}: {fault.message}", 0)
                if fault.what != "time_reversal":
                    self.faulty.add(one.hash)
            self.gap += max(0, state.next_seq - 1 - expected)
            try:
                self.receipts.append((one.receipt(), one.hash))
            except UNDECODABLE:
                continue  # named above

    @property
    def descriptor_digests(self) -> set[bytes]:
        """The descriptors that the receipts name: one, if nothing is wrong."""
        return {receipt.descriptor_digest for receipt, _ in self.receipts}

    def expected_payloads(self) -> Iterator[tuple[Receipt, bytes, int]]:
        """Each payload that must be stored, as the receipt, the receipt's hash and the slot.

        Outputs always; the inputs of the run unless there were none; the inputs of steps under covenant O. After
        `payload.erased` nothing needs to be there, nor if the key was destroyed; of locked receipts nobody can tell.
        """
        if not self.receipts or self.locked or self.key_destroyed:
            return
        if any(receipt.kind == Kind.PAYLOAD_ERASED for receipt, _ in self.receipts):
            return
        observed = _covenant(self.receipts[0][0]) == "O"
        for receipt, receipt_hash in self.receipts:
            if receipt.output_digest:
                yield receipt, receipt_hash, OUTPUT
            given = receipt.input_digest
            if given and (given != _NO_INPUTS if receipt.kind == Kind.WORKFLOW_SUBMITTED else observed):
                yield receipt, receipt_hash, INPUT

    def payloads(self, found: Mapping[tuple[int, int], bytes]) -> None:
        """The digests of the stored payloads, by seq and slot, against those in the receipts."""
        name = to_text(self.workflow_id)
        by_seq = {receipt.seq: (receipt, receipt_hash) for receipt, receipt_hash in self.receipts}
        for _, slot in found:
            self._report.locked += slot == LOCKED_ROW
            self.key_destroyed |= slot == ERASED_ROW
            self.locked |= slot == LOCKED_ROW
        for (seq, slot), digest in found.items():
            if slot in (LOCKED_ROW, ERASED_ROW) or self.locked:
                continue
            receipt, receipt_hash = by_seq.get(seq, (None, b""))
            if receipt is None:
                self._report.note("corrupt", f"{name}: there is a payload of receipt {seq}, which does not exist")
            elif digest != (receipt.output_digest if slot == OUTPUT else receipt.input_digest):
                self.faulty.add(receipt_hash)
                self._report.note("corrupt", f"{name}: {_slot(slot)} of receipt {seq} is not what its digest says")
        for receipt, receipt_hash, slot in self.expected_payloads():
            if (receipt.seq, slot) not in found:
                self.faulty.add(receipt_hash)
                self._report.note("missing", f"{name}: {_slot(slot)} of receipt {receipt.seq} is missing")


class BlockChain:
    """Checks the blocks of one partition in turn, each with the receipts that its slices lead to."""

    def __init__(self, partition: int, trust: Trust, report: Report) -> None:
        self._partition, self._trust, self._report = partition, trust, report
        self._height = self._offset = self._epoch = self._at_ns = 0
        self._previous = NO_HASH
        self._started = False

    @classmethod
    def after(cls, signed: SignedBlock, trust: Trust, report: Report) -> Self:
        """The chain that goes on after a block which is taken as it is."""
        block = signed.block()
        chain = cls(block.partition, trust, report)
        chain._advance(signed, block)
        return chain

    def link(self, signed: SignedBlock) -> Block | None:
        """The header in its chain, without its receipts. None if it cannot be decoded."""
        self._report.blocks += 1
        try:
            block = signed.block()
        except UNDECODABLE as error:
            self._note("corrupt", f"block {self._height}", f"cannot be decoded: {error}")
            self._height, self._previous = self._height + 1, signed.hash()
            return None
        name = f"block {block.height}"
        if block.partition != self._partition:
            self._note("foreign", name, f"belongs to partition {block.partition}")
        if block.height > self._height:
            gap = f"blocks {self._height} to {block.height - 1}"
            self._note("missing", gap, "are missing", block.height - self._height)
        elif block.height < self._height:
            self._note("chain_break", name, f"stands where block {self._height} should")
        elif block.previous_block_hash != self._previous:
            self._note("chain_break", name, "does not follow the block before it")
        elif block.first_offset != self._offset:
            self._note("chain_break", name, f"begins at offset {block.first_offset}, not at {self._offset}")
        if block.epoch < self._epoch:
            self._note("chain_break", name, f"is of epoch {block.epoch}, older than the epoch {self._epoch} before it")
        if block.at_ns < self._at_ns:
            self._note("time_reversal", name, "is older than the block before it")
        if sum(part.count for part in signed.slices) != block.count:
            self._note("corrupt", name, f"says that it has {block.count} receipts, but not which")
        self._advance(signed, block)
        return block

    def seal(self, signed: SignedBlock, block: Block, receipts: list[Sealed]) -> bool:
        """Whether the block's signature and the receipts stored for it are good."""
        name = f"block {block.height}"
        objection = self._trust.objection(signed, block)
        if objection:
            self._note("signature", name, objection)
        if len(receipts) != block.count:
            lost = max(1, block.count - len(receipts))
            self._note("missing", name, f"has {block.count} receipts, but {len(receipts)} are there", lost)
        elif merkle_root(one.hash for one in receipts) != block.merkle_root:
            self._note("corrupt", name, "its Merkle root is not that of its receipts")
        else:
            return not objection
        return False

    def _advance(self, signed: SignedBlock, block: Block) -> None:
        self._height, self._offset = block.height + 1, block.first_offset + block.count
        self._previous, self._epoch, self._at_ns = signed.hash(), block.epoch, block.at_ns

    def _note(self, what: str, name: str, message: str, count: int = 1) -> None:
        self._report.note(what, f"partition {self._partition}: {name}: {message}", count)


def _covenant(first: Receipt) -> str:
    """The covenant that the first receipt of a run names; none if that cannot be read."""
    try:
        detail = first.typed_detail()
    except (*UNDECODABLE, KeyError):
        return ""
    return detail.covenant if isinstance(detail, Submitted) else ""


def _slot(slot: int) -> str:
    return "the output" if slot == OUTPUT else "the input"
