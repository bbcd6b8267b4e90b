"""Whom a watch has counted already, from one run to the next, without saying who they are.

The one idea: a person is known again by a keyed tag. Without the key nobody can try names; it lies in the state, which its owner alone may read.
"""

import hashlib
import hmac
import secrets
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from clinical_ser.errors import MonitoringError
from clinical_ser.strict import Strict

MOST_TAGS = 1_000_000
"""In one state: some 27 MB."""
_KEY_BYTES, _TAG_DIGITS = 32, 24
"""96 bits of HMAC-SHA256 (RFC 2104): of a million people no two share a tag, but with a probability of 1e-17."""

Kind = Literal["subject", "recording", "outcome"]
"""Of a tag: a person or a recording of a feature table, or a person whose outcome was taken; none finds another's."""


class Seen(Strict):
    """The tags of one state, and their key."""

    key: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * _KEY_BYTES}}}$")] | None = None
    """Random, hexadecimal; None before the first tag."""
    tags: Annotated[tuple[Annotated[str, Field(pattern=rf"^[0-9a-f]{{{_TAG_DIGITS}}}$")], ...], Field(max_length=MOST_TAGS)] = ()

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        if self.tags and self.key is None:
            raise ValueError("tags need their key")
        return self


class Memory:
    """Tags while a run goes on.

    Parameters
    ----------
    seen
        From the last run; None knows nobody.

    Examples
    --------
    >>> memory = Memory()
    >>> memory.add([memory.tag("subject", "s1")])
    >>> again = Memory(memory.seen)
    >>> again.has(again.tag("subject", "s1")), again.has(again.tag("subject", "s2")), again.has(again.tag("outcome", "s1"))
    (True, False, False)
    """

    def __init__(self, seen: Seen | None = None) -> None:
        kept = seen or Seen()
        self._key = bytes.fromhex(kept.key) if kept.key else b""
        self._tags = set(kept.tags)

    def tag(self, kind: Kind, text: str) -> str:
        """Return the tag of a person or a recording, 24 hexadecimal digits."""
        self._key = self._key or secrets.token_bytes(_KEY_BYTES)
        told = f"clinical-ser monitor {kind}\n{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()[:_TAG_DIGITS]

    def has(self, tag: str) -> bool:
        """Return whether it was counted."""
        return tag in self._tags

    def add(self, tags: list[str] | tuple[str, ...]) -> None:
        """Remember what was counted; MonitoringError beyond `MOST_TAGS`."""
        self._tags.update(tags)
        if len(self._tags) > MOST_TAGS:
            raise MonitoringError(
                f"The state remembers more than {MOST_TAGS:,} people and recordings; freeze a new reference, and begin anew with it."
            )

    @property
    def seen(self) -> Seen:
        """What the next run goes on from."""
        return Seen(key=self._key.hex() if self._tags else None, tags=tuple(sorted(self._tags)))
