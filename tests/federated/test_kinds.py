"""Runs that begin with a model: what their plans say, what a site has to write down first, and what they may ask."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from clinical_ser.errors import FederationError, SiteRefusalError
from clinical_ser.models.strict_json import canonical_json
from federated.asking import frozen_digest
from federated.plan import KINDS, SINCE, Plan
from federated.policy import Policy
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
    path.write_text(path.read_text().replace("[approved]", '[tables]\nupdate = "new.parquet"\n[approved]'))
    assert Policy.read(path).table_of("update") == "new.parquet"
    assert Policy.read(path).table_of("monitor") == "features.parquet"
    assert made.node("ada").rehearse(made.plan) == "data_not_readable", "the new people's table is not there yet"


def test_an_update_is_a_run_on_the_same_data_for_the_rule_of_sets(tmp_path):
    """Sums of a training and of an update over other sites can be subtracted like those of two trainings."""
    made = make_consortium(tmp_path, names=("ada", "bell", "curie", "dora"))
    for name in made.names:
        made.set_policy(name, kinds=["train", "update"])
    made.sums().total("asked", [newton()])
    fewer = Plan.model_validate(made.plan.model_dump() | update(sites=made.plan.sites[:3], run="second"))
    made.set_policy("ada", plan=made.plan, plans=[fewer.digest], kinds=["train", "update"])
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
