"""`validate`: let the workflow go on only if the data are as they should be. A violation is final, never retried."""

from functools import lru_cache
from typing import Annotated, Any, Final

import jsonschema_rs
import msgspec

from knhk.actions.parameters import parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, Succeeded
from knhk.actions.schema import schema_of
from knhk.domain.errors import InvalidInput
from knhk.domain.expressions import Scope, compile_condition
from knhk.domain.plan import ActionTraits

NAME: Final = "validate"
INVALID_CODE: Final = "KNHK-ACTION-INVALID"
MAX_ERRORS: Final = 10
_EXCERPT: Final = 200
# A pattern that backtracks for ever would hold up the event loop; it fails instead after so many steps.
_PATTERNS: Final = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000)


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CEL condition over `data`, `inputs`, `steps` and `run`, under a name, with a message for people."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    rule: str
    message: str = ""


class ValidateParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is checked (by default the outputs of the steps that this one depends on, by name) and against what."""

    data: Any = msgspec.UNSET
    schema: dict[str, Any] | bool | None = None
    rules: list[str | Rule] = []


def run(invocation: Invocation) -> Outcome:
    """Checks the schema, then the rules in their order; the first that is violated fails the step.

    Without either there is nothing to violate: the step succeeds, and says that it checked nothing.
    """
    params = parse(invocation, NAME, ValidateParams)
    if isinstance(params, Failed):
        return params
    data = dict(invocation.dependencies) if params.data is msgspec.UNSET else params.data
    failure = None if params.schema is None else _check_schema(params.schema, data)
    if failure is None and params.rules:
        failure = _check_rules(params.rules, data, invocation.scope)
    if failure is not None:
        return failure
    return Succeeded({"valid": True, "checked": len(params.rules) + (params.schema is not None)})


def _check_schema(schema: dict[str, Any] | bool, data: Any) -> Failed | None:
    try:
        validator = _validator(msgspec.json.encode(schema, order="deterministic"))
    except ValueError as error:
        return wrong(NAME, f"`schema` is not a usable JSON Schema: {_first_line(error)}")
    faults: list[str] = []
    for fault in validator.iter_errors(data):
        if len(faults) == MAX_ERRORS:
            faults.append("and more")
            break
        place = "/".join(str(part) for part in fault.instance_path)
        faults.append(f"/{place}: {_short(fault.message)}")
    if not faults:
        return None
    return Failed(INVALID_CODE, f"the data do not match the schema: {'; '.join(faults)}", guard="schema")


def _check_rules(rules: list[str | Rule], data: Any, scope: Scope) -> Failed | None:
    wider = Scope(inputs=scope.inputs, outputs=scope.outputs, run=scope.run, extra={**scope.extra, "data": data})
    for entry in rules:
        rule = Rule(name=entry, rule=entry) if isinstance(entry, str) else entry
        try:
            condition = compile_condition(rule.rule)  # which keeps what it has compiled
        except InvalidInput as error:
            return wrong(NAME, f"rule {rule.name!r}: {error.message}")
        try:
            holds, why = condition.evaluate(wider), ""
        except InvalidInput as error:
            holds, why = False, f" (it could not be evaluated: {error.message})"
        if not holds:
            return _violation(rule, data, why)
    return None


def _violation(rule: Rule, data: Any, why: str) -> Failed:
    said = f"{rule.message}: " if rule.message else ""
    named = f"{rule.name!r} " if rule.name != rule.rule else ""
    message = f"{said}rule {named}({rule.rule}) does not hold{why}; data: {_excerpt(data)}"
    return Failed(INVALID_CODE, message, guard=rule.name)


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    """The compiled schema. It is offline: a `$ref` to a file or another host is an error, never a request."""
    return jsonschema_rs.validator_for(
        msgspec.json.decode(schema), validate_formats=True, offline=True, pattern_options=_PATTERNS
    )


def _excerpt(data: Any) -> str:
    return _short(msgspec.json.encode(data, order="deterministic").decode())


def _short(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def _first_line(error: Exception) -> str:
    return _short(str(error).partition("\n")[0])


TRAITS: Final = ActionTraits(NAME, pure=True, guarantee="exactly-once", params_schema=schema_of(ValidateParams))
ACTION: Final = Action(TRAITS, "inline", run, __name__, about="checks data against a JSON Schema and rules")
