"""The keys, their variables and the page that lists them."""

from pathlib import Path

from knhk.config import keys
from knhk.config.absent import ABSENT
from knhk.config.reference import written_page

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written_page(page) == page, "run `python -m knhk.config.reference docs/configuration.md`"


def test_every_key_has_a_description_and_a_variable_of_its_own() -> None:
    spellings = [variable for key in keys.known().values() for variable in key.variables]
    assert len(spellings) == len(set(spellings))
    assert not set(spellings) & {keys.variable_for(name) for name in keys.INCLUDES}
    for key in keys.known().values():
        assert key.field.description, key.name


def test_tables_name_keys_that_exist() -> None:
    names = set(keys.known()) | set(keys.root().fields or {})
    assert set(keys.SHORT_VARIABLES.values()) <= names
    assert {name for row in ABSENT for name in row.names} <= names
