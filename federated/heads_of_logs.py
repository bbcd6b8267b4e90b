"""How the two parties' audit logs witness each other: each shows its head with every message, and the other writes it down.

The one idea: a log whose head somebody else has recorded cannot be shortened or rewritten without that person's log saying so.
"""

from typing import Annotated

from pydantic import Field

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.errors import AuditFormatError, FederationError
from clinical_ser.strict import Strict
from federated.names import Hex32


class Head(Strict):
    """How long a log was, and its root."""

    size: Annotated[int, Field(ge=0, strict=True)]
    root: Hex32

    def may_follow(self, before: "Head") -> bool:
        """Tell whether a log may have grown from what was seen before to this: not shorter, and the same where it is as long."""
        return self.size > before.size or self == before


def head_of(note: str) -> Head:
    """Return the head that a log's own signed checkpoint states."""
    text, _, _ = note.partition("\n\n")
    try:
        found = Checkpoint.parse(text + "\n")
    except AuditFormatError:
        raise FederationError("A log's checkpoint is not of the form that this version writes.") from None
    return Head(size=found.size, root=found.root.hex())
