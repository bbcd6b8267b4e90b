"""The record of processing: blank fields are refused by name, and the log's part is numbers that the log bears out."""

import json
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from clinical_ser.audit.events import Disclosure, Erasure, ModelChange, Outcome, Purpose
from clinical_ser.audit.exports import processing
from clinical_ser.audit.exports.processing import Processing, export_processing, processing_template, read_site_record, verify_processing
from clinical_ser.audit.exports.shown import json_schema
from clinical_ser.errors import AuditFormatError, AuditTamperedError, InvalidValueError
from tests.audit.exports.example import MODEL, NEW_MODEL, OFFICER, OPERATOR, SIGNER, START, Entry, ExampleLog, inference
from tests.audit.exports.made import CREATED, TimedLog, everything, forged, opened, with_document

SITE = """
joint_controllers = "not applicable: the hospital alone decides"
representative = "not applicable: established in the Union"
purposes = ["Screening for depression."]
transfers = "not applicable: nothing leaves the country"
security = ["encryption at rest", "roles"]
complaints = "The data protection authority"

[controller]
name = "Hospital"
contact = "privacy@hospital.example"

[data_protection_officer]
name = "Officer"
contact = "dpo@hospital.example"

[[data]]
data = "answers of the screening"
subjects = "patients"
retention = "six years"

[[recipients]]
category = "public health"
names = ["Public Health Office", "Registry"]

[[recipients]]
category = "insurers"
"""


def given(recipient):
    return Disclosure(actor=OFFICER, result=None, recipient=recipient, recipient_address=None, description="d", purpose_text="p", accountable=True)


def reader_of():
    return TimedLog(
        [
            Entry(ModelChange(actor=OPERATOR, action="activated", name="m", old=None, new=MODEL), model=MODEL),
            Entry(inference(), "one-CANARY", model=MODEL),
            Entry(inference("b2" * 32), "two-CANARY", model=MODEL),
            Entry(given("Registry"), "one-CANARY", purpose=Purpose.PUBLIC_HEALTH),
            Entry(given("CANARY Insurance"), "one-CANARY", purpose=Purpose.PAYMENT),
            Entry(given("Registry"), "one-CANARY", outcome=Outcome.FAILED),
            Entry(Erasure(actor=OFFICER, erased="", reason="held", basis="x"), outcome=Outcome.REFUSED),
            Entry(ModelChange(actor=OPERATOR, action="refused", name="m", old=MODEL, new=NEW_MODEL), model=NEW_MODEL, outcome=Outcome.REFUSED),
        ],
        erased=frozenset(),
    )


def made(tmp_path, reader, **options):
    folder = tmp_path / "out"
    export_processing(reader, folder, signers=[SIGNER], **{"site": SITE.encode(), "created": CREATED, **options})
    return folder


def document(folder):
    return json.loads((folder / "processing.json").read_bytes())


def test_the_log_states_what_it_can_by_counting(tmp_path: Path):
    log = document(made(tmp_path, reader_of()))["log"]
    assert log["by_kind"] == {"disclosure": 3, "erasure": 1, "inference": 2, "model": 2}
    assert log["disclosures"] == {"other": 1, "public health": 1}
    assert log["disclosures_by_purpose"] == {"HPAYMT": 1, "PUBHLTH": 1}
    assert log["erasures"] == {"refused": 1}
    assert [(use["model"], use["inferences"], len(use["activated"])) for use in log["models"]] == [(MODEL, 2, 1)]
    assert log["models"][0]["first_used"] < log["models"][0]["last_used"]


def test_nobody_is_in_it(tmp_path: Path):
    assert b"CANARY" not in everything(made(tmp_path, reader_of()))
    assert b"CANARY" not in everything(made(tmp_path / "example", ExampleLog()))


def test_the_page_answers_each_letter_of_the_clause(tmp_path: Path):
    text = (made(tmp_path, reader_of()) / "processing.txt").read_text(encoding="utf-8")
    for letter in "abcdefg":
        assert f"\n({letter}) " in text
    assert "Disclosures to public health: 1" in text


def test_a_disclosure_that_cannot_be_read_is_counted_as_that(tmp_path: Path):
    reader = reader_of()
    reader.sealed = True
    assert document(made(tmp_path, reader))["log"]["disclosures"] == {"not readable": 2}


def test_a_period_is_counted_with_both_ends(tmp_path: Path):
    log = document(made(tmp_path, reader_of(), since=START + timedelta(minutes=1), until=START + timedelta(minutes=3)))["log"]
    assert log["by_kind"] == {"disclosure": 1, "inference": 2}


def test_an_empty_log_is_counted_too(tmp_path: Path):
    reader = TimedLog([], erased=frozenset())
    folder = made(tmp_path, reader)
    assert document(folder)["log"]["records"] == 0
    verify_processing(opened(folder), reader)


def test_a_time_without_zone_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match="time zone"):
        made(tmp_path, reader_of(), since=START.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("was", "blank", "field"),
    [
        ('name = "Hospital"', 'name = ""', "controller.name"),
        ('contact = "dpo@hospital.example"', 'contact = "TBD"', "data_protection_officer.contact"),
        ('purposes = ["Screening for depression."]', "purposes = []", "purposes"),
        ('purposes = ["Screening for depression."]', 'purposes = ["  "]', "purposes.0"),
        ('retention = "six years"', 'retention = "n/a"', "data.0.retention"),
        ('retention = "six years"', "", "data.0.retention"),
        ('complaints = "The data protection authority"', 'complaints = "unknown"', "complaints"),
        ('transfers = "not applicable: nothing leaves the country"', 'transfers = "not applicable"', "transfers"),
        ('transfers = "not applicable: nothing leaves the country"', 'transfers = "not applicable: -"', "transfers"),
        ('category = "insurers"', 'category = "?"', "recipients.1.category"),
    ],
)
def test_a_blank_field_fails_by_its_name(was, blank, field):
    assert was in SITE
    with pytest.raises(InvalidValueError, match=rf"blank, missing or unknown: {field}(,|\b)"):
        read_site_record(SITE.replace(was, blank).encode())


def test_a_field_of_another_name_is_refused_and_not_quoted():
    with pytest.raises(InvalidValueError) as error:
        read_site_record(('CANARY = "x"\n' + SITE).encode())
    assert "CANARY" not in str(error.value)


@pytest.mark.parametrize("content", [b"\xff", b"= 1", b"x" * (processing.MAX_FILE_BYTES + 1)])
def test_what_is_no_toml_is_refused(content):
    with pytest.raises(InvalidValueError):
        read_site_record(content)


def test_transfers_may_be_a_list():
    listed = SITE.replace('transfers = "not applicable: nothing leaves the country"\n', "") + '\n[[transfers]]\nto = "X"\nsafeguards = "clauses"\n'
    assert read_site_record(listed.encode()).transfers[0].to == "X"


def test_the_template_names_every_field_and_is_refused_unfilled():
    with pytest.raises(InvalidValueError) as error:
        read_site_record(processing_template().encode())
    for field in processing.SiteRecord.model_fields:
        assert field in str(error.value)
    assert "another name" not in str(error.value)


def test_the_same_record_is_the_same_bytes(tmp_path: Path):
    assert everything(made(tmp_path / "a", reader_of())) == everything(made(tmp_path / "b", reader_of()))


def test_it_fits_its_schema_and_the_schema_is_the_models(tmp_path: Path):
    raw = (files("clinical_ser.audit.exports") / "schemas" / "audit-processing-1.schema.json").read_bytes()
    assert raw == json_schema(Processing, processing.SCHEMA, records=None)
    jsonschema.validate(document(made(tmp_path, reader_of())), json.loads(raw))


def test_one_in_order_is_found_in_order(tmp_path: Path):
    reader = reader_of()
    packet = opened(made(tmp_path, reader))
    assert "count again" in verify_processing(packet).unchecked[0]
    assert verify_processing(packet, reader).unchecked == ()


FORGERIES = {
    "the page": {"processing_txt": lambda raw: raw.replace(b"Officer", b"Nobody")},
    "the record and not the page": {"processing_json": lambda raw: raw.replace(b"six years", b"ten years")},
    "a field blank": {"processing_json": lambda raw: raw.replace(b'"six years"', b'""')},
    "another log": {"processing_json": with_document(origin="elsewhere")},
    "another size": {"processing_json": with_document(size=1)},
    "the page dropped": {"processing_txt": None},
    "a file too many": {"more": b"x"},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_with_the_logs_own_signature_is_seen(tmp_path: Path, changes):
    reader = reader_of()
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, **changes)
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_processing(packet)


@pytest.mark.parametrize(
    "lie", [(b'"inference": 2', b'"inference": 3', b"inference: 2", b"inference: 3"), (b'"other": 1', b'"others": 1', b"to other", b"to others")]
)
def test_another_count_is_seen_with_the_log(tmp_path: Path, lie):
    reader = reader_of()
    packet = forged(
        made(tmp_path, reader),
        tmp_path / "forged",
        reader,
        processing_json=lambda raw: raw.replace(*lie[:2]),
        processing_txt=lambda raw: raw.replace(*lie[2:]),
    )
    verify_processing(packet)
    with pytest.raises(AuditTamperedError, match="counts"):
        verify_processing(packet, reader)


def test_a_disclosure_that_can_no_longer_be_read_is_no_forgery(tmp_path: Path):
    reader = reader_of()
    packet = opened(made(tmp_path, reader))
    later = reader_of()
    later.erased = frozenset({3})
    assert "no longer" in verify_processing(packet, later).unchecked[0]
