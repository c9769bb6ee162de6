"""Errors as problem details: every leaf has a status, a unique code and a section in docs/errors.md."""

import re
from pathlib import Path

import msgspec
import pytest

from knhk.domain import errors
from knhk.domain.errors import KnhkError, Problem
from knhk.domain.problems import PAGE, problem_of, problem_of_status, retry_after, status_of, type_url

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "knhk"
DOCUMENT = ROOT / "docs" / "errors.md"
NEVER_ANSWERED = {errors.ServerUnreachable}


def every(kind: type[KnhkError] = KnhkError) -> list[type[KnhkError]]:
    """The error and all kinds below it in the tree; a store's own refinement of one keeps its parent's code."""
    return [kind, *(found for below in _below(kind) for found in every(below))]


def _below(kind: type[KnhkError]) -> list[type[KnhkError]]:
    return [below for below in kind.__subclasses__() if below.__module__ == errors.__name__]


LEAVES = [kind for kind in every() if not _below(kind)]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.InvalidParameter, 400),
        (errors.InvalidConfiguration, 400),
        (errors.InvalidDescriptor, 422),
        (errors.InvalidInputs, 422),
        (errors.PayloadTooLarge, 413),
        (errors.CovenantViolated, 403),
        (errors.Overloaded, 429),
        (errors.WorkflowNotFound, 404),
        (errors.IllegalTransition, 409),
        (errors.Fenced, 409),
        (errors.DiskFull, 503),
        (errors.Unsupported, 501),
        (errors.JournalCorrupt, 500),
        (KnhkError, 500),
    ],
)
def test_status_follows_the_family(kind: type[KnhkError], status: int) -> None:
    found, problem = problem_of(kind("so it is"))
    assert found == problem["status"] == status == status_of(kind("x"))


def test_codes_are_unique_and_well_formed() -> None:
    codes = [kind.code for kind in every()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"KNHK-\d{4}", code) for code in codes)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_has_its_section_and_a_hint(kind: type[KnhkError]) -> None:
    sections = re.findall(r"^## (KNHK-\d{4})$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections.count(kind.code) == 1
    assert kind.hint
    assert type_url(kind.code) == f"{PAGE}#{kind.code.lower()}"


def test_the_page_has_no_section_for_a_code_that_is_gone() -> None:
    sections = re.findall(r"^## (KNHK-\d{4})$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(sections) == {kind.code for kind in LEAVES}


def test_every_failure_code_of_the_source_is_explained() -> None:
    used = {
        code
        for file in SOURCE.rglob("*.py")
        for code in re.findall(r'"(KNHK-[A-Z][A-Z-]*[A-Z])"', file.read_text(encoding="utf-8"))
    }
    explained = set(re.findall(r"^\| `(KNHK-[A-Z-]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    assert used == explained


def test_the_page_tells_the_right_status() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for kind in LEAVES:
        section = text.split(f"## {kind.code}\n")[1].split("\n## ")[0]
        assert f"**{kind.title}**" in section
        if kind not in NEVER_ANSWERED:
            assert f"({status_of(kind('x'))}" in section


def test_everything_that_is_known_is_told() -> None:
    error = errors.InvalidDescriptor(
        "2 places", problems=[Problem("unknown key 'setps'", "spec", 3, 5, "steps"), Problem("empty")]
    )
    _, problem = problem_of(error)
    assert problem == {
        "type": f"{PAGE}#knhk-1001",
        "title": "Invalid workflow descriptor",
        "status": 422,
        "detail": "2 places",
        "code": "KNHK-1001",
        "retryable": False,
        "hint": errors.InvalidDescriptor.hint,
        "problems": [
            {"message": "unknown key 'setps'", "path": "spec", "line": 3, "column": 5, "suggestion": "steps"},
            {"message": "empty"},
        ],
    }


def test_an_advice_of_its_own_replaces_the_hint() -> None:
    assert problem_of(errors.DiskFull("full", hint="Buy one"))[1]["hint"] == "Buy one"
    assert "hint" not in problem_of(errors.DiskFull("full", hint=""))[1]


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.Overloaded("no", retry_after_s=0.2), "1"),
        (errors.Overloaded("no", retry_after_s=1.1), "2"),
        (errors.Overloaded("no"), "1"),
        (errors.Unsupported("no"), None),
        (errors.WorkflowNotFound("no"), None),
    ],
)
def test_retry_after_is_whole_seconds_of_what_can_be_repeated(error: KnhkError, header: str | None) -> None:
    assert retry_after(error) == header


def test_text_that_is_not_unicode_can_still_be_answered() -> None:
    _, problem = problem_of(errors.InvalidParameter("\ud800", problems=[Problem("\udfff", "\ud800")]))
    assert msgspec.json.decode(msgspec.json.encode(problem))["detail"] == "?"


def test_what_the_framework_refuses_has_no_code() -> None:
    problem = problem_of_status(404, "Not Found", "no such route")
    assert problem["type"] == "about:blank"
    assert problem["status"] == 404
    assert problem_of_status(503, "x", "y")["retryable"]
