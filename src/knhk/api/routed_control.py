"""What faces take for the control of one partition, where there are many: each call finds its way to the right one."""

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from knhk.api import listing
from knhk.api.listing import Page
from knhk.api.places import CONTROL
from knhk.domain import identifier
from knhk.engine.control import Control, Filter

if TYPE_CHECKING:
    from knhk.api.router import Router

_DECISIONS: Final = frozenset({"cancel", "pause", "resume", "retry", "erase"})
"""What may be decided about many runs at once. Another node decides it about one of its own by the route of that name.
"""


class RoutedControl:
    """Stands for the control of the partition that a request is about. Give it to faces through `routed`."""

    def __init__(self, router: "Router") -> None:
        self._router, self._places = router, router.places

    def __getattr__(self, name: str) -> Any:
        control = CONTROL.get()
        if control is None and name in _DECISIONS:
            return partial(self._decide, name)
        return getattr(control or self._places.reader, name)

    @property
    def definitions(self) -> Any:
        """Those of the same control, found when they are used."""
        return _Later(self, "definitions")

    @property
    def signals(self) -> Any:
        """Those of the same control, found when they are used."""
        return _Later(self, "signals")

    async def listing(self, wanted: Filter, *, before: int | None, limit: int) -> Page:
        """The runs of all partitions, newest first: see Control.listing."""
        return await listing.of_all(self._router, wanted, before, limit)

    async def _decide(
        self, verb: str, workflow_id: int, *, actor: str, reason: str | None = None, key: str = ""
    ) -> None:
        """One of many decisions, by the owner of the run."""
        given = {} if reason is None else {"reason": reason}
        told = {"key": key} if key else {}

        async def here(control: Control) -> None:
            await getattr(control, verb)(workflow_id, actor=actor, **given, **told)

        target = f"/workflows/{identifier.to_text(workflow_id)}/{verb}"
        await self._router.call(identifier.partition_of(workflow_id), here, "POST", target, given or None, key=key)


class _Later:
    def __init__(self, control: RoutedControl, name: str) -> None:
        self._control, self._name = control, name

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(CONTROL.get() or self._control._places.reader, self._name), name)


def routed(router: "Router") -> Control:
    """What faces take for the control of one partition."""
    return cast(Control, RoutedControl(router))
