"""Random worlds on virtual time: whatever fails and whenever the process dies, what was promised holds.

The invariants are in world.py, in the methods that begin with `_check`. A seed that failed is run again with

    .venv/bin/python -m tests.simulation.world SEED

and many more (of about 60 ms each) with one of

    .venv/bin/pytest -m soak tests/simulation
    .venv/bin/python -m tests.simulation.world FIRST LAST
"""

import pytest

from tests.simulation.clock import in_virtual_time
from tests.simulation.world import World, life_of

SEEDS = 60
SOAK_SEEDS = 5_000


def _assert_well(seed: int) -> None:
    problems = life_of(seed)
    again = f".venv/bin/python -m tests.simulation.world {seed}"
    assert not problems, "\n".join([f"seed {seed}; run it again with: {again}", *problems])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_promised_holds_whatever_fails(seed: int) -> None:
    _assert_well(seed)


def test_a_seed_decides_everything() -> None:
    def journal(seed: int) -> list[bytes]:
        world = World(seed)
        in_virtual_time(world.live)
        return [one.body for sealed in world.house.store._state.receipts.values() for one in sealed]

    assert journal(7) == journal(7)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_more_seeds() -> None:
    for seed in range(SEEDS, SEEDS + SOAK_SEEDS):
        _assert_well(seed)
