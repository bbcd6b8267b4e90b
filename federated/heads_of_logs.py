"""How the two parties' audit logs witness each other: each shows its head with every message, and the other writes it down.

The one idea: a log whose head somebody else has recorded cannot be shortened or rewritten without that person's log saying so.
"""

import base64
import binascii
from typing import Annotated

from pydantic import Field

from clinical_ser.errors import FederationError
from clinical_ser.strict import Strict
from federated.plan import Hex32


class Head(Strict):
    """How long a log was, and its root."""

    size: Annotated[int, Field(ge=0, strict=True)]
    root: Hex32

    def may_follow(self, before: "Head") -> bool:
        """Tell whether a log may have grown from what was seen before to this: not shorter, and the same where it is as long."""
        return self.size > before.size or self == before


def head_of(checkpoint: str) -> Head:
    """Return the head that a log's own signed checkpoint states (C2SP tlog-checkpoint: name, size, root)."""
    try:
        _, size, root = checkpoint.split("\n")[:3]
        return Head(size=int(size), root=base64.b64decode(root, validate=True).hex())
    except (ValueError, binascii.Error):
        raise FederationError("A log's checkpoint is not of the form that this version writes.") from None
