"""etcd 3.4 and newer through its JSON gateway: leases, keys bound to them, transactions. Keys and values are text.

The gateway is a part of every etcd and needs no generated code; docs/decisions/0008 says why no client library is used.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
import msgspec

from knhk.domain.errors import CoordinationUnavailable

_FAILURES: Final = (httpx.HTTPError, msgspec.DecodeError, KeyError, ValueError)


class Entry(msgspec.Struct, frozen=True):
    """A key's value, the lease that it lives by (0: none), and the revision at which it was made."""

    value: str
    lease: int
    created: int


class State(msgspec.Struct, frozen=True):
    """What a member of etcd says of itself: what is wrong with it, and whether it leads or follows."""

    endpoint: str
    trouble: str
    role: str = ""
    version: str = ""


class Etcd:
    """A client of one etcd cluster. Every call is answered by the majority, or raises CoordinationUnavailable."""

    def __init__(self, endpoints: Sequence[str], timeout_s: float) -> None:
        self.endpoints = tuple(endpoint.rstrip("/") for endpoint in endpoints)
        self._client = httpx.AsyncClient(timeout=timeout_s, trust_env=False)
        self._first = 0

    async def grant(self, ttl_s: int) -> int:
        """A new lease; what is bound to it goes `ttl_s` seconds after the last renewal."""
        return int((await self._call("/v3/lease/grant", {"TTL": ttl_s}))["ID"])

    async def renew(self, lease: int) -> bool:
        """Let a lease live on; False if it is over."""
        answer = await self._call("/v3/lease/keepalive", {"ID": lease})
        return int(answer["result"].get("TTL", 0)) > 0

    async def revoke(self, lease: int) -> None:
        """End a lease at once, and all that is bound to it."""
        await self._call("/v3/lease/revoke", {"ID": lease})

    async def under(self, prefix: str) -> dict[str, Entry]:
        """The keys that begin with a prefix, as the majority knows them now."""
        asked = {"key": _encoded(prefix), "range_end": _encoded(_end(prefix))}
        return _entries(await self._call("/v3/kv/range", asked))

    async def put(self, key: str, value: str, lease: int = 0) -> None:
        """Set a key."""
        await self._call("/v3/kv/put", _put(key, value, lease))

    async def create(self, key: str, value: str, lease: int) -> bool:
        """Make a key that is not there; False if it is."""
        absent = {"key": _encoded(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        return await self._transact(absent, {"request_put": _put(key, value, lease)})

    async def delete(self, key: str) -> None:
        """Remove a key, whoever made it."""
        await self._call("/v3/kv/deleterange", {"key": _encoded(key)})

    async def delete_mine(self, key: str, lease: int) -> bool:
        """Remove a key if it lives by this lease; False if it does not."""
        mine = {"key": _encoded(key), "target": "LEASE", "result": "EQUAL", "lease": str(lease)}
        return await self._transact(mine, {"request_delete_range": {"key": _encoded(key)}})

    async def put_while(self, guard: str, lease: int, values: Mapping[str, tuple[str, int]]) -> bool:
        """Set keys, each with the lease that it lives by, if the guard lives by its lease; False if it does not."""
        mine = {"key": _encoded(guard), "target": "LEASE", "result": "EQUAL", "lease": str(lease)}
        return await self._transact(mine, *({"request_put": _put(key, *value)} for key, value in values.items()))

    async def members(self) -> list[State]:
        """What each endpoint says of itself."""
        return list(await asyncio.gather(*map(self._state, self.endpoints)))

    async def _state(self, endpoint: str) -> State:
        try:
            answer = await self._client.post(f"{endpoint}/v3/maintenance/status", content=b"{}")
            answer.raise_for_status()
            found = answer.json()
            leads = found["header"]["member_id"] == found.get("leader")
            role = "leader" if leads else "follower" if found.get("leader", "0") != "0" else ""
            trouble = "; ".join(found.get("errors", ())) or ("" if role else "it knows no leader")
        except _FAILURES as error:
            return State(endpoint, str(error) or type(error).__name__)
        return State(endpoint, trouble, role, found.get("version", ""))

    async def glimpse(self, prefix: str) -> dict[str, Entry]:
        """The keys that begin with a prefix, as any one member has them: it may be behind, and needs no majority."""
        asked = {"key": _encoded(prefix), "range_end": _encoded(_end(prefix)), "serializable": True}
        return _entries(await self._call("/v3/kv/range", asked))

    async def now_ns(self) -> int:
        """The time of the member that answers first (Unix, ns), to half a second. Raises CoordinationUnavailable."""
        problems = []
        for endpoint in self.endpoints:
            try:
                answer = await self._client.get(f"{endpoint}/version")
                told = parsedate_to_datetime(answer.headers["date"])
            except (*_FAILURES, TypeError) as error:
                problems.append(f"{endpoint}: {str(error) or type(error).__name__}")
                continue
            return int(told.timestamp()) * 1_000_000_000 + 500_000_000
        raise CoordinationUnavailable(f"etcd does not tell the time: {'; '.join(problems)}")

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()

    async def _transact(self, condition: Mapping[str, str], *actions: Mapping[str, Any]) -> bool:
        answer = await self._call("/v3/kv/txn", {"compare": [condition], "success": actions})
        return bool(answer.get("succeeded", False))

    async def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask one endpoint after the other, beginning with the last that answered.

        What is asked may be done twice if an answer is lost: every caller can bear that.
        """
        problems = []
        for step in range(len(self.endpoints)):
            at = (self._first + step) % len(self.endpoints)
            try:
                answer = await self._client.post(f"{self.endpoints[at]}{path}", content=msgspec.json.encode(body))
                answer.raise_for_status()
                found: dict[str, Any] = msgspec.json.decode(answer.content)
            except _FAILURES as error:
                problems.append(f"{self.endpoints[at]}: {str(error) or type(error).__name__}")
                continue
            self._first = at
            return found
        raise CoordinationUnavailable(f"etcd does not answer: {'; '.join(problems)}")


def _entries(found: Mapping[str, Any]) -> dict[str, Entry]:
    return {
        _decoded(one["key"]): Entry(
            _decoded(one.get("value", "")), int(one.get("lease", 0)), int(one["create_revision"])
        )
        for one in found.get("kvs", ())
    }


def _put(key: str, value: str, lease: int) -> dict[str, Any]:
    return {"key": _encoded(key), "value": _encoded(value), "lease": str(lease)}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def _end(prefix: str) -> str:
    """The least key that is greater than all keys with the prefix, whose last character is ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
