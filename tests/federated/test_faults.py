"""Whatever breaks, there is the right total, or none and a name; never a wrong one."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.errors import FederationError, SiteRefusalError
from federated.identities import REPLY, REQUEST, RUN_KEY, Identity, run_key_message
from federated.node import IDENTITY, Node
from federated.secure_sums import SecureSums
from federated.statistics import Ask
from federated.wire import Message
from tests.federated.sites import make_consortium
from tests.federated.test_secure_sums import pooled_of
from tests.federated.wires import Wires

FEATURES, FOLDS = 6, 3

MOMENTS = Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": FOLDS})
PEOPLE = Ask("cohort", {}, {"folds": FOLDS, "groups": json.dumps({"sex": ["female", "male"]}), "checks": "[]"})
SITE = "bell"


@pytest.fixture
def made(tmp_path):
    return make_consortium(tmp_path)


@pytest.fixture
def wires(made):
    return Wires(made)


def sums_of(made, wires, **options):
    return made.sums(wires, **options)


@pytest.mark.parametrize("stage", ["join", "sum"])
@pytest.mark.parametrize("how", ["silent", "lost"])
def test_a_site_that_is_away_ends_the_step_by_name_and_the_run_goes_on_when_it_is_back(made, wires, tmp_path, stage, how):
    sums = sums_of(made, wires, store=tmp_path / "totals")
    if stage == "sum":
        sums.total("before", [PEOPLE])
    getattr(wires, how).add(SITE)
    with pytest.raises(FederationError, match=SITE) as ended:
        sums.total("first", [MOMENTS])
    assert "nothing of it was added up" in str(ended.value)
    getattr(wires, how).clear()
    again = sums_of(made, wires, store=tmp_path / "totals")
    if stage == "sum":
        again.total("before", [PEOPLE])
    found = again.total("first", [MOMENTS])[0]["sum"]
    np.testing.assert_allclose(found, pooled_of(made).total("first", [MOMENTS])[0]["sum"], atol=1e-8)


def test_an_answer_that_was_lost_is_given_again_to_the_byte(made, wires):
    sums = sums_of(made, wires, deadline_s=20)
    sums.total("first", [MOMENTS])
    _, body, signature = next(sent for sent in reversed(wires.sent) if sent[0] == SITE)
    given = [received for received in wires.received if received[0] == SITE][-1]
    again = Node.open(made.site(SITE)).answer(body, signature)
    assert (Message.from_bytes(again[0]).arrays["words"] == Message.from_bytes(given[1]).arrays["words"]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda body, signature: (b"", b""),
        lambda body, signature: (b"x" * 1000, signature),
        lambda body, signature: (body[:-8], signature),
        lambda body, signature: (body[:-1] + bytes([body[-1] ^ 1]), signature),
        lambda body, signature: (body, bytes(64)),
        lambda body, signature: (body, signature + b"\0"),
    ],
)
def test_an_answer_that_was_changed_on_its_way_is_refused_by_name(made, wires, change):
    sums = sums_of(made, wires)
    sums.total("before", [PEOPLE])
    wires.changed[SITE] = change
    with pytest.raises(FederationError, match=SITE):
        sums.total("first", [MOMENTS])


def forged(made, edit, arrays=None):
    """Return a change by which a site itself sends something else, under its own signature."""

    def change(body, signature):
        message = Message.from_bytes(body)
        other = Message({**message.header, **edit}, message.arrays if arrays is None else arrays(message.arrays["words"])).to_bytes()
        return other, Identity.load(made.site(SITE) / IDENTITY).sign(REPLY, other)

    return change


@pytest.mark.parametrize(
    ("edit", "arrays"),
    [
        ({"site": "ada"}, None),
        ({"run": "run-2"}, None),
        ({"step": 1}, None),
        ({"content": "00" * 32}, None),
        ({"kind": "join"}, None),
        ({"head": None}, None),
        ({"layout": []}, None),
        ({"layout": [["0/sum", [1]]]}, None),
        ({}, lambda words: {"words": words[:-1]}),
        ({}, lambda words: {"words": words.reshape(1, -1)}),
        ({}, lambda words: {"words": words.astype(float)}),
        ({}, lambda words: {}),
    ],
)
def test_a_site_that_answers_something_else_is_refused(made, wires, edit, arrays):
    sums = sums_of(made, wires)
    sums.total("before", [PEOPLE])
    wires.changed[SITE] = forged(made, edit, arrays)
    with pytest.raises(FederationError):
        sums.total("first", [MOMENTS])


def test_an_answer_of_another_step_cannot_stand_in(made, wires):
    sums = sums_of(made, wires)
    sums.total("first", [MOMENTS])
    old = [received[1:] for received in wires.received if received[0] == SITE][-1]
    wires.changed[SITE] = lambda body, signature: old
    with pytest.raises(FederationError, match="another question"):
        sums.total("second", [MOMENTS])


def test_masks_that_do_not_cancel_are_found_out(made, wires):
    sums = sums_of(made, wires)
    sums.total("before", [PEOPLE])
    rng = np.random.default_rng(0)
    wires.changed[SITE] = forged(made, {}, lambda words: {"words": rng.integers(0, 2**64, words.shape, np.uint64)})
    with pytest.raises(FederationError, match="cannot be right"):
        sums.total("first", [MOMENTS])


@pytest.mark.parametrize("value", [1e13, -1e13, np.inf])
def test_a_table_with_an_impossible_value_gives_no_answer(made, wires, value):
    table = read_table(made.site(SITE) / "features.parquet")
    frame = table.frame.copy()
    frame.loc[0, table.feature_names[0]] = value
    write_table(FeatureTable(frame, table.feature_names, table.extractors), made.site(SITE) / "features.parquet")
    with pytest.raises(SiteRefusalError) as refused:
        sums_of(made, wires).total("first", [MOMENTS])
    assert (refused.value.site, refused.value.reason) == (SITE, "not_computed")


def test_a_coordinator_that_gives_a_site_another_s_wrong_key_is_refused(made, wires):
    sums = sums_of(made, wires)
    sums.total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    message = Message.from_bytes(body)
    own = Identity.generate()
    keys = dict(message.header["keys"])
    keys["ada"] = ["11" * 32, own.sign(RUN_KEY, run_key_message(made.plan.digest, "ada", b"\x11" * 32)).hex()]
    assert reason_of(made, name, {**message.header, "step": 2, "keys": keys}, message.arrays) == "keys_do_not_fit"


def test_a_coordinator_that_leaves_a_site_out_of_a_step_is_refused(made, wires):
    sums_of(made, wires).total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    message = Message.from_bytes(body)
    fewer = {site: key for site, key in message.header["keys"].items() if site != "ada"}
    assert reason_of(made, name, {**message.header, "step": 2, "keys": fewer}, message.arrays) == "keys_do_not_fit"


def test_a_step_is_answered_to_one_question_only(made, wires):
    sums_of(made, wires).total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    message = Message.from_bytes(body)
    asks = [{"statistic": "cohort", "options": {**message.header["asks"][0]["options"], "groups": "{}"}}]
    assert reason_of(made, name, {**message.header, "asks": asks}, message.arrays) == "step_answered_already"


def test_a_table_that_changed_during_a_run_is_not_masked_twice_with_the_same_noise(made, wires):
    """Two answers under one mask would show the difference: whoever was added to the table."""
    sums = sums_of(made, wires)
    sums.total("first", [MOMENTS])
    first = [(body, signature) for name, body, signature in wires.sent if name == SITE][-1]
    sums.total("second", [PEOPLE])
    before = next(Message.from_bytes(body).arrays["words"] for name, body, _ in wires.received[3:] if name == SITE)
    table = read_table(made.site(SITE) / "features.parquet")
    write_table(FeatureTable(table.frame.iloc[2:], table.feature_names, table.extractors), made.site(SITE) / "features.parquet")
    after = Message.from_bytes(Node.open(made.site(SITE)).answer(*first)[0]).arrays.get("words")
    assert after is None or (after == before).all()


@pytest.mark.parametrize("minutes", [-11, 11])
def test_a_request_of_another_time_is_refused(made, wires, minutes):
    late = SecureSums(wires, made.plan, made.identity, deadline_s=1, clock=lambda: datetime.now(UTC) + timedelta(minutes=minutes))
    with pytest.raises(SiteRefusalError, match="clock"):
        late.total("first", [MOMENTS])


def test_whoever_is_not_the_coordinator_gets_no_answer(made, wires):
    sums_of(made, wires).total("first", [MOMENTS])
    _, body, signature = wires.sent[-1]
    stranger = Identity.generate()
    for other in (bytes(64), b"", stranger.sign(REQUEST, body), made.identity.sign(REPLY, body), signature[:-1]):
        answer, signed = Node.open(made.site(SITE)).answer(body, other)
        assert Message.from_bytes(answer).header["reason"] == "not_signed_by_the_coordinator"
        assert len(signed) == 64


@pytest.mark.parametrize("body", [b"", b"\0" * 100, b"{}", b"x" * 100_000], ids=["empty", "zeros", "json", "long"])
def test_signed_garbage_is_refused(made, body):
    answer, _ = Node.open(made.site(SITE)).answer(body, made.identity.sign(REQUEST, body))
    assert Message.from_bytes(answer).header["reason"] == "not_a_request"


def reason_of(made, name, header, arrays=None):
    """Return why a site refuses a request that the coordinator's key signed; None where it answers."""
    body = Message({**header, "time": datetime.now(UTC).isoformat()}, arrays or {}).to_bytes()
    answer, _ = Node.open(made.site(name)).answer(body, made.identity.sign(REQUEST, body))
    return Message.from_bytes(answer).header.get("reason")


@pytest.mark.parametrize(
    "asks",
    [
        "moments",
        [1],
        [{}],
        [{"statistic": "moments"}],
        [{"statistic": "moments", "options": {}}],
        [{"statistic": "moments", "options": {"folds": "many"}}],
        [{"statistic": "moments", "options": {"folds": -1}}],
        [{"statistic": "moments", "options": {"folds": 2}}],
        [{"statistic": "moments", "options": 7}],
        [{"statistic": "cohort", "options": {"folds": 2, "groups": "[]", "checks": "[]"}}],
        [{"statistic": "no_such", "options": {}}],
        [{"statistic": "newton", "options": {}}],
        [{"statistic": "calibration", "options": {}}],
        [{"statistic": "scores", "options": {}}],
        [{"statistic": "evaluation", "options": {}}],
        [{"statistic": "reference", "options": {}}],
    ],
    ids=str,
)
def test_a_question_that_makes_no_sense_is_refused_and_nothing_breaks(made, wires, asks):
    sums_of(made, wires).total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    header = {**Message.from_bytes(body).header, "step": 2, "asks": asks}
    assert reason_of(made, name, header) is not None


@pytest.mark.parametrize("missing", ["plan", "step", "time", "keys", "asks", "kind", "name"])
def test_a_request_that_lacks_something_is_refused_or_answered_but_breaks_nothing(made, wires, missing):
    sums_of(made, wires).total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    message = Message.from_bytes(body)
    header = {key: value for key, value in message.header.items() if key != missing} | {"step": 2}
    if missing == "step":
        del header["step"]
    raw = Message(header, message.arrays).to_bytes()
    answer, _ = Node.open(made.site(name)).answer(raw, made.identity.sign(REQUEST, raw))
    assert Message.from_bytes(answer).header["kind"] in ("refusal", "sum")


class Killed(BaseException):
    """In place of a process that ends here."""


@pytest.mark.parametrize("stage", ["_rows", "_keys", "_words", "_write", "_remember_set", "_record", "_keep"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_site_that_is_killed_at_any_moment_goes_on_as_if_it_had_not_been(made, wires, monkeypatch, tmp_path, stage, when):
    sums = sums_of(made, wires, store=tmp_path / "totals")
    sums.total("before", [PEOPLE])
    real, killed = getattr(Node, stage), []

    def dies(node, *given, **named):
        if node.identity != Node.open(made.site(SITE)).identity or killed:
            return real(node, *given, **named)
        killed.append(stage)
        if when == "after":
            real(node, *given, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Node, stage, dies)
        with pytest.raises(Killed):
            sums.total("first", [MOMENTS])
    assert killed
    again = sums_of(made, wires, store=tmp_path / "totals")
    again.total("before", [PEOPLE])
    np.testing.assert_allclose(again.total("first", [MOMENTS])[0]["sum"], pooled_of(made).total("first", [MOMENTS])[0]["sum"], atol=1e-8)
    made.sums(wires, store=tmp_path / "totals").total("before", [PEOPLE])


@pytest.mark.parametrize("stage", ["_exchange", "_added", "_keep"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_that_is_killed_at_any_moment_gets_the_same_numbers(made, wires, monkeypatch, tmp_path, stage, when):
    sums = sums_of(made, wires, store=tmp_path / "totals")
    sums.total("before", [PEOPLE])
    real = getattr(SecureSums, stage)

    def dies(self, *given, **named):
        if when == "after":
            real(self, *given, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SecureSums, stage, dies)
        with pytest.raises(Killed):
            sums.total("first", [MOMENTS])
    again = sums_of(made, wires, store=tmp_path / "totals")
    again.total("before", [PEOPLE])
    np.testing.assert_allclose(again.total("first", [MOMENTS])[0]["sum"], pooled_of(made).total("first", [MOMENTS])[0]["sum"], atol=1e-8)


def test_a_step_left_out_or_asked_too_early_is_refused(made, wires):
    sums_of(made, wires).total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    message = Message.from_bytes(body)
    assert reason_of(made, name, {**message.header, "step": 3}, message.arrays) == "step_out_of_order"
    assert reason_of(made, name, {**message.header, "step": 10**9}, message.arrays) == "too_many_exchanges"
    for step in (-1, 1.5, "1", True, None):
        assert reason_of(made, name, {**message.header, "step": step}, message.arrays) == "not_a_request"


def test_a_message_for_one_site_does_no_harm_at_another(made, wires):
    """Requests are the same for all; an answer is bound to its site's name and key."""
    sums = sums_of(made, wires)
    sums.total("before", [PEOPLE])
    answers = {}
    wires.changed["ada"] = lambda body, signature: answers.setdefault("ada", (body, signature))
    wires.changed[SITE] = lambda body, signature: answers["ada"]
    with pytest.raises(FederationError, match=SITE):
        sums.total("first", [MOMENTS])


def test_two_processes_of_one_site_answer_a_step_once(made, wires):
    sums_of(made, wires).total("before", [PEOPLE])
    name, body, _ = wires.sent[-1]
    message = Message.from_bytes(body)
    header = {**message.header, "step": 2, "time": datetime.now(UTC).isoformat()}
    groups = [json.dumps({"sex": ["female"]}), json.dumps({"sex": ["male"]})]
    bodies = [
        Message({**header, "asks": [{"statistic": "cohort", "options": {**header["asks"][0]["options"], "groups": each}}]}).to_bytes()
        for each in groups
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda raw: Node.open(made.site(name)).answer(raw, made.identity.sign(REQUEST, raw)), bodies))
    assert sorted(str(Message.from_bytes(raw).header.get("reason")) for raw, _ in found) == ["None", "step_answered_already"]
