"""What is found to be short, and what the process itself says."""

from pathlib import Path
from typing import Any

import pytest

from knhk.diagnostics.resources import findings, of_disk, of_process

WELL: dict[str, Any] = {
    "process": {
        "resident_bytes": 1,
        "memory_limit_bytes": 10,
        "cpu_cores_used": 1.0,
        "cpu_cores": 2,
        "open_files": 10,
        "open_files_limit": 100,
    },
    "disks": [{"path": "/data", "total_bytes": 100, "free_bytes": 50}],
    "engine": {"active": 1, "max_active": 10, "queued": 0, "max_queued": 0, "loop_lag_s": 0.01, "commit_mean_s": 0.001},
    "checks": {"persistence": "ok", "learning": "absent"},
}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return WELL | {section: WELL[section] | values}


def test_nothing_is_short() -> None:
    assert findings(WELL) == []
    assert findings({}) == []


@pytest.mark.parametrize(
    ("resources", "level", "words"),
    [
        (changed("process", resident_bytes=9), "warning", "memory: 90% used"),
        (changed("process", open_files=97), "critical", "open files: 97% used"),
        (changed("engine", active=9), "warning", "workflow slots"),
        (changed("engine", loop_lag_s=3.0), "warning", "event loop"),
        (changed("engine", commit_mean_s=0.3), "warning", "300 ms"),
        (changed("engine", projection_lag_blocks=1000), "warning", "1000 blocks"),
        (changed("checks", persistence="The disk is full: 3 MiB"), "critical", "persistence: The disk is full"),
        (WELL | {"disks": [{"path": "/data", "total_bytes": 100, "free_bytes": 4}]}, "critical", "/data: 96% used"),
    ],
)
def test_what_runs_short_is_found_with_advice(resources: dict[str, Any], level: str, words: str) -> None:
    (found,) = findings(resources)
    assert found.level == level
    assert words in found.what
    assert found.advice


def test_the_worst_comes_first() -> None:
    both = changed("process", resident_bytes=9, open_files=99)
    assert [one.level for one in findings(both)] == ["critical", "warning"]


def test_the_process_and_the_disk_tell_real_figures(tmp_path: Path) -> None:
    process = of_process()
    assert 0 < process["resident_bytes"] < process["memory_limit_bytes"]
    assert process["open_files"] > 0
    assert process["threads"] >= 1
    disk = of_disk(tmp_path / "not" / "there" / "yet")
    assert 0 < disk["free_bytes"] <= disk["total_bytes"]
