"""Every partition has a process, and a key is found wherever it was used."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain.errors import JournalCorrupt
from knhk.persistence.partition_directories import directory_of, partitions_in
from knhk.processes.assignment import assignment, homes


@given(st.integers(1, 64), st.data())
def test_every_partition_has_a_process_and_every_process_its_own(partitions: int, data: st.DataObject) -> None:
    processes = data.draw(st.integers(1, partitions))
    found = assignment(partitions, processes)
    assert sorted(found) == list(range(partitions))
    assert all(found[process] == process for process in range(processes))
    shares = Counter(found.values())
    assert max(shares.values()) - min(shares.values()) <= 1


@given(st.binary(max_size=40), st.integers(1, 64), st.integers(1, 64))
def test_a_key_is_looked_for_where_it_belonged_earlier(key: bytes, now: int, then: int) -> None:
    if then > now:
        now, then = then, now
    assert homes(key, then)[0] in homes(key, now)
    assert homes(key, now)[-1] == 0


def test_keys_are_spread_evenly() -> None:
    counts = Counter(homes(b"key-%d" % number, 4)[0] for number in range(4000))
    assert all(800 < counts[partition] < 1200 for partition in range(4))


def test_partitions_are_what_is_on_disk(tmp_path: Path) -> None:
    assert partitions_in(tmp_path / "none") == 1
    for partition in (1, 2, 3):
        directory_of(tmp_path, partition).mkdir(parents=True)
    (tmp_path / "partitions" / "lost+found").mkdir()
    assert partitions_in(tmp_path) == 4
    directory_of(tmp_path, 2).rmdir()
    with pytest.raises(JournalCorrupt, match="has lost 2"):
        partitions_in(tmp_path)
