"""The evidence pack of a release: what a model is, how it was tested, what it runs on, and what the log says became of it; without a row of a person.

The one idea: one digest holds it together. The log's leaves name the bundle by the digest of its manifest, the manifest names the card and every
other file, and the evaluation names the same model.

References
----------
Regulation (EU) 2017/745 (MDR), Art. 10(8): technical documentation is kept available for ten years after the last device was placed on the market.
FDA, Marketing Submission Recommendations for a Predetermined Change Control Plan for AI-Enabled Device Software Functions (August 2025).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from pydantic import Field

from clinical_ser.audit.events import Event, Hex32, ModelChange, Outcome
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.shown import (
    JSON_TYPE,
    RECORDS,
    Shown,
    add_proofs,
    add_records,
    check_head,
    check_log,
    check_names,
    check_proofs,
    check_same,
    read_document,
    read_records,
    readable,
    show,
)
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditTamperedError, BundleError, EvidenceError, InvalidValueError
from clinical_ser.evaluation.card import Card, check_card, without_curves
from clinical_ser.evaluation.evidence import Evidence, GateResult
from clinical_ser.models.bundle import BundleManifest, VerifiedBundle, parse_manifest
from clinical_ser.models.signing import TrustStore, verify_signature
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.strict import Strict

FORM = "evidence-pack"
SCHEMA: Literal["clinical-ser/audit-evidence-pack/1"] = "clinical-ser/audit-evidence-pack/1"
DOCUMENT, SOFTWARE, EVIDENCE, CARD = "pack.json", "software.cdx.json", "evidence.json", "model-card.json"
MODEL_MANIFEST, MODEL_SIGNATURE = "model-manifest.json", "model-signature.json"

LICENCES = "docs/licences.md of clinical-ser, in the version named under `software`; software.cdx.json has what each package declares of itself"
RETENTION = (
    "Regulation (EU) 2017/745, Art. 10(8): technical documentation is kept available for at least ten years after the last device it covers was "
    "placed on the market (fifteen for implantable devices). Whether this pack belongs to such documentation is for the manufacturer to say."
)
NOT_CLAIMED = (
    "That the model, or the software, conforms to any regulation, is a device, or was cleared or approved: the pack is material for those who judge.",
    "That the evaluation is right: figures are copied as they were computed; only that they are of this model is checked.",
    "That the log has every change of the model: a model that was used elsewhere left no record here.",
    "That the list of software is complete: it has the Python packages that were installed where the pack was made, and what is inside their wheels "
    "or under them (system libraries, drivers) is not in it.",
)


class ModelEvent(Strict):
    """A record of this model being activated, refused or rolled back."""

    record: int
    time: str
    outcome: Outcome
    action: Literal["activated", "refused", "rolled_back"] | None
    """None where the payload was erased, or could not be opened."""
    old: Hex32 | None
    new: Hex32 | None
    plan: str | None
    """The predetermined change control plan, and its section, that allowed the change."""
    protocol: str | None
    approver: str | None


class Evaluation(Strict):
    """What `evidence.json` says, in short."""

    origin: Literal["out_of_fold", "external"]
    subjects: int
    gates: tuple[GateResult, ...]
    gates_met: bool | None
    """None where no gate was judged: a release without gates has shown nothing by them."""
    failed_leak_guards: tuple[str, ...]
    accepted_leaks: tuple[str, ...]


class Pack(Strict):
    """`pack.json`."""

    schema_id: Literal["clinical-ser/audit-evidence-pack/1"] = Field(default=SCHEMA, alias="schema")
    origin: str
    size: int
    name: str
    version: str
    model: Hex32
    """Digest of the bundle's manifest."""
    learned: Hex32
    """Digest of everything but card and signature, as the evaluation names the model."""
    signed_by: str | None
    """Id of the key whose signature fits the manifest; None for an unsigned bundle. Whether it is to be trusted, its reader decides."""
    simulated: bool
    statement: str
    card_complete: bool
    card_missing: int
    """Items of the card's lists without an answer."""
    evaluation: Evaluation | None
    """None where no evidence.json was given."""
    events: tuple[ModelEvent, ...]
    change_plans: tuple[str, ...]
    """Change control plans that the events name; the plans themselves are the manufacturer's documents."""
    trained_with: dict[str, str]
    licences: str = LICENCES
    retention: str = RETENTION


@dataclass(frozen=True)
class Distribution:
    """An installed package, as it says of itself."""

    name: str
    version: str
    licence: str | None


def installed() -> tuple[Distribution, ...]:
    """Return the Python packages that are installed here, by name."""
    found = {}
    for each in distributions():
        name = str(each.metadata["Name"] or "")
        declared = each.metadata.json
        licence = declared.get("license_expression") or declared.get("license")
        if name:
            short = None if licence is None else " ".join(str(licence).split())[:100]
            found[name.lower()] = Distribution(name, each.version, short or None)
    return tuple(found[name] for name in sorted(found))


def export_evidence_pack(
    reader: LogReader,
    target: Path,
    *,
    signers: Sequence[NoteSigner],
    bundle: VerifiedBundle,
    signature: bytes | None = None,
    evidence: bytes | None = None,
    software: Sequence[Distribution] | None = None,
    created: datetime | None = None,
) -> str:
    """Write the evidence pack of one model.

    Parameters
    ----------
    reader
        The log.
    target
        The folder to be.
    signers
        The log's keys.
    bundle
        The model. Its manifest and card go along; what it learned stays where it is, and the manifest has its digests.
    signature
        The bundle's `signature` file, None for an unsigned one.
    evidence
        `evidence.json` of an evaluation of this very model, with the verdicts of its release gates.
    software
        What is installed; what is installed here when None.
    created
        When it is made; now, unless the same bytes are to come out twice.

    Returns
    -------
    str
        Digest of the export's manifest.

    Raises
    ------
    EvidenceError
        The evidence is none, or of another model.
    InvalidValueError
        The bundle is signed and its signature was not handed in, or the other way round.
    BundleError
        The signature does not fit, or the bundle's card is none.
    """
    files = _files_of(bundle, signature)
    evaluation = None if evidence is None else _evidence_of(evidence, files)
    shown = tuple(_model_records(reader, bundle.digest))
    document = _pack(files, evaluation, [(one, one.event) for one in shown], reader.origin, reader.size)
    writer = PacketWriter.of_whole(target, form=FORM, reader=reader, signers=signers, not_claimed=NOT_CLAIMED, created=created)
    with writer:
        writer.add(DOCUMENT, readable(document), JSON_TYPE, SCHEMA)
        for name, content in files.items():
            writer.add(name, content, JSON_TYPE)
        if evidence is not None:
            writer.add(EVIDENCE, evidence, JSON_TYPE, "clinical-ser/evidence/1")
        listed = bill_of_materials(installed() if software is None else software)
        writer.add(SOFTWARE, listed, "application/vnd.cyclonedx+json", "cyclonedx.org/1.6")
        add_records(writer, shown, SCHEMA)
        add_proofs(writer, shown, reader.checkpoint)
    return writer.digest


def verify_evidence_pack(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Check an evidence pack: that manifest, signature, card, evaluation and records are of one model, and the summary follows from them.

    Parameters
    ----------
    packet
        The export, its envelope checked.
    reader
        The log, for whoever has it: it tells whether a record of the model was left out.

    Raises
    ------
    AuditFormatError, AuditTamperedError
        What is wrong; records are named by their index.
    """
    document = read_document(packet, DOCUMENT, Pack)
    check_head(packet, DOCUMENT, document.origin, document.size)
    names = [name for name in (MODEL_MANIFEST, MODEL_SIGNATURE, CARD) if name in packet.manifest.files]
    files = {name: packet.read(name) for name in names}
    evidence = packet.read(EVIDENCE) if EVIDENCE in packet.manifest.files else None
    checked = list(read_records(packet))
    for one, event in checked:
        if not _is_about(document.model, one, event):
            raise AuditTamperedError(f"Record {one.index} is not about this model.")
    try:
        _check_files(files)
        evaluation = None if evidence is None else _evidence_of(evidence, files)
        again = _pack(files, evaluation, checked, document.origin, document.size)
    except (BundleError, EvidenceError, InvalidValueError, KeyError):
        raise AuditTamperedError(f"{MODEL_MANIFEST}, {MODEL_SIGNATURE}, {CARD} and {EVIDENCE} are not of one model.") from None
    if again != document:
        raise AuditTamperedError(f"{DOCUMENT} is not what follows from the files and records in the export.")
    check_same(packet, SOFTWARE, _spelled(packet.read(SOFTWARE)))
    extra = {EVIDENCE} if evidence is not None else set()
    check_names(packet, {DOCUMENT, RECORDS, SOFTWARE, *files, *extra, *check_proofs(packet, [one for one, _ in checked])})
    done = [
        "Manifest, signature, card and evaluation are of one model, and the summary follows from them.",
        f"{len(checked)} records about the model are in the log that the checkpoint signs.",
    ]
    open_ends = ["Whether the key that signed the model is to be trusted, and whether the list of software is right."]
    if reader is None:
        open_ends.append("Whether a record of the model was left out, only whoever has the log can check.")
    else:
        check_log(packet, reader)
        _compare(document, [one for one, _ in checked], reader)
        done.append("The log has no further record about the model.")
    return Findings(len(checked), tuple(done), tuple(open_ends))


def bill_of_materials(packages: Iterable[Distribution]) -> bytes:
    """Return the list of packages in CycloneDX's form (ECMA-424, version 1.6); without time and serial number, the same list is the same bytes."""
    components = [
        {
            "type": "library",
            "name": each.name,
            "version": each.version,
            "purl": f"pkg:pypi/{re.sub(r'[-_.]+', '-', each.name).lower()}@{each.version}",
            **({"licenses": [{"license": {"name": each.licence}}]} if each.licence else {}),
        }
        for each in packages
    ]
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}, indent=2).encode() + b"\n"


def _spelled(raw: bytes) -> bytes:
    """Return a list of packages as `bill_of_materials` spells it, whatever else was put into it."""
    try:
        components = json.loads(raw)["components"]
        return bill_of_materials(
            Distribution(each["name"], each["version"], each["licenses"][0]["license"]["name"] if "licenses" in each else None) for each in components
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise AuditTamperedError(f"{SOFTWARE} is no list of packages.") from None


def _files_of(bundle: VerifiedBundle, signature: bytes | None) -> dict[str, bytes]:
    if verify_signature(bundle.manifest_bytes, signature, TrustStore(frozenset())).key_id != bundle.signature.key_id:
        raise InvalidValueError("the signature", "another one than the bundle has, or none", "the bundle's own file `signature`")
    files = {MODEL_MANIFEST: bundle.manifest_bytes, CARD: bundle.files["card.json"]}
    return files if signature is None else {**files, MODEL_SIGNATURE: signature}


def _check_files(files: Mapping[str, bytes]) -> None:
    """Compare the card with what the manifest says of it; BundleError or KeyError unless they are there and fit."""
    wanted = parse_manifest(files[MODEL_MANIFEST]).files["card.json"].sha256
    if hashlib.sha256(files[CARD]).hexdigest() != wanted:
        raise InvalidValueError("the card", "one of another bundle", "the card that the manifest names")


def _evidence_of(raw: bytes, files: Mapping[str, bytes]) -> Evidence:
    """Return the evaluation; EvidenceError if it is of another model.

    A bundle with another card is the same model, by what it learned. An evaluation out of fold was made before there was a bundle, and names none:
    it is this model's if the card, which the manifest pins, carries it.
    """
    manifest, card = files[MODEL_MANIFEST], Card.from_json(files[CARD])
    evidence = Evidence.from_json(raw)
    named = {evidence.model.digest, evidence.model.learned} & {hashlib.sha256(manifest).hexdigest(), _learned(parse_manifest(manifest))}
    if not named and without_curves(evidence) not in (card.internal, *card.external):
        raise EvidenceError("The evidence.json is of another model than the bundle; evaluate this one.")
    return evidence


def _learned(manifest: BundleManifest) -> str:
    """Return `VerifiedBundle.learned_digest` from the manifest alone, which has the digest of every file."""
    about = manifest.model_dump(mode="json", exclude={"files"})
    payload = {name: entry.sha256 for name, entry in manifest.files.items() if name != "card.json"}
    return hashlib.sha256(canonical_json({"manifest": about, "files": payload})).hexdigest()


def _pack(files: Mapping[str, bytes], evidence: Evidence | None, checked: Sequence[tuple[Shown, Event]], origin: str, size: int) -> Pack:
    raw = files[MODEL_MANIFEST]
    fields = parse_manifest(raw)
    verdict = check_card(Card.from_json(files[CARD]))
    told = tuple(_model_event(one, event) for one, event in checked)
    return Pack(
        origin=origin,
        size=size,
        name=fields.name,
        version=fields.version,
        model=hashlib.sha256(raw).hexdigest(),
        learned=_learned(fields),
        signed_by=verify_signature(raw, files.get(MODEL_SIGNATURE), TrustStore(frozenset())).key_id,
        simulated=fields.simulated,
        statement=fields.statement,
        card_complete=verdict.complete,
        card_missing=sum(map(len, verdict.missing.values())),
        evaluation=None if evidence is None else _evaluation(evidence),
        events=told,
        change_plans=tuple(dict.fromkeys(each.plan for each in told if each.plan is not None)),
        trained_with=dict(sorted(fields.software.items())),
    )


def _evaluation(evidence: Evidence) -> Evaluation:
    return Evaluation(
        origin=evidence.origin,
        subjects=evidence.flow.subjects,
        gates=evidence.gates,
        gates_met=all(gate.met for gate in evidence.gates) if evidence.gates else None,
        failed_leak_guards=tuple(finding.name for finding in evidence.leaks if finding.verdict == "fail"),
        accepted_leaks=evidence.accepted_leaks,
    )


def _model_event(one: Shown, event: Event) -> ModelEvent:
    told = one.content if isinstance(one.content, ModelChange) else None
    return ModelEvent(
        record=one.index,
        time=event.time,
        outcome=event.outcome,
        action=told and told.action,
        old=told and told.old,
        new=told and told.new,
        plan=told and told.plan,
        protocol=told and told.protocol,
        approver=told and told.approver,
    )


def _model_records(reader: LogReader, model: str) -> Iterator[Shown]:
    for record in reader.records():
        if record.event.kind == ModelChange.kind and _names(model, record.event, record.payload):
            yield _shown(reader, record)


def _shown(reader: LogReader, record: Record) -> Shown:
    return show(reader, record, "whole" if record.state != "sealed" else "leaf")


def _is_about(model: str, one: Shown, event: Event) -> bool:
    return event.kind == ModelChange.kind and one.state != "without_staff" and _names(model, event, one.content)


def _names(model: str, event: Event, content: object) -> bool:
    return event.model == model or (isinstance(content, ModelChange) and model in {content.old, content.new})


def _compare(document: Pack, shown: list[Shown], reader: LogReader) -> None:
    """Look for records of the model that are not in the pack; those whose payload was destroyed since are found by their leaf, if that names it."""
    there = {one.index for one in shown}
    for record in reader.records(0, document.size):
        if record.event.kind == ModelChange.kind and _names(document.model, record.event, record.payload) and record.index not in there:
            raise AuditTamperedError(f"Record {record.index} is missing from the pack.")
