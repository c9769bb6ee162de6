"""Compiled plans by the digest of their descriptor, the newest kept, bounded by the steps that they hold."""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from knhk.domain.compile import compile_descriptor
from knhk.domain.errors import JournalCorrupt
from knhk.domain.plan import ActionTraits, Plan
from knhk.ports.journal import Journal

_STEPS_KEPT: Final = 50_000
_PLANS_KEPT: Final = 1_000


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
        self._steps = 0

    def compile(self, text: bytes) -> Plan:
        """The plan of a descriptor. Raises InvalidDescriptor with all that is wrong with it."""
        digest = sha256(text).digest()
        plan = self._plans.get(digest)
        if plan is not None:
            self._plans.move_to_end(digest)
            return plan
        plan = compile_descriptor(
            text,
            self._actions,
            max_bytes=self._max_bytes,
            max_steps=self._max_steps,
            default_timeout_ns=self._default_timeout_ns,
            tick_ns=self._tick_ns,
        )
        self._keep(plan)
        return plan

    async def load(self, journal: Journal, digest: bytes) -> Plan:
        """The plan of a descriptor in the journal. Raises JournalCorrupt if it is not there or is another one."""
        plan = self._plans.get(digest)
        if plan is not None:
            return plan
        text = await journal.descriptor(digest)
        if text is None or sha256(text).digest() != digest:
            raise JournalCorrupt(f"the descriptor with digest {digest.hex()} is missing or was changed")
        return self.compile(text)

    def _keep(self, plan: Plan) -> None:
        self._plans[plan.digest] = plan
        self._steps += len(plan.steps)
        while len(self._plans) > 1 and (len(self._plans) > _PLANS_KEPT or self._steps > _STEPS_KEPT):
            _, oldest = self._plans.popitem(last=False)
            self._steps -= len(oldest.steps)
