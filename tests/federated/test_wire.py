"""Messages have one spelling, and nothing that is not a message is read as one."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_ser.errors import FederationError
from federated.wire import MAGIC, Message

ARRAYS = {
    "words": np.array([0, 1, 2**64 - 1], np.uint64),
    "numbers": np.array([[0.1, -0.0, 1e300], [np.pi, 5e-324, -1.0]]),
    "nothing": np.zeros((0, 3)),
    "one": np.array(2.5),
}
HEADER = {"kind": "sum", "step": 3, "sites": ["a", "b"], "options": {"folds": 5, "exact": True, "word": "é"}}


def written(header: bytes, arrays: bytes = b"") -> bytes:
    """Return a message around a header that is spelled by hand."""
    return MAGIC + struct.pack(">Q", len(header)) + header + arrays


def test_what_was_written_is_read_bit_for_bit():
    found = Message.from_bytes(Message(HEADER, ARRAYS).to_bytes())
    assert found.header == HEADER
    assert set(found.arrays) == set(ARRAYS)
    for name, values in ARRAYS.items():
        assert found.arrays[name].shape == values.shape
        assert found.arrays[name].tobytes() == values.tobytes()


def test_the_order_in_which_a_message_is_put_together_does_not_matter():
    turned = Message(dict(reversed(HEADER.items())), dict(reversed(ARRAYS.items())))
    assert turned.to_bytes() == Message(HEADER, ARRAYS).to_bytes()


def test_arrays_of_another_memory_order_are_written_by_value():
    values = np.arange(12.0).reshape(3, 4)
    assert Message({}, {"x": np.asfortranarray(values)}).to_bytes() == Message({}, {"x": values}).to_bytes()
    assert Message({}, {"x": values.astype(">f8")}).to_bytes() == Message({}, {"x": values}).to_bytes()


def test_a_message_that_is_cut_anywhere_is_refused():
    raw = Message(HEADER, ARRAYS).to_bytes()
    for length in range(len(raw)):
        with pytest.raises(FederationError):
            Message.from_bytes(raw[:length])


def test_a_message_with_something_behind_it_is_refused():
    with pytest.raises(FederationError):
        Message.from_bytes(Message(HEADER, ARRAYS).to_bytes() + b"\0")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04\x95",
        b"{}",
        written(b"{}\n"),
        written(b'{"arrays":[],"header":{},"more":1}\n'),
        written(b'{"arrays":[],"header":[]}\n'),
        written(b'{"arrays":{},"header":{}}\n'),
        written(b'{"arrays": [],"header":{}}\n'),
        written(b'{"header":{},"arrays":[]}\n'),
        written(b'{"arrays":[],"header":{"a":1,"a":1}}\n'),
        written(b'{"arrays":[],"header":{"a":NaN}}\n'),
        written(b'{"arrays":[["x","f4",[1]]],"header":{}}\n', bytes(4)),
        written(b'{"arrays":[["x","O",[1]]],"header":{}}\n', bytes(8)),
        written(b'{"arrays":[["x","f8",[-1]]],"header":{}}\n', bytes(8)),
        written(b'{"arrays":[["x","f8",[true]]],"header":{}}\n', bytes(8)),
        written(b'{"arrays":[["x","f8",[1099511627775,1099511627775,1099511627775]]],"header":{}}\n', bytes(8)),
        written(b'{"arrays":[["x","f8",[0,1,1,1,1,1,1,1,1]]],"header":{}}\n'),
        written(b'{"arrays":[["x","f8",[1]],["x","f8",[1]]],"header":{}}\n', bytes(16)),
        written(b'{"arrays":[["y","f8",[1]],["x","f8",[1]]],"header":{}}\n', bytes(16)),
        MAGIC + struct.pack(">Q", 2**63) + b"{}",
        written(b'{"arrays":[],"header":' + b"[" * 5000 + b"]" * 5000 + b"}\n"),
    ],
    ids=lambda raw: repr(raw[31:75]),
)
def test_what_is_no_message_is_refused_without_being_quoted(raw):
    with pytest.raises(FederationError) as refused:
        Message.from_bytes(raw)
    assert str(refused.value).startswith("A message")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_gives_another_message_or_none(place, value):
    raw = bytearray(Message(HEADER, ARRAYS).to_bytes())
    place %= len(raw)
    if raw[place] == value:
        return
    raw[place] = value
    try:
        found = Message.from_bytes(bytes(raw))
    except FederationError:
        return
    assert found.to_bytes() == bytes(raw)
