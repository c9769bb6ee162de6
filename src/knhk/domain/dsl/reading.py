"""From a document's data to its tasks, or to everything that is wrong with it.

Reusable components (`use`) are put in where they are named, so that nothing after this needs to look them up.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor_shape import kind_of
from knhk.domain.dsl import calls
from knhk.domain.dsl.fields import Fields
from knhk.domain.dsl.task import (
    CONTINUE,
    END,
    EXIT,
    NOTHING,
    Body,
    Case,
    Data,
    Do,
    Document,
    Emit,
    EventFilter,
    For,
    Fork,
    Listen,
    Raise,
    Retry,
    Set,
    Switch,
    Task,
    Try,
    Wait,
)

MAX_DEPTH: Final = 32
_COMMON: Final = ("if", "input", "output", "export", "timeout", "then", "metadata")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_TOP: Final = ("document", "input", "use", "do", "timeout", "output", "schedule", "evaluate", "metadata")
_DOCUMENT: Final = ("dsl", "namespace", "name", "version", "title", "summary", "tags", "metadata")
_USE: Final = (*("authentications", "catalogs", "errors", "extensions", "functions", "retries", "secrets", "timeouts"),)
_RETRY: Final = ("when", "exceptWhen", "limit", "backoff", "delay", "jitter")


class _Kind(NamedTuple):
    """A kind of task: the keys that it has besides the common ones, and who reads it."""

    keys: tuple[str, ...]
    read: "Callable[[Reader, Fields, _Place], Body]"


class _Place(NamedTuple):
    """Where a task stands: its JSON pointer, how deep, and the functions that are being put in around it."""

    reference: str
    depth: int
    calling: tuple[str, ...] = ()

    def inside(self, key: str) -> "_Place":
        return _Place(f"{self.reference}/{key}", self.depth + 1, self.calling)


def is_dsl(value: Any) -> bool:
    """Whether a document's data is of this language."""
    return isinstance(value, Mapping) and "document" in value and "apiVersion" not in value


def parse(value: Mapping[str, Any], actions: Mapping[str, Any], complaints: Complaints) -> Document:
    """The workflow in a document's data; `actions` are the platform's own, which `call` may name.

    What is wrong is complained of; then what is returned is only good for finding further faults.
    """
    top = Fields(value, (), complaints, _TOP)
    about = top.fields("document", _DOCUMENT)
    version = about.text("dsl", required=True)
    if version and not version.startswith("1."):
        about.complain(f"version {version[:20]!r} of the DSL is not known; this is 1.0", "dsl")
    for key in ("namespace", "name"):
        name = about.text(key, required=True)
        if name and not _NAME.fullmatch(name):
            about.complain("must be letters, digits and -, at most 63 of them", key)
    if not _VERSION.fullmatch(about.text("version", "0.0.0", required=True)):
        about.complain("must be a semantic version, such as '1.0.0' in quotes", "version")
    use = top.fields("use", _USE)
    for key in ("extensions", "catalogs"):
        if key in use:
            use.complain(f"{key} are not supported", key)
    reader = Reader(use, actions, complaints)
    tasks = reader.tasks(top, "do", _Place("", 0))
    if not tasks and "do" not in top:
        top.complain("'do' is missing")
    return Document(
        namespace=about.text("namespace"),
        name=about.text("name"),
        version=about.text("version"),
        tags={name: str(tag) for name, tag in about.fields("tags").value.items()},
        tasks=tasks,
        input=reader.data(top, "input", "from"),
        output=reader.data(top, "output", "as"),
        timeout_ns=reader.timeout(top),
        secrets=tuple(str(one) for one in use.value.get("secrets") or ()),
        schedule=top.fields("schedule", ("every", "cron", "after", "on")).value,
    )


class Reader:
    """Reads the tasks of one document."""

    def __init__(self, use: Fields, actions: Mapping[str, Any], complaints: Complaints) -> None:
        self.use, self.actions, self.complaints = use, actions, complaints

    def tasks(self, parent: Fields, key: str, place: _Place) -> tuple[Task, ...]:
        """The list of named tasks under a key."""
        found = parent.value.get(key)
        if found is None:
            return ()
        if not isinstance(found, list) or not found:
            parent.complain(f"must be a list of tasks, not {kind_of(found) if found else 'empty'}", key)
            return ()
        if place.depth >= MAX_DEPTH:
            parent.complain(f"tasks are nested more than {MAX_DEPTH} deep", key)
            return ()
        inner = place.inside(key)
        tasks = []
        for index, entry in enumerate(found):
            if not isinstance(entry, Mapping) or len(entry) != 1:
                parent.complain("must be one name with its task, such as `- greet: {...}`", key, index)
                continue
            name, body = next(iter(entry.items()))
            where = parent.at(key, index, name)
            tasks.append(self.task(name, body, where, inner._replace(reference=f"{inner.reference}/{index}/{name}")))
        self._check_flow(tasks, parent, key)
        return tuple(tasks)

    def task(self, name: str, value: Any, path: Path, place: _Place) -> Task:
        """One task."""
        kinds = [kind for kind in KINDS if isinstance(value, Mapping) and value.get(kind) is not None]
        kind = "for" if "for" in kinds else kinds[0] if kinds else ""  # a `for` task has a `do` too
        known = (*KINDS[kind].keys, *_COMMON) if kind else ()
        fields = Fields(value, path, self.complaints, known)
        body: Body = Set({})
        if kind:
            body = KINDS[kind].read(self, fields, place)
        elif isinstance(value, Mapping):
            self.complaints.add(f"no kind of task: one of {', '.join(KINDS)} is needed", path, *_near(value))
        then = fields.text("then", CONTINUE)
        return Task(
            name=name,
            reference=place.reference,
            body=body,
            condition=fields.text("if"),
            input=self.data(fields, "input", "from"),
            output=self.data(fields, "output", "as"),
            export=self.data(fields, "export", "as"),
            timeout_ns=self.timeout(fields),
            then=then,
        )

    def data(self, fields: Fields, key: str, of: str) -> Data:
        """`input`, `output` or `export`."""
        if key not in fields:
            return NOTHING
        inner = fields.fields(key, ("schema", of))
        return Data(inner.value.get(of), inner.schema("schema"))

    def timeout(self, fields: Fields) -> int:
        """A timeout in nanoseconds, 0 for none."""
        found = fields.value.get("timeout")
        if found is None:
            return 0
        source = fields
        if isinstance(found, str):
            source = self.use.fields("timeouts")
            if found not in source:
                self.complaints.add(
                    f"there is no timeout {found[:80]!r} in `use`", fields.at("timeout"), found, source.value
                )
                return 0
            return source.fields(found, ("after",)).duration("after")
        return source.fields("timeout", ("after",)).duration("after")

    def retry(self, fields: Fields) -> Retry | None:
        """The retry policy of a catch, its own or one of `use`."""
        found = fields.value.get("retry")
        if found is None:
            return None
        if isinstance(found, str):
            policies = self.use.fields("retries")
            if found not in policies:
                self.complaints.add(
                    f"there is no retry policy {found[:80]!r} in `use`", fields.at("retry"), found, policies.value
                )
                return None
            return _retry(policies.fields(found, _RETRY))
        return _retry(fields.fields("retry", _RETRY))

    def _check_flow(self, tasks: list[Task], parent: Fields, key: str) -> None:
        names = [task.name for task in tasks]
        for index, name in enumerate(names):
            if name in names[:index]:
                parent.complain(f"the task name {name[:80]!r} is used twice in this list", key, index, name)
        known = (*names, CONTINUE, EXIT, END)
        for index, task in enumerate(tasks):
            targets: list[tuple[str, Path]] = [(task.then, ("then",))]
            if isinstance(task.body, Switch):
                targets += [(case.then, ("switch", at, case.name, "then")) for at, case in enumerate(task.body.cases)]
            for target, where in targets:
                if target not in known:
                    self.complaints.add(
                        f"there is no task {target[:80]!r} in this list",
                        parent.at(key, index, task.name, *where),
                        target,
                        known,
                    )


def _near(value: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return next((str(key) for key in value if key not in _COMMON), ""), tuple(KINDS)


def _set(_reader: Reader, fields: Fields, _place: _Place) -> Body:
    found = fields.value["set"]
    if not isinstance(found, Mapping | str):
        fields.complain(f"must be a mapping or an expression, not {kind_of(found)}", "set")
    return Set(found)


def _do(reader: Reader, fields: Fields, place: _Place) -> Body:
    return Do(reader.tasks(fields, "do", place))


def _for(reader: Reader, fields: Fields, place: _Place) -> Body:
    loop = fields.fields("for", ("each", "in", "at"))
    each, at = loop.text("each", "item"), loop.text("at", "index")
    for key, name in (("each", each), ("at", at)):
        if not _VARIABLE.fullmatch(name):
            loop.complain(f"{name[:80]!r} cannot be the name of a variable", key)
    if "do" not in fields:
        fields.complain("'do' is missing")
    tasks = reader.tasks(fields, "do", place)
    return For(each, at, loop.text("in", required=True), fields.text("while"), tasks)


def _fork(reader: Reader, fields: Fields, place: _Place) -> Body:
    fork = fields.fields("fork", ("branches", "compete"))
    if "branches" not in fork:
        fork.complain("'branches' is missing")
    return Fork(reader.tasks(fork, "branches", place.inside("fork")), fork.flag("compete", False))


def _switch(_reader: Reader, fields: Fields, _place: _Place) -> Body:
    found = fields.value["switch"]
    cases: list[Case] = []
    if not isinstance(found, list):
        fields.complain(f"must be a list of cases, not {kind_of(found)}", "switch")
        return Switch(())
    for index, entry in enumerate(found):
        if not isinstance(entry, Mapping) or len(entry) != 1:
            fields.complain("must be one name with its case", "switch", index)
            continue
        name, value = next(iter(entry.items()))
        case = Fields(value, fields.at("switch", index, name), _reader.complaints, ("when", "then"))
        cases.append(Case(name, case.text("when"), case.text("then", CONTINUE)))
    return Switch(tuple(cases))


def _try(reader: Reader, fields: Fields, place: _Place) -> Body:
    catch = fields.fields("catch", ("errors", "as", "when", "exceptWhen", "retry", "do"))
    if "catch" not in fields:
        fields.complain("'catch' is missing")
    variable = catch.text("as", "error")
    if not _VARIABLE.fullmatch(variable):
        catch.complain(f"{variable[:80]!r} cannot be the name of a variable", "as")
    return Try(
        tasks=reader.tasks(fields, "try", place),
        errors=catch.fields("errors", ("with",)).fields("with").value,
        variable=variable,
        when=catch.text("when"),
        except_when=catch.text("exceptWhen"),
        retry=reader.retry(catch),
        handler=reader.tasks(catch, "do", place.inside("catch")),
    )


def _raise(reader: Reader, fields: Fields, _place: _Place) -> Body:
    raised = fields.fields("raise", ("error",))
    found = raised.value.get("error")
    if isinstance(found, str):
        errors = reader.use.fields("errors")
        if found not in errors:
            reader.complaints.add(f"there is no error {found[:80]!r} in `use`", raised.at("error"), found, errors.value)
            return Raise({})
        found = errors.value[found]
    error = Fields(found, raised.at("error"), reader.complaints, ("type", "status", "title", "detail", "instance"))
    for key in ("type", "status"):
        if key not in error:
            error.complain(f"{key!r} is missing")
    return Raise(error.value)


def _emit(_reader: Reader, fields: Fields, _place: _Place) -> Body:
    event = fields.fields("emit", ("event",)).fields("event", ("with",)).fields("with")
    for key in ("source", "type"):
        if key not in event:
            event.complain(f"{key!r} is missing: every CloudEvent has one")
    return Emit(event.value)


def _listen(reader: Reader, fields: Fields, _place: _Place) -> Body:
    listen = fields.fields("listen", ("to", "read"))
    to = listen.fields("to", ("one", "any", "all", "until"))
    strategies = [strategy for strategy in ("one", "any", "all") if strategy in to]
    if len(strategies) != 1 or "until" in to:
        to.complain("one of `one`, `any` and `all` is needed; `until` is not supported")
        return Listen("one", ())
    strategy = strategies[0]
    found = to.value[strategy]
    entries = found if isinstance(found, list) and strategy != "one" else [found]
    filters = tuple(_filter(Fields(one, to.at(strategy), reader.complaints, ("with", "correlate"))) for one in entries)
    if not filters:
        to.complain("at least one event is needed", strategy)
    read = listen.choice("read", ("data", "envelope", "raw"), "data")
    return Listen(strategy, filters, read)  # type: ignore[arg-type]  # one of the three above


def _filter(fields: Fields) -> EventFilter:
    if set(fields.fields("with").value) != {"type"}:
        fields.complain("events are told apart by their `type`, and by nothing else", "with")
    correlate = fields.fields("correlate")
    if len(correlate.value) > 1:
        fields.complain("one correlation is supported", "correlate")
    keys = {}
    for name in correlate.value:
        one = correlate.fields(name, ("from", "expect"))
        keys[name] = (one.text("from"), one.text("expect", required=True))
    return EventFilter(fields.fields("with").value, keys)


def _wait(_reader: Reader, fields: Fields, _place: _Place) -> Body:
    return Wait(fields.duration("wait"))


def _call(reader: Reader, fields: Fields, place: _Place) -> Body:
    name = fields.text("call")
    functions = reader.use.fields("functions")
    if name not in functions:
        return calls.read_call(fields, name, (*functions.value, *reader.actions), reader.use)
    if name in place.calling:
        fields.complain(f"the function {name!r} calls itself", "call")
        return Set({})
    inner = place._replace(reference=f"{place.reference}/{name}", depth=place.depth + 1, calling=(*place.calling, name))
    task = reader.task(name, functions.value[name], functions.at(name), inner)
    arguments = fields.value.get("with")
    return Do((task if arguments is None else _given(task, arguments),))


def _given(task: Task, arguments: Any) -> Task:
    """A function's task with the arguments of a call as its input."""
    return Task(**{name: getattr(task, name) for name in task.__struct_fields__} | {"input": Data(arguments)})


def _run(_reader: Reader, fields: Fields, _place: _Place) -> Body:
    return calls.read_run(fields)


def _retry(fields: Fields) -> Retry:
    limit = fields.fields("limit", ("attempt", "duration"))
    attempt = limit.fields("attempt", ("count", "duration"))
    backoff = fields.fields("backoff", ("constant", "linear", "exponential"))
    jitter = fields.fields("jitter", ("from", "to"))
    kinds = [kind for kind in ("constant", "linear", "exponential") if kind in backoff.value]
    return Retry(
        when=fields.text("when"),
        except_when=fields.text("exceptWhen"),
        delay_ns=fields.duration("delay"),
        backoff=kinds[0] if kinds else "constant",  # type: ignore[arg-type]  # one of the three above
        max_attempts=attempt.number("count"),
        attempt_timeout_ns=attempt.duration("duration"),
        timeout_ns=limit.duration("duration"),
        jitter_from_ns=jitter.duration("from"),
        jitter_to_ns=jitter.duration("to"),
    )


KINDS: Final[Mapping[str, _Kind]] = {
    "call": _Kind(("call", "with"), _call),
    "do": _Kind(("do",), _do),
    "emit": _Kind(("emit",), _emit),
    "for": _Kind(("for", "while", "do"), _for),
    "fork": _Kind(("fork",), _fork),
    "listen": _Kind(("listen",), _listen),
    "raise": _Kind(("raise",), _raise),
    "run": _Kind(("run",), _run),
    "set": _Kind(("set",), _set),
    "switch": _Kind(("switch",), _switch),
    "try": _Kind(("try", "catch"), _try),
    "wait": _Kind(("wait",), _wait),
}
