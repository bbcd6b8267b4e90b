"""FHIR R4 resources of one screening: what each says, and what it must not.

The one idea: each resource is a function of one frozen `Screening`, and names the others by `urn:uuid`, so that a server's own ids never matter here.

A probability is written in percent: R4 defines `probabilityDecimal` so ("expressed as percentages", at most 100), and a reader who takes it for a
share sees at once that it is none, where 0.31 for 31 % would pass for a risk of three in a thousand.
"""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from clinical_ser.audio.quality import QualityCheck
from clinical_ser.audit.events import RECORD
from clinical_ser.audit.exports.fhir_resources import MODEL, RESULT, SOFTWARE
from clinical_ser.audit.exports.fhir_rules import OBSERVATION_VALUE
from clinical_ser.interop import fhir_terms as terms
from clinical_ser.interop import fhir_words as words
from clinical_ser.interop.fhir_terms import SCREENING, coding, concept, quantity, text_of
from clinical_ser.interop.fhir_words import Reviewed
from clinical_ser.interop.reviews import standing
from clinical_ser.screening.measures import Measure
from clinical_ser.screening.result import ClassProbability, ScreeningResult, Status

Json = dict[str, Any]

_NAMESPACE = uuid5(NAMESPACE_URL, terms.TERMS)
_DEPRESSION = "depression"
"""The task whose outcome SNOMED CT has a code for; an acted emotion is no finding."""
_STATUS: Mapping[str | None, str] = {None: "preliminary", "undecided": "preliminary", "agreed": "final", "overridden": "amended"}
"""By the clinician's review that stands: nothing is final that no clinician agreed with, and nothing amended on a system's word alone. Statuses of
observations, reports and documents all have these three."""


@dataclass(frozen=True)
class Screening:
    """Everything that resources are made of; see `fhir.screening_bundle`."""

    result: ScreeningResult
    id: str
    record: str
    """Digest of the result."""
    subject: Json
    recorded: datetime
    address: str
    """Of this screening at the site's service."""
    reviews: Sequence[Reviewed]
    author: str | None

    def urn(self, role: str) -> str:
        """Return the fullUrl of the resource that has a role in this screening; the same each time."""
        return f"urn:uuid:{self.uuid(role)}"

    def uuid(self, role: str) -> str:
        """Return a UUID for a role."""
        return str(uuid5(_NAMESPACE, f"{self.id}/{role}"))

    def reference(self, role: str) -> Json:
        """Return a reference to the resource that has a role."""
        return {"reference": self.urn(role)}

    def identifier(self, role: str) -> Json:
        """Return what a server knows the resource by, whatever id it gives it."""
        return {"system": terms.SCREENINGS, "value": f"{self.id}/{role}"}

    @property
    def time(self) -> str:
        """When it was screened."""
        return time_text(self.recorded)

    @property
    def effective(self) -> str:
        """Of when it is: the day of the recording where that is known."""
        day = self.result.context.recorded_on
        return day.isoformat() if day else self.time

    @property
    def review(self) -> Reviewed | None:
        """Of the clinicians' reviews the one that stands."""
        return standing([review for review in self.reviews if not review.by_system])

    @property
    def told(self) -> Sequence[Reviewed]:
        """What a conclusion says first: the review that stands, and, where that is only what the record system reported, the clinicians' after it."""
        stands = standing(self.reviews)
        return [review for review in dict.fromkeys((stands, self.review)) if review is not None]

    @property
    def status(self) -> str:
        """How far it is reviewed, in FHIR's terms."""
        return _STATUS[self.review.decision if self.review else None]

    @property
    def is_answered(self) -> bool:
        """Whether a model answered at all."""
        return self.result.status is not Status.NOT_USABLE


def time_text(moment: datetime) -> str:
    """Return a moment in UTC, always with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def measure_role(measure: Measure) -> str:
    """Return the role of a measure's Observation."""
    return f"measure/{measure.name}"


def _labels(*codes: str) -> Json:
    return {"security": [coding(OBSERVATION_VALUE, code) for code in codes]}


def _narrative(text: str) -> Json:
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{paragraphs}</div>'}


def software(version: str) -> Json:
    """Return this program as a Device, named as the audit log names it."""
    name = text_of(f"clinical-ser {version}")
    return {
        "resourceType": "Device",
        "identifier": [{"system": SOFTWARE, "value": name}],
        "status": "active",
        "deviceName": [{"name": name, "type": "user-friendly-name"}],
        "version": [{"value": text_of(version)}],
    }


def model(screening: Screening) -> Json:
    """Return the model as a Device, named by the digest of all its bytes, as the audit log names it."""
    identity = screening.result.model
    return {
        "resourceType": "Device",
        "identifier": [{"system": MODEL, "value": words.model_digest(screening.result)}],
        "status": "active",
        "type": concept(terms.AI_DEVICE, "Artificial-Intelligence", "Speech screening model"),
        "deviceName": [{"name": text_of(identity.name), "type": "model-name"}],
        "version": [{"value": text_of(identity.version)}],
        **({"note": [{"text": words.SIMULATED}]} if identity.simulated else {}),
    }


def _observation(screening: Screening, role: str) -> Json:
    """Return what our Observations share. They are measured by fixed rules: asserted by a device (DEVAST), and not by a model."""
    return {
        "resourceType": "Observation",
        "meta": _labels("DEVAST"),
        "identifier": [screening.identifier(role)],
        "status": "final",
        "category": [concept(terms.CATEGORY, "procedure")],
        "subject": screening.subject,
        "effectiveDateTime": screening.effective,
        "issued": screening.time,
        "method": {"text": words.engines(screening.result)},
        "device": screening.reference("software"),
    }


def measure(screening: Screening, measured: Measure) -> Json:
    """Return the Observation of a measure.

    What it can be read against is text, never `low` and `high`: half of the reference group lies outside its middle half, and a record system that
    took it for a normal range would call them abnormal.
    """
    change = screening.result.model.uses_baseline
    label = text_of(terms.measure_label(measured.label_en, change=change))
    shown = quantity(measured.value or 0.0, measured.unit)
    beside = words.beside(measured, screening.result, shown.get("unit", ""))
    return {
        **_observation(screening, measure_role(measured)),
        "code": {"coding": [{"system": terms.MEASURES, "code": measured.name + (terms.CHANGE if change else ""), "display": label}], "text": label},
        **({"valueQuantity": shown} if measured.value is not None else {"dataAbsentReason": _absent(measured.reason)}),
        **({"referenceRange": [{"text": one} for one in beside]} if beside else {}),
    }


def _absent(reason: str | None) -> Json:
    return concept(terms.ABSENT_REASON, "not-performed" if reason else "unknown", text_of(reason) if reason else None)


def quality(screening: Screening) -> Json:
    """Return the Observation of the quality gate, a component a check."""
    report = screening.result.quality
    advice = " ".join(check.advice for check in report.checks if check.advice)
    return {
        **_observation(screening, "quality"),
        "code": concept(SCREENING, "recording-quality"),
        "valueCodeableConcept": concept(SCREENING, report.verdict, text_of(advice) if advice else None),
        **({"component": [_check(check) for check in report.checks]} if report.checks else {}),
    }


def _check(check: QualityCheck) -> Json:
    known = check.name in terms.CODES[SCREENING]
    limits = (check.warn_limit, check.fail_limit)
    side = "low" if check.bound == "at_least" else "high"
    said = "; ".join(
        f"{what} {'below' if side == 'low' else 'above'} {limit:g}"
        for what, limit in zip(("warning", "refused"), limits, strict=True)
        if limit is not None
    )
    within = {side: quantity(check.warn_limit, check.unit)} if check.warn_limit is not None else {}
    return {
        "code": concept(SCREENING, check.name) if known else {"text": text_of(check.name)},
        **({"valueQuantity": quantity(check.value, check.unit)} if check.value is not None else {"dataAbsentReason": _absent(None)}),
        "interpretation": [concept(SCREENING, check.verdict, text_of(check.advice) if check.advice else None)],
        **({"referenceRange": [{**within, "text": said}]} if said else {}),
    }


def risk(screening: Screening) -> Json:
    """Return the RiskAssessment: what the model says, as long as the status says who agreed with it. It is asserted by a model (AIAST)."""
    result = screening.result
    measured = [measure_role(one) for one in result.measures if one.value is not None]
    notes = [result.intended_use, *([words.SIMULATED] if result.model.simulated else []), *result.notices]
    predictions = _predictions(screening)
    return {
        "resourceType": "RiskAssessment",
        "meta": _labels("AIAST"),
        "text": _narrative(words.conclusion(result, screening.told)),
        "identifier": [screening.identifier("risk")],
        "status": screening.status,
        "method": {"text": words.method(result)},
        "code": concept(SCREENING, "speech-screening", text_of(f"Speech screening: {words.class_name(result.task)}")),
        "subject": screening.subject,
        "occurrenceDateTime": screening.time,
        "performer": screening.reference("model"),
        "basis": [screening.reference(role) for role in ("quality", *measured)],
        **({"prediction": predictions} if predictions else {}),
        "note": [*({"text": text_of(note)} for note in notes), *(_review_note(review) for review in screening.reviews)],
    }


def _review_note(review: Reviewed) -> Json:
    return {
        **({"authorString": text_of(review.name)} if review.name else {}),
        "time": time_text(review.time),
        "text": words.reviewed(review),
    }


def _predictions(screening: Screening) -> list[Json]:
    """Return a prediction for the positive class, or for each of several; of an answer without a number, for what it cannot rule out."""
    result, chosen = screening.result, screening.result.probability
    if chosen is None:
        return []
    if result.status.has_number:
        return [_prediction(screening, one.label, one) for one in result.classes or (chosen,)]
    return [_prediction(screening, label, None) for label in (result.prediction_set if result.classes else (chosen.label,))]


def _prediction(screening: Screening, label: str, probability: ClassProbability | None) -> Json:
    result, chosen = screening.result, screening.result.probability
    is_depression = result.task == _DEPRESSION and not result.classes
    # Of several classes, "classified" is said of the one that was.
    says = chosen is not None and (label == chosen.label or not result.status.has_number)
    return {
        **({"extension": [_statement(result, probability)], "probabilityDecimal": terms.number(100 * probability.value)} if probability else {}),
        "outcome": {
            **({"coding": [coding(terms.SNOMED, "35489007")]} if is_depression else {}),
            "text": words.outcome(result, label),
        },
        **({"qualitativeRisk": concept(SCREENING, result.status)} if says else {}),
        # Left out, it would be a risk "over the subject's lifespan".
        "whenPeriod": {"start": screening.effective, "end": screening.effective},
        "rationale": words.rationale(result, label, probability),
    }


def _statement(result: ScreeningResult, probability: ClassProbability) -> Json:
    """Return the probability with what belongs to it, in units that cannot be mistaken."""
    interval, point = probability.interval, result.operating_point
    parts: list[Json] = [
        {"url": "estimate", "valueQuantity": terms.percent(probability.value)},
        {"url": "interval", "valueRange": {"low": terms.percent(interval.low), "high": terms.percent(interval.high)}},
        {"url": "level", "valueQuantity": terms.percent(interval.level)},
        {"url": "method", "valueString": text_of(interval.method)},
        {"url": "prevalence", "valueQuantity": terms.percent(probability.prevalence)},
        *([{"url": "threshold", "valueQuantity": terms.percent(point.probability)}] if point else []),
    ]
    return {"url": terms.PROBABILITY, "extension": parts}


def report(screening: Screening) -> Json:
    """Return the DiagnosticReport: the conclusion in words. A recording that is not usable has one too, cancelled, that says why."""
    result, review = screening.result, screening.review
    decided = screening.is_answered and review is not None and review.decision != "undecided"
    who = [text_of(one.name) for one in screening.reviews if one.name and not one.by_system]
    said = "overridden" if decided and review and review.decision == "overridden" else result.status.value
    told = words.conclusion(result, screening.told)
    return {
        "resourceType": "DiagnosticReport",
        "meta": _labels(*(["AIAST"] if screening.is_answered else ["DEVAST"]), *(["CLINAST"] if decided else [])),
        "text": _narrative(told),
        **({"extension": [{"url": terms.RISK, "valueReference": screening.reference("risk")}]} if screening.is_answered else {}),
        "identifier": [screening.identifier("report"), {"system": RESULT, "value": RECORD + screening.record}],
        "status": screening.status if screening.is_answered else "cancelled",
        "code": concept(SCREENING, "speech-screening", text_of(f"Speech screening: {words.class_name(result.task)}")),
        "subject": screening.subject,
        "effectiveDateTime": screening.effective,
        "issued": time_text(max([screening.recorded, *(one.time for one in screening.reviews)])),
        **({"resultsInterpreter": [{"display": name} for name in dict.fromkeys(who)]} if who else {}),
        "result": [screening.reference(role) for role in ("quality", *map(measure_role, result.measures))],
        "conclusion": told,
        "conclusionCode": [concept(SCREENING, said)],
    }


def document(screening: Screening, pdf: bytes | None) -> Json:
    """Return the DocumentReference: the report as PDF, inline, or where the site's service has it for those who may see it."""
    attachment: Json = {"title": "Speech screening report"}
    if pdf is None:
        # Without its media type: at this address it is a page or a PDF, by what the reader accepts.
        attachment["url"] = f"{screening.address}/report"
    else:
        # FHIR asks for SHA-1 here, against damage; the identifier has SHA-256.
        hashed = hashlib.sha1(pdf, usedforsecurity=False).digest()
        attachment |= {
            "contentType": "application/pdf",
            "data": base64.b64encode(pdf).decode(),
            "size": len(pdf),
            "hash": base64.b64encode(hashed).decode(),
        }
    related = [screening.reference(role) for role in (*(["risk"] if screening.is_answered else []), "report")]
    return {
        "resourceType": "DocumentReference",
        "meta": _labels("AIAST" if screening.is_answered else "DEVAST"),
        **({"masterIdentifier": {"system": terms.DOCUMENTS, "value": hashlib.sha256(pdf).hexdigest()}} if pdf is not None else {}),
        "identifier": [screening.identifier("document")],
        "status": "current",
        "docStatus": screening.status,
        "type": concept(SCREENING, "speech-screening", "Speech screening report"),
        "subject": screening.subject,
        "date": screening.time,
        "author": [screening.reference("software")],
        "content": [{"attachment": attachment}],
        "context": {"related": related},
    }


def provenance(screening: Screening) -> Json:
    """Return where all of it comes from: the recording, by its digest, and the programs that made it."""
    result = screening.result
    roles = (*(["risk"] if screening.is_answered else []), "report", "document", "quality", *map(measure_role, result.measures))
    makers = ("model", "software") if screening.is_answered else ("software",)
    entered = [_agent("enterer", {"display": text_of(screening.author)})] if screening.author else []
    heard = f"Recording of {result.recording.duration_s:.1f} s, by the SHA-256 of its 16 kHz 16-bit samples"
    return {
        "resourceType": "Provenance",
        "id": screening.uuid("provenance"),
        "target": [screening.reference(role) for role in roles],
        "recorded": screening.time,
        "activity": concept(terms.DATA_OPERATION, "CREATE"),
        "agent": [*(_agent("assembler", screening.reference(maker)) for maker in makers), *entered],
        "entity": [
            {"role": "source", "what": {"identifier": {"system": terms.RECORDINGS, "value": result.recording.sha256}, "display": heard}},
            {"role": "derivation", "what": {"identifier": {"system": RESULT, "value": RECORD + screening.record}}},
        ],
    }


def review_provenance(screening: Screening, number: int) -> Json:
    """Return who revised answer and report by a review: the clinician is the author of that, or the record system that reported it."""
    review = screening.reviews[number]
    roles = (*(["risk"] if screening.is_answered else []), "report", "document")
    did = "Reported by the record system" if review.by_system else "Reviewed by a clinician"
    nobody = "The record system" if review.by_system else "A clinician of this site"
    return {
        "resourceType": "Provenance",
        "id": screening.uuid(f"review/{number}"),
        "target": [screening.reference(role) for role in roles],
        "recorded": time_text(review.time),
        "activity": concept(terms.DATA_OPERATION, "UPDATE", f"{did}: {review.decision}"),
        "agent": [_agent("author", {"display": text_of(review.name or nobody)})],
    }


def _agent(kind: str, who: Json) -> Json:
    return {"type": concept(terms.PROVENANCE_AGENT, kind), "who": who}
