"""What a CPU profile says: the functions that cost most, and files that viewers of flame graphs read."""

from collections.abc import Iterable
from typing import Any

import msgspec

from knhk.diagnostics.sampler import Profile, Stack

NATIVE = "native threads"


class Function(msgspec.Struct):
    """CPU time of a function: `self_ns` in its own code, `total_ns` with what it called; shares of all, 0 to 1."""

    name: str
    self_ns: int
    total_ns: int
    self_share: float
    total_share: float


def top_functions(profile: Profile, limit: int) -> list[Function]:
    """The functions with the most time in their own code."""
    own: dict[str, int] = {}
    total: dict[str, int] = {}
    for stack in all_stacks(profile):
        own[stack.frames[-1]] = own.get(stack.frames[-1], 0) + stack.cpu_ns
        for name in set(stack.frames):
            total[name] = total.get(name, 0) + stack.cpu_ns
    whole = max(sum(own.values()), 1)
    ranked = sorted(own, key=lambda name: (-own[name], -total[name]))[:limit]
    return [Function(name, own[name], total[name], own[name] / whole, total[name] / whole) for name in ranked]


def all_stacks(profile: Profile) -> list[Stack]:
    """The stacks of Python's threads, and each native thread as a stack of one."""
    native = [Stack(NATIVE, (name,), cpu_ns) for name, cpu_ns in profile.native.items()]
    return [stack for stack in profile.stacks if stack.frames] + native


def collapsed(profile: Profile) -> str:
    """One line a stack, `thread;outer;inner microseconds`, as flamegraph.pl and its kin read it."""
    lines = (
        f"{';'.join(one.replace(';', ',') for one in (stack.thread, *stack.frames))} {max(1, stack.cpu_ns // 1000)}"
        for stack in all_stacks(profile)
    )
    return "".join(f"{line}\n" for line in lines)


def speedscope(profile: Profile, name: str) -> dict[str, Any]:
    """A file for speedscope.app (https://www.speedscope.app/file-format-schema.json), one profile a thread."""
    frames: dict[str, int] = {}
    threads: dict[str, list[Stack]] = {}
    for stack in all_stacks(profile):
        threads.setdefault(stack.thread, []).append(stack)
    profiles = []
    for thread, stacks in sorted(threads.items()):
        profiles.append(
            {
                "type": "sampled",
                "name": thread,
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(stack.cpu_ns for stack in stacks),
                "samples": [[frames.setdefault(one, len(frames)) for one in stack.frames] for stack in stacks],
                "weights": [stack.cpu_ns for stack in stacks],
            }
        )
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": "knhk",
        "shared": {"frames": [{"name": one} for one in frames]},
        "profiles": profiles,
    }


def tree_of(stacks: Iterable[Stack]) -> dict[str, Any]:
    """The stacks as a tree of `{n: name, v: CPU time in us, c: [...]}`, threads below the root."""
    root: dict[str, Any] = {"n": "all", "v": 0, "c": {}}
    for stack in stacks:
        node = root
        node["v"] += stack.cpu_ns
        for name in (stack.thread, *stack.frames):
            node = node["c"].setdefault(name, {"n": name, "v": 0, "c": {}})
            node["v"] += stack.cpu_ns
    return _plain(root)


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    inner = sorted(node["c"].values(), key=lambda one: -one["v"])
    return {"n": node["n"], "v": round(node["v"] / 1000), "c": [_plain(one) for one in inner]}
