"""The accounting of disclosures: what is in it, what is left out and counted, and that nothing in it can be changed unseen."""

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from clinical_ser.audit.events import Disclosure, Flag, Notice, Outcome, Purpose
from clinical_ser.audit.exports import accounting
from clinical_ser.audit.exports.accounting import Accounting, export_accounting, verify_accounting
from clinical_ser.audit.exports.fhir_rules import check_resource
from clinical_ser.audit.exports.shown import json_schema
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditTamperedError, InvalidValueError
from tests.audit.exports.example import CLINICIAN, FIRST_SUBJECT, OFFICER, SECOND_SUBJECT, SERVICE, SIGNER, Entry, ExampleLog, record_of
from tests.audit.exports.made import CREATED, REQUESTED, TimedLog, everything, forged, opened, with_document, with_line, without_line

WHO = "subject-one"
OTHER = "subject-two-CANARY"


def given(recipient="Public Health Office", accountable=True, **changes):
    told = {
        "actor": OFFICER,
        "result": None,
        "recipient": recipient,
        "recipient_address": "1 Main Street",
        "description": "screening report",
        "purpose_text": "required by law",
        "accountable": accountable,
    }
    return Disclosure.model_validate({**told, **changes})


def log(*entries, **options):
    return TimedLog([*entries], erased=options.pop("erased", frozenset()), **options)


def five():
    """Two of the same, one more, one of another subject, one for treatment."""
    return log(
        Entry(given(), WHO, purpose=Purpose.PUBLIC_HEALTH),
        Entry(given(recipient="OTHER-CANARY Office"), OTHER, purpose=Purpose.PUBLIC_HEALTH),
        Entry(given(), WHO, purpose=Purpose.PUBLIC_HEALTH),
        Entry(given(recipient="Court", recipient_address=None), WHO, purpose=Purpose.LEGAL),
        Entry(given(recipient="TREATMENT-CANARY", accountable=False), WHO, purpose=Purpose.TREATMENT),
        Entry(Notice(actor=SERVICE, text_version="1"), WHO),
    )


def made(tmp_path, reader, **options):
    folder = tmp_path / "out"
    export_accounting(reader, folder, signers=[SIGNER], **{"subject": WHO, "requested": REQUESTED, "created": CREATED, **options})
    return folder


def document(folder):
    return json.loads((folder / "accounting.json").read_bytes())


def test_each_accountable_disclosure_is_a_row_with_what_the_clause_asks_for(tmp_path: Path):
    told = document(made(tmp_path, five()))
    rows = [(row["date"][:16], row["recipient"], row["address"], row["description"], row["purpose"]) for row in told["disclosures"]]
    assert rows == [
        ("2026-09-01T08:30", "Public Health Office", "1 Main Street", "screening report", "required by law"),
        ("2026-09-01T08:32", "Public Health Office", "1 Main Street", "screening report", "required by law"),
        ("2026-09-01T08:33", "Court", None, "screening report", "required by law"),
    ]
    assert told["records_of_subject"] == 5


def test_what_is_excepted_is_counted_by_reason_and_told_nowhere(tmp_path: Path):
    folder = made(tmp_path, five())
    assert document(folder)["left_out"]["not_accountable"] == {"TREAT": 1}
    assert b"TREATMENT-CANARY" not in everything(folder)


@pytest.mark.parametrize("staff", [False, True])
def test_no_other_subject_is_in_it(tmp_path: Path, staff):
    folder = made(tmp_path, five(), staff=staff)
    assert b"OTHER-CANARY" not in everything(folder)
    assert OTHER.encode() not in everything(folder)


def test_staff_and_salts_are_left_out_unless_asked_for(tmp_path: Path):
    reader = five()
    folder = made(tmp_path, reader)
    content = everything(folder)
    assert OFFICER.id.encode() not in content
    assert OFFICER.name.encode() not in content
    assert all(json.loads(line)["salt"] is None for line in (folder / "records.jsonl").read_bytes().splitlines())


def test_with_staff_every_payload_is_the_one_its_leaf_commits_to(tmp_path: Path):
    folder = made(tmp_path, five(), staff=True)
    assert OFFICER.id.encode() in everything(folder)
    assert not any("without staff" in text for text in verify_accounting(opened(folder)).unchecked)


def test_disclosures_to_one_recipient_for_one_purpose_can_be_one_row(tmp_path: Path):
    reader = five()
    rows = document(made(tmp_path, reader, summarise=True))["disclosures"]
    first = rows[0]
    assert (first["times"], first["date"][:16], first["last"][:16], first["records"]) == (2, "2026-09-01T08:30", "2026-09-01T08:32", [0, 2])
    assert [row["recipient"] for row in rows] == ["Public Health Office", "Court"]
    verify_accounting(opened(tmp_path / "out"), reader)


@pytest.mark.parametrize("change", [{"recipient": "Another"}, {"purpose_text": "other"}, {"recipient_address": None}, {"description": "recording"}])
def test_what_differs_is_not_summarised(tmp_path: Path, change):
    reader = log(Entry(given(), WHO), Entry(given(**change), WHO))
    assert len(document(made(tmp_path, reader, summarise=True))["disclosures"]) == 2


EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


@pytest.mark.parametrize(
    ("requested", "moment", "counts"),
    [
        (datetime(2026, 10, 1, 12, tzinfo=UTC), datetime(2020, 10, 1, 0, 0, tzinfo=UTC), True),
        (datetime(2026, 10, 1, 12, tzinfo=UTC), datetime(2020, 9, 30, 23, 59, 59, 999999, tzinfo=UTC), False),
        # The day six years before begins where the request is made.
        (datetime(2026, 10, 1, 12, tzinfo=EAST), datetime(2020, 9, 30, 10, 0, tzinfo=UTC), True),
        (datetime(2026, 10, 1, 12, tzinfo=EAST), datetime(2020, 9, 30, 9, 59, tzinfo=UTC), False),
        (datetime(2026, 10, 1, 12, tzinfo=WEST), datetime(2020, 10, 1, 11, 59, tzinfo=UTC), False),
        (datetime(2026, 10, 1, 12, tzinfo=WEST), datetime(2020, 10, 1, 12, 0, tzinfo=UTC), True),
        # 29 February six years before is no day.
        (datetime(2024, 2, 29, 12, tzinfo=UTC), datetime(2018, 2, 28, 0, 0, tzinfo=UTC), True),
        (datetime(2024, 2, 29, 12, tzinfo=UTC), datetime(2018, 2, 27, 23, 0, tzinfo=UTC), False),
    ],
)
def test_the_six_years_begin_with_the_day(tmp_path: Path, requested, moment, counts):
    told = document(made(tmp_path, log(Entry(given(), WHO), times={0: moment}), requested=requested))
    assert (len(told["disclosures"]), told["left_out"]["before_period"]) == ((1, 0) if counts else (0, 1))


def test_what_was_given_after_the_request_is_counted_as_that(tmp_path: Path):
    reader = log(Entry(given(), WHO), Entry(given(), WHO), times={0: REQUESTED, 1: REQUESTED + timedelta(microseconds=1)})
    told = document(made(tmp_path, reader))
    assert [row["records"] for row in told["disclosures"]] == [[0]]
    assert told["left_out"]["after_request"] == 1


def test_a_person_may_ask_for_a_shorter_period_and_not_a_longer(tmp_path: Path):
    reader = log(Entry(given(), WHO), Entry(given(), WHO), times={0: datetime(2024, 1, 1, tzinfo=UTC), 1: datetime(2025, 1, 1, tzinfo=UTC)})
    told = document(made(tmp_path, reader, since=datetime(2024, 6, 1, tzinfo=UTC)))
    assert [row["records"] for row in told["disclosures"]] == [[1]]
    for since in (datetime(2019, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)):
        with pytest.raises(InvalidValueError, match="within the 6 years"):
            made(tmp_path / "again", reader, since=since)


def test_a_time_without_zone_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match="time zone"):
        made(tmp_path, five(), requested=datetime(2026, 1, 1))


def test_an_amendment_replaces_its_record_and_keeps_its_date(tmp_path: Path):
    reader = log(
        Entry(given(recipient="Misspelt"), WHO),
        Entry(given(recipient="Spelt"), WHO, supersedes=0),
        times={0: datetime(2021, 1, 1, tzinfo=UTC), 1: datetime(2026, 1, 1, tzinfo=UTC)},
    )
    folder = made(tmp_path, reader)
    told = document(folder)
    assert [(row["recipient"], row["date"][:10]) for row in told["disclosures"]] == [("Spelt", "2021-01-01")]
    assert told["left_out"]["amended"] == 1
    assert b"Misspelt" not in everything(folder)
    verify_accounting(opened(folder), reader)


def test_an_amendment_does_not_bring_an_old_disclosure_into_the_period(tmp_path: Path):
    reader = log(Entry(given(), WHO), Entry(given(), WHO, supersedes=0), times={0: datetime(2019, 1, 1, tzinfo=UTC)})
    assert document(made(tmp_path, reader))["disclosures"] == []


def test_an_attempt_that_failed_is_no_disclosure_and_amends_none(tmp_path: Path):
    reader = log(Entry(given(), WHO), Entry(given(recipient="Never"), WHO, outcome=Outcome.FAILED, supersedes=0))
    told = document(made(tmp_path, reader))
    assert [row["records"] for row in told["disclosures"]] == [[0]]
    assert told["left_out"]["not_carried_out"] == 1


def test_a_clock_in_doubt_is_said(tmp_path: Path):
    reader = log(Entry(given(), WHO), flags={0: (Flag.CLOCK_ANOMALY,)})
    folder = made(tmp_path, reader)
    assert document(folder)["disclosures"][0]["clock_in_doubt"] is True
    assert b"clock" in (folder / "accounting.csv").read_bytes()


def test_an_erased_disclosure_is_listed_by_its_date_alone(tmp_path: Path):
    class Findable(TimedLog):
        def named(self, name):
            return [0, 1] if name == WHO else []

    reader = Findable([Entry(given(recipient="GONE-CANARY"), WHO), Entry(given(), WHO)], erased=frozenset({0}))
    folder = made(tmp_path, reader)
    told = document(folder)
    assert [(gone["record"], gone["date"][:10]) for gone in told["erased"]] == [(0, "2026-09-01")]
    assert b"GONE-CANARY" not in everything(folder)
    assert b"erased" in (folder / "accounting.csv").read_bytes()
    verify_accounting(opened(folder), reader)


def test_a_record_that_cannot_be_opened_stops_it(tmp_path: Path):
    reader = five()
    reader.sealed = True
    with pytest.raises(AuditKeyError, match="Record 0"):
        made(tmp_path, reader)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reader", [log(), five()], ids=["empty log", "unknown subject"])
def test_nothing_recorded_is_an_accounting_too(tmp_path: Path, reader):
    folder = made(tmp_path, reader, subject="nobody")
    told = document(folder)
    assert (told["disclosures"], told["records_of_subject"]) == ([], 0)
    assert verify_accounting(opened(folder), reader).records == 0


def test_the_table_reads_as_a_table_and_runs_nothing(tmp_path: Path):
    reader = log(Entry(given(recipient='=HYPERLINK("x")', recipient_address="+1, Main\nStreet"), WHO))
    raw = (made(tmp_path, reader) / "accounting.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    assert raw.decode("utf-8-sig").startswith('"date (UTC)","recipient"')
    assert rows[0][:2] == ["date (UTC)", "recipient"]
    assert rows[1][1:3] == ['\'=HYPERLINK("x")', "'+1, Main\nStreet"]


def test_the_table_runs_nothing_where_the_list_separator_is_a_semicolon(tmp_path: Path):
    """Found in review: Excel then splits the lines at semicolons, whatever our quotes say."""
    reader = log(Entry(given(recipient='A;=HYPERLINK("http://evil")', recipient_address="B\n@SUM(1)"), WHO))
    text = (made(tmp_path, reader) / "accounting.csv").read_bytes().decode("utf-8-sig")
    assert not [cell for cell in re.split('[;,\\n"]', text) if cell[:1] in {"=", "+", "-", "@"}]
    assert "A;'=HYPERLINK" in text
    verify_accounting(opened(tmp_path / "out"), reader)


def test_resources_are_privacy_disclosures_that_follow_r4_and_balp(tmp_path: Path):
    folder = made(tmp_path, five())
    resources = [json.loads(line) for line in (folder / "AuditEvent.ndjson").read_bytes().splitlines()]
    assert len(resources) == 3
    for resource in resources:
        assert resource["meta"]["profile"] == ["https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.PrivacyDisclosure.Source"]
        assert check_resource(resource) == []


def test_the_same_accounting_is_the_same_bytes(tmp_path: Path):
    made(tmp_path / "a", five())
    made(tmp_path / "b", five())
    assert everything(tmp_path / "a" / "out") == everything(tmp_path / "b" / "out")


def test_it_fits_its_schema_and_the_schema_is_the_models(tmp_path: Path):
    raw = (files("clinical_ser.audit.exports") / "schemas" / "audit-accounting-1.schema.json").read_bytes()
    assert raw == json_schema(Accounting, accounting.SCHEMA)
    schema = json.loads(raw)
    folder = made(tmp_path, five())
    jsonschema.validate(document(folder), schema)
    for line in (folder / "records.jsonl").read_bytes().splitlines():
        jsonschema.validate(json.loads(line), {"$ref": "#/$defs/record", "$defs": schema["$defs"]})


def test_one_in_order_is_found_in_order_with_and_without_the_log(tmp_path: Path):
    reader = five()
    packet = opened(made(tmp_path, reader))
    alone, beside = verify_accounting(packet), verify_accounting(packet, reader)
    assert alone.records == beside.records == 3
    assert any("only whoever has the log" in text for text in alone.unchecked)
    assert any("no further disclosure" in text for text in beside.checked)


FORGERIES = {
    "a row changed": {"accounting_json": lambda raw: raw.replace(b'"Court"', b'"Curt"')},
    "a row dropped": {"accounting_json": with_document(disclosures=[])},
    "another subject's name": {"accounting_json": with_document(subject="subject-two")},
    "another log": {"accounting_json": with_document(origin="elsewhere")},
    "another size": {"accounting_json": with_document(size=7)},
    "a period turned round": {"accounting_json": with_document(since="2027-01-01T00:00:00Z")},
    "a period that leaves one out": {"accounting_json": with_document(since="2026-09-01T08:32:30Z")},
    "summarised and not said so": {"accounting_json": with_document(summarised=True)},
    "staff and not said so": {"accounting_json": with_document(staff=True)},
    "another schema": {"accounting_json": with_document(schema="clinical-ser/audit-accounting/2")},
    "a further field": {"accounting_json": with_document(note="x")},
    "another spelling": {"accounting_json": lambda raw: raw + b"\n"},
    "the table changed": {"accounting_csv": lambda raw: raw.replace(b"Court", b"Curt")},
    "a resource changed": {"AuditEvent_ndjson": lambda raw: raw.replace(b"Court", b"Curt")},
    "a record dropped": {"records_jsonl": without_line(0)},
    "a leaf changed": {"records_jsonl": with_line(0, leaf=lambda leaf: leaf.replace("PUBHLTH", "HLEGAL"))},
    "a payload changed": {"records_jsonl": with_line(2, payload=lambda text: text.replace("Court", "Curt"))},
    "an index changed": {"records_jsonl": with_line(0, index=1)},
    "lines in another order": {"records_jsonl": lambda raw: b"".join(reversed(raw.splitlines(keepends=True)))},
    "a line twice": {"records_jsonl": lambda raw: raw.splitlines(keepends=True)[0] + raw},
    "a line cut": {"records_jsonl": lambda raw: raw[:-1]},
    "not JSON": {"records_jsonl": b"{"},
    "a state that does not fit": {"records_jsonl": with_line(0, state="whole")},
    "said to be erased": {"records_jsonl": with_line(0, state="erased", payload=None)},
    "a proof file changed": {"record_0_tlog_proof": lambda raw: raw.replace(b"index 0", b"index 1")},
    "a leaf file changed": {"record_2_leaf_json": b"{}"},
    "a proof file dropped": {"record_2_tlog_proof": None},
    "the table dropped": {"accounting_csv": None},
    "a file too many": {"more": b"x"},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_with_the_logs_own_signature_is_seen(tmp_path: Path, changes):
    reader = five()
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, **changes)
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_accounting(packet)


def test_records_out_of_their_order_are_named(tmp_path: Path):
    reader = five()
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, records_jsonl=FORGERIES["lines in another order"]["records_jsonl"])
    with pytest.raises(AuditTamperedError, match="record 2 after record 3"):
        verify_accounting(packet)


def test_a_payload_with_staff_is_not_taken_for_one_without(tmp_path: Path):
    reader = five()
    named = reader.entries[0].payload.canonical().decode()
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, records_jsonl=with_line(0, payload=named))
    with pytest.raises(AuditTamperedError, match="record 0 names someone"):
        verify_accounting(packet)


def test_a_payload_of_another_record_is_seen_where_salts_go_along(tmp_path: Path):
    reader = five()
    lines = [record_of(i, reader.entries[i]) for i in (0, 3)]
    swapped = {"payload": lines[1].payload.canonical().decode()}
    packet = forged(made(tmp_path, reader, staff=True), tmp_path / "forged", reader, records_jsonl=with_line(0, **swapped))
    with pytest.raises(AuditTamperedError, match="Record 0 does not commit to its payload"):
        verify_accounting(packet)


def test_what_only_the_log_knows_is_seen_with_the_log(tmp_path: Path):
    """A site that leaves a disclosure out, and signs that, deceives whoever has the folder alone: the verifier says what it cannot see."""
    reader = five()
    hiding = five()
    hiding.named = lambda name: [2, 3, 4, 5]
    packet = opened(made(tmp_path, hiding))
    assert any("left out" in text for text in verify_accounting(packet).unchecked)
    with pytest.raises(AuditTamperedError, match="Record 0 is missing"):
        verify_accounting(packet, reader)


def test_a_payload_without_staff_that_was_made_up_is_seen_with_the_log_alone(tmp_path: Path):
    reader = five()

    def lie(raw):
        return raw.replace(b"Court", b"Curt")

    packet = forged(made(tmp_path, reader), tmp_path / "f", reader, accounting_json=lie, accounting_csv=lie, records_jsonl=lie, AuditEvent_ndjson=lie)
    assert any("compare it with the leaves" in text for text in verify_accounting(packet).unchecked)
    with pytest.raises(AuditTamperedError, match="Record 3 is not what the log has"):
        verify_accounting(packet, reader)


def test_miscounted_reasons_are_seen_with_the_log(tmp_path: Path):
    reader = five()
    counts = {"before_period": 0, "after_request": 0, "amended": 0, "not_carried_out": 0, "not_accountable": {}}
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, accounting_json=with_document(left_out=counts))
    with pytest.raises(AuditTamperedError, match="counts"):
        verify_accounting(packet, reader)


def test_a_log_that_has_grown_is_still_the_same_log(tmp_path: Path):
    reader = five()
    packet = opened(made(tmp_path, reader))
    grown = log(*reader.entries, Entry(given(), WHO))
    assert verify_accounting(packet, grown).records == 3


def test_a_log_that_forked_is_not(tmp_path: Path):
    reader = five()
    packet = opened(made(tmp_path, reader))
    with pytest.raises(AuditTamperedError, match="grown"):
        verify_accounting(packet, log(*reader.entries[1:], *reader.entries))


@pytest.mark.parametrize("kept", [five(), log(Entry(given(accountable=False), WHO))], ids=["with rows", "without a row"])
def test_what_was_erased_since_can_no_longer_be_compared(tmp_path: Path, kept):
    """The log no longer finds an erased subject's records by name: that is no forgery."""
    packet = opened(made(tmp_path, kept))
    later = log(*kept.entries, erased=frozenset(kept.named(WHO)))
    assert later.named(WHO) == []
    assert any("erased since" in text for text in verify_accounting(packet, later).unchecked)


def test_a_tombstone_that_is_filed_under_the_subject_tells_too(tmp_path: Path):
    reader = five()
    packet = opened(made(tmp_path, reader))

    class Findable(TimedLog):
        def named(self, name):
            return reader.named(name)

    later = Findable(reader.entries, erased=frozenset({4}))
    assert any("erased since" in text for text in verify_accounting(packet, later).unchecked)


def test_the_example_log_gives_an_accounting(tmp_path: Path):
    reader = ExampleLog()
    folder = made(tmp_path, reader, subject=FIRST_SUBJECT)
    assert [row["recipient"] for row in document(folder)["disclosures"]] == ["CANARY Insurance"]
    assert SECOND_SUBJECT.encode() not in everything(folder)
    assert CLINICIAN.id.encode() not in everything(folder)
    verify_accounting(opened(folder), reader)
