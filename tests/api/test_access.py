"""Who may do what: over every route that there is, with every key, and across tenants."""

import json
import re
import subprocess
import sys
from http import HTTPStatus

import pytest
from fastapi import FastAPI

from clinical_ser.api.access import Open, Scope
from clinical_ser.api.app import add_routes, check_guarded
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.routing import GuardedRoute
from clinical_ser.audit.events import AccessDenied
from clinical_ser.errors import ServerSetupError
from tests.api.servers import serving
from tests.audit.log_maker import make_log

PUBLIC = {"/livez", "/readyz", "/cds-services", "/", "/launch", "/page/{name}", "/page/configuration.json", "/witness/add-checkpoint"}
"""What a stranger may ask for; a route that joins them has to be written down here."""


def routes() -> list[GuardedRoute]:
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_routes(api)
    return [route for route in api.routes if isinstance(route, GuardedRoute)]


ROUTES = routes()
GUARDED = [route for route in ROUTES if route.access is not Open.PUBLIC]
each_guarded = pytest.mark.parametrize("route", GUARDED, ids=lambda route: f"{min(route.methods)} {route.path}")


def address(route: GuardedRoute) -> str:
    return re.sub(r"\{[^}]*\}", "0" * 32, route.path)


def ask(client, route: GuardedRoute, **headers: str):
    return client.ask(min(route.methods), address(route), b"{}" if "POST" in route.methods else None, {"Content-Type": "application/json"} | headers)


def test_only_what_is_written_down_here_is_public():
    assert {route.path for route in ROUTES if route.access is Open.PUBLIC} <= PUBLIC


@each_guarded
def test_a_stranger_is_refused_everywhere(server, route):
    answer = ask(server.client(None), route)
    assert answer.status == HTTPStatus.UNAUTHORIZED
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


@each_guarded
@pytest.mark.parametrize(
    "header",
    ["Bearer x", "Bearer cser_aaaaaaaa_" + "A" * 43, "Basic YTpi", "bearer", "Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer " + "a" * 9000],
    ids=["word", "unknown key", "basic", "empty", "alg none", "long"],
)
def test_a_stranger_who_claims_to_be_someone_is_refused_everywhere(server, route, header):
    answer = ask(server.client(None), route, Authorization=header)
    assert answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}


each_scoped = pytest.mark.parametrize("route", [one for one in GUARDED if isinstance(one.access, Scope)], ids=lambda one: one.operation_id)


@each_scoped
def test_a_key_without_the_scope_is_refused_and_with_it_is_not(server, route):
    for scope in Scope:
        answer = ask(server.client(scope.value), route)
        assert (answer.status == HTTPStatus.FORBIDDEN and answer.json["type"].endswith(":forbidden")) is (scope is not route.access)


NOWHERE = ("/docs", "/redoc", "/openapi.json", "/v1", "/v1/", "/v1/screenings/", "/metrics", "/.env", "/v1/models/../../etc/passwd")


@pytest.mark.parametrize("path", NOWHERE)
def test_what_is_not_there_is_not_told_to_strangers(server, path):
    assert server.client(None).get(path).status == HTTPStatus.UNAUTHORIZED
    assert server.client().get(path).status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}


def test_an_application_with_an_unguarded_route_is_refused():
    api = FastAPI()
    with pytest.raises(ServerSetupError, match="who may use it"):
        check_guarded(api)


def test_denials_are_recorded_and_a_flood_of_them_in_few_records(tmp_path, bundle):
    with serving(tmp_path, (str(bundle),), limits={"failures": 20}) as server:
        for _ in range(120):
            server.client(None).get("/v1/me", Authorization="Bearer nonsense")
        server.client(Scope.MODELS.value).get("/v1/screenings/" + "0" * 32)
    with server.audit.read() as reader:
        denied = [record for record in reader.records() if isinstance(record.payload, AccessDenied)]
    reasons = [record.payload.reason for record in denied]
    assert 60 >= reasons.count("unauthenticated") >= 20
    assert reasons.count("rate_limited") <= 61
    assert [record.payload.asked_for for record in denied if record.payload.reason == "forbidden"] == ["GET /v1/screenings/{screening}"]
    assert "further requests" in denied[-1].payload.asked_for
    assert {record.event.outcome.value for record in denied} == {"refused"}


def test_one_tenant_finds_nothing_of_another(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), tenants=("north", "south")) as server:
        north, south = server.client("everything@north"), server.client("everything@south")
        done = north.screen(recording, {"Idempotency-Key": "one"}, subject="MRN 1").json
        for name, link in done["links"].items():
            answer = south.post(link, {"decision": "agreed", "reason": "x"}) if name == "review" else south.get(link)
            assert (name, answer.status) == (name, HTTPStatus.NOT_FOUND)
            assert answer.json["detail"] == south.get("/v1/screenings/" + "0" * 32).json["detail"]
        other = south.screen(recording, {"Idempotency-Key": "one"}, subject="MRN 1")
        assert other.status == HTTPStatus.CREATED
        assert other.json["id"] != done["id"]
        assert other.json["notices"] == []
        assert other.json["result"] == done["result"]
        assert north.post(done["links"]["review"], {"decision": "agreed", "reason": "north's alone"}).status == HTTPStatus.CREATED
        assert south.get(other.json["links"]["self"]).json["reviews"] == []
        assert len(north.get(done["links"]["self"]).json["reviews"]) == 1
        assert north.get(done["links"]["self"]).status == HTTPStatus.OK
        south.screen(recording, subject=" MRN 1 ")
        with server.audit.read() as reader:
            assert len(reader.named("north/MRN 1")) >= 1
            assert not reader.named("south/ MRN 1")
            assert not set(reader.named("north/MRN 1")) & set(reader.named("south/MRN 1"))
    with server.audit.read() as reader:
        denied = [record.payload for record in reader.records() if isinstance(record.payload, AccessDenied)]
    assert [each.reason for each in denied] == ["forbidden"] * 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"listen": {"host": "0.0.0.0"}}, "without TLS"),
        ({"listen": {"host": "0.0.0.0", "certificate": "/c.pem"}}, "both files"),
        ({"listen": {"public_url": "http://screening.example"}}, "https"),
        ({"tenants": ["a/b"]}, "pattern"),
        ({"api_keys": "keys.json"}, "from the root"),
        ({"issuers": [{"issuer": "i", "audience": "a", "keys": "/k", "role": "clinician"}], "tenants": ["a"]}, "tenants"),
        ({"unknown": 1}, "Extra inputs"),
        ({"models": []}, "at least 1"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_configuration_that_is_not_safe_is_refused(settings, told):
    with pytest.raises(ServerSetupError, match=told):
        ServerConfiguration.checked(settings)


def test_beyond_the_loopback_address_someone_has_to_be_able_to_sign_in(tmp_path):
    listen = {"host": "0.0.0.0", "certificate": "/c.pem", "key": "/k.pem"}
    configuration = ServerConfiguration.checked({"listen": listen, "api_keys": str(tmp_path / "keys.json")})
    with pytest.raises(ServerSetupError, match="nobody could sign in"):
        configuration.check_may_serve()
    (tmp_path / "keys.json").touch()
    configuration.check_may_serve()


def test_a_site_that_is_a_witness_cosigns_the_checkpoint_of_a_log_it_knows_and_no_other(tmp_path, bundle):
    other = make_log(tmp_path / "other", records=3, origin="other.example/log")
    key = str(next(iter(other.load_keys().active)))
    logs = tmp_path / "logs.toml"
    logs.write_text(f'[[log]]\norigin = "other.example/log"\nkeys = ["{key}"]\n')
    witness = tmp_path / "witness"
    words = ["audit", "witness", "init", str(witness), "--name", "witness.example/w", "--logs", str(logs)]
    subprocess.run([sys.executable, "-m", "clinical_ser", *words], check=True, capture_output=True)
    with other.read() as reader:
        note = reader.checkpoint
    site = tmp_path / "site"
    site.mkdir()
    with serving(site, (str(bundle),), witness=str(witness)) as server:
        stranger = server.client(None)
        answer = stranger.ask("POST", "/witness/add-checkpoint", f"old 0\n\n{note}".encode())
        assert answer.status == HTTPStatus.OK
        assert answer.body.decode().startswith("\N{EM DASH} witness.example/w ")
        unknown = note.replace("other.example/log", "third.example/log")
        assert stranger.ask("POST", "/witness/add-checkpoint", f"old 0\n\n{unknown}".encode()).status == HTTPStatus.NOT_FOUND
