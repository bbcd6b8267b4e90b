"""What the page is tested against: the real server with shipped models, and a small sign-in service beside it that issues real tokens.

The one idea: nothing is pretended but the person who types a password: who comes to the sign-in service is signed in as whoever it has ready.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key

from clinical_ser.api.access import Scope
from clinical_ser.api.api_keys import add_key
from clinical_ser.audit.events import Role
from tests.api.servers import Server, serving

MODELS = ("emotion-emodb", "depression-simulated")
CLINICIAN = (Scope.SCREEN, Scope.READ, Scope.REVIEW, Scope.MODELS)
COMPLIANCE = (Scope.AUDIT, Scope.EXPORT)
PEOPLE = {
    "clinician": (Role.CLINICIAN, CLINICIAN, "Dr. Ada Example"),
    "compliance": (Role.COMPLIANCE, COMPLIANCE, "Lee Example"),
    "sender": (Role.SERVICE, (Scope.SCREEN,), None),
    "both": (Role.COMPLIANCE, tuple(Scope), "Kim Example"),
}
_AUDIENCE = "https://screening.example"
_CLIENT, _SMART_CLIENT = "screening-page", "screening-in-record"
_KEY_ID = "key-1"


@dataclass
class SignInService:
    """An identity provider, and the authorisation server of a record system, which are one program here.

    Attributes
    ----------
    scope
        What the next token is good for.
    screening
        What the record system's link means: the `appContext` of the next token.
    asked, exchanged
        The parameters of each authorisation request, and of each exchange of a code.
    refuses, forges_state, forges_nonce
        How it, or whoever stands between, misbehaves.
    """

    key: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP256R1()))
    scope: str = " ".join(CLINICIAN)
    screening: object = None
    refuses: bool = False
    forges_state: bool = False
    forges_nonce: bool = False
    lifetime_s: int = 3600
    named: str | None = None
    """Who it says it is beside the code (RFC 9207); None where it says nothing."""
    asked: list[dict[str, str]] = field(default_factory=list)
    exchanged: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where it is, and its name in tokens; a host of its own, so that the page's policy has to allow it."""
        return f"http://localhost:{self.port}"

    @property
    def fhir(self) -> str:
        """The record system's FHIR address, which a SMART launch names."""
        return f"{self.address}/fhir"

    def behave(self) -> None:
        """Be as at the start."""
        fresh = SignInService(self.key)
        for name in ("scope", "screening", "refuses", "forges_state", "forges_nonce", "lifetime_s", "named", "asked", "exchanged"):
            setattr(self, name, getattr(fresh, name))

    def settings(self, folder: Path) -> dict[str, object]:
        """Return what the server's configuration says of it."""
        keys = folder / "issuer.json"
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        keys.write_text(json.dumps({"keys": [public | {"kid": _KEY_ID, "alg": "ES256", "use": "sig"}]}))
        endpoints = {"authorization_endpoint": f"{self.address}/authorize", "token_endpoint": f"{self.address}/token"}
        issuer = {"issuer": self.address, "audience": _AUDIENCE, "keys": str(keys), "algorithms": ("ES256",), "role": "clinician"}
        return {
            "issuers": (issuer,),
            "sign_in": ({"name": "Example Hospital", "client_id": _CLIENT, "scope": "openid profile", **endpoints},),
            "smart": ({"iss": self.fhir, "client_id": _SMART_CLIENT, "scope": "launch openid fhirUser", **endpoints},),
        }

    def authorise(self, asked: dict[str, str]) -> str:
        """Return where to send whoever asks: back, with a code or an error."""
        self.asked.append(asked)
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        state = "of-another-window" if self.forges_state else asked["state"]
        if self.refuses:
            return f"{asked['redirect_uri']}?{urlencode({'error': 'access_denied', 'state': state})}"
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': state} | ({} if self.named is None else {'iss': self.named}))}"

    def exchange(self, sent: dict[str, str]) -> dict[str, object] | None:
        """Return tokens for a code, once, and only to whoever began (RFC 7636)."""
        self.exchanged.append(sent)
        asked = self._codes.pop(sent.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(sent.get("code_verifier", "").encode()).digest()).rstrip(b"=").decode()
        same = asked and all(asked[name] == sent.get(name) for name in ("client_id", "redirect_uri"))
        if not asked or not same or asked["code_challenge"] != challenge or sent.get("grant_type") != "authorization_code":
            return None
        now = int(time.time())
        common = {"iss": self.address, "sub": "ada", "iat": now, "exp": now + self.lifetime_s, "name": "Dr. Ada Example"}
        access = common | {"aud": _AUDIENCE, "jti": secrets.token_hex(8), "scope": self.scope}
        nonce = "another" if self.forges_nonce else asked["nonce"]
        context = {} if self.screening is None else {"appContext": self.screening}
        return {
            "access_token": self._signed(access, "at+jwt"),
            "id_token": self._signed(common | {"aud": asked["client_id"], "nonce": nonce}, "JWT"),
            "token_type": "Bearer",
            "expires_in": self.lifetime_s,
            **context,
        }

    def _signed(self, claims: dict[str, object], kind: str) -> str:
        return jwt.encode(claims, self.key, "ES256", headers={"typ": kind, "kid": _KEY_ID})

    @contextmanager
    def listening(self) -> Iterator["SignInService"]:
        """Serve meanwhile."""
        with ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="sign-in service")
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def _handler(service: SignInService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path != "/authorize":
                self._answer(404, b"")
                return
            self._answer(302, b"", {"Location": service.authorise({name: values[0] for name, values in parse_qs(parts.query).items()})})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found = service.exchange({name: values[0] for name, values in parse_qs(body).items()})
            content = json.dumps(found or {"error": "invalid_grant"}).encode()
            self._answer(200 if found else 400, content, {"Content-Type": "application/json", "Access-Control-Allow-Origin": "*"})

        def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@dataclass
class Site:
    """The server, the sign-in service, and an access key for each of `PEOPLE`."""

    server: Server
    sign_in: SignInService
    keys: dict[str, str]

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server.port}/"

    @property
    def verifier(self) -> str:
        """The log's key, as a site keeps it elsewhere."""
        return str(self.server.audit.load_keys().verifiers[0])


@contextmanager
def page_site(folder: Path) -> Iterator[Site]:
    """Start all of it in an empty folder."""
    with SignInService().listening() as sign_in:
        keys = {
            name: add_key(folder / "api_keys.json", client=name, name=printed, tenant="", role=role, scopes=frozenset(scopes)).text
            for name, (role, scopes, printed) in PEOPLE.items()
        }
        with serving(folder, MODELS, **sign_in.settings(folder)) as server:
            yield Site(server, sign_in, keys)
