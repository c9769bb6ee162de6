"""Tests on the code itself: what keeps it good to live in."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk.domain import errors
from knhk.domain.errors import KnhkError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "knhk"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(path.parent for path in SOURCE.glob("*/__init__.py"))

LONGEST_FILE = 500
LONGEST_FUNCTION = 70
LONGER_FUNCTIONS: dict[str, int] = {}
"""Functions that were longer when the rule was made, as `file:name`, with their lines. They may only get shorter."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
NOT_UNFINISHED = {("actions/schema.py", "NotImplementedError")}
"""msgspec's hooks say with it that they do not know a type."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file, with their lengths in lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def error_classes(base: type[KnhkError] = KnhkError) -> Iterator[type[KnhkError]]:
    """The tree of domain/errors.py; a store's own subclass of an error never leaves the store."""
    for one in base.__subclasses__():
        if one.__module__ == KnhkError.__module__:
            yield one
            yield from error_classes(one)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_about_one_thing_and_not_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for function, lines in functions(path):
        most = LONGER_FUNCTIONS.get(f"{name_of(path)}:{function}", LONGEST_FUNCTION)
        assert lines <= most, f"{function} has {lines} lines"


def test_the_list_of_longer_functions_has_no_old_entries() -> None:
    lengths = {f"{name_of(path)}:{name}": lines for path in FILES for name, lines in functions(path)}
    assert all(lengths.get(name, 0) == lines for name, lines in LONGER_FUNCTIONS.items())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unfinished(path: Path) -> None:
    found = {(name_of(path), match[0]) for match in UNFINISHED.finditer(path.read_text())}
    assert found <= NOT_UNFINISHED


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_does(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a module begins with a docstring"


def test_every_package_is_a_room_with_an_init_file() -> None:
    packages = {path.parent for path in FILES}
    assert all((package / "__init__.py").exists() for package in packages)


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_every_room_has_tests(room: Path) -> None:
    imported = re.compile(rf"\bknhk\.{room.name}\b")
    tests = [path for path in (ROOT / "tests").rglob("*.py") if imported.search(path.read_text())]
    assert tests, f"no test imports knhk.{room.name}"


def test_every_error_has_a_code_of_its_own_and_a_hint() -> None:
    leaves = [one for one in error_classes() if not list(error_classes(one))]
    codes = [one.code for one in error_classes()]
    assert len(codes) == len(set(codes))
    for leaf in leaves:
        assert re.fullmatch(r"KNHK-[1-6]\d{3}", leaf.code)
        assert leaf.hint, f"{leaf.__name__} says what to do next"
        assert leaf.code[:6] == leaf.__bases__[0].code[:6], f"{leaf.__name__} has a code of its family"


@pytest.mark.parametrize("error", [one for one in error_classes() if not one.code.endswith("000")])
def test_every_error_has_a_section_in_the_documentation(error: type[KnhkError]) -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    section = re.search(rf"^## {error.code}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/errors.md has no section {error.code}"
    assert error.title.lower() in section[1].lower()


def test_every_error_is_in_the_tree_at_the_head_of_its_module() -> None:
    assert errors.__doc__
    for error in error_classes():
        assert error.__name__ in errors.__doc__


def test_every_code_of_a_failure_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    codes = {code for path in FILES for code in re.findall(r'"(KNHK(?:-[A-Z]+)+)"', path.read_text())}
    assert codes
    assert not [code for code in sorted(codes) if f"`{code}`" not in page]


@pytest.mark.parametrize("path", sorted((SOURCE / "engine").glob("*.py")), ids=name_of)
def test_the_engine_takes_time_and_chance_from_outside(path: Path) -> None:
    """Else no simulation could decide them. Ruff bans the calls; here no import gets past it under another name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("time", "datetime", "uuid", "secrets")
            assert not (node.module == "asyncio" and any(alias.name == "sleep" for alias in node.names))
        elif isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & {"time", "datetime", "uuid", "secrets"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("asyncio", "sleep"), ("asyncio", "wait_for")}
            assert node.value.id != "random" or node.attr == "Random"
