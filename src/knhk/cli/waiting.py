"""Waiting for a server that was asked to watch something for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from knhk.cli.output import stderr
from knhk.domain.errors import InvalidParameter
from knhk.domain.units import parse_duration_ns

_SHORT_S: Final = 2.0


def duration_s(text: str, option: str) -> float:
    """A duration in seconds. Raises InvalidParameter, naming the option."""
    try:
        return parse_duration_ns(text) / 1e9
    except ValueError as error:
        raise InvalidParameter(f"{option}: {error}") from error


@contextmanager
def waiting(what: str, seconds: float) -> Iterator[None]:
    """A bar on stderr that fills in about so many seconds; nothing where stderr is no terminal."""
    console = stderr()
    if not console.is_terminal or seconds < _SHORT_S:
        yield
        return
    import threading

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task, done = progress.add_task(what, total=seconds), threading.Event()

        def fill() -> None:
            while not done.wait(0.2):
                progress.advance(task, 0.2)

        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
