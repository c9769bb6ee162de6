"""As much of HTTP/1.1 as a load client needs: requests made beforehand, answers with a Content-Length.

A general parser would cost several times as much, on cores that the client shares with the server.
"""

import re

MAX_HEAD_BYTES = 65_536
_END_OF_HEAD = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_BODILESS = frozenset({204, 304})


class ProtocolError(Exception):
    """The server sent something that this client does not read."""


def post_request(host: str, port: int, target: str, body: bytes) -> bytes:
    """The bytes of one keep-alive POST of a YAML body."""
    head = (
        f"POST {target} HTTP/1.1\r\n"
        f"Host: {host}:{port}\r\n"
        "Content-Type: application/yaml\r\n"
        "Accept: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "\r\n"
    )
    return head.encode("ascii") + body


class ResponseParser:
    """Cuts a stream into answers, however the stream was cut into pieces.

    `feed` returns the answers that the piece completed, as (status, body). Interim answers (1xx) are passed over.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take the next piece of the stream."""
        buffer = self._buffer + data if self._buffer else data
        answers: list[tuple[int, bytes]] = []
        position = 0
        while position < len(buffer):
            end_of_head = buffer.find(_END_OF_HEAD, position)
            if end_of_head < 0:
                if len(buffer) - position > MAX_HEAD_BYTES:
                    raise ProtocolError("the head of an answer never ends")
                break
            # The last header's line end is kept, so that one pattern finds a header wherever it stands.
            status, length = _read_head(buffer[position : end_of_head + 2])
            begin = end_of_head + 4
            if len(buffer) - begin < length:
                break
            position = begin + length
            if status >= 200:
                answers.append((status, buffer[begin:position]))
        self._buffer = buffer[position:]
        return answers


def _read_head(head: bytes) -> tuple[int, int]:
    """The status and the length of the body."""
    if not head.startswith(b"HTTP/1.") or not head[9:12].isdigit():
        raise ProtocolError(f"not an HTTP answer: {head[:40]!r}")
    status = int(head[9:12])
    if status < 200 or status in _BODILESS:
        return status, 0
    found = _CONTENT_LENGTH.search(head)
    if found is None:
        raise ProtocolError(f"an answer without Content-Length: {head[:200]!r}")
    return status, int(found[1])
