"""A record system as the specification of CDS Hooks 2.0 has it, and as the reference sandbox does it: it discovers, signs, asks, and gives feedback.

The one idea: it shares no line with the server. What it demands of an answer is written down from the specification (HL7/cds-hooks, CDS Hooks 2.0 and
the logical models of 3.0.0-ballot, input/fsh) and from what the sandbox reads (cds-hooks/sandbox at 14ff61c0, src/components/CardList/card-list.jsx;
01e5d30a, src/retrieve-data-helpers/service-exchange.js; 0589d421, jwt-generator.js; 0a042005, discovery-services-retrieval.js). The sandbox itself is
an application of a browser and was read, not run.
"""

import json
import re
import time
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_INDICATORS = {"info", "warning", "critical"}
_CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1}


# ── what an answer has to be ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def faults_of_discovery(told):
    """Say what is wrong with an answer of the discovery endpoint."""
    faults = list(_empties(told))
    services = told.get("services")
    if not isinstance(services, list):
        return [*faults, "services is no array"]
    for service in services:
        faults += [f"a service has no {name}" for name in ("hook", "description", "id") if not isinstance(service.get(name), str)]
        faults += [f"{name} is no text" for name in ("title", "usageRequirements") if name in service and not isinstance(service[name], str)]
        faults += _unknown(service, {"hook", "title", "description", "id", "prefetch", "usageRequirements", "extension"}, "a service")
        if not all(isinstance(query, str) for query in service.get("prefetch", {}).values()):
            faults.append("a prefetch template is no text")
    return faults


def faults_of_answer(told):
    """Say what is wrong with an answer of a service."""
    faults = list(_empties(told, may_be_empty={"cards"}))
    faults += _unknown(told, {"cards", "systemActions", "extension"}, "the answer")
    if not isinstance(told.get("cards"), list):
        return [*faults, "cards is no array"]
    for card in told["cards"]:
        faults += _faults_of_card(card)
    return faults


def _faults_of_card(card):
    known = {"uuid", "summary", "detail", "indicator", "source", "suggestions", "selectionBehavior", "overrideReasons", "links", "extension"}
    yield from _unknown(card, known, "a card")
    if not isinstance(card.get("summary"), str) or len(card["summary"]) >= 140 or "\n" in card["summary"]:
        yield "summary is not one sentence of fewer than 140 characters"
    if card.get("indicator") not in _INDICATORS:
        yield "indicator is none of info, warning, critical"
    if "uuid" in card and not _UUID.fullmatch(card["uuid"]):
        yield "uuid is none"
    if "detail" in card and not isinstance(card["detail"], str):
        yield "detail is no text"
    yield from _faults_of_source(card.get("source"))
    if card.get("suggestions") and "selectionBehavior" not in card:  # cds-resp-6
        yield "suggestions come without a selectionBehavior"
    if "selectionBehavior" in card and card["selectionBehavior"] not in {"at-most-one", "any"}:
        yield "selectionBehavior is unknown, which makes the card an error"
    for coding in card.get("overrideReasons", []):  # cds-resp-4
        yield from _faults_of_coding(coding, display=True)
    for link in card.get("links", []):
        yield from _faults_of_link(link)


def _faults_of_source(source):
    if not isinstance(source, dict) or not isinstance(source.get("label"), str):
        yield "source has no label"
        return
    yield from _unknown(source, {"label", "url", "icon", "topic", "extension"}, "a source")
    yield from (f"source.{name} is no absolute address" for name in ("url", "icon") if name in source and not _absolute(source[name]))
    if "topic" in source:
        yield from _faults_of_coding(source["topic"], display=False)


def _faults_of_coding(coding, *, display):
    yield from _unknown(coding, {"code", "system", "display", "extension"}, "a coding")
    names = ("code", "system", "display") if display else ("code", "system")
    yield from (f"a coding has no {name}" for name in names if not isinstance(coding.get(name), str))


def _faults_of_link(link):
    yield from _unknown(link, {"label", "url", "type", "appContext", "autolaunchable", "extension"}, "a link")
    if link.get("type") not in {"absolute", "smart"}:
        yield "a link is neither absolute nor smart"
    if link.get("type") != "smart" and "appContext" in link:  # cds-resp-3
        yield "appContext goes with smart links only"
    if not isinstance(link.get("label"), str):
        yield "a link has no label"
    if not _absolute(link.get("url")):
        yield "a link has no absolute address"


def _absolute(url):
    parts = urlsplit(url) if isinstance(url, str) else None
    return bool(parts and parts.scheme in {"https", "http"} and parts.hostname)


def _unknown(told, known, what):
    return [f"{what} has {name}, which the specification has not" for name in sorted(told.keys() - known)]


def _empties(value, path="", may_be_empty=frozenset()):
    """Yield where something is null or empty: neither may be, unless it is said so."""
    name = path.rpartition(".")[2]
    if value is None or (value in ("", [], {}) and name not in may_be_empty):
        yield f"{path or 'all'} is null or empty"
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from _empties(member, f"{path}.{key}", may_be_empty)


# ── a record system ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class SigningKey:
    """A key pair of a record system."""

    kid: str = "key-1"
    algorithm: str = "ES384"
    private: object = field(init=False)

    def __post_init__(self):
        is_rsa = self.algorithm.startswith("RS")
        self.private = rsa.generate_private_key(65537, 2048) if is_rsa else ec.generate_private_key(_CURVES[self.algorithm]())

    @property
    def public_jwk(self):
        """Its public half, as it stands in a key set."""
        numbers = self.private.public_key().public_numbers()
        about = {"kid": self.kid, "use": "sig", "alg": self.algorithm}
        if self.algorithm.startswith("RS"):
            return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e), **about}
        size = (self.private.curve.key_size + 7) // 8
        curve = {"ES256": "P-256", "ES384": "P-384"}[self.algorithm]
        return {"kty": "EC", "crv": curve, "x": _number(numbers.x, size), "y": _number(numbers.y, size), **about}


def _number(value, size=None):
    return urlsafe_b64encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


def key_set(*keys):
    """Return a key set, as a record system publishes it."""
    return json.dumps({"keys": [key.public_jwk for key in keys]}).encode()


@dataclass
class RecordSystem:
    """A record system.

    Attributes
    ----------
    http
        What sends: it has `get` and `post`, as httpx.Client has them.
    base_url
        Of the service, as the record system was told it.
    iss, jku, key, tenant
        What it signs with, and says of itself.
    user, fhir_server
        Who sits before it, and where its data are.
    clock
        Seconds since the epoch.
    """

    http: object
    base_url: str
    key: SigningKey = field(default_factory=SigningKey)
    iss: str = "https://ehr.example.org"
    jku: str | None = "https://ehr.example.org/jwks.json"
    tenant: str | None = None
    user: str = "Practitioner/example"
    fhir_server: str = "https://ehr.example.org/fhir"
    clock: object = time.time

    def token(self, audience, *, header=None, key=None, **claims):
        """Return a token as the specification has it; a header or claim that is None is left out."""
        now = int(self.clock())
        key = key or self.key
        told = {"iss": self.iss, "aud": audience, "iat": now, "exp": now + 300, "jti": str(uuid.uuid4()), "tenant": self.tenant, **claims}
        headers = {"alg": key.algorithm, "typ": "JWT", "kid": key.kid, "jku": self.jku, **(header or {})}
        present = {name: value for name, value in told.items() if value is not None}
        return jwt.encode(present, key.private, headers["alg"], headers={name: value for name, value in headers.items() if value is not None})

    def discover(self):
        """Return the services by their addresses, as the sandbox keeps them; it signs this call too."""
        url = f"{self.base_url}/cds-services"
        answered = self.http.get(url, headers={"Accept": "application/json", "Authorization": f"Bearer {self.token(url)}"})
        assert answered.status_code == 200, answered.text
        assert faults_of_discovery(answered.json()) == []
        return {f"{url}/{service['id']}": service for service in answered.json()["services"]}

    def request(self, patient, **changes):
        """Return a call, with the fields that the sandbox sends."""
        context = {"patientId": patient, "userId": self.user}
        return {"hookInstance": str(uuid.uuid4()), "hook": "patient-view", "fhirServer": self.fhir_server, "context": context, **changes}

    def post(self, url, body, *, token=None, **headers):
        """Send a body with a token for the address, or with one of one's own."""
        told = {"Accept": "application/json", "Content-Type": "application/json", "Authorization": f"Bearer {token or self.token(url)}", **headers}
        return self.http.post(url, content=body if isinstance(body, bytes) else json.dumps(body).encode(), headers=told)

    def open_chart(self, url, patient, **changes):
        """Return the cards of a patient."""
        answered = self.post(url, self.request(patient, **changes))
        assert answered.status_code == 200, answered.text
        assert faults_of_answer(answered.json()) == []
        return answered.json()["cards"]

    def dismiss(self, url, card, reason=None, **changes):
        """Put a card aside, as the sandbox's button does: of a reason it sends code and system, and not the text."""
        told = {"card": card["uuid"], "outcome": "overridden", "outcomeTimestamp": _timestamp()}
        if reason:
            told["overrideReason"] = {"reason": {"code": reason["code"], "system": reason["system"]}}
        return self.feedback(url, told | changes)

    def feedback(self, url, *told):
        """Say what became of cards."""
        return self.post(f"{url}/feedback", {"feedback": list(told)})


def _timestamp():
    """Return the time as JavaScript's toISOString writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
