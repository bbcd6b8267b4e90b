"""A record system asks a real server: who is let in, what is shown of whom, what is recorded of it, and what becomes of feedback."""

import json
import time
import uuid
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import httpx2
import pytest

from clinical_ser.api.access import Principal
from clinical_ser.api.cds_clients import CdsClient, CdsClients
from clinical_ser.api.cds_hooks import FEEDBACK_PATH, MAX_BODY_BYTES, SERVICE_PATH
from clinical_ser.api.key_sets import FileKeys
from clinical_ser.api.replay import ReplayGuard, ReplayMemoryFullError
from clinical_ser.api.service import new_id
from clinical_ser.api.store import Metadata, Order, Outcome
from clinical_ser.audit.events import Role
from clinical_ser.errors import AuditUnavailableError, AuthenticationError, ServerSetupError
from clinical_ser.interop.cds_hooks import FeedbackRequest, HookRequest
from clinical_ser.screening.result import Status
from tests.api.cds_client import RecordSystem, SigningKey, key_set
from tests.api.servers import serving
from tests.interop.test_cds_hooks import result

TODAY = datetime.now(UTC).date()
SANDBOX_ISS = "https://sandbox.cds-hooks.org"
SANDBOX_ORIGIN = "https://sandbox.cds-hooks.org"
KEYS = {"ES384": SigningKey("key-1", "ES384"), "RS384": SigningKey("key-2", "RS384"), "ES256": SigningKey("sandbox", "ES256")}
LEEWAY_S = 10
_patients = count(1)


@dataclass
class Site:
    """A server, and record systems that it knows."""

    server: object
    http: object

    @property
    def base_url(self):
        return self.server.service.configuration.public_url

    @property
    def url(self):
        return self.base_url + SERVICE_PATH

    def system(self, **changes):
        # A server does not believe what was issued before it started, by either clock.
        fields = {"key": KEYS["ES384"], "clock": lambda: time.time() + LEEWAY_S}
        return RecordSystem(self.http, self.base_url, **fields | changes)

    def sandbox(self):
        return self.system(iss=SANDBOX_ISS, jku=f"{SANDBOX_ISS}/.well-known/jwks.json", key=KEYS["ES256"], user="Practitioner/COREPRACTITIONER1")

    def screened(self, patient, of=None, *, tenant="", days_ago=0):
        """Keep a screening, as if it had been asked for; its id."""
        of = of or result()
        day = TODAY - timedelta(days=days_ago)
        of = of.model_copy(update={"context": of.context.model_copy(update={"recorded_on": day})})
        # A digest of its own for each, as recordings have it.
        of = of.model_copy(update={"recording": of.recording.model_copy(update={"sha256": uuid.uuid4().hex * 2})})
        principal = Principal("Dr. Ada", tenant, Role.CLINICIAN, frozenset())
        order = Order(metadata=Metadata(subject=patient), model="m", actor=principal.actor(None), body="5e" * 32, size=1)
        screening = new_id()
        outcome = Outcome.of(of, of.model_dump_json().encode())
        self.server.service.keep_answer(screening, principal, order, outcome, repeat=None, same=screening)
        return screening

    def records(self, kind=None):
        with self.server.audit.read() as reader:
            return [record for record in reader.records() if kind is None or record.event.kind == kind]

    @property
    def size(self):
        return self.server.service.log.size


@contextmanager
def site_of(tmp_path_factory, bundle, name, **settings):
    folder = tmp_path_factory.mktemp(name)
    for algorithm, key in KEYS.items():
        (folder / f"{algorithm}.json").write_bytes(key_set(key))
    told = settings.pop("cds")(folder)
    with serving(folder, (str(bundle),), cds=told, **settings) as server, httpx2.Client() as http:
        time.sleep(1.1)  # what was issued in the second in which it started is not believed
        yield Site(server, http)


@pytest.fixture(scope="module")
def site(tmp_path_factory, bundle):
    """One hospital, asked by three record systems."""

    def cds(folder):
        ehr = {"iss": "https://ehr.example.org", "jku": "https://ehr.example.org/jwks.json", "keys": str(folder / "ES384.json")}
        rsa = {"iss": "https://rsa.example.org", "keys": str(folder / "RS384.json"), "subject": "reference"}
        sandbox = {"iss": SANDBOX_ISS, "jku": f"{SANDBOX_ISS}/.well-known/jwks.json", "keys": str(folder / "ES256.json"), "algorithms": ["ES256"]}
        return {"clients": [ehr, rsa, sandbox], "origins": [SANDBOX_ORIGIN]}

    with site_of(tmp_path_factory, bundle, "cds", cds=cds) as found:
        yield found


@pytest.fixture(scope="module")
def sites(tmp_path_factory, bundle):
    """Two hospitals on one installation, each with its record system; both number their patients from 1."""

    def cds(folder):
        clients = [
            {"iss": f"https://{tenant}.example.org", "keys": str(folder / f"{algorithm}.json"), "tenant": tenant}
            for tenant, algorithm in (("north", "ES384"), ("south", "RS384"))
        ]
        return {"clients": clients}

    with site_of(tmp_path_factory, bundle, "two-sites", cds=cds, tenants=["north", "south"]) as found:
        yield found


@pytest.fixture
def ehr(site):
    return site.system()


@pytest.fixture
def patient():
    return f"patient-{next(_patients)}"


# ── discovery ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_anyone_may_discover_the_service_and_a_record_system_that_signs_the_call_is_not_refused_for_it(site, ehr):
    assert site.http.get(f"{site.base_url}/cds-services").status_code == 200
    assert list(ehr.discover()) == [site.url]


def test_a_service_that_is_not_there_is_not_found(site, ehr):
    url = f"{site.base_url}/cds-services/order-check"
    assert ehr.post(url, ehr.request("1")).status_code in {401, 404}


# ── the card ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recording_that_was_screened_has_its_card_in_the_chart(site, ehr, patient, recording):
    answered = site.server.client().screen(recording, subject=patient)
    assert answered.status == 201
    [card] = ehr.open_chart(site.url, patient)
    assert uuid.UUID(card["uuid"]).hex == answered.json["id"]
    assert json.loads(card["links"][0]["appContext"]) == {"screening": answered.json["id"]}
    assert card["links"][0]["url"] == f"{site.base_url}/launch"


def test_opening_a_chart_screens_nothing_and_records_one_showing(site, ehr, patient):
    site.screened(patient)
    before = site.size
    ehr.open_chart(site.url, patient)
    assert [record.event.kind for record in site.records()[before:]] == ["report"]


def test_a_showing_is_recorded_as_what_the_reader_was_shown_of_whom_by_whose_word(site, ehr, patient):
    screening = site.screened(patient)
    ehr.open_chart(site.url, patient)
    shown = site.records("report")[-1]
    told = shown.payload
    assert (told.action, told.form) == ("viewed", "json")
    assert (told.actor.id, told.actor.role) == ("Practitioner/example", Role.CLINICIAN)
    assert told.actor.client == "https://ehr.example.org (127.0.0.1)"
    kept = site.server.service.store.get(screening, "")
    assert told.result == kept.result.digest
    assert shown.event.model == kept.result.model.digest
    with site.server.service.reading() as reader:
        assert shown.index in reader.named(patient)


def test_nothing_is_shown_that_cannot_be_recorded(site, ehr, patient, monkeypatch):
    site.screened(patient)

    def full(*_, **__):
        raise AuditUnavailableError("The disk is full.")

    monkeypatch.setattr(site.server.service.log, "record", full)
    answered = ehr.post(site.url, ehr.request(patient))
    assert answered.status_code == 503
    assert "cards" not in answered.json()


def test_a_person_whom_nobody_screened_has_no_card_and_no_record(site, ehr, patient):
    before = site.size
    assert ehr.open_chart(site.url, patient) == []
    assert site.size == before


@pytest.mark.parametrize("user", ["Patient/1", "RelatedPerson/1"])
def test_patients_and_relatives_are_shown_no_card(site, ehr, patient, user):
    site.screened(patient)
    before = site.size
    assert replace(ehr, user=user).open_chart(site.url, patient) == []
    assert site.size == before


def test_a_recording_of_more_than_half_a_year_ago_is_not_shown(site, ehr, patient):
    site.screened(patient, days_ago=181)
    assert ehr.open_chart(site.url, patient) == []
    fresh = site.screened(patient, days_ago=180)
    [card] = ehr.open_chart(site.url, patient)
    assert uuid.UUID(card["uuid"]).hex == fresh
    assert "Earlier" not in card["detail"]


def test_the_newest_recording_is_on_the_card_even_if_an_older_one_was_screened_after_it(site, ehr, patient):
    newest = site.screened(patient, days_ago=1)
    site.screened(patient, result(Status.NOT_FLAGGED), days_ago=9)
    [card] = ehr.open_chart(site.url, patient)
    assert uuid.UUID(card["uuid"]).hex == newest
    assert f"- {TODAY - timedelta(days=9)}: not flagged" in card["detail"]


def test_an_archive_that_was_sent_in_does_not_hide_what_was_recorded_last(site, ehr, patient):
    newest = site.screened(patient)
    for day in range(300, 306):
        site.screened(patient, days_ago=day)
    [card] = ehr.open_chart(site.url, patient)
    assert uuid.UUID(card["uuid"]).hex == newest


def test_a_day_to_come_is_not_believed_and_grows_old_like_any_other(site, ehr, patient):
    site.screened(patient, days_ago=-3650)
    [card] = ehr.open_chart(site.url, patient)
    assert f"Speech screening {TODAY}" in card["summary"]
    # East of Greenwich it may be tomorrow already.
    site.screened(patient, days_ago=-1)
    [card] = ehr.open_chart(site.url, patient)
    assert f"Speech screening {TODAY + timedelta(days=1)}" in card["summary"]


def test_all_that_is_shown_and_nothing_else_is_recorded(site, ehr, patient):
    shown = [site.screened(patient, days_ago=day) for day in range(4)]
    site.screened(patient, days_ago=5)
    before = site.size
    [card] = ehr.open_chart(site.url, patient)
    digests = {site.server.service.store.get(one, "").result.digest for one in shown}
    assert card["detail"].count("\n- ") == 3
    assert {record.payload.result for record in site.records()[before:]} == digests


def test_people_may_be_known_here_by_the_reference_to_their_resource(site, patient):
    system = site.system(iss="https://rsa.example.org", jku=None, key=KEYS["RS384"])
    site.screened(patient)
    assert system.open_chart(site.url, patient) == []
    site.screened(f"Patient/{patient}")
    assert len(system.open_chart(site.url, patient)) == 1


# ── who is let in ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def unsigned(header, claims):
    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, "AA"])


STRANGER = SigningKey("key-1", "ES384")
HOSTILE = {
    "signed-by-another-key": lambda it, url: it.token(url, key=STRANGER),
    "of-another-issuer": lambda it, url: it.token(url, iss="https://other.example.org"),
    "for-the-discovery": lambda it, url: it.token(url.rpartition("/")[0]),
    "for-another-path": lambda it, url: it.token(url + "/"),
    "for-two-audiences": lambda it, url: it.token([url, "https://elsewhere.example.org"]),
    "for-nobody": lambda it, url: it.token(url, aud=None),
    "jku-of-somebody": lambda it, url: it.token(url, header={"jku": "https://evil.example/jwks.json"}),
    "with-its-own-key": lambda it, url: it.token(url, header={"jwk": STRANGER.public_jwk}, key=STRANGER),
    "without-kid": lambda it, url: it.token(url, header={"kid": None}),
    "without-jti": lambda it, url: it.token(url, jti=None),
    "good-for-six-minutes": lambda it, url: it.token(url, exp=int(it.clock()) + 360),
    "expired": lambda it, url: it.token(url, iat=int(time.time()) - 300, exp=int(time.time()) - 60),
    "from-tomorrow": lambda it, url: it.token(url, iat=int(time.time()) + 86400, exp=int(time.time()) + 86500),
    "another-algorithm": lambda it, url: replace(it, key=KEYS["ES256"]).token(url),
    "none": lambda it, url: unsigned({"alg": "none", "kid": "key-1", "typ": "JWT"}, {"iss": it.iss, "aud": url, "iat": 1, "exp": 2, "jti": "1"}),
    "of-another-kind": lambda it, url: it.token(url, header={"typ": "secevent+jwt"}),
    "an-api-key": lambda it, url: "cser_" + "x" * 40,
    "no-token-at-all": lambda it, url: "-",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_token_that_is_not_for_this_call_is_refused_and_shows_nothing(site, ehr, patient, name):
    site.screened(patient)
    before = len(site.records("report"))
    answered = ehr.post(site.url, ehr.request(patient), token=HOSTILE[name](ehr, site.url))
    assert answered.status_code == 401
    assert answered.headers["www-authenticate"].startswith("Bearer")
    assert answered.headers["content-type"] == "application/problem+json"
    assert len(site.records("report")) == before


def test_a_token_is_good_for_one_call(site, ehr, patient):
    token = ehr.token(site.url)
    assert ehr.post(site.url, ehr.request(patient), token=token).status_code == 200
    refused = ehr.post(site.url, ehr.request(patient), token=token)
    assert (refused.status_code, refused.json()["type"]) == (401, "urn:clinical-ser:problem:replayed")


def test_the_key_of_one_record_system_does_not_sign_for_another(site, patient):
    forged = site.system(iss="https://rsa.example.org", jku=None, key=KEYS["ES384"])
    assert forged.post(site.url, forged.request(patient)).status_code == 401


def test_a_call_without_a_token_or_with_two_is_refused(site, ehr, patient):
    body = json.dumps(ehr.request(patient))
    two = [("Content-Type", "application/json"), *[("Authorization", f"Bearer {ehr.token(site.url)}")] * 2]
    for headers in ([("Content-Type", "application/json")], two):
        assert site.http.post(site.url, content=body, headers=headers).status_code == 401


def test_an_api_key_that_may_do_everything_is_no_record_system(site, patient):
    site.screened(patient)
    told = {"hookInstance": str(uuid.uuid4()), "hook": "patient-view", "context": {"patientId": patient, "userId": "Practitioner/1"}}
    assert site.server.client().post(SERVICE_PATH, told).status == 401


def test_a_record_systems_token_opens_nothing_else(site, ehr):
    for path in ("/v1/models", "/v1/me", "/v1/AuditEvent"):
        answered = site.http.get(site.base_url + path, headers={"Authorization": f"Bearer {ehr.token(site.base_url + path)}"})
        assert answered.status_code == 401


def test_a_token_without_jku_is_for_the_keys_of_the_configuration(site, ehr, patient):
    assert replace(ehr, jku=None).open_chart(site.url, patient) == []


def test_a_jku_is_refused_where_the_site_was_told_of_none(site, patient):
    system = site.system(iss="https://rsa.example.org", jku="https://rsa.example.org/jwks.json", key=KEYS["RS384"])
    assert system.post(site.url, system.request(patient)).status_code == 401


def test_who_was_refused_is_in_the_trail(site, ehr, patient):
    token = ehr.token(site.url)
    ehr.post(site.url, ehr.request(patient), token=token)
    ehr.post(site.url, ehr.request(patient), token=token)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        denied = [record.payload for record in site.records("access_denied")]
        if any(one.reason == "replayed" and one.asked_for == f"POST {SERVICE_PATH}" for one in denied):
            return
        time.sleep(0.2)
    pytest.fail("nobody recorded it")


# ── which client it is ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def clients(tmp_path, **changes):
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(KEYS["ES384"]))
    known = CdsClient(iss="https://ehr.example.org", keys=path, **changes)
    return CdsClients([known], clock=lambda: 1_000_000.0, keys=FileKeys)


def shown_at(moment):
    return RecordSystem(None, "https://s.example.org", key=KEYS["ES384"], jku=None, clock=lambda: moment)


CALLED = "https://s.example.org/cds-services/speech-screening"


def test_a_record_system_of_several_organisations_speaks_for_the_one_that_was_agreed(tmp_path):
    known = clients(tmp_path, organisation="2ddd6c3a", tenant="north")
    asks = shown_at(1_000_010)
    found = known.recognise(asks.token(CALLED, tenant="2ddd6c3a"), CALLED)
    assert (found.principal.tenant, found.principal.id) == ("north", "https://ehr.example.org")
    for other in ("8f00a1b2", "north", None):
        with pytest.raises(AuthenticationError):
            known.recognise(asks.token(CALLED, tenant=other), CALLED)


def test_whatever_a_record_system_calls_itself_it_is_its_issuer_and_may_do_nothing_else(tmp_path):
    found = clients(tmp_path).recognise(shown_at(1_000_010).token(CALLED, sub="admin", scope="audit:read screenings:read", name="Dr. X"), CALLED)
    assert found.principal == Principal("https://ehr.example.org", "", Role.SERVICE, frozenset(), None, "cds_hooks")


def test_a_token_from_before_the_server_started_is_refused(tmp_path):
    with pytest.raises(AuthenticationError, match="before this server started") as refused:
        clients(tmp_path).recognise(shown_at(1_000_009).token(CALLED), CALLED)
    # Every restart has some, so that whoever watches for replays is not called for them.
    assert refused.value.reason == "expired"


def test_when_no_more_tokens_can_be_remembered_the_record_system_is_told_to_come_back(site, ehr, patient, monkeypatch):
    def full(*_args, **_named):
        raise ReplayMemoryFullError("Too many tokens are in use; try again in some minutes.")

    monkeypatch.setattr(ReplayGuard, "use_once", full)
    answered = ehr.post(site.url, ehr.request(patient))
    assert answered.status_code == 503
    assert answered.headers["retry-after"] == "60"


def test_two_record_systems_of_one_issuer_are_refused(tmp_path):
    one = CdsClient(iss="https://ehr.example.org", keys=tmp_path / "a.json")
    with pytest.raises(ServerSetupError, match="same issuer"):
        CdsClients([one, replace(one, keys=tmp_path / "b.json")])


# ── two sites ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_tenant(sites, tenant):
    return sites.system(iss=f"https://{tenant}.example.org", jku=None, key=KEYS["ES384" if tenant == "north" else "RS384"])


def test_a_record_system_sees_its_own_sites_person_of_that_number(sites, patient):
    north = sites.screened(patient, tenant="north")
    south = sites.screened(patient, result(Status.INDETERMINATE), tenant="south")
    for tenant, screening in (("north", north), ("south", south)):
        [card] = of_tenant(sites, tenant).open_chart(sites.url, patient)
        assert uuid.UUID(card["uuid"]).hex == screening
        assert "Earlier" not in card["detail"]
        assert sites.records("report")[-1].payload.actor.id == f"{tenant}/Practitioner/example"


def test_feedback_on_another_sites_card_is_refused_and_nothing_of_the_request_is_recorded(sites, patient):
    own, other = sites.screened(patient, tenant="north"), sites.screened(patient, tenant="south")
    before = sites.size
    pieces = [{"card": str(uuid.UUID(one)), "outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00Z"} for one in (own, other)]
    answered = of_tenant(sites, "north").feedback(sites.url, *pieces)
    assert answered.status_code == 404
    assert sites.size == before


# ── feedback ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def reviews(site):
    return site.records("review")


def test_a_card_put_aside_for_a_reason_is_an_answer_that_was_overridden(site, ehr, patient):
    site.screened(patient)
    [card] = ehr.open_chart(site.url, patient)
    answered = ehr.dismiss(site.url, card, card["overrideReasons"][0])
    assert (answered.status_code, answered.content) == (200, b"")
    review = reviews(site)[-1]
    assert review.payload.decision == "overridden"
    assert "My clinical judgement is another (disagree-clinically)." in review.payload.reason
    assert (review.payload.actor.id, review.payload.actor.role) == ("https://ehr.example.org", Role.SERVICE)
    assert "risk_signal" in review.event.flags
    with site.server.service.reading() as reader:
        assert review.index in reader.named(patient)
    [after] = ehr.open_chart(site.url, patient)
    assert after["summary"].endswith("reviewed: overridden")
    assert after["uuid"] == card["uuid"]


def test_closing_a_card_overrides_nothing_and_does_not_undo_a_decision(site, ehr, patient):
    site.screened(patient)
    [card] = ehr.open_chart(site.url, patient)
    ehr.dismiss(site.url, card)
    assert reviews(site)[-1].payload.decision == "undecided"
    assert ehr.open_chart(site.url, patient)[0]["summary"].endswith("seen, undecided")
    screening = uuid.UUID(card["uuid"]).hex
    site.server.client().post(f"/v1/screenings/{screening}/review", {"decision": "agreed", "reason": "Fits."})
    assert ehr.open_chart(site.url, patient)[0]["summary"].endswith("reviewed: agreed")
    ehr.dismiss(site.url, card)
    assert ehr.open_chart(site.url, patient)[0]["summary"].endswith("reviewed: agreed")
    # The record system's own resources say the same.
    assert statuses(site, screening) == {"final"}


def resources(site, screening):
    bundle = site.server.client().get(f"/v1/screenings/{screening}/fhir?report=false").json
    return [entry["resource"] for entry in bundle["entry"]]


def statuses(site, screening):
    return {one["status"] for one in resources(site, screening) if one["resourceType"] in {"RiskAssessment", "DiagnosticReport"}}


def test_what_a_card_is_put_aside_for_is_in_the_record_system_as_its_own_word(site, ehr, patient):
    site.screened(patient)
    [card] = ehr.open_chart(site.url, patient)
    ehr.dismiss(site.url, card, card["overrideReasons"][1])
    screening = uuid.UUID(card["uuid"]).hex
    assert statuses(site, screening) == {"preliminary"}
    text = json.dumps(resources(site, screening))
    assert "The record system reported that somebody overrode this answer: Put aside in the record system" in text
    assert "CLINAST" not in text


def test_accepting_a_card_is_not_agreeing(site, ehr, patient):
    screening = site.screened(patient)
    told = {"card": str(uuid.UUID(screening)), "outcome": "accepted", "outcomeTimestamp": "2026-11-20T09:30:00Z"}
    told["acceptedSuggestions"] = [{"id": "e56e1945-20b3-4393-8503-a1a20fd73152"}]
    assert ehr.feedback(site.url, told).status_code == 200
    assert reviews(site)[-1].payload.decision == "undecided"


def test_feedback_that_is_sent_again_is_recorded_once(site, ehr, patient):
    screening = site.screened(patient)
    told = {"card": str(uuid.UUID(screening)), "outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00.000Z"}
    before = len(reviews(site))
    for spelling in ("2026-11-20T09:30:00.000Z", "2026-11-20T09:30:00Z", "2026-11-20T10:30:00+01:00"):
        assert ehr.feedback(site.url, told, told | {"outcomeTimestamp": spelling}).status_code == 200
    assert len(reviews(site)) == before + 1
    assert ehr.feedback(site.url, told | {"outcomeTimestamp": "2026-11-20T09:30:01Z"}).status_code == 200
    assert len(reviews(site)) == before + 2


def test_what_was_said_first_stands_and_the_rest_is_recorded(site, ehr, patient):
    first, second = site.screened(patient), site.screened(patient)
    told = {"outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00Z"}
    ehr.feedback(site.url, told | {"card": str(uuid.UUID(first))})
    before = len(reviews(site))
    changed = told | {"card": str(uuid.UUID(first)), "overrideReason": {"userComment": "No."}}
    answered = ehr.feedback(site.url, changed, told | {"card": str(uuid.UUID(second))})
    assert answered.status_code == 409
    assert len(reviews(site)) == before + 1


def test_feedback_on_a_card_that_was_never_given_is_refused_whole(site, ehr, patient):
    screening = site.screened(patient)
    told = {"outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00Z"}
    before = site.size
    answered = ehr.feedback(site.url, told | {"card": str(uuid.UUID(screening))}, told | {"card": str(uuid.uuid4())})
    assert answered.status_code == 404
    assert site.size == before


def test_a_token_for_the_service_is_not_one_for_its_feedback(site, ehr, patient):
    told = {"feedback": [{"card": str(uuid.uuid4()), "outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00Z"}]}
    assert ehr.post(site.base_url + FEEDBACK_PATH, told, token=ehr.token(site.url)).status_code == 401
    assert ehr.post(site.url, ehr.request(patient), token=ehr.token(site.base_url + FEEDBACK_PATH)).status_code == 401


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(400, b"{", id="no-json"),
        pytest.param(400, b'{"hook": "patient-view", "hook": "patient-view"}', id="a-key-twice"),
        pytest.param(422, b'{"canary-4711": 1}', id="fields-missing"),
        pytest.param(422, b'{"hook": "canary-4711"}', id="another-hook"),
        pytest.param(413, b'{"prefetch": {"x": "' + b"x" * MAX_BODY_BYTES + b'"}}', id="too-long"),
    ],
)
def test_a_body_that_is_no_call_is_refused_and_not_repeated(site, ehr, status, body):
    answered = ehr.post(site.url, body)
    assert answered.status_code == status
    assert answered.headers["content-type"] == "application/problem+json"
    assert "canary-4711" not in answered.text


def test_a_body_that_does_not_say_it_is_json_is_refused(site, ehr, patient):
    assert ehr.post(site.url, ehr.request(patient), **{"Content-Type": "text/plain"}).status_code == 415


def test_no_name_and_no_token_gets_into_logs(site, ehr):
    told = ehr.request(
        "canary-patient",
        fhirAuthorization={"access_token": "canary-access", "token_type": "Bearer", "expires_in": 300, "scope": "s", "subject": "us"},
        extension={"canary-extension": "canary-value"},
    )
    site.screened("canary-patient")
    token = ehr.token(site.url)
    assert len(replace(ehr, user="Practitioner/canary-user").post(site.url, told, token=token).json()["cards"]) == 1
    ehr.post(site.url, b'{"canary-field": 1}')
    logs = site.server.logs.getvalue()
    assert SERVICE_PATH in logs
    assert "canary" not in logs
    assert token not in logs


# ── the reference sandbox ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_sandbox_does_is_answered(site, patient):
    """Its way through a chart, step by step, as its source has it (see tests/api/cds_client.py); the sandbox itself was not run."""
    sandbox = site.sandbox()
    [(url, service)] = sandbox.discover().items()
    assert service["hook"] == "patient-view"
    screening = site.screened(patient)
    # Its tokens have a subject, live five minutes and are signed with ES256.
    token = sandbox.token(url, sub="44ab2aa5-6a1c-4a1c-9b0d-7f0f9b0b8d5c")
    authorization = {
        "access_token": "opaque",
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "patient/*.* user/*.* launch",
        "subject": "44ab2aa5-6a1c-4a1c-9b0d-7f0f9b0b8d5c",
    }
    answered = sandbox.post(url, sandbox.request(patient, fhirAuthorization=authorization), token=token, Origin=SANDBOX_ORIGIN)
    assert answered.headers["access-control-allow-origin"] == SANDBOX_ORIGIN
    [card] = answered.json()["cards"]
    # It looks for a launch address under the link's address and context, and shows a menu of reasons under a card that has a uuid.
    assert {"uuid", "overrideReasons"} <= card.keys()
    assert all(link["url"] and link["appContext"] for link in card["links"] if link["type"] == "smart")
    assert sandbox.dismiss(url, card, card["overrideReasons"][-1]).status_code == 200
    assert reviews(site)[-1].payload.result == site.server.service.store.get(screening, "").result.digest


# ── browsers ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def preflight(site, origin, path=SERVICE_PATH):
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return site.http.request("OPTIONS", site.base_url + path, headers=asked)


def test_a_page_that_the_site_names_may_ask_from_a_browser(site):
    answered = preflight(site, SANDBOX_ORIGIN)
    assert answered.status_code == 204
    assert answered.headers["access-control-allow-origin"] == SANDBOX_ORIGIN
    assert answered.headers["access-control-allow-methods"] == "GET, POST"
    assert answered.headers["access-control-allow-headers"] == "Authorization, Content-Type"
    assert "access-control-allow-credentials" not in answered.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", SANDBOX_ORIGIN + ".evil.example", "http://sandbox.cds-hooks.org", "*"])
def test_no_other_page_may(site, ehr, patient, origin):
    assert not any(name.startswith("access-control") for name in preflight(site, origin).headers)
    answered = ehr.post(site.url, ehr.request(patient), Origin=origin)
    assert answered.status_code == 200
    assert not any(name.startswith("access-control") for name in answered.headers)
    assert "Origin" in answered.headers["vary"]


def test_a_page_may_read_why_it_was_refused(site, ehr, patient):
    answered = ehr.post(site.url, ehr.request(patient), token="x", Origin=SANDBOX_ORIGIN)
    assert (answered.status_code, answered.headers["access-control-allow-origin"]) == (401, SANDBOX_ORIGIN)


@pytest.mark.parametrize("path", ["/v1/screenings", "/v1/me", "/cds-services-of-others"])
def test_what_is_not_for_record_systems_is_closed_to_that_page_too(site, path):
    assert not any(name.startswith("access-control") for name in preflight(site, SANDBOX_ORIGIN, path).headers)


def test_no_page_may_unless_the_site_names_one(sites):
    answered = preflight(sites, SANDBOX_ORIGIN)
    assert answered.status_code in {401, 404, 405}
    assert not any(name.startswith("access-control") for name in answered.headers)


# ── the description ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def references(value):
    """Yield what a description refers to."""
    for key, member in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from [member] if key == "$ref" else references(member)


def test_the_description_of_these_calls_is_whole_and_its_examples_are_understood(site):
    told = site.server.running.application.api.openapi()
    paths = {path: operations for path, operations in told["paths"].items() if path.startswith("/cds-services")}
    assert set(paths) == {"/cds-services", SERVICE_PATH, FEEDBACK_PATH}
    for reference in references(paths):
        place = told
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    for path, model in ((SERVICE_PATH, HookRequest), (FEEDBACK_PATH, FeedbackRequest)):
        [example] = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["examples"]
        assert model.model_validate_json(json.dumps(example))
