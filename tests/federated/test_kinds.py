"""Runs that begin with a model: what their plans say, what a site has to write down first, and what they may ask."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from clinical_ser.cohorts.table import read_table, write_table
from clinical_ser.errors import FederationError, SiteRefusalError
from clinical_ser.models.strict_json import canonical_json
from federated.asking import check_asks, frozen_digest
from federated.plan import KINDS, SINCE, Plan
from federated.policy import Policy
from federated.refusals import RefusedError
from federated.statistics import Ask
from tests.federated.sites import make_consortium
from tests.federated.test_plan import plan

FOLDS, FEATURES = 3, 6
PARENT, OTHER = "a" * 64, "b" * 64


def scales(value: float = 1.0) -> dict[str, np.ndarray]:
    return {"mean": np.zeros((FOLDS + 1, FEATURES)), "scale": np.full((FOLDS + 1, FEATURES), value)}


def update(**changes):
    return {"kind": "update", "parent": PARENT, "frozen": frozen_digest(scales()), "forgetting": 0.9, "statistics": KINDS["update"]} | changes


def newton(heads: int = 1, **changes: np.ndarray) -> Ask:
    given = {"beta": np.full((heads, FEATURES + 1), 0.1), "left_out": np.full(heads, -1.0), "draw": np.full(heads, -1.0)}
    return Ask("newton", scales() | given | changes)


def refused(made, *asks: Ask) -> str:
    with pytest.raises(SiteRefusalError) as error:
        made.sums().total("asked", list(asks))
    return error.value.reason


def test_a_plan_of_training_keeps_the_bytes_that_people_approved():
    raw = plan().to_bytes()
    assert not set(SINCE) & set(json.loads(raw))
    with pytest.raises(FederationError, match="one spelling"):
        Plan.from_bytes(canonical_json(json.loads(raw) | {"kind": "train"}))


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "train"])
def test_a_plan_of_another_kind_comes_back_from_its_bytes(kind):
    more = {
        "update": {"forgetting": 0.9, "frozen": OTHER},
        "recalibrate": {"step": "slope", "frozen": OTHER},
        "gate": {"challenger": OTHER, "change_plan": OTHER},
        "monitor": {},
    }[kind]
    made = plan(**({"kind": kind, "parent": PARENT, "statistics": KINDS[kind]} | more))
    assert Plan.from_bytes(made.to_bytes()) == made
    assert made.most_exchanges < plan().most_exchanges


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (update(parent=None), "parent is needed"),
        (update(frozen=None), "frozen is needed"),
        (update(forgetting=None), "forgetting is needed"),
        (update(forgetting=0.0), "forgetting"),
        (update(forgetting=1.1), "forgetting"),
        (update(step="slope"), "step has no place"),
        (update(head="boosted"), "linear head"),
        (update(statistics=(*KINDS["update"], "moments")), "statistics of kind update"),
        (update(kind="retrain"), "kind"),
        ({"parent": PARENT}, "parent has no place"),
        ({"forgetting": 0.9}, "forgetting has no place"),
        ({"kind": "gate", "parent": PARENT, "challenger": PARENT, "change_plan": OTHER, "statistics": KINDS["gate"]}, "two models"),
        ({"kind": "gate", "parent": PARENT, "statistics": KINDS["gate"]}, "challenger is needed"),
        ({"kind": "monitor", "parent": PARENT, "frozen": OTHER, "statistics": KINDS["monitor"]}, "frozen has no place"),
    ],
)
def test_a_plan_that_does_not_fit_its_kind_cannot_be_made(changes, says):
    with pytest.raises(ValidationError, match=says):
        plan(**changes)


def test_a_kind_that_the_site_did_not_write_down_is_refused(tmp_path):
    made = make_consortium(tmp_path, **update())
    assert refused(made, newton()) == "kind_not_allowed"
    for name in made.names:
        made.set_policy(name, kinds=["train", "update"])
    assert set(made.sums().total("asked", [newton()])[0]) == {"gradient", "hessian", "loss", "held_out"}


def test_training_is_refused_where_only_updates_are_allowed(tmp_path):
    made = make_consortium(tmp_path)
    made.set_policy("ada", kinds=["update"])
    assert made.node("ada").rehearse(made.plan) == "kind_not_allowed"


def test_a_gate_has_a_holdout_of_its_own_or_is_refused(tmp_path):
    made = make_consortium(tmp_path, kind="gate", parent=PARENT, challenger=OTHER, change_plan=OTHER, statistics=KINDS["gate"])
    made.set_policy("ada", kinds=["gate"])
    assert made.node("ada").rehearse(made.plan) == "kind_not_allowed"


def of_trees(prefix: str = "trees.") -> dict[str, np.ndarray]:
    """Two trees whose last leaf holds whoever is above 0 in six features: a question about the few people in a corner."""
    feature = np.full((FOLDS, 2, 7), -1.0)
    for tree in (0, 1):
        feature[:, tree, [0, 2, 6]] = 3 * tree + np.arange(3)
    value = np.zeros((FOLDS, 2, 8))
    value[:, :, -1] = 40.0
    arrays = {"left_out": np.arange(FOLDS) + 0.0, "draw": np.full(FOLDS, -1.0), "start": np.full(FOLDS, -80.0)}
    return {prefix + name: values for name, values in (arrays | {"feature": feature, "edge": np.zeros_like(feature), "value": value}).items()}


BETA = np.full(FEATURES + 1, 0.1)
MAP = {"theta": np.array([[1.0, 0.0]]), "system": np.zeros(1), "left_out": np.full(1, -1.0), "draw": np.full(1, -1.0)}
IN_CELLS = {"theta": np.tile([1.0, 0.0], (FOLDS, 1))}
JUDGED = IN_CELLS | {"threshold": np.zeros(FOLDS), "limits": np.ones((FOLDS, 2))}


@pytest.mark.parametrize("kind", ["train", "update", "recalibrate"])
def test_another_head_than_the_plans_answers_nothing_in_whatever_arrays_it_comes(kind):
    """Trees in place of coefficients passed everything that looks at coefficients, and found one person in a corner."""
    given = scales() | ({"head": BETA} if kind == "recalibrate" else {})
    changes = {"train": {}, "update": update(frozen=frozen_digest(scales()))}.get(
        kind, {"kind": "recalibrate", "parent": PARENT, "frozen": frozen_digest(given), "statistics": KINDS["recalibrate"]}
    )
    asked = plan(folds=FOLDS, refits=3, **changes)
    heads = {"beta": np.tile(BETA, (FOLDS, 1))}
    for statistic, more, options in (("calibration", MAP, {}), ("scores", IN_CELLS, {}), ("evaluation", JUDGED, {"groups": "{}"})):
        check_asks(asked, [Ask(statistic, given | more | heads, options)])
        for other in (of_trees(), heads | of_trees(), {}, heads | {"own": BETA}):
            with pytest.raises(RefusedError, match="asks_beyond_the_plan"):
                check_asks(asked, [Ask(statistic, given | more | other, options)])
    if kind == "recalibrate":
        without = {name: values for name, values in given.items() if name != "head"}
        with pytest.raises(RefusedError, match="asks_beyond_the_plan"):
            check_asks(asked, [Ask("scores", without | IN_CELLS | heads)])


@pytest.mark.parametrize(
    "ask",
    [
        newton(scale=np.full((FOLDS + 1, FEATURES), 0.9)),
        newton(median=np.ones((FOLDS + 1, FEATURES))),
        newton(heads=50),
        Ask("newton", {name: values for name, values in newton().arrays.items() if name != "mean"}),
    ],
    ids=["other scales", "another median", "more heads than one strength has", "no scales"],
)
def test_an_update_asks_on_the_scales_of_its_plan_and_of_one_strength(tmp_path, ask):
    made = make_consortium(tmp_path, **update())
    for name in made.names:
        made.set_policy(name, kinds=["update"])
    assert refused(made, ask) == "asks_beyond_the_plan"


def test_no_training_says_where_what_is_missing_lies(tmp_path):
    made = make_consortium(tmp_path)
    assert refused(made, newton(median=np.ones((FOLDS + 1, FEATURES)))) == "asks_beyond_the_plan"


def test_people_of_an_update_are_those_of_its_own_table(tmp_path):
    made = make_consortium(tmp_path, **update())
    made.set_policy("ada", kinds=["update"])
    path = made.site("ada") / "node.toml"
    path.write_text(path.read_text().replace('update = "features.parquet"', 'update = "new.parquet"'))
    assert Policy.read(path).table_of("update") == "new.parquet"
    assert Policy.read(path).table_of("monitor") == "features.parquet"
    assert made.node("ada").rehearse(made.plan) == "data_not_readable", "the new people's table is not there yet"
    path.write_text(path.read_text().replace('update = "new.parquet"', ""))
    assert made.node("ada").rehearse(made.plan) == "kind_not_allowed", "the table that was trained on is no table of new people"
    assert Policy.read(path).table_of("recalibrate") is None


def test_people_who_taught_a_model_are_not_new_whatever_else_the_table_says_of_them(tmp_path):
    made = make_consortium(tmp_path)
    made.sums().total("asked", [newton()])
    path = made.site("ada") / "features.parquet"
    table = read_table(path)
    again = Plan.model_validate(made.plan.model_dump() | update(run="second"))
    rows = np.flatnonzero(table.subjects == table.subjects[0])
    others = table.frame.assign(subject="new " + table.frame["subject"].astype(str), device="handset")
    for known, reason in ((rows, "people_known_already"), ([], None)):
        some = others.assign(subject=[table.subjects[i] if i in known else name for i, name in enumerate(others["subject"])])
        write_table(replace(table, frame=some), made.site("ada") / "new.parquet")
        made.set_policy("ada", plan=again, kinds=["update"], table="new.parquet")
        assert made.node("ada").rehearse(again) == reason


def test_an_update_that_failed_is_led_anew_about_the_same_people_and_none_after_it(tmp_path):
    made = make_consortium(tmp_path, **update())
    for name in made.names:
        made.set_policy(name, kinds=["update"])
    made.sums().total("asked", [newton()])
    anew = Plan.model_validate(made.plan.model_dump() | {"run": "anew"})
    later = Plan.model_validate(made.plan.model_dump() | {"run": "later", "parent": OTHER})
    made.set_policy("ada", plans=[anew.digest, later.digest], kinds=["update"])
    assert made.node("ada").rehearse(anew) is None
    assert made.node("ada").rehearse(later) == "people_known_already"


def test_an_update_is_a_run_on_the_same_data_for_the_rule_of_sets(tmp_path):
    """Sums of a training and of an update over other sites can be subtracted like those of two trainings."""
    made = make_consortium(tmp_path, names=("ada", "bell", "curie", "dora"))
    for name in made.names:
        made.set_policy(name, kinds=["train", "update"])
    made.sums().total("asked", [newton()])
    fewer = Plan.model_validate(made.plan.model_dump() | update(sites=made.plan.sites[:3], run="second"))
    made.set_policy("ada", plan=fewer, kinds=["train", "update"])
    assert made.node("ada").rehearse(fewer) == "other_sites_than_before"


@pytest.mark.parametrize(
    "extra",
    ['[tables]\nretrain = "t.parquet"\n', "[tables]\nupdate = 3\n", '[models]\n"no digest" = "folder"\n', f'[models]\n"{PARENT}" = ["a"]\n'],
    ids=["no such kind", "no path", "no digest", "two folders"],
)
def test_a_policy_that_misspells_what_is_allowed_allows_nothing(tmp_path, extra):
    made = make_consortium(tmp_path)
    made.set_policy("ada", extra=extra)
    assert made.node("ada").rehearse(made.plan) == "policy_not_readable"
    made.set_policy("ada", kinds=["everything"])
    assert made.node("ada").rehearse(made.plan) == "policy_not_readable"
