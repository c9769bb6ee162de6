"""Which combinations of settings make a cluster, and what is said of those that cannot be."""

from typing import Any

import pytest

from knhk.bootstrap.clustered import complaint, has_own_journal, is_clustered, shares_journal
from knhk.config import Config
from knhk.domain.errors import InvalidConfiguration

CLUSTER = {"mode": True, "etcd": ("http://etcd:2379",)}
DATABASE = {"url": "postgresql://knhk@db/knhk"}


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def test_a_cluster_needs_etcd_and_either_shares_a_database_or_has_a_journal_on_each_node() -> None:
    alone = config(cluster={"mode": True}, persistence=DATABASE)
    assert not is_clustered(alone)
    assert "needs cluster.etcd" in complaint(alone)
    shared, own = config(cluster=CLUSTER, persistence=DATABASE), config(cluster=CLUSTER)
    assert [(shares_journal(one), has_own_journal(one)) for one in (shared, own)] == [(True, False), (False, True)]
    assert "journal of its own" in complaint(own)
    assert complaint(config()) == ""


def test_a_takeover_needs_a_place_that_journals_are_shipped_to() -> None:
    takeover = {**CLUSTER, "takeover": True}
    with pytest.raises(InvalidConfiguration, match=r"cluster\.takeover needs recovery\.backup_to"):
        complaint(config(cluster=takeover))
    assert complaint(config(cluster=takeover, recovery={"backup_to": "/backup"}))
    assert "cluster.takeover has no effect" in complaint(config(cluster=takeover, persistence=DATABASE))


def test_commits_that_wait_for_their_shipping_need_a_place_too() -> None:
    waits = {"ship_before_acknowledging": True}
    with pytest.raises(InvalidConfiguration, match=r"needs recovery\.backup_to"):
        complaint(config(cluster=CLUSTER, recovery=waits))
    assert "has no effect" in complaint(config(recovery=waits))
