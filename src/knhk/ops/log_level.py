"""The route that shows and changes how much is logged while the server runs."""

from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response, get, put

from knhk.domain.errors import InvalidParameter
from knhk.observability import logs

PATH: Final = "/log-level"


class Level(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a change and of every answer."""

    level: str


def handlers() -> list[Any]:
    """GET and PUT of the level. It holds until it is changed again or the process ends."""

    @get(PATH)
    async def shown() -> Response[bytes]:
        """The present level."""
        return _answer()

    @put(PATH)
    async def changed(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Change it."""
        try:
            wanted = msgspec.json.decode(await request.body(), type=Level).level
            before = logs.level()
            logs.set_level(wanted)
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidParameter(f"{PATH}: {error}", hint='Send {"level": "debug"}.') from None
        logs.get("knhk.ops").warning("the log level was changed", before=before, level=logs.level())
        return _answer()

    return [shown, changed]


def _answer() -> Response[bytes]:
    return Response(msgspec.json.encode(Level(logs.level())), media_type=MediaType.JSON)
