"""How a recording comes in: its bytes as the body, and what is said of it in a header or in the body's first line.

The one idea: the body is read once, counted, hashed and, where it is long, encrypted onto the disk while it comes; no parser of parts is needed, and
none can be attacked.
"""

import time
from asyncio import timeout, to_thread
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from clinical_ser.api.configuration import Limits
from clinical_ser.api.limits import unavailable
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import CLOSE, check_announced, gone, too_large, too_slow
from clinical_ser.api.spool import Spool, SpoolError, SpoolWriter
from clinical_ser.api.store import Metadata
from clinical_ser.models.strict_json import StrictJsonError, parse_json
from clinical_ser.strict import Strict

FRAMED = "application/vnd.clinical-ser.screening"
HEADER = "Screening-Metadata"
MAX_METADATA_BYTES = 8 * 1024
_GRACE_S = 10.0
_RAW = "application/octet-stream"
M = TypeVar("M", bound=Strict)


@dataclass
class Received:
    """A recording as it was sent.

    Attributes
    ----------
    metadata
        What was said of it, as JSON.
    digest, size
        SHA-256 of the recording's bytes, and how many.
    parts
        The bytes, where they fit into memory; otherwise they are in `spooled`.
    """

    metadata: bytes
    digest: str
    size: int
    parts: list[bytes] = field(repr=False)
    spooled: SpoolWriter | None = None

    def abandon(self) -> None:
        """Forget what was received."""
        self.parts.clear()
        if self.spooled:
            self.spooled.abandon()


def parsed(model: type[M], raw: bytes, what: str) -> M:
    """Read JSON that was sent.

    Raises
    ------
    Problem
        400 where it is no JSON, or one that two readers could read differently; 422 where it does not fit: the field, and nothing of its content.
    """
    try:
        parse_json(raw)
    except StrictJsonError:
        raise Problem(HTTPStatus.BAD_REQUEST, "not-json", f"{what} is not one JSON value in UTF-8, or has a key twice.") from None
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # A field that is not known was named by the client.
        known = first["type"] != "extra_forbidden"
        where = ".".join(map(str, first["loc"])) if known else "a field that is not known"
        detail = f"{what} does not fit: {where or 'as a whole'}: {first['msg'].lower()}."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "does-not-fit", detail) from None


def metadata_of(raw: bytes) -> Metadata:
    """Read what was said of a recording; Problem as for `parsed`."""
    return parsed(Metadata, raw, "The metadata")


async def receive(request: Request, limits: Limits, spool: Spool, screening: str) -> Received:
    """Read a recording and what was said of it.

    Raises
    ------
    Problem
        400, 408, 411, 413, 415 or 503.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    framed = media == FRAMED
    if not (framed or media == _RAW or media.startswith("audio/")):
        takes = f"audio/*, {_RAW} (with the header {HEADER}) and {FRAMED} are taken"
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", f"The Content-Type is none that is taken here: {takes}.", {"Connection": "close"}
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "encoding", "A recording is sent as it is, without Content-Encoding.", {"Connection": "close"}
        )
    check_announced(request, limits.body_bytes)
    told = b"" if framed else _header(request)
    reader = _Reader(limits, spool, screening, None if framed else told)
    try:
        await reader.read(request)
        return reader.received()
    except BaseException:
        reader.abandon()
        raise


def _header(request: Request) -> bytes:
    values = request.headers.getlist(HEADER)
    if len(values) != 1 or len(values[0]) > MAX_METADATA_BYTES or not values[0].isascii():
        detail = f"A recording that is sent bare comes with one header {HEADER}: JSON in ASCII (others as \\uXXXX), up to {MAX_METADATA_BYTES} bytes."
        raise Problem(HTTPStatus.BAD_REQUEST, "no-metadata", detail, CLOSE)
    return values[0].encode()


class _Reader:
    """Reads one body."""

    def __init__(self, limits: Limits, spool: Spool, screening: str, metadata: bytes | None) -> None:
        self._limits, self._spool, self._screening = limits, spool, screening
        self._metadata = metadata
        self._line = bytearray()
        self._digest = sha256()
        self._size = self._total = 0
        self._parts: list[bytes] = []
        self._writer: SpoolWriter | None = None

    async def read(self, request: Request) -> None:
        """Read all of it."""
        started = time.monotonic()
        try:
            stream = request.stream().__aiter__()
            while True:
                spent = time.monotonic() - started
                async with timeout(self._left_s(spent)):
                    chunk = await anext(stream, None)
                if chunk is None:
                    break
                await self._take(chunk)
        except TimeoutError:
            raise too_slow() from None
        except ClientDisconnect:
            raise gone() from None

    def _left_s(self, spent_s: float) -> float:
        """Return how long the next bytes may take: no body takes longer than its whole time, nor comes slower than the slowest."""
        whole = self._limits.body_timeout_s - spent_s
        slowest = self._limits.slowest_bytes_per_s
        return min(whole, _GRACE_S + self._total / slowest - spent_s) if slowest else whole

    async def _take(self, chunk: bytes) -> None:
        self._total += len(chunk)
        if self._total > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)
        if self._metadata is None:
            chunk = self._first_line(chunk)
        if not chunk:
            return
        self._digest.update(chunk)
        self._size += len(chunk)
        if self._writer is None:
            self._parts.append(chunk)
            if self._size > self._limits.at_once_bytes:
                await self._to_disk()
        else:
            await to_thread(_write, self._writer, [chunk])

    async def _to_disk(self) -> None:
        try:
            self._writer = await to_thread(self._spool.begin, self._screening)
        except SpoolError:
            raise no_room() from None
        await to_thread(_write, self._writer, self._parts)
        self._parts = []

    def _first_line(self, chunk: bytes) -> bytes:
        line, found, rest = chunk.partition(b"\n")
        self._line += line
        if len(self._line) > MAX_METADATA_BYTES:
            raise Problem(HTTPStatus.BAD_REQUEST, "no-metadata", "The body's first line is too long for metadata.", CLOSE)
        if found:
            self._metadata = bytes(self._line)
        return rest

    def received(self) -> Received:
        """Return what was read; Problem where there is no recording in it."""
        if self._metadata is None:
            raise Problem(HTTPStatus.BAD_REQUEST, "no-metadata", f"A body of {FRAMED} is one line of JSON, then the recording.")
        if not self._size:
            raise Problem(HTTPStatus.BAD_REQUEST, "empty", "The body holds no recording.")
        return Received(self._metadata, self._digest.hexdigest(), self._size, self._parts, self._writer)

    def abandon(self) -> None:
        """Forget what was read."""
        self._parts = []
        if self._writer:
            self._writer.abandon()


def _write(writer: SpoolWriter, parts: Sequence[bytes]) -> None:
    try:
        for part in parts:
            writer.write(part)
    except SpoolError:
        raise no_room() from None


def no_room() -> Problem:
    """Return the answer where the disk has no room for a recording."""
    return unavailable("no-room", "The server has no room for this recording now; nothing was kept of it.", 60)
