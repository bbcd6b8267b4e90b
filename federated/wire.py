"""Messages as bytes: a header in canonical JSON, then arrays as they lie in memory.

The one idea: what was signed is what is parsed, byte for byte. There is one way to write a message, so a signature over the bytes is a signature
over the meaning, and nothing in a message can make the reader run anything.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import FederationError
from clinical_ser.models.strict_json import JsonValue, StrictJsonError, canonical_json, parse_canonical_object

MAGIC = b"clinical-ser/message/1\n"
MOST_BYTES = 1 << 30
MOST_HEADER_BYTES = 16 << 20
MOST_ARRAYS = 10_000
KINDS = {"f8": np.dtype("<f8"), "u8": np.dtype("<u8")}


@dataclass(frozen=True, eq=False)
class Message:
    """A header and named arrays (float64 or uint64)."""

    header: Mapping[str, JsonValue]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the one spelling of this message."""
        layout, parts = [], []
        for name in sorted(self.arrays):
            values = self.arrays[name]
            kind = "u8" if values.dtype == np.uint64 else "f8"
            layout.append([name, kind, list(values.shape)])
            parts.append(np.ascontiguousarray(values, dtype=KINDS[kind]).tobytes())
        header = canonical_json({"header": dict(self.header), "arrays": layout})
        return b"".join([MAGIC, struct.pack(">Q", len(header)), header, *parts])

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Message":
        """Read a message.

        Raises
        ------
        FederationError
            It is none, or not in its one spelling; the text says what is wrong and quotes nothing.
        """
        start = len(MAGIC) + 8
        if len(raw) > MOST_BYTES or not raw.startswith(MAGIC) or len(raw) < start:
            raise FederationError("A message is not of the form that this version writes.")
        (length,) = struct.unpack(">Q", raw[len(MAGIC) : start])
        if length > MOST_HEADER_BYTES or start + length > len(raw):
            raise FederationError("A message is cut short.")
        try:
            parsed = parse_canonical_object(raw[start : start + length])
            header, layout = parsed["header"], parsed["arrays"]
        except (StrictJsonError, KeyError):
            raise FederationError("A message's header is not in canonical JSON.") from None
        if set(parsed) != {"header", "arrays"} or not isinstance(header, dict) or not isinstance(layout, list) or len(layout) > MOST_ARRAYS:
            raise FederationError("A message's header is not of the form that this version writes.")
        arrays, at = {}, start + length
        for entry in layout:
            name, dtype, shape = _entry(entry)
            size = int(np.prod(shape, dtype=object)) * 8
            if size > len(raw) - at or name in arrays:
                raise FederationError("A message is cut short.")
            arrays[name] = np.frombuffer(raw, dtype, size // 8, at).reshape(shape).astype(dtype.newbyteorder("="))
            at += size
        found = cls(header, arrays)
        if at != len(raw) or found.to_bytes() != raw:
            raise FederationError("A message is not in its one spelling.")
        return found


def _entry(entry: object) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    match entry:
        case [str(name), str(kind), list(shape)] if kind in KINDS and all(type(n) is int and 0 <= n < 2**40 for n in shape) and len(shape) <= 8:
            return name, KINDS[kind], tuple(shape)
    raise FederationError("A message names an array of a kind that this version does not know.")
