"""The response parser gives the same answers however the stream is cut."""

import pytest
from bench.http1 import MAX_HEAD_BYTES, ProtocolError, ResponseParser, post_request
from hypothesis import given
from hypothesis import strategies as st

SEPARATORS = st.sampled_from([b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH: \t%d "])
ANSWERS = st.lists(st.tuples(st.sampled_from([200, 202, 204, 404, 429, 503]), st.binary(max_size=300), SEPARATORS))


def encoded(status: int, body: bytes, header: bytes) -> bytes:
    length = b"" if status == 204 else header % len(body) + b"\r\n"
    return b"HTTP/1.1 %d Some Reason\r\nServer: x\r\n%bDate: today\r\n\r\n%b" % (
        status,
        length,
        b"" if status == 204 else body,
    )


@given(ANSWERS, st.data())
def test_any_chunking_gives_the_same_answers(answers: list[tuple[int, bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encoded(*answer) for answer in answers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    parser = ResponseParser()
    got = [answer for piece in pieces for answer in parser.feed(piece)]
    assert got == [(status, b"" if status == 204 else body) for status, body, _ in answers]


def test_an_answer_comes_as_soon_as_its_last_byte() -> None:
    parser, stream = ResponseParser(), encoded(200, b"body", b"Content-Length: %d")
    assert [parser.feed(bytes([byte])) for byte in stream[:-1]] == [[]] * (len(stream) - 1)
    assert parser.feed(stream[-1:]) == [(200, b"body")]


def test_interim_answers_are_passed_over() -> None:
    stream = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + encoded(200, b"y", b"content-length: %d")
    assert ResponseParser().feed(stream) == [(200, b"y")]


def test_content_length_as_the_first_header_is_found() -> None:
    assert ResponseParser().feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx") == [(200, b"x")]


@pytest.mark.parametrize(
    "stream",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD_BYTES,
    ],
)
def test_what_is_not_understood_is_an_error(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().feed(stream)


def test_a_request_says_how_long_it_is() -> None:
    head, body = post_request("127.0.0.1", 8080, "/workflows?wait=30s", b"a: 1\n").split(b"\r\n\r\n")
    assert head.startswith(b"POST /workflows?wait=30s HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n")
    assert b"Content-Length: 5" in head
    assert body == b"a: 1\n"
