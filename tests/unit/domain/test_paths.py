"""Paths of steps."""

import pytest

from knhk.domain.paths import enclosing, is_inside


@pytest.mark.parametrize(
    ("path", "around"),
    [
        ("name", ""),
        ("group/inner", "group"),
        ("each[3]", "each"),
        ("each[3]/inner", "each[3]"),
        ("risky:catch", "risky"),
        ("risky:catch/inner", "risky:catch"),
        ("group/each[3]", "group/each"),
        ("each[1]/again[2]/inner", "each[1]/again[2]"),
    ],
)
def test_a_path_names_the_step_around_it(path: str, around: str) -> None:
    assert enclosing(path) == around
    assert is_inside(path) == bool(around)
