"""Bodies that come packed and in pieces: the same as in one, in whichever of the forms that servers send."""

import gzip
import itertools
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.actions.http_response import BodyUnreadable, _decoded


class Pieces(httpx.AsyncByteStream):
    def __init__(self, raw: bytes, cuts: list[int]) -> None:
        places = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
        self._pieces = [raw[begin:end] for begin, end in itertools.pairwise(places)]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


async def decoded(raw: bytes, encoding: str, cuts: list[int]) -> bytes:
    response = httpx.Response(200, headers={"content-encoding": encoding}, stream=Pieces(raw, cuts))
    return b"".join([piece async for piece in _decoded(response)])


@given(st.binary(max_size=200), st.lists(st.integers(0, 60), max_size=4))
async def test_packed_bodies_come_out_as_they_were(body: bytes, cuts: list[int]) -> None:
    assert await decoded(gzip.compress(body, mtime=0), "gzip", cuts) == body
    assert await decoded(zlib.compress(body), "deflate", cuts) == body
    assert await decoded(zlib.compress(body, wbits=-zlib.MAX_WBITS), "deflate", cuts) == body


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2, 3]])
async def test_what_is_neither_is_unreadable(cuts: list[int]) -> None:
    with pytest.raises(BodyUnreadable):
        await decoded(b"\xff\xff\xff\xff not packed", "deflate", cuts)
