"""What a coordinator may ask follows from the plan; each of these was once a way to one person's row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.errors import SiteRefusalError
from federated.identities import Identity
from federated.plan import Participant, Plan
from federated.site_table import site_rows, without_rare
from federated.statistics import Ask
from federated.training import train_across
from tests.federated.sites import make_consortium

FEATURES = 6


@pytest.fixture
def made(tmp_path):
    return make_consortium(tmp_path)


def scales(made, *, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"mean": np.zeros((made.plan.folds + 1, FEATURES)), "scale": np.full((made.plan.folds + 1, FEATURES), value)}


def newton(made, heads: int = 1, *, steep: float = 0.1, **changes: np.ndarray) -> Ask:
    beta = np.full((heads, FEATURES + 1), steep)
    return Ask("newton", scales(made) | {"beta": beta, "left_out": np.full(heads, -1.0), "draw": np.full(heads, -1.0)} | changes)


def refused(made, *asks: Ask, sums=None) -> str:
    with pytest.raises(SiteRefusalError) as error:
        (sums or made.sums()).total("asked", list(asks))
    return error.value.reason


@pytest.mark.parametrize(
    "ask",
    [
        lambda made: newton(made, steep=4000.0),
        lambda made: newton(made, heads=500),
        lambda made: newton(made, draw=np.array([made.plan.refits + 0.0])),
        lambda made: newton(made, left_out=np.array([made.plan.folds + 0.0])),
        lambda made: Ask("reference", scales(made) | {"beta": np.zeros((3, 7)), "own": np.zeros(7), "refits": np.zeros((3, 7))}, {"sex": "intersex"}),
        lambda made: Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": 10**9}),
        lambda made: Ask("cohort", {}, {"folds": 3, "groups": "{}", "checks": '["not in the plan"]'}),
        lambda made: newton(made, mean=np.zeros((2, FEATURES)), scale=np.ones((2, FEATURES))),
    ],
    ids=["a slit", "hundreds of heads", "a draw too many", "a fold too many", "a sex of one", "folds of nobody", "other checks", "other folds"],
)
def test_what_no_training_under_the_plan_asks_is_refused(made, ask):
    assert refused(made, ask(made)) == "asks_beyond_the_plan"


def test_an_exchange_is_one_question_of_a_kind(made):
    moments = Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": 3})
    assert refused(made, moments, moments, moments) == "asks_beyond_the_plan"


def test_a_scale_that_cuts_the_cohort_at_a_value_ends_the_run(made):
    sums = made.sums()
    assert refused(made, newton(made, mean=scales(made)["mean"], scale=scales(made, value=1e-12)["scale"]), sums=sums) == "not_computed"
    assert refused(made, newton(made), sums=sums) in {"step_answered_already", "run_ended"}


def test_what_a_site_cannot_compute_says_so_once_and_answers_nothing_more(made):
    """Whether something could be computed depends on the rows; asked fifty times, it told one of them to the last digit."""
    table = made.site("bell") / "features.parquet"
    given = read_table(table)
    name = given.feature_names[0]
    write_table(FeatureTable(given.frame.assign(**{name: 1e11}), given.feature_names, given.extractors), table)
    sums = made.sums()
    moments = Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": 3})
    assert refused(made, moments, sums=sums) == "not_computed"
    assert refused(made, Ask("cohort", {}, {"folds": 3, "groups": "{}", "checks": "[]"}), sums=sums) == "step_answered_already"
    sums._step += 1
    assert refused(made, Ask("cohort", {}, {"folds": 3, "groups": "{}", "checks": "[]"}), sums=sums) in {"run_ended", "step_out_of_order"}


def test_scales_cannot_change_within_a_run(made):
    sums = made.sums()
    sums.total("first", [newton(made)])
    assert refused(made, newton(made, **scales(made, value=1.1)), sums=sums) == "scales_differ"


def test_sites_that_nobody_knows_are_no_company(made):
    """A coordinator can invent sites, answer for them, and subtract."""
    invented = [Participant(name=name, identity=Identity.generate().public) for name in ("x-1", "x-2")]
    ours = next(site for site in made.plan.sites if site.name == "ada")
    plan = Plan.model_validate(made.plan.model_dump() | {"sites": [ours, *invented]})
    made.set_policy("ada", plans=[plan.digest])
    text = (made.site("ada") / "node.toml").read_text()
    assert made.node("ada").rehearse(plan) == "too_few_known_sites"
    for site in invented:
        text = text.replace("[sites]\n", f'[sites]\n{site.name} = "{site.identity}"\n')
    (made.site("ada") / "node.toml").write_text(text)
    assert made.node("ada").rehearse(plan) is None


def test_sites_with_other_code_do_not_add_up(made):
    plan = Plan.model_validate(made.plan.model_dump() | {"software": "0" * 64})
    made.set_policy("ada", plans=[plan.digest])
    assert made.node("ada").rehearse(plan) == "another_version"


def test_a_group_that_is_rare_at_a_site_is_counted_among_everybody_only(made):
    table = read_table(made.site("ada") / "features.parquet")
    rare = table.frame.assign(sex=["female", "female", *["male"] * (len(table.frame) - 2)])
    rows = site_rows(replace(table, frame=rare), made.plan, b"s", None)
    hidden = without_rare(rows, made.plan.groups, 5)
    assert set(hidden.frame["sex"].dropna()) == {"male"}
    assert len(hidden) == len(rows)
    assert set(without_rare(rows, made.plan.groups, 2).frame["sex"]) == {"female", "male"}


@pytest.mark.parametrize(
    ("told", "reason"),
    [([0.7, 1.7, 2.7], "data_not_readable"), ([0, 1, None], "data_not_readable"), ([0, 0, 5], "data_not_readable"), ([0, 0, 1], "too_few_in_a_fold")],
    ids=["not whole", "missing", "no such fold", "one person alone"],
)
def test_folds_that_are_none_or_hold_one_person_are_refused(tmp_path, told, reason):
    made = make_consortium(tmp_path, fold_column="part")
    path = made.site("ada") / "features.parquet"
    table = read_table(path)
    parts = (
        [told[0], *np.resize(told[1:], len(table.frame) - 1)] if reason != "too_few_in_a_fold" else [2, *[i % 2 for i in range(len(table.frame) - 1)]]
    )
    write_table(FeatureTable(table.frame.assign(part=np.array(parts, float)), table.feature_names, table.extractors), path)
    assert made.node("ada").rehearse(made.plan) == reason


def test_every_question_is_kept_as_it_was_signed(made):
    train_across(made.sums(), made.plan.settings)
    kept = sorted(Path(made.site("ada") / "state" / "runs" / "first").glob("step-*.request"))
    assert len(kept) >= 8
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


@pytest.mark.parametrize("lost", ["secret", "memory.json"])
def test_what_a_site_remembers_with_is_not_made_anew_when_it_is_lost(made, lost):
    (made.site("ada") / "state" / lost).unlink()
    assert refused(made, Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": 3})) in {"state_not_whole", "data_not_readable"}
