"""The key that signs blocks is replaced while the server runs; what the old one signed stays valid."""

import json
from pathlib import Path

import pytest

from tests.acceptance.server import Server

WORKFLOW = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: w}
spec: {steps: [{name: a, action: process, params: {output: 1}}]}
"""


def run(server: Server) -> str:
    workflow_id = server.submit(WORKFLOW)
    server.wait_for(workflow_id)
    return workflow_id


def listed(server: Server) -> list[dict[str, str | None]]:
    return list(server.cli("receipts", "keys", "--data", str(server.data), "--output", "json")["keys"])


def test_old_blocks_and_proofs_stay_valid_and_new_ones_have_the_new_key(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        before = run(server)
        pem, proof = tmp_path / "pem", tmp_path / "proof.json"
        server.cli("receipts", "keys", "--data", str(server.data), "--export", str(pem))
        (old_pem,) = pem.iterdir()
        made = ("receipts", "prove", before, "--seq", "0", "--data", str(server.data), "--output-file", str(proof))
        server.cli(*made)
        old_private = (tmp_path / "keys" / "signing.pem").read_bytes()
        fresh = server.cli("receipts", "keys", "rotate", "--output", "json")["signing_key"]
        after = run(server)
        old, new = listed(server)
        assert (new["key_id"], new["retired_at"]) == (fresh, None)
        assert old["retired_at"] is not None
        assert server.verify()["valid"]
        assert json.loads(proof.read_text())
        checked = server.cli("receipts", "check-proof", str(proof), "--public-key", str(old_pem), "--output", "json")
        assert checked["valid"]
        again = tmp_path / "again.json"
        server.cli("receipts", "prove", after, "--seq", "0", "--data", str(server.data), "--output-file", str(again))
        assert server.cli("receipts", "check-proof", str(again), "--public-key", str(old_pem), code=1) == {}
        assert (tmp_path / "keys" / "signing.pem").read_bytes() != old_private
        server.kill()
        server.start()
        run(server)
        assert server.verify()["valid"]
        assert [key["key_id"] for key in listed(server)] == [old["key_id"], fresh]
        assert server.stop() == 0
        (tmp_path / "keys" / "signing.pem").write_bytes(old_private)
        with pytest.raises(AssertionError, match=f"{old['key_id']} was retired"):
            server.start()
        assert server.verify()["valid"]
    finally:
        server.close()


@pytest.mark.parametrize("replaced", [True, False])
def test_a_rotation_that_a_crash_interrupts_is_finished_or_forgotten(tmp_path: Path, replaced: bool) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        run(server)
        assert server.stop() == 0
        keys = tmp_path / "keys"
        (old,) = listed(server)
        old_private = (keys / "signing.pem").read_bytes()
        (keys / "signing-retiring").write_text(str(old["key_id"]))
        if replaced:  # it died after the new key had taken its place, before the old one was retired
            (keys / "signing.pem").unlink()
        else:
            (keys / "signing-next.pem").write_bytes(old_private)
        server.start()
        run(server)
        assert not (keys / "signing-retiring").exists()
        assert not (keys / "signing-next.pem").exists()
        found = listed(server)
        assert len(found) == (2 if replaced else 1)
        assert (found[0]["retired_at"] is not None) is replaced
        assert server.verify()["valid"]
    finally:
        server.close()
