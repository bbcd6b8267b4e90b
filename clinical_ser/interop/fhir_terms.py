"""The words of our FHIR resources: addresses of our own terms, codes of others' systems, units, and our CodeSystems made from the feature catalogue.

The one idea: a code that others have is theirs, with their display; one that nobody has is ours, under our own address: no LOINC code is invented.
Run as a module (`python -m clinical_ser.interop.fhir_terms`), this file prints CodeSystems and ValueSets as a transaction that a FHIR server takes.

Sources: FHIR 4.0.1 and the terminology that is part of it; UCUM 2.1; AIAST came to v3-ObservationValue after 4.0.1.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from clinical_ser.audit.events import canonical
from clinical_ser.audit.exports import fhir_rules
from clinical_ser.audit.exports.fhir_rules import OBSERVATION_VALUE
from clinical_ser.features import catalogue
from clinical_ser.screening.result import Status

Json = dict[str, Any]

TERMS = "https://clinical-ser.example/fhir"
"""Under which all that is ours lies. An address under .example (RFC 2606) belongs to nobody, for good: nobody can put another meaning there."""
MEASURES = f"{TERMS}/CodeSystem/measure"
SCREENING = f"{TERMS}/CodeSystem/screening"
MEASURES_SET = f"{TERMS}/ValueSet/measure"
SCREENING_SET = f"{TERMS}/ValueSet/screening"
PROBABILITY = f"{TERMS}/StructureDefinition/probability"
"""The extension that says whose probability it is: estimate, interval, prevalence, threshold."""
SCREENINGS = f"{TERMS}/id/screening"
RECORDINGS = f"{TERMS}/id/recording"
DOCUMENTS = f"{TERMS}/id/document"
"""Namespaces of identifiers: a screening's id and what of it; SHA-256 of a recording's 16 kHz 16-bit samples; SHA-256 of a document's bytes."""

ABSENT_REASON = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
DATA_OPERATION = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"
PROVENANCE_AGENT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
SNOMED = "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"
AI_DEVICE = "http://hl7.org/fhir/uv/aitransparency/CodeSystem/AIdeviceTypeCS"
RISK = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-risk"
"""HL7's own extension, by which a DiagnosticReport names its RiskAssessment."""

CODES: Mapping[str, Mapping[str, str]] = {
    ABSENT_REASON: {"not-performed": "Not Performed", "unknown": "Unknown"},
    AI_DEVICE: {"Artificial-Intelligence": ""},  # Its display changed between ballots.
    CATEGORY: {"procedure": "Procedure"},
    DATA_OPERATION: {"CREATE": "create", "UPDATE": "revise"},
    OBSERVATION_VALUE: {"AIAST": "Artificial Intelligence asserted", "CLINAST": "clinician asserted", "DEVAST": "device asserted"},
    PROVENANCE_AGENT: {"assembler": "Assembler", "author": "Author", "enterer": "Enterer"},
    SCREENING: {
        "speech-screening": "Speech screening",
        "recording-quality": "Quality of the recording",
        Status.FLAGGED: "Flagged",
        Status.NOT_FLAGGED: "Not flagged",
        Status.CLASSIFIED: "Classified",
        Status.INDETERMINATE: "The model cannot tell",
        Status.NOT_USABLE: "Recording not usable",
        "overridden": "Overridden by a clinician",
        "pass": "Good enough",
        "warn": "Usable, with a warning",
        "fail": "Not good enough",
        "speech": "Net speech",
        "voicing": "Voiced share of speech",
        "snr": "Signal-to-noise ratio",
        "clipping": "Clipped samples",
        "bandwidth": "Bandwidth",
        "level": "Level of speech",
        "codec": "Bit rate of the codec",
        "speakers": "Signs of a second speaker",
        "samples": "Samples that are no numbers",
        "offset": "Constant offset",
        "complete": "Recording is complete",
    },
    SNOMED: {"35489007": "Depressive disorder"},
}
"""The codes that we use of each system, with their display."""

DEFINITIONS: Mapping[str, str] = {
    Status.FLAGGED: "More similar to recordings of the positive class: above the threshold, and the prediction set holds that class alone.",
    Status.NOT_FLAGGED: "More similar to recordings of the other class. It does not rule out illness or risk.",
    Status.CLASSIFIED: "Of several classes, the prediction set holds the most probable one alone.",
    Status.INDETERMINATE: "An answer without a number: the prediction set holds several classes or none, or disagrees with the threshold.",
    Status.NOT_USABLE: "The quality gate refused the recording; no model answered.",
    "overridden": "A clinician looked at the answer and decided otherwise.",
}
"""What a code of ours means, where its display does not say it all."""

CHANGE = ".change"
"""Ends the code of a measure that is a difference from the person's own earlier recordings: another quantity, and so another code."""

_UNITS: Mapping[str, tuple[str, str | None]] = {
    **{unit: (unit, unit) for unit in ("1", "%", "s", "us", "Hz", "dB", "1/s", "1/min", "bit/s")},
    "share": ("share", "1"),
    # UCUM's `st` is a stere of wood; it has no semitone. Its `dB` may stand alone only, and knows no full scale.
    "st": ("semitone", None),
    "st/s": ("semitone/s", None),
}
"""Unit of the catalogue or the gate to how it is written, and its UCUM code; what is not here has no code."""
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_OTHER_SPACE = re.compile(r"[^\S \r\n\t]")
"""What XML cannot hold, and so no FHIR string; R4's schema allows no white space but space, line ends and tab."""
_DIGITS = 6
"""Significant digits of a number: more than any measurement here is good for."""


def coding(system: str, value: str) -> dict[str, str]:
    """Return a Coding of a system in `CODES`, with its display; KeyError for a code that we do not use."""
    if system not in CODES:
        return fhir_rules.code(system, value)
    display = CODES[system][value]
    return {"system": system, "code": str(value), **({"display": display} if display else {})}


def concept(system: str, value: str, text: str | None = None) -> Json:
    """Return a CodeableConcept with one coding."""
    return {"coding": [coding(system, value)], **({"text": text} if text else {})}


def number(value: float) -> int | float:
    """Return a number as it is written: six significant digits, whole ones without a fraction.

    Examples
    --------
    >>> number(31.0), number(0.30000000000000004), number(-0.0)
    (31, 0.3, 0)
    """
    shown = float(f"{value:.{_DIGITS}g}")
    # `canonical` is quick where no float is whole.
    return int(shown) if shown.is_integer() and math.fabs(shown) < 1e15 else shown


def quantity(value: float, unit: str) -> Json:
    """Return a Quantity; with a UCUM code where UCUM has the unit, else with the unit in words alone.

    Examples
    --------
    >>> quantity(1.4, "st"), quantity(38, "%")["code"]
    ({'value': 1.4, 'unit': 'semitone'}, '%')
    """
    shown, code = _UNITS.get(unit, (unit, None))
    return {"value": number(value), **({"unit": shown} if shown else {}), **({"system": UCUM, "code": code} if code else {})}


def percent(probability: float) -> Json:
    """Return a probability, from 0 to 1, as a Quantity in percent."""
    return quantity(100 * probability, "%")


def codesystem() -> Json:
    """Return the CodeSystem of our measures: every feature but ComParE's and embeddings', in two languages, with unit and family.

    Every measure stands there twice: as it is, and as the difference from the person's own earlier recordings (`CHANGE`).
    """
    concepts = [_feature(catalogue.get(name), "") for name in catalogue.names("egemaps", "praat", "timing")]
    changes = [_feature(catalogue.get(name), CHANGE) for name in catalogue.names("egemaps", "praat", "timing")]
    properties = [
        {"code": "unit", "description": "As the catalogue of features writes it; not always UCUM.", "type": "string"},
        {"code": "family", "description": "The group of features it is explained with.", "type": "code"},
    ]
    return _codesystem("ClinicalSerMeasures", "Measures of a voice", MEASURES, MEASURES_SET, [*concepts, *changes], properties)


def screening_codesystem() -> Json:
    """Return the CodeSystem of what a screening can say, and of the checks of the quality gate."""
    concepts = [
        {"code": str(value), "display": display, **({"definition": DEFINITIONS[value]} if value in DEFINITIONS else {})}
        for value, display in CODES[SCREENING].items()
    ]
    return _codesystem("ClinicalSerScreening", "Answers of a speech screening", SCREENING, SCREENING_SET, concepts, [])


def valuesets() -> tuple[Json, Json]:
    """Return a ValueSet of all codes of each CodeSystem."""
    return (
        _valueset("ClinicalSerMeasuresAll", "All measures of a voice", MEASURES_SET, MEASURES),
        _valueset("ClinicalSerScreeningAll", "All answers of a speech screening", SCREENING_SET, SCREENING),
    )


def terminology() -> Json:
    """Return CodeSystems and ValueSets as a transaction Bundle; posted again, it replaces what it wrote before."""
    resources = (codesystem(), screening_codesystem(), *valuesets())
    entries = [
        {"resource": resource, "request": {"method": "PUT", "url": f"{resource['resourceType']}?url={resource['url']}"}} for resource in resources
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def _feature(spec: catalogue.FeatureSpec, ending: str) -> Json:
    return {
        "code": spec.name + ending,
        "display": measure_label(spec.label_en, change=bool(ending)),
        "definition": spec.meaning_en,
        "designation": [{"language": "zh", "value": f"{spec.label_zh}（与本人先前录音之差）" if ending else spec.label_zh}],
        "property": [{"code": "unit", "valueString": spec.unit}, {"code": "family", "valueCode": spec.family}],
    }


def measure_label(label: str, *, change: bool) -> str:
    """Return what a measure is called, alone or as a difference."""
    return f"{label}, difference from the person's own earlier recordings" if change else label


def _codesystem(name: str, title: str, url: str, valueset: str, concepts: Sequence[Json], properties: Sequence[Json]) -> Json:
    return {
        "resourceType": "CodeSystem",
        **_published(name, title, url),
        "caseSensitive": True,
        "valueSet": valueset,
        "content": "complete",
        "count": len(concepts),
        **({"property": list(properties)} if properties else {}),
        "concept": list(concepts),
    }


def _valueset(name: str, title: str, url: str, system: str) -> Json:
    return {"resourceType": "ValueSet", **_published(name, title, url), "compose": {"include": [{"system": system}]}}


def text_of(words: object) -> str:
    r"""Return text as FHIR's strings may be: no control characters and half ones, no white space but spaces and line ends, and not blank.

    Examples
    --------
    >>> text_of("a\u00a0b\x00")
    'a b\ufffd'
    """
    shown = _OTHER_SPACE.sub(" ", _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", str(words)))
    return shown if shown.strip() else "\N{REPLACEMENT CHARACTER}"


def _published(name: str, title: str, url: str) -> Json:
    return {"url": url, "version": version("clinical-ser"), "name": name, "title": title, "status": "active", "experimental": False}


if __name__ == "__main__":
    sys.stdout.buffer.write(canonical(terminology()) + b"\n")
