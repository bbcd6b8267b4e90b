"""Tokens: good ones are whose they say; whatever is wrong with one, nobody is believed."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clinical_ser.api import tokens
from clinical_ser.api.access import Principal, Scope
from clinical_ser.api.key_sets import AddressKeys, FileKeys
from clinical_ser.api.replay import ReplayGuard, ReplayMemoryFullError, _Memory
from clinical_ser.api.tokens import ALGORITHMS, MAX_TOKEN_BYTES, Issuer, TenantClaim, TokenVerifier
from clinical_ser.audit.events import Role
from clinical_ser.errors import AuthenticationError, ServerSetupError
from tests.api.tokens_made import (
    AUDIENCE,
    ISSUER,
    NOW,
    WITHOUT,
    Clock,
    Signer,
    assembled,
    b64,
    claims_of,
    other_spelling_of_signature,
    private_key,
    with_secret,
    write_key_set,
)

EC = Signer("ES256", "ec")
RSA = Signer("RS256", "rsa")
KEYS = (EC, RSA, Signer("ES384", "ec384"), Signer("ES512", "ec521"), Signer("EdDSA", "ed"), Signer("PS256", "pss"))
DIGEST = b"\x01" * 32
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key_set(tmp_path_factory.mktemp("keys") / "keys.json", *KEYS)


@pytest.fixture
def issuer(keys: Path) -> Issuer:
    return Issuer(ISSUER, AUDIENCE, keys, ALGORITHMS, role=Role.CLINICIAN)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(issuer: Issuer, clock: Clock) -> TokenVerifier:
    return TokenVerifier([issuer], clock=clock)


def believing(issuer: Issuer, clock: Clock | None = None) -> TokenVerifier:
    return TokenVerifier([issuer], clock=clock or Clock())


def refused(verifier: TokenVerifier, token: str, match: str = "^The token ", *, reason: str = "unauthenticated", audience: str | None = None) -> str:
    """See that a token is refused, twice, and return why."""
    for _ in range(2):
        assert verifier.recall(token) is None
        with pytest.raises(AuthenticationError, match=match) as caught:
            verifier.verify(token) if audience is None else verifier.verify_single_use(token, audience)
        assert caught.value.reason == reason
        assert caught.value.__cause__ is None
    return str(caught.value)


# --- Good ones ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", KEYS, ids=lambda signer: signer.algorithm)
def test_a_good_token_says_who_asks(verifier: TokenVerifier, signer: Signer) -> None:
    principal = verifier.verify(signer.token(claims_of(name="Dr. Wang 王")))
    assert principal == Principal("dr.wang", "", Role.CLINICIAN, frozenset({Scope.READ}), "Dr. Wang 王", "token")


@pytest.mark.parametrize(
    "changes",
    [{"typ": "JWT"}, {"typ": "jwt"}, {"typ": "application/at+jwt"}, {"typ": WITHOUT}, {"x5t": "a", "nonce": "b"}],
    ids=["JWT", "jwt", "application", "without", "others"],
)
def test_headers_that_change_nothing_are_taken(verifier: TokenVerifier, changes: dict) -> None:
    changes = {name: WITHOUT if value is WITHOUT else value for name, value in changes.items()}
    assert verifier.verify(EC.token(**changes)).id == "dr.wang"


def test_our_audience_may_be_one_of_several(verifier: TokenVerifier) -> None:
    assert verifier.verify(EC.token(claims_of(aud=["account", AUDIENCE]))).id == "dr.wang"


def test_a_token_is_verified_once_and_recalled_from_then_on(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, token, checks = believing(issuer), EC.token(), []
    real = tokens._SIGNATURES.decode_complete
    monkeypatch.setattr(tokens._SIGNATURES, "decode_complete", lambda *a, **k: checks.append(1) or real(*a, **k))
    assert verifier.recall(token) is None
    first = verifier.verify(token)
    assert verifier.recall(token) is first
    assert verifier.verify(token) is first
    assert len(checks) == 1


def test_what_is_recalled_is_forgotten_when_it_expires(verifier: TokenVerifier, clock: Clock) -> None:
    token = EC.token()
    verifier.verify(token)
    clock.now = NOW + 300 + tokens.DEFAULT_LEEWAY_S - 0.5
    assert verifier.recall(token)
    clock.now += 0.5
    refused(verifier, token, "expired", reason="expired")


def test_what_is_recalled_is_not_good_before_its_time_either(verifier: TokenVerifier, clock: Clock) -> None:
    token = EC.token()
    verifier.verify(token)
    clock.now = NOW - 11
    refused(verifier, token, "not good yet")


def test_what_is_recalled_is_forgotten_when_its_key_is_taken_back(issuer: Issuer, tmp_path: Path) -> None:
    place = write_key_set(tmp_path / "own.json", EC, RSA)
    verifier = believing(replace(issuer, keys=place))
    of_ec, of_rsa = EC.token(), RSA.token()
    verifier.verify(of_ec)
    verifier.verify(of_rsa)
    write_key_set(place, RSA)
    refused(verifier, of_ec, "not among its issuer's keys")
    assert verifier.verify(of_rsa)


def test_only_so_many_tokens_are_remembered(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED", 2)
    verifier = believing(issuer)
    shown = [EC.token(claims_of(sub=f"s{number}")) for number in range(3)]
    for token in (shown[0], shown[1], shown[0], shown[2]):
        verifier.verify(token)
    assert [bool(verifier.recall(token)) for token in shown] == [True, False, True]


# --- Forged ones --------------------------------------------------------------------------------------------------------------------------


def _nothing(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_a_token_without_a_signature_is_refused(verifier: TokenVerifier, algorithm: str) -> None:
    header = {"alg": algorithm, "kid": "ec", "typ": "at+jwt"}
    refused(verifier, assembled(header, claims_of(), _nothing))
    refused(verifier, assembled(header, claims_of(), EC.sign))
    refused(verifier, EC.token().rpartition(".")[0] + ".")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("signer", [EC, RSA], ids=["ec", "rsa"])
def test_a_token_signed_with_the_public_key_as_hmac_secret_is_refused(verifier: TokenVerifier, keys: Path, signer: Signer, algorithm: str) -> None:
    header = {"alg": algorithm, "kid": signer.kid, "typ": "at+jwt"}
    jwk = json.dumps(signer.jwk()).encode()
    for secret in (signer.pem, signer.pem.strip(), jwk, keys.read_bytes(), b"", b"secret"):
        refused(verifier, assembled(header, claims_of(), with_secret(secret, f"sha{algorithm[2:]}")))


@pytest.mark.parametrize(
    ("signer", "told"),
    [(RSA, "ES256"), (EC, "RS256"), (RSA, "PS256"), (Signer("PS256", "rsa"), "PS256"), (EC, "ES384"), (EC, "EdDSA"), (RSA, "ES256K")],
)
def test_a_token_with_an_algorithm_that_its_key_is_not_for_is_refused(verifier: TokenVerifier, signer: Signer, told: str) -> None:
    refused(verifier, signer.token(alg=told))


def test_an_algorithm_that_the_issuer_does_not_use_is_refused_though_it_has_a_key_for_it(issuer: Issuer) -> None:
    verifier = believing(replace(issuer, algorithms=frozenset({"ES256"})))
    assert verifier.verify(EC.token())
    refused(verifier, RSA.token(), "does not sign with this algorithm")


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "cty"])
def test_a_token_that_brings_its_key_or_asks_for_more_is_refused_though_its_signature_fits(verifier: TokenVerifier, name: str) -> None:
    attacker = Signer("ES256", "ec", number=1)
    brought = {"jwk": attacker.jwk(), "jku": "https://evil.example/keys", "x5u": "https://evil.example/", "x5c": ["MIIB"], "crit": ["exp"]}.get(
        name, "x"
    )
    refused(verifier, attacker.token(**{name: brought}), "brings keys")
    for value in (brought, None, False, True, [], {}):
        refused(verifier, EC.token(**{name: value}), "brings keys")


def test_a_critical_extension_is_refused_even_where_the_library_knows_it(verifier: TokenVerifier) -> None:
    refused(verifier, EC.token(b64=False, crit=["b64"]), "brings keys")


def test_nothing_is_fetched_for_what_a_token_points_to(issuer: Issuer) -> None:
    looked = []

    class Looking(FileKeys):
        def find(self, kid, algorithm):
            looked.append(kid)
            return super().find(kid, algorithm)

    verifier = TokenVerifier([issuer], clock=Clock(), keys=Looking)
    for token in (
        EC.token(claims_of(iss="https://evil.example")),
        EC.token(claims_of(iss=ISSUER + "/")),
        EC.token(claims_of(iss=ISSUER.upper())),
        EC.token(jku=ISSUER),
        EC.token(alg="HS256"),
        "a.b.c",
    ):
        refused(verifier, token)
    assert looked == []
    verifier.verify(EC.token())
    assert looked == ["ec"]


def test_the_address_that_a_record_system_has_for_its_keys_may_stand_in_its_tokens_and_no_other(issuer: Issuer) -> None:
    verifier = believing(replace(issuer, jku="https://ehr.example/keys"))
    assert verifier.verify(EC.token(jku="https://ehr.example/keys"))
    for other in ("https://ehr.example/keys/", "https://EHR.example/keys", "", None, ["https://ehr.example/keys"]):
        refused(verifier, EC.token(jku=other), "brings keys")
    refused(verifier, EC.token(jku="https://ehr.example/keys", jwk=EC.jwk()), "brings keys")


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "' OR '1'='1",
        "ec\0",
        "EC",
        " ec",
        "",
        "k" * 10_240,
        "键",
        "\u202eec",
        None,
        1,
        ["ec"],
        {"a": 1},
        True,
        WITHOUT,
    ],
    ids=lambda kid: "left out" if kid is WITHOUT else ascii(kid)[:24],
)
def test_a_key_is_looked_up_by_its_exact_name_and_by_nothing_else(verifier: TokenVerifier, kid: object) -> None:
    refused(verifier, EC.token(kid=kid))


def test_the_key_of_another_issuer_does_not_sign_for_this_one(keys: Path, issuer: Issuer, tmp_path: Path) -> None:
    other = Signer("ES256", "ec", number=2)
    place = write_key_set(tmp_path / "other.json", other)
    verifier = TokenVerifier([issuer, replace(issuer, issuer="https://other.example", keys=place)], clock=Clock())
    assert verifier.verify(other.token(claims_of(iss="https://other.example")))
    refused(verifier, other.token(), "signature does not fit")
    refused(verifier, EC.token(claims_of(iss="https://other.example")), "signature does not fit")


def test_a_signature_of_another_token_does_not_fit(verifier: TokenVerifier) -> None:
    mine, other = EC.token(claims_of(scope="audit:read")), EC.token()
    refused(verifier, f"{mine.rpartition('.')[0]}.{other.rpartition('.')[2]}", "signature does not fit")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(signer=st.sampled_from([EC, RSA, KEYS[4]]), place=st.integers(0, 10_000), byte=st.integers(0, 127))
def test_no_changed_byte_of_a_good_token_verifies(verifier: TokenVerifier, signer: Signer, place: int, byte: int) -> None:
    token = signer.token()
    place %= len(token)
    assume(token[place] != chr(byte))
    with pytest.raises(AuthenticationError):
        verifier.verify(token[:place] + chr(byte) + token[place + 1 :])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), added=st.text(max_size=8))
def test_no_shortened_or_lengthened_token_verifies(verifier: TokenVerifier, cut: int, added: str) -> None:
    token = EC.token()
    changed = token[: cut % (len(token) + 1)] + added
    assume(changed != token)
    with pytest.raises(AuthenticationError):
        verifier.verify(changed)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=60), payload=st.binary(max_size=60))
def test_signed_garbage_is_refused_in_our_own_words(verifier: TokenVerifier, header: bytes, payload: bytes) -> None:
    for token in (assembled(header, claims_of(), EC.sign), EC.token(payload), assembled(header, payload, EC.sign)):
        with pytest.raises(AuthenticationError):
            verifier.verify(token)


def test_every_bit_of_the_last_character_counts(verifier: TokenVerifier) -> None:
    token = EC.token()
    assert sum(_is_good(verifier, token[:-1] + last) for last in ALPHABET) == 1


def _is_good(verifier: TokenVerifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except AuthenticationError:
        return False
    return True


# --- Misshapen ones -----------------------------------------------------------------------------------------------------------------------


def test_what_is_no_token_is_refused_without_being_quoted(verifier: TokenVerifier) -> None:
    good = EC.token()
    header, payload, signature = good.split(".")
    for text in (
        "",
        ".",
        "..",
        "...",
        "canary",
        good.replace(".", ""),
        f"{header}.{payload}",
        f"{header}{payload}.{signature}",
        f"{good}.",
        f".{good}",
        f"{good}.{signature}",
        f"{header}..{signature}",
        f"{header}.{payload}.{signature}.{signature}.{signature}",
        f" {good}",
        f"{good} ",
        f"{good}\n",
        f"{good}\0",
        f"{header} .{payload}.{signature}",
        f"{header}=.{payload}.{signature}",
        f"{good}=",
        f"{good}==",
        good.replace(".", "．"),
        "é" + good[1:],
        good + "\ud800",
        good.replace(header, header + "\u200b"),
        good[: len(good) // 2],
        json.dumps({"payload": payload, "signatures": [{"protected": header, "signature": signature}]}),
    ):
        message = refused(verifier, text)
        assert "canary" not in message


def test_a_token_is_as_long_as_it_may_be_and_no_longer(verifier: TokenVerifier) -> None:
    def token_of(length: int) -> str:
        padding = 0
        for _ in range(8):
            token = EC.token(claims_of(padding="x" * padding))
            padding += (length - len(token)) * 3 // 4
        return token

    fits = token_of(MAX_TOKEN_BYTES)
    assert MAX_TOKEN_BYTES - 3 <= len(fits) <= MAX_TOKEN_BYTES
    assert verifier.verify(fits)
    refused(verifier, token_of(MAX_TOKEN_BYTES + 4), "of the kind that is taken")
    refused(verifier, EC.token(claims_of(padding="x" * 1_000_000)), "of the kind that is taken")


PLAIN = json.dumps(claims_of()).encode()
HEADER = b'{"alg":"ES256","kid":"ec","typ":"at+jwt"}'


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        PLAIN[:-1],
        PLAIN + b"x",
        b"\xef\xbb\xbf" + PLAIN,
        PLAIN.replace(b"dr.wang", b"dr.wang\xff"),
        PLAIN.replace(b"dr.wang", b"\\ud800"),
        PLAIN[:-1] + b', "sub": "admin"}',
        PLAIN[:-1] + b', "\\u0073ub": "admin"}',
        PLAIN[:-1] + b', "realm_access": {"roles": [], "roles": ["admin"]}}',
        PLAIN[:-1] + b', "deep": ' + b"[" * 500 + b"]" * 500 + b"}",
        PLAIN[:-1] + b', "much": 1e999}',
        PLAIN[:-1] + b', "much": NaN}',
        PLAIN.replace(b"1800000300", b"NaN"),
        PLAIN.replace(b"1800000300", b"Infinity"),
        PLAIN.replace(b"1800000300", b"1" + b"0" * 400),
        PLAIN.replace(b"1800000300", b"1" + b"0" * 4400),
        PLAIN.decode().encode("utf-16"),
    ],
    ids=lambda payload: ascii(payload[:40]),
)
def test_a_payload_that_two_readers_could_read_differently_is_refused(verifier: TokenVerifier, payload: bytes) -> None:
    refused(verifier, EC.token(payload), "of the kind that is taken")


@pytest.mark.parametrize(
    "header",
    [
        HEADER[:-1] + b',"alg":"none"}',
        HEADER[:-1] + b',"kid":"rsa"}',
        b'{"alg":"none",' + HEADER[1:],
        b"[]",
        b'{"kid":"ec"}',
        b'{"alg":["ES256"],"kid":"ec"}',
        b'{"alg":null,"kid":"ec"}',
        b'{"alg":"ES256","kid":"ec","typ":1}',
        b'{"alg":"es256","kid":"ec"}',
        b'{"alg":"ES256 ","kid":"ec"}',
    ],
    ids=ascii,
)
def test_a_header_that_two_readers_could_read_differently_is_refused(verifier: TokenVerifier, header: bytes) -> None:
    refused(verifier, assembled(header, claims_of(), EC.sign), "of the kind that is taken")


def test_a_payload_in_another_spelling_of_base64_is_refused(verifier: TokenVerifier) -> None:
    payload = PLAIN + b" " * ((1 - len(PLAIN)) % 3)
    spelled = b64(payload)
    assert len(spelled) % 4 == 2  # four bits of the last character mean nothing
    last = ALPHABET.index(spelled[-1])
    other = spelled[:-1] + ALPHABET[last + 1]
    signed = f"{b64(HEADER)}.{other}"
    refused(verifier, f"{signed}.{b64(EC.sign(signed.encode()))}", "of the kind that is taken")
    signed = f"{b64(HEADER)}.{spelled}"
    assert verifier.verify(f"{signed}.{b64(EC.sign(signed.encode()))}")


@pytest.mark.parametrize("typ", ["logout+jwt", "secevent+jwt", "dpop+jwt", "JOSE", "", "at+jwt ", "application/application/jwt"])
def test_a_token_of_another_type_is_refused(verifier: TokenVerifier, typ: str) -> None:
    refused(verifier, EC.token(typ=typ), "another type")


def test_where_the_issuer_marks_access_tokens_others_are_refused(issuer: Issuer) -> None:
    verifier = believing(replace(issuer, access_tokens_only=True))
    assert verifier.verify(EC.token())
    assert verifier.verify(EC.token(typ="application/AT+JWT"))
    refused(verifier, EC.token(typ="JWT"), "another type")
    refused(verifier, EC.token(typ=WITHOUT), "another type")


# --- Claims -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "iat", "exp"])
def test_a_token_without_a_claim_that_it_needs_is_refused(verifier: TokenVerifier, claim: str) -> None:
    refused(verifier, EC.token(claims_of(**{claim: WITHOUT})))
    refused(verifier, EC.token(claims_of(**{claim: None})))
    refused(verifier, EC.token(claims_of(**{claim: ""})))


@pytest.mark.parametrize(
    "aud", ["https://other.example", AUDIENCE + "/", AUDIENCE.upper(), f"{AUDIENCE} ", [], ["other"], [[AUDIENCE]], {"0": AUDIENCE}, [AUDIENCE, 1], 1]
)
def test_a_token_for_another_audience_is_refused(verifier: TokenVerifier, aud: object) -> None:
    refused(verifier, EC.token(claims_of(aud=aud)))


@pytest.mark.parametrize("claim", ["iat", "exp", "nbf"])
@pytest.mark.parametrize("value", [True, False, "1800000100", [1800000100], {}, 0, -1, 253_402_300_800, 1e300, 10**30], ids=repr)
def test_a_time_that_is_no_time_is_refused(verifier: TokenVerifier, claim: str, value: object) -> None:
    refused(verifier, EC.token(claims_of(**{claim: value})))


@pytest.mark.parametrize(
    ("changes", "match", "reason"),
    [
        ({"iat": NOW - 400, "exp": NOW - 10}, "expired", "expired"),
        ({"iat": NOW - 86_000, "exp": NOW - 85_000}, "expired", "expired"),
        ({"iat": NOW + 10.5, "exp": NOW + 100}, "not good yet", "unauthenticated"),
        ({"nbf": NOW + 10.5}, "not good yet", "unauthenticated"),
        ({"nbf": NOW - 100, "iat": NOW + 10.5, "exp": NOW + 100}, "not good yet", "unauthenticated"),
        ({"exp": NOW + 12 * 3600 + 1}, "good for longer", "unauthenticated"),
        ({"iat": NOW, "exp": NOW}, "no time", "unauthenticated"),
        ({"iat": NOW + 5, "exp": NOW + 1}, "no time", "unauthenticated"),
    ],
)
def test_a_token_is_good_in_its_own_time_and_not_for_long(verifier: TokenVerifier, changes: dict, match: str, reason: str) -> None:
    refused(verifier, EC.token(claims_of(**changes)), match, reason=reason)


@pytest.mark.parametrize(
    "changes", [{"iat": NOW - 400, "exp": NOW - 9.5}, {"iat": NOW + 10}, {"nbf": NOW + 10}, {"nbf": NOW - 1000}, {"exp": NOW + 12 * 3600}], ids=repr
)
def test_clocks_may_differ_by_the_leeway(verifier: TokenVerifier, changes: dict) -> None:
    assert verifier.verify(EC.token(claims_of(**changes)))


@pytest.mark.parametrize("sub", ["a\nb", "a\0", " a", "a ", "\u202eadmin", "x" * 256, "\x1b[31m", 7, ["a"], True], ids=lambda sub: ascii(sub)[:12])
def test_a_subject_that_would_garble_the_trail_is_refused(verifier: TokenVerifier, sub: object) -> None:
    refused(verifier, EC.token(claims_of(sub=sub)))


@pytest.mark.parametrize("name", ["a\nb", " a", "", "x" * 201, 7, ["a"], "\u202ea"], ids=lambda name: ascii(name)[:12])
def test_a_name_that_cannot_be_printed_is_refused(verifier: TokenVerifier, name: object) -> None:
    refused(verifier, EC.token(claims_of(name=name)), "name is not one that can be printed")


@pytest.mark.parametrize("name", ["王\u3000小明", "J.\u00a0Doe", "J.\u202fDoe"], ids=ascii)
def test_a_name_with_another_kind_of_space_is_a_name(verifier: TokenVerifier, name: str) -> None:
    found = verifier.verify(EC.token(claims_of(name=name))).name
    assert found in {"王 小明", "J. Doe"}


@pytest.mark.parametrize("changes", [{"azp": "our-page"}, {"client_id": "our-page"}, {"azp": "our-page", "client_id": "other-page"}], ids=",".join)
def test_a_token_of_one_of_the_clients_that_are_named_is_taken(issuer: Issuer, changes: dict) -> None:
    narrow = believing(replace(issuer, client_ids=frozenset({"our-page", "other-page"})))
    assert narrow.verify(EC.token(claims_of(**changes)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"azp": "some-app"}, {"client_id": "some-app"}, {"azp": "our-page", "client_id": "some-app"}, {"azp": ["our-page"]}, {"azp": None}],
    ids=["none", "azp", "client_id", "two", "list", "null"],
)
def test_a_token_of_another_app_of_the_same_record_system_is_refused(issuer: Issuer, changes: dict) -> None:
    """SMART: the audience of all its apps' tokens is the record system's FHIR server."""
    refused(believing(replace(issuer, client_ids=frozenset({"our-page"}))), EC.token(claims_of(**changes)), "issued to another client")


def test_the_account_may_stand_in_another_claim_which_then_has_to_be_there(issuer: Issuer) -> None:
    verifier = believing(replace(issuer, subject_claim="preferred_username", name_claim=None))
    principal = verifier.verify(EC.token(claims_of(preferred_username="wang", name="Dr. Wang")))
    assert (principal.id, principal.name) == ("wang", None)
    refused(verifier, EC.token(), "subject")
    refused(verifier, EC.token(claims_of(preferred_username="wang", sub=WITHOUT)), "no subject")


# --- What it may do -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scope": "screenings:read reviews:write"}, {Scope.READ, Scope.REVIEW}),
        ({"scope": WITHOUT, "scp": ["screenings:read", "openid"]}, {Scope.READ}),
        ({"scope": WITHOUT, "scp": "screenings:write models:read"}, {Scope.SCREEN, Scope.MODELS}),
        ({"scope": "openid profile"}, set()),
        ({"scope": WITHOUT}, set()),
        ({"scope": ""}, set()),
        ({"scope": "screenings:readx Screenings:Read screenings:* audit:read,audit:export *"}, set()),
        ({"scope": "screenings:read\taudit:read"}, set()),
    ],
)
def test_scopes_are_those_that_the_token_has_word_for_word(verifier: TokenVerifier, changes: dict, expected: set[Scope]) -> None:
    assert verifier.verify(EC.token(claims_of(**changes))).scopes == expected


@pytest.mark.parametrize("scope", [1, True, {"audit:read": 1}, ["audit:read", 1], [["audit:read"]], ["x"] * 1001], ids=lambda scope: repr(scope)[:20])
def test_scopes_that_are_no_words_are_refused(verifier: TokenVerifier, scope: object) -> None:
    refused(verifier, EC.token(claims_of(scope=scope)), "neither words nor a list")


def test_the_issuers_own_roles_are_read_from_where_they_are_and_stand_for_ours(issuer: Issuer) -> None:
    verifier = believing(
        replace(
            issuer,
            role_claim="realm_access.roles",
            roles={"auditor": Role.COMPLIANCE, "doctor": Role.CLINICIAN},
            role=None,
            scopes={"doctor": frozenset({Scope.SCREEN, Scope.REVIEW}), "auditor": frozenset({Scope.AUDIT, Scope.EXPORT})},
            always=frozenset({Scope.MODELS}),
            at_most=frozenset(Scope) - {Scope.EXPORT},
        )
    )

    def of(*roles: str, scope: str = "openid") -> Principal:
        return verifier.verify(EC.token(claims_of(scope=scope, realm_access={"roles": list(roles)})))

    doctor = of("doctor", "visitor")
    assert (doctor.role, doctor.scopes) == (Role.CLINICIAN, {Scope.SCREEN, Scope.REVIEW, Scope.MODELS})
    both = of("doctor", "auditor", scope="screenings:read")
    assert (both.role, both.scopes) == (Role.COMPLIANCE, frozenset(Scope) - {Scope.EXPORT})
    # A client may ask for a scope with the name of a role.
    refused(verifier, EC.token(claims_of(scope="doctor auditor", realm_access={"roles": []})), "no role")
    for access in ("doctor", ["doctor"], {"roles": {"doctor": 1}}, {"role": ["doctor"]}, WITHOUT):
        refused(verifier, EC.token(claims_of(realm_access=access)))


def test_a_claim_with_dots_in_its_name_is_found(issuer: Issuer) -> None:
    claim = "https://clinic.example/roles"
    verifier = believing(replace(issuer, role_claim=claim, scopes={"a": frozenset({Scope.AUDIT})}))
    assert verifier.verify(EC.token(claims_of(scope="", **{claim: ["a"]}))).scopes == {Scope.AUDIT}


def test_more_than_the_issuer_may_grant_is_not_granted(issuer: Issuer) -> None:
    verifier = believing(replace(issuer, at_most=frozenset({Scope.READ})))
    assert verifier.verify(EC.token(claims_of(scope="screenings:read audit:read audit:export"))).scopes == {Scope.READ}


def test_a_tenant_is_the_issuers_own_or_one_that_it_may_speak_for(issuer: Issuer) -> None:
    assert believing(replace(issuer, tenant="north")).verify(EC.token(claims_of(tenant="south"))).tenant == "north"
    verifier = believing(replace(issuer, tenant=TenantClaim("tenant", frozenset({"north", "south"}))))
    assert verifier.verify(EC.token(claims_of(tenant="south"))).tenant == "south"
    for tenant in ("west", "", "North", "north ", "north/x", None, ["north"], {"north": 1}, 1, WITHOUT):
        refused(verifier, EC.token(claims_of(tenant=tenant)), "tenant")


# --- One use, or one token an id ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(verifier: TokenVerifier, clock: Clock) -> TokenVerifier:
    """A verifier that was started a minute ago."""
    clock.now += 60
    return verifier


def once(**changes) -> str:
    return EC.token(claims_of(NOW + 60, **{"jti": "one", **changes}))


CALLED = "https://screening.clinic.example/cds-services/card"


def test_a_single_use_token_is_good_once_whatever_it_is_shown_for(issuer: Issuer, clock: Clock) -> None:
    verifier = believing(replace(issuer, single_use=True), clock)
    clock.now += 60
    token = once()
    assert verifier.verify(token).method == "token"
    refused(verifier, token, "used already", reason="replayed")
    refused(verifier, token, "another audience", audience=CALLED)
    assert verifier.recall(token) is None
    assert verifier.verify(once(jti="two"))


def test_a_record_systems_token_is_good_for_the_one_address_that_it_calls_once(started: TokenVerifier) -> None:
    token = once(aud=CALLED, sub=WITHOUT)
    refused(started, token, "another audience", audience=CALLED + "/feedback")
    refused(started, token, "another audience")
    principal = started.verify_single_use(token, CALLED)
    assert (principal.id, principal.method, principal.name) == (ISSUER, "cds_hooks", None)
    refused(started, token, "used already", reason="replayed", audience=CALLED)
    refused(started, token, "another audience")


def test_a_record_system_is_its_issuer_whoever_it_says_it_is(started: TokenVerifier) -> None:
    assert started.verify_single_use(once(aud=[CALLED], sub="dr.wang", name="Dr. Wang"), CALLED).id == ISSUER


@pytest.mark.parametrize("aud", [[CALLED, AUDIENCE], [CALLED, CALLED], AUDIENCE, [AUDIENCE]], ids=["two", "twice", "other", "others"])
def test_a_single_use_token_is_for_nobody_else(started: TokenVerifier, aud: object) -> None:
    refused(started, once(aud=aud), "another audience", audience=CALLED)


def test_an_empty_address_is_not_the_issuers_audience(started: TokenVerifier) -> None:
    refused(started, once(), "another audience", audience="")


def test_an_issuer_without_an_audience_issues_nothing_that_is_good_for_more_than_one_call(issuer: Issuer, clock: Clock) -> None:
    verifier = believing(replace(issuer, audience=None), clock)
    clock.now += 60
    refused(verifier, once(), "another audience")
    refused(verifier, once(aud="None"), "another audience")
    assert verifier.verify_single_use(once(aud=CALLED), CALLED)


def test_a_single_use_token_needs_an_id(started: TokenVerifier) -> None:
    refused(started, once(jti=WITHOUT, aud=CALLED), "no id", audience=CALLED)
    for jti in ("", None, 1, ["a"]):
        refused(started, once(jti=jti, aud=CALLED), audience=CALLED)


def test_a_token_that_is_refused_for_something_else_has_not_been_used(started: TokenVerifier) -> None:
    refused(started, once(aud=AUDIENCE), audience=CALLED)
    refused(started, once(aud=CALLED)[:-4] + "AAAA", audience=CALLED)
    assert started.verify_single_use(once(aud=CALLED), CALLED)


def test_the_same_signature_in_its_other_spelling_is_no_second_use(started: TokenVerifier) -> None:
    token = once(aud=CALLED)
    other = other_spelling_of_signature(token)
    assert other != token
    assert started.verify_single_use(other, CALLED)
    refused(started, token, "used already", reason="replayed", audience=CALLED)


def test_an_access_token_is_used_often_and_no_other_has_its_id(verifier: TokenVerifier) -> None:
    token = EC.token(claims_of(jti="one"))
    for _ in range(3):
        assert verifier.verify(token)
    verifier._verified = tokens._Verified()  # what is recalled is not asked again
    assert verifier.verify(token)
    refused(verifier, EC.token(claims_of(jti="one", scope="audit:read")), "same id", reason="replayed")
    refused(verifier, other_spelling_of_signature(token), "same id", reason="replayed")
    assert verifier.verify(EC.token(claims_of(jti="two")))


def test_an_id_is_an_issuers_own(issuer: Issuer) -> None:
    verifier = TokenVerifier([issuer, replace(issuer, issuer="https://other.example")], clock=Clock())
    assert verifier.verify(EC.token(claims_of(jti="one")))
    assert verifier.verify(EC.token(claims_of(jti="one", iss="https://other.example")))


def test_an_id_is_free_again_when_its_token_has_expired(verifier: TokenVerifier, clock: Clock) -> None:
    verifier.verify(EC.token(claims_of(jti="one")))
    clock.now += 310
    assert verifier.verify(EC.token(claims_of(clock.now, jti="one", scope="")))


@pytest.mark.parametrize("early", [0, 5, 9])
def test_what_may_have_been_used_before_a_restart_is_refused(issuer: Issuer, clock: Clock, early: int) -> None:
    # The issuer's clock may be ahead by the leeway: what says that it was issued nine seconds after the start may have been used before it.
    token = EC.token(claims_of(NOW + early, jti="one", aud=CALLED))
    refused(believing(issuer, clock), token, "before this server started", reason="expired", audience=CALLED)
    late = EC.token(claims_of(NOW + 10, jti="two", aud=CALLED))
    assert believing(issuer, clock).verify_single_use(late, CALLED)


def test_a_restart_does_not_end_what_may_be_used_often(issuer: Issuer, clock: Clock) -> None:
    token = EC.token(claims_of(NOW - 100, jti="one"))
    assert believing(issuer, clock).verify(token)
    assert believing(issuer, clock).verify(token)


def test_many_at_once_use_a_token_once(started: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    token, real = once(aud=CALLED), _Memory.get

    def slowly(self: _Memory, name: bytes) -> bytes | None:
        known = real(self, name)
        time.sleep(0.02)  # time enough for all others to look as well, if they may
        return known

    monkeypatch.setattr(_Memory, "get", slowly)
    gate = threading.Barrier(4)

    def use(_: int) -> bool:
        gate.wait(20)
        try:
            started.verify_single_use(token, CALLED)
        except AuthenticationError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(use, range(4))) == 1


# --- The memory of what was used ----------------------------------------------------------------------------------------------------------


def guarded(capacity: int = 3) -> ReplayGuard:
    return ReplayGuard(started=0.0, leeway_s=0.0, capacity=capacity)


def test_a_full_memory_refuses_rather_than_forgets(caplog: pytest.LogCaptureFixture) -> None:
    guard = guarded()
    for number in range(3):
        guard.use_once(str(number), DIGEST, issued=1, expires=100 + number, now=1)
    with caplog.at_level(logging.ERROR):
        for jti in ("3", "4"):
            with pytest.raises(ReplayMemoryFullError, match="Too many tokens"):
                guard.use_once(jti, DIGEST, issued=1, expires=200, now=99)
    assert len(caplog.records) == 1
    with pytest.raises(AuthenticationError, match="used already"):
        guard.use_once("0", DIGEST, issued=1, expires=100, now=99)
    guard.use_once("3", DIGEST, issued=1, expires=200, now=100)
    with pytest.raises(AuthenticationError, match="Too many tokens"):
        guard.use_once("4", DIGEST, issued=1, expires=200, now=100)


def test_a_flood_of_access_tokens_does_not_stop_them_and_does_not_grow() -> None:
    guard = guarded()
    for number in range(50):
        guard.use_again(str(number), DIGEST, expires=100 + number, now=1)
    assert len(guard._many) == 3
    with pytest.raises(AuthenticationError, match="same id"):
        guard.use_again("49", b"\x02" * 32, expires=149, now=1)
    guard.use_once("49", DIGEST, issued=1, expires=100, now=1)


def test_expired_tokens_leave_nothing_behind() -> None:
    guard = guarded(1000)
    for number in range(500):
        guard.use_once(str(number), DIGEST, issued=1, expires=10 + number % 7, now=1)
        guard.use_again(str(number), DIGEST, expires=10 + number % 7, now=1)
    guard.use_once("x", DIGEST, issued=1, expires=100, now=50)
    guard.use_again("x", DIGEST, expires=100, now=50)
    assert (len(guard._once), len(guard._many)) == (1, 1)
    assert (len(guard._once._order), len(guard._many._order)) == (1, 1)


def test_a_clock_that_leaps_ahead_and_back_brings_no_token_back() -> None:
    guard = guarded()
    guard.use_once("one", DIGEST, issued=1, expires=100, now=1)
    guard.use_once("later", DIGEST, issued=999, expires=1100, now=1000)
    with pytest.raises(AuthenticationError, match="clock went back"):
        guard.use_once("one", DIGEST, issued=1, expires=100, now=2)
    with pytest.raises(AuthenticationError, match="used already"):
        guard.use_once("later", DIGEST, issued=999, expires=1100, now=2)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 60)), max_size=40))
def test_whatever_the_clock_does_no_token_is_used_twice(uses: list[tuple[int, int, int]]) -> None:
    guard, used = guarded(4), set()
    for jti, expires, now in uses:
        if expires <= now:
            continue  # its time alone refuses it
        try:
            guard.use_once(f"{jti}-{expires}", DIGEST, issued=0, expires=expires, now=now)
        except AuthenticationError:
            continue
        assert (jti, expires) not in used
        used.add((jti, expires))


# --- What may be configured ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": frozenset({"HS256"})},
        {"algorithms": frozenset({"none"})},
        {"algorithms": frozenset({"ES256", "HS256"})},
        {"algorithms": frozenset({"ES256K"})},
        {"algorithms": frozenset()},
        {"leeway_s": 61},
        {"leeway_s": -1},
        {"max_lifetime_s": 0},
        {"issuer": ""},
        {"audience": ""},
        {"role": None},
        {"tenant": TenantClaim("tenant", frozenset())},
        {"tenant": TenantClaim("tenant", frozenset({"north", ""}))},
    ],
    ids=lambda changes: ",".join(
        f"{name}={len(value) if isinstance(value, frozenset) else value if isinstance(value, int) else ''}" for name, value in changes.items()
    ),
)
def test_an_issuer_that_would_let_too_much_in_is_refused(issuer: Issuer, changes: dict) -> None:
    with pytest.raises(ServerSetupError):
        replace(issuer, **changes)


def test_two_issuers_of_one_name_are_refused(issuer: Issuer) -> None:
    with pytest.raises(ServerSetupError, match="same name"):
        TokenVerifier([issuer, replace(issuer, audience="other")])


def test_the_configured_place_decides_how_keys_are_looked_for(issuer: Issuer) -> None:
    made = TokenVerifier([issuer, replace(issuer, issuer="other", keys="https://id.example/keys")])
    assert [type(trusted.keys) for trusted in made._issuers.values()] == [FileKeys, AddressKeys]
    with pytest.raises(ServerSetupError, match="https"):
        TokenVerifier([replace(issuer, keys="http://id.example/keys")])


def test_before_anybody_waits_it_can_be_seen_whose_keys_are_missing(issuer: Issuer, tmp_path: Path) -> None:
    verifier = TokenVerifier([issuer, replace(issuer, issuer="other", keys=tmp_path / "none.json")])
    assert verifier.load_keys() == 1


def test_nothing_with_a_shared_secret_is_known_to_what_verifies() -> None:
    assert set(tokens._SIGNATURES.get_algorithms()) == set(ALGORITHMS)
    assert not any(name.startswith("HS") or name.lower() == "none" for name in ALGORITHMS)


@pytest.fixture(scope="module", autouse=True)
def _keys_made_once() -> Iterator[None]:
    """Keys of two thousand bits take a tenth of a second each."""
    yield
    private_key.cache_clear()
