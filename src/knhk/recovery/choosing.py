"""Which snapshot and which segments to restore each partition from.

Of one named snapshot, all partitions that are in it. Otherwise for each partition the newest backup or snapshot that
has it, and what was shipped after that. Where a partition's own things are:

    partition 0    checkpoints/          backup_to/
    partition N    checkpoints/partition-N    backup_to/partition-N
    all of them    checkpoints/all       backup_to/<name of a backup>
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from knhk.domain.errors import InvalidInput, NotFound, Unsupported
from knhk.domain.times import rfc3339
from knhk.persistence.partition_directories import directory_of, partitions_in
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.verification import CheckSignature
from knhk.ports.environment import PublicKey
from knhk.recovery import backups, snapshots
from knhk.recovery.backups import OWN, Backup, own_name, own_place
from knhk.recovery.places import Place
from knhk.recovery.recover import Part, Segments
from knhk.recovery.restore import Source, find
from knhk.recovery.whole import OF_ALL, partition_of, split


class Known(NamedTuple):
    """Where to look: the data directory, local snapshots, and the place of backups and segments ("": none).

    With `together` the partitions are not in stores of their own: they are to go into one database.
    """

    data: Path
    checkpoints: Path
    place: str
    options: StoreOptions
    together: bool = False


class Choice(NamedTuple):
    """What to restore; `whole` if that is all partitions of the data directory."""

    parts: list[Part]
    whole: bool


def choose(
    known: Known,
    snapshot: str | None,
    to_ns: int,
    pinned: Sequence[PublicKey] | None,
    check: CheckSignature,
    *,
    with_segments: bool,
) -> Choice:
    """The parts of a restore, of the snapshot with this path or URL if one is named; `to_ns` is Unix time, 0 for all.

    Raises NotFound if there is nothing, InvalidInput if the snapshot is younger than the time, and what `find` does.
    """
    keys = None if pinned is None else list(pinned)
    place = Place.of(known.place) if known.place and (with_segments or snapshot is None) else None
    sources = _newest(known, place, to_ns, keys, check) if snapshot is None else split(find(snapshot, keys, check))
    shipped = {0: place, **_shipped(place)} if place is not None and with_segments else {}
    if not sources and not shipped:
        raise NotFound(
            "there is nothing to restore: no snapshot, no backup, and no place with segments",
            hint="Name one with --snapshot, or a place with --segments or recovery.backup_to.",
        )
    for source in sources.values():
        if to_ns and any(head.at_ns > to_ns for head in (source.manifest.heads if source.manifest else ())):
            raise InvalidInput(
                f"{source.name} is younger than {rfc3339(to_ns)}", hint="Name an older one, or none: it is found then."
            )
    segments = {one: Segments(found, to_ns, known.options) for one, found in shipped.items()}
    if known.together and len(sources) > 1:
        raise Unsupported(
            f"{sources[0].name} has {len(sources)} partitions, each with a store of its own: not for one database",
            hint="Restore it to a data directory: leave persistence.url out.",
        )
    if known.together:
        return Choice([Part("", sources.get(0), tuple(segments[one] for one in sorted(segments)))], whole=True)
    numbers = sorted(sources.keys() | segments.keys())
    parts = [Part(_folder(one), sources.get(one), (segments[one],) if one in segments else ()) for one in numbers]
    return Choice(parts, whole=snapshot is None or len(sources) > 1)


def _folder(partition: int) -> str:
    return directory_of(Path(), partition).as_posix() if partition else ""


def _shipped(place: Place) -> dict[int, Place]:
    """The further partitions of which something was shipped."""
    numbers = [one.removeprefix(OWN) for one in place.folders() if one.startswith(OWN)]
    found = {int(one): Place.of(own_place(str(place), int(one))) for one in numbers if one.isdecimal()}
    return {one: its for one, its in found.items() if its.folders("segments")}


def _newest(
    known: Known, place: Place | None, to_ns: int, pinned: list[PublicKey] | None, check: CheckSignature
) -> dict[int, Source]:
    chosen: dict[int, Backup] = {}
    for partition, backup in _candidates(known, place):
        manifest = backup.manifest
        if manifest is None or (to_ns and any(head.at_ns > to_ns for head in manifest.heads)):
            continue
        best = chosen.get(partition)
        if best is None or best.manifest is None or best.manifest.made_at_ns < manifest.made_at_ns:
            chosen[partition] = backup
    found = {url: split(find(url, pinned, check)) for url in {backup.url for backup in chosen.values()}}
    return {one: found[backup.url].get(one, found[backup.url][0]) for one, backup in chosen.items()}


def _candidates(known: Known, place: Place | None) -> Iterator[tuple[int, Backup]]:
    """Backups and snapshots, with each partition that is in it."""
    several = [] if place is None else backups.listed(place)
    several += _local(known.checkpoints / OF_ALL)
    for backup in several:
        files = () if backup.manifest is None else backup.manifest.files
        yield from ((one, backup) for one in {0, *(partition_of(file.path) for file in files)})
    yield from ((0, one) for one in _local(known.checkpoints))
    count = 1 if known.together else partitions_in(known.data)
    own = {int(path.name.removeprefix(OWN)) for path in known.checkpoints.glob(f"{OWN}[0-9]*")}
    for partition in sorted({*range(1, count), *own}):
        yield from ((partition, one) for one in _local(known.checkpoints / own_name(partition)))


def _local(directory: Path) -> list[Backup]:
    return [Backup(str(one.path), one.path.name, one.manifest) for one in snapshots.listed(directory)]
