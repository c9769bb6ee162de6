"""Random workflows of all constructs, whose outcome does not depend on how long anything takes.

So whatever crashes in between, a run must end as one without a crash: what competes does so with a branch that is
slower by far, and what fails for good is the last of its block, unless it is dealt with.
"""

import random
from typing import Any

from tests.simulation.descriptors import step, workflow

MANY_SLOTS = 100
SLOW_S = 100_000.0
"""What a branch takes that must not win."""
QUICK_RETRY = {"max_attempts": 3, "delay": "1s", "jitter": True}
_COMPOSITES = ("group", "each", "each_group", "switch", "while", "until", "parallel", "compete", "catch", "timeout")
_LEAVES = ("effect", "effect", "effect", "think", "process", "wait", "shrug", "when", "event", "child", "reacts")


class Generator:
    """One random workflow, in which no name occurs twice. `slots` are the places for steps."""

    def __init__(self, rng: random.Random, slots: int) -> None:
        self.rng = rng
        self.slots = slots
        self.count = 0

    def workflow(self, name: str) -> bytes:
        """The text of a descriptor. It completes, or fails for good at one step of its outermost ones."""
        rng = self.rng
        steps = self.steps(rng.randint(2, 6), 0)
        if rng.random() < 0.35:
            after = [one["name"] for one in steps if "when" not in one] if rng.random() < 0.3 else []
            steps.append(self._breaks(after))
        ends: dict[str, Any] = {}
        if rng.random() < 0.4:
            ends["finally"] = {"steps": self.steps(2, 2)}
        if rng.random() < 0.4:
            ends["on_failure"] = {"steps": self.steps(1, 2)}
        return workflow(*steps, name=name, timeout="2000h", **ends)

    def _breaks(self, after: list[str]) -> dict[str, Any]:
        """A step that fails for good until an operator retries it; some go on after that with what they had done."""
        name, fails = self._name("breaks"), {"fails": True}
        match self.rng.choice(["leaf", "each", "each", "group"]):
            case "each":
                given = {"in": list(range(6)), "concurrency": self.rng.randint(1, 3)}
                return step(name, "effect", after, params={"fails_first": "${{ index == 3 ? 1 : 0 }}"}, foreach=given)
            case "group":
                first = step(self._name("effect"), "effect", params=self._does(), retry=QUICK_RETRY)
                second = step(self._name("first"), "effect", [first["name"]], params={"fails_first": 1})
                return {"name": name, "depends_on": after, "steps": [first, second, self._leaf(3)]}
        return step(name, "effect", after, params=fails)

    def steps(self, count: int, depth: int) -> list[dict[str, Any]]:
        """Steps of one block, in which each may depend on those before it."""
        made: list[dict[str, Any]] = []
        for _ in range(count):
            known = [one["name"] for one in made]
            after = self.rng.sample(known, self.rng.randint(0, min(2, len(known))))
            composite = depth < 3 and self.rng.random() < 0.45
            one = self._composite(depth) if composite else self._leaf(depth)
            reacts = [{"step": name, "on": ["completed", "failed", "skipped"]} for name in after]
            if after:
                one["depends_on"] = reacts if self.rng.random() < 0.5 else after
            made.append(one)
        return made

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def _does(self, **more: Any) -> dict[str, Any]:
        takes_s = self.rng.choice([0.0, 0.0, 0.01, 0.5, 20.0])
        return {"takes_s": takes_s, "fails_first": self.rng.choice([0, 0, 0, 1]), **more}

    def _undo(self) -> dict[str, Any]:
        if self.rng.random() < 0.5:
            return {}
        does = {"takes_s": self.rng.choice([0.0, 0.5]), "fails_first": self.rng.choice([0, 0, 1])}
        return {"compensate": {"action": "effect", "params": does, "retry": QUICK_RETRY}}

    def _effect(self, **rest: Any) -> dict[str, Any]:
        name = self._name("effect")
        return step(name, "effect", params=self._does(gives=name), retry=QUICK_RETRY, **self._undo(), **rest)

    def _leaf(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        match rng.choice(_LEAVES):
            case "think":
                return step(self._name("think"), "think", params=self._does(gives=1), retry=QUICK_RETRY)
            case "process":
                return step(self._name("process"), params={"output": "${{ run.name }}"})
            case "wait":
                return {"name": self._name("wait"), "wait": rng.choice(["1ms", "2s", "40s"])}
            case "shrug":
                return step(self._name("shrug"), "effect", params={"fails": True}, continue_on_error=True)
            case "when":
                return self._effect(when=rng.choice(["inputs.n > 1", "inputs.n < 1"]))
            case "event":
                return {"name": self._name("event"), "wait_for": {"event": "go"}}
            case "child" if depth < 2:
                return step(self._name("child"), "workflow", params={"name": "part"}, retry=QUICK_RETRY)
            case _:
                return self._effect()

    def _composite(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        inside = lambda: self.steps(rng.randint(1, 3), depth + 1)  # noqa: E731
        kind = rng.choice(_COMPOSITES)
        name = self._name(kind)
        match kind:
            case "each":
                given = {"in": list(range(rng.randint(0, 6))), "concurrency": rng.randint(1, 3), "max_failures": 6}
                does = self._does(gives="${{ index }}", fails="${{ index == 3 }}")
                return step(name, "effect", params=does, retry=QUICK_RETRY, foreach=given, **self._undo())
            case "each_group":
                given = {"in": {"a": 1, "b": 2}, "concurrency": rng.randint(1, 2)}
                return {"name": name, "foreach": given, "steps": inside(), "output": "${{ index }}"}
            case "switch":
                case = {"when": rng.choice(["inputs.n > 1", "inputs.n < 1"]), "steps": inside()}
                return {"name": name, "switch": [case, {"steps": inside()}]}
            case "while":
                return {"name": name, "while": {"condition": "index < 2", "max": 5}, "steps": inside()}
            case "until":
                return {"name": name, "until": {"condition": "index >= 1", "max": 5}, "steps": inside()}
            case "parallel":
                branches = [{**one, "depends_on": []} for one in self.steps(2, depth + 1)]
                return {"name": name, "parallel": {"branches": branches}}
            case "compete":
                slow = step(self._name("slow"), "effect", params={"takes_s": SLOW_S}, **self._undo())
                if self.slots < MANY_SLOTS:
                    slow = {"name": slow["name"], "wait": "30h"}  # which takes none of the places
                return {"name": name, "parallel": {"compete": True, "branches": [self._effect(), slow]}}
            case "catch":
                broken = step(self._name("broken"), "effect", params={"fails": True})
                broken["depends_on"] = [(first := self._effect())["name"]]
                retry = {"retry": QUICK_RETRY} if rng.random() < 0.4 else {}
                return {"name": name, "steps": [first, broken], "catch": {"steps": inside()}, **retry}
            case "timeout":
                hangs = step(self._name("hangs"), "effect", params={"hangs": True})
                return {"name": name, "timeout": "30s", "steps": [hangs], "continue_on_error": True}
            case _:
                return {"name": name, "steps": inside()}
