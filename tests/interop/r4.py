"""Resources held against FHIR R4's own definitions (`r4.json`, made by tools/fhir_test_data.py), three ways, each of which misses what another sees.

The one idea: the tables are HL7's, and none of it is shared with the code that makes resources. `by_schema` is the JSON schema; `by_definitions`
walks the StructureDefinitions: cardinality, type, required binding, kind of target, display, absolute addresses; `by_invariants` are the rules that
FHIR writes in FHIRPath, written again in Python.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema

R4 = json.loads((Path(__file__).parent / "r4.json").read_text(encoding="utf-8"))
ELEMENTS, PRIMITIVES, CODES, DISPLAYS, CONSTRAINTS = (R4[name] for name in ("elements", "primitives", "codes", "displays", "constraints"))
NEWER = {("http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "AIAST")}
"""Codes that came to a system after 4.0.1."""
ELSEWHERE_CALLED = {("http://terminology.hl7.org/CodeSystem/audit-event-type", "rest"): "Restful Operation"}
"""What BALP's profiles fix, against R4's own "RESTful Operation"."""
ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:\S+")
ADDRESSES = ("system", "fullUrl")
_XHTML = "{http://www.w3.org/1999/xhtml}"
_ALLOWED = {f"{_XHTML}{name}" for name in ("div", "p", "b", "br", "ul", "li")}

Node = dict[str, Any]


def check(resource: Node) -> list[str]:
    """All that any of the three finds wrong."""
    return [*by_schema(resource), *by_definitions(resource), *by_invariants(resource)]


@cache
def _validator(kind: str) -> jsonschema.Draft6Validator:
    return jsonschema.Draft6Validator({**R4["schema"], "$ref": f"#/definitions/{kind}"})


def by_schema(resource: Node) -> list[str]:
    found = [
        f"schema {'.'.join(map(str, error.absolute_path))}: {error.validator}" for error in _validator(resource["resourceType"]).iter_errors(resource)
    ]
    inside = [entry["resource"] for entry in resource.get("entry", []) if "resource" in entry]
    return found + [problem for one in inside for problem in by_schema(one)]


def by_definitions(resource: Node) -> list[str]:
    kinds = {entry["fullUrl"]: entry["resource"]["resourceType"] for entry in resource.get("entry", []) if "fullUrl" in entry}
    return list(_walk(resource, resource["resourceType"], resource["resourceType"], kinds))


def _walk(node: Node, kind: str, path: str, kinds: dict[str, str]) -> Iterator[str]:
    """Check the elements that lie right under a path of a kind's definition."""
    if not isinstance(node, dict) or not node:
        yield f"{path}: not an object with something in it"
        return
    elements = {name.removeprefix(f"{path}."): one for name, one in ELEMENTS[kind].items() if re.fullmatch(re.escape(path) + r"\.[^.]+", name)}
    known = {"resourceType"} if kind == path else set()
    for name, element in elements.items():
        for shown, primitive in _names(name, element):
            if shown in node:
                known.add(shown)
                yield from _element(node[shown], primitive, element, f"{path}.{name}", kind, kinds)
        found = [shown for shown, _ in _names(name, element) if shown in node]
        if len(found) > 1:
            yield f"{path}.{name}: more than one of a choice"
        if element["min"] > 0 and not found:
            yield f"{path}.{name}: is missing"
    yield from (f"{path}.{name}: is no element of R4" for name in sorted(set(node) - known))
    for name in ADDRESSES:
        if isinstance(node.get(name), str) and not ABSOLUTE.fullmatch(node[name]):
            yield f"{path}.{name}: is no absolute address"
    if "system" in node and "code" in node:
        yield from _coding(node, path)


def _names(name: str, element: Node) -> list[tuple[str, str | None]]:
    if not name.endswith("[x]"):
        return [(name, None)]
    return [(name.removesuffix("[x]") + kind[0].upper() + kind[1:], kind) for kind in element["types"]]


def _element(value: Any, chosen: str | None, element: Node, path: str, kind: str, kinds: dict[str, str]) -> Iterator[str]:
    many = element["max"] == "*"
    if isinstance(value, list) is not many or value == []:
        yield f"{path}: is {'no list' if many else 'a list'}, or empty"
        return
    for one in value if many else [value]:
        yield from _value(one, chosen, element, path, kind, kinds)


def _value(value: Any, chosen: str | None, element: Node, path: str, kind: str, kinds: dict[str, str]) -> Iterator[str]:
    if "same" in element:
        yield from _walk(value, kind, element["same"], kinds)
        return
    of = chosen or element["types"][0]
    if of in {"BackboneElement", "Element"}:
        yield from _walk(value, kind, path, kinds)
    elif of == "Resource":
        yield from _walk(value, value["resourceType"], value["resourceType"], kinds)
    elif of in ELEMENTS:
        yield from _walk(value, of, of, kinds)
        if of == "Reference" and isinstance(value, dict):
            yield from _target(value, element, path, kinds)
    else:
        yield from _primitive(value, of, element, path)


def _target(reference: Node, element: Node, path: str, kinds: dict[str, str]) -> Iterator[str]:
    address = reference.get("reference", "")
    if address.startswith("urn:uuid:") and address not in kinds:
        yield f"{path}: leads nowhere"
        return
    target = kinds.get(address) or reference.get("type") or address.rpartition("/")[0].rpartition("/")[2]
    allowed = element.get("targets", ["Resource"])
    if target and "Resource" not in allowed and target not in allowed:
        yield f"{path}: must not lead to a {target}"


def _primitive(value: Any, kind: str, element: Node, path: str) -> Iterator[str]:
    """FHIRPath's own types (`System.String`) are those of ids and of extensions' addresses."""
    if kind == "boolean":
        fits = isinstance(value, bool)
    elif kind in {"decimal", "integer", "unsignedInt", "positiveInt"}:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and re.fullmatch(PRIMITIVES[kind], json.dumps(value))
    elif kind == "xhtml" or kind.startswith("http://hl7.org/fhirpath/System."):
        fits = isinstance(value, str)
    else:
        fits = isinstance(value, str) and value and re.fullmatch(PRIMITIVES.get(kind, PRIMITIVES["string"]), value)
    if not fits:
        yield f"{path}: is no {kind}"
    elif (allowed := CODES.get(element.get("binding"))) is not None and value not in allowed:
        yield f"{path}: {value!r} is not in {element['binding']}"


def _coding(coding: Node, path: str) -> Iterator[str]:
    known = DISPLAYS.get(coding["system"])
    if known is None or (coding["system"], coding["code"]) in NEWER:
        return
    if coding["code"] not in known:
        yield f"{path}: {coding['code']!r} is no code of {coding['system']}"
    elif coding.get("display", known[coding["code"]]) not in {known[coding["code"]], ELSEWHERE_CALLED.get((coding["system"], coding["code"]))}:
        yield f"{path}: {coding['code']!r} has another display than its code"


# --- Invariants: each takes a node and says whether it holds --------------------------------------------------------------------------------


def _choice(node: Node, name: str) -> list[Any]:
    return [value for key, value in node.items() if re.fullmatch(f"{name}[A-Z][A-Za-z]*", key)]


def _same_code(component: Node, observation: Node) -> bool:
    pairs = [{(one.get("system"), one.get("code")) for one in each["code"].get("coding", [])} for each in (component, observation)]
    return bool(pairs[0] & pairs[1])


def _is_percent(probability: Node) -> bool:
    sides = [probability[side] for side in ("low", "high") if side in probability]
    return all(side.get("code") == "%" and side.get("system") == "http://unitsofmeasure.org" for side in sides)


def _codes_in(concepts: list[Node]) -> list[str]:
    return [code for one in concepts for code in (one["code"], *_codes_in(one.get("concept", [])))]


def _is_html(narrative: Node) -> bool:
    try:
        root = ET.fromstring(narrative["div"])
    except ET.ParseError:
        return False
    return root.tag == f"{_XHTML}div" and all(one.tag in _ALLOWED for one in root.iter()) and "".join(root.itertext()).strip() != ""


def _is_transaction(bundle: Node) -> bool:
    return bundle["type"] in {"batch", "transaction", "history"}


INVARIANTS: dict[str, tuple[str, Callable[[Node], bool]]] = {
    "att-1": ("Attachment", lambda one: "data" not in one or "contentType" in one),
    "bdl-1": ("Bundle", lambda one: "total" not in one or one["type"] in {"searchset", "history"}),
    "bdl-2": ("Bundle", lambda one: one["type"] == "searchset" or not any("search" in entry for entry in one.get("entry", []))),
    "bdl-3": ("Bundle", lambda one: all(("request" in entry) is _is_transaction(one) for entry in one.get("entry", []))),
    "bdl-4": ("Bundle", lambda one: not _is_transaction(one) or not any("response" in entry for entry in one.get("entry", []))),
    "bdl-5": ("Bundle.entry", lambda one: bool({"resource", "request", "response"} & set(one))),
    "bdl-7": ("Bundle", lambda one: len(urls := [entry["fullUrl"] for entry in one.get("entry", []) if "fullUrl" in entry]) == len(set(urls))),
    "bdl-8": ("Bundle.entry", lambda one: "/_history/" not in one.get("fullUrl", "")),
    "csd-1": ("CodeSystem", lambda one: len(codes := _codes_in(one.get("concept", []))) == len(set(codes))),
    "ext-1": ("Extension", lambda one: ("extension" in one) is not bool(_choice(one, "value"))),
    "obs-3": ("Observation.referenceRange", lambda one: bool({"low", "high", "text"} & set(one))),
    "obs-6": ("Observation", lambda one: not ("dataAbsentReason" in one and _choice(one, "value"))),
    "obs-7": ("Observation", lambda one: not _choice(one, "value") or not any(_same_code(part, one) for part in one.get("component", []))),
    "per-1": ("Period", lambda one: "start" not in one or "end" not in one or one["start"] <= one["end"]),
    "qty-3": ("Quantity", lambda one: "code" not in one or "system" in one),
    "ras-1": ("RiskAssessment.prediction", lambda one: _is_percent(one.get("probabilityRange", {}))),
    "ras-2": ("RiskAssessment.prediction", lambda one: one.get("probabilityDecimal", 0) <= 100),
    "ref-1": ("Reference", lambda one: not one.get("reference", "").startswith("#")),
    "rng-2": ("Range", lambda one: "low" not in one or "high" not in one or one["low"]["value"] <= one["high"]["value"]),
    "sev-1": ("AuditEvent.entity", lambda one: not ("name" in one and "query" in one)),
    "txt-1": ("Narrative", _is_html),
    "vsd-1": ("ValueSet.compose.include", lambda one: bool({"valueSet", "system"} & set(one))),
    "vsd-3": ("ValueSet.compose.include", lambda one: not {"concept", "filter"} <= set(one)),
}
"""Key to where it holds, and the rule."""
ELSEWHERE = {
    "bdl-9": "documents only", "bdl-10": "documents only", "bdl-11": "documents only", "bdl-12": "messages only",
    "dom-2": "nothing of ours is contained", "dom-3": "nothing of ours is contained", "dom-4": "nothing of ours is contained",
    "dom-5": "nothing of ours is contained", "ele-1": "the walker refuses what is empty", "txt-2": "txt-1 looks for text too",
    "vsd-2": "no concepts or filters in ours", "vsd-6": "no expansion in ours", "vsd-9": "no expansion in ours", "vsd-10": "no expansion in ours",
}  # fmt: skip
"""The other keys, each with why it is not here."""


def by_invariants(resource: Node) -> list[str]:
    return [f"{path}: {key}" for path, node in _nodes(resource, resource["resourceType"], resource["resourceType"]) for key in _broken(path, node)]


def _broken(path: str, node: Node) -> Iterator[str]:
    for key, (where, holds) in INVARIANTS.items():
        if where == path and not holds(node):
            yield key
    if "contained" in node:
        yield "dom-2"


def _nodes(node: Node, kind: str, path: str) -> Iterator[tuple[str, Node]]:
    """Yield every complex element under the path of its definition (`Period`, `Observation.referenceRange`)."""
    yield path, node
    for name, element in ELEMENTS[kind].items():
        if not re.fullmatch(re.escape(path) + r"\.[^.]+", name):
            continue
        for shown, chosen in _names(name.removeprefix(f"{path}."), element):
            value = node.get(shown)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    of = chosen or (element["types"] or [""])[0]
                    if of == "Resource":
                        yield from _nodes(one, one["resourceType"], one["resourceType"])
                    elif of in ELEMENTS:
                        yield from _nodes(one, of, of)
                    else:
                        yield from _nodes(one, kind, element.get("same", name))
