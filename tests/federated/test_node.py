"""A site says no by its own rules, writes down what it said, and forgets nothing that it must not."""

import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pytest

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import FederatedRound
from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.errors import FederationError, SiteRefusalError
from federated.identities import REPLY, REQUEST, Identity, require
from federated.node import AUDIT, POLICY, Node, bucket_of
from federated.plan import Participant, Plan
from federated.privacy import Ledger
from federated.statistics import Ask
from federated.wire import Message
from tests.federated.sites import make_consortium
from tests.federated.wires import Wires

FEATURES, FOLDS = 6, 3
MOMENTS = Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": FOLDS})
GROUPS = json.dumps({"sex": ["female", "male"]})


def people(groups=GROUPS):
    return Ask("cohort", {}, {"folds": FOLDS, "groups": groups, "checks": "[]"})


@pytest.fixture
def made(tmp_path):
    return make_consortium(tmp_path / "sites", groups={"sex": ("female", "male")})


def log_of(made, name):
    return LogConfiguration.load(made.site(name) / AUDIT)


def events_of(made, name):
    with log_of(made, name).read() as log:
        return [record.payload for record in log.records() if isinstance(record.payload, FederatedRound)]


def refused(made, ask=MOMENTS, **options):
    with pytest.raises(SiteRefusalError) as error:
        made.sums(Wires(made), **options).total("first", [ask])
    return error.value.site, error.value.reason


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ({"statistics": []}, "statistic_not_allowed"),
        ({"minimum_sites": 4}, "too_few_sites"),
        ({"minimum_subjects": 1000}, "too_few_subjects"),
        ({"minimum_subjects_of_a_class": 1000}, "too_few_of_a_class"),
        ({"plans": []}, "plan_not_approved"),
        ({"extra": "[privacy]\nrequired = true\n"}, "privacy_required"),
    ],
)
def test_each_rule_of_a_site_s_policy_refuses_by_its_name(made, release, reason):
    made.set_policy("bell", **release)
    assert refused(made) == ("bell", reason)


@pytest.mark.parametrize("text", ["", "name = ", "surprise = 1\n", 'name = "bell"\ntable = 3\n', "\xff\xfe"])
def test_a_policy_that_cannot_be_read_allows_nothing(made, text):
    (made.site("bell") / POLICY).write_text(text, encoding="latin-1")
    assert refused(made) == ("bell", "policy_not_readable")


def test_a_table_that_is_gone_or_measured_otherwise_gives_nothing(made):
    path = made.site("bell") / "features.parquet"
    table = read_table(path)
    write_table(FeatureTable(table.frame, table.feature_names, dict.fromkeys(table.extractors, "other")), path)
    assert refused(made) == ("bell", "features_differ")
    path.unlink()
    assert refused(made) == ("bell", "data_not_readable")


def test_every_request_is_in_the_site_s_log_before_it_is_answered(made):
    sums = made.sums(Wires(made))
    sums.total("first", [MOMENTS, people()])
    made.set_policy("bell", statistics=[])
    with pytest.raises(SiteRefusalError):
        sums.total("second", [MOMENTS])
    found = [(event.round, event.action, event.asked_for, event.reason) for event in events_of(made, "bell")]
    assert found == [(0, "joined", None, None), (1, "released", "moments, cohort", None), (2, "refused", None, "statistic_not_allowed")]
    log_of(made, "bell").verify()


def test_the_log_holds_the_digest_of_what_left_and_no_number_of_people(made):
    wires = Wires(made)
    made.sums(wires).total("first", [MOMENTS])
    words = next(Message.from_bytes(body).arrays["words"] for name, body, _ in reversed(wires.received) if name == "bell")
    event = events_of(made, "bell")[-1]
    assert event.update == hashlib.sha256(words.tobytes()).hexdigest()
    assert event.subjects_bucket == "50 to 99"


def test_without_a_log_there_is_no_answer(made):
    (made.site("bell") / AUDIT).rename(made.site("bell") / "moved")
    assert refused(made) == ("bell", "log_not_available")


def test_a_coordinator_with_a_log_of_its_own_can_ask_again_after_it_died(made, tmp_path):
    """Its log has grown since the site heard of it: the question is the same, the head is not."""
    own = LogConfiguration("coordinator.example/federated", f"sqlite:{tmp_path / 'log.sqlite'}", tmp_path / "keys")
    own.create(tmp_path / "audit.toml")
    wires, kept = Wires(made), {"audit": own, "store": tmp_path / "totals"}
    made.sums(wires, **kept).total("first", [MOMENTS])
    wires.lost.add("bell")
    with pytest.raises(FederationError, match="bell"):
        made.sums(wires, **kept).total("first", [MOMENTS])
    wires.lost.clear()
    last = made.sums(wires, **kept)
    last.total("first", [MOMENTS])
    last.total("second", [people()])
    witnessed = [event.witnessed_size for event in events_of(made, "ada")]
    assert witnessed == sorted(witnessed)
    assert witnessed[-1] > witnessed[0]


def test_a_coordinator_s_log_that_has_become_shorter_is_refused(made, tmp_path):
    longer, shorter = (
        {"audit": LogConfiguration("c.example/log", f"sqlite:{tmp_path / name / 'log.sqlite'}", tmp_path / name / "keys")} for name in "ab"
    )
    for name, one in (("a", longer), ("b", shorter)):
        (tmp_path / name).mkdir()
        one["audit"].create(tmp_path / name / "audit.toml")
    sums = made.sums(Wires(made), **longer)
    sums.total("first", [MOMENTS])
    sums.total("second", [people()])
    assert refused(made, **shorter)[1] == "log_shrank"


def test_an_answer_that_is_given_again_shows_a_log_that_has_not_become_shorter(made, tmp_path):
    wires = Wires(made)
    sums = made.sums(wires, store=tmp_path / "totals")
    sums.total("first", [MOMENTS])
    wires.lost.add("ada")
    with pytest.raises(FederationError, match="ada"):
        sums.total("second", [people()])
    wires.lost.clear()
    # Something else is written into a site's log before it is asked again.
    Node.open(made.site("bell")).answer(b"noise", bytes(64))
    again = made.sums(wires, store=tmp_path / "totals")
    again.total("first", [MOMENTS])
    assert again.total("second", [people()])[0]["people"].sum() == 150
    assert [event.action for event in events_of(made, "bell")].count("released") >= 3


@pytest.mark.parametrize("column", ["subject", "recording", "row", "label"])
def test_no_group_may_be_a_person(made, column):
    """A count of one subject's recordings is that subject's, however many sites are in the sum."""
    who = str(read_table(made.site("bell") / "features.parquet").frame[column].iloc[0])
    assert refused(made, people(json.dumps({column: [who]})))[1] == "asks_beyond_the_plan"


def test_groups_are_those_of_the_plan(made):
    assert refused(made, people(json.dumps({"sex": ["female", "of one person"]})))[1] == "asks_beyond_the_plan"


@pytest.mark.parametrize("column", ["subject", "recording", "row"])
def test_no_plan_groups_by_person(made, column):
    with pytest.raises(ValueError, match="groups"):
        Plan.model_validate(made.plan.model_dump() | {"groups": {column: ("s0001",)}})


@pytest.mark.parametrize("left_out", [1, 2])
def test_a_later_run_that_leaves_few_sites_out_is_refused(tmp_path, left_out):
    names = ("ada", "bell", "curie", "darwin", "euler")
    made = make_consortium(tmp_path, names=names)
    made.sums(Wires(made)).total("first", [MOMENTS])
    fewer = Plan.model_validate(made.plan.model_dump() | {"run": "second", "sites": made.plan.sites[: 5 - left_out]})
    for name in names[: 5 - left_out]:
        made.set_policy(name, plans=[made.plan.digest, fewer.digest], minimum_subjects=10)
    assert refused(made, plan=fewer)[1] == "other_sites_than_before"
    for name in names[: 5 - left_out]:
        made.set_policy(name, plans=[made.plan.digest, fewer.digest], sets=[list(fewer.site_names)])
    assert made.sums(Wires(made), plan=fewer).total("first", [MOMENTS])[0]["known"].sum() > 0


def test_a_table_that_grew_does_not_switch_the_rule_of_sets_off(tmp_path):
    names = ("ada", "bell", "curie", "darwin")
    made = make_consortium(tmp_path, names=names)
    made.sums(Wires(made)).total("first", [MOMENTS])
    fewer = Plan.model_validate(made.plan.model_dump() | {"run": "second", "sites": made.plan.sites[:3]})
    for name in names[:3]:
        made.set_policy(name, plans=[made.plan.digest, fewer.digest], minimum_subjects=10)
        table = read_table(made.site(name) / "features.parquet")
        write_table(FeatureTable(table.frame.iloc[6:], table.feature_names, table.extractors), made.site(name) / "features.parquet")
    assert refused(made, plan=fewer)[1] == "other_sites_than_before"


@pytest.mark.parametrize(("fewer", "reason"), [(1, "people_differ_by_few"), (4, "people_differ_by_few"), (5, None), (0, None)])
def test_a_run_about_nearly_the_same_people_is_refused_until_enough_have_changed(made, fewer, reason):
    made.sums(Wires(made)).total("first", [MOMENTS])
    again = Plan.model_validate(made.plan.model_dump() | {"run": "second"})
    for name in made.names:
        made.set_policy(name, plans=[again.digest])
    path = made.site("ada") / "features.parquet"
    table = read_table(path)
    write_table(FeatureTable(table.frame.iloc[fewer:], table.feature_names, table.extractors), path)
    if reason is None:
        made.sums(Wires(made), plan=again).total("first", [MOMENTS])
    else:
        assert refused(made, plan=again) == ("ada", reason)


def test_a_person_who_is_recorded_anew_counts_as_changed_and_the_memory_names_nobody(made):
    made.sums(Wires(made)).total("first", [MOMENTS])
    memory = (made.site("ada") / "state" / "memory.json").read_text()
    path = made.site("ada") / "features.parquet"
    table = read_table(path)
    assert not any(name in memory for name in [*table.frame["subject"], *table.frame["recording"]])
    again = Plan.model_validate(made.plan.model_dump() | {"run": "second"})
    for name in made.names:
        made.set_policy(name, plans=[again.digest])
    anew = table.frame.assign(recording=["f" * 64, *table.frame["recording"][1:]])
    write_table(FeatureTable(anew, table.feature_names, table.extractors), path)
    assert refused(made, plan=again) == ("ada", "people_differ_by_few")


def test_questions_come_to_an_end(made):
    sums = made.sums(Wires(made))
    for number in range(made.plan.most_exchanges):
        sums.total("again", [Ask("moments", {"centre": np.full(FEATURES, float(number))}, {"folds": FOLDS})])
    with pytest.raises(SiteRefusalError, match="too many exchanges"):
        sums.total("again", [MOMENTS])


def test_where_noise_is_required_nothing_without_it_rides_along(tmp_path):
    made = make_consortium(tmp_path, statistics=("moments", "private_moments"))
    for name in made.names:
        made.set_policy(name, extra="[privacy]\nrequired = true\nepsilon = 5.0\n")
    noisy = Ask("private_moments", {"low": np.full(FEATURES, -3.0), "high": np.full(FEATURES, 3.0)}, {"noise_multiplier": 5.0})
    for asks in ([MOMENTS], [noisy, MOMENTS]):
        with pytest.raises(SiteRefusalError, match="privacy required"):
            made.sums(Wires(made)).total("first", asks)
    assert made.sums(Wires(made)).total("first", [noisy])[0]["people"].shape == (1,)


def test_a_ledger_that_is_an_older_copy_pays_for_nothing(tmp_path):
    """What was spent since the copy was made would be spent again."""
    made = make_consortium(tmp_path, statistics=("moments", "private_moments"))
    for name in made.names:
        made.set_policy(name, extra="[privacy]\nepsilon = 50.0\n")
    files = [made.site("ada") / "state" / name for name in ("privacy.ledger", "privacy.ledger.head")]
    older = [file.read_bytes() for file in files]
    noisy = Ask("private_moments", {"low": np.full(FEATURES, -3.0), "high": np.full(FEATURES, 3.0)}, {"noise_multiplier": 5.0})
    sums = made.sums(Wires(made))
    sums.total("first", [noisy])
    assert Ledger(files[0]).spent(1e-5) > 0
    for file, content in zip(files, older, strict=True):
        file.write_bytes(content)
    with pytest.raises(SiteRefusalError, match="ledger not available"):
        sums.total("second", [noisy])


def test_the_same_set_may_train_again(made):
    made.sums(Wires(made)).total("first", [MOMENTS])
    again = Plan.model_validate(made.plan.model_dump() | {"run": "second"})
    for name in made.names:
        made.set_policy(name, plans=[again.digest])
    (found,) = made.sums(Wires(made), plan=again).total("first", [MOMENTS])
    assert found["known"].sum() > 0


def test_a_run_s_name_cannot_be_used_for_another_plan(made):
    made.sums(Wires(made)).total("first", [MOMENTS])
    other = Plan.model_validate(made.plan.model_dump() | {"seed": 7})
    for name in made.names:
        made.set_policy(name, plans=[other.digest])
    assert refused(made, plan=other)[1] == "run_is_another_plan"


def test_a_site_that_is_not_in_the_plan_under_its_own_key_refuses(made):
    others = tuple(
        Participant(name=site.name, identity=Identity.generate().public if site.name == "bell" else site.identity) for site in made.plan.sites
    )
    other = Plan.model_validate(made.plan.model_dump() | {"sites": others})
    made.set_policy("bell", plans=[other.digest])
    body = Message({"kind": "join", "plan": other.to_bytes().decode(), "step": 0, "time": datetime.now(UTC).isoformat(), "head": None}).to_bytes()
    answer, signature = Node.open(made.site("bell")).answer(body, made.identity.sign(REQUEST, body))
    require(Node.open(made.site("bell")).identity, REPLY, answer, signature, "The answer")
    assert Message.from_bytes(answer).header["reason"] == "not_in_the_plan"


def test_the_site_s_own_files_are_for_its_owner_alone(made):
    made.sums(Wires(made)).total("first", [MOMENTS])
    state = made.site("bell") / "state"
    for path in (state, *(path for path in state.rglob("*") if path.is_file() and path.name != "lock")):
        assert not path.stat().st_mode & 0o077, path.name


def test_people_are_told_of_as_a_range():
    assert [bucket_of(number) for number in (0, 19, 20, 49, 999, 1000)] == [
        "below 20",
        "below 20",
        "20 to 49",
        "20 to 49",
        "500 to 999",
        "1000 and more",
    ]
