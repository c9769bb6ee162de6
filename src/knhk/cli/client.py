"""The CLI's side of the HTTP API: requests, errors as the server means them, and the stream of events."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

import httpx
import msgspec

from knhk.domain.errors import ServerUnreachable
from knhk.sdk.answers import ANSWER_S, CONNECT_S, SILENCE_S, checked_url, error_of, receipts_in

_RECONNECTS: Final = 5


class Client:
    """One server. Every method raises what the server answered as the error that it was there, or ServerUnreachable."""

    def __init__(self, server: str, option: str = "--server") -> None:
        self._server, through_proxies = checked_url(server, option)
        self._http = httpx.Client(
            base_url=self._server, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), trust_env=through_proxies
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> dict[str, Any]:
        """The decoded answer. `wait_s` is how long the server was asked to wait before it answers."""
        return self._decoded(self._answer(method, path, query or {}, body, headers or {}, wait_s))

    def text(self, path: str) -> str:
        """What a route gives as text, such as /metrics."""
        return self._answer("GET", path, {}, None, {}, 0.0).text

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int | None],
        body: bytes | None,
        headers: Mapping[str, str],
        wait_s: float,
    ) -> httpx.Response:
        given = {name: value for name, value in query.items() if value is not None}
        try:
            response = self._http.request(
                method,
                path,
                params=given,
                content=body,
                headers=dict(headers),
                timeout=httpx.Timeout(ANSWER_S + wait_s, connect=CONNECT_S),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise error_of(response.status_code, response.content, response.headers.get("retry-after"))
        return response

    def events(self, workflow_id: str, from_seq: int = 0) -> Iterator[dict[str, Any]]:
        """The receipts of a workflow as they are committed, until its end. A broken connection is made again."""
        seq, failures = from_seq, 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(seq - 1)} if seq else {})
            try:
                with self._http.stream(
                    "GET",
                    f"/workflows/{workflow_id}/events",
                    headers=headers,
                    timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
                ) as response:
                    if response.is_error:
                        raise error_of(response.status_code, response.read(), response.headers.get("retry-after"))
                    for receipt in receipts_in(response.iter_lines()):
                        seq, failures = receipt["seq"] + 1, 0
                        yield receipt
                return
            except httpx.HTTPError as error:
                failures += 1
                if failures > _RECONNECTS:
                    raise self._unreachable(error) from error
                _pause(failures)

    def _decoded(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = msgspec.json.decode(response.content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ServerUnreachable(
                f"{self._server} answered with something that is not KNHK's: {response.headers.get('content-type')}",
                hint="Is this the URL of the API? Name it with --server or KNHK_SERVER.",
            ) from error
        return found

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"{self._server}: {error or type(error).__name__}")


def _pause(failures: int) -> None:
    import time

    time.sleep(min(0.2 * 2**failures, 3.0))
