"""Segments back into a journal: the newest history, or the one at a point in time, up to that time."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from knhk.domain.errors import BackupCorrupt
from knhk.domain.receipt import SignedBlock
from knhk.persistence.journal_import import JournalImport
from knhk.persistence.scanner import Progress
from knhk.persistence.verification import CheckSignature
from knhk.ports.environment import PublicKey
from knhk.recovery import segments
from knhk.recovery.histories import History, Reader
from knhk.recovery.places import Place
from knhk.recovery.shipper import CURSOR_ROW, MOST_BLOCKS, fold_of, written_cursor

_NO_END: Final = 1 << 63
_SIGNED: Final = msgspec.msgpack.Decoder(SignedBlock)


class Replayed(msgspec.Struct):
    """What was added to the journal. `left_out` counts blocks that are younger than the time that was asked for."""

    history: str = ""
    segments: int = 0
    blocks: int = 0
    receipts: int = 0
    left_out: int = 0


def sum_of(done: Sequence[Replayed]) -> Replayed | None:
    """What was added together; None if nothing was replayed at all."""
    if not done:
        return None
    histories = ", ".join(one.history for one in done if one.history)
    figures = ("segments", "blocks", "receipts", "left_out")
    return Replayed(histories, *(sum(getattr(one, name) for one in done) for name in figures))


def replay(
    journal: JournalImport,
    place: Place,
    *,
    to_ns: int,
    pinned: list[PublicKey] | None,
    check: CheckSignature,
    progress: Progress,
) -> Replayed:
    """Add the blocks that were shipped after the journal's end, up to `to_ns` (Unix time in ns, 0 for all).

    Raises BackupCorrupt, naming the segment, if one is missing, damaged, or not of this journal's line of events.
    """
    done = Replayed()
    known = Reader(place, pinned, check)
    target = known.newest(to_ns)
    if target is None:
        return done
    done.history = target.history
    line = known.line(target.history)
    for partition in _partitions(place, line):
        tip = journal.heads.get(partition)
        start = 0 if tip is None else tip.height + 1
        names = list(_names(place, line, partition, start))
        for number, (name, last) in enumerate(names):
            _add(journal, place, name, last, done, to_ns, pinned, check)
            progress("replay", number + 1, len(names))
        # Where shipping goes on; it finds out itself whether this is another line of events from here.
        cursor = written_cursor(target.history, journal.heads[partition].height if partition in journal.heads else -1)
        journal.put_row(fold_of(partition), CURSOR_ROW, cursor)
    return done


def _add(
    journal: JournalImport,
    place: Place,
    name: str,
    last: int,
    done: Replayed,
    to_ns: int,
    pinned: list[PublicKey] | None,
    check: CheckSignature,
) -> None:
    where = f"{place}/{name}"
    header, body = segments.decode(place.read(name), where, pinned, check)
    if segments.heights_of(name) != (header.first, header.last):
        raise BackupCorrupt(f"{where} has blocks {header.first} to {header.last}: it was renamed")
    if to_ns and header.from_ns > to_ns:
        done.left_out += header.last - header.first + 1
        return
    journal.add_keys(body.keys, body.ring, body.pruned)
    before = journal.blocks, journal.receipts
    for rows in body.blocks:
        block = _SIGNED.decode(rows.block).block()
        if block.height > last:
            break
        if to_ns and block.at_ns > to_ns:
            done.left_out += 1
        else:
            journal.add(rows, where)
    journal.sync()
    done.segments += 1
    done.blocks += journal.blocks - before[0]
    done.receipts += journal.receipts - before[1]


def _partitions(place: Place, line: list[History]) -> list[int]:
    found = {
        int(folder[1:])
        for history in line
        for folder in place.folders(f"segments/{history.history}")
        if folder[:1] == "p" and folder[1:].isdecimal()
    }
    return sorted(found)


def _names(place: Place, line: list[History], partition: int, start: int) -> Iterator[tuple[str, int]]:
    """The segments with the blocks from `start` on, in order, each with the last block that counts.

    Of an ancestor, only what its child inherits counts.
    """
    for at, history in enumerate(line):
        last = min((child.inherited(partition) for child in line[at + 1 :]), default=_NO_END)
        if last < start:
            continue
        folder = segments.folder(history.history, partition)
        after = segments.name_of(history.history, partition, max(0, start - MOST_BLOCKS), 0) if start else ""
        for name in sorted(one.name for one in place.entries(folder, after=after)):
            heights = segments.heights_of(name)
            if heights is not None and heights[1] >= start and heights[0] <= last:
                yield name, last
