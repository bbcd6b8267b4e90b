"""API keys: made, used, rotated and revoked; the file that others touched; and the commands that hand them out."""

import fcntl
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clinical_ser.api import api_keys
from clinical_ser.api.access import Principal, Scope
from clinical_ser.api.api_keys import ApiKey, ApiKeys, NewKey, add_key, read_keys, revoke_key, rotate_key
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Role
from clinical_ser.errors import AuditUnavailableError, AuthenticationError, ServerSetupError
from tests.api.tokens_made import Clock
from tests.cli.conftest import run  # noqa: F401  # the command line, in this process

BEGIN = datetime(2026, 11, 1, 8, tzinfo=UTC)
SCOPES = frozenset({Scope.READ, Scope.SCREEN})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "jane-doe" / "api_keys.json"


@pytest.fixture
def clock() -> Clock:
    return Clock(BEGIN.timestamp())


@pytest.fixture
def keys(place: Path, clock: Clock) -> ApiKeys:
    return ApiKeys(place, clock=clock)


def made(place: Path, client: str = "ris", **options) -> NewKey:
    return add_key(place, **{"client": client, "role": Role.SERVICE, "scopes": SCOPES, "now": BEGIN, **options})


def refused(keys: ApiKeys, text: str, reason: str = "unauthenticated") -> str:
    with pytest.raises(AuthenticationError) as caught:
        keys.verify(text)
    assert caught.value.reason == reason
    return str(caught.value)


def is_good(keys: ApiKeys, text: str) -> bool:
    try:
        keys.verify(text)
    except AuthenticationError:
        return False
    return True


# --- One key ------------------------------------------------------------------------------------------------------------------------------


def test_a_key_says_whose_it_is(place: Path, keys: ApiKeys) -> None:
    key = made(place, "dr.wang", role=Role.CLINICIAN, name="Dr. Wang 王")
    assert keys.verify(key.text) == Principal("dr.wang", "", Role.CLINICIAN, SCOPES, "Dr. Wang 王", "api_key")


def test_a_key_is_256_random_bits_behind_an_id(place: Path) -> None:
    texts = [made(place, f"client{number}").text for number in range(50)]
    assert all(re.fullmatch(r"cser_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", text) for text in texts)
    assert len({text[5:13] for text in texts}) == len({text[14:] for text in texts}) == 50
    assert all(text[5:13] == key.id for text, key in zip(texts, read_keys(place), strict=True))


def test_the_file_is_for_its_owner_alone_and_holds_no_key(place: Path) -> None:
    key = made(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert key.text[14:] not in place.read_text()
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert key.text[14:] not in repr(key)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 56), character=st.characters(codec="utf-8"))
def test_no_changed_character_of_a_key_is_good(tmp_path: Path, index: int, character: str) -> None:
    place = tmp_path / "keys.json"
    if not place.exists():
        made(place)
        _TEXTS[place] = rotate_key(place, read_keys(place)[0].id, now=BEGIN).text
    text = _TEXTS[place]
    keys = ApiKeys(place, clock=Clock(BEGIN.timestamp()))
    assert keys.verify(text)
    assume(text[index] != character)
    refused(keys, text[:index] + character + text[index + 1 :])


_TEXTS: dict[Path, str] = {}


def test_what_is_no_key_is_refused_without_being_quoted(place: Path, keys: ApiKeys) -> None:
    text = made(place).text
    other = made(place, "other").text
    for wrong in (
        "",
        "cser_",
        "canary",
        text[:-1],
        text + "A",
        text + "\n",
        " " + text,
        text.upper(),
        text[:14] + other[14:],
        "x" * 1_000_000,
        "\ud800",
        "cser_\0",
    ):
        assert "canary" not in refused(keys, wrong)


def test_an_id_that_nobody_has_is_refused_in_the_same_words_and_with_the_same_work(
    place: Path, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made(place).text
    compared = []
    real = api_keys.hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    said = {refused(keys, wrong) for wrong in (text[:-1] + ("A" if text[-1] != "A" else "B"), "cser_aaaaaaaa_" + text[14:], "nothing")}
    assert len(said) == 1
    assert compared == [(32, 32)] * 3


def test_a_key_is_good_until_it_expires_and_only_its_owner_learns_that(place: Path, keys: ApiKeys, clock: Clock) -> None:
    text = made(place, lifetime=timedelta(days=1)).text
    clock.now += 24 * 3600 - 1
    assert keys.verify(text)
    clock.now += 1
    assert "expired" in refused(keys, text, "expired")
    refused(keys, text[:14] + "A" * 43)


def test_a_key_of_a_tenant_that_the_installation_does_not_have_is_refused(place: Path, clock: Clock) -> None:
    north, none = made(place, tenant="north").text, made(place).text
    several = ApiKeys(place, tenants=frozenset({"north", "south"}), clock=clock)
    assert several.verify(north).tenant == "north"
    refused(several, none)
    refused(ApiKeys(place, clock=clock), north)
    refused(ApiKeys(place, tenants=frozenset({"south"}), clock=clock), north)


@pytest.mark.parametrize(
    "options",
    [
        {"client": ""},
        {"client": "a b"},
        {"client": "north/ris"},
        {"client": "a\nb"},
        {"client": "-rf"},
        {"client": "x" * 101},
        {"client": "王"},
        {"name": "a\nb"},
        {"name": ""},
        {"name": " a"},
        {"name": "\u202ea"},
        {"tenant": "North"},
        {"tenant": "a/b"},
        {"scopes": frozenset()},
        {"lifetime": timedelta(days=-1)},
        {"lifetime": timedelta(days=5 * 365 + 1)},
    ],
    ids=lambda options: ",".join(f"{name}={ascii(value)[:14]}" for name, value in options.items()),
)
def test_a_key_that_does_not_fit_is_not_made(place: Path, options: dict) -> None:
    with pytest.raises(ServerSetupError):
        made(place, **options)
    assert not place.exists()


# --- Its life -----------------------------------------------------------------------------------------------------------------------------


def test_a_client_has_one_key_and_two_while_it_is_rotated(place: Path, keys: ApiKeys, clock: Clock) -> None:
    old = made(place)
    with pytest.raises(ServerSetupError, match="rotate that one"):
        made(place)
    made(place, "other")
    made(place, tenant="north")
    new = rotate_key(place, old.record.id, now=BEGIN + timedelta(days=100))
    assert new.record.model_dump(exclude={"id", "sha256", "created", "expires"}) == old.record.model_dump(
        exclude={"id", "sha256", "created", "expires"}
    )
    clock.now += 107 * 24 * 3600 - 1
    assert keys.verify(old.text) == keys.verify(new.text)
    with pytest.raises(ServerSetupError, match="two keys that are good"):
        rotate_key(place, new.record.id, now=BEGIN + timedelta(days=101))
    clock.now += 1
    refused(keys, old.text, "expired")
    assert keys.verify(new.text)
    with pytest.raises(ServerSetupError, match="not good any more"):
        rotate_key(place, old.record.id, now=BEGIN + timedelta(days=107))
    assert rotate_key(place, new.record.id, now=BEGIN + timedelta(days=107))
    states = [key.state(BEGIN + timedelta(days=107)) for key in read_keys(place) if (key.client, key.tenant) == ("ris", "")]
    assert states == ["expired", "rotated", "valid"]


def test_rotation_does_not_lengthen_the_old_keys_life(place: Path) -> None:
    old = made(place, lifetime=timedelta(days=3))
    rotate_key(place, old.record.id, now=BEGIN)
    assert read_keys(place)[0].expires == old.record.expires


def test_rotation_without_overlap_ends_the_old_key_at_once(place: Path, keys: ApiKeys) -> None:
    old = made(place)
    new = rotate_key(place, old.record.id, overlap=timedelta(), now=BEGIN)
    refused(keys, old.text, "expired")
    assert keys.verify(new.text)


def test_a_revoked_key_is_refused_by_the_server_that_runs_with_its_next_question(place: Path, keys: ApiKeys) -> None:
    key, other = made(place), made(place, "other")
    assert keys.verify(key.text)
    ended = revoke_key(place, key.record.id, now=BEGIN)
    assert (ended.revoked, ended.state(BEGIN)) == ("2026-11-01T08:00:00Z", "revoked")
    refused(keys, key.text)
    assert keys.verify(other.text)
    with pytest.raises(ServerSetupError, match="revoked already"):
        revoke_key(place, key.record.id)
    with pytest.raises(ServerSetupError, match="not good any more"):
        rotate_key(place, key.record.id, now=BEGIN)
    assert keys.verify(made(place).text)


def test_a_key_that_is_not_there_is_not_changed(place: Path) -> None:
    made(place)
    before = place.read_bytes()
    for change in (revoke_key, rotate_key):
        with pytest.raises(ServerSetupError, match="no key with this id"):
            change(place, "aaaaaaaa")
    assert place.read_bytes() == before


def test_what_cannot_be_announced_does_not_happen(place: Path, keys: ApiKeys) -> None:
    def fail(_: ApiKey) -> None:
        raise AuditUnavailableError("no space")

    with pytest.raises(AuditUnavailableError):
        made(place, announce=fail)
    assert not place.exists()
    key = made(place)
    before = place.read_bytes()
    with pytest.raises(AuditUnavailableError):
        rotate_key(place, key.record.id, now=BEGIN, announce=fail)
    assert place.read_bytes() == before
    assert keys.verify(key.text)


def test_what_is_announced_is_not_good_yet(place: Path, keys: ApiKeys) -> None:
    seen = []
    key = made(place, announce=lambda record: seen.append((record, place.exists())))
    assert seen == [(key.record, False)]


def test_many_who_add_keys_at_once_lose_none(place: Path) -> None:
    made(place)

    def add(number: int) -> None:
        while not any(key.client == f"client{number}" for key in read_keys(place)):
            with suppress(ServerSetupError):  # another one is at it
                made(place, f"client{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(16)))
    assert len(read_keys(place)) == 17


def test_whoever_changes_keys_while_another_does_is_told_to_come_back(place: Path) -> None:
    key = made(place)
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for change in (lambda: made(place, "other"), lambda: rotate_key(place, key.record.id), lambda: revoke_key(place, key.record.id)):
            with pytest.raises(ServerSetupError, match="Another process"):
                change()
    finally:
        os.close(descriptor)
    revoke_key(place, key.record.id)


def test_a_crash_before_the_file_is_in_place_leaves_the_old_one(place: Path, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    key = made(place)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            revoke_key(place, key.record.id)
    assert keys.verify(key.text)
    revoke_key(place, key.record.id)
    refused(keys, key.text)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


# --- Its file -----------------------------------------------------------------------------------------------------------------------------


def _replaced(place: Path, raw: bytes) -> None:
    draft = place.with_name("draft")
    draft.write_bytes(raw)
    draft.chmod(0o600)
    draft.replace(place)


def _other_spellings(raw: bytes) -> dict[str, bytes]:
    value = json.loads(raw)
    first = value["keys"][0]

    def spelled(**changes: object) -> bytes:
        text = json.dumps({**value, "keys": [{**first, **changes}]}, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        return text.encode() + b"\n"

    assert spelled() == raw
    return {
        "empty": b"",
        "null": b"null\n",
        "cut": raw[:-10],
        "more": raw + b"\n",
        "spaced": json.dumps(value).encode() + b"\n",
        "twice": raw.replace(b'"client":"ris"', b'"client":"ris","client":"admin"'),
        "same id": raw.replace(b'"keys":[', b'"keys":[' + json.dumps(first, separators=(",", ":"), sort_keys=True).encode() + b","),
        "no schema": raw.replace(b',"schema":"clinical-ser/api-keys/1"', b""),
        "newer schema": raw.replace(b"api-keys/1", b"api-keys/2"),
        "unknown field": spelled(admin=True),
        "no hash": spelled(sha256=""),
        "no day": spelled(expires="2027-02-30T00:00:00Z"),
        "no scope": spelled(scopes=[]),
        "unknown scope": spelled(scopes=["everything"]),
        "scope twice": spelled(scopes=["screenings:read", "screenings:read"]),
        "unknown role": spelled(role="root"),
        "path": spelled(client="../x"),
        "utf-16": raw.decode().encode("utf-16"),
        "huge": raw[:-2] + b" " * (4 * 1024 * 1024) + raw[-2:],
    }


@pytest.mark.parametrize("what", list(_other_spellings(b'{"keys":[{"client":"ris"}],"schema":"clinical-ser/api-keys/1"}\n')))
def test_a_damaged_file_denies_everyone_and_says_so_once(place: Path, keys: ApiKeys, what: str, caplog: pytest.LogCaptureFixture) -> None:
    key = made(place)
    assert keys.verify(key.text)
    good = place.read_bytes()
    _replaced(place, _other_spellings(good)[what])
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            refused(keys, key.text)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "no API key is good" in record.getMessage()
    assert not any(secret in record.getMessage() for secret in ("jane", "ris", key.record.id, key.record.sha256))
    for use in (lambda: read_keys(place), lambda: made(place, "other"), lambda: revoke_key(place, key.record.id), keys.load):
        with pytest.raises(ServerSetupError):
            use()
    _replaced(place, good)
    assert keys.verify(key.text)
    assert keys.load() == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o601, 0o777])
def test_a_file_that_others_may_touch_denies_everyone(place: Path, keys: ApiKeys, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    key = made(place)
    assert keys.verify(key.text)
    place.chmod(mode)
    refused(keys, key.text)
    assert "chmod 600" in caplog.text
    with pytest.raises(ServerSetupError, match="chmod 600"):
        made(place, "other")
    place.chmod(0o600)
    assert keys.verify(key.text)


def test_a_file_of_another_user_denies_everyone(place: Path, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    key = made(place)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    refused(keys, key.text)


def test_a_folder_that_others_may_write_gets_no_keys(place: Path) -> None:
    key = made(place)
    for mode in (0o770, 0o707, 0o1777):
        place.parent.chmod(mode)
        with pytest.raises(ServerSetupError, match="chmod go-w"):
            revoke_key(place, key.record.id)
    place.parent.chmod(0o755)
    revoke_key(place, key.record.id)


def test_a_file_that_comes_and_goes_counts_with_the_next_question(place: Path, keys: ApiKeys) -> None:
    refused(keys, "cser_aaaaaaaa_" + "A" * 43)
    key = made(place)
    assert keys.verify(key.text)
    raw = place.read_bytes()
    place.unlink()
    refused(keys, key.text)
    _replaced(place, raw)
    assert keys.verify(key.text)


def test_a_file_is_read_once_while_it_stays_the_same(place: Path, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], api_keys._KeyList.from_bytes
    monkeypatch.setattr(api_keys._KeyList, "from_bytes", lambda raw: read.append(raw) or real(raw))
    first = made(place)
    read.clear()
    for _ in range(5):
        assert keys.verify(first.text)
    assert len(read) == 1
    made(place, "other")
    read.clear()
    for _ in range(5):
        assert keys.verify(first.text)
    assert len(read) == 1


def test_keys_are_good_while_the_file_is_replaced_over_and_over(place: Path, keys: ApiKeys) -> None:
    key, done = made(place), threading.Event()

    def churn() -> None:
        number = 0
        while not done.is_set():
            number += 1
            revoke_key(place, made(place, f"client{number}").record.id)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(lambda _: is_good(keys, key.text), range(1500)))
    finally:
        done.set()
        thread.join()


# --- The commands -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(run):  # noqa: F811
    """Run `clinical-ser serve keys …` in this process."""
    return lambda *words: run("serve", "keys", *words)


ADD = ("add", "ris", "--scope", "screenings:read", "--scope", "screenings:write")


@contextmanager
def _site(run) -> Iterator[LogConfiguration]:  # noqa: F811
    done = run("audit", "init", "--origin", "clinic.example/screening")
    assert done.code == 0, done.err
    yield LogConfiguration.load(LogConfiguration.default_path())


def recorded(site: LogConfiguration) -> list:
    with site.read() as log:
        return [(record.payload.setting, record.payload.old, record.payload.new) for record in log.records() if record.event.kind == "configuration"]


def test_a_key_is_alone_on_stdout_and_good_at_once(typed, place: Path) -> None:
    keys = ApiKeys(place)
    done = typed(*ADD, "--file", place)
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert keys.verify(done.out.strip()) == Principal("ris", "", Role.SERVICE, SCOPES, None, "api_key")
    assert "only time" in done.err
    assert done.out.strip() not in done.err


def test_without_a_file_the_keys_are_where_the_server_looks_for_them(typed, tmp_path: Path) -> None:
    done = typed(*ADD)
    assert done.code == 0, done.err
    place = tmp_path / "home" / "api_keys.json"
    assert ApiKeys(place).verify(done.out.strip())
    elsewhere = tmp_path / "elsewhere.json"
    (tmp_path / "home" / "server.toml").write_text(f'api_keys = "{elsewhere}"\ntenants = ["north"]\n')
    assert "has to be one of north" in typed(*ADD).err
    assert typed(*ADD, "--tenant", "north").code == 0
    assert read_keys(elsewhere)[0].tenant == "north"


@pytest.mark.parametrize("named", [False, True], ids=["usual file", "named file"])
def test_a_tenant_is_not_for_an_installation_with_one_site(typed, place: Path, named: bool) -> None:
    done = typed(*ADD, "--tenant", "north", *(("--file", place) if named else ()))
    assert done.code == 1
    assert "one site" in done.err
    assert not place.exists()


def test_a_key_is_listed_rotated_and_revoked_by_its_id(typed, place: Path) -> None:
    old = json.loads(typed(*ADD, "--file", place, "--json").out)
    assert set(old) == {"key", "state", "id", "client", "name", "tenant", "role", "scopes", "created", "expires", "rotated", "revoked"}
    new = json.loads(typed("rotate", old["id"], "--file", place, "--json").out)
    listed = json.loads(typed("list", "--file", place, "--json").out)
    assert [(key["id"], key["state"]) for key in listed] == [(old["id"], "rotated"), (new["id"], "valid")]
    assert "key" not in listed[0]
    assert "sha256" not in listed[0]
    assert is_good(ApiKeys(place), old["key"])
    assert typed("revoke", old["id"], "--file", place).code == 0
    assert not is_good(ApiKeys(place), old["key"])
    assert is_good(ApiKeys(place), new["key"])
    plain = typed("list", "--file", place).out
    assert f"{old['id']}  revoked" in plain
    assert f"{new['id']}  valid" in plain
    assert "ris as service: screenings:read screenings:write" in plain
    assert new["key"][14:] not in plain


def test_a_change_is_in_the_trail_and_the_key_is_not(typed, run, place: Path) -> None:  # noqa: F811
    with _site(run) as site:
        old = json.loads(typed(*ADD, "--file", place, "--json").out)
        new = json.loads(typed("rotate", old["id"], "--file", place, "--json").out)
        assert typed("revoke", old["id"], "--file", place).code == 0
        told = recorded(site)
    assert [setting for setting, _, _ in told] == ["API key is added", "API key is rotated", "API key was revoked"]
    assert old["id"] in told[0][2]
    assert old["id"] in told[1][1]
    assert new["id"] in told[1][2]
    assert old["id"] in told[2][1]
    text = repr(told)
    assert not any(secret in text for secret in (old["key"][14:], new["key"][14:], *(key.sha256 for key in read_keys(place))))


def test_while_another_process_has_the_log_no_key_is_made_and_one_can_be_revoked(typed, run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("clinical_ser.cli.serve_keys._WAIT_S", 0.1)
    old = json.loads(typed(*ADD, "--file", place, "--json").out)
    with _site(run) as site, site.write():
        for words in (("add", "other", "--scope", "audit:read"), ("rotate", old["id"])):
            done = typed(*words, "--file", place)
            assert (done.code, done.out) == (1, "")
        assert [(key.id, key.rotated) for key in read_keys(place)] == [(old["id"], None)]
        done = typed("revoke", old["id"], "--file", place)
        assert done.code == 0
        assert "Not recorded" in done.err
    assert not is_good(ApiKeys(place), old["key"])


def test_a_log_that_cannot_be_used_keeps_no_stolen_key_alive_and_lets_no_new_one_be(typed, run, place: Path) -> None:  # noqa: F811
    key = json.loads(typed(*ADD, "--file", place, "--json").out)
    with _site(run) as site:
        Path(site.database.removeprefix("sqlite:")).write_bytes(b"damaged")
        assert typed("add", "other", "--scope", "audit:read", "--file", place).code == 1
        assert typed("rotate", key["id"], "--file", place).code == 1
        assert len(read_keys(place)) == 1
        assert typed("revoke", key["id"], "--file", place).code == 1
    assert not is_good(ApiKeys(place), key["key"])


def test_mistakes_are_told_in_one_line(typed, place: Path) -> None:
    for words in (("add", "a b", "--scope", "audit:read"), ("revoke", "canary"), ("rotate", "canary")):
        done = typed(*words, "--file", place)
        assert (done.code, done.out) == (1, "")
        assert "canary" not in done.err
        assert "Traceback" not in done.err
    assert typed("add", "ris", "--scope", "everything", "--file", place).code == 2
    assert typed("add", "ris", "--file", place).code == 2
