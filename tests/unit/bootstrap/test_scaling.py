"""What the configuration and the machine allow."""

from knhk.bootstrap.scaling import Bounds, policy_of
from knhk.config import Config

CONFIG = Config.model_validate({"scaling": {"min_replicas": 3, "max_replicas": 50}})


def test_a_machine_has_no_more_processes_than_partitions() -> None:
    policy = policy_of(CONFIG, most=2)
    assert (policy.min_replicas, policy.max_replicas) == (2, 2)


def test_elsewhere_the_configuration_alone_decides() -> None:
    policy = policy_of(CONFIG)
    assert (policy.min_replicas, policy.max_replicas) == (3, 50)


class Machine:
    """As a process knows it: how many partitions there are is told after the start."""

    name, most = "processes", 1

    async def current(self) -> int:
        return self.most

    async def scale_to(self, count: int) -> None:
        raise AssertionError(count)

    def others(self) -> tuple[str, ...]:
        return ()


def test_what_a_machine_allows_is_asked_anew_and_said_once() -> None:
    machine, said = Machine(), list[str]()
    bounds = Bounds(CONFIG, machine, said.append)
    machine.most = 4
    assert [bounds().max_replicas for _ in range(3)] == [4, 4, 4]
    assert len(said) == 1
    assert "scaling.max_replicas is 50, and there are 4 partitions" in said[0]
