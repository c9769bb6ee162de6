"""What of this room the API answers with."""

from typing import NamedTuple

from knhk.protection.erasure import Erasure
from knhk.protection.keys import KeyManagement
from knhk.protection.retention import Retention
from knhk.protection.signing_keys import SigningKeys


class Services(NamedTuple):
    """What answers: `keys` is None if nothing was ever encrypted, `retention` in a cluster."""

    erasure: Erasure
    keys: KeyManagement | None
    signing: SigningKeys
    retention: Retention | None
