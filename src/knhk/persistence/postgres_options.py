"""Where a PostgreSQL store is and how it is spoken to."""

import re
from typing import Final

import msgspec

SCHEMA: Final = "knhk"
_PASSWORD: Final = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@")
_QUERY: Final = re.compile(r"\?.*")


class PostgresOptions(msgspec.Struct, frozen=True):
    """`url` is a libpq URL, with several hosts if there are standbys; `timeout_s` bounds one statement.

    `connections` is the most that this process opens for reading, and again for writing.
    """

    url: str
    schema: str = SCHEMA
    connections: int = 8
    timeout_s: float = 10.0

    @property
    def name(self) -> str:
        """The URL as it may be shown."""
        return public_name(self.url)


def public_name(url: str) -> str:
    """A URL without its password and parameters, for messages."""
    return _QUERY.sub("", _PASSWORD.sub(r"\1@", url))
