"""The workflow descriptors that the workloads submit, as templates with a serial number.

Every body differs in its name and in a parameter, so that no cache by digest can answer for the work. The number always
has ten digits: bodies of one template are equally long, and the head of the request is the same for all.
"""

import random
from collections.abc import Iterable

from bench.http1 import post_request

FIRST_SERIAL = 1_000_000_000
_SERIAL = "SERIAL"
_HEAD = """\
apiVersion: knhk/v1
kind: Workflow
metadata:
  name: {name}-SERIAL
  department: {department}
  cost_center: R&D
spec:
  covenant: Sigma
  timeout: {timeout}
  retries: 3
  steps:
"""


def two() -> str:
    """The descriptor of the production guide: `process`, then `validate`."""
    return _workflow("two", [_step("step1", "process"), _step("step2", "validate", ["step1"], params=False)])


def two_effect() -> str:
    """The same shape, but each step has an effect."""
    return _workflow("two-effect", [_step("step1", "bench.effect"), _step("step2", "bench.effect", ["step1"])])


def ten() -> str:
    """Ten steps: one, four side by side, one that joins them, three side by side, one that joins them."""
    first, second = [f"part{i}" for i in range(4)], [f"check{i}" for i in range(3)]
    steps = [
        _step("split", "process"),
        *(_step(name, "process", ["split"]) for name in first),
        _step("join", "process", first),
        *(_step(name, "validate", ["join"], params=False) for name in second),
        _step("finish", "process", second),
    ]
    return _workflow("ten", steps)


def layered(count: int, seed: int = 1) -> str:
    """A DAG of `count` steps in layers of up to 100; each step is after one to three of the layer before."""
    chance = random.Random(seed)
    width = min(100, max(1, count // 2))
    steps = []
    for index in range(count):
        layer = index // width
        before = range((layer - 1) * width, layer * width) if layer else range(0)
        chosen = sorted(chance.sample(before, min(len(before), chance.randint(1, 3)))) if layer else []
        steps.append(_step(f"s{index}", "process", [f"s{number}" for number in chosen]))
    return _workflow(f"dag-{count}", steps, timeout="300s")


def wide(department: str, action: str) -> str:
    """A hundred steps: ten layers of ten, each step after one of the layer before."""
    steps = [_step(f"s{index}", action, [f"s{index - 10}"] if index >= 10 else ()) for index in range(100)]
    return _workflow(f"wide-{department}", steps, timeout="1h", department=department)


def each(count: int) -> str:
    """One step for each of so many items, a hundred at a time."""
    items = ", ".join(map(str, range(count)))
    foreach = f"      foreach: {{in: [{items}], concurrency: 100}}\n"
    return _workflow(f"each-{count}", [_step("each", "process") + foreach], timeout="1h")


def waiting() -> str:
    """A run that parks for an hour."""
    return _workflow("waiting", ["    - name: pause\n      action: wait\n      params: {duration: 1h}\n"], timeout="2h")


def _step(name: str, action: str, depends_on: Iterable[str] = (), *, params: bool = True) -> str:
    given = f"      params: {{key: value-{_SERIAL}, serial: {_SERIAL}}}\n" if params else ""
    return f"    - name: {name}\n      action: {action}\n{given}      depends_on: [{', '.join(depends_on)}]\n"


def _workflow(name: str, steps: Iterable[str], timeout: str = "60s", department: str = "engineering") -> str:
    return _HEAD.format(name=name, timeout=timeout, department=department) + "".join(steps)


class RequestTemplate:
    """Makes the bytes of a submit from a serial number with one formatting operation."""

    __slots__ = ("_places", "_template")

    def __init__(self, descriptor: str, *, host: str, port: int, target: str) -> None:
        body = descriptor.replace(_SERIAL, str(FIRST_SERIAL)).encode()
        request = post_request(host, port, target, body).replace(b"%", b"%%")
        marker = str(FIRST_SERIAL).encode()
        self._places = request.count(marker)
        self._template = request.replace(marker, b"%d")

    def render(self, serial: int) -> bytes:
        """The whole request; `serial` has ten digits."""
        return self._template % ((serial,) * self._places)
