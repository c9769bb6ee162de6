"""Plans without a descriptor: random DAGs for the fold of a run."""

from collections.abc import Sequence

from hypothesis import strategies as st

from knhk.domain.expressions import Template
from knhk.domain.plan import ActionTraits, Plan, RetryPolicy, Semantics, Step, block_of

TRAITS = ActionTraits("effect", pure=False)


def plan(
    depends_on: Sequence[Sequence[int]],
    *,
    once: frozenset[int] = frozenset(),
    timeout_ns: int = 0,
    covenant: str = "Sigma",
) -> Plan:
    """A plan of steps `s0`, `s1`..., each given by what it depends on; those in `once` run at most once."""
    dependents: list[list[int]] = [[] for _ in depends_on]
    for index, before in enumerate(depends_on):
        for one in before:
            dependents[one].append(index)
    steps = []
    for index, before in enumerate(depends_on):
        semantics: Semantics = "at_most_once" if index in once else "at_least_once"
        steps.append(
            Step(
                index=index,
                name=f"s{index}",
                action="effect",
                traits=TRAITS,
                params=Template(None, None, None),
                depends_on=tuple(before),
                dependents=tuple(dependents[index]),
                timeout_ns=0,
                retry=RetryPolicy(max_attempts=3, jitter=False),
                semantics=semantics,
                keep_output=False,
            )
        )
    return Plan(
        digest=b"d" * 32,
        name="test",
        department="",
        cost_center="",
        labels={},
        covenant=covenant,  # type: ignore[arg-type]
        timeout_ns=timeout_ns,
        root=block_of(tuple(steps)),
        inputs_schema=None,
        outputs=(),
        invariants=(),
    )


@st.composite
def plans(draw: st.DrawFn, most: int = 8) -> Plan:
    """Any DAG of up to `most` steps."""
    count = draw(st.integers(1, most))
    depends_on = [
        sorted(draw(st.sets(st.integers(0, index - 1), max_size=3))) if index else [] for index in range(count)
    ]
    return plan(depends_on, once=draw(st.frozensets(st.integers(0, count - 1), max_size=2)))
