"""A log in memory with records of every kind: two subjects, one of them erased in part, and names in it that exports must not have.

The one idea: every text that is about a person or an account holds the word CANARY, so that a search for it finds each that got out.
"""

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clinical_ser.audit import events
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.events import Actor, Event, Outcome, Payload, Purpose, Role
from clinical_ser.audit.merkle import Prover, leaf_hash
from clinical_ser.audit.notes import Ed25519Signer
from clinical_ser.audit.records import Record
from tests.audit.test_merkle import ListTiles

ORIGIN = "hospital.example/audit"
SIGNER = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
KEYS = [SIGNER.key]

FIRST_SUBJECT = "MRN-CANARY-1"
SECOND_SUBJECT = "MRN-CANARY-2"
CANARY = "CANARY"
"""In every subject's name, account id and free text."""

RESULT = "a1" * 32
SECOND_RESULT = "b2" * 32
MODEL = "c3" * 32
NEW_MODEL = "d4" * 32
RECORDING = "e5" * 32
START = datetime(2026, 9, 1, 8, 30, 0, 123456, tzinfo=UTC)

CLINICIAN = Actor(id="account-CANARY-dr-osei", role=Role.CLINICIAN, name="Dr CANARY Osei", client="192.0.2.7")
SERVICE = Actor(id="ehr-CANARY", role=Role.SERVICE, client="ehr.CANARY.example")
OPERATOR = Actor(id="ops-CANARY", role=Role.OPERATOR, name="CANARY Operator")
OFFICER = Actor(id="privacy-CANARY", role=Role.COMPLIANCE, name="CANARY Officer", client="2001:db8::7")
NODE = Actor(id="node-CANARY-a", role=Role.NODE)


@dataclass(frozen=True)
class Entry:
    """A record to be."""

    payload: Payload
    subject: str | None = None
    outcome: Outcome = Outcome.SUCCESS
    purpose: Purpose = Purpose.TREATMENT
    model: str | None = None
    supersedes: int | None = None


def inference(result: str = RESULT, **changes: object) -> events.Inference:
    """An answer, all of it."""
    told: dict[str, object] = {
        "actor": CLINICIAN,
        "result": result,
        "recording": RECORDING,
        "duration_s": 31.25,
        "task": "depression",
        "status": "flagged",
        "label": "CANARY-at-risk",
        "probability": 0.625,
        "low": 0.5,
        "high": 0.75,
        "prevalence": 0.1,
        "threshold": 0.35,
        "prediction_set": ("at risk",),
        "families": (events.FamilyEffect(family="pauses", points=4.5, stable=True),),
        "checks": (events.Check(name="noise", value=18.5, verdict="warn"),),
        "model_name": "depression-simulated",
        "model_version": "1",
        "simulated": True,
        "encoders": {},
        "notice": "2026-08",
    }
    return events.Inference.model_validate({**told, **changes})


def entries() -> list[Entry]:
    """One entry of every kind at least, in an order that could be."""
    rejection = events.QualityRejection(
        actor=SERVICE,
        result=SECOND_RESULT,
        recording=RECORDING,
        duration_s=2.5,
        task="depression",
        checks=(events.Check(name="speech", value=None, verdict="fail"),),
        model_name="depression-simulated",
        model_version="1",
    )
    signature = events.Signed(name="Dr CANARY Osei", time=START + timedelta(minutes=9), meaning="review")
    disclosure = {
        "actor": OFFICER,
        "result": RESULT,
        "recipient": "CANARY Insurance",
        "recipient_address": "1 CANARY Street",
        "description": "CANARY screening report",
        "purpose_text": '=CANARY claim 17, "urgent"',
    }
    system = Purpose.SYSTEM
    return [
        Entry(events.Service(actor=OPERATOR, action="started", component="api", detail="CANARY host"), purpose=system),
        Entry(events.Configuration(actor=OPERATOR, setting="retention_days", old="180", new="CANARY 2190"), purpose=system),
        Entry(
            events.ModelChange(actor=OPERATOR, action="activated", name="depression-simulated", old=None, new=MODEL, approver="CANARY Board"),
            purpose=Purpose.OPERATIONS,
            model=MODEL,
        ),
        Entry(events.Notice(actor=SERVICE, text_version="2026-08"), FIRST_SUBJECT),
        Entry(inference(), FIRST_SUBJECT, model=MODEL),
        Entry(events.ReportAction(actor=CLINICIAN, result=RESULT, action="viewed", form="html"), FIRST_SUBJECT, model=MODEL),
        Entry(
            events.Review(actor=CLINICIAN, result=RESULT, decision="overridden", reason="@CANARY grief, not illness", signature=signature),
            FIRST_SUBJECT,
            model=MODEL,
        ),
        Entry(events.Notice(actor=SERVICE, text_version="2026-08"), SECOND_SUBJECT),
        Entry(rejection, SECOND_SUBJECT, model=MODEL),
        Entry(inference(SECOND_RESULT, actor=SERVICE, status="not_flagged", label=None), SECOND_SUBJECT, model=MODEL),
        Entry(events.ReportAction(actor=CLINICIAN, result=RESULT, action="exported", form="pdf"), FIRST_SUBJECT, model=MODEL),
        Entry(events.Disclosure.model_validate({**disclosure, "accountable": True}), FIRST_SUBJECT, purpose=Purpose.PAYMENT),
        Entry(events.AccessDenied(actor=SERVICE, asked_for="CANARY results", reason="forbidden"), outcome=Outcome.REFUSED),
        Entry(
            events.FederatedRound(
                actor=NODE, federation="voices", round=3, node="node-a", model_in=MODEL, update=NEW_MODEL, epsilon=1.5, subjects_bucket="50-99"
            ),
            purpose=Purpose.RESEARCH,
            model=MODEL,
        ),
        Entry(
            events.DriftAlarm(actor=NODE, what="pauses", statistic="psi", value=0.375, limit=0.25, since=START),
            purpose=Purpose.OPERATIONS,
            model=MODEL,
        ),
        Entry(events.LegalHold(actor=OFFICER, action="placed", reason="CANARY v. Hospital", authority="CANARY court"), FIRST_SUBJECT),
        Entry(
            events.Erasure(actor=OFFICER, erased="", reason="CANARY asked", basis="GDPR Art. 17(3)(e)"),
            FIRST_SUBJECT,
            outcome=Outcome.REFUSED,
            purpose=Purpose.PATIENT_REQUEST,
        ),
        Entry(
            events.Erasure(actor=OFFICER, erased="9", reason="CANARY asked", basis="GDPR Art. 17(1)(a)"),
            SECOND_SUBJECT,
            purpose=Purpose.PATIENT_REQUEST,
        ),
        Entry(
            events.ReportAction(actor=CLINICIAN, result=RESULT, action="amended", form="pdf", reason="CANARY misspelt"),
            FIRST_SUBJECT,
            model=MODEL,
            supersedes=10,
        ),
        Entry(events.AuditExport(actor=OFFICER, form="jsonl", first=0, last=17, digest=None, recipient="CANARY auditor"), purpose=Purpose.COMPLIANCE),
        Entry(
            events.ModelChange(actor=OPERATOR, action="refused", name="other", old=MODEL, new=NEW_MODEL, reason="CANARY plan"),
            outcome=Outcome.REFUSED,
            model=NEW_MODEL,
        ),
        Entry(events.Disclosure.model_validate({**disclosure, "result": None, "accountable": False}), FIRST_SUBJECT, outcome=Outcome.FAILED),
        Entry(events.Service(actor=OPERATOR, action="stopped", component="api"), purpose=system),
        Entry(
            events.Submission(actor=SERVICE, screening="c0" * 16, action="accepted", body=RECORDING, model_name="depression-simulated"),
            FIRST_SUBJECT,
            model=MODEL,
        ),
        Entry(
            events.Submission(
                actor=SERVICE, screening="c0" * 16, action="failed", body=RECORDING, model_name="depression-simulated", reason="cannot-be-decoded"
            ),
            FIRST_SUBJECT,
            outcome=Outcome.FAILED,
            model=MODEL,
        ),
    ]


ERASED = frozenset({9})
KINDS = tuple(sorted(events.PAYLOADS))


def record_of(index: int, entry: Entry, state: str = "open") -> Record:
    """The record that an entry becomes at an index, always the same one."""
    event_id = hashlib.sha256(b"event %d" % index).hexdigest()[:32]
    salt = hashlib.sha256(b"salt %d" % index).digest()
    payload = entry.payload.canonical()
    tag = hmac.digest(entry.subject.encode(), event_id.encode(), "sha256").hex() if entry.subject else None
    event = Event(
        schema=events.SCHEMA,
        id=event_id,
        kind=entry.payload.kind,
        version=entry.payload.version,
        time=(START + timedelta(minutes=index)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        monotonic_ns=10**9 * 60 * index,
        run="0f" * 16,
        outcome=entry.outcome,
        role=entry.payload.actor.role,
        purpose=entry.purpose,
        software="clinical-ser 0.1.0",
        model=entry.model,
        commitment=hashlib.sha256(salt + payload).hexdigest(),
        subject_tag=tag,
        supersedes=entry.supersedes,
        flags=entry.payload.flags(),
    )
    leaf = events.canonical(event.model_dump(mode="json", by_alias=True))
    is_open = state == "open"
    return Record(index, leaf, Event.parse(leaf), entry.payload if is_open else None, salt if is_open else None, state)  # type: ignore[arg-type]


@dataclass
class ExampleLog:
    """A LogReader of a list of entries.

    Parameters
    ----------
    entries
        What was recorded.
    erased
        Which of them were erased.
    sealed
        Whether this reader has no key.
    """

    entries: list[Entry] = field(default_factory=entries)
    erased: frozenset[int] = ERASED
    sealed: bool = False
    origin: str = ORIGIN

    @property
    def size(self) -> int:
        return len(self.entries)

    @cached_property
    def checkpoint(self) -> str:
        return Checkpoint(self.origin, self.size, self._prover.root()).sign([SIGNER])

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        for index in range(start, self.size if stop is None else min(stop, self.size)):
            state = "erased" if index in self.erased else "sealed" if self.sealed else "open"
            yield record_of(index, self.entries[index], state)

    def named(self, name: str) -> list[int]:
        return [i for i, entry in enumerate(self.entries) if i not in self.erased and name == entry.subject]

    def about(self, name: str) -> list[int]:
        return [i for i, entry in enumerate(self.entries) if i not in self.erased and name in entry.payload.records()]

    def inclusion(self, index: int) -> list[bytes]:
        return self._prover.inclusion(index)

    def consistency(self, old: int) -> list[bytes]:
        return self._prover.consistency(old)

    @cached_property
    def _prover(self) -> Prover:
        return Prover(ListTiles([leaf_hash(record.leaf) for record in self.records()]), self.size)
