import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from knhk.actions import registry as module
from knhk.actions.decorator import action
from knhk.actions.registry import Action, Registry, Succeeded, actions_of
from knhk.domain.errors import InvalidConfiguration, NotFound
from knhk.domain.plan import ActionTraits


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on sys.path, whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def make(name: str, source: str = "here", close: object = None) -> Action:
    return Action(ActionTraits(name, pure=True), "inline", lambda invocation: Succeeded(), source, close)  # type: ignore[arg-type]


def test_the_builtins_are_there_without_any_configuration() -> None:
    registry = Registry.load()
    assert {"process", "validate", "wait", "http", "fail"} <= set(registry.traits())
    assert {name for name, traits in registry.traits().items() if traits.pure} >= {"process", "validate", "wait"}
    assert not registry.get("http").traits.pure
    assert registry.get("http").mode == "async"


def test_modules_of_the_configuration_are_loaded(site: Path) -> None:
    (site / "shop_actions.py").write_text(
        "import knhk\n@knhk.action('charge')\ndef charge(amount: int) -> dict: return {}\n"
    )
    registry = Registry.load(["shop_actions"])
    assert registry.get("charge").mode == "thread"
    assert "shop_actions.charge (line 2)" in registry.get("charge").source
    assert len(registry) == len(list(registry)) == len(registry.traits())
    assert "charge" in registry


def test_entry_points_of_installed_packages_are_loaded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "plugin.py").write_text(
        "import knhk\n@knhk.action('one')\ndef one(): ...\n@knhk.action('two')\ndef two(): ...\n"
    )
    points = [EntryPoint("whole", "plugin", module.GROUP), EntryPoint("part", "plugin:two", module.GROUP)]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    registry = Registry.load()
    assert {"one", "two", "process"} <= set(registry.traits())


def test_a_module_may_import_an_action_of_another(site: Path) -> None:
    (site / "first.py").write_text("import knhk\n@knhk.action('shared')\ndef shared(): ...\n")
    (site / "second.py").write_text("from first import shared\nimport knhk\n@knhk.action('own')\ndef own(): ...\n")
    assert {"shared", "own"} <= set(Registry.load(["first", "second", "first"]).traits())


def test_two_actions_of_one_name_are_an_error_that_names_both_places(site: Path) -> None:
    (site / "ours.py").write_text("import knhk\n@knhk.action('charge')\ndef charge(): ...\n")
    (site / "theirs.py").write_text("import knhk\n\n@knhk.action('charge')\ndef other(): ...\n")
    with pytest.raises(InvalidConfiguration, match=r"'charge'.*ours\.charge \(line 2\).*theirs\.other \(line 3\)"):
        Registry.load(["ours", "theirs"])


def test_a_builtin_cannot_be_replaced_silently(site: Path) -> None:
    (site / "mine.py").write_text("import knhk\n@knhk.action('http')\ndef http(): ...\n")
    with pytest.raises(InvalidConfiguration, match=r"knhk\.actions\.http.*mine\.http"):
        Registry.load(["mine"])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError.*nowhere_at_all"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("import knhk\n@knhk.action\ndef f(): ...", "TypeError.*give the action a name"),
    ],
)
def test_an_import_that_fails_names_the_module_and_the_cause(site: Path, content: str, cause: str) -> None:
    (site / "broken.py").write_text(content)
    with pytest.raises(InvalidConfiguration, match=f"'broken' \\(actions.modules\\).*{cause}"):
        Registry.load(["broken"])


@pytest.mark.parametrize("name", ["does_not_exist", "knhk.actions.nothing", "", ".relative"])
def test_a_module_that_is_not_there(name: str) -> None:
    with pytest.raises(InvalidConfiguration, match="cannot be imported"):
        Registry.load([name])


def test_a_module_without_actions_is_a_mistake(site: Path) -> None:
    (site / "empty.py").write_text("class Proxy:\n  def __getattr__(self, name): return self\nproxy = Proxy()\n")
    with pytest.raises(InvalidConfiguration, match="has no action"):
        Registry.load(["empty"])


def test_an_unknown_action_suggests_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'validate'") as caught:
        Registry.load().get("valdate")
    assert caught.value.problems[0].suggestion == "validate"
    assert "http" in caught.value.advice
    with pytest.raises(NotFound) as caught:
        Registry.load().get("zzz")
    assert caught.value.problems[0].suggestion == ""


def test_registering_the_same_action_again_does_nothing() -> None:
    registry, one = Registry(), make("one")
    registry.register(one)
    registry.register(one)
    assert len(registry) == 1
    with pytest.raises(InvalidConfiguration, match="two actions"):
        registry.register(make("one", "there"))


def test_an_action_or_a_function_is_a_place_too() -> None:
    @action("sole")
    def sole() -> None: ...

    assert [found.name for found in actions_of(sole)] == ["sole"]
    assert [found.name for found in actions_of(make("x"))] == ["x"]
    assert list(actions_of(object())) == []


async def test_every_action_is_closed_even_if_one_fails() -> None:
    closed: list[str] = []

    async def fine() -> None:
        closed.append("fine")

    async def bad() -> None:
        raise OSError("gone")

    registry = Registry()
    for name, close in (("a", bad), ("b", None), ("c", fine)):
        registry.register(make(name, close=close))
    with pytest.raises(ExceptionGroup) as caught:
        await registry.aclose()
    assert closed == ["fine"]
    assert [str(error) for error in caught.value.exceptions] == ["gone"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import knhk, sys; print(sorted(m for m in sys.modules if m.startswith(('knhk.', 'msgspec', 'httpx'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_surface() -> None:
    import knhk

    assert all(getattr(knhk, name) is not None for name in knhk.__all__)
    assert set(knhk.__all__) <= set(dir(knhk))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = knhk.nothing
