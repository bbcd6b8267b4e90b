import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.models.strict_json import MAX_DEPTH, StrictJsonError, canonical_json, parse_canonical_object, parse_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def typed(value: object) -> object:
    """Tell 1, 1.0, True and -0.0 apart, which == does not."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return (type(value), repr(value))


@given(VALUES)
def test_a_value_comes_back_equal_and_has_one_spelling(value):
    raw = canonical_json(value)
    back = parse_json(raw)
    assert typed(back) == typed(value)
    assert canonical_json(back) == raw
    assert raw.count(b"\n") == 1


@given(st.dictionaries(TEXT, VALUES, max_size=5), st.randoms())
def test_the_order_of_keys_leaves_no_trace(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_any_other_spelling_is_refused_where_one_is_asked_for(value):
    raw = canonical_json(value)
    assert parse_canonical_object(raw) == value
    for other in (raw[:-1], raw + b"\n", b" " + raw, json.dumps(value, indent=1).encode()):
        with pytest.raises(StrictJsonError):
            parse_canonical_object(other)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:0123456789.eE+-\\untrfals ', max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_a_typed_error(raw):
    try:
        value = parse_json(raw)
    except StrictJsonError:
        return
    assert typed(parse_json(canonical_json(value))) == typed(value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a":1,"a":2}', "same key twice"),
        (b'[{"a":{"b":1,"c":2,"b":1}}]', "same key twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e999]", "finite"),
        (b'["\\ud800"]', "surrogate"),
        (b'["\xed\xa0\x80"]', "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a":1}{"a":2}', "Extra data"),
        (b"", "Expecting value"),
        (b"[" + b"9" * 5000 + b"]", "limit"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested deeper"),
    ],
    ids=[
        "twice",
        "twice-inside",
        "nan",
        "infinity",
        "overflow",
        "half-pair",
        "half-pair-raw",
        "bom",
        "two-values",
        "empty",
        "digits",
        "bomb",
        "too-deep",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(raw, reason):
    with pytest.raises(StrictJsonError, match=reason):
        parse_json(raw)


def test_the_deepest_allowed_nesting_is_read():
    raw = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert canonical_json(parse_json(raw)) == raw + b"\n"


def test_whole_surrogate_pairs_are_text():
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("value", [math.nan, [math.inf], {1: "a"}, {"a": {None: 1}}, "\ud800"], ids=repr)
def test_values_without_a_spelling_are_not_written(value):
    with pytest.raises(StrictJsonError):
        canonical_json(value)


def test_the_spelling_itself():
    assert (
        canonical_json({"é": (1, 1.0, -0.0, 1e22, True, None), "Z": {}, "a": "\n/\x7f"})
        == '{"Z":{},"a":"\\n/\x7f","é":[1,1.0,-0.0,1e+22,true,null]}\n'.encode()
    )
