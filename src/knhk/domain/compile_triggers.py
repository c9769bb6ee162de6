"""From `triggers` of a descriptor to those in its plan."""

import re
from typing import Final

from knhk.domain.block_scope import EVERYWHERE, BlockScope
from knhk.domain.compile_values import ValueCompiler
from knhk.domain.complaints import Complaints, Path
from knhk.domain.definition import NAME
from knhk.domain.descriptor_parts import SpecPart, TriggerPart
from knhk.domain.triggers import DEFAULT_MOST, Cron, OnEvent, Trigger, Webhook, schedule_fault

SECRETS: Final = re.compile(r"KNHK_WEBHOOK_[A-Z0-9_]{1,100}")
_TRIGGER: Final = frozenset({"trigger"})
_OF_CRON: Final = ("timezone", "catch_up", "max_catch_up")


def compile_triggers(
    spec: SpecPart, values: ValueCompiler, scope: BlockScope, complaints: Complaints
) -> tuple[Trigger, ...]:
    """The triggers of a specification."""
    found: list[Trigger] = []
    names: set[str] = set()
    for at, part in enumerate(spec.triggers or ()):
        path: Path = ("spec", "triggers", at)
        if part.name in names or not NAME.fullmatch(part.name):
            complaints.add("a trigger has a name of its own: a letter or _, then letters, digits, _ . or -", path)
        names.add(part.name)
        source = _source(part, path, complaints)
        inputs = values.template(part.inputs or {}, (*path, "inputs"), scope, EVERYWHERE, _TRIGGER)
        if inputs.steps or inputs.inputs:
            complaints.add("what a trigger gives is made before there are inputs; read `trigger`", (*path, "inputs"))
        if source is not None:
            found.append(Trigger(part.name, source, inputs))
    return tuple(found)


def _source(part: TriggerPart, path: Path, complaints: Complaints) -> Cron | Webhook | OnEvent | None:
    given = [name for name in ("cron", "webhook", "event") if getattr(part, name) is not None]
    if len(given) != 1:
        complaints.add("a trigger has exactly one of `cron`, `webhook` and `event`", path)
        return None
    for name in _OF_CRON:
        if getattr(part, name) is not None and part.cron is None:
            complaints.add(f"`{name}` goes with `cron`", (*path, name))
    if part.cron is not None:
        timezone = part.timezone or "UTC"
        fault = schedule_fault(part.cron, timezone)
        if fault:
            complaints.add(fault, (*path, "timezone" if "zone" in fault else "cron"))
            return None
        return Cron(part.cron, timezone, part.catch_up or "last", part.max_catch_up or DEFAULT_MOST)
    if part.event is not None:
        return OnEvent(part.event)
    assert part.webhook is not None
    if not SECRETS.fullmatch(part.webhook.secret_env):
        message = "must be the name of an environment variable of the server that begins with KNHK_WEBHOOK_"
        complaints.add(message, (*path, "webhook", "secret_env"))
    fixed = Webhook(part.webhook.secret_env)
    return Webhook(
        part.webhook.secret_env,
        (part.webhook.signature_header or fixed.signature_header).lower(),
        (part.webhook.id_header or fixed.id_header).lower(),
    )
