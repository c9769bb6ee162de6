"""Where commands that analyse runs read them: from a server, or from a data directory without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from knhk.domain.errors import WorkflowNotFound

if TYPE_CHECKING:
    import typer

    from knhk.cli.client import Client
    from knhk.persistence.rocksdb import RocksDbStore

_PAGE: Final = 1_000


class Runs(Protocol):
    """Runs as the API tells them."""

    def rows(self, limit: int) -> Iterator[dict[str, Any]]:
        """Up to `limit` runs in short, newest first."""
        ...

    def run(self, workflow_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A run with its steps, and its receipts. Raises WorkflowNotFound."""
        ...


@contextmanager
def runs_of(server: str, context: "typer.Context", data: Path | None) -> Iterator[Runs]:
    """The runs of a server, or if a data directory is given, those in it. Raises as either does."""
    if data is None:
        from knhk.cli.client import Client

        with Client(server) as client:
            yield _OfServer(client)
        return
    from knhk.cli.store import data_directory, opened

    with opened(data_directory(context, data, None)) as store:
        yield _OfStore(store)


class _OfServer:
    def __init__(self, client: "Client") -> None:
        self._client = client

    def rows(self, limit: int) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while limit > 0:
            query = {"limit": min(limit, _PAGE), "cursor": cursor}
            page = self._client.request("GET", "/workflows", query=query)
            yield from page["workflows"]
            limit -= len(page["workflows"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def run(self, workflow_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        from knhk.domain.identifier import parse, to_text

        path = f"/workflows/{to_text(parse(workflow_id))}"
        shown = self._client.request("GET", path)
        return shown, self._client.request("GET", f"{path}/receipts")["receipts"]


class _OfStore:
    """Rows are as far as the projections had come; receipts are the truth."""

    def __init__(self, store: "RocksDbStore") -> None:
        self._store = store

    def rows(self, limit: int) -> Iterator[dict[str, Any]]:
        import asyncio

        from knhk.domain import summary
        from knhk.engine import views
        from knhk.engine.projector import FOLD

        before: bytes | None = None
        while limit > 0:
            page = asyncio.run(self._store.rows(FOLD, b"r", before=before, limit=min(limit, _PAGE)))
            for _, raw in page:
                yield views.of_summary(summary.decode(raw))
            before = page[-1][0] if page else None
            limit -= len(page)
            if len(page) < _PAGE:
                return

    def run(self, workflow_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        import asyncio

        return asyncio.run(self._read(workflow_id))

    async def _read(self, workflow_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        from knhk.domain import summary
        from knhk.domain.identifier import parse, to_text
        from knhk.engine import views
        from knhk.engine.loader import decode_receipts
        from knhk.engine.projector import FOLD, row_key

        number = parse(workflow_id)
        sealed = await self._store.receipts(number)
        if not sealed:
            raise WorkflowNotFound(f"there is no workflow {to_text(number)}")
        raw = await self._store.row(FOLD, row_key(number))
        shown = views.of_summary(summary.decode(raw) if raw is not None else summary.Summary(number))
        shown["steps"] = _steps_of(await self._store.descriptor(sealed[0].receipt().descriptor_digest))
        return shown, decode_receipts(sealed, number)


def _steps_of(descriptor: bytes | None) -> list[dict[str, Any]]:
    """The steps as a descriptor names them, without compiling it: the actions may not be installed here."""
    import yaml

    try:
        spec = yaml.load(descriptor or b"", getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    except (yaml.YAMLError, TypeError, KeyError, RecursionError):
        return []
    return list(_steps_in(spec))


def _steps_in(node: Any) -> Iterator[dict[str, Any]]:
    """The steps in a block: mappings with a name in its lists. What is in a step are its steps."""
    for value in node.values() if isinstance(node, dict) else ():
        for one in value if isinstance(value, list) else ():
            if isinstance(one, dict) and isinstance(one.get("name"), str):
                depends_on = one.get("depends_on")
                yield {
                    "name": one["name"],
                    "action": str(one.get("action", "")),
                    "depends_on": depends_on if isinstance(depends_on, list) else [],
                    "steps": list(_steps_in(one)),
                }
