"""The evidence pack: one model, one digest; card, signature, evaluation and records that are of it, and nothing that claims conformity."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import clinical_ser.models
from clinical_ser.audit.events import ModelChange, Outcome
from clinical_ser.audit.exports import evidence_pack
from clinical_ser.audit.exports.evidence_pack import (
    Distribution,
    Pack,
    bill_of_materials,
    export_evidence_pack,
    installed,
    verify_evidence_pack,
)
from clinical_ser.audit.exports.shown import json_schema, record_at, show
from clinical_ser.errors import AuditFormatError, AuditTamperedError, BundleTamperedError, EvidenceError, InvalidValueError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.evidence import GateResult
from clinical_ser.models.bundle import read_bundle
from tests.audit.exports.example import OPERATOR, SIGNER, Entry, ExampleLog, entries, inference
from tests.audit.exports.made import CREATED, TimedLog, everything, forged, opened, with_document, with_line, without_line

SHIPPED = Path(clinical_ser.models.__file__).parent / "shipped"
BUNDLE = read_bundle(SHIPPED / "depression-simulated")
SIGNATURE = (SHIPPED / "depression-simulated" / "signature").read_bytes()
OTHER = read_bundle(SHIPPED / "emotion-emodb")
SOFTWARE = (Distribution("numpy", "2.4.6", "BSD-3-Clause"), Distribution("Typing_Extensions", "4.1", None))


def reader_of():
    def change(action, old, new, **options):
        outcome = Outcome.REFUSED if action == "refused" else Outcome.SUCCESS
        return Entry(ModelChange(actor=OPERATOR, action=action, name="m", old=old, new=new, **options), model=new, outcome=outcome)

    return TimedLog(
        [
            change("activated", None, BUNDLE.digest, plan="PCCP-7 section 3", protocol="protocol-2", approver="the board"),
            Entry(inference(), "one-CANARY", model=BUNDLE.digest),
            change("activated", "e1" * 32, "e2" * 32, reason="UNRELATED"),
            change("rolled_back", BUNDLE.digest, "e3" * 32),
        ],
        erased=frozenset(),
    )


def evidence(gates=(), **changes):
    """The evaluation that the card carries, as evidence.json has it of this bundle."""
    told = Card.from_json(BUNDLE.files["card.json"]).internal
    model = told.model.model_copy(update={"digest": BUNDLE.digest, **changes})
    return told.model_copy(update={"model": model, "gates": gates}).model_dump_json().encode()


def made(tmp_path, reader, **options):
    folder = tmp_path / "out"
    given = {"bundle": BUNDLE, "signature": SIGNATURE, "software": SOFTWARE, "created": CREATED, **options}
    export_evidence_pack(reader, folder, signers=[SIGNER], **given)
    return folder


def document(folder):
    return json.loads((folder / "pack.json").read_bytes())


def test_it_says_which_model_and_who_signed_it(tmp_path: Path):
    told = document(made(tmp_path, reader_of()))
    assert (told["name"], told["model"], told["learned"]) == ("depression-simulated", BUNDLE.digest, BUNDLE.learned_digest)
    assert told["signed_by"] == BUNDLE.signature.key_id
    assert told["simulated"] is True
    assert "SIMULATED" in told["statement"]


def test_the_log_tells_what_became_of_it_and_under_which_plan(tmp_path: Path):
    folder = made(tmp_path, reader_of())
    told = document(folder)
    assert [(event["record"], event["action"]) for event in told["events"]] == [(0, "activated"), (3, "rolled_back")]
    assert told["change_plans"] == ["PCCP-7 section 3"]
    assert b"UNRELATED" not in everything(folder)


def test_nobody_who_was_screened_is_in_it(tmp_path: Path):
    assert b"one-CANARY" not in everything(made(tmp_path, reader_of(), evidence=evidence()))
    with_canaries = ExampleLog([Entry(each.payload, each.subject, each.outcome, each.purpose, BUNDLE.digest) for each in entries()])
    assert b"MRN-" not in everything(made(tmp_path / "example", with_canaries))


def test_an_evaluation_and_its_gates_go_along(tmp_path: Path):
    gates = (GateResult(name="large enough", met=False, found="12 subjects", wanted="at least 200"),)
    reader = reader_of()
    folder = made(tmp_path, reader, evidence=evidence(gates))
    told = document(folder)["evaluation"]
    assert (told["gates_met"], told["gates"][0]["name"]) == (False, "large enough")
    verify_evidence_pack(opened(folder), reader)


def test_without_gates_none_are_said_to_be_met(tmp_path: Path):
    assert document(made(tmp_path, reader_of(), evidence=evidence()))["evaluation"]["gates_met"] is None
    assert document(made(tmp_path / "none", reader_of()))["evaluation"] is None


def test_an_evaluation_out_of_fold_is_known_by_the_card(tmp_path: Path):
    told = Card.from_json(BUNDLE.files["card.json"]).internal
    assert told.model.digest is None
    assert document(made(tmp_path, reader_of(), evidence=told.model_dump_json().encode()))["evaluation"]["origin"] == "out_of_fold"


@pytest.mark.parametrize("raw", [evidence(digest="e1" * 32), Card.from_json(OTHER.files["card.json"]).internal.model_dump_json().encode(), b"{}"])
def test_an_evaluation_of_another_model_is_refused(tmp_path: Path, raw):
    with pytest.raises(EvidenceError):
        made(tmp_path, reader_of(), evidence=raw)


def test_a_signature_that_is_not_the_bundles_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match="signature"):
        made(tmp_path, reader_of(), signature=None)
    with pytest.raises(BundleTamperedError):
        made(tmp_path, reader_of(), signature=(SHIPPED / "emotion-emodb" / "signature").read_bytes())


def test_it_claims_no_conformity_and_says_what_is_kept_how_long(tmp_path: Path):
    folder = made(tmp_path, reader_of())
    assert any("conforms to any regulation" in text for text in opened(folder).manifest.not_claimed)
    told = document(folder)
    assert "ten years" in told["retention"]
    assert "docs/licences.md" in told["licences"]


def test_the_software_is_a_cyclonedx_list(tmp_path: Path):
    listed = json.loads((made(tmp_path, reader_of()) / "software.cdx.json").read_bytes())
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    assert [component["purl"] for component in listed["components"]] == ["pkg:pypi/numpy@2.4.6", "pkg:pypi/typing-extensions@4.1"]


def test_what_is_installed_is_listed_once_by_name():
    names = [each.name.lower() for each in installed()]
    assert names == sorted(set(names))
    assert "numpy" in names
    assert all("\n" not in (each.licence or "") for each in installed())


def test_the_same_pack_is_the_same_bytes(tmp_path: Path):
    assert everything(made(tmp_path / "a", reader_of())) == everything(made(tmp_path / "b", reader_of()))


def test_an_empty_log_and_an_erased_record_are_told(tmp_path: Path):
    empty = TimedLog([], erased=frozenset())
    folder = made(tmp_path, empty)
    assert document(folder)["events"] == []
    verify_evidence_pack(opened(folder), empty)
    reader = reader_of()
    reader.erased = frozenset({0})
    folder = made(tmp_path / "erased", reader)
    assert [(event["record"], event["action"]) for event in document(folder)["events"]] == [(0, None), (3, "rolled_back")]
    verify_evidence_pack(opened(folder), reader)


def test_a_reader_without_keys_gets_the_leaves(tmp_path: Path):
    reader = reader_of()
    reader.sealed = True
    folder = made(tmp_path, reader)
    assert [(event["record"], event["action"]) for event in document(folder)["events"]] == [(0, None)]
    verify_evidence_pack(opened(folder), reader)


def test_it_fits_its_schema_and_the_schema_is_the_models(tmp_path: Path):
    raw = (files("clinical_ser.audit.exports") / "schemas" / "audit-evidence-pack-1.schema.json").read_bytes()
    assert raw == json_schema(Pack, evidence_pack.SCHEMA)
    schema = json.loads(raw)
    folder = made(tmp_path, reader_of(), evidence=evidence())
    jsonschema.validate(document(folder), schema)
    for line in (folder / "records.jsonl").read_bytes().splitlines():
        jsonschema.validate(json.loads(line), {"$ref": "#/$defs/record", "$defs": schema["$defs"]})


def test_one_in_order_is_found_in_order(tmp_path: Path):
    reader = reader_of()
    packet = opened(made(tmp_path, reader, evidence=evidence()))
    assert verify_evidence_pack(packet).records == 2
    assert any("no further record" in text for text in verify_evidence_pack(packet, reader).checked)


FORGERIES = {
    "a gate met": {"pack_json": lambda raw: raw.replace(b'"met": false', b'"met": true')},
    "another signer": {"pack_json": with_document(signed_by="0" * 16)},
    "another digest": {"pack_json": with_document(model="e1" * 32)},
    "another learned digest": {"pack_json": with_document(learned="e1" * 32)},
    "not simulated": {"pack_json": with_document(simulated=False)},
    "a plan": {"pack_json": with_document(change_plans=["PCCP-8"])},
    "an event dropped": {"pack_json": with_document(events=[])},
    "the log": {"pack_json": with_document(origin="elsewhere")},
    "no evaluation": {"pack_json": with_document(evaluation=None)},
    "the card": {"model_card_json": lambda raw: raw.replace(b"depression", b"depressiom", 1)},
    "the card of another": {"model_card_json": OTHER.files["card.json"]},
    "the manifest": {"model_manifest_json": OTHER.manifest_bytes},
    "the manifest, broken": {"model_manifest_json": b"{}"},
    "the signature": {"model_signature_json": (SHIPPED / "emotion-emodb" / "signature").read_bytes()},
    "the signature dropped": {"model_signature_json": None},
    "the card dropped": {"model_card_json": None},
    "the manifest dropped": {"model_manifest_json": None},
    "the evaluation": {"evidence_json": evidence(digest="e1" * 32)},
    "the evaluation dropped": {"evidence_json": None},
    "the software, other things in it": {"software_cdx_json": lambda raw: raw.replace(b'"version": 1', b'"version": 2')},
    "the software, no list": {"software_cdx_json": b"[]"},
    "the software dropped": {"software_cdx_json": None},
    "a record": {"records_jsonl": without_line(0)},
    "a payload": {"records_jsonl": with_line(0, payload=lambda text: text.replace("PCCP-7", "PCCP-8"))},
    "a proof file": {"record_0_tlog_proof": b"x"},
    "a file too many": {"more": b"x"},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_with_the_logs_own_signature_is_seen(tmp_path: Path, changes):
    reader = reader_of()
    gates = (GateResult(name="large enough", met=False, found="12 subjects", wanted="at least 200"),)
    packet = forged(made(tmp_path, reader, evidence=evidence(gates)), tmp_path / "forged", reader, **changes)
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_evidence_pack(packet)


def test_a_record_of_another_model_has_no_place_in_it(tmp_path: Path):
    reader = reader_of()
    folder = made(tmp_path, reader)
    first, last = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    unrelated = show(reader, record_at(reader, 2), "whole").line()
    packet = forged(folder, tmp_path / "f", reader, records_jsonl=first + unrelated + last)
    with pytest.raises(AuditTamperedError, match="Record 2 is not about this model"):
        verify_evidence_pack(packet)


def test_a_record_that_was_left_out_is_seen_with_the_log(tmp_path: Path):
    reader = reader_of()

    class Hiding(TimedLog):
        def records(self, start=0, stop=None):
            if (start, stop) == (0, None):
                return (record for record in super().records() if record.index != 3)
            return super().records(start, stop)

    hiding = Hiding(reader.entries, erased=frozenset())
    hiding.__dict__["_prover"] = reader._prover
    packet = opened(made(tmp_path, hiding))
    verify_evidence_pack(packet)
    with pytest.raises(AuditTamperedError, match="Record 3 is missing"):
        verify_evidence_pack(packet, reader)


def test_a_bill_of_materials_is_spelled_one_way():
    assert bill_of_materials(SOFTWARE) == bill_of_materials(SOFTWARE)
    assert "licenses" not in json.loads(bill_of_materials(SOFTWARE))["components"][1]
