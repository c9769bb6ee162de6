"""Asks other replicas for their load, at their API."""

from typing import Final

import httpx
import msgspec

from knhk.scaling.load import Load

LOAD_PATH: Final = "/scaling/load"
_ANSWER_S: Final = 5.0
_CONNECT_S: Final = 2.0


class Asking:
    """The HTTP client, made when it is first needed."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def ask(self, api: str) -> Load | str:
        """The load of the replica with this API, or why it is not known."""
        if self._client is None:
            timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
            self._client = httpx.AsyncClient(timeout=timeout, trust_env=False)
        try:
            answer = await self._client.get(f"{api}{LOAD_PATH}")
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=Load)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{type(error).__name__}: {error}"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # of another version, perhaps
            return f"its load cannot be read: {error}"

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
