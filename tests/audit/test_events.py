import json
from datetime import UTC, datetime

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.events import (
    PAYLOADS,
    TIME,
    AccessDenied,
    Actor,
    Event,
    Flag,
    ModelChange,
    Outcome,
    Purpose,
    Review,
    Role,
    Signed,
    canonical,
    parse_payload,
    plain_json,
    time_in,
)
from clinical_ser.errors import AuditFormatError

ACTOR = Actor(id="dr-canary", role=Role.CLINICIAN)
REVIEW = Review(actor=ACTOR, result="ab" * 32, decision="overridden", reason="heard otherwise")
LEAF = {
    "schema": "clinical-ser/audit-event/1",
    "id": "0" * 32,
    "kind": "review",
    "version": 1,
    "time": "2026-03-01T09:30:00.000123Z",
    "monotonic_ns": 12,
    "run": "1" * 32,
    "outcome": "success",
    "role": "clinician",
    "purpose": "TREAT",
    "software": "clinical-ser 0.1.0",
    "model": None,
    "commitment": "2" * 64,
    "subject_tag": None,
    "supersedes": None,
    "flags": ["risk_signal"],
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_the_quick_spelling_is_that_of_rfc_8785(value):
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value", [1e-5, 1e-7, 1e16, 1.0, -0.0, 1e21, 123456789012345.6, 0.1, {"a": [1.0, 1e300]}, ["12:5e3", ",1.0,"], {"\ue000": 1, "\U0001f600": 2}]
)
def test_numbers_and_keys_that_python_spells_otherwise_are_spelled_right(value):
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800", {"a": {1, 2}}, {1: 2, "a": 3}])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(AuditFormatError, match="no canonical JSON"):
        canonical(value)


def test_a_leaf_is_read_back():
    event = Event.parse(plain_json(LEAF))
    assert (event.kind, event.role, event.purpose, event.outcome, event.flags) == (
        "review",
        Role.CLINICIAN,
        Purpose.TREATMENT,
        Outcome.SUCCESS,
        (Flag.RISK_SIGNAL,),
    )
    assert event.moment == datetime(2026, 3, 1, 9, 30, 0, 123, tzinfo=UTC)
    assert event.moment.strftime(TIME) == time_in(plain_json(LEAF)) == LEAF["time"]


@pytest.mark.parametrize(
    "spelling",
    [
        json.dumps(LEAF).encode(),
        plain_json(LEAF) + b"\n",
        plain_json(LEAF).replace(b'"kind"', b'"kin\\u0064"'),
        plain_json(LEAF).replace(b'"version":1', b'"version":1,"version":1'),
        plain_json(LEAF).replace(b'"version":1', b'"version":1.0'),
        plain_json(dict(reversed(LEAF.items()))).replace(b'"commitment"', b' "commitment"'),
    ],
)
def test_a_leaf_in_another_spelling_is_refused(spelling):
    with pytest.raises(AuditFormatError):
        Event.parse(spelling)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "clinical-ser/audit-event/2"),
        ("kind", "unheard_of"),
        ("time", "2026-03-01T09:30:00Z"),
        ("time", 5),
        ("outcome", "fine"),
        ("role", "boss"),
        ("monotonic_ns", -1),
        ("monotonic_ns", True),
        ("version", 0),
        ("commitment", "2" * 63),
        ("id", "g" * 32),
        ("flags", ["late"]),
        ("more", 1),
        ("model", ""),
    ],
)
def test_a_leaf_that_does_not_fit_the_schema_is_refused_and_not_quoted(field, value):
    with pytest.raises(AuditFormatError) as refused:
        Event.parse(plain_json({**LEAF, field: value}))
    assert "unheard_of" not in str(refused.value)
    assert "boss" not in str(refused.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"a":NaN}'])
def test_what_is_no_event_at_all_is_refused(raw):
    with pytest.raises(AuditFormatError):
        Event.parse(raw)
    with pytest.raises(AuditFormatError):
        parse_payload(raw)


def test_a_payload_is_read_back_as_what_it_was():
    signed = REVIEW.model_copy(update={"signature": Signed(name="Dr C", time=datetime(2026, 1, 1, tzinfo=UTC), meaning="review")})
    for payload in (
        REVIEW,
        signed,
        ModelChange(actor=ACTOR, action="activated", name="m", old=None, new="a" * 64, metrics={"auroc": 1.0, "brier": 1e-5}),
    ):
        assert parse_payload(payload.canonical()) == payload
        assert payload.canonical() == rfc8785.dumps(json.loads(payload.canonical()))


def test_a_number_that_is_spelled_without_a_point_is_read_back():
    """RFC 8785 writes 1e16 as 10000000000000000, which no safe integer is."""
    payload = ModelChange(actor=ACTOR, action="activated", name="m", old=None, new="a" * 64, metrics={"e": 1e16, "f": 2.5e20, "g": 1e22})
    assert parse_payload(payload.canonical()) == payload


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "unheard_of"},
        {"kind": 1},
        {"version": 2},
        {"version": True},
        {"decision": "maybe"},
        {"result": "short"},
        {"extra": 1},
        {"actor": {"id": "", "role": "clinician"}},
        {"reason": "x" * 10_001},
    ],
)
def test_a_payload_that_does_not_fit_is_refused_and_not_quoted(change):
    raw = canonical({**json.loads(REVIEW.canonical()), **change})
    with pytest.raises(AuditFormatError) as refused:
        parse_payload(raw)
    assert "canary" not in str(refused.value)


def test_a_payload_in_another_spelling_is_refused():
    with pytest.raises(AuditFormatError, match="canonical form"):
        parse_payload(json.dumps(json.loads(REVIEW.canonical())).encode())


def test_every_kind_is_registered_under_its_own_name():
    assert all(model.kind == kind for kind, model in PAYLOADS.items())
    assert len(PAYLOADS) == 16


def test_overrides_refused_models_and_alarms_are_flagged():
    assert REVIEW.flags() == (Flag.RISK_SIGNAL,)
    assert REVIEW.model_copy(update={"decision": "agreed"}).flags() == ()
    assert ModelChange(actor=ACTOR, action="rolled_back", name="m", old="a" * 64, new="b" * 64).flags() == (Flag.RISK_SIGNAL,)
    assert AccessDenied(actor=ACTOR, asked_for="/v1", reason="forbidden").flags() == ()
