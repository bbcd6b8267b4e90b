"""A FHIR server of the tests: what it means to post a transaction, on a dictionary.

The one idea: it follows R4's rules for transactions to the letter (conditional create and update by identifier, references led to what was found),
and refuses what it cannot follow, so that a bundle that passes needs nothing else of a server.
"""

import copy
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

Node = dict[str, Any]


@dataclass
class Server:
    """Resources by kind and id."""

    kept: dict[tuple[str, str], Node] = field(default_factory=dict)
    made: int = 0

    def post(self, bundle: Node) -> list[str]:
        """Take a transaction, and say for each entry whether it was created, updated or found."""
        assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "transaction")
        places = [self._place(entry) for entry in bundle["entry"]]
        assert len(set(places)) == len(places), "two entries are about one resource"
        led = {entry["fullUrl"]: "/".join(place) for entry, place in zip(bundle["entry"], places, strict=True)}
        answers = []
        for entry, place in zip(bundle["entry"], places, strict=True):
            found, conditional = self.kept.get(place), "ifNoneExist" in entry["request"]
            answers.append("created" if found is None else "found" if conditional else "updated")
            if found is None or not conditional:
                self.kept[place] = {**_led(copy.deepcopy(entry["resource"]), led), "id": place[1]}
        return answers

    def of(self, kind: str) -> list[Node]:
        """Return the resources of a kind."""
        return [resource for (known, _), resource in self.kept.items() if known == kind]

    def _place(self, entry: Node) -> tuple[str, str]:
        request, kind = entry["request"], entry["resource"]["resourceType"]
        if request["method"] == "POST":
            assert request["url"] == kind
            return kind, self._found(kind, request["ifNoneExist"])
        url = request["url"]
        assert request["method"] == "PUT"
        if "?" in url:
            named, _, search = url.partition("?")
            assert named == kind
            assert "id" not in entry["resource"]
            return kind, self._found(kind, search)
        assert url == f"{kind}/{entry['resource']['id']}"
        return kind, entry["resource"]["id"]

    def _found(self, kind: str, search: str) -> str:
        name, _, wanted = search.partition("=")
        assert name in {"identifier", "url"}
        found = [resource["id"] for resource in self.of(kind) if unquote(wanted) in _tokens(resource)]
        assert len(found) <= 1, "412 Precondition Failed: more than one"
        self.made += 1
        return found[0] if found else str(self.made)


def _tokens(resource: Node) -> list[str]:
    identifiers = [*resource.get("identifier", []), *([resource["masterIdentifier"]] if "masterIdentifier" in resource else [])]
    return [f"{one['system']}|{one['value']}" for one in identifiers] + [resource.get("url", "")]


def _led(value: Any, addresses: dict[str, str]) -> Any:
    if isinstance(value, dict):
        known = value.get("reference")
        here = {"reference": addresses[known]} if isinstance(known, str) and known.startswith("urn:uuid:") else {}
        return {**{key: _led(item, addresses) for key, item in value.items()}, **here}
    return [_led(item, addresses) for item in value] if isinstance(value, list) else value


def dangling(server: Server) -> list[str]:
    """Return references that lead to nothing on the server, those to patients aside."""
    text = json.dumps(list(server.kept.values()))
    known = {"/".join(place) for place in server.kept}
    return [found for found in _references(json.loads(text)) if not found.startswith("Patient/") and found not in known]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["reference"]] if isinstance(value.get("reference"), str) else []
        return own + [found for item in value.values() for found in _references(item)]
    return [found for item in value for found in _references(item)] if isinstance(value, list) else []
