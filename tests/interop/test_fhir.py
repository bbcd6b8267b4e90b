import base64
import contextlib
import copy
import dataclasses
import hashlib
import json
import re
import runpy
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
import rfc8785
import soundfile
from fhir.resources.R4B.bundle import Bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clinical_ser.audit.answering import answer_entry
from clinical_ser.audit.events import RECORD, Role
from clinical_ser.audit.exports.fhir_resources import MODEL, RESULT, SOFTWARE, Maker
from clinical_ser.audit.exports.fhir_rules import BALP, check_resource
from clinical_ser.audit.merkle import leaf_hash
from clinical_ser.errors import InvalidValueError
from clinical_ser.features import catalogue
from clinical_ser.interop import fhir_terms as terms
from clinical_ser.interop import fhir_words as words
from clinical_ser.interop.fhir import Audited, Reviewed, SubjectReference, fhir_bytes, screening_bundle
from clinical_ser.screening.measures import PANEL
from clinical_ser.screening.result import ClassProbability, Interval, RecordingIdentity, Status
from clinical_ser.screening.screener import Screener
from tests.audit.exports.example import CLINICIAN, OPERATOR, ORIGIN, Entry, record_of
from tests.interop import r4
from tests.interop.server import Server, dangling
from tests.reports import clinician_samples as samples

ID = "0a" * 16
RECORDED = datetime(2026, 11, 3, 9, 30, 0, 123456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BASE = "https://screening.hospital.example"
PATIENT = SubjectReference(reference="Patient/17")
AGREED = Reviewed("agreed", "fits what she told me", RECORDED + 10 * MINUTE, "Dr Osei")
OVERRIDDEN = Reviewed("overridden", "grief, not illness", RECORDED + 20 * MINUTE, "Dr Lin")
UNDECIDED = Reviewed("undecided", "will see her again", RECORDED + 30 * MINUTE)
REPORTED = Reviewed("overridden", "Put aside: The recording is not of this person (wrong-person).", RECORDED + 40 * MINUTE, role=Role.SERVICE)
PDF = b"%PDF-1.7 of a report"


def signed(result):
    """A sample with a model's digest as a bundle has it."""
    return result.model_copy(update={"model": result.model.model_copy(update={"digest": "5e" * 32})})


RESULTS = {
    "flagged": samples.result(),
    "not flagged": samples.not_flagged(),
    "indeterminate": samples.indeterminate(),
    "refused": samples.refused(),
    "classified": samples.of_classes(),
    "several classes": samples.of_classes(Status.INDETERMINATE, ("sadness", "neutral")),
    "no class": samples.of_classes(Status.INDETERMINATE, ()),
    "with embedding": samples.with_embedding(),
    "nothing to compare": samples.missing(),
    "no measures": samples.result(measures=()),
    # Measures have names of the catalogue's, each once.
    "long texts": samples.long().model_copy(update={"measures": samples.measures()}),
}
RESULTS = {name: signed(result) for name, result in RESULTS.items()}
WITHOUT_NUMBER = ("indeterminate", "refused", "several classes", "no class")


def audited(result, actor=CLINICIAN, subject="MRN-4711"):
    entry = answer_entry(result, actor, subject=subject)
    return Audited(record_of(7, Entry(entry.payload, entry.subject, entry.outcome, model=entry.model)), ORIGIN)


def bundle_of(result, **changes):
    options = {"screening_id": ID, "subject": PATIENT, "recorded": RECORDED, "base": BASE, "author": "Dr Abara"}
    audit = {} if "audit" in changes else {"audit": audited(result)}
    return screening_bundle(result, **options | audit | changes)


def of_kind(bundle, kind):
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def only(bundle, kind):
    (resource,) = of_kind(bundle, kind)
    return resource


def measures_in(bundle):
    coded = [(one["code"]["coding"][0], one) for one in of_kind(bundle, "Observation")]
    return {coding["code"]: one for coding, one in coded if coding["system"] == terms.MEASURES}


def quality_in(bundle):
    (found,) = [one for one in of_kind(bundle, "Observation") if one["code"]["coding"][0]["code"] == "recording-quality"]
    return found


def labels(resource):
    return [one["code"] for one in resource["meta"]["security"]]


def codings(value):
    if isinstance(value, dict):
        if "system" in value and "code" in value:
            yield value
        for item in value.values():
            yield from codings(item)
    elif isinstance(value, list):
        for item in value:
            yield from codings(item)


@pytest.fixture(scope="module")
def screened(bundle, speech_wav, tmp_path_factory):
    """What a model really answers to speech, and to a second of it."""
    screener = Screener.load(bundle)
    short = tmp_path_factory.mktemp("short") / "short.wav"
    samples_, rate = soundfile.read(speech_wav, dtype="float32")
    soundfile.write(short, samples_[:rate], rate)
    return {"usable": screener.screen(speech_wav, sex="female", age=54), "refused": screener.screen(short)}


# --- Held against R4 -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("reviews", [(), (AGREED,), (AGREED, OVERRIDDEN, UNDECIDED)], ids=["new", "agreed", "three reviews"])
@pytest.mark.parametrize("pdf", [None, PDF], ids=["no PDF", "PDF"])
def test_every_answer_passes_schema_definitions_invariants_and_an_independent_model(name, reviews, pdf):
    made = bundle_of(RESULTS[name], reviews=reviews, report_pdf=pdf)
    assert r4.check(made) == []
    Bundle.model_validate_json(fhir_bytes(made))


@pytest.mark.parametrize("which", ["usable", "refused"])
def test_what_a_model_really_answers_passes(screened, which):
    result = screened[which]
    made = bundle_of(result)
    assert (result.status is Status.NOT_USABLE) is (which == "refused")
    assert r4.check(made) == []
    Bundle.model_validate_json(fhir_bytes(made))


@pytest.mark.parametrize("subject", [PATIENT, SubjectReference(system="urn:oid:1.2.36.146", value="MRN 17 é")])
@pytest.mark.parametrize("name", RESULTS)
def test_the_audit_event_keeps_the_rules_of_r4_and_its_balp_profile(name, subject):
    event = only(bundle_of(RESULTS[name], subject=subject), "AuditEvent")
    assert check_resource(event) == []
    wanted = [] if name == "refused" else [f"{BALP}IHE.BasicAudit.PatientCreate"]
    assert event.get("meta", {}).get("profile", []) == wanted


def changed(kind, change, which=0):
    def apply(made):
        change(of_kind(made, kind)[which])

    return apply


def put(*path, value):
    def change(node):
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


def without(*path):
    def change(node):
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]

    return change


NOWHERE = "urn:uuid:00000000-0000-0000-0000-000000000000"
SEEDED = {
    "no such status": (changed("RiskAssessment", put("status", value="done")), "definitions"),
    "a status of another resource": (changed("RiskAssessment", put("status", value="partial")), "definitions"),
    "a system that is no address": (changed("Observation", put("code", "coding", 0, "system", value="measure")), "definitions"),
    "an address with a space": (changed("Device", put("identifier", 0, "system", value="urn:a b")), "schema"),
    "a probability over 100": (changed("RiskAssessment", put("prediction", 0, "probabilityDecimal", value=100.5)), "invariants"),
    "a probability in words": (changed("RiskAssessment", put("prediction", 0, "probabilityDecimal", value="31")), "schema"),
    "a range that is no percentage": (changed("RiskAssessment", put("prediction", 0, "probabilityRange", value={"low": {"value": 1}})), "invariants"),
    "a value and why it is absent": (changed("Observation", put("dataAbsentReason", value={"text": "no"})), "invariants"),
    "a reference range with nothing in it": (changed("Observation", put("referenceRange", value=[{"age": {"low": {"value": 1}}}]), 1), "invariants"),
    "no subject where one is needed": (changed("RiskAssessment", without("subject")), "definitions"),
    "no code": (changed("Observation", without("code")), "schema"),
    "no content": (changed("DocumentReference", without("content")), "schema"),
    "a wrong kind of name": (changed("Device", put("deviceName", 0, "type", value="nickname")), "definitions"),
    "a wrong role of an entity": (changed("Provenance", put("entity", 0, "role", value="input")), "definitions"),
    "a device that performs a report": (changed("DiagnosticReport", put("performer", value=[{"type": "Device", "display": "x"}])), "definitions"),
    "a code that a system does not have": (changed("Observation", put("category", 0, "coding", 0, "code", value="voice")), "definitions"),
    "another display than the code's": (changed("Observation", put("category", 0, "coding", 0, "display", value="Exam")), "definitions"),
    "a period that ends before it begins": (changed("RiskAssessment", put("prediction", 0, "whenPeriod", "end", value="2020-01-01")), "invariants"),
    "an extension with a value and extensions": (
        changed("RiskAssessment", put("prediction", 0, "extension", 0, "valueString", value="x")), "invariants"),
    "a unit's code without its system": (changed("Observation", without("valueQuantity", "system"), 1), "invariants"),
    "a document without its type": (changed("DocumentReference", without("content", 0, "attachment", "contentType")), "invariants"),
    "a narrative with a script": (
        changed("RiskAssessment", put("text", "div", value='<div xmlns="http://www.w3.org/1999/xhtml"><script>a</script></div>')), "invariants"),
    "an element that R4 does not have": (changed("RiskAssessment", put("probability", value=1)), "schema"),
    "an instant without its zone": (changed("Provenance", put("recorded", value="2026-11-03T09:30:00")), "schema"),
    "a reference into nothing": (changed("DiagnosticReport", put("result", 0, "reference", value=NOWHERE)), "definitions"),
    "no such verb": (put("entry", 0, "request", "method", value="UPSERT"), "schema"),
    "an entry without its request": (without("entry", 0, "request"), "invariants"),
    "one address twice": (lambda made: put("entry", 1, "fullUrl", value=made["entry"][0]["fullUrl"])(made), "invariants"),
    "a list of one that is none": (changed("RiskAssessment", put("note", value={"text": "x"})), "schema"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_fault_is_found_by_the_check_that_is_for_it(name):
    seed, finder = SEEDED[name]
    made = copy.deepcopy(bundle_of(RESULTS["flagged"], report_pdf=PDF, reviews=(AGREED,)))
    seed(made)
    assert getattr(r4, f"by_{finder}")(made)


SHAPES = {
    "a range that is no percentage",
    "no subject where one is needed",
    "no code",
    "no content",
    "an element that R4 does not have",
    "an instant without its zone",
    "a list of one that is none",
}
"""The seeded faults that `fhir.resources` sees; the first because R4 has one probability, in one of two types."""


@pytest.mark.parametrize("name", SEEDED)
def test_the_independent_model_sees_shapes_and_nothing_else(name):
    """Why it alone is not enough; it would be good news if this failed for what it misses."""
    made = copy.deepcopy(bundle_of(RESULTS["flagged"], report_pdf=PDF, reviews=(AGREED,)))
    SEEDED[name][0](made)
    with pytest.raises(ValidationError) if name in SHAPES else contextlib.nullcontext():
        Bundle.model_validate_json(json.dumps(made))


def test_every_invariant_of_our_kinds_is_checked_or_says_why_not():
    assert set(r4.INVARIANTS) | set(r4.ELSEWHERE) == set(r4.CONSTRAINTS)
    assert not set(r4.INVARIANTS) & set(r4.ELSEWHERE)
    for key, (where, _) in r4.INVARIANTS.items():
        assert where in {path for kind in r4.ELEMENTS.values() for path in kind}, key


def test_only_media_types_are_a_required_binding_without_its_codes():
    bound = {one["binding"] for kind in r4.ELEMENTS.values() for one in kind.values() if "binding" in one}
    assert bound - set(r4.CODES) == {"http://hl7.org/fhir/ValueSet/mimetypes"}


# --- Posting ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESULTS)
def test_posted_twice_it_creates_nothing_twice(name):
    server, made = Server(), bundle_of(RESULTS[name], report_pdf=PDF, reviews=(AGREED,))
    assert set(server.post(made)) == {"created"}
    before = copy.deepcopy(server.kept)
    assert set(server.post(made)) == {"found", "updated"}
    assert server.kept == before
    assert dangling(server) == []


def test_posted_again_after_a_review_it_brings_the_review():
    server = Server()
    server.post(bundle_of(RESULTS["flagged"]))
    assert [one["status"] for one in (*server.of("RiskAssessment"), *server.of("DiagnosticReport"))] == ["preliminary"] * 2
    answers = server.post(bundle_of(RESULTS["flagged"], reviews=(OVERRIDDEN,)))
    assert answers.count("created") == 1  # the review's Provenance
    (risk,), (report,) = server.of("RiskAssessment"), server.of("DiagnosticReport")
    assert (risk["status"], report["status"]) == ("amended", "amended")
    assert "grief, not illness" in report["conclusion"]
    targets = [sorted(target["reference"].partition("/")[0] for target in one["target"]) for one in server.of("Provenance")]
    assert ["DiagnosticReport", "DocumentReference", "RiskAssessment"] in targets
    assert len(targets) == 2
    assert dangling(server) == []


def test_one_recording_under_two_persons_makes_two_of_everything_but_the_devices():
    """The result's digest is the same for both: a server that knew resources by it would file one person's answer under the other."""
    server = Server()
    server.post(bundle_of(RESULTS["flagged"], audit=None))
    answers = server.post(bundle_of(RESULTS["flagged"], audit=None, screening_id="0b" * 16, subject=SubjectReference(reference="Patient/18")))
    assert answers.count("found") == 2
    assert len(server.of("Device")) == 2
    assert sorted(one["subject"]["reference"] for one in server.of("RiskAssessment")) == ["Patient/17", "Patient/18"]
    for one in server.of("DiagnosticReport"):
        subjects = {server.kept["Observation", link["reference"].partition("/")[2]]["subject"]["reference"] for link in one["result"]}
        assert subjects == {one["subject"]["reference"]}


def test_every_entry_has_an_address_of_its_own_that_depends_on_nothing_but_the_screening_and_its_role():
    first, again = bundle_of(RESULTS["flagged"]), bundle_of(RESULTS["not flagged"], reviews=(AGREED,), base="https://elsewhere.example")
    urls = [entry["fullUrl"] for entry in first["entry"]]
    assert all(re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", url) for url in urls)
    assert len(set(urls)) == len(urls)
    assert set(urls) < {entry["fullUrl"] for entry in again["entry"]}
    assert not set(urls) & {entry["fullUrl"] for entry in bundle_of(RESULTS["flagged"], screening_id="0b" * 16)["entry"]}


def test_what_never_changes_is_created_on_a_condition_and_what_a_review_changes_is_updated():
    verbs = {}
    for entry in bundle_of(RESULTS["flagged"], reviews=(AGREED,))["entry"]:
        request, resource = entry["request"], entry["resource"]
        how = "if none exists" if "ifNoneExist" in request else "by identifier" if "?" in request["url"] else "by id"
        verbs.setdefault(resource["resourceType"], set()).add((request["method"], how))
        if how != "by id":
            identifier = resource["identifier"][0]
            search = request.get("ifNoneExist") or request["url"].partition("?")[2]
            assert search == f"identifier={identifier['system']}|{identifier['value'].replace(' ', '%20')}"
    assert verbs == {
        "Device": {("POST", "if none exists")},
        "Observation": {("POST", "if none exists")},
        "RiskAssessment": {("PUT", "by identifier")},
        "DiagnosticReport": {("PUT", "by identifier")},
        "DocumentReference": {("PUT", "by identifier")},
        "Provenance": {("PUT", "by id")},
        "AuditEvent": {("PUT", "by id")},
    }


def test_a_model_that_was_changed_is_another_device():
    server, result = Server(), RESULTS["flagged"]
    other = result.model_copy(update={"model": result.model.model_copy(update={"digest": "ab" * 32})})
    server.post(bundle_of(result, audit=None))
    server.post(bundle_of(other, audit=None, screening_id="0b" * 16))
    models = [one for one in server.of("Device") if one["identifier"][0]["system"] == MODEL]
    assert [one["identifier"][0]["value"] for one in models] == [f"sha256:{'5e' * 32}", f"sha256:{'ab' * 32}"]


# --- What is said ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reviews", "status"),
    [
        ((), "preliminary"),
        ((AGREED,), "final"),
        ((UNDECIDED,), "preliminary"),
        ((OVERRIDDEN,), "amended"),
        ((OVERRIDDEN, AGREED), "final"),
        ((AGREED, OVERRIDDEN), "amended"),
        ((AGREED, UNDECIDED), "final"),
        ((OVERRIDDEN, UNDECIDED), "amended"),
        ((REPORTED,), "preliminary"),
        ((AGREED, REPORTED), "final"),
    ],
    ids=[
        "new",
        "agreed",
        "undecided",
        "overridden",
        "then agreed",
        "then overridden",
        "then undecided",
        "overridden, then undecided",
        "reported",
        "agreed, then reported",
    ],
)
def test_the_clinicians_last_decision_is_the_status_and_a_card_that_is_closed_undoes_none(reviews, status):
    made = bundle_of(RESULTS["flagged"], reviews=reviews)
    assert only(made, "RiskAssessment")["status"] == status
    assert only(made, "DiagnosticReport")["status"] == status
    assert only(made, "DocumentReference")["docStatus"] == status
    assert {one["status"] for one in of_kind(made, "Observation")} == {"final"}


def test_an_override_is_the_conclusion_and_the_models_answer_stays_the_models():
    made = bundle_of(RESULTS["flagged"], reviews=(OVERRIDDEN,))
    report, risk = only(made, "DiagnosticReport"), only(made, "RiskAssessment")
    assert report["conclusion"].startswith("A clinician (Dr Lin) overrode this answer: grief, not illness")
    assert [one["coding"][0]["code"] for one in report["conclusionCode"]] == ["overridden"]
    assert risk["prediction"][0]["qualitativeRisk"]["coding"][0]["code"] == "flagged"
    assert {"authorString": "Dr Lin", "time": "2026-11-03T09:50:00.123Z", "text": report["conclusion"].split("\n\n")[0]} in risk["note"]
    assert report["resultsInterpreter"] == [{"display": "Dr Lin"}]


@pytest.mark.parametrize(("review", "code"), [(AGREED, "flagged"), (UNDECIDED, "flagged"), (None, "flagged")], ids=["agreed", "undecided", "new"])
def test_without_an_override_the_report_is_coded_as_the_model_answered(review, code):
    report = only(bundle_of(RESULTS["flagged"], reviews=[review] if review else []), "DiagnosticReport")
    assert [one["coding"][0]["code"] for one in report["conclusionCode"]] == [code]
    assert ("No clinician has reviewed it yet." in report["conclusion"]) is (review is None)


def test_what_a_record_system_reports_is_nobodys_signature():
    """Feedback on a card does not tell who gave it."""
    made = bundle_of(RESULTS["flagged"], reviews=(REPORTED,))
    report = only(made, "DiagnosticReport")
    assert report["conclusion"].startswith("The record system reported that somebody overrode this answer: Put aside: The recording is not of this")
    assert "No clinician has reviewed it yet." in report["conclusion"]
    assert "A clinician" not in fhir_bytes(made).decode()
    assert labels(report) == ["AIAST"]
    assert report["conclusionCode"][0]["coding"][0]["code"] == "flagged"
    assert "resultsInterpreter" not in report
    told = of_kind(made, "Provenance")[1]
    assert told["agent"][0]["who"] == {"display": "The record system"}
    assert told["activity"]["text"] == "Reported by the record system: overridden"
    named = Reviewed("overridden", "no", RECORDED, "ehr-gateway", Role.SERVICE)
    assert "resultsInterpreter" not in only(bundle_of(RESULTS["flagged"], reviews=(named,)), "DiagnosticReport")


def test_an_objection_that_was_only_reported_stands_before_the_clinicians_decision_and_does_not_replace_it():
    conclusion = only(bundle_of(RESULTS["flagged"], reviews=(AGREED, REPORTED)), "DiagnosticReport")["conclusion"]
    first, second, *_ = conclusion.split("\n\n")
    assert first.startswith("The record system reported")
    assert second.startswith("A clinician (Dr Osei) agreed")


@pytest.mark.parametrize(("prevalence", "said"), [(0.0005, "0.05 %"), (0.009, "0.9 %"), (0.0434, "4.3 %"), (0.1, "10 %")])
def test_a_prevalence_below_one_percent_is_told_as_it_is(prevalence, said):
    result = RESULTS["flagged"]
    stated = result.model_copy(update={"probability": result.probability.model_copy(update={"prevalence": prevalence})})
    assert f"where {said} of those screened" in only(bundle_of(stated), "DiagnosticReport")["conclusion"]


def test_a_probability_is_in_percent_with_its_interval_and_the_prevalence_it_is_stated_for():
    """R4: "Decimal values are expressed as percentages as well (max = 100)"; 0.226 would be read as two in a thousand."""
    result = RESULTS["flagged"]
    prediction = only(bundle_of(result), "RiskAssessment")["prediction"][0]
    assert result.probability.value == pytest.approx(0.226)
    assert prediction["probabilityDecimal"] == pytest.approx(22.6)
    (statement,) = prediction["extension"]
    parts = {part["url"]: next(value for name, value in part.items() if name != "url") for part in statement["extension"]}
    percent = {"unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
    assert parts["estimate"] == {"value": 22.6, **percent}
    assert parts["interval"] == {"low": {"value": 14, **percent}, "high": {"value": 37, **percent}}
    assert (parts["level"]["value"], parts["prevalence"]["value"], parts["threshold"]["value"]) == (95, 10, 7.2)
    assert "23 % (14 % to 37 %, 95 % interval" in prediction["rationale"]
    assert "where 10 % of those screened are 'depressed'" in prediction["rationale"]
    assert "Timing" in prediction["rationale"]


@pytest.mark.parametrize("name", WITHOUT_NUMBER)
def test_a_number_that_is_withheld_is_nowhere_in_the_bundle_not_even_in_the_audit_record(name):
    """The record has it, for whoever answers for the system; a record system's readers would find it in base64."""
    result = RESULTS[name]
    if result.probability:
        strange = ClassProbability(label=result.probability.label, value=0.123457, prevalence=0.1, interval=result.probability.interval)
        classes = tuple(strange if one.label == strange.label else one for one in result.classes)
        result = result.model_copy(update={"probability": strange, "classes": classes, "explanation": None})
    for reviews in ((), (AGREED,)):
        made = bundle_of(result, reviews=reviews)
        text = fhir_bytes(made).decode()
        carried = b"".join(base64.b64decode(found) for found in re.findall(r'"valueBase64Binary":"([^"]+)"', text))
        for digits in ("123457", "12.3457", "12 %"):
            assert digits not in text
            assert digits.encode() not in carried
        assert "probability" not in {name for one in of_kind(made, "RiskAssessment") for name in one.get("prediction", [{}])[0]}
        assert terms.PROBABILITY not in text


def test_what_makes_up_a_withheld_number_is_withheld_too():
    shown = only(bundle_of(RESULTS["indeterminate"]), "RiskAssessment")["prediction"][0]
    assert "points of percent" not in shown["rationale"]
    assert "cannot tell" in shown["rationale"] or "No number is given" in shown["rationale"]
    assert shown["qualitativeRisk"]["coding"][0]["code"] == "indeterminate"


def test_a_recording_that_is_not_usable_has_a_cancelled_report_that_says_why_and_no_assessment():
    made = bundle_of(RESULTS["refused"], reviews=(AGREED,))
    assert of_kind(made, "RiskAssessment") == []
    report = only(made, "DiagnosticReport")
    assert report["status"] == "cancelled"
    assert "Record at least 25 seconds of speech" in report["conclusion"]
    assert report["conclusionCode"][0]["coding"][0]["code"] == "not_usable"
    assert quality_in(made)["valueCodeableConcept"]["coding"][0]["code"] == "fail"
    assert "extension" not in report
    assert [one["identifier"][0]["system"] for one in of_kind(made, "Device") if one["deviceName"][0]["type"] != "model-name"] == [SOFTWARE]


def test_of_several_classes_each_has_its_prediction_and_one_is_what_it_was_classified_as():
    predictions = only(bundle_of(RESULTS["classified"]), "RiskAssessment")["prediction"]
    told = {one["outcome"]["text"]: one["probabilityDecimal"] for one in predictions}
    assert told == {"anger": 2, "boredom": 15, "disgust": 3, "fear": 5, "happiness": 1, "neutral": 12, "sadness": 62}
    assert [one["outcome"]["text"] for one in predictions if "qualitativeRisk" in one] == ["sadness"]
    assert [one["outcome"]["text"] for one in predictions if "surely moved it" in one["rationale"]] == ["sadness"]


def test_what_several_classes_are_left_is_told_without_numbers():
    predictions = only(bundle_of(RESULTS["several classes"]), "RiskAssessment")["prediction"]
    assert [one["outcome"]["text"] for one in predictions] == ["sadness", "neutral"]
    assert {one["qualitativeRisk"]["coding"][0]["code"] for one in predictions} == {"indeterminate"}
    assert "prediction" not in only(bundle_of(RESULTS["no class"]), "RiskAssessment")


def test_only_depression_is_coded_as_a_disorder():
    def systems(name):
        return {one["system"] for one in codings(bundle_of(RESULTS[name])["entry"])}

    assert only(bundle_of(RESULTS["flagged"]), "RiskAssessment")["prediction"][0]["outcome"] == {
        "coding": [{"system": "http://snomed.info/sct", "code": "35489007", "display": "Depressive disorder"}],
        "text": "depressed (PHQ-8 ≥ 10)",
    }
    assert terms.SNOMED not in systems("classified")
    another = RESULTS["flagged"].model_copy(update={"task": "anxiety"})
    assert terms.SNOMED not in {one["system"] for one in codings(bundle_of(another)["entry"])}
    # Of several classes, one may be that there is none.
    severity = RESULTS["classified"].model_copy(update={"task": "depression"})
    assert terms.SNOMED not in {one["system"] for one in codings(bundle_of(severity)["entry"])}
    assert not any("loinc" in system for name in RESULTS for system in systems(name))


def test_a_prediction_is_about_the_day_of_the_recording_and_not_about_a_lifespan():
    made = bundle_of(RESULTS["flagged"])
    assert only(made, "RiskAssessment")["prediction"][0]["whenPeriod"] == {"start": "2026-11-03", "end": "2026-11-03"}
    undated = only(bundle_of(RESULTS["nothing to compare"]), "RiskAssessment")
    assert undated["prediction"][0]["whenPeriod"]["start"] == "2026-11-03T09:30:00.123Z"


def test_it_says_what_it_is_for_and_that_its_model_learned_from_simulated_speech():
    result = RESULTS["flagged"]
    made = bundle_of(result)
    notes = [note["text"] for note in only(made, "RiskAssessment")["note"]]
    assert notes[:2] == [result.intended_use, words.SIMULATED]
    assert {result.notices[0]} <= set(notes)
    real = result.model_copy(update={"model": result.model.model_copy(update={"simulated": False})})
    assert words.SIMULATED in only(made, "DiagnosticReport")["conclusion"]
    assert words.SIMULATED not in fhir_bytes(bundle_of(real)).decode()


def test_what_a_model_asserts_is_labelled_so_and_what_is_measured_is_a_devices():
    made = bundle_of(RESULTS["flagged"])
    assert labels(only(made, "RiskAssessment")) == labels(only(made, "DiagnosticReport")) == labels(only(made, "DocumentReference")) == ["AIAST"]
    assert {tuple(labels(one)) for one in of_kind(made, "Observation")} == {("DEVAST",)}
    assert labels(only(bundle_of(RESULTS["refused"]), "DiagnosticReport")) == ["DEVAST"]
    for review, wanted in ((AGREED, ["AIAST", "CLINAST"]), (OVERRIDDEN, ["AIAST", "CLINAST"]), (UNDECIDED, ["AIAST"])):
        reviewed = bundle_of(RESULTS["flagged"], reviews=(review,))
        assert labels(only(reviewed, "DiagnosticReport")) == wanted
        assert labels(only(reviewed, "RiskAssessment")) == ["AIAST"]


def test_the_method_names_the_model_by_its_digest_and_its_encoders():
    result = RESULTS["flagged"]
    with_encoder = result.model_copy(update={"model": result.model.model_copy(update={"encoders": {"ge2e": "sha256:77"}, "without_embedding": True})})
    text = only(bundle_of(with_encoder), "RiskAssessment")["method"]["text"]
    for part in ("voice-one 3", result.model.digest, "ge2e (sha256:77)", "without the embeddings", "untrusted"):
        assert part in text


# --- Measures and the gate -------------------------------------------------------------------------------------------------------------------


def test_each_measure_is_an_observation_under_a_code_of_ours():
    result = RESULTS["flagged"]
    found = measures_in(bundle_of(result))
    known = {one["code"]: one["display"] for one in terms.codesystem()["concept"]}
    assert list(found) == [one.name for one in result.measures]
    for name, observation in found.items():
        assert observation["code"]["coding"][0]["display"] == known[name]


def test_values_have_the_units_of_ucum_where_it_has_them():
    found = measures_in(bundle_of(RESULTS["flagged"]))
    ucum = "http://unitsofmeasure.org"
    assert found["timing.pause_mean_s"]["valueQuantity"] == {"value": 0.91, "unit": "s", "system": ucum, "code": "s"}
    assert found["timing.pause_share_percent"]["valueQuantity"] == {"value": 38, "unit": "%", "system": ucum, "code": "%"}
    # UCUM's "st" is a stere, a cubic metre of wood.
    assert found["praat.f0_sd_semitones"]["valueQuantity"] == {"value": 1.4, "unit": "semitone"}


@pytest.mark.parametrize("unit", sorted({catalogue.get(name).unit for name in catalogue.names("egemaps", "praat", "timing", "compare")}))
def test_no_unit_of_the_catalogue_gets_a_code_that_ucum_reads_otherwise(unit):
    """`dB` is a logarithmic unit, which UCUM lets nobody divide; `a.u.` and semitones it does not have."""
    made = terms.quantity(1.0, unit)
    valid = {"1", "%", "s", "us", "Hz", "dB", "1/s", "1/min"}
    assert ("code" in made) is (unit in valid)
    assert made.get("code", unit) == unit
    assert made["unit"]


def test_a_measure_without_a_value_says_why():
    made = measures_in(bundle_of(RESULTS["flagged"]))["praat.cpps_db"]
    assert "valueQuantity" not in made
    assert made["dataAbsentReason"]["text"] == "too little voice"
    assert made["dataAbsentReason"]["coding"][0]["code"] == "not-performed"


def test_a_measure_without_a_value_is_no_basis_of_the_assessment():
    made = bundle_of(RESULTS["flagged"])
    urls = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    basis = [urls[one["reference"]] for one in only(made, "RiskAssessment")["basis"]]
    assert len(basis) == len(RESULTS["flagged"].measures)  # the quality, and all measures but the one that is missing
    assert not any("dataAbsentReason" in one for one in basis)


def test_the_middle_half_of_a_group_is_no_range_that_a_record_system_could_flag_by():
    for one in measures_in(bundle_of(RESULTS["flagged"])).values():
        (reference,) = one["referenceRange"]
        assert set(reference) == {"text"}
        assert "interpretation" not in one
    told = measures_in(bundle_of(RESULTS["flagged"]))["timing.pause_share_percent"]["referenceRange"][0]["text"]
    assert "not depressed, female, 45 to 65 years, 84 people): 18 to 27 %" in told
    assert "Half of its people lie outside" in told
    assert "at or above the group's 95th percentile" in told
    # 5 is where what is kept of a group ends: 5 or any less.
    lowest = measures_in(bundle_of(RESULTS["flagged"]))["praat.f0_sd_semitones"]["referenceRange"][0]["text"]
    assert "at or below the group's 5th percentile" in lowest


def test_a_difference_from_the_persons_own_recordings_is_another_quantity():
    result = RESULTS["flagged"]
    relative = result.model_copy(update={"model": result.model.model_copy(update={"uses_baseline": True})})
    plain, change = (list(measures_in(bundle_of(one))) for one in (result, relative))
    assert change == [f"{name}.change" for name in plain]
    known = {one["code"]: one["display"] for one in terms.codesystem()["concept"]}
    for name, one in measures_in(bundle_of(relative)).items():
        assert one["code"]["text"] == known[name]
        assert "difference from" in known[name]


def test_the_gates_checks_are_components_with_the_limits_they_were_held_against():
    quality = quality_in(bundle_of(RESULTS["flagged"]))
    speech = quality["component"][0]
    assert speech["valueQuantity"] == {"value": 21, "unit": "s", "system": "http://unitsofmeasure.org", "code": "s"}
    assert speech["referenceRange"][0]["low"]["value"] == 25
    assert "high" not in speech["referenceRange"][0]
    assert speech["interpretation"][0]["coding"][0]["code"] == "warn"
    assert speech["interpretation"][0]["text"] == "Speak a little longer."
    assert quality["valueCodeableConcept"]["text"] == "Speak a little longer."


def test_every_check_of_the_gate_has_a_code_and_every_limit_its_side(screened):
    components = quality_in(bundle_of(screened["usable"]))["component"]
    checks = screened["usable"].quality.checks
    assert [one["code"]["coding"][0]["code"] for one in components] == [one.name for one in checks]
    for component, check in zip(components, checks, strict=True):
        if check.warn_limit is not None:
            assert component["referenceRange"][0]["low" if check.bound == "at_least" else "high"]["value"] == pytest.approx(check.warn_limit)
        assert ("valueQuantity" in component) is (check.value is not None)


# --- The document, where it comes from, the record -------------------------------------------------------------------------------------------


def test_the_report_is_inline_with_what_tells_damage_and_what_tells_a_forgery():
    document = only(bundle_of(RESULTS["flagged"], report_pdf=PDF), "DocumentReference")
    attachment = document["content"][0]["attachment"]
    assert base64.b64decode(attachment["data"]) == PDF
    assert attachment["size"] == len(PDF)
    assert base64.b64decode(attachment["hash"]) == hashlib.sha1(PDF, usedforsecurity=False).digest()
    assert document["masterIdentifier"] == {"system": terms.DOCUMENTS, "value": hashlib.sha256(PDF).hexdigest()}
    assert "url" not in attachment


@pytest.mark.parametrize("base", [BASE, f"{BASE}/"])
def test_without_the_report_it_says_where_the_service_has_it(base):
    document = only(bundle_of(RESULTS["flagged"], base=base), "DocumentReference")
    assert document["content"][0]["attachment"]["url"] == f"{BASE}/v1/screenings/{ID}/report"
    # There it is a page unless somebody asks for the PDF.
    assert "contentType" not in document["content"][0]["attachment"]
    assert "data" not in document["content"][0]["attachment"]


def test_provenance_names_the_recording_the_model_and_whoever_asked_and_the_clinician_who_reviewed():
    result = RESULTS["flagged"]
    made = bundle_of(result, reviews=(AGREED, UNDECIDED))
    urls = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    first, *reviews = of_kind(made, "Provenance")
    agents = [(one["type"]["coding"][0]["code"], one["who"]) for one in first["agent"]]
    assert [urls[who["reference"]]["deviceName"][0]["name"] for kind, who in agents if kind == "assembler"] == ["voice-one", "clinical-ser 0.1.0"]
    assert ("enterer", {"display": "Dr Abara"}) in agents
    assert first["entity"][0]["what"]["identifier"] == {"system": terms.RECORDINGS, "value": result.recording.sha256}
    assert first["entity"][1]["what"]["identifier"]["value"] == RECORD + result.digest
    targets = {one["reference"] for one in first["target"]}
    kinds = {"RiskAssessment", "DiagnosticReport", "DocumentReference", "Observation"}
    assert targets == {url for url, resource in urls.items() if resource["resourceType"] in kinds}
    assert [(one["recorded"], one["agent"][0]["type"]["coding"][0]["code"], one["agent"][0]["who"]) for one in reviews] == [
        ("2026-11-03T09:40:00.123Z", "author", {"display": "Dr Osei"}),
        ("2026-11-03T10:00:00.123Z", "author", {"display": "A clinician of this site"}),
    ]


def test_where_no_model_answered_none_made_anything():
    made = bundle_of(RESULTS["refused"], audit=None)
    assert [one["deviceName"][0]["type"] for one in of_kind(made, "Device")] == ["user-friendly-name"]
    assert len([one for one in of_kind(made, "Provenance")[0]["agent"] if one["type"]["coding"][0]["code"] == "assembler"]) == 1


def test_the_audit_event_is_the_logs_own_led_to_this_patient_and_these_devices():
    result = RESULTS["flagged"]
    audit = audited(result)
    made = bundle_of(result, audit=audit)
    event, own = only(made, "AuditEvent"), Maker(ORIGIN, None).event(audit.record, None)
    urls = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    for name in ("id", "meta", "type", "subtype", "action", "recorded", "outcome", "purposeOfEvent"):
        assert event[name] == own[name]
    assert urls[event["source"]["observer"]["reference"]]["identifier"][0] == {"system": SOFTWARE, "value": "clinical-ser 0.1.0"}
    data, patient, model, evidence = event["entity"][1], event["entity"][0], event["entity"][2], event["entity"][-1]
    assert patient["what"] == PATIENT.to_json()
    assert urls[data["what"]["reference"]]["resourceType"] == "DiagnosticReport"
    assert data["what"]["identifier"] == {"system": RESULT, "value": RECORD + result.digest}
    assert urls[model["what"]["reference"]]["identifier"][0]["system"] == MODEL
    details = {one["type"]: one.get("valueString", one.get("valueBase64Binary")) for one in evidence["detail"]}
    assert (details["index"], details["leaf-hash"]) == ("7", leaf_hash(audit.record.leaf).hex())
    assert base64.b64decode(details["leaf"]) == audit.record.leaf
    assert not {"payload", "salt"} & set(details)


def test_an_entity_with_nothing_but_what_stays_in_the_log_is_left_without_details(monkeypatch):
    result, audit = RESULTS["flagged"], audited(RESULTS["flagged"])
    own = Maker.event

    def only_sealed(self, *args):
        event = own(self, *args)
        sealed = [{"type": "salt", "valueBase64Binary": "c2FsdA=="}, {"type": "payload", "valueBase64Binary": "cGF5bG9hZA=="}]
        return {**event, "entity": [*event["entity"][:-1], {**event["entity"][-1], "detail": sealed}]}

    monkeypatch.setattr(Maker, "event", only_sealed)
    event = only(bundle_of(result, audit=audit), "AuditEvent")
    assert "detail" not in event["entity"][-1]


def test_a_device_that_only_the_record_names_is_added_once():
    """A record by another version of this program, or one whose model is told by a digest alone."""
    result = RESULTS["flagged"]
    newer = result.model_copy(update={"software": {"clinical-ser": "9.9"}})
    made = bundle_of(newer, audit=audited(newer))
    names = [one["identifier"][0]["value"] for one in of_kind(made, "Device")]
    assert {"clinical-ser 9.9", "clinical-ser 0.1.0"} <= set(names)
    assert len(names) == len(set(names))
    assert r4.check(made) == []


def test_a_command_on_no_network_claims_no_profile():
    result = RESULTS["flagged"]
    event = only(bundle_of(result, audit=audited(result, OPERATOR)), "AuditEvent")
    assert "meta" not in event
    assert check_resource(event) == []


def test_a_sealed_record_names_nobody_and_is_taken():
    result = RESULTS["flagged"]
    audit = audited(result)
    sealed = dataclasses.replace(audit, record=dataclasses.replace(audit.record, payload=None, salt=None, state="sealed"))
    made = bundle_of(result, audit=sealed)
    assert "Dr CANARY Osei" not in fhir_bytes(made).decode()
    assert r4.check(made) == []


def test_the_record_of_another_recording_is_refused():
    with pytest.raises(ValueError, match="another recording"):
        bundle_of(RESULTS["flagged"], audit=audited(signed(samples.refused(recording=RecordingIdentity(sha256="77" * 32, duration_s=3.0)))))


def test_the_report_has_the_record_that_is_printed_on_it():
    result = RESULTS["flagged"]
    for audit in (audited(result), None):
        assert only(bundle_of(result, audit=audit), "DiagnosticReport")["identifier"][1] == {"system": RESULT, "value": RECORD + result.digest}


# --- Forms -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reference": "Patient/17", "system": "urn:x", "value": "17"},
        {"reference": "Patient/"},
        {"reference": "Practitioner/17"},
        {"reference": "Patient/17/_history/2"},
        {"reference": "Patient/1 7"},
        {"reference": "Patient/17\n"},
        {"reference": "urn:uuid:0"},
        {"reference": "javascript://x/Patient/17"},
        {"system": "urn:x"},
        {"value": "17"},
        {"system": "mrn", "value": "17"},
        {"system": "urn:x y", "value": "17"},
        {"system": "urn:x", "value": " "},
        {"system": "urn:x", "value": "CANARY\n17"},
        {"system": "urn:x", "value": "C" * 501},
    ],
    ids=str,
)
def test_a_subject_of_another_form_is_refused_without_being_repeated(options):
    with pytest.raises(InvalidValueError) as caught:
        SubjectReference(**options)
    assert "CANARY" not in str(caught.value)
    assert "17" not in str(caught.value)


@pytest.mark.parametrize("reference", ["Patient/17", "https://ehr.example/fhir/Patient/a-1.b"])
def test_a_subject_is_named_as_the_record_system_does(reference):
    made = bundle_of(RESULTS["flagged"], subject=SubjectReference(reference=reference))
    subjects = [one["subject"] for one in (entry["resource"] for entry in made["entry"]) if "subject" in one]
    assert all(one == {"reference": reference, "type": "Patient"} for one in subjects)
    assert len(subjects) == len(RESULTS["flagged"].measures) + 4


def test_neither_subject_nor_clinician_is_in_what_an_error_would_show():
    shown = repr((SubjectReference(system="urn:x", value="CANARY"), SubjectReference(reference="Patient/CANARY")))
    shown += repr((Reviewed("agreed", "CANARY", RECORDED, "CANARY"), audited(RESULTS["flagged"], subject="CANARY")))
    assert "CANARY" not in shown


@pytest.mark.parametrize("screening_id", ["", "a/b", "a b", "a|b", "a" * 65, "ä", "a\n", "a?b=c"])
def test_an_id_that_would_mean_something_in_a_search_is_refused(screening_id):
    with pytest.raises(InvalidValueError):
        bundle_of(RESULTS["flagged"], screening_id=screening_id)


@pytest.mark.parametrize("base", ["", "screening.example", "ftp://a.example", "https://", "https://a b", "javascript:x"])
def test_a_base_that_is_no_address_is_refused(base):
    with pytest.raises(InvalidValueError):
        bundle_of(RESULTS["flagged"], base=base)


@pytest.mark.parametrize("where", ["recorded", "review"])
def test_a_time_without_its_zone_is_refused(where):
    naive = datetime(2026, 11, 3, 9, 30)
    options = {"recorded": naive} if where == "recorded" else {"reviews": (dataclasses.replace(AGREED, time=naive),)}
    with pytest.raises(ValueError, match="zone"):
        bundle_of(RESULTS["flagged"], **options)


def test_times_are_utc_with_milliseconds():
    later = RECORDED.replace(microsecond=0).astimezone(timezone(timedelta(hours=8)))
    made = bundle_of(RESULTS["nothing to compare"], recorded=later, reviews=(AGREED,), audit=None)
    text = fhir_bytes(made).decode()
    times = re.findall(r'"(\d{4}-\d\d-\d\dT[^"]*)"', text)
    assert times
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one) for one in times)
    assert only(made, "RiskAssessment")["occurrenceDateTime"] == "2026-11-03T09:30:00.000Z"
    assert made["timestamp"] == only(made, "DiagnosticReport")["issued"] == "2026-11-03T09:40:00.123Z"


@pytest.mark.parametrize("name", RESULTS)
def test_the_same_screening_gives_the_same_bytes_in_the_one_canonical_spelling(name):
    made, again = (fhir_bytes(bundle_of(RESULTS[name], report_pdf=PDF, reviews=(AGREED,))) for _ in range(2))
    assert made == again == rfc8785.dumps(json.loads(made))


def test_what_another_library_writes_again_has_other_bytes():
    """Why signatures are over `fhir_bytes`: the times alone are spelled otherwise."""
    made = fhir_bytes(bundle_of(RESULTS["flagged"]))
    assert rfc8785.dumps(json.loads(Bundle.model_validate_json(made).model_dump_json())) != made


TEXTS = st.text(max_size=60)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=TEXTS, reason=TEXTS, notice=TEXTS, model=TEXTS, device=st.text(min_size=1, max_size=20))
def test_no_text_of_anybody_breaks_a_resource(name, reason, notice, model, device):
    result = RESULTS["flagged"]
    hostile = result.model_copy(
        update={
            "notices": (notice,),
            "model": result.model.model_copy(update={"name": model, "version": device}),
            "software": {"clinical-ser": device},
            "summary": notice,
        }
    )
    made = bundle_of(hostile, audit=None, author=name, reviews=(Reviewed("overridden", reason, RECORDED, name),))
    assert r4.check(made) == []
    Server().post(json.loads(fhir_bytes(made)))


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "a & b", "\x00\x0b\u00a0\u2028", "\ud800", "<p>", "]]>", "\u202eabc", "\uffff"], ids=ascii
)
def test_a_reviewers_text_is_text_in_the_narrative(text):
    made = bundle_of(RESULTS["flagged"], reviews=(Reviewed("overridden", text, RECORDED, text),))
    assert r4.check(made) == []
    assert "<script" not in only(made, "RiskAssessment")["text"]["div"]


SHARES = st.floats(min_value=0, max_value=1, allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(SHARES, min_size=3, max_size=3), prevalence=st.floats(min_value=1e-6, max_value=1 - 1e-6))
def test_every_probability_is_a_percentage_within_its_interval(values, prevalence):
    low, value, high = sorted(values)
    interval = Interval(low=low, high=high, level=0.95, method="refits")
    stated = ClassProbability(label="depressed", value=value, prevalence=prevalence, interval=interval)
    made = bundle_of(RESULTS["flagged"].model_copy(update={"probability": stated, "explanation": None}), audit=None)
    assert r4.check(made) == []
    prediction = only(made, "RiskAssessment")["prediction"][0]
    parts = {part["url"]: part for part in prediction["extension"][0]["extension"]}
    shown = parts["interval"]["valueRange"]
    assert 0 <= shown["low"]["value"] <= prediction["probabilityDecimal"] <= shown["high"]["value"] <= 100
    assert prediction["probabilityDecimal"] == pytest.approx(100 * value, rel=1e-5)
    assert parts["prevalence"]["valueQuantity"]["value"] == pytest.approx(100 * prevalence, rel=1e-5)


@given(value=st.floats(min_value=-1e12, max_value=1e12, allow_nan=False))
def test_a_number_is_written_with_six_digits_and_read_back_as_r4s_decimal(value):
    shown = terms.number(value)
    assert shown == pytest.approx(value, rel=1e-5)
    assert re.fullmatch(r4.PRIMITIVES["decimal"], fhir_bytes({"a": shown})[5:-1].decode())


def test_a_bundle_without_its_report_takes_under_ten_milliseconds():
    result, audit = RESULTS["flagged"], audited(RESULTS["flagged"])
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        fhir_bytes(bundle_of(result, audit=audit))
        taken.append(time.perf_counter() - start)
    # The quickest, because the machine may have other things to do.
    assert min(taken) < 0.010


# --- Our own terms ---------------------------------------------------------------------------------------------------------------------------


def test_the_terms_pass_too_and_can_be_posted_again():
    made, server = terms.terminology(), Server()
    assert r4.check(made) == []
    Bundle.model_validate_json(fhir_bytes(made))
    for entry in made["entry"]:
        entry["fullUrl"] = entry["resource"]["url"]
    assert server.post(made) == ["created"] * 4
    assert server.post(made) == ["updated"] * 4


def test_every_feature_that_a_panel_can_show_is_in_the_code_system_in_two_languages():
    system = terms.codesystem()
    known = {one["code"]: one for one in system["concept"]}
    assert {name for place in PANEL for name in place} <= set(known)
    assert system["count"] == len(known) == 2 * len(catalogue.names("egemaps", "praat", "timing"))
    pause = known["timing.pause_mean_s"]
    spec = catalogue.get("timing.pause_mean_s")
    assert (pause["display"], pause["definition"]) == (spec.label_en, spec.meaning_en)
    assert pause["designation"] == [{"language": "zh", "value": spec.label_zh}]
    assert {one["code"]: one.get("valueString", one.get("valueCode")) for one in pause["property"]} == {"unit": "s", "family": "timing"}


def test_every_code_that_is_used_is_in_the_system_that_it_names():
    known = {
        system["url"]: {one["code"]: one["display"] for one in system["concept"]} for system in (terms.codesystem(), terms.screening_codesystem())
    }
    used = [coding for name in RESULTS for review in ((), (OVERRIDDEN,)) for coding in codings(bundle_of(RESULTS[name], reviews=review)["entry"])]
    ours = [one for one in used if one["system"].startswith(terms.TERMS)]
    assert {one["system"] for one in ours} == set(known)
    for one in ours:
        assert one["display"] == known[one["system"]][one["code"]]


def test_run_as_a_module_it_prints_the_terms(capfdbinary):
    with pytest.warns(RuntimeWarning, match="found in sys.modules"):
        runpy.run_module("clinical_ser.interop.fhir_terms", run_name="__main__")
    printed = capfdbinary.readouterr().out
    assert printed == fhir_bytes(terms.terminology()) + b"\n"


def test_checks_of_the_gate_that_have_no_code_yet_are_told_in_words():
    result = RESULTS["flagged"]
    check = result.quality.checks[0].model_copy(update={"name": "wind"})
    changed_ = result.model_copy(update={"quality": result.quality.model_copy(update={"checks": (check,)})})
    assert quality_in(bundle_of(changed_))["component"][0]["code"] == {"text": "wind"}


def test_words_for_probabilities_claim_no_certainty():
    told = {0.0: "under 1 %", 0.009: "under 1 %", 0.01: "1 %", 0.314: "31 %", 0.99: "99 %", 0.991: "over 99 %", 1.0: "over 99 %"}
    assert {p: words.percent(p) for p in told} == told
