"""The base of what is peculiar to one kind of event: see event.py."""

import msgspec


class Detail(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of the details; encoded as a msgpack map of the fields that differ from their default."""
