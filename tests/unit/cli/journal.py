"""A small journal as the engine writes it, signed, in a memory store, for tests that damage it."""

from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain.event import AnyDetail, Event
from knhk.domain.identifier import compose
from knhk.domain.receipt import (
    BLOCK_PREFIX,
    NO_HASH,
    Block,
    Sealed,
    SignedBlock,
    Slice,
    encode_block,
    merkle_root,
    seal,
)
from knhk.persistence.memory import MemoryStore
from knhk.persistence.verification import Trust
from knhk.ports.append import Append, Commit, Payload, RunSlice
from knhk.security.signing import Ed25519Signer, verify

AT_NS = 1_767_225_600_000_000_000
DESCRIPTOR = b"apiVersion: knhk/v1\nkind: Workflow\n"
DIGEST = sha256(DESCRIPTOR).digest()
SIGNER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), AT_NS)
FIRST, SECOND, ERASED, OBSERVED = (compose(AT_NS // 1_000_000, 0, number) for number in range(4))
RUNS = (FIRST, SECOND, ERASED, OBSERVED)


class Writer:
    """Seals, chains, signs and appends. `clock_ns` may be set back to make time run backwards."""

    def __init__(self, store: Append, signer: Ed25519Signer = SIGNER) -> None:
        self.store, self.signer, self.clock_ns = store, signer, AT_NS
        self._ends: dict[int, tuple[int, bytes]] = {}
        self._slices: dict[int, RunSlice] = {}
        self._erased: list[int] = []
        self.epoch, self._height, self._offset, self._block_hash = 1, 0, 0, NO_HASH

    @classmethod
    async def resumed(cls, store: Append) -> "Writer":
        """One that goes on with the blocks of a store."""
        ownership = await store.acquire(0)
        assert ownership.head is not None
        writer, block = cls(store), ownership.head.block()
        writer.epoch, writer._height, writer._offset = (
            ownership.epoch,
            block.height + 1,
            block.first_offset + block.count,
        )
        writer._block_hash, writer.clock_ns = ownership.head.hash(), block.at_ns
        return writer

    def go_on(self, run: int, receipts: list[Sealed]) -> None:
        """Add further receipts of a run after these."""
        self._ends[run] = (len(receipts), receipts[-1].hash)

    def add(
        self,
        run: int,
        detail: AnyDetail,
        step: str = "",
        given: object = None,
        output: object = None,
        keep: bool = False,
    ) -> None:
        """One receipt of a run, in the block that `commit` will cut."""
        self.clock_ns += 1_000
        seq, previous = self._ends.get(run, (0, NO_HASH))
        raw_in = b"" if given is None else payload.encode(given)
        raw_out = b"" if output is None else payload.encode(output)
        digests = [payload.digest(raw) if raw else b"" for raw in (raw_in, raw_out)]
        event = Event(self.clock_ns, detail, step, 1 if step else 0, "engine", *digests)
        sealed = seal(event, run, seq, DIGEST, previous)
        part = self._slices.setdefault(run, RunSlice(run, seq, [], []))
        part.receipts.append(sealed)
        if raw_in and keep:
            part.payloads.append(Payload(seq, 0, raw_in))
        if raw_out:
            part.payloads.append(Payload(seq, 1, raw_out))
        if isinstance(detail, ev.PayloadErased):
            self._erased.append(run)
        self._ends[run] = (seq + 1, sealed.hash)

    async def commit(self) -> None:
        """Cut a block of what was added, and append it."""
        self.clock_ns += 1_000
        slices = list(self._slices.values())
        hashes = [one.hash for part in slices for one in part.receipts]
        block = Block(
            0,
            self.epoch,
            self._height,
            self._offset,
            len(hashes),
            merkle_root(hashes),
            self._block_hash,
            self.clock_ns,
            "node-1",
            self.signer.public_key.key_id,
        )
        signed = signed_block(block, slices, self.signer)
        await self.store.append(
            Commit(block, signed, slices, [(DIGEST, DESCRIPTOR)], [], [], [], [], [], list(self._erased))
        )
        self._slices, self._erased = {}, []
        self._height, self._offset, self._block_hash = self._height + 1, self._offset + len(hashes), signed.hash()


def signed_block(block: Block, slices: list[RunSlice], signer: Ed25519Signer = SIGNER) -> SignedBlock:
    """The header with its signature and its leaves."""
    body = encode_block(block)
    parts = tuple(Slice(part.workflow_id, part.first_seq, len(part.receipts)) for part in slices)
    return SignedBlock(body, signer.sign(BLOCK_PREFIX + body), parts)


async def journal() -> MemoryStore:
    """The journal of `write_journal` in memory."""
    store = MemoryStore()
    await write_journal(store)
    return store


async def write_journal(store: Append) -> None:
    """Four runs in five blocks: one with inputs, one without, one erased, one of covenant O."""
    await store.acquire(0)
    await store.register_key(SIGNER.public_key)
    writer = Writer(store)
    writer.add(FIRST, ev.Submitted("first", steps=2), given={"amount": 3}, keep=True)
    writer.add(SECOND, ev.Submitted("second", steps=1), given={})
    await writer.commit()
    writer.add(FIRST, ev.Started())
    writer.add(FIRST, ev.StepCompleted(), "a", given={"key": 1}, output={"key": 1})
    writer.add(SECOND, ev.Started())
    writer.add(ERASED, ev.Submitted("erased", steps=1), given={"name": "Ada"}, keep=True)
    writer.add(ERASED, ev.Started())
    await writer.commit()
    writer.add(FIRST, ev.StepRetrying(ev.Failure("X", "later"), AT_NS), "b")
    writer.add(SECOND, ev.StepFailed(ev.Failure("X", "no")), "a", given={"key": 2})
    writer.add(SECOND, ev.Failed(ev.Failure("X", "no")))
    await writer.commit()
    writer.add(FIRST, ev.StepCompleted(), "b", given=[1], output="text")
    writer.add(FIRST, ev.Completed(), output={"result": True})
    writer.add(ERASED, ev.StepCompleted(), "a", output={"name": "Ada"})
    writer.add(ERASED, ev.Completed())
    writer.add(OBSERVED, ev.Submitted("observed", covenant="O", steps=1), given={"x": 1}, keep=True)
    await writer.commit()
    writer.add(ERASED, ev.PayloadErased("asked for"))
    writer.add(OBSERVED, ev.Started())
    writer.add(OBSERVED, ev.StepCompleted(), "a", given={"seen": 1}, output={"seen": 1}, keep=True)
    writer.add(OBSERVED, ev.Completed())
    await writer.commit()


def all_receipts(store: MemoryStore) -> list[tuple[int, int, Sealed]]:
    """Every receipt with its run and seq."""
    return [(run, seq, one) for run in RUNS for seq, one in enumerate(store._state.receipts[run])]


def trust(*signers: Ed25519Signer) -> Trust:
    """Trust in the journal's own key, or in others."""
    return Trust.of([signer.public_key for signer in signers or (SIGNER,)], verify)
