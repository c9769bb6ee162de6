"""From a descriptor's text to the plan that the engine runs, or to everything that is wrong with it.

    text -> document (data) -> descriptor (keys and types) -> steps -> graph -> expressions against the graph -> plan

Every stage complains into one list and goes on with what is left, so that one reading finds all faults.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from knhk.domain.compile_steps import NAME, Reading, StepCompiler
from knhk.domain.complaints import Complaints, Path
from knhk.domain.covenants import check_covenant
from knhk.domain.descriptor import Descriptor, MetadataPart, SpecPart, parse
from knhk.domain.descriptor_shape import BLANK
from knhk.domain.document import read
from knhk.domain.graph import Ancestors, Graph, build
from knhk.domain.inputs import check_inputs, compile_inputs, declared_names
from knhk.domain.json_schemas import check_schema, schema_fault
from knhk.domain.plan import ActionTraits, Invariant, Output, Plan, Step

MAX_TEXT: Final = 255
"""The longest name, department, cost center and label, in characters."""
MAX_LABELS: Final = 64
_RESOURCES: Final = frozenset({"resources"})
_EVERYWHERE: Final = -1


def compile_descriptor(
    text: bytes,
    actions: Mapping[str, ActionTraits],
    *,
    max_bytes: int,
    max_steps: int,
    default_timeout_ns: int,
    tick_ns: int,
) -> Plan:
    """The plan of a descriptor.

    `default_timeout_ns` is for a run that sets none. `tick_ns` is the tick of covenant Chatman, whose latency only the
    engine can check. Raises InvalidDescriptor with all problems, each with its place and, if one is near, the right
    name.
    """
    document = read(text, max_bytes=max_bytes)
    complaints = Complaints(document.locate)
    descriptor = parse(document.value, complaints)
    if descriptor is None or not _check_count(descriptor.spec, max_steps, complaints):
        complaints.raise_if_any()
        raise AssertionError("a descriptor without a plan must have been complained of")
    plan = _Compiler(actions, complaints).plan(sha256(text).digest(), descriptor, default_timeout_ns)
    if complaints:
        complaints.raise_if_any()
    return plan


def _check_count(spec: SpecPart, max_steps: int, complaints: Complaints) -> bool:
    if len(spec.steps) > max_steps:
        complaints.add(f"{len(spec.steps)} steps; at most {max_steps} are allowed", ("spec", "steps"))
        return False
    if not spec.steps and not complaints:
        complaints.add("a workflow needs at least one step", ("spec", "steps"))
        return False
    return True


class _Compiler:
    """One compilation."""

    def __init__(self, actions: Mapping[str, ActionTraits], complaints: Complaints) -> None:
        self._complaints = complaints
        self._steps = StepCompiler(actions, complaints)

    def plan(self, digest: bytes, descriptor: Descriptor, default_timeout_ns: int) -> Plan:
        metadata, spec, compiler = descriptor.metadata, descriptor.spec, self._steps
        self._check_metadata(metadata)
        default = compiler.policies(spec)
        index_of = compiler.names(spec.steps)
        graph = build(compiler.dependencies(spec.steps, index_of))
        steps = [compiler.step(index, part, graph, default) for index, part in enumerate(spec.steps)]
        inputs_schema = compile_inputs(spec.inputs, self._complaints)
        outputs = self._outputs(spec.outputs) if spec.outputs else ()
        invariants = self._invariants(spec) if spec.invariants else ()
        self._check_cycles(graph, steps)
        self._check_readings(index_of, graph, steps, declared_names(inputs_schema))
        plan = Plan(
            digest=digest,
            name=metadata.name,
            department=metadata.department or "",
            cost_center=metadata.cost_center or "",
            labels=metadata.labels or {},
            covenant=spec.covenant or "Sigma",
            timeout_ns=default_timeout_ns if spec.timeout is None else self._timeout(spec.timeout),
            steps=self._with_kept(steps),
            index_of=index_of,
            inputs_schema=inputs_schema,
            outputs=outputs,
            invariants=invariants,
        )
        if plan.covenant != "Sigma" or invariants:
            check_covenant(plan, self._complaints)
        return plan

    def _timeout(self, text: str) -> int:
        return self._steps.duration(text, ("spec", "timeout"))

    def _check_metadata(self, metadata: MetadataPart) -> None:
        if not metadata.name and not self._complaints:
            self._complaints.add("the name is empty", ("metadata", "name"))
        for key in ("name", "department", "cost_center"):
            self._check_text(getattr(metadata, key), ("metadata", key))
        if metadata.labels:
            if len(metadata.labels) > MAX_LABELS:
                self._complaints.add(f"at most {MAX_LABELS} labels are allowed", ("metadata", "labels"))
            for name, value in metadata.labels.items():
                self._check_text(name, ("metadata", "labels", name))
                self._check_text(value, ("metadata", "labels", name))

    def _check_text(self, text: str | None, path: Path) -> None:
        if text is None or (len(text) <= MAX_TEXT and text.isprintable()) or (text == BLANK and self._complaints):
            return
        self._complaints.add(f"at most {MAX_TEXT} printable characters are allowed", path)

    def _outputs(self, declared: dict[str, Any]) -> tuple[Output, ...]:
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
            outputs.append(Output(name, self._steps.template(value, path, _EVERYWHERE), schema))
        return tuple(outputs)

    def _check_output_schema(self, schema: Any, path: Path) -> None:
        if not isinstance(schema, dict | bool):
            self._complaints.add("must be a JSON Schema", path)
        elif fault := schema_fault(schema):
            self._complaints.add(f"not a usable JSON Schema: {fault}", path)

    def _invariants(self, spec: SpecPart) -> tuple[Invariant, ...]:
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
            condition = self._steps.condition(source, path, _RESOURCES, _EVERYWHERE)
            if condition is not None:
                invariants.append(Invariant(name.strip(), condition))
        return tuple(invariants)

    def _check_cycles(self, graph: Graph, steps: list[Step]) -> None:
        for cycle in graph.cycles:
            names = [steps[index].name for index in cycle]
            shown = names if len(names) <= 20 else [*names[:10], "...", *names[-9:]]
            message = f"steps depend on each other in a cycle: {' -> '.join([*shown, names[0]])}"
            self._complaints.add(message, ("spec", "steps", cycle[0], "depends_on"))

    def _check_readings(
        self, index_of: dict[str, int], graph: Graph, steps: list[Step], inputs: frozenset[str] | None
    ) -> None:
        ancestors = Ancestors(graph)
        for reading in self._steps.readings:
            if inputs is not None and not reading.inputs <= inputs:
                for name in sorted(reading.inputs - inputs):
                    self._complaints.add(f"there is no input {name[:140]!r}", reading.path, name, inputs)
            for name in sorted(reading.steps):
                other = index_of.get(name)
                if other is None:
                    self._complaints.add(f"there is no step {name[:140]!r}", reading.path, name, index_of)
                    continue
                self._steps.kept.add(other)
                if not graph.cycles and reading.reader != _EVERYWHERE:
                    self._check_order(reading, other, steps, ancestors)

    def _check_order(self, reading: Reading, other: int, steps: list[Step], ancestors: Ancestors) -> None:
        if not ancestors.has(reading.reader, other):
            name = steps[other].name
            self._complaints.add(
                f"reads the output of step {name!r} without depending on it; add {name!r} to depends_on"
                if other != reading.reader
                else "a step cannot read its own output",
                reading.path,
            )

    def _with_kept(self, steps: list[Step]) -> tuple[Step, ...]:
        for index in self._steps.kept:
            msgspec.structs.force_setattr(steps[index], "keep_output", True)  # nobody else has seen it yet
        return tuple(steps)


__all__ = ["check_inputs", "check_schema", "compile_descriptor"]
