"""The access package: everything about one person in words and as data, nobody else in it, and nothing in it to be changed unseen."""

import hashlib
import json
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import clinical_ser.models
from clinical_ser.audit import events
from clinical_ser.audit.events import RECORD, Actor, Erasure, Outcome, Purpose, Review, Role
from clinical_ser.audit.exports import access, shown
from clinical_ser.audit.exports.access import Access, export_access, verify_access
from clinical_ser.audit.exports.processing import read_site_record
from clinical_ser.audit.exports.shown import LEFT_OUT, json_schema
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditTamperedError, InvalidValueError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.screening.result import INTENDED_USE
from tests.audit.exports.example import CLINICIAN, FIRST_SUBJECT, OFFICER, SECOND_SUBJECT, SERVICE, SIGNER, Entry, ExampleLog, entries, inference
from tests.audit.exports.made import CREATED, REQUESTED, TimedLog, everything, forged, opened, with_document, with_line, without_line
from tests.audit.exports.test_processing import SITE
from tests.reports.explanation_samples import refused, result

SHIPPED = Path(clinical_ser.models.__file__).parent / "shipped" / "depression-simulated"
WHO, OTHER = "subject-one", "subject-two-CANARY"
NURSE = Actor(id="nurse-CANARY", role=Role.CLINICIAN, name="Nurse CANARY", client="192.0.2.9")


def log(*entries, **options):
    return TimedLog([*entries], erased=options.pop("erased", frozenset()), **options)


def two(model="c3" * 32, told=None):
    """An answer, its review and a disclosure of one person; an answer of another."""
    digest = "a1" * 32 if told is None else told.digest
    other = {"actor": NURSE, "label": "OTHER-CANARY"}
    return log(
        Entry(inference(digest, actor=NURSE, label="depressed"), WHO, model=model),
        Entry(inference("b2" * 32, **other), OTHER, model="d5" * 32),
        Entry(
            Review(
                actor=NURSE,
                result=digest,
                decision="overridden",
                reason="grief",
                signature=events.Signed(name="Nurse CANARY", time=REQUESTED, meaning="review"),
            ),
            WHO,
            model=model,
        ),
        Entry(
            events.Disclosure(
                actor=NURSE,
                result=None,
                recipient="Registry",
                recipient_address=None,
                description="report",
                purpose_text="law",
                accountable=True,
            ),
            WHO,
        ),
    )


def made(tmp_path, reader, **options):
    folder = tmp_path / "out"
    export_access(reader, folder, signers=[SIGNER], **{"subject": WHO, "requested": REQUESTED, "created": CREATED, **options})
    return folder


def document(folder):
    return json.loads((folder / "access.json").read_bytes())


def page(folder):
    return " ".join((folder / "access.txt").read_text(encoding="utf-8").split())


def test_every_record_of_the_person_is_in_it_as_data(tmp_path: Path):
    told = document(made(tmp_path, two()))
    assert [(record["record"], record["kind"]) for record in told["records"]] == [(0, "inference"), (2, "review"), (3, "disclosure")]
    assert told["records"][0]["content"]["probability"] == 0.625
    assert told["processed"] is True


def test_the_page_says_what_was_done_when_by_which_model_and_why(tmp_path: Path):
    text = page(made(tmp_path, two()))
    for said in (
        "Yes: 3 records are about you",
        "Record 0, 2026-09-01 08:30",
        "31.2 s",
        "by the model depression-simulated 1",
        "flagged ('depressed')",
        "0.625 (between 0.5 and 0.75",
        "stated for 0.1 of the people screened",
        "threshold was 0.35",
        "pauses +4.5",
        "decided otherwise. Reason: grief. A printed name was given",
        "By someone in the role 'clinician', for treatment.",
        "never a diagnosis",
        " ".join(INTENDED_USE.split()),
        "Recipients that the log knows: Registry",
        "a supervisory authority",
    ):
        assert said in text, said


def test_a_number_that_was_no_answer_is_said_to_be_none(tmp_path: Path):
    text = page(made(tmp_path, log(Entry(inference(status="indeterminate", label=None), WHO))))
    assert "indeterminate" in text
    assert "not enough for an answer" in text


@pytest.mark.parametrize("staff", [False, True])
def test_no_other_subject_is_in_it(tmp_path: Path, staff):
    content = everything(made(tmp_path, two(), staff=staff))
    assert b"OTHER-CANARY" not in content
    assert OTHER.encode() not in content
    assert b"b2" * 32 not in content


def test_staff_are_roles_unless_they_are_asked_for(tmp_path: Path):
    reader = two()
    folder = made(tmp_path, reader)
    content = everything(folder)
    assert b"CANARY" not in content
    assert b"192.0.2.9" not in content
    assert "someone in the role 'clinician'" in page(folder)
    assert b"Nurse CANARY" in everything(made(tmp_path / "with", reader, staff=True))


def test_without_staff_no_salt_goes_along_to_try_names_against(tmp_path: Path):
    reader = two()
    content = everything(made(tmp_path, reader))
    for record in reader.records():
        assert record.salt.hex().encode() not in content
    assert all(json.loads(line)["salt"] is None for line in (tmp_path / "out" / "records.jsonl").read_bytes().splitlines())


def test_the_person_is_named_where_they_acted_themselves(tmp_path: Path):
    self_service = Actor(id=WHO, role=Role.SUBJECT, client="my-phone")
    told = document(made(tmp_path, log(Entry(inference(actor=self_service), WHO), Entry(inference(actor=NURSE), WHO))))
    assert [record["content"]["actor"]["id"] for record in told["records"]] == [WHO, LEFT_OUT]


def test_an_account_that_is_called_as_the_person_is_remains_staff(tmp_path: Path):
    """Found in review: the name of a person was compared with the ids of accounts, whoever's they were."""
    namesake = Actor(id=WHO, role=Role.CLINICIAN, name="Nurse CANARY", client="192.0.2.9")
    reader = log(Entry(inference(actor=namesake), WHO))
    folder = made(tmp_path, reader)
    assert document(folder)["records"][0]["content"]["actor"] == {"id": LEFT_OUT, "role": "clinician", "name": None, "client": None}
    assert b"Nurse CANARY" not in everything(folder)
    verify_access(opened(folder), reader)


def test_who_looked_or_exported_when_is_said_and_to_whom_it_went(tmp_path: Path):
    """Found in review: the page had no words for it, and the recipient was in no list (Art. 15(1)(c); CJEU C-579/21)."""
    seen = events.AuditExport(actor=OFFICER, form="list", first=0, last=0, digest=None)
    given = events.AuditExport(actor=OFFICER, form="access", first=0, last=1, digest=None, recipient="The Patient's Lawyer")
    failed = events.AuditExport(actor=OFFICER, form="jsonl", first=0, last=1, digest=None, recipient="Nobody")
    reader = log(Entry(inference(), WHO), Entry(seen, WHO), Entry(given, WHO), Entry(failed, WHO, outcome=Outcome.FAILED))
    folder = made(tmp_path, reader)
    text = page(folder)
    assert "Record 1, 2026-09-01 08:31: Someone looked at records about you in the log. By someone in the role 'compliance', for" in text
    assert "Record 2, 2026-09-01 08:32: Records about you were exported (form 'access'), and given to The Patient's Lawyer. By someone" in text
    assert "Recipients that the log knows: The Patient's Lawyer." in text
    verify_access(opened(folder), reader)


def test_what_was_sent_and_what_came_of_it_is_said(tmp_path: Path):
    sent = events.Submission(actor=OFFICER, screening="c0" * 16, action="accepted", body="d" * 64, model_name="depression-simulated")
    failed = sent.model_copy(update={"action": "failed", "reason": "cannot-be-decoded"})
    reader = log(Entry(sent, WHO), Entry(failed, WHO, outcome=Outcome.FAILED))
    folder = made(tmp_path, reader)
    assert "A recording was taken in, to be screened by the model depression-simulated." in page(folder)
    assert "the model depression-simulated came to no answer. Reason: cannot-be-decoded." in page(folder)
    verify_access(opened(folder), reader)


def test_many_records_have_their_proofs_in_one_file(tmp_path: Path, monkeypatch):
    """Found in review: two files a record made a manifest that no verifier reads."""
    for module in (access, shown):
        monkeypatch.setattr(module, "MAX_OWN_FILES", 2)
    reader = two()
    folder = made(tmp_path, reader)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("record")) == ["records.jsonl"]
    assert "records.jsonl has what stands in the log" in page(folder)
    assert verify_access(opened(folder), reader).records == 3
    packet = forged(folder, tmp_path / "forged", reader, **{"record-0.leaf.json": b"x"})
    with pytest.raises(AuditTamperedError, match="1 files more"):
        verify_access(packet, reader)


def test_each_proof_is_one_that_any_reader_of_the_format_can_check(tmp_path: Path):
    from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
    from clinical_ser.audit.proof_file import ProofFile

    folder = made(tmp_path, two())
    checkpoint = opened(folder).checkpoint
    for index in (0, 2, 3):
        proof = ProofFile.parse((folder / f"record-{index}.tlog-proof").read_bytes())
        leaf = (folder / f"record-{index}.leaf.json").read_bytes()
        assert verify_inclusion(proof.index, checkpoint.size, leaf_hash(leaf), proof.path, checkpoint.root)


def test_an_erased_record_is_listed_as_erased_and_nothing_of_it_is_left(tmp_path: Path):
    reader = log(
        Entry(inference(label="GONE-CANARY"), WHO),
        Entry(inference("b2" * 32), WHO),
        Entry(Erasure(actor=OFFICER, erased="0", reason="asked", basis="GDPR Art. 17(1)(a)"), WHO),
        erased=frozenset({0}),
    )
    assert reader.named(WHO) == [1, 2]
    folder = made(tmp_path, reader)
    told = document(folder)
    assert [(record["record"], record["erased"]) for record in told["records"]] == [(0, True), (1, False), (2, False)]
    assert told["records"][0]["content"] is None
    assert "The content of 1 of them was erased" in page(folder)
    assert b"GONE-CANARY" not in everything(folder)
    verify_access(opened(folder), reader)


def test_a_tombstone_brings_in_nothing_that_came_after_it(tmp_path: Path):
    tombstone = Erasure(actor=OFFICER, erased="0-3", reason="asked", basis="GDPR Art. 17(1)(a)")
    reader = log(Entry(inference(), WHO), Entry(tombstone, WHO), Entry(inference("b2" * 32, label="OTHER-CANARY"), OTHER), erased=frozenset({0}))
    folder = made(tmp_path, reader)
    assert [record["record"] for record in document(folder)["records"]] == [0, 1]
    assert b"OTHER-CANARY" not in everything(folder)


@pytest.mark.parametrize("reader", [log(), two()], ids=["empty log", "unknown subject"])
def test_no_record_is_an_answer_too(tmp_path: Path, reader):
    folder = made(tmp_path, reader, subject="nobody")
    assert document(folder)["processed"] is False
    assert "No record of this log is about a person of this name" in page(folder)
    assert verify_access(opened(folder), reader).records == 0


def test_a_record_that_cannot_be_opened_stops_it(tmp_path: Path):
    reader = two()
    reader.sealed = True
    with pytest.raises(AuditKeyError, match="Record 0"):
        made(tmp_path, reader)


def test_a_time_without_zone_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match="time zone"):
        made(tmp_path, two(), requested=datetime(2026, 1, 1))


def test_every_purpose_has_words_and_every_kind_a_sentence(tmp_path: Path):
    reader = log(*(Entry(each.payload, WHO, each.outcome, purpose) for each in entries() for purpose in Purpose))
    text = page(made(tmp_path, reader))
    assert not [purpose.value for purpose in Purpose if purpose.value in text]
    assert ".." not in text


def test_a_refused_recording_is_said_once_to_be_refused(tmp_path: Path):
    rejection = next(each.payload for each in entries() if each.payload.kind == "quality_rejection")
    text = page(made(tmp_path, log(Entry(rejection, WHO, Outcome.REFUSED))))
    assert text.count("refused") == 1
    assert "No score was computed" in text


def test_an_encoder_is_said_to_hear_more_than_the_voice(tmp_path: Path):
    text = page(made(tmp_path, log(Entry(inference(encoders={"whisper": "f" * 8}), WHO))))
    assert "a neural network (whisper)" in text
    assert "neural" not in page(made(tmp_path / "none", two()))


def test_text_cannot_steer_a_terminal(tmp_path: Path):
    review = Review(actor=NURSE, result="a1" * 32, decision="agreed", reason="\x1b[2J\u202egone")
    folder = made(tmp_path, log(Entry(review, WHO)))
    assert b"\x1b" not in (folder / "access.txt").read_bytes()
    assert "\u202e" not in (folder / "access.txt").read_text(encoding="utf-8")


def test_a_whole_result_goes_along_when_a_record_names_it(tmp_path: Path):
    told = result()
    reader = two(told=told)
    folder = made(tmp_path, reader, results=[told.model_dump_json().encode()])
    assert document(folder)["results"] == [told.digest]
    assert json.loads((folder / f"result-{told.digest}.json").read_bytes())["task"] == "depression"
    verify_access(opened(folder), reader)


@pytest.mark.parametrize("raw", [result().model_dump_json().encode(), refused().model_dump_json().encode(), b"{}", b'{"a":1,"a":1}', b"\xff"])
def test_another_result_is_refused_and_not_quoted(tmp_path: Path, raw):
    with pytest.raises(InvalidValueError) as error:
        made(tmp_path, two(), results=[raw])
    assert "headset" not in str(error.value)


def test_a_result_of_another_subject_is_refused(tmp_path: Path):
    told = result()
    reader = log(Entry(inference(told.digest), OTHER), Entry(inference(), WHO))
    with pytest.raises(InvalidValueError, match="no record of this subject names"):
        made(tmp_path, reader, results=[told.model_dump_json().encode()])


def test_the_models_card_goes_along_bound_to_the_leaf_by_digests(tmp_path: Path):
    bundle = read_bundle(SHIPPED)
    reader = two(model=bundle.digest)
    folder = made(tmp_path, reader, models=[bundle])
    manifest = (folder / f"model-{bundle.digest}.json").read_bytes()
    card = (folder / f"card-{bundle.digest}.json").read_bytes()
    leaf = json.loads((folder / "record-0.leaf.json").read_bytes())
    assert leaf["model"] == hashlib.sha256(manifest).hexdigest()
    assert json.loads(manifest)["files"]["card.json"]["sha256"] == hashlib.sha256(card).hexdigest()
    assert f"card-{bundle.digest}.json" in page(folder)
    verify_access(opened(folder), reader)


def test_the_card_of_a_model_that_answered_nothing_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match="answered nothing"):
        made(tmp_path, two(), models=[read_bundle(SHIPPED)])


def test_what_the_controller_has_to_say_is_said_or_named_as_missing(tmp_path: Path):
    reader = two()
    bare = made(tmp_path, reader)
    assert "to be added by the controller" in page(bare)
    assert document(bare)["site_has_to_add"]
    full = made(tmp_path / "full", reader, site=read_site_record(SITE.encode()))
    assert "Purposes: Screening for depression." in page(full)
    assert document(full)["site_has_to_add"] == []
    verify_access(opened(full), reader)


def test_the_same_package_is_the_same_bytes(tmp_path: Path):
    assert everything(made(tmp_path / "a", two())) == everything(made(tmp_path / "b", two()))


def test_it_fits_its_schema_and_the_schema_is_the_models(tmp_path: Path):
    raw = (files("clinical_ser.audit.exports") / "schemas" / "audit-access-1.schema.json").read_bytes()
    assert raw == json_schema(Access, access.SCHEMA)
    schema = json.loads(raw)
    folder = made(tmp_path, two(), site=read_site_record(SITE.encode()))
    jsonschema.validate(document(folder), schema)
    for line in (folder / "records.jsonl").read_bytes().splitlines():
        jsonschema.validate(json.loads(line), {"$ref": "#/$defs/record", "$defs": schema["$defs"]})


FORGERIES = {
    "a word of the page": {"access_txt": lambda raw: raw.replace(b"grief", b"greed")},
    "a number of the data": {"access_json": lambda raw: raw.replace(b"0.625", b"0.125")},
    "a record out of the data": {"access_json": lambda raw: with_document(records=json.loads(raw)["records"][1:])(raw)},
    "that there is none": {"access_json": with_document(processed=False)},
    "the subject": {"access_json": with_document(subject="subject-two")},
    "the log": {"access_json": with_document(origin="elsewhere")},
    "the size": {"access_json": with_document(size=1)},
    "staff or not": {"access_json": with_document(staff=True)},
    "what the site has to add": {"access_json": with_document(site_has_to_add=[])},
    "a card that is not there": {"access_json": with_document(cards=[{"model": "c3" * 32, "name": "a", "version": "1"}])},
    "a result that is not there": {"access_json": with_document(results=["a1" * 32])},
    "another spelling": {"access_json": lambda raw: raw.replace(b"  ", b" ")},
    "a record out of the records": {"records_jsonl": without_line(1)},
    "a payload": {"records_jsonl": with_line(1, payload=lambda text: text.replace("grief", "greed"))},
    "a leaf": {"records_jsonl": with_line(1, leaf=lambda leaf: leaf.replace("TREAT", "HLEGAL"))},
    "a proof in the records": {"records_jsonl": with_line(1, proof=[])},
    "a salt": {"records_jsonl": with_line(1, salt="AAAA")},
    "a proof file": {"record_2_tlog_proof": lambda raw: raw.replace(b"index 2", b"index 1")},
    "a proof file dropped": {"record_2_tlog_proof": None},
    "a leaf file": {"record_0_leaf_json": b"{}"},
    "the page dropped": {"access_txt": None},
    "a file too many": {"more": b"x"},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_with_the_logs_own_signature_is_seen(tmp_path: Path, changes):
    reader = two()
    packet = forged(made(tmp_path, reader), tmp_path / "forged", reader, **changes)
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_access(packet)


@pytest.mark.parametrize("file", ["result", "model", "card"])
def test_a_result_manifest_or_card_that_was_changed_is_seen(tmp_path: Path, file):
    bundle, told = read_bundle(SHIPPED), result()
    reader = two(model=bundle.digest, told=told)
    folder = made(tmp_path, reader, models=[bundle], results=[told.model_dump_json().encode()])
    name = f"{file}-{told.digest if file == 'result' else bundle.digest}.json"
    changed = {name.replace("-", "_").replace(".", "_"): lambda raw: raw.replace(b"depression", b"depressiom")}
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_access(forged(folder, tmp_path / "forged", reader, **changed))


def test_a_payload_that_names_staff_is_not_taken_for_one_without(tmp_path: Path):
    reader = two()
    packet = forged(
        made(tmp_path, reader), tmp_path / "f", reader, records_jsonl=with_line(1, payload=reader.entries[2].payload.canonical().decode())
    )
    with pytest.raises(AuditTamperedError, match="names someone"):
        verify_access(packet)


def test_a_record_that_was_left_out_is_seen_with_the_log(tmp_path: Path):
    reader, hiding = two(), two()
    hiding.named = lambda name: [0, 3]
    packet = opened(made(tmp_path, hiding))
    assert any("left out" in text for text in verify_access(packet).unchecked)
    with pytest.raises(AuditTamperedError, match="Record 2 is missing"):
        verify_access(packet, reader)


def test_a_record_of_somebody_else_is_seen_with_the_log(tmp_path: Path):
    reader, mixing = two(), two()
    mixing.named = lambda name: [0, 1, 2, 3]
    packet = opened(made(tmp_path, mixing))
    with pytest.raises(AuditTamperedError, match=r"Record 1 .*not about this subject"):
        verify_access(packet, reader)


def test_contents_made_up_are_seen_with_the_log(tmp_path: Path):
    reader = two()
    lie = {name: lambda raw: raw.replace(b"grief", b"greed") for name in ("access_json", "access_txt", "records_jsonl")}
    packet = forged(made(tmp_path, reader), tmp_path / "f", reader, **lie)
    verify_access(packet)
    with pytest.raises(AuditTamperedError, match="Record 2 is not what the log has"):
        verify_access(packet, reader)


def test_what_was_erased_since_is_said(tmp_path: Path):
    reader = two()
    packet = opened(made(tmp_path, reader))
    later = two()
    later.erased = frozenset({0})
    assert any("1 records were erased since" in text for text in verify_access(packet, later).unchecked)


def test_with_staff_nothing_about_contents_is_left_unchecked(tmp_path: Path):
    reader = two()
    assert verify_access(opened(made(tmp_path, reader, staff=True)), reader).unchecked == ()


def test_the_example_log_gives_a_package_without_its_staff(tmp_path: Path):
    reader = ExampleLog()
    folder = made(tmp_path, reader, subject=FIRST_SUBJECT)
    content = everything(folder)
    for name in (SECOND_SUBJECT, CLINICIAN.id, CLINICIAN.name, CLINICIAN.client, SERVICE.id, OFFICER.id, OFFICER.name):
        assert name.encode() not in content
    assert RECORD not in page(folder)
    verify_access(opened(folder), reader)
