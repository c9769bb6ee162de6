"""The sampler finds what burns CPU time, and profiles say it in the forms that viewers read."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from knhk.diagnostics import flame_graph
from knhk.diagnostics.profiles import collapsed, speedscope, top_functions, tree_of
from knhk.diagnostics.sampler import MOST_STACKS, Profile, Stack, profile, short_file

PROFILE = Profile(
    2.0,
    200,
    1_000_000_000,
    [
        Stack("main", ("run (a.py:1)", "charge (b.py:2)"), 600_000_000),
        Stack("main", ("run (a.py:1)",), 100_000_000),
        Stack("worker", ("crunch</script> (c.py:3)",), 200_000_000),
    ],
    {"rocksdb:low": 100_000_000},
)


def burn(until: threading.Event) -> None:
    while not until.is_set():
        sum(number * number for number in range(1_000))


@contextmanager
def burning() -> Iterator[None]:
    done = threading.Event()
    busy = threading.Thread(target=burn, args=(done,), name="busy")
    idle = threading.Thread(target=done.wait, name="idle")
    busy.start(), idle.start()
    try:
        yield
    finally:
        done.set()
        busy.join()
        idle.join()


def test_what_burns_cpu_time_is_found_and_what_waits_is_not() -> None:
    with burning():
        found = profile(1.0, threading.Event())
    by_thread: dict[str, int] = {}
    for stack in found.stacks:
        by_thread[stack.thread] = by_thread.get(stack.thread, 0) + stack.cpu_ns
    assert by_thread["busy"] > 0.8 * sum(by_thread.values())
    assert by_thread.get("idle", 0) < 0.05 * by_thread["busy"]
    assert sum(by_thread.values()) <= found.cpu_ns * 1.1
    # The generator in it is sometimes seen without its caller.
    outermost = {stack.frames[0].partition(" ")[0] for stack in found.stacks if stack.thread == "busy"}
    assert outermost & {"burn", "burn.<locals>.<genexpr>"}
    assert outermost <= {"burn", "burn.<locals>.<genexpr>", "Event.is_set"}


def test_a_profile_ends_when_it_is_told_to() -> None:
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    assert profile(60.0, stop).looks == 0
    assert time.monotonic() - began < 10


def test_the_functions_with_the_most_time_of_their_own_come_first() -> None:
    first, second, *_ = top_functions(PROFILE, 10)
    assert (first.name, first.self_share, first.total_share) == ("charge (b.py:2)", 0.6, 0.6)
    assert second.name.startswith("crunch")
    (run,) = [one for one in top_functions(PROFILE, 10) if one.name.startswith("run")]
    assert (run.self_share, run.total_share) == (0.1, 0.7)
    assert len(top_functions(PROFILE, 2)) == 2


def test_collapsed_stacks() -> None:
    assert collapsed(PROFILE).splitlines()[0] == "main;run (a.py:1);charge (b.py:2) 600000"
    assert "native threads;rocksdb:low 100000" in collapsed(PROFILE)


def test_speedscope_has_a_profile_for_each_thread() -> None:
    shown = speedscope(PROFILE, "x")
    assert [one["name"] for one in shown["profiles"]] == ["main", "native threads", "worker"]
    names = [frame["name"] for frame in shown["shared"]["frames"]]
    main = shown["profiles"][0]
    assert [[names[at] for at in sample] for sample in main["samples"]] == [
        ["run (a.py:1)", "charge (b.py:2)"],
        ["run (a.py:1)"],
    ]
    assert main["endValue"] == sum(main["weights"]) == 700_000_000


def test_the_page_holds_the_tree_and_nothing_that_ends_its_script() -> None:
    tree = tree_of(PROFILE.stacks)
    assert tree["v"] == 900_000
    assert [(one["n"], one["v"]) for one in tree["c"]] == [("main", 700_000), ("worker", 200_000)]
    page = flame_graph.html(PROFILE, "title", "about").decode()
    _, _, rest = page.partition('id="data">')
    data, _, _ = rest.partition("</script>")
    assert json.loads(data)["tree"]["v"] == 1_000_000
    assert "crunch\\u003c/script" in data
    assert "http" not in page.replace("http-equiv", "")  # it needs nothing from elsewhere


def test_files_are_told_from_the_directory_of_packages_on() -> None:
    assert short_file("/x/.venv/lib/python3.11/site-packages/uvicorn/server.py") == "uvicorn/server.py"
    assert short_file("/usr/lib/python3.11/asyncio/base.py") == "asyncio/base.py"
    assert short_file("/app/shop.py") == "/app/shop.py"
    assert MOST_STACKS > 0
