"""What server and workers say to each other: frames of a JSON head and a body of bytes, over a socket.

The one idea: nothing in a frame is executed. A worker reads what strangers sent, so what it answers is read like a stranger's word: lengths are
bounded, and the head is JSON that has to fit a schema.
"""

import json
import socket
import struct
from typing import Any

from pydantic import Field, ValidationError

from clinical_ser.errors import ServerError
from clinical_ser.strict import Strict

_SIZES = struct.Struct(">IQ")
MAX_HEAD_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A result with the timeline of two hours has some megabytes."""


class Work(Strict):
    """What a worker is asked for.

    Attributes
    ----------
    kind
        A screening, or the gate alone.
    model
        The digest of its bundle.
    options
        Of `Screener.screen`.
    longest_s
        A recording that decodes to more is not screened, but said to be longer.
    decoded_s
        One that decodes to more is refused.
    counted
        Whether to answer with the cells of the recording too, after the result.
    """

    kind: str
    model: str
    options: dict[str, Any] = Field(default_factory=dict)
    longest_s: float | None = None
    decoded_s: float
    counted: bool = False


class Done(Strict):
    """What a worker answers.

    Attributes
    ----------
    kind
        `ready` (after loading its models), `result`, `quality`, `longer`, or `refused`.
    code, detail
        Why it was refused.
    seconds
        The time that it worked.
    result_bytes
        How much of the body is the result, where its cells come after it (`Cells`).
    """

    kind: str
    code: str = ""
    detail: str = ""
    seconds: float = 0.0
    result_bytes: int | None = None


def encode(head: Strict, size: int) -> bytes:
    """Return what goes before a body of so many bytes."""
    raw = head.model_dump_json().encode()
    return _SIZES.pack(len(raw), size) + raw


def sizes_of(prefix: bytes, limit: int) -> tuple[int, int]:
    """Read the lengths of head and body; ServerError where they are more than anyone would send."""
    head, body = _SIZES.unpack(prefix)
    if head > MAX_HEAD_BYTES or body > limit:
        raise ServerError("A frame between server and worker is longer than frames are.")
    return head, body


def done_of(raw: bytes) -> Done:
    """Read the head of an answer; ServerError where it is none."""
    try:
        return Done.model_validate_json(raw)
    except ValidationError:
        raise ServerError("A worker's answer is not one.") from None


PREFIX_BYTES = _SIZES.size


def receive(connection: socket.socket, limit: int) -> tuple[dict[str, Any], bytearray] | None:
    """Return the next frame, waiting for it; None where the other side is gone."""
    prefix = _exactly(connection, PREFIX_BYTES)
    if prefix is None:
        return None
    head, body = sizes_of(bytes(prefix), limit)
    told, rest = _exactly(connection, head), _exactly(connection, body)
    return None if told is None or rest is None else (json.loads(told), rest)


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    found = bytearray(size)
    view, at = memoryview(found), 0
    while at < size:
        got = connection.recv_into(view[at:], min(size - at, 1 << 20))
        if not got:
            return None
        at += got
    return found
