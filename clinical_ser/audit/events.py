"""What is recorded: typed, versioned events, each in two parts.

The one idea: the leaf of the tree (`Event`) says what kind of thing happened, when and with which model, and holds nothing of a person; the payload
says the rest, and lies beside the tree, sealed. The leaf is bound to its payload by a salted commitment, so that destroying payload and salt leaves
nothing to guess from (EDPB Guidelines 02/2025 on blockchain technologies: a bare hash of personal data is personal data).
"""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

import rfc8785
from pydantic import AfterValidator, Field, ValidationError

from clinical_ser.audit.ranges import Ranges
from clinical_ser.errors import AuditFormatError
from clinical_ser.strict import Strict

SCHEMA = "clinical-ser/audit-event/1"

TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
"""How a leaf says when, always as long, so that text compares as time does."""
_TIME_KEY = b'"time":"'
_TIME_LENGTH = len("2026-01-01T00:00:00.000000Z")

MAX_LEAF_BYTES = 65_535
"""c2sp.org/tlog-tiles puts the length of an entry into 16 bits."""
MAX_PAYLOAD_BYTES = 1 << 20

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes as 64 hex digits: a SHA-256 digest or an HMAC."""
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ShortText = Annotated[str, Field(min_length=1, max_length=500)]
Text = Annotated[str, Field(max_length=10_000)]

RECORD = "clinical-ser:result:"
"""A result's record, as reports print it: this and the result's digest."""
MODEL = "clinical-ser:model:"
"""What the changes of a model are found by: this and its name."""


class Outcome(StrEnum):
    """How it ended; FHIR's AuditEvent.outcome has the same three (0, 4, 8)."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILED = "failed"


class Role(StrEnum):
    """In what role someone, or some program, acted."""

    CLINICIAN = "clinician"
    COMPLIANCE = "compliance"
    OPERATOR = "operator"
    SERVICE = "service"
    NODE = "node"
    SUBJECT = "subject"


class Purpose(StrEnum):
    """Why: codes of HL7's v3-ActReason that are in its PurposeOfUse value set."""

    TREATMENT = "TREAT"
    OPERATIONS = "HOPERAT"
    PAYMENT = "HPAYMT"
    RESEARCH = "HRESCH"
    PATIENT_REQUEST = "PATRQT"
    PUBLIC_HEALTH = "PUBHLTH"
    LEGAL = "HLEGAL"
    SYSTEM = "HSYSADMIN"
    COMPLIANCE = "HCOMPL"


class Flag(StrEnum):
    """What a reader of the log should look at."""

    CLOCK_ANOMALY = "clock_anomaly"
    """The wall clock went back, or ran otherwise than the monotonic clock; the sequence in the log is what counts."""
    RISK_SIGNAL = "risk_signal"
    """May be a risk or a substantial change in the sense of AI Act Art. 12(2)(a)."""


class Actor(Strict):
    """Who acted: an account, a client or a program, as the site names it."""

    id: ShortText
    role: Role
    name: ShortText | None = None
    client: ShortText | None = None
    """The program or the network address that asked."""


class Signed(Strict):
    """An electronic signature's manifestation: the printed name, when, and what signing meant (21 CFR 11.50(a))."""

    name: ShortText
    time: datetime
    meaning: Literal["review", "approval", "responsibility", "authorship"]


class Payload(Strict):
    """What every event's payload has."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    actor: Actor

    def flags(self) -> tuple[Flag, ...]:
        """Return what the payload itself gives reason to flag."""
        return ()

    def records(self) -> tuple[str, ...]:
        """Return what the log finds it by, besides its subject: the record of a result, as reports print it, or the name of a model."""
        return ()

    def canonical(self) -> bytes:
        """Return the payload as canonical JSON (RFC 8785), kind and version included."""
        return canonical({"kind": self.kind, "version": self.version, **self.model_dump(mode="json")})


def _as_ranges(text: str) -> str:
    try:
        return str(Ranges.parse(text))
    except AuditFormatError as error:
        raise ValueError(str(error)) from None


class FamilyEffect(Strict):
    """What one family of features did to the probability, in points of percent."""

    family: ShortText
    points: float
    stable: bool


class Check(Strict):
    """A check of the recording's quality that did not pass."""

    name: ShortText
    value: float | None
    verdict: Literal["warn", "fail"]


class _AboutResult(Payload):
    result: Hex32
    """The result's digest (`ScreeningResult.digest`)."""

    def records(self) -> tuple[str, ...]:
        """Return the result it is about."""
        return (RECORD + self.result,)


class Inference(_AboutResult):
    """An answer was given. The result itself stays with whoever asked; this is what answers for it."""

    kind: ClassVar[str] = "inference"
    recording: Hex32
    duration_s: float
    task: ShortText
    status: Literal["flagged", "not_flagged", "classified", "indeterminate"]
    label: ShortText | None
    probability: float | None
    low: float | None
    high: float | None
    """The interval of the probability (the model's sampling error), None with it."""
    prevalence: float | None
    threshold: float | None
    prediction_set: tuple[ShortText, ...]
    families: tuple[FamilyEffect, ...]
    checks: tuple[Check, ...]
    model_name: ShortText
    model_version: ShortText
    simulated: bool
    encoders: dict[str, str]
    notice: ShortText | None = None
    """The version of the notice that the person was given before (AI Act Art. 50(3))."""


class QualityRejection(_AboutResult):
    """A recording was refused, with no score."""

    kind: ClassVar[str] = "quality_rejection"
    recording: Hex32
    duration_s: float
    task: ShortText
    checks: tuple[Check, ...]
    model_name: ShortText
    model_version: ShortText


class ReportAction(_AboutResult):
    """A report was shown, written to a file or sent, or replaced by another."""

    kind: ClassVar[str] = "report"
    action: Literal["viewed", "exported", "amended"]
    form: Literal["html", "pdf", "json", "svg", "terminal", "fhir"]
    reason: Text | None = None
    """Why it was amended (21 CFR 11.10(e): a change does not obscure what was there); the leaf names what it supersedes."""


class Review(_AboutResult):
    """A clinician looked at an answer and decided (AI Act Art. 14, GDPR Art. 22)."""

    kind: ClassVar[str] = "review"
    decision: Literal["agreed", "overridden", "undecided"]
    reason: Text
    signature: Signed | None = None

    def flags(self) -> tuple[Flag, ...]:
        """Flag what a clinician decided otherwise."""
        return (Flag.RISK_SIGNAL,) if self.decision == "overridden" else ()


class Disclosure(Payload):
    """Health information was given to someone outside (45 CFR 164.528(b)(2): date, recipient, description, purpose)."""

    kind: ClassVar[str] = "disclosure"
    result: Hex32 | None
    recipient: ShortText
    recipient_address: ShortText | None
    description: ShortText
    purpose_text: ShortText
    accountable: bool
    """False for treatment, payment, operations and the other exceptions of 164.528(a)(1), which an accounting leaves out."""

    def records(self) -> tuple[str, ...]:
        """Return the result that was disclosed, if it was one."""
        return (RECORD + self.result,) if self.result else ()


class Notice(Payload):
    """A person was told that an emotion recognition or AI system will be used (AI Act Art. 50(3))."""

    kind: ClassVar[str] = "notice"
    text_version: ShortText


class ModelChange(Payload):
    """Which model answers has changed, or was kept from changing."""

    kind: ClassVar[str] = "model"
    action: Literal["activated", "refused", "rolled_back"]
    name: ShortText
    old: Hex32 | None
    new: Hex32 | None
    """Digests of the bundles; the new one is unknown where a bundle could not even be read."""
    plan: ShortText | None = None
    """The predetermined change control plan and its section, where one allowed this."""
    protocol: ShortText | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    approver: ShortText | None = None
    reason: Text | None = None

    def records(self) -> tuple[str, ...]:
        """Return the model's name."""
        return (MODEL + self.name,)

    def flags(self) -> tuple[Flag, ...]:
        """Flag a model that was kept out, or taken back."""
        return () if self.action == "activated" else (Flag.RISK_SIGNAL,)


class Configuration(Payload):
    """A setting was changed: keys, witnesses, thresholds, retention, who may do what."""

    kind: ClassVar[str] = "configuration"
    setting: ShortText
    old: Text | None
    new: Text | None


class AccessDenied(Payload):
    """Someone asked for what they may not have, or could not say who they are."""

    kind: ClassVar[str] = "access_denied"
    asked_for: ShortText
    reason: Literal["unauthenticated", "forbidden", "expired", "replayed", "rate_limited"]


class Submission(Payload):
    """A recording was sent to be screened later, or what was sent came to no answer: between the two lies the answer's own record."""

    kind: ClassVar[str] = "submission"
    screening: Hex16
    """The name by which whoever sent it asks for the answer."""
    action: Literal["accepted", "failed"]
    body: Hex32
    """SHA-256 of the bytes that were sent."""
    model_name: ShortText
    reason: ShortText | None = None
    """The code of a failure."""


class FederatedRound(Payload):
    """A round of training across sites, as one party saw it."""

    kind: ClassVar[str] = "federated_round"
    federation: ShortText
    round: int = Field(ge=0)
    node: ShortText
    model_in: Hex32 | None
    update: Hex32 | None
    """Digest of what left the site."""
    epsilon: float | None = Field(default=None, ge=0)
    """Differential privacy spent so far, None where there is none."""
    subjects_bucket: ShortText
    """About how many subjects took part, as a range."""
    action: Literal["joined", "released", "refused", "received"] = "released"
    asked_for: ShortText | None = None
    """The statistics' names."""
    reason: ShortText | None = None
    """The code of a refusal."""
    witnessed: Hex32 | None = None
    """Root of the other party's log as it showed it: the two logs witness each other."""
    witnessed_size: int | None = Field(default=None, ge=0)
    ledger: Hex32 | None = None
    """Digest of the privacy ledger's line that paid for it."""


class DriftAlarm(Payload):
    """Monitoring found that recordings, answers or performance have moved."""

    kind: ClassVar[str] = "drift_alarm"
    what: ShortText
    statistic: ShortText
    value: float
    limit: float
    since: datetime

    def flags(self) -> tuple[Flag, ...]:
        """Flag every alarm."""
        return (Flag.RISK_SIGNAL,)


class Erasure(Payload):
    """Payloads, salts and keys were destroyed: the tombstone. Refused under a legal hold, with the event's outcome saying so."""

    kind: ClassVar[str] = "erasure"
    erased: Annotated[Text, AfterValidator(_as_ranges)]
    """Which records, as ranges (`3,7-9`); empty when refused."""
    reason: Text
    basis: ShortText
    """The clause it rests on, as GDPR Art. 17(1)(a)."""


class LegalHold(Payload):
    """Records of a subject must not be erased, or may be again."""

    kind: ClassVar[str] = "legal_hold"
    action: Literal["placed", "released"]
    reason: Text
    authority: ShortText
    releases: int | None = Field(default=None, ge=0)
    """Index of the hold that is released; None for all that there are."""


class AuditExport(Payload):
    """Something of this log was exported or handed out."""

    kind: ClassVar[str] = "audit_export"
    form: ShortText
    first: int | None
    last: int | None
    digest: Hex32 | None
    """Of the exported file, None for a folder with a manifest."""
    recipient: ShortText | None = None


class Service(Payload):
    """The system, or its log, started or stopped (AI Act Art. 12: the period of use)."""

    kind: ClassVar[str] = "service"
    action: Literal["started", "stopped", "recovered"]
    component: ShortText
    detail: Text | None = None


AnyPayload = (
    Inference
    | QualityRejection
    | ReportAction
    | Review
    | Disclosure
    | Notice
    | ModelChange
    | Configuration
    | AccessDenied
    | Submission
    | FederatedRound
    | DriftAlarm
    | Erasure
    | LegalHold
    | AuditExport
    | Service
)
PAYLOADS: dict[str, type[Payload]] = {
    each.kind: each
    for each in (
        Inference,
        QualityRejection,
        ReportAction,
        Review,
        Disclosure,
        Notice,
        ModelChange,
        Configuration,
        AccessDenied,
        Submission,
        FederatedRound,
        DriftAlarm,
        Erasure,
        LegalHold,
        AuditExport,
        Service,
    )
}


class Event(Strict):
    """A leaf of the tree: what anyone may see of an event. Its place in the tree is its sequence number, and the only order there is."""

    schema_id: Literal["clinical-ser/audit-event/1"] = Field(default="clinical-ser/audit-event/1", alias="schema")
    id: Hex16
    """Random; the same in every copy and export."""
    kind: str
    version: int = Field(ge=1)
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
    """UTC, by the writer's clock."""
    monotonic_ns: int = Field(ge=0)
    """The writer's monotonic clock, to be compared within one `run`."""
    run: Hex16
    """The writer's process, a random name."""
    outcome: Outcome
    role: Role
    purpose: Purpose
    software: ShortText
    model: Hex32 | None
    """Digest of the bundle it is about."""
    commitment: Hex32
    """SHA-256(salt || payload)."""
    subject_tag: Hex32 | None
    """HMAC-SHA256(the subject's key, the event's id): another one in every event, and only whoever has the key sees that two belong together."""
    supersedes: int | None = Field(default=None, ge=0)
    """Index of the record that this one amends."""
    flags: tuple[Flag, ...] = ()

    @property
    def moment(self) -> datetime:
        """`time` as a moment."""
        return datetime.strptime(self.time, TIME).replace(tzinfo=UTC)

    @classmethod
    def parse(cls, leaf: bytes) -> Self:
        """Read a leaf; AuditFormatError unless it is an event of this version in its one canonical spelling."""
        try:
            event = cls.model_validate_json(leaf, strict=True)
            spelled = plain_json(json.loads(leaf))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "as a whole"
            raise AuditFormatError(f"A leaf is no event of schema {SCHEMA!r}: {where} does not fit.") from None
        except (ValueError, RecursionError):
            spelled = b""
        # One comparison refuses every second spelling: white space, another order, escapes, a key twice.
        if spelled != leaf:
            raise AuditFormatError("A leaf is not in canonical form (RFC 8785), so it is not what a log of ours wrote.")
        if event.kind not in PAYLOADS:
            raise AuditFormatError(f"A leaf is of a kind this version does not know; it knows {', '.join(sorted(PAYLOADS))}.")
        return event


def time_in(leaf: bytes) -> str:
    """Return the time that a leaf says, without reading the rest of it."""
    at = leaf.index(_TIME_KEY) + len(_TIME_KEY)
    return leaf[at : at + _TIME_LENGTH].decode("ascii", errors="replace")


def parse_payload(raw: bytes) -> Payload:
    """Read a payload; AuditFormatError unless it is of a kind and version that this version knows, in its one spelling."""
    try:
        # Whole numbers beyond 2**53 are floats that RFC 8785 spells without a point.
        value = json.loads(raw, parse_int=lambda digits: number if abs(number := int(digits)) <= _LARGEST_SAFE else float(digits))
        spelled = canonical(value)
    except (ValueError, RecursionError, AuditFormatError):
        value, spelled = None, b""
    if not isinstance(value, dict) or spelled != raw:
        raise AuditFormatError("A payload is not a JSON object in canonical form (RFC 8785), so it is not what a log of ours wrote.")
    kind, version = value.pop("kind", None), value.pop("version", None)
    model = PAYLOADS.get(kind) if isinstance(kind, str) else None
    if model is None or version != model.version or isinstance(version, bool):
        raise AuditFormatError(f"A payload is of a kind or version this version does not know; it knows {', '.join(sorted(PAYLOADS))}.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "as a whole"
        raise AuditFormatError(f"A payload of kind {kind!r} does not fit its schema: {where}.") from None


_ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def plain_json(value: Any) -> bytes:
    """Return canonical JSON of a value that is known to hold nothing but text, truth values, null, small integers and keys in ASCII."""
    return _ENCODE(value).encode()


_LARGEST_SAFE = 2**53 - 1


def canonical(value: Any) -> bytes:
    """Return a JSON value in RFC 8785's one spelling; AuditFormatError where it has none.

    For most values Python's own encoder spells the same, some five times faster; a property test holds the two against each other.
    """
    try:
        if _is_spelled_alike(value):
            text = _ENCODE(value)
            # Keys are sorted by UTF-16 units there and by code points here, which differ beyond the Basic Multilingual Plane.
            if text.isascii() or max(text) <= "\uffff":
                return text.encode()
        return rfc8785.dumps(value)
    except (ValueError, RecursionError):
        raise AuditFormatError("A value has no canonical JSON: NaN, infinity, half a character, or an integer beyond 2**53.") from None


def _is_spelled_alike(value: Any) -> bool:
    """Tell whether Python and ECMAScript write every number in a value the same: no exponent, and a fraction where it is a float."""
    kind = type(value)
    if kind is dict:
        for key, item in value.items():  # noqa: SIM110  # a generator costs twice as much, at every record
            if type(key) is not str or not (type(item) is str or item is None or _is_spelled_alike(item)):
                return False
        return True
    if kind is list or kind is tuple:
        return all(type(item) is str or _is_spelled_alike(item) for item in value)
    if kind is float:
        return 1e-4 <= abs(value) < 1e15 and not value.is_integer()
    if kind is int:
        return -_LARGEST_SAFE <= value <= _LARGEST_SAFE
    return kind is str or kind is bool or value is None
