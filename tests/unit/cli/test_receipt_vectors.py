"""docs/receipt-vectors.json is what this code writes, and a verifier made from docs/receipts.md alone accepts it.

`python -m tests.unit.cli.test_receipt_vectors` writes the file anew, for a deliberate change of the format.
"""

import asyncio
import copy
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

FILE = Path(__file__).parents[3] / "docs" / "receipt-vectors.json"
PRIVATE_KEY = bytes(range(32))


def vectors() -> dict[str, Any]:
    """The vectors as this code makes them, from fixed inputs."""
    from knhk.domain import payload
    from knhk.persistence.proofs import prove
    from knhk.security.signing import public_pem
    from tests.unit.cli.journal import DESCRIPTOR, RUNS, SIGNER, journal, trust

    store = asyncio.run(journal())
    state = store._state
    values = [None, True, -1, 2**63, 1.5, "text", {"b": 1, "a": [2, "ä"]}, {}]
    return {
        "description": "Test vectors for docs/receipts.md. Bytes are in hexadecimal.",
        "private_key": PRIVATE_KEY.hex(),
        "public_key": SIGNER.public_key.raw.hex(),
        "public_key_pem": public_pem(SIGNER.public_key).decode(),
        "key_id": SIGNER.public_key.key_id,
        "descriptor": DESCRIPTOR.decode(),
        "values": [
            {
                "json": value,
                "payload": payload.encode(value).hex(),
                "digest": payload.digest(payload.encode(value)).hex(),
            }
            for value in values
        ],
        "runs": [
            {
                "workflow_id": f"wf-{run}",
                "receipts": [{"body": one.body.hex(), "hash": one.hash.hex()} for one in state.receipts[run]],
                "payloads": [
                    {"seq": seq, "slot": slot, "payload": raw.hex()}
                    for (seq, slot), raw in sorted(state.payloads.get(run, {}).items())
                ],
            }
            for run in RUNS
        ],
        "blocks": [
            {
                "body": signed.body.hex(),
                "hash": signed.hash().hex(),
                "signature": signed.signature.hex(),
                "slices": [[f"wf-{part.workflow_id}", part.first_seq, part.count] for part in signed.slices],
            }
            for signed in state.blocks[0]
        ],
        "proofs": [
            msgspec.to_builtins(asyncio.run(prove(store, run, seq, trust())))
            for run in RUNS
            for seq in (0, 2)[: 1 + (run != RUNS[1])]
        ],
    }


# What follows is the independent verifier. It imports nothing of KNHK.

RECEIPT_FIELDS = [
    "workflow_id",
    "seq",
    "kind",
    "step",
    "attempt",
    "at_ns",
    "actor",
    "descriptor_digest",
    "input_digest",
    "output_digest",
    "detail",
    "previous_hash",
]
BLOCK_FIELDS = [
    "partition",
    "epoch",
    "height",
    "first_offset",
    "count",
    "merkle_root",
    "previous_block_hash",
    "at_ns",
    "node_id",
    "key_id",
]


class Wrong(Exception):
    """The vectors do not verify."""


def require(condition: bool, what: str) -> None:
    """Raise Wrong unless it holds."""
    if not condition:
        raise Wrong(what)


def decoded(body: bytes, fields: list[str]) -> dict[str, Any]:
    """A msgpack array as a mapping."""
    values = msgspec.msgpack.decode(body)
    require(isinstance(values, list) and len(values) == len(fields), "the body is an array of all fields")
    return dict(zip(fields, values, strict=True))


def tree(leaves: list[bytes]) -> bytes:
    """The Merkle tree hash by the recursion of RFC 9162, 2.1.1."""
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + tree(leaves[:split]) + tree(leaves[split:])).digest()


def from_path(leaf: bytes, index: int, count: int, path: list[bytes]) -> bytes:
    """The root from an inclusion proof by the algorithm of RFC 9162, 2.1.3.2."""
    require(0 <= index < count, "the leaf exists")
    fn, sn, root = index, count - 1, sha256(b"\x00" + leaf).digest()
    for node in path:
        require(sn > 0, "the path is not too long")
        if fn % 2 or fn == sn:
            root = sha256(b"\x01" + node + root).digest()
            while fn and not fn % 2:
                fn, sn = fn // 2, sn // 2
        else:
            root = sha256(b"\x01" + root + node).digest()
        fn, sn = fn // 2, sn // 2
    require(sn == 0, "the path is not too short")
    return root


def verify_signature(key: Ed25519PublicKey, body: bytes, signature: bytes) -> None:
    """Ed25519 over 0x03 and the block's body."""
    try:
        key.verify(signature, b"\x03" + body)
    except InvalidSignature as error:
        raise Wrong("signature") from error


def verify_run(run: dict[str, Any], descriptor: bytes) -> dict[tuple[int, int], bytes]:
    """A run's chain and payloads; its receipts' hashes by workflow and seq."""
    number, previous, found, digests = int(run["workflow_id"].removeprefix("wf-")), bytes(32), {}, {}
    for seq, one in enumerate(run["receipts"]):
        body = bytes.fromhex(one["body"])
        receipt = decoded(body, RECEIPT_FIELDS)
        require(sha256(b"\x02" + body).hexdigest() == one["hash"], "receipt hash")
        require((receipt["workflow_id"], receipt["seq"]) == (number, seq), "place")
        require(receipt["previous_hash"] == previous, "chain")
        require(receipt["descriptor_digest"] == sha256(descriptor).digest(), "descriptor")
        previous = found[number, seq] = bytes.fromhex(one["hash"])
        digests[seq] = (receipt["input_digest"], receipt["output_digest"])
    for one in run["payloads"]:
        digest = sha256(bytes.fromhex(one["payload"])).digest()
        require(digests[one["seq"]][one["slot"]] == digest, "payload")
    return found


def verify(given: dict[str, Any]) -> int:
    """Verify everything in the vectors; how many receipts there are. Raises Wrong."""
    key = load_pem_public_key(given["public_key_pem"].encode())
    assert isinstance(key, Ed25519PublicKey)
    require(sha256(key.public_bytes_raw()).hexdigest()[:16] == given["key_id"], "key id")
    hashes: dict[tuple[int, int], bytes] = {}
    for run in given["runs"]:
        hashes.update(verify_run(run, given["descriptor"].encode()))
    offset, previous, unseen = 0, bytes(32), set(hashes)
    for height, one in enumerate(given["blocks"]):
        body = bytes.fromhex(one["body"])
        block = decoded(body, BLOCK_FIELDS)
        require((block["height"], block["first_offset"]) == (height, offset), "height and offset")
        require(block["previous_block_hash"] == previous, "chain of blocks")
        require(block["key_id"] == given["key_id"], "key")
        places = [
            (int(workflow_id.removeprefix("wf-")), seq)
            for workflow_id, first, count in one["slices"]
            for seq in range(first, first + count)
        ]
        require(len(places) == block["count"], "count")
        require(tree([hashes[place] for place in places]) == block["merkle_root"], "Merkle root")
        verify_signature(key, body, bytes.fromhex(one["signature"]))
        previous = sha256(b"\x03" + body).digest()
        require(previous.hex() == one["hash"], "block hash")
        offset += block["count"]
        unseen -= set(places)
    require(not unseen and offset == len(hashes), "each receipt is in one block")
    return len(hashes)


def verify_proof(proof: dict[str, Any], key: Ed25519PublicKey) -> None:
    """Verify an inclusion proof. Raises Wrong."""
    require(proof["format"] == "knhk-inclusion-proof/1", "format")
    body, block_body = bytes.fromhex(proof["receipt"]), bytes.fromhex(proof["block"])
    receipt, block = decoded(body, RECEIPT_FIELDS), decoded(block_body, BLOCK_FIELDS)
    require((f"wf-{receipt['workflow_id']}", receipt["seq"]) == (proof["workflow_id"], proof["seq"]), "place")
    require(receipt["workflow_id"] >> 12 & 1023 == block["partition"], "partition")
    path = [bytes.fromhex(one) for one in proof["path"]]
    root = from_path(sha256(b"\x02" + body).digest(), proof["leaf_index"], block["count"], path)
    require(root == block["merkle_root"], "Merkle root")
    verify_signature(key, block_body, bytes.fromhex(proof["signature"]))


def test_the_file_is_what_this_code_writes() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == vectors()


def test_an_independent_verifier_accepts_the_file() -> None:
    given = json.loads(FILE.read_text(encoding="utf-8"))
    assert verify(given) == 19
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(given["public_key"]))
    assert len(given["proofs"]) == 7
    for proof in given["proofs"]:
        verify_proof(proof, key)
    for one in given["values"]:
        assert msgspec.msgpack.decode(bytes.fromhex(one["payload"])) == one["json"]
        assert sha256(bytes.fromhex(one["payload"])).hexdigest() == one["digest"]


@pytest.mark.parametrize(
    "place",
    [
        ("runs", 0, "receipts", 1, "body"),
        ("runs", 0, "receipts", 5, "hash"),
        ("runs", 0, "payloads", 0, "payload"),
        ("blocks", 2, "body"),
        ("blocks", 2, "signature"),
    ],
)
def test_an_independent_verifier_refuses_changes(place: tuple[Any, ...]) -> None:
    changed = copy.deepcopy(json.loads(FILE.read_text(encoding="utf-8")))
    target: Any = changed
    for part in place[:-1]:
        target = target[part]
    text = target[place[-1]]
    target[place[-1]] = text[:-1] + ("0" if text[-1] != "0" else "1")
    with pytest.raises(Wrong):
        verify(changed)


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
