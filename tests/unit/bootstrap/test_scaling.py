"""What the configuration and the machine allow."""

from knhk.bootstrap.scaling import policy_of
from knhk.config import Config

CONFIG = Config.model_validate({"scaling": {"min_replicas": 3, "max_replicas": 50}})


def test_a_machine_has_no_more_processes_than_partitions() -> None:
    policy = policy_of(CONFIG, most=2)
    assert (policy.min_replicas, policy.max_replicas) == (2, 2)


def test_elsewhere_the_configuration_alone_decides() -> None:
    policy = policy_of(CONFIG)
    assert (policy.min_replicas, policy.max_replicas) == (3, 50)
