"""KNHK as a later version of it might be: it says so, and writes fields that this version does not know.

python -m tests.acceptance.next_version serve …
"""

import os
import sys

import msgspec

import knhk
from knhk.cluster import member, view
from knhk.domain import event, receipt
from knhk.domain.event import AnyDetail

VERSION = "6.1.0"


def main() -> None:
    knhk.__version__ = VERSION
    view.PROTOCOL = int(os.environ.get("NEXT_PROTOCOL", "2"))  # type: ignore[misc]
    view.LEAST = int(os.environ.get("NEXT_LEAST", "1"))  # type: ignore[misc]
    as_json, encode, encoder = member._json, event.encode_detail, msgspec.msgpack.Encoder(order="deterministic")

    def entry(value: view.Node | view.Owner) -> str:
        return msgspec.json.encode({**msgspec.json.decode(as_json(value)), "later": [1]}).decode()

    def detail(value: AnyDetail) -> bytes:
        return encoder.encode({**msgspec.msgpack.decode(encode(value)), "later": {"x": 1}})

    member._json = entry
    receipt.encode_detail = detail
    from knhk.__main__ import main as run

    sys.argv[0] = "knhk"
    run()


if __name__ == "__main__":
    main()
