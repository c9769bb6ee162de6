"""The configuration of the server under test: the defaults of the product, with room for the load."""

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.settings import REPOSITORY, BenchFailure

HOST = "127.0.0.1"


class Ports(msgspec.Struct, frozen=True):
    """Where the server listens."""

    api: int
    operations: int


def free_ports() -> Ports:
    """Two ports that were free a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        first.bind((HOST, 0))
        second.bind((HOST, 0))
        return Ports(first.getsockname()[1], second.getsockname()[1])


def configuration(data: Path, ports: Ports, *, room_for: int) -> dict[str, Any]:
    """What the harness needs; `room_for` runs may be under way at once. fsync is left as the product has it: on."""
    return {
        "platform": {
            "max_concurrent_workflows": max(10_000, room_for),
            "max_queued_workflows": max(50_000, room_for),
            "workflow_timeout": "24h",
            "log_level": "warning",
        },
        "persistence": {"path": str(data)},
        "api": {"port": ports.api},
        "observability": {"metrics_port": ports.operations},
        "actions": {"modules": ["bench.actions"]},
    }


def merged(base: Path | None, needed: Mapping[str, Any]) -> dict[str, Any]:
    """The user's file with the harness's settings on top, section by section."""
    given = yaml.safe_load(base.read_text(encoding="utf-8")) if base else {}
    if not isinstance(given, dict):
        raise BenchFailure(f"{base} is not a configuration file")
    result: dict[str, Any] = dict(given)
    for section, values in needed.items():
        result[section] = {**(result.get(section) or {}), **values}
    if result["persistence"].get("url"):
        # Tables of its own in the given database, as a data directory is fresh for each workload.
        postgres = result["persistence"].get("postgres") or {}
        result["persistence"]["postgres"] = {**postgres, "schema_name": f"knhk_bench_{secrets.token_hex(6)}"}
    return result


async def drop_tables(config: Mapping[str, Any]) -> None:
    """Remove what a server of this configuration left in PostgreSQL, if it is kept there."""
    persistence = config["persistence"]
    if not persistence.get("url"):
        return
    import asyncpg

    connection = await asyncpg.connect(persistence["url"])
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {persistence['postgres']['schema_name']} CASCADE")
    finally:
        await connection.close()


def environment() -> dict[str, str]:
    """This process's environment without the server's own variables, which would change what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KNHK_")}
    paths = [str(REPOSITORY), str(REPOSITORY / "src"), kept.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
