"""Takes secrets out of text that leaves the machine: those that are known, and what looks like one."""

import json
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import quote

from knhk.observability.logs import MASK, without_secrets

_NAMED: Final = re.compile(
    r"""(["']?\b[\w-]*(?:passw(?:or)?d|secret|token|api[-_]?key|service[-_]?key|private[-_]?key|access[-_]?key)"""
    r"""["']?\s*:\s*)(?:"(?!\*{8}")[^"]+"|'(?!\*{8}')[^']+')""",
    re.IGNORECASE,
)
"""A quoted value behind such a name and a colon, as in JSON, YAML and Python."""
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)


class Scrubber:
    """Masks the given secrets wherever they stand, also as they are written in JSON and URLs."""

    def __init__(self, secrets: Collection[str]) -> None:
        forms = {form for one in secrets for form in (one, json.dumps(one)[1:-1], quote(one, safe=""))}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(one) for one in longest_first)) if forms else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _PRIVATE_KEY.sub(MASK, text)
        return _NAMED.sub(rf'\1"{MASK}"', without_secrets(text))
