"""The AI Act's log extract: every leaf of a period and nothing of a person; what it sums up follows from the leaves."""

import json
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from clinical_ser.audit.events import Flag, ModelChange, Outcome, Service
from clinical_ser.audit.exports import ai_act
from clinical_ser.audit.exports.ai_act import Extract, export_ai_act, verify_ai_act
from clinical_ser.audit.exports.shown import json_schema, read_records, readable
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditTamperedError, InvalidValueError
from tests.audit.exports.example import MODEL, NEW_MODEL, OPERATOR, SIGNER, START, Entry, ExampleLog, inference
from tests.audit.exports.made import CREATED, TimedLog, everything, forged, opened, with_document, with_line, without_line


def made(tmp_path, reader, **options):
    folder = tmp_path / "out"
    export_ai_act(reader, folder, signers=[SIGNER], **{"created": CREATED, **options})
    return folder


def document(folder):
    return json.loads((folder / "ai-act.json").read_bytes())


def small():
    def change(action, old, new, outcome=Outcome.SUCCESS):
        return Entry(ModelChange(actor=OPERATOR, action=action, name="m", old=old, new=new), model=new, outcome=outcome)

    return TimedLog(
        [
            Entry(Service(actor=OPERATOR, action="started", component="api")),
            change("activated", None, MODEL),
            Entry(inference(), "one", model=MODEL),
            change("activated", MODEL, NEW_MODEL),
            Entry(inference("b2" * 32), "one", model=NEW_MODEL),
            change("rolled_back", NEW_MODEL, MODEL),
            Entry(inference("b3" * 32), "one", model=MODEL),
            change("refused", MODEL, "e5" * 32, Outcome.REFUSED),
            Entry(Service(actor=OPERATOR, action="stopped", component="api")),
        ],
        erased=frozenset(),
        flags={2: (Flag.CLOCK_ANOMALY,)},
        runs={index: ("0a" if index < 5 else "0b") * 16 for index in range(9)},
    )


def test_leaves_only_and_so_nobody_is_in_it(tmp_path: Path):
    folder = made(tmp_path, ExampleLog())
    assert b"CANARY" not in everything(folder)
    assert {json.loads(line)["state"] for line in (folder / "records.jsonl").read_bytes().splitlines()} == {"leaf"}


def test_details_open_what_is_about_the_system_and_never_what_is_about_a_person(tmp_path: Path):
    reader = ExampleLog()
    folder = made(tmp_path, reader, details=True)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_bytes().splitlines()]
    assert {json.loads(line["leaf"])["kind"] for line in lines if line["payload"] is not None} == {"service", "model", "drift_alarm"}
    assert b"MRN-" not in everything(folder)
    assert [(note["record"], note["action"]) for note in document(folder)["service"]] == [(0, "started"), (22, "stopped")]
    verify_ai_act(opened(folder), reader)


def test_details_that_cannot_be_opened_are_not_passed_over(tmp_path: Path):
    reader = small()
    reader.sealed = True
    with pytest.raises(AuditKeyError, match="Record 0"):
        made(tmp_path, reader, details=True)
    assert document(made(tmp_path / "leaves", reader))["last"] == 8


def test_it_counts_what_the_articles_ask_about(tmp_path: Path):
    told = document(made(tmp_path, ExampleLog()))
    assert (told["reviews"], told["overridden"], told["drift_alarms"], told["notices"]) == (1, 1, 1, 2)
    assert [(flag["record"], flag["kind"]) for flag in told["flagged"]] == [(6, "review"), (14, "drift_alarm"), (20, "model")]
    assert [(answer["inferences"], answer["quality_rejections"]) for answer in told["answers"]] == [(2, 1)]
    assert (told["first"], told["last"]) == (0, 24)


def in_force(folder):
    return [
        (each["model"], each["name"], each["record"], each["since"][11:16], each["until"] and each["until"][11:16])
        for each in document(folder)["in_force"]
    ]


def test_a_model_is_in_force_until_the_next_of_its_name(tmp_path: Path):
    reader = small()
    reader.entries[4] = Entry(ModelChange(actor=OPERATOR, action="activated", name="another", old=None, new="f6" * 32), model="f6" * 32)
    folder = made(tmp_path, reader, details=True)
    assert in_force(folder) == [
        (MODEL, "m", 1, "08:31", "08:33"),
        (NEW_MODEL, "m", 3, "08:33", "08:35"),
        ("f6" * 32, "another", 4, "08:34", None),
        (MODEL, "m", 5, "08:35", None),
    ]
    verify_ai_act(opened(folder), reader)


def test_leaves_do_not_say_which_model_a_change_replaced(tmp_path: Path):
    assert in_force(made(tmp_path, small())) == [
        (MODEL, None, 1, "08:31", None),
        (NEW_MODEL, None, 3, "08:33", None),
        (MODEL, None, 5, "08:35", None),
    ]


def test_from_when_to_when_a_model_answered_is_told_by_leaves_too(tmp_path: Path):
    answers = {each["model"]: (each["first"][11:16], each["last"][11:16]) for each in document(made(tmp_path, small()))["answers"]}
    assert answers == {MODEL: ("08:32", "08:36"), NEW_MODEL: ("08:34", "08:34")}


def test_periods_of_use_are_runs_of_the_software(tmp_path: Path):
    uses = [(use["first_record"], use["last_record"], use["records"]) for use in document(made(tmp_path, small()))["periods_of_use"]]
    assert uses == [(0, 4, 5), (5, 8, 4)]


def test_a_clock_anomaly_is_listed(tmp_path: Path):
    flagged = {flag["record"]: flag["flags"] for flag in document(made(tmp_path, small()))["flagged"]}
    assert flagged == {2: ["clock_anomaly"], 5: ["risk_signal"], 7: ["risk_signal"]}


def test_it_says_what_is_kept_how_long_and_which_list_does_not_apply(tmp_path: Path):
    told = document(made(tmp_path, small()))
    assert "at least six months" in told["retention"]
    assert "remote biometric identification" in told["art_12_3"]
    assert any("conforms" in text for text in opened(tmp_path / "out").manifest.not_claimed)


def test_a_period_has_both_ends_and_everything_between(tmp_path: Path):
    reader = small()
    reader.times = {3: START - timedelta(days=400)}
    folder = made(tmp_path, reader, since=START + timedelta(minutes=2), until=START + timedelta(minutes=5))
    told = document(folder)
    assert (told["first"], told["last"], sum(told["by_kind"].values())) == (2, 5, 4)
    verify_ai_act(opened(folder), reader)


@pytest.mark.parametrize("reader", [TimedLog([], erased=frozenset()), small()], ids=["empty log", "nothing in the period"])
def test_nothing_is_an_extract_too(tmp_path: Path, reader):
    folder = made(tmp_path, reader, since=START + timedelta(days=9))
    assert document(folder)["first"] is None
    assert verify_ai_act(opened(folder), reader).records == 0


@pytest.mark.parametrize("period", [{"since": START.replace(tzinfo=None)}, {"since": START, "until": START - timedelta(seconds=1)}])
def test_a_period_that_is_none_is_refused(tmp_path: Path, period):
    with pytest.raises(InvalidValueError):
        made(tmp_path, small(), **period)


def test_the_same_extract_is_the_same_bytes(tmp_path: Path):
    assert everything(made(tmp_path / "a", small())) == everything(made(tmp_path / "b", small()))


def test_it_fits_its_schema_and_the_schema_is_the_models(tmp_path: Path):
    raw = (files("clinical_ser.audit.exports") / "schemas" / "audit-ai-act-1.schema.json").read_bytes()
    assert raw == json_schema(Extract, ai_act.SCHEMA)
    schema = json.loads(raw)
    folder = made(tmp_path, ExampleLog(), details=True)
    jsonschema.validate(document(folder), schema)
    for line in (folder / "records.jsonl").read_bytes().splitlines():
        jsonschema.validate(json.loads(line), {"$ref": "#/$defs/record", "$defs": schema["$defs"]})


def test_one_in_order_is_found_in_order(tmp_path: Path):
    reader = small()
    packet = opened(made(tmp_path, reader))
    assert verify_ai_act(packet).records == 9
    assert "whole period" in verify_ai_act(packet).unchecked[0]
    assert verify_ai_act(packet, reader).unchecked == ()


FORGERIES = {
    "a number": {"ai_act_json": with_document(overridden=1)},
    "a flag dropped": {"ai_act_json": with_document(flagged=[])},
    "a model in force": {"ai_act_json": with_document(in_force=[])},
    "the retention": {"ai_act_json": with_document(retention="for ever")},
    "the log": {"ai_act_json": with_document(origin="elsewhere")},
    "the range": {"ai_act_json": with_document(first=1)},
    "details and not": {"ai_act_json": with_document(details=True)},
    "a record out of the middle": {"records_jsonl": without_line(4)},
    "the first record": {"records_jsonl": without_line(0)},
    "the last record": {"records_jsonl": without_line(8)},
    "all records": {"records_jsonl": b""},
    "a leaf": {"records_jsonl": with_line(2, leaf=lambda leaf: leaf.replace("clock_anomaly", "risk_signal"))},
    "a time": {"records_jsonl": with_line(2, leaf=lambda leaf: leaf.replace("08:32", "08:42"))},
    "a proof": {"records_jsonl": with_line(2, proof=[])},
    "said to be erased": {"records_jsonl": with_line(2, state="erased")},
    "a file too many": {"more": b"x"},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_with_the_logs_own_signature_is_seen(tmp_path: Path, changes):
    reader = small()
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, **changes)
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_ai_act(packet)


@pytest.mark.parametrize(("dropped", "missing"), [(4, "Record 4 is missing"), (8, "Record 8 is missing")])
def test_a_record_is_missed_though_the_summary_was_made_to_fit(tmp_path: Path, dropped, missing):
    reader = small()
    folder = made(tmp_path, reader)
    tally = ai_act._Tally()
    for shown, event in read_records(opened(folder)):
        if shown.index != dropped:
            tally.take(shown, event)
    head = {name: document(folder)[name] for name in ("origin", "size", "since", "until", "details", "first", "last")}
    fitting = readable(tally.extract(**head))
    packet = forged(folder, tmp_path / "f", reader, records_jsonl=without_line(dropped), ai_act_json=fitting)
    with pytest.raises(AuditTamperedError, match=missing):
        verify_ai_act(packet)


def test_a_model_that_was_refused_is_not_in_force_however_that_was_filed(tmp_path: Path):
    reader = small()
    reader.entries[7] = Entry(ModelChange(actor=OPERATOR, action="refused", name="m", old=MODEL, new="e5" * 32), model="e5" * 32)
    assert "e5" * 32 not in {each["model"] for each in document(made(tmp_path, reader, details=True))["in_force"]}


def test_a_payload_about_a_person_has_no_place_in_it(tmp_path: Path):
    import base64

    reader = small()
    record = next(reader.records(2, 3))
    line = {"state": "whole", "payload": record.payload.canonical().decode(), "salt": base64.b64encode(record.salt).decode()}
    packet = forged(made(tmp_path, reader, details=True), tmp_path / "f", reader, records_jsonl=with_line(2, **line))
    with pytest.raises(AuditTamperedError, match="Record 2 shows more, or less"):
        verify_ai_act(packet)


def test_a_payload_of_the_system_that_was_changed_is_seen(tmp_path: Path):
    reader = small()
    change = with_line(0, payload=lambda text: text.replace("started", "stopped"))
    packet = forged(made(tmp_path, reader, details=True), tmp_path / "f", reader, records_jsonl=change)
    with pytest.raises(AuditTamperedError, match="Record 0 does not commit to its payload"):
        verify_ai_act(packet)


def test_a_range_that_is_not_the_period_is_seen_with_the_log(tmp_path: Path):
    reader = small()
    packet = opened(made(tmp_path, reader, until=START + timedelta(minutes=4)))
    verify_ai_act(packet, reader)
    lie = forged(tmp_path / "out", tmp_path / "f", reader, ai_act_json=with_document(until=None))
    verify_ai_act(lie)
    with pytest.raises(AuditTamperedError, match="other records of the period"):
        verify_ai_act(lie, reader)
