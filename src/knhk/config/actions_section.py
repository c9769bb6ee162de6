"""The section `actions`: what steps may do, and within which limits. What reaches outside is off until it is named."""

from pydantic import Field, SecretStr

from knhk.config.values import Duration, Location, Section, Size
from knhk.domain.units import GB, MB, MINUTE, SECOND

_NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"


class ShellOptions(Section):
    """The action `shell`: programs that steps may start. Without `commands` it is off."""

    commands: tuple[str, ...] = Field(
        default=(),
        description="Programs that steps may start, by name or absolute path; `*` is any. Empty: the action is off.",
    )
    environment: tuple[str, ...] = Field(
        default=("LANG", "LC_ALL", "TZ"),
        description="Variables that a program inherits from the server, and that a step may set; `NAME_*` is a prefix.",
    )
    directories: tuple[Location, ...] = Field(
        default=(),
        description="Directories in which, or below which, a step may run a program; else an empty one of its own.",
    )
    processes: int = Field(default=32, ge=1, le=10_000, description="Programs that run at the same time.")
    timeout_ns: Duration = Field(default=MINUTE, gt=0, description="Time limit of a program whose step sets none.")
    max_timeout_ns: Duration = Field(default=60 * MINUTE, gt=0, description="Longest time limit that a step may set.")
    max_cpu_ns: Duration = Field(default=10 * MINUTE, ge=SECOND, description="Processor time of one process.")
    max_memory_bytes: Size = Field(default=2 * GB, ge=16 * MB, description="Address space of one process.")
    max_output_bytes: Size = Field(default=1 * MB, gt=0, description="Most bytes of stdout, and of stderr.")


class PythonOptions(Section):
    """The action `python`: functions that run in processes of their own. Without `callables` it is off."""

    callables: tuple[str, ...] = Field(
        default=(),
        description="Functions that steps may call, as `module:function`, or `module:*` for all of a module's own.",
    )
    processes: int = Field(default=2, ge=1, le=1024, description="Processes that work at the same time.")
    timeout_ns: Duration = Field(default=5 * MINUTE, gt=0, description="Time limit of a call whose step sets none.")
    max_timeout_ns: Duration = Field(default=60 * MINUTE, gt=0, description="Longest time limit that a step may set.")
    max_memory_bytes: Size = Field(default=2 * GB, ge=128 * MB, description="Address space of one process.")


class SqlConnection(Section):
    """A database that steps may use."""

    name: str = Field(pattern=_NAME, description="How steps call it.")
    url: SecretStr = Field(description="The URL of SQLAlchemy.")


class SqlOptions(Section):
    """The action `sql`: databases that steps may use. Without `connections` it is off."""

    connections: tuple[SqlConnection, ...] = Field(
        default=(),
        description="Databases: `name`, and `url` as SQLAlchemy has it: `sqlite:////var/lib/x.db`, "
        "`postgresql+psycopg://user:${PASSWORD}@host/db` (`pip install knhk[postgres]`).",
    )
    pool_size: int = Field(default=5, ge=1, le=1000, description="Connections to each database.")
    timeout_ns: Duration = Field(default=30 * SECOND, gt=0, description="Time limit of a step's statements.")
    max_rows: int = Field(default=10_000, ge=1, description="Most rows of an output; more of them become a blob.")
    max_value_bytes: Size = Field(default=16 * MB, gt=0, description="Largest blob that is bound as one value.")


class FileRoot(Section):
    """A directory in which steps may read files, and write them if it says so."""

    name: str = Field(pattern=_NAME, description="How steps call it.")
    path: Location = Field(description="The directory.")
    write: bool = Field(default=False, description="Whether steps may write there.")


class FileOptions(Section):
    """The action `file`: directories that steps may use. Without `roots` it is off."""

    roots: tuple[FileRoot, ...] = Field(
        default=(),
        description="Directories: `name`, `path`, and `write: true` if steps may write there. Links in them are not "
        "followed.",
    )
    max_read_bytes: Size = Field(default=1 * MB, gt=0, description="Largest file that is read into an output.")
    max_entries: int = Field(default=10_000, ge=1, description="Most entries of a directory that is listed.")


class S3Connection(Section):
    """A bucket that steps may use."""

    name: str = Field(pattern=_NAME, description="How steps call it.")
    bucket: str = Field(min_length=3, description="The bucket.")
    prefix: str = Field(default="", description="What all keys begin with; steps name the rest.")
    endpoint: str = Field(default="", pattern=r"^(https?://.+)?$", description="URL of the store; empty: Amazon's.")
    region: str = Field(default="us-east-1", description="The region.")
    access_key_id: SecretStr = Field(default=SecretStr(""), description="Empty: the environment's.")
    secret_access_key: SecretStr = Field(default=SecretStr(""), description="Belongs to it.")
    write: bool = Field(default=False, description="Whether steps may write there.")


class S3Options(Section):
    """The action `s3`: buckets that steps may use. Without `connections` it is off."""

    connections: tuple[S3Connection, ...] = Field(
        default=(),
        description="Buckets: `name`, `bucket`, `prefix`, `endpoint`, `region`, `access_key_id`, `secret_access_key` "
        "(as `${VARIABLE}`), and `write: true` if steps may write there.",
    )
    timeout_ns: Duration = Field(default=5 * MINUTE, gt=0, description="Time limit of a step that sets none.")
    max_read_bytes: Size = Field(default=1 * MB, gt=0, description="Largest object that is read into an output.")
    max_entries: int = Field(default=10_000, ge=1, description="Most objects that are listed.")


class NotifyChannel(Section):
    """A place where messages go."""

    name: str = Field(pattern=_NAME, description="How steps call it.")
    url: SecretStr = Field(description="The URL of Apprise.")


class NotifyOptions(Section):
    """The action `notify`: channels that steps may use. Without `channels` it is off."""

    channels: tuple[NotifyChannel, ...] = Field(
        default=(),
        description="Where messages go: `name`, and `url` as Apprise has it: `mailtos://user:${PASSWORD}@host?to=...`, "
        "`slack://...`, `json://host/path` (`pip install knhk[notify]`).",
    )
    timeout_ns: Duration = Field(default=30 * SECOND, gt=0, description="Time limit of a message to one channel.")


class Actions(Section):
    """What steps may do."""

    modules: tuple[str, ...] = Field(default=(), description="Python modules to import, which register your actions.")
    threads: int = Field(default=32, ge=1, le=1024, description="Threads for actions that block.")
    http_timeout_ns: Duration = Field(
        default=30 * SECOND, gt=0, description="Time limit of one HTTP request of an action that sets none."
    )
    http_connections: int = Field(default=100, ge=1, description="HTTP connections that all actions share.")
    http_max_response_bytes: Size = Field(
        default=4 * MB, gt=0, description="Largest HTTP response that an action reads."
    )
    shell: ShellOptions = Field(default_factory=ShellOptions)
    python: PythonOptions = Field(default_factory=PythonOptions)
    sql: SqlOptions = Field(default_factory=SqlOptions)
    file: FileOptions = Field(default_factory=FileOptions)
    s3: S3Options = Field(default_factory=S3Options)
    notify: NotifyOptions = Field(default_factory=NotifyOptions)
