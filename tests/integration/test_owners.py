"""Who may ship to a place, and which line of events is the newest, whatever zombies do and clocks say."""

from pathlib import Path

import pytest

from knhk.domain.errors import Fenced
from knhk.recovery import owners
from knhk.recovery.histories import History, Reader, write
from knhk.recovery.owners import Claim
from knhk.recovery.places import Place
from knhk.security.signing import Ed25519Signer, verify


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.of(str(tmp_path / "away"), make=True)


def test_the_greatest_epoch_owns_a_place(place: Place) -> None:
    assert owners.newest(place) is None
    owners.claim(place, Claim(3, "a", 1))
    owners.claim(place, Claim(3, "a", 2))  # after a lost answer
    owners.require(place, 3)
    owners.claim(place, Claim(12, "b", 3))
    assert owners.newest(place) == Claim(12, "b", 3)
    owners.require(place, 12)
    with pytest.raises(Fenced, match=r"belongs to node 'b' with epoch 12 .* with epoch 3"):
        owners.require(place, 3)
    with pytest.raises(Fenced):
        owners.claim(place, Claim(4, "a", 4))
    with pytest.raises(Fenced):
        owners.claim(place, Claim(12, "a", 4))


def test_a_zombie_that_begins_a_history_later_does_not_lead_a_restore_astray(place: Place, tmp_path: Path) -> None:
    signer = Ed25519Signer.load_or_create(tmp_path / "keys", 1)
    write(place, History("aa", "", 10, "a", {}, 3), signer)
    write(place, History("bb", "aa", 20, "b", {"0": (7, "00")}, 4), signer)
    write(place, History("zz", "aa", 30, "a", {}, 3), signer)
    found = Reader(place, None, verify).newest()
    assert found is not None
    assert (found.history, found.epoch) == ("bb", 4)
