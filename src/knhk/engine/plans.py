"""Compiled plans by the digest of their descriptor, the newest kept, bounded by the steps that they hold."""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

import msgspec

from knhk.domain.compile import compile_descriptor
from knhk.domain.errors import InvalidDescriptor, JournalCorrupt
from knhk.domain.plan import ActionTraits, Plan
from knhk.domain.shapes import Shapes
from knhk.ports.journal import Journal

_STEPS_KEPT: Final = 50_000
_PLANS_KEPT: Final = 256
_ACCEPTED: Final = b"accepted once, "


class _WithGone(dict[str, ActionTraits]):
    """Traits of actions, and of those that this process does not have: any params, and a promise that costs nothing.

    One that is not allowed any more is read, too; it fails its step when it is run.
    """

    def get(self, name: str, _default: object = None) -> ActionTraits:
        found = super().get(name)
        return ActionTraits(name, pure=True) if found is None else msgspec.structs.replace(found, disabled="")


class Plans:
    """Compiles descriptors, once for each that is in use."""

    def __init__(
        self,
        actions: Mapping[str, ActionTraits],
        *,
        max_bytes: int,
        max_steps: int,
        default_timeout_ns: int,
        tick_ns: int,
    ) -> None:
        self._actions = actions
        self._max_bytes, self._max_steps = max_bytes, max_steps
        self._default_timeout_ns, self._tick_ns = default_timeout_ns, tick_ns
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._shapes = Shapes()
        self._steps = 0

    def compile(self, text: bytes) -> Plan:
        """The plan of a descriptor. Raises InvalidDescriptor with all that is wrong with it."""
        digest = sha256(text).digest()
        plan = self._plans.get(digest)
        if plan is not None:
            self._plans.move_to_end(digest)
            return plan
        plan = self._compile(text, self._actions, self._max_bytes, self._max_steps, self._shapes)
        self._keep(digest, plan)
        return plan

    async def load(self, journal: Journal, digest: bytes) -> Plan:
        """The plan of a descriptor in the journal. Raises JournalCorrupt if it is not there or is another one.

        It was accepted once: that an action is gone or a limit is lower today is no reason not to read it. A step whose
        action is gone fails when its turn comes.
        """
        plan = self._plans.get(digest) or self._plans.get(_ACCEPTED + digest)
        if plan is not None:
            return plan
        text = await journal.descriptor(digest)
        if text is None or sha256(text).digest() != digest:
            raise JournalCorrupt(f"the descriptor with digest {digest.hex()} is missing or was changed")
        try:
            return self.compile(text)
        except InvalidDescriptor:
            pass
        try:
            plan = self._compile(text, _WithGone(self._actions), len(text), len(text))
        except InvalidDescriptor as error:
            raise JournalCorrupt(f"this version cannot read the descriptor {digest.hex()}: {error.message}") from error
        self._keep(_ACCEPTED + digest, plan)
        return plan

    def _compile(
        self,
        text: bytes,
        actions: Mapping[str, ActionTraits],
        max_bytes: int,
        max_steps: int,
        shapes: Shapes | None = None,
    ) -> Plan:
        return compile_descriptor(
            text,
            actions,
            max_bytes=max_bytes,
            max_steps=max_steps,
            default_timeout_ns=self._default_timeout_ns,
            tick_ns=self._tick_ns,
            shapes=shapes,
        )

    def _keep(self, key: bytes, plan: Plan) -> None:
        self._plans[key] = plan
        self._steps += len(plan.steps)
        while len(self._plans) > 1 and (len(self._plans) > _PLANS_KEPT or self._steps > _STEPS_KEPT):
            _, oldest = self._plans.popitem(last=False)
            self._steps -= len(oldest.steps)
