"""What the flight recorder keeps, and how much."""

import json
from pathlib import Path

from knhk.diagnostics.flight_recorder import LOG_FILE, OLDER_LOG_FILE, SERVER_FILE, FlightRecorder


def test_the_newest_lines_are_kept_and_no_more_than_asked_for(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "new" / "directory", 20_000)
    recorder.start({"pid": 1})
    for number in range(2_000):
        recorder.take(f"\x1b[31mline\x1b[0m {number:05} " + "x" * 40)
    files = [tmp_path / "new" / "directory" / name for name in (OLDER_LOG_FILE, LOG_FILE)]
    assert sum(file.stat().st_size for file in files) < 20_000 + 200
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert lines == recorder.lines(len(lines))
    assert lines[-1].startswith("line 01999 ")
    assert recorder.lines(3) == lines[-3:]
    recorder.stop()


def test_it_goes_on_after_a_restart_and_says_that_no_process_runs(tmp_path: Path) -> None:
    for text in ("before", "after"):
        recorder = FlightRecorder(tmp_path, 20_000)
        recorder.start({"pid": 7})
        assert json.loads((tmp_path / SERVER_FILE).read_text()) == {"pid": 7}
        recorder.take(text)
        recorder.stop()
    assert (tmp_path / LOG_FILE).read_text() == "before\nafter\n"
    assert not (tmp_path / SERVER_FILE).exists()


def test_nothing_is_written_if_nothing_is_to_be_kept(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 0)
    recorder.start({})
    recorder.take("x" * 100_000)
    assert not (tmp_path / LOG_FILE).exists()
    assert len(recorder.lines(1)[0]) < 20_000
