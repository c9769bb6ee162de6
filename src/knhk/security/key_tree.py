"""A key for every path, from which single paths and whole branches can be cut out for good.

The puncturable pseudorandom function of Goldreich, Goldwasser and Micali (1986) with sixteen branches a level:

    child(node, digit) = SHA-256(0x04 || node || digit)          digit: one byte, '0' to 'f'
    key of a path      = the node that its 32 digits lead to from the root

Only the root is stored. To destroy a path, the node above it is replaced by the siblings along the way: every other
path can still be reached, this one cannot, because SHA-256 does not run backwards. So a billion runs cost 32 bytes, and
one that was erased costs at most 15 siblings on each of 32 levels, usually a third of that.
"""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

DIGITS: Final = "0123456789abcdef"
DEPTH: Final = 32
BRANCH_DEPTH: Final = 16
"""Digits of a path that name its branch, a department; the others name a run."""
_NODE: Final = b"\x04"
_WAYS_KEPT: Final = 256


class KeyTree:
    """The nodes that are known, each under the digits that lead to it; `{"": root}` at first."""

    def __init__(self, nodes: Mapping[str, bytes]) -> None:
        self._nodes = dict(nodes)
        self._ways: OrderedDict[str, tuple[str, list[bytes | None]]] = OrderedDict()

    @property
    def nodes(self) -> Mapping[str, bytes]:
        """What must be stored."""
        return self._nodes

    def key(self, path: str) -> bytes | None:
        """The key of a path, None if it was destroyed.

        Paths of one branch usually differ in their last digits alone, so that the way to the last one is kept.
        """
        branch = path[:BRANCH_DEPTH]
        known = self._ways.get(branch)
        if known is None:
            way: list[bytes | None] = [self._nodes.get("")]
            same = 0
        else:
            last, way = known
            same = next((at for at in range(DEPTH) if last[at] != path[at]), DEPTH)
            del way[same + 1 :]
        for depth in range(same, DEPTH):
            above = way[depth]
            way.append(self._nodes.get(path[: depth + 1]) if above is None else child(above, path[depth]))
        self._ways[branch] = (path, way)
        self._ways.move_to_end(branch)
        if len(self._ways) > _WAYS_KEPT:
            self._ways.popitem(last=False)
        return way[DEPTH]

    def destroy(self, path: str) -> None:
        """Make the key of a path, or with fewer digits those of a whole branch, impossible to compute."""
        depth = next((at for at in range(len(path) + 1) if path[:at] in self._nodes), None)
        if depth is not None:
            node = self._nodes.pop(path[:depth])
            for at in range(depth, len(path)):
                for digit in DIGITS:
                    if digit != path[at]:
                        self._nodes[path[:at] + digit] = child(node, digit)
                node = child(node, path[at])
        for below in [known for known in self._nodes if known.startswith(path)]:
            del self._nodes[below]
        self._ways.clear()


def child(node: bytes, digit: str) -> bytes:
    """The node below."""
    return sha256(_NODE + node + digit.encode()).digest()
