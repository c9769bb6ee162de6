"""Backups by `knhk backup`: made of snapshots, read back, verified, pruned, and restored."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk.domain.errors import BackupCorrupt, BackupUnavailable
from knhk.domain.units import DAY
from knhk.recovery import backups, restore
from knhk.recovery.places import Place
from knhk.security.signing import verify
from tests.acceptance.server import Server
from tests.integration.recovering import House
from tests.services.faulty_s3 import FaultyS3
from tests.services.s3 import S3

NAME = "20260131_120000"


@pytest.fixture
def faulty(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with FaultyS3(s3) as proxy:
        for name, value in proxy.variables.items():
            monkeypatch.setenv(name, value)
        yield proxy


def silent(_stage: str, _done: int, _total: int) -> None:
    pass


async def snapshot_of_runs(directory: Path, count: int = 3) -> tuple[House, Path]:
    house = await House(directory, "").start()
    await house.run(count)
    path = (await house.recovery.snapshots.take()).path
    await house.stop()
    return house, path


async def test_a_backup_in_s3_is_listed_verified_and_restored(faulty: FaultyS3, tmp_path: Path) -> None:
    house, snapshot = await snapshot_of_runs(tmp_path / "one")
    place = Place.of(faulty._s3.bucket("backups-good"))
    made = backups.create(snapshot, place, NAME, silent)
    assert [one.name for one in backups.listed(place)] == [NAME]
    assert backups.listed(place) == [made]
    assert list(backups.faults(restore.find(made.url, None, verify), silent)) == []
    house.lose()
    assert (await house.restore(made.url)).report.workflows == 3


@pytest.mark.parametrize("mode", ["error", "lie", "half", "truncate", "flip"])
async def test_a_backup_that_does_not_arrive_whole_fails_and_is_none(
    faulty: FaultyS3, tmp_path: Path, mode: str
) -> None:
    _, snapshot = await snapshot_of_runs(tmp_path / "one")
    place = Place.of(faulty._s3.bucket(f"backups-{mode}"))
    faulty.mode = mode
    with pytest.raises(BackupUnavailable):
        backups.create(snapshot, place, NAME, silent)
    faulty.mode = ""
    assert all(one.manifest is None for one in backups.listed(place))


async def test_s3_that_truncates_or_flips_while_restoring_is_found(faulty: FaultyS3, tmp_path: Path) -> None:
    house, snapshot = await snapshot_of_runs(tmp_path / "one")
    url = backups.create(snapshot, Place.of(faulty._s3.bucket("backups-read")), NAME, silent).url
    before = sorted(path.name for path in house.data.iterdir())
    for mode in ("truncate", "flip"):
        faulty.mode = ""
        source = restore.find(url, None, verify)
        faulty.mode = mode
        assert list(backups.faults(source, silent))
        with pytest.raises(BackupCorrupt):
            await house.restore(url)
    assert sorted(path.name for path in house.data.iterdir()) == before


async def test_each_damage_is_named(tmp_path: Path) -> None:
    _, snapshot = await snapshot_of_runs(tmp_path / "one")
    place = Place.of(str(tmp_path / "away"), make=True)
    made = backups.create(snapshot, place, NAME, silent)
    source = restore.find(made.url, None, verify)
    assert made.manifest is not None
    for entry in made.manifest.files:
        name = f"{NAME}/data/{entry.path}"
        raw = place.read(name)
        place.put(name, bytes([raw[0] ^ 4]) + raw[1:])
        assert [one.partition(" ")[0] for one in backups.faults(source, silent)] == [entry.path]
        place.delete([name])
        assert list(backups.faults(source, silent)) == [f"{entry.path} is missing"]
        place.put(name, raw)
    place.put(f"{NAME}/data/999999.log", b"more")
    assert list(backups.faults(source, silent)) == ["999999.log is not in the manifest"]


async def test_old_ones_go_but_never_the_newest_good_one_and_what_it_needs(tmp_path: Path) -> None:
    house = await House(tmp_path / "one", str(tmp_path / "away")).start()
    place = Place.of(str(tmp_path / "away"), make=True)
    for name in ("20260101_000000", "20260102_000000"):
        await house.run(2)
        await house.shipped()
        backups.create((await house.recovery.snapshots.take()).path, place, name, silent)
    (tmp_path / "away" / "20250101_000000" / "data").mkdir(parents=True)
    (tmp_path / "away" / "20250101_000000" / "data" / "CURRENT").write_text("incomplete")
    (tmp_path / "away" / "of-somebody-else").mkdir()
    await house.run(1)
    await house.shipped()
    await house.stop()
    names = sorted((tmp_path / "away").rglob("*.seg"))
    for path in names[:-1]:
        os.utime(path, (1, 1))
    now_ns = time.time_ns()
    assert backups.prune(place, now_ns, 30 * DAY) == backups.Pruned(["20250101_000000"], len(names) - 1)
    assert backups.prune(place, now_ns + 31 * DAY, 30 * DAY) == backups.Pruned(["20260101_000000"], 0)
    assert sorted(path.name for path in (tmp_path / "away").iterdir()) == [
        "20260102_000000",
        "histories",
        "of-somebody-else",
        "segments",
    ]
    house.lose()
    done = await house.restore(str(tmp_path / "away" / "20260102_000000"), str(tmp_path / "away"))
    assert done.report.workflows == 5


def test_the_commands(tmp_path: Path) -> None:
    server = Server(tmp_path / "one", recovery={"backup_to": str(tmp_path / "away")})
    try:
        server.start()
        name = server.submit(
            "apiVersion: knhk/v1\nkind: Workflow\nmetadata: {name: a}\nspec:\n  steps:\n"
            "    - {name: b, action: process}\n"
        )
        server.wait_for(name)
        config = ("--config", str(server.config))
        made = server.cli("backup", "create", "--latest", *config, "-o", "json")
        shown = server.cli("backup", "list", *config, "-o", "json")["backups"]
        assert [one["name"] for one in shown] == [made["name"]]
        assert shown[0]["receipts"] > 0
        for one in (made["name"], made["url"], "latest"):
            assert server.cli("backup", "verify", one, *config, "-o", "json")["valid"] is True
        assert server.stop() == 0
        lost = Path(made["url"]) / "data" / "CURRENT"
        lost.write_bytes(b"x" * lost.stat().st_size)
        shown = server.cli("backup", "verify", made["name"], *config, "-o", "json", code=1)
        assert "CURRENT" in shown["faults"][0]
        assert server.cli("backup", "prune", "--keep", "30d", *config, "-o", "json")["backups"] == []
        # Without a server, of the data directory; then everything from what is away.
        server.cli("backup", "create", *config, code=6)
        server.cli("backup", "create", "--offline", *config, "-o", "json")
        (server.data).rename(tmp_path / "gone")
        recovered = server.cli("recover", *config, "-o", "json")
        assert recovered["verification"]["valid"] is True
        server.start()
        assert server.status(name)["state"] == "completed"
    finally:
        server.close()
