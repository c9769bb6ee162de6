"""The tasks that reach outside: `call` and `run`."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from knhk.domain.descriptor_shape import kind_of
from knhk.domain.dsl.fields import Fields
from knhk.domain.dsl.task import Body, CallAction, CallHttp, CallOpenApi, RunProcess, RunWorkflow, Set

_HTTP: Final = ("method", "endpoint", "headers", "query", "body", "output", "redirect")
_OPENAPI: Final = ("document", "operationId", "parameters", "authentication", "output", "redirect")
_OUTPUTS: Final = ("content", "raw", "response")
_ABSENT: Final = ("grpc", "asyncapi", "a2a", "mcp")
_RETURNS: Final = ("stdout", "stderr", "code", "all", "none")


def read_call(fields: Fields, name: str, known: Collection[str], use: Fields) -> Body:
    """A `call` of HTTP, of an OpenAPI operation, or of one of the platform's actions."""
    if name == "http":
        given = fields.fields("with", _HTTP)
        for key in ("method", "endpoint"):
            if key not in given:
                given.complain(f"{key!r} is missing")
        endpoint = given.value.get("endpoint")
        request = {
            **given.value,
            "endpoint": _endpoint(given.fields("endpoint", ("uri", "authentication")), use)
            if isinstance(endpoint, Mapping)
            else endpoint,
        }
        return CallHttp(_without(request), given.choice("output", _OUTPUTS, "content"), given.flag("redirect", False))
    if name == "openapi":
        given = fields.fields("with", _OPENAPI)
        for key in ("document", "operationId"):
            if key not in given:
                given.complain(f"{key!r} is missing")
        request = dict(given.value)
        if "authentication" in given:
            request["authentication"] = _authentication(given, use)
        return CallOpenApi(
            _without(request), given.choice("output", _OUTPUTS, "content"), given.flag("redirect", False)
        )
    if name in _ABSENT:
        fields.complain(f"calls of {name} are not supported; http, openapi, functions and actions are", "call")
        return Set({})
    if name not in known:
        fields.complain_of(name, f"there is no function or action {name[:80]!r}", known, "call")
    return CallAction(name, fields.fields("with").value)


def read_run(fields: Fields) -> Body:
    """A `run` of a workflow, a shell command or a script."""
    run = fields.fields("run", ("workflow", "shell", "script", "container", "await", "return"))
    kinds = [kind for kind in ("workflow", "shell", "script", "container") if kind in run]
    if len(kinds) != 1:
        run.complain("one of workflow, shell and script is needed")
        return Set({})
    awaits, returns = run.flag("await", True), run.choice("return", _RETURNS, "stdout")
    match kinds[0]:
        case "workflow":
            one = run.fields("workflow", ("namespace", "name", "version", "input"))
            name, version = one.text("name", required=True), one.text("version", "latest")
            return RunWorkflow(one.text("namespace"), name, version, one.value.get("input"), awaits)
        case "shell":
            one = run.fields("shell", ("command", "arguments", "environment"))
            if "command" not in one:
                one.complain("'command' is missing")
            return _process("shell", one.value.get("command"), one, returns, awaits)
        case "script":
            one = run.fields("script", ("language", "code", "source", "arguments", "environment"))
            language = one.choice("language", ("python", "js"), "python")
            if "source" in one:
                one.complain("scripts from elsewhere are not read; put the script itself under `code`", "source")
            elif "code" not in one:
                one.complain("'code' is missing")
            return _process(language, one.value.get("code"), one, returns, awaits)
    run.complain("containers are not run", "container")
    return Set({})


def _process(language: str, code: Any, one: Fields, returns: Any, awaits: bool) -> RunProcess:
    if isinstance(code, str) and "${" in code:
        one.complain("must be written out: an expression here could turn data into code; give data as arguments")
    arguments = one.value.get("arguments")
    if arguments is not None and not isinstance(arguments, Mapping | list | str):
        one.complain(f"must be a mapping or a list, not {kind_of(arguments)}", "arguments")
    return RunProcess(language, code, arguments, one.value.get("environment"), returns, awaits)


def _endpoint(endpoint: Fields, use: Fields) -> dict[str, Any]:
    uri = endpoint.text("uri", required=True)
    found: dict[str, Any] = {"uri": uri}
    if "authentication" in endpoint:
        found["authentication"] = _authentication(endpoint, use)
    return found


def _authentication(fields: Fields, use: Fields) -> Any:
    """An authentication policy: basic or bearer, its own or one of `use`."""
    found = fields.value["authentication"]
    policies = use.fields("authentications")
    name = found if isinstance(found, str) else found.get("use") if isinstance(found, Mapping) else None
    if name is not None:
        if name not in policies:
            fields.complain(f"there is no authentication {str(name)[:80]!r} in `use`", "authentication")
            return None
        policy, kinds = policies.fields(name), policies.value[name]
    else:
        policy, kinds = fields.fields("authentication"), found
    if not isinstance(kinds, Mapping) or not kinds.keys() <= {"basic", "bearer"}:
        policy.complain("only basic and bearer authentication are supported")
        return None
    return kinds


def _without(request: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key not in ("output", "redirect") and value is not None}
