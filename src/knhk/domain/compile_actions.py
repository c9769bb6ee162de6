"""What a step's action is to the compiler: known here, performed by remote workers, or nothing that there is."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor_shape import BLANK
from knhk.domain.plan import ActionTraits

UNKNOWN: Final = ActionTraits("", pure=True)


def traits_of(
    name: str, queue: str | None, actions: Mapping[str, ActionTraits], complaints: Complaints, path: Path
) -> ActionTraits:
    """The traits of the action that a step names at `path`. One with a queue need not be known: its workers know it.

    A step that runs elsewhere is never pure: nothing runs ahead of what it depends on.
    """
    traits = actions.get(name)
    if queue:
        known = ActionTraits(name, pure=False) if traits is None else traits
        return msgspec.structs.replace(known, pure=False, queue=queue, disabled="")
    if traits is not None:
        if traits.disabled:
            complaints.add(f"the action {name!r} is not allowed here: {traits.disabled}", path)
        return traits
    if name != BLANK or not complaints:
        complaints.add(f"there is no action {name[:140]!r}", path, name, actions)
    return UNKNOWN


def check_literals(traits: ActionTraits, params: Any, complaints: Complaints, path: Path) -> None:
    """Complain of expressions at the places of an action's params that none may fill."""
    for place in traits.literal:
        _check(place.split("."), params, complaints, path)


def _check(names: Sequence[str], value: Any, complaints: Complaints, path: Path) -> None:
    if not names:
        if "${{" in str(value):
            complaints.add("must be written out: an expression here could turn data into code", path)
    elif names[0] == "*" and isinstance(value, list):
        for at, part in enumerate(value):
            _check(names[1:], part, complaints, (*path, at))
    elif isinstance(value, dict) and names[0] in value:
        _check(names[1:], value[names[0]], complaints, (*path, names[0]))
