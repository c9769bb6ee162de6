"""What a construct answers when its step begins or when its frame ends."""

from typing import Any

import msgspec

from knhk.domain.event import Failure


class Open(msgspec.Struct, frozen=True):
    """Go into the steps inside, or into one more time of them; the fields are those of the event `step.opened`.

    `items` are kept beside it.
    """

    choice: int = 0
    count: int = 0
    items: list[Any] | None = None


class Give(msgspec.Struct, frozen=True):
    """The step is done."""

    output: Any


Answer = Open | Give | Failure
