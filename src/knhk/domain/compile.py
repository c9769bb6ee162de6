"""From a descriptor's text to the plan that the engine runs, or to everything that is wrong with it.

    text -> document (data) -> descriptor (keys and types) -> steps -> graph -> expressions against the graph -> plan

Every stage complains into one list and goes on with what is left, so that one reading finds all faults.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from knhk.domain.block_scope import EVERYWHERE, BlockScope
from knhk.domain.compile_bodies import count_steps
from knhk.domain.compile_limits import compile_limits
from knhk.domain.compile_steps import NAME, StepCompiler
from knhk.domain.compile_triggers import compile_triggers
from knhk.domain.compile_values import ONCE, ValueCompiler
from knhk.domain.complaints import Complaints, Path
from knhk.domain.covenants import check_covenant
from knhk.domain.descriptor import Descriptor, MetadataPart, SpecPart, parse
from knhk.domain.descriptor_shape import BLANK
from knhk.domain.document import read
from knhk.domain.dsl.plan import compile_document
from knhk.domain.dsl.reading import is_dsl
from knhk.domain.inputs import check_inputs, compile_inputs, declared_names
from knhk.domain.json_schemas import check_schema, schema_fault
from knhk.domain.plan import ActionTraits, Invariant, Output, Plan
from knhk.domain.shapes import Shapes, shape_of

MAX_TEXT: Final = 255
"""The longest name, department, cost center and label, in characters."""
MAX_LABELS: Final = 64
_RESOURCES: Final = frozenset({"resources"})


def compile_descriptor(
    text: bytes,
    actions: Mapping[str, ActionTraits],
    *,
    max_bytes: int,
    max_steps: int,
    default_timeout_ns: int,
    tick_ns: int,
    shapes: Shapes | None = None,
) -> Plan:
    """The plan of a descriptor; `shapes` are those of others that were compiled with the same arguments.

    `default_timeout_ns` is for a run that sets none. `tick_ns` is the tick of covenant Chatman, whose latency only the
    engine can check. Raises InvalidDescriptor with all problems, each with its place and, if one is near, the right
    name.
    """
    digest = sha256(text).digest()
    if shapes is not None and len(text) <= max_bytes and (known := shapes.plan_of_text(text, digest)) is not None:
        return known
    document = read(text, max_bytes=max_bytes)
    complaints = Complaints(document.locate)
    if is_dsl(document.value):
        plan = compile_document(
            document.value,
            digest,
            actions,
            complaints,
            max_steps=max_steps,
            default_timeout_ns=default_timeout_ns,
        )
        complaints.raise_if_any()
        return plan
    descriptor = parse(document.value, complaints)
    if descriptor is None or not _check_count(descriptor.spec, max_steps, complaints):
        complaints.raise_if_any()
        raise AssertionError("a descriptor without a plan must have been complained of")
    shape, metadata = b"", descriptor.metadata
    _check_metadata(metadata, complaints)
    if shapes is not None and not complaints:
        shape, taken = shape_of(descriptor.spec)
        known = shapes.plan(shape, taken, metadata, digest)
        if known is not None:
            shapes.learn(text, known, shape, taken, metadata, document.locate)
            return known
    plan = _Compiler(actions, complaints).plan(digest, descriptor, default_timeout_ns)
    complaints.raise_if_any()
    if shapes is not None:
        shapes.keep(shape, plan)
    return plan


def _check_count(spec: SpecPart, max_steps: int, complaints: Complaints) -> bool:
    if (count := count_steps(spec.steps)) > max_steps:
        complaints.add(f"{count} steps; at most {max_steps} are allowed", ("spec", "steps"))
        return False
    if not spec.steps and not complaints:
        complaints.add("a workflow needs at least one step", ("spec", "steps"))
        return False
    return True


def _check_metadata(metadata: MetadataPart, complaints: Complaints) -> None:
    """Complain of names and labels that are empty, too long or not printable."""
    if not metadata.name and not complaints:
        complaints.add("the name is empty", ("metadata", "name"))
    _check_text(metadata.name, ("metadata", "name"), complaints)
    _check_text(metadata.department, ("metadata", "department"), complaints)
    _check_text(metadata.cost_center, ("metadata", "cost_center"), complaints)
    if metadata.labels:
        if len(metadata.labels) > MAX_LABELS:
            complaints.add(f"at most {MAX_LABELS} labels are allowed", ("metadata", "labels"))
        for name, value in metadata.labels.items():
            _check_text(name, ("metadata", "labels", name), complaints)
            _check_text(value, ("metadata", "labels", name), complaints)


def _check_text(text: str | None, path: Path, complaints: Complaints) -> None:
    if text is None or (len(text) <= MAX_TEXT and text.isprintable()) or (text == BLANK and complaints):
        return
    complaints.add(f"at most {MAX_TEXT} printable characters are allowed", path)


class _Compiler:
    """One compilation."""

    def __init__(self, actions: Mapping[str, ActionTraits], complaints: Complaints) -> None:
        self._complaints = complaints
        self._values = ValueCompiler(complaints)
        self._steps = StepCompiler(actions, complaints, self._values)

    def plan(self, digest: bytes, descriptor: Descriptor, default_timeout_ns: int) -> Plan:
        metadata, spec = descriptor.metadata, descriptor.spec
        inputs_schema = compile_inputs(spec.inputs, self._complaints)
        scope = BlockScope(spec.steps, ("spec", "steps"))
        self._steps.default = self._values.policy(spec.retries, spec.retry, ("spec",), scope, EVERYWHERE) or ONCE
        root = self._steps.block(scope)
        outputs = self._outputs(spec.outputs, scope) if spec.outputs else ()
        invariants = self._invariants(spec, scope) if spec.invariants else ()
        limits = compile_limits(spec, self._values, scope, self._complaints)
        triggers = compile_triggers(spec, self._values, scope, self._complaints) if spec.triggers else ()
        on_failure = self._steps.handler(scope, spec.on_failure, "on_failure")
        finally_ = self._steps.handler(scope, spec.finally_, "finally")
        self._steps.finish(declared_names(inputs_schema))
        plan = Plan(
            digest=digest,
            name=metadata.name,
            department=metadata.department or "",
            cost_center=metadata.cost_center or "",
            labels=metadata.labels or {},
            covenant=spec.covenant or "Sigma",
            timeout_ns=default_timeout_ns if spec.timeout is None else self._timeout(spec.timeout),
            root=root,
            inputs_schema=inputs_schema,
            outputs=outputs,
            invariants=invariants,
            limits=limits,
            triggers=triggers,
            on_failure=on_failure,
            finally_=finally_,
        )
        if plan.covenant != "Sigma" or invariants:
            check_covenant(plan, self._complaints)
        return plan

    def _timeout(self, text: str) -> int:
        return self._values.duration(text, ("spec", "timeout"))

    def _outputs(self, declared: dict[str, Any], scope: BlockScope) -> tuple[Output, ...]:
        outputs: list[Output] = []
        for name, value in declared.items():
            path: Path = ("spec", "outputs", name)
            schema = None
            if not NAME.fullmatch(name):
                self._complaints.add(f"{name[:140]!r} is no name: a letter or _, then letters, digits, _ . or -", path)
            if isinstance(value, dict) and "value" in value and value.keys() <= {"value", "schema"}:
                schema, value = value.get("schema"), value["value"]
                if schema is not None:
                    self._check_output_schema(schema, (*path, "schema"))
                path = (*path, "value")
            outputs.append(Output(name, self._values.template(value, path, scope, EVERYWHERE), schema))
        return tuple(outputs)

    def _check_output_schema(self, schema: Any, path: Path) -> None:
        if not isinstance(schema, dict | bool):
            self._complaints.add("must be a JSON Schema", path)
        elif fault := schema_fault(schema):
            self._complaints.add(f"not a usable JSON Schema: {fault}", path)

    def _invariants(self, spec: SpecPart, scope: BlockScope) -> tuple[Invariant, ...]:
        invariants: list[Invariant] = []
        names: set[str] = set()
        for at, entry in enumerate(spec.invariants or ()):
            path: Path = ("spec", "invariants", at)
            if isinstance(entry, str):
                name = source = entry
            else:
                name, source, path = entry.name, entry.rule, (*path, "rule")
            if source == BLANK and self._complaints:
                continue
            if name in names:
                self._complaints.add(f"there are two invariants {name[:140]!r}", ("spec", "invariants", at))
            names.add(name)
            condition = self._values.condition(source, path, scope, EVERYWHERE, _RESOURCES)
            if condition is not None:
                invariants.append(Invariant(name.strip(), condition))
        return tuple(invariants)


__all__ = ["check_inputs", "check_schema", "compile_descriptor"]
