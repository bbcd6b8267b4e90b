"""Exports: what a log gives out, in the forms that auditors, hospitals and the persons in it ask for."""

from importlib import import_module

from clinical_ser.audit.exports.packet import VERIFIERS, Findings, Packet, Verifier
from clinical_ser.audit.records import LogReader

_FORMS = {
    "access": "access.verify_access",
    "accounting": "accounting.verify_accounting",
    "ai-act": "ai_act.verify_ai_act",
    "csv": "table.verify",
    "evidence-pack": "evidence_pack.verify_evidence_pack",
    "fhir": "fhir.verify",
    "jsonl": "json_lines.verify",
    "processing": "processing.verify_processing",
}


def _late(place: str) -> Verifier:
    """Return a verifier that is loaded when it is used: some need the libraries that read a model, which takes seconds."""
    module, name = place.split(".")

    def verify(packet: Packet, reader: LogReader | None = None) -> Findings:
        found: Findings = getattr(import_module(f"{__name__}.{module}"), name)(packet, reader)
        return found

    return verify


VERIFIERS.update({form: _late(place) for form, place in _FORMS.items()})
