"""`call: http` and `call: openapi`, over the connections, limits and secrets' masking of the `http` action."""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urljoin

import msgspec
import yaml

from knhk.actions import http
from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded
from knhk.actions.serverless.flow import Turn
from knhk.domain.dsl.task import CallHttp, CallOpenApi, HttpOutput

_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_ALL: Final = "100-599"
_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_REDIRECT: Final = 300
_ERROR: Final = 400


async def call_http(turn: Turn, body: CallHttp) -> Outcome:
    """One request. An answer that is no success is a communication error with its status."""
    request = await turn.fill(dict(body.request))
    endpoint = request["endpoint"]
    uri, authentication = (
        (endpoint, None) if isinstance(endpoint, str) else (endpoint["uri"], endpoint.get("authentication"))
    )
    return await _send(turn, _request(turn, request, uri, authentication), body.output, body.redirect)


async def call_openapi(turn: Turn, body: CallOpenApi) -> Outcome:
    """One operation of a document, which is fetched for each call."""
    given = await turn.fill(dict(body.request))
    endpoint = given["document"]["endpoint"]
    uri = endpoint if isinstance(endpoint, str) else endpoint["uri"]
    answer = await _exchange(turn, {"url": _expanded(turn, uri)}, redirect=True)
    document = _document(turn, answer)
    request, where = _operation(turn, document, given, uri)
    request = {**request, "headers": {**request["headers"], **_authorization(turn, given.get("authentication"))}}
    return await _send(turn, {**request, "url": where}, body.output, body.redirect)


def _request(turn: Turn, request: Mapping[str, Any], uri: str, authentication: Any) -> dict[str, Any]:
    headers = {name: str(value) for name, value in (request.get("headers") or {}).items()}
    found = {
        "url": _expanded(turn, uri),
        "method": str(request["method"]).upper(),
        "headers": {**headers, **_authorization(turn, authentication)},
        "query": request.get("query") or {},
    }
    body = request.get("body")
    if body is not None:
        found |= {"body": body} if isinstance(body, str) else {"json": body}
    return found


def _expanded(turn: Turn, uri: str) -> str:
    """A URI template of the simplest form (RFC 6570, level 1) over the members of the input."""
    values = turn.input if isinstance(turn.input, Mapping) else {}

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise turn.fault("expression", f"the input has no {match[1]!r}, which the endpoint {uri!r} names")
        return quote(str(values[match[1]]), safe="")

    return _PLACE.sub(value, uri)


def _authorization(turn: Turn, policy: Any) -> dict[str, str]:
    if not policy:
        return {}
    if "basic" in policy:
        pair = f"{policy['basic'].get('username', '')}:{policy['basic'].get('password', '')}"
        return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    if "bearer" in policy:
        return {"authorization": f"Bearer {policy['bearer'].get('token', '')}"}
    raise turn.fault("configuration", "only basic and bearer authentication are supported")


async def _send(turn: Turn, request: Mapping[str, Any], output: HttpOutput, redirect: bool) -> Outcome:
    answer = await _exchange(turn, request, redirect=redirect)
    status = answer["status"]
    if status >= _ERROR or (status >= _REDIRECT and not redirect):
        raise turn.fault("communication", f"{request.get('method', 'GET')} was answered with {status}", status)
    content = answer["body"]
    if output == "content":
        return await turn.leave(content)
    if output == "raw":
        plain = answer["encoding"] == "base64"
        raw = content if plain else base64.b64encode(_bytes(content, answer["encoding"])).decode()
        return await turn.leave(raw)
    shown = {
        "request": {
            "method": str(request.get("method", "GET")).lower(),
            "uri": request["url"],
            "headers": {
                name: value for name, value in (request.get("headers") or {}).items() if name != "authorization"
            },
        },
        "statusCode": status,
        "headers": answer["headers"],
        "content": content,
    }
    return await turn.leave(shown)


async def _exchange(turn: Turn, request: Mapping[str, Any], *, redirect: bool) -> dict[str, Any]:
    """The output of the `http` action for a request, whatever its status. Raises Fault."""
    params = {**request, "expected_status": _ALL, "follow_redirects": redirect}
    outcome = await http.run(msgspec.structs.replace(turn.invocation, params=params))
    match outcome:
        case Succeeded(output=output):
            return dict(output)
        case Failed(code=http.REQUEST_CODE | "KNHK-ACTION-PARAMS", message=message):
            raise turn.fault("configuration", message)
        case Failed(message=message) | RetryLater(message=message):
            raise turn.fault("communication", message)
    raise turn.fault("runtime", "the request was cancelled")


def _bytes(content: Any, encoding: str) -> bytes:
    return content.encode() if encoding == "text" else msgspec.json.encode(content)


def _document(turn: Turn, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if answer["status"] != 200:
        raise turn.fault(
            "communication", f"the OpenAPI document was answered with {answer['status']}", answer["status"]
        )
    found = answer["body"]
    if isinstance(found, str):
        try:
            found = yaml.load(found, Loader=yaml.CSafeLoader)
        except yaml.YAMLError as error:
            raise turn.fault("configuration", "the OpenAPI document is neither JSON nor YAML") from error
    if not isinstance(found, Mapping) or not isinstance(found.get("paths"), Mapping):
        raise turn.fault("configuration", "the OpenAPI document has no paths")
    return found


def _operation(
    turn: Turn, document: Mapping[str, Any], given: Mapping[str, Any], uri: str
) -> tuple[dict[str, Any], str]:
    """The request for an operation, and its URL. Swagger 2.0 and OpenAPI 3 differ in where the server stands."""
    wanted = given["operationId"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in _METHODS and operation.get("operationId") == wanted:
                declared = [*methods.get("parameters", ()), *operation.get("parameters", ())]
                request, filled = _filled(turn, path, declared, dict(given.get("parameters") or {}))
                return {**request, "method": method.upper()}, _server(document, uri) + filled
    raise turn.fault("configuration", f"the OpenAPI document has no operation {wanted!r}")


def _filled(
    turn: Turn, path: str, declared: list[Mapping[str, Any]], values: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Parameters put where the operation says; what it does not declare goes into the body."""
    request: dict[str, Any] = {"query": {}, "headers": {}}
    for parameter in declared:
        name, place = parameter.get("name", ""), parameter.get("in")
        if name not in values:
            if parameter.get("required") and place != "body":
                raise turn.fault("configuration", f"the operation needs the parameter {name!r}")
            continue
        value = values.pop(name)
        if place == "path":
            path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
        elif place == "query":
            request["query"][name] = value
        elif place == "header":
            request["headers"][name] = str(value)
        elif place == "body":
            request["json"] = value
    if values and "json" not in request:
        request["json"] = values.pop("body") if set(values) == {"body"} else values
    return request, path


def _server(document: Mapping[str, Any], uri: str) -> str:
    servers = document.get("servers")
    if servers:
        return urljoin(uri, str(servers[0]["url"])).rstrip("/")
    scheme = uri.partition("://")[0]
    schemes = document.get("schemes") or [scheme]
    host = document.get("host") or uri.partition("://")[2].partition("/")[0]
    return f"{scheme if scheme in schemes else schemes[0]}://{host}{str(document.get('basePath', '')).rstrip('/')}"
