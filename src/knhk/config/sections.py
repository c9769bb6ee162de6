"""Sections that this version acts on: platform, persistence, observability and api.

Single keys in them are still without effect; `absent.py` lists them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr

from knhk.config.values import CaseBlind, Duration, Location, Port, Section, Size
from knhk.domain.units import GB, HOUR, KB, MB, SECOND

LogLevel = Literal["debug", "info", "warning", "error", "critical"]


def node_name() -> str:
    """The host's name, which Kubernetes makes the pod's name."""
    return os.uname().nodename


def data_path(environ: Mapping[str, str]) -> Path:
    """Where data go unless the configuration says otherwise: the user's data directory (XDG Base Directory 0.8)."""
    given = environ.get("XDG_DATA_HOME", "")
    if given.startswith("/"):  # the standard has relative values ignored
        return Path(given) / "knhk" / "data"
    home = environ.get("HOME", "")
    return (Path(home) if home else Path.home()) / ".local" / "share" / "knhk" / "data"


def default_data_path() -> Path:
    """Where this process's data go by default."""
    return data_path(os.environ)


def _keys_beside_data(given: dict[str, Any]) -> Path:
    path: Path = given["path"]
    return path.parent / "keys"


def _names_a_key(value: str) -> str:
    if value and not value.startswith(("file:/", "file:~", "env:", "vault:http")):  # it may be a key: not shown
        raise ValueError("must be file:/PATH, env:NAME or vault:https://HOST/v1/transit/keys/NAME")
    return value


class Platform(Section):
    """Limits and times of the whole server."""

    node_id: str = Field(
        default_factory=node_name,
        min_length=1,
        description="This node's name in receipts, logs and the cluster.",
        json_schema_extra={"default": "the host's name"},
    )
    processes: str = Field(
        default="1",
        pattern=r"^(auto|[1-9]|[1-5][0-9]|6[0-4])$",
        description="Processes that share the work and the port; from 1 to 64, or `auto` for one a processor.",
    )
    log_level: Annotated[LogLevel, CaseBlind] = Field(
        default="info", description="The least severe messages that are logged."
    )
    max_concurrent_workflows: int = Field(
        default=10_000, ge=1, description="Workflows that run at the same time; further ones wait in the queue."
    )
    max_queued_workflows: int = Field(
        default=10_000, ge=0, description="Workflows that wait for a slot; beyond that a submit is answered with 429."
    )
    max_concurrent_steps: int = Field(
        default=1_000, ge=1, description="Steps that run at the same time, over all workflows."
    )
    workflow_timeout_ns: Duration = Field(
        default=300 * SECOND, gt=0, description="Time limit of a workflow whose descriptor sets none."
    )
    tick_ns: Duration = Field(
        default=12_500_000, gt=0, description="Length of a tick: covenant Chatman allows a workflow 8 of them."
    )
    shutdown_grace_ns: Duration = Field(
        default=30 * SECOND, ge=0, description="How long a shutdown waits for running steps before it stops them."
    )
    enable_auto_scaling: bool = Field(default=False, description="Let the platform decide how many replicas run.")
    enable_learning: bool = Field(default=False, description="Let the platform tune itself from what it has run.")
    enable_cost_tracking: bool = Field(default=False, description="Count what each workflow costs.")


class RocksDbOptions(Section):
    """Options of the embedded store; the keys of `rocksdb.yaml`."""

    write_buffer_size_bytes: Size = Field(
        default=64 * MB, gt=0, description="Memory of one write buffer before it is flushed to a file."
    )
    max_write_buffer_number: int = Field(default=3, ge=2, description="Write buffers that may exist at once.")
    target_file_size_base_bytes: Size = Field(default=64 * MB, gt=0, description="Size of a file of the first level.")
    max_background_jobs: int = Field(
        default=2, ge=1, le=1024, description="Threads for flushes and compactions; 8 suits a server of 8 cores."
    )
    compression: Literal["none", "snappy", "lz4", "zstd"] = Field(
        default="lz4", description="Compression of the store's files."
    )
    block_cache_size_bytes: Size = Field(
        default=256 * MB, ge=0, description="Memory for blocks read from files; 1GB suits a server."
    )
    bloom_filter_bits: int = Field(
        default=10, ge=0, le=64, description="Bits a key in the Bloom filters; 0 turns them off, 10 errs in 1 percent."
    )


class PostgresOptions(Section):
    """How PostgreSQL is used if `persistence.url` names it."""

    schema_name: str = Field(
        default="knhk",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="The schema of the tables, made if it is not there.",
    )
    connections: int = Field(
        default=8, ge=1, le=1_000, description="Most connections for reading, and again for writing, of one process."
    )
    timeout_ns: Duration = Field(
        default=10 * SECOND, gt=0, description="Time limit of one statement, after which its connection is given up."
    )


class Blobs(Section):
    """Large payloads, which are kept as files beside the journal."""

    path: Location | None = Field(
        default=None,
        description="With PostgreSQL, the directory of blobs, which all nodes share; without it there are no blobs.",
        json_schema_extra={"default": "`blobs` in the data directory; none with PostgreSQL"},
    )
    inline_bytes: Size = Field(
        default=256 * KB, gt=0, description="What actions read becomes a blob if it is larger than this."
    )
    max_bytes: Size = Field(default=1 * GB, gt=0, description="Size of the largest blob.")
    grace_ns: Duration = Field(
        default=24 * HOUR, ge=SECOND, description="How long a blob is kept that no workflow refers to."
    )


class Persistence(Section):
    """Where data are kept, and how."""

    url: str = Field(
        default="",
        pattern=r"^(postgres(ql)?://.*)?$",
        description="URL of a PostgreSQL database that keeps the journal, such as `postgresql://knhk@db/knhk`; "
        "empty keeps it in `persistence.path`.",
    )
    path: Location = Field(
        default_factory=default_data_path,
        description="The data directory.",
        json_schema_extra={"default": "$XDG_DATA_HOME/knhk/data, or ~/.local/share/knhk/data"},
    )
    key_path: Location = Field(
        default_factory=_keys_beside_data,
        description="The directory of the keys that sign and encrypt. Keep it out of backups of the data.",
        json_schema_extra={"default": "the directory `keys` beside `persistence.path`"},
    )
    compression: bool = Field(default=True, description="Compress stored inputs and outputs.")
    encryption: bool = Field(
        default=False, description="Encrypt inputs, outputs, receipts, descriptors and lists at rest (AES-256-GCM)."
    )
    encryption_key: Annotated[str, AfterValidator(_names_a_key)] = Field(
        default="",
        description="Where the key is that encrypts the key ring: `file:PATH`, `env:NAME`, or "
        "`vault:https://HOST/v1/transit/keys/NAME`; by default a file in `key_path`, made at the first start.",
        json_schema_extra={"default": "the file `encryption.key` in `persistence.key_path`"},
    )
    maintenance_rate_bytes: Size = Field(
        default=8 * MB, gt=0, description="Most data a second that re-encryption and retention read in the background."
    )
    retention_days: int = Field(
        default=90, ge=1, description="Days for which finished workflows are kept; then they are archived, or dropped."
    )
    archive: str = Field(
        default="",
        description="Where finished workflows are archived after `retention_days`: a directory, or a URL such as "
        "`s3://bucket/prefix`; empty drops them.",
    )
    min_free_bytes: Size = Field(
        default=64 * MB, ge=0, description="Free disk space below which no new workflow is taken."
    )
    max_payload_bytes: Size = Field(default=4 * MB, gt=0, description="Largest single input or output that is stored.")
    blobs: Blobs = Field(default_factory=Blobs, description="Large payloads, kept as files.")
    postgres: PostgresOptions = Field(
        default_factory=PostgresOptions, description="How PostgreSQL is used if `persistence.url` names it."
    )
    rocksdb: RocksDbOptions = Field(
        default_factory=RocksDbOptions,
        description="The path of a `rocksdb.yaml`, relative to this file, or its options themselves.",
    )


class Observability(Section):
    """Metrics, traces and logs."""

    endpoint: str = Field(
        default="",
        description="URL of the OpenTelemetry collector, such as `http://otel-collector:4317`; empty sends nothing.",
    )
    protocol: Literal["auto", "grpc", "http"] = Field(
        default="auto",
        description="How to speak to it: `auto` takes gRPC on port 4317 and for `grpc://` and `grpcs://`, else HTTP.",
    )
    headers: SecretStr = Field(
        default=SecretStr(""), description="Headers to send with telemetry: `name=value,name=value`."
    )
    sampling_rate: float = Field(
        default=1.0, ge=0, le=1, description="Share of workflows that are traced, from 0 to 1; covenant O always is."
    )
    export_interval_ns: Duration = Field(default=10 * SECOND, gt=0, description="Time between exports of telemetry.")
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address on which health, metrics and operations are served."
    )
    metrics_port: Port = Field(
        default=9090, description="Port on which health, metrics and operations are served; 0 takes any free one."
    )


class Api(Section):
    """The HTTP API."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address on which the API is served.")
    port: Port = Field(default=8080, description="Port on which the API is served; 0 takes any free one.")
    max_body_bytes: Size = Field(default=4 * MB, gt=0, description="Largest request body; a larger one gets 413.")
    max_steps: int = Field(default=100_000, ge=1, description="Most steps that a descriptor may have.")
