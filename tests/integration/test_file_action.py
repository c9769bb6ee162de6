"""The `file` action: nothing outside its roots is touched, and a write is whole or not at all."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knhk.actions.file import Files, action
from knhk.actions.registry import Failed, Outcome, Succeeded
from knhk.config.actions_section import FileOptions, FileRoot
from knhk.domain.errors import ReceiptCorrupt
from knhk.persistence.blob_area import BlobArea
from knhk.ports.blobs import Blobs, NoBlobs
from tests.integration.test_shell_action import invocation

NO_BLOBS = NoBlobs("a test")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobArea:
    area = BlobArea(tmp_path / "blobs", inline_bytes=1000, max_bytes=1 << 30, min_free_bytes=0)
    area.open()
    return area


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "root"


def options(root: Path, write: bool = True) -> FileOptions:
    return FileOptions(roots=(FileRoot(name="data", path=root, write=write),), max_read_bytes=10_000, max_entries=3)


def run(
    root: Path, path: str, operation: str = "read", *, write: bool = True, blobs: Blobs = NO_BLOBS, **params: Any
) -> Outcome:
    return Files(options(root, write), blobs).run(invocation(root="data", path=path, operation=operation, **params))


def output(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Succeeded), outcome
    return dict(outcome.output)


def test_write_read_list_and_delete(root: Path) -> None:
    done = output(run(root, "new/deep/a.txt", "write", content="häl"))
    assert (done["size"], (root / "new/deep/a.txt").read_text()) == (4, "häl")
    assert output(run(root, "new/deep/a.txt"))["content"] == "häl"
    output(run(root, "b.json", "write", json={"a": [1]}))
    assert output(run(root, "b.json", format="json"))["content"] == {"a": [1]}
    output(run(root, "c.bin", "write", base64="/w=="))
    assert output(run(root, "c.bin"))["content_encoding"] == "base64"
    listed = output(run(root, "new", "list"))["entries"]
    assert [(one["name"], one["kind"]) for one in listed] == [("deep", "directory")]
    assert output(run(root, "b.json", "delete"))["deleted"] is True
    assert output(run(root, "b.json", "delete"))["deleted"] is False  # again, after a crash


ESCAPES = ["../secret", "/etc/passwd", "sub/../../secret", "sub//x", "./x", "sub/..", "a\0b", "~/x", ".knhk-x"]


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("operation", ["read", "write", "list", "delete"])
def test_paths_that_leave_the_root_are_refused(root: Path, path: str, operation: str) -> None:
    given_text = {"content": "x"} if operation == "write" else {}
    before = sorted(root.parent.rglob("*"))
    outcome = run(root, path, operation, **given_text)
    if path == "~/x":  # an ordinary name
        return
    assert isinstance(outcome, Failed), outcome
    assert outcome.code == "KNHK-ACTION-NOT-ALLOWED", outcome
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("operation", ["read", "write", "list"])
def test_links_are_not_followed(root: Path, operation: str) -> None:
    (root / "link").symlink_to(root.parent)
    (root / "file").symlink_to(root.parent / "secret")
    given_text = {"content": "x"} if operation == "write" else {}
    outcome = run(root, "link/secret", operation, **given_text)
    assert isinstance(outcome, Failed), outcome
    if operation == "read":
        assert isinstance(run(root, "file"), Failed)
    if operation == "write":
        output(run(root, "file", "write", content="mine"))  # replaces the link, not what it points to
    assert (root.parent / "secret").read_text() == "secret"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(path=st.text(alphabet="./a\\~ \x00é", min_size=1, max_size=12))
def test_no_path_gets_out(root: Path, path: str) -> None:
    run(root, path, "write", content="x")
    assert (root.parent / "secret").read_text() == "secret"
    assert sorted(one.name for one in root.parent.iterdir()) == ["root", "secret"]


def test_what_else_goes_wrong(root: Path) -> None:
    (root / "big").write_bytes(b"x" * 10_001)
    os.mkfifo(root / "pipe")
    cases: list[tuple[Outcome, str, str]] = [
        (run(root, "none"), "KNHK-FILE", "No such file"),
        (run(root, "big"), "KNHK-FILE-TOO-LARGE", "larger than"),
        (run(root, "pipe"), "KNHK-FILE", "Invalid argument"),
        (run(root, "sub"), "KNHK-FILE", "Is a directory"),
        (run(root, "x", "write"), "KNHK-ACTION-PARAMS", "exactly one"),
        (run(root, "x", "write", base64="!"), "KNHK-ACTION-PARAMS", ""),
        (run(root, "x", "write", content="x", write=False), "KNHK-ACTION-NOT-ALLOWED", "only read"),
        (run(root, "x", "delete", write=False), "KNHK-ACTION-NOT-ALLOWED", "only read"),
        (Files(options(root), NO_BLOBS).run(invocation(root="other", path="x")), "KNHK-ACTION-NOT-ALLOWED", "no root"),
    ]
    for outcome, code, text in cases:
        assert isinstance(outcome, Failed), outcome
        assert (outcome.code, text in outcome.message) == (code, True), outcome
    assert "names no directory" in action(FileOptions(), NO_BLOBS).traits.disabled


def test_a_file_that_is_there_is_kept_unless_it_is_the_same(root: Path) -> None:
    output(run(root, "a", "write", content="one", overwrite=False))
    output(run(root, "a", "write", content="one", overwrite=False))  # the attempt after a crash
    outcome = run(root, "a", "write", content="two", overwrite=False)
    assert isinstance(outcome, Failed)
    assert (root / "a").read_text() == "one"
    assert [one.name for one in root.iterdir() if one.is_file()] == ["a"]  # nothing temporary is left


def test_readers_see_a_whole_file(root: Path) -> None:
    texts = {letter: letter * 9_000 for letter in "abc"}
    output(run(root, "f", "write", content=texts["a"]))
    stopped = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stopped.is_set():
            seen.add((root / "f").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        for text in texts.values():
            output(run(root, "f", "write", content=text))
    stopped.set()
    reader.join()
    assert seen <= set(texts.values())


def test_large_files_become_blobs_and_blobs_files(root: Path, blobs: BlobArea) -> None:
    data = os.urandom(3 << 20)
    (root / "big.csv").write_bytes(data)
    (root / "small.txt").write_text("small")
    read = output(run(root, "big.csv", blobs=blobs))
    assert (read["content_encoding"], read["content"]["media_type"], read["size"]) == ("blob", "text/csv", len(data))
    assert b"".join(blobs.pieces(read["content"]["$blob"])) == data
    assert output(run(root, "small.txt", blobs=blobs))["content"] == "small"
    assert output(run(root, "small.txt", blobs=blobs, blob="always"))["content"]["size"] == 5
    done = output(run(root, "copy", "write", blobs=blobs, content=read["content"]))
    assert (done["sha256"], (root / "copy").read_bytes()) == (read["sha256"], data)
    again = run(root, "copy", "write", blobs=blobs, content=read["content"], overwrite=False)
    assert output(again)["size"] == len(data)
    too_large = run(root, "big.csv", blobs=blobs, max_size="1MB")
    assert isinstance(too_large, Failed)
    assert too_large.code == "KNHK-FILE-TOO-LARGE"
    assert len(list(blobs.names())) == 2


def test_a_damaged_blob_becomes_no_file(root: Path, blobs: BlobArea) -> None:
    (root / "big").write_bytes(os.urandom(3 << 20))
    reference = output(run(root, "big", blobs=blobs))["content"]
    file = blobs.find(reference["$blob"])
    assert file is not None
    os.truncate(file, 2 << 20)
    with pytest.raises(ReceiptCorrupt):
        run(root, "copy", "write", blobs=blobs, content=reference)
    assert sorted(one.name for one in root.iterdir()) == ["big", "sub"]


def test_copy_move_and_stat(root: Path, tmp_path: Path) -> None:
    (root / "a").write_text("one")
    assert output(run(root, "a", "copy", to="new/b"))["size"] == 3
    assert output(run(root, "a", "copy", to="new/b", overwrite=False))["from"] == "a"  # again, after a crash
    assert output(run(root, "new/b", "move", to="c"))["kind"] == "file"
    assert output(run(root, "new/b", "move", to="c"))["exists"] is True  # again
    assert (root / "c").read_text() == "one"
    assert output(run(root, "new", "move", to="other"))["kind"] == "directory"
    assert output(run(root, "a", "stat"))["kind"] == "file"
    assert output(run(root, "none", "stat")) == {"path": "none", "exists": False}
    assert output(run(root, "", "stat"))["kind"] == "directory"
    assert output(run(root, "other", "delete"))["deleted"] is True
    (root / "c").write_text("two")
    for operation in ("copy", "move"):
        kept = run(root, "a", operation, to="c", overwrite=False)
        assert isinstance(kept, Failed), operation
        assert isinstance(run(root, "missing", operation, to="nowhere"), Failed)
        assert isinstance(run(root, "a", operation), Failed), "it must be said where to"
        escape = run(root, "a", operation, to="../secret")
        assert isinstance(escape, Failed)
        assert escape.code == "KNHK-ACTION-NOT-ALLOWED"
    assert (root / "c").read_text() == "two"
    for number in range(4):
        (root / f"f{number}").touch()
    listed = run(root, "", "list")
    assert isinstance(listed, Failed)
    assert listed.code == "KNHK-FILE-TOO-LARGE"


def test_a_write_without_unnamed_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems such as NFS."""
    before = os.open

    def refusing(path: Any, flags: int, *rest: Any, **further: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return before(path, flags, *rest, **further)

    monkeypatch.setattr(os, "open", refusing)
    output(run(root, "a", "write", content="one"))
    output(run(root, "a", "write", content="one", overwrite=False))
    assert isinstance(run(root, "a", "write", content="two", overwrite=False), Failed)
    assert ((root / "a").read_text(), sorted(one.name for one in root.iterdir())) == ("one", ["a", "sub"])
