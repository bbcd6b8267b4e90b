"""A site's logo: a PNG or JPEG that is known by its content and whole to its end.

The one idea: what a printer would choke on in a month is refused today, when the person who chose the file is looking.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field

from clinical_ser.errors import SiteError
from clinical_ser.strict import Strict

MAX_BYTES = 200_000
MAX_SIDE = 2000
"""Pixels. A logo 40 mm wide, printed at 600 dots an inch, has 945."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SIZES = {0xC0, 0xC1, 0xC2}
"""Frames that every reader knows: baseline, extended, progressive (ITU T.81, table B.1)."""
_JPEG_SCAN = 0xDA


class Logo(Strict):
    """A picture, its kind and its size in pixels."""

    content: bytes = Field(max_length=MAX_BYTES, repr=False)
    media_type: Literal["image/png", "image/jpeg"]
    width: int = Field(ge=1, le=MAX_SIDE)
    height: int = Field(ge=1, le=MAX_SIDE)

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Make a logo from the bytes of a file; SiteError where they are neither PNG nor JPEG, end too early, or are too many."""
        if len(content) > MAX_BYTES:
            raise SiteError(f"logo is larger than {MAX_BYTES // 1000} kB.")
        media_type = _media_type(content)
        try:
            width, height = _png_size(content) if media_type == "image/png" else _jpeg_size(content)
        except (struct.error, ValueError):
            raise SiteError("logo is damaged, ends too early, or is of a kind that few programs read; save it again as PNG.") from None
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise SiteError(f"logo has {width:,} × {height:,} pixels; a side has 1 to {MAX_SIDE:,}.")
        return cls(content=content, media_type=media_type, width=width, height=height)


def _media_type(content: bytes) -> Literal["image/png", "image/jpeg"]:
    if content.startswith(_PNG):
        return "image/png"
    if content.startswith(_JPEG):
        return "image/jpeg"
    raise SiteError("logo is neither a PNG nor a JPEG, whatever its name ends in.")


def _png_size(content: bytes) -> tuple[int, int]:
    """Return width and height; ValueError or struct.error where a chunk is damaged, or an obligatory one is missing."""
    chunks = dict(_png_chunks(content))
    if not {b"IHDR", b"IDAT", b"IEND"} <= chunks.keys():
        raise ValueError("a chunk is missing")
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    return width, height


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of each chunk (ISO 15948, 5.3) up to the one that ends the picture."""
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, at)
        data = content[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, at + 8 + length)
        if checksum != zlib.crc32(kind + data):
            raise ValueError("a chunk is damaged")
        yield kind, data
        at += 12 + length


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Return width and height from the frame's header (ITU T.81, B.2.2); ValueError or struct.error where it, or the end, is missing."""
    at, size = 2, (0, 0)
    while True:
        start, marker, length = struct.unpack_from(">BBH", content, at)
        if start != 0xFF:
            raise ValueError("no marker where one is due")
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            size = (width, height)
        if marker == _JPEG_SCAN:
            break
        at += 1 if marker == 0xFF else 2 + length  # any number of fill bytes may stand before a marker
    if size == (0, 0) or _JPEG_END not in content[at:]:
        raise ValueError("no frame, or no end")
    return size
