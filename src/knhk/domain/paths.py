"""Paths of steps, by which receipts name them.

name                a step of the workflow itself
group/inner         a step inside another
each[3]             one time of a step that is repeated, counted from 0
each[3]/inner       a step inside of that
risky:catch/inner   a step of what is done about the failure of `risky`
"""


def is_inside(path: str) -> bool:
    """Whether a path is of something inside a step."""
    return "/" in path or path.endswith("]") or ":" in path


def outermost(path: str) -> str:
    """The name of the step of the workflow itself that a path is in, empty for what a run does at its end."""
    return path.partition("/")[0].partition("[")[0].partition(":")[0]


def enclosing(path: str) -> str:
    """The path of what something is inside of, one level up; empty for a step of the workflow itself."""
    around, _, last = path.rpartition("/")
    for mark in ("[", ":"):
        if mark in last:
            return path[: path.rindex(mark)]
    return around
