"""A Serverless Workflow document as data: the tree of its tasks, checked, with every reusable component resolved.

Expressions stay as they were written (jq, with or without `${ }`); a *template* is JSON-like data in which texts may be
expressions. Durations are nanoseconds. A `reference` is the JSON pointer of a task in the document, such as
`/do/0/greet`, which errors name as their instance.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

CONTINUE: Final = "continue"
EXIT: Final = "exit"
END: Final = "end"

HttpOutput = Literal["raw", "content", "response"]
RunReturn = Literal["stdout", "stderr", "code", "all", "none"]
Strategy = Literal["one", "any", "all"]


class Set(msgspec.Struct, frozen=True):
    """The output is a template's value."""

    template: Any


class Do(msgspec.Struct, frozen=True):
    """Tasks one after another."""

    tasks: "tuple[Task, ...]"


class For(msgspec.Struct, frozen=True):
    """Tasks once for each item of a list, one item after another, while a condition holds."""

    each: str
    at: str
    items: str
    condition: str
    tasks: "tuple[Task, ...]"


class Fork(msgspec.Struct, frozen=True):
    """Tasks side by side; with `compete` the first that completes gives the output and the others are cancelled."""

    branches: "tuple[Task, ...]"
    compete: bool


class Case(msgspec.Struct, frozen=True):
    """One case of a switch; without a condition it is the default."""

    name: str
    condition: str
    then: str


class Switch(msgspec.Struct, frozen=True):
    """Go on where the first case that holds says."""

    cases: tuple[Case, ...]


class Retry(msgspec.Struct, frozen=True):
    """How a block that failed is tried again; 0 stands for no limit. `backoff` says how the pauses grow."""

    when: str = ""
    except_when: str = ""
    delay_ns: int = 0
    backoff: Literal["constant", "linear", "exponential"] = "constant"
    max_attempts: int = 0
    attempt_timeout_ns: int = 0
    timeout_ns: int = 0
    jitter_from_ns: int = 0
    jitter_to_ns: int = 0


class Try(msgspec.Struct, frozen=True):
    """Tasks whose errors are caught if they fit: retried, then handled by the tasks of the handler."""

    tasks: "tuple[Task, ...]"
    errors: Mapping[str, Any]
    variable: str
    when: str
    except_when: str
    retry: Retry | None
    handler: "tuple[Task, ...]"


class Raise(msgspec.Struct, frozen=True):
    """Fail with an error, which is a template."""

    error: Mapping[str, Any]


class Emit(msgspec.Struct, frozen=True):
    """Publish a CloudEvent whose attributes are a template."""

    event: Mapping[str, Any]


class EventFilter(msgspec.Struct, frozen=True):
    """Attributes that an event must have, and how it is told to be about this run: name -> (from, expect)."""

    attributes: Mapping[str, Any]
    correlate: Mapping[str, tuple[str, str]] = {}


class Listen(msgspec.Struct, frozen=True):
    """Wait for one event, any, or all of several; `read` says what of an event is the output."""

    strategy: Strategy
    filters: tuple[EventFilter, ...]
    read: Literal["data", "envelope", "raw"] = "data"


class Wait(msgspec.Struct, frozen=True):
    """Let time go by."""

    duration_ns: int


class CallHttp(msgspec.Struct, frozen=True):
    """One HTTP request; `request` is a template with method, endpoint, headers, query and body."""

    request: Mapping[str, Any]
    output: HttpOutput
    redirect: bool = False


class CallOpenApi(msgspec.Struct, frozen=True):
    """One operation of an OpenAPI document, found by its operationId; `request` is a template."""

    request: Mapping[str, Any]
    output: HttpOutput
    redirect: bool = False


class CallAction(msgspec.Struct, frozen=True):
    """One of the platform's own actions, with a template as its params."""

    action: str
    params: Mapping[str, Any]


class RunWorkflow(msgspec.Struct, frozen=True):
    """Another workflow, by name and version."""

    namespace: str
    name: str
    version: str
    inputs: Any
    awaits: bool = True


class RunProcess(msgspec.Struct, frozen=True):
    """A shell command or a script; `arguments`, `environment` and `command` or `code` are templates."""

    language: str
    code: Any
    arguments: Any
    environment: Any
    returns: RunReturn
    awaits: bool = True


Body = (
    Set
    | Do
    | For
    | Fork
    | Switch
    | Try
    | Raise
    | Emit
    | Listen
    | Wait
    | CallHttp
    | CallOpenApi
    | CallAction
    | RunWorkflow
    | RunProcess
)


class Data(msgspec.Struct, frozen=True):
    """One filter of the flow of data: an expression or template, and the JSON Schema that its value must match."""

    value: Any = None
    schema: Mapping[str, Any] | None = None


NOTHING: Final = Data()


class Task(msgspec.Struct, frozen=True):
    """One task. Expressions that are not given are empty; `then` is where the flow goes on after it."""

    name: str
    reference: str
    body: Body
    condition: str = ""
    input: Data = NOTHING
    output: Data = NOTHING
    export: Data = NOTHING
    timeout_ns: int = 0
    then: str = CONTINUE


class Document(msgspec.Struct, frozen=True):
    """A whole workflow."""

    namespace: str
    name: str
    version: str
    tags: Mapping[str, str]
    tasks: tuple[Task, ...]
    input: Data = NOTHING
    output: Data = NOTHING
    timeout_ns: int = 0
    secrets: tuple[str, ...] = ()
    schedule: Mapping[str, Any] = {}
