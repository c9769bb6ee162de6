"""Putting shipped blocks into a store that no server has open: each is checked, then written as one batch.

A block is taken only if it continues the partition's chain, has the Merkle root of its receipts, and is signed by a
trusted key. A run that the blocks touch and that has not ended is loaded at the next start, whatever it waits for, and
sets its own timer again; so the timers that it had in the store are removed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from rocksdict import WriteBatch

from knhk.domain.errors import BackupCorrupt
from knhk.domain.receipt import NO_HASH, Block, SignedBlock, merkle_root
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import in_clear
from knhk.persistence.fencing import Tip
from knhk.persistence.head_witness import HeadWitness
from knhk.persistence.rocksdb_database import Counters
from knhk.persistence.rocksdb_errors import Stalled
from knhk.persistence.rocksdb_keys import (
    CLAIM,
    DESCRIPTOR,
    MAX_SEQ,
    NUMBER,
    RING_KEY,
    TIMER,
    block_key,
    epoch_key,
    live_key,
    row_prefix,
    run_key,
)
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.stored_blocks import BlockRows, hashes_of
from knhk.persistence.verification import UNDECODABLE, CheckSignature, Trust
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim

_CLAIM: Final = msgspec.msgpack.Decoder(Claim)
_KEY: Final = msgspec.msgpack.Decoder(PublicKey)
_SIGNED: Final = msgspec.msgpack.Decoder(SignedBlock)
_PAUSE_S: Final = 0.005


class JournalImport:
    """Grows the journal in a directory. `heads` are the newest blocks by partition."""

    def __init__(
        self, path: Path, options: StoreOptions, pinned: list[PublicKey] | None, check: CheckSignature
    ) -> None:
        """Open the directory, and make a store there if it is empty. Raises what rocksdb_opening.open_database says."""
        self._path, self._check, self._pinned = path, check, pinned
        self._database, self.heads = open_database(path, options, Counters(), read_only=False)
        self._trust = self._trusted()
        self._timers: dict[int, list[bytes]] = {}
        for key, _ in self._database.scan("timers", b"", None):
            self._timers.setdefault(TIMER.unpack(key)[2], []).append(key)
        self.blocks = self.receipts = 0

    def _trusted(self) -> Trust:
        if self._pinned is not None:
            return Trust.of(self._pinned, self._check)
        return Trust.of([_KEY.decode(row) for _, row in self._database.scan("keys", b"", None)], self._check)

    def add_keys(self, rows: list[tuple[bytes, bytes]], ring: bytes, pruned: list[tuple[bytes, bytes]]) -> None:
        """Take over rows of public keys, which key ring encrypts the rows (empty: none), and records of pruning."""

        def batch() -> WriteBatch:
            made = WriteBatch(raw_mode=True)
            for key, row in rows:
                made.put(key, row, self._database.handles["keys"])
            for key, row in pruned:
                made.put(key, row, self._database.handles["meta"])
            if ring:
                made.put(RING_KEY, ring, self._database.handles["meta"])
            return made

        self._write(batch)
        self._trust = self._trusted()

    def add(self, rows: BlockRows, name: str) -> bool:
        """Add a block, not yet durably; False if the journal has it already. `name` says where it comes from.

        Raises BackupCorrupt if it is not the next block, or not what was signed.
        """
        try:
            signed = _SIGNED.decode(rows.block)
            block = signed.block()
        except UNDECODABLE as error:
            raise BackupCorrupt(f"{name}: a block cannot be decoded: {error}") from error
        tip = self.heads.get(block.partition)
        next_height = 0 if tip is None else tip.height + 1
        if block.height < next_height:
            self._require_same(signed, block, name)
            return False
        where = f"{name}: block {block.height} of partition {block.partition}"
        if block.height > next_height:
            raise BackupCorrupt(f"{where} does not follow block {next_height - 1}: those between are missing")
        if block.previous_block_hash != (NO_HASH if tip is None else tip.hash):
            raise BackupCorrupt(f"{where} belongs to another history than the blocks before it")
        hashes = hashes_of(rows, signed)
        if len(hashes) != block.count or merkle_root(hashes) != block.merkle_root:
            raise BackupCorrupt(f"{where} does not have the receipts that were signed")
        if objection := self._trust.objection(signed, block):
            raise BackupCorrupt(f"{where}: {objection}")
        self._write(lambda: self._batch(rows, signed, block))
        self.heads[block.partition] = Tip(block.height, signed.hash())
        self.blocks += 1
        self.receipts += block.count
        return True

    def _require_same(self, signed: SignedBlock, block: Block, name: str) -> None:
        stored = self._database.get("blocks", block_key(block.partition, block.height))
        if stored is None or decode_signed_block(stored, block.partition, block.height).hash() != signed.hash():
            raise BackupCorrupt(
                f"{name}: block {block.height} of partition {block.partition} is another than the restored one: "
                "the snapshot and the segments are of different histories"
            )

    def _batch(self, rows: BlockRows, signed: SignedBlock, block: Block) -> WriteBatch:
        handles = self._database.handles
        batch = WriteBatch(raw_mode=True)
        for workflow_id in rows.erased:
            start, end = run_key(workflow_id, 0), run_key(workflow_id, MAX_SEQ) + b"\x00"
            for key, _ in self._database.scan("payloads", start, end):
                batch.delete(key, handles["payloads"])
        for part, receipts, payloads in zip(signed.slices, rows.receipts, rows.payloads, strict=True):
            key = run_key(part.workflow_id, part.first_seq)
            batch.put(key, receipts, handles["receipts"])
            if payloads:
                batch.put(key, payloads, handles["payloads"])
        batch.put(block_key(block.partition, block.height), rows.block, handles["blocks"])
        batch.put(epoch_key(block.partition), NUMBER.pack(block.epoch), handles["meta"])
        for digest, row in rows.descriptors:
            batch.put(DESCRIPTOR + digest, row, handles["index"])
        for row in rows.claims:
            batch.put(CLAIM + _CLAIM.decode(row).key_digest, row, handles["index"])
        for workflow_id in rows.live:
            batch.put(live_key(workflow_id), b"", handles["index"])
        for workflow_id in rows.not_live:
            batch.delete(live_key(workflow_id), handles["index"])
        for workflow_id in (*rows.live, *rows.not_live):
            for key in self._timers.get(workflow_id, ()):
                batch.delete(key, handles["timers"])
        return batch

    def put_row(self, fold: str, key: bytes, row: bytes) -> None:
        """Set a row of a projection."""

        def batch() -> WriteBatch:
            made = WriteBatch(raw_mode=True)
            made.put(row_prefix(fold) + key, in_clear(row), self._database.handles["runs"])
            return made

        self._write(batch)

    def sync(self) -> None:
        """Make what was added durable."""
        self._database.sync()

    def close(self) -> None:
        """Make everything durable, note where the journal ends, and release the directory."""
        try:
            self._database.sync()
            HeadWitness(self._path, self.heads).close()
        finally:
            self._database.close()

    def _write(self, batch: Callable[[], WriteBatch]) -> None:
        while True:
            try:
                self._database.write(batch())
                return
            except Stalled:
                time.sleep(_PAUSE_S)
