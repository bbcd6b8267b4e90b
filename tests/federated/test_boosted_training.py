"""A boosted model trained across sites is the one of one place, and a bundle like any other."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit, logit

from clinical_ser.errors import InvalidValueError, SiteRefusalError, TrainingError
from clinical_ser.evaluation.card import Card
from clinical_ser.explain.effects import Explainer
from clinical_ser.explain.explaining import explain
from clinical_ser.models.binned import BINS
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.calibration import MarginPlatt
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.signing import SigningKey, TrustStore
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.weights import subject_weights
from federated.at_site import standardised
from federated.boosting import BoostingSettings
from federated.plan import BOOSTED, LINEAR
from federated.protocols.margins import out_of_fold
from federated.protocols.reference import Reference
from federated.publishing import publish
from federated.statistics import Ask, PooledSums, SiteRows, contribution
from federated.training import Settings, Trained, commitment, train_across
from tests.federated.cohorts import FOLDS, cohort_rows, split
from tests.federated.cohorts import settings as linear
from tests.federated.sites import make_consortium
from tests.federated.test_secure_sums import pooled_of
from tests.federated.test_stacked_training import vector_of

COLUMNS = 24


def settings(rows: SiteRows, **changes: object) -> Settings:
    given = {"head": "boosted", "features": rows.names, "boosting": BoostingSettings(depth=2, rounds=6, patience=2), "refits": 4}
    return linear(**(given | changes))


@pytest.fixture(scope="module")
def rows() -> SiteRows:
    whole = cohort_rows(300, effect=0.6)
    return dataclasses.replace(whole, X=whole.X[:, :COLUMNS].copy(), names=whole.names[:COLUMNS])


class Watched(PooledSums):
    """Totals, and what was asked for."""

    def __init__(self, tables: dict[str, SiteRows]):
        super().__init__(tables)
        self.asked: list[Ask] = []

    def total(self, step, asks):
        self.asked += asks
        return super().total(step, asks)


@pytest.fixture(scope="module")
def one(rows) -> Watched:
    return Watched({"all": rows})


@pytest.fixture(scope="module")
def trained(rows, one) -> Trained:
    return train_across(one, settings(rows))


@pytest.fixture(scope="module")
def many(rows, trained) -> Trained:
    """By three sites whose bootstrap samples are, of necessity, others."""
    return train_across(PooledSums(split(rows, 3)), settings(rows))


def test_three_sites_give_the_bundle_that_one_table_gives(rows, trained, many, tmp_path):
    read = []
    for name, found in (("one", trained), ("many", many)):
        key = SigningKey.generate()
        publish(found, tmp_path / name, name=name, version="1", sites=3, cohort_digest=commitment(["a" * 64]), key=key, replicates=60)
        bundle = read_bundle(tmp_path / name, require_trusted=True, trusted=TrustStore(frozenset({key.public})))
        assert bundle.manifest.head == "xgboost"
        assert Card.from_json(bundle.files["card.json"]).head == "xgboost"
        read.append(TrainedModel.from_bundle(bundle))
    ours, theirs = read
    np.testing.assert_allclose(ours.log_odds(rows.X), theirs.log_odds(rows.X), atol=1e-6)
    np.testing.assert_allclose(ours.log_odds(rows.X), trained.model.log_odds(rows.X), atol=1e-9)
    assert ours.conformal.thresholds_ == theirs.conformal.thresholds_
    assert ours.operating_point.threshold == theirs.operating_point.threshold
    np.testing.assert_allclose(trained.everybody, many.everybody)
    for group, other in zip(ours.backgrounds.groups, theirs.backgrounds.groups, strict=True):
        np.testing.assert_allclose(group.mean, other.mean, atol=1e-5)
        np.testing.assert_allclose(group.features, other.features, atol=1e-5)


def test_the_bundle_answers_with_an_interval_and_terms_that_add_up(rows, trained):
    model = trained.model
    answers = [model.answer(x) for x in rows.X[:20]]
    assert all(answer.low[1] < answer.probabilities[1] < answer.high[1] for answer in answers)
    assert {type(head) for head in (model.head, *(refit.head for refit in model.refits))} == {BoostedHead}
    terms = model.terms(rows.X[:20])
    np.testing.assert_allclose(terms.constant[0] + terms.families[0].sum(axis=1), model.log_odds(rows.X[:20])[:, None], atol=1e-9)
    explained = explain(Explainer(model), vector_of(rows.X[0], model), target=model.task.classes[1])
    assert explained.reference.subjects == model.reference.groups[0].subjects
    told = sum(family.log_odds.value for family in explained.families)
    assert explained.log_odds - explained.base_log_odds == pytest.approx(told, abs=1e-3)
    assert trained.standard_errors.size == 0
    ranked = np.argsort(model.log_odds(rows.X))
    assert rows.target[ranked[-100:]].mean() > rows.target[ranked[:100]].mean() + 0.3


@pytest.fixture(scope="module")
def margins(rows, trained) -> np.ndarray:
    return out_of_fold(rows, Ask("any", trained.judged))[0]


def test_the_calibrator_is_the_one_of_margins_out_of_fold(rows, trained, margins):
    pooled = MarginPlatt().fit(margins, rows.target, groups=rows.subjects)
    found = trained.model.calibrator
    assert (found.scale_, found.offset_) == pytest.approx((pooled.scale_, pooled.offset_), abs=1e-6)
    assert trained.at_rest < 1e-6


def test_thresholds_are_on_the_grid_and_those_of_people_never_heard(rows, trained, margins):
    log_odds = np.zeros(len(rows))
    for fold in range(FOLDS):
        others, here = rows.fold != fold, rows.fold == fold
        log_odds[here] = MarginPlatt().fit(margins[others], rows.target[others], groups=rows.subjects[others]).apply(margins[here])
    p = expit(log_odds)
    pooled = ConformalSets(0.90).fit(np.column_stack([1 - p, p]), rows.target, groups=rows.subjects)
    for ours, exact in zip(trained.model.conformal.thresholds_, pooled.thresholds_, strict=True):
        assert 0 <= ours - exact <= 1 / BINS + 1e-9
        assert ours * BINS == pytest.approx(round(ours * BINS))
    at = expit(trained.model.operating_point.threshold) * BINS
    assert at == pytest.approx(round(at))
    assert trained.model.operating_point.threshold == pytest.approx(logit(round(at) / BINS))


def test_the_reference_is_what_the_heads_of_the_bundle_say_of_it(rows, one, trained):
    """The sums that sites send, against the heads as a service reads them."""
    ask = next(ask for ask in one.asked if ask.statistic == Reference.name)
    totals = contribution(rows, ask)
    here = np.flatnonzero(rows.target == 0)
    weight = subject_weights(rows.subjects[here], len(here))
    model = trained.model
    Z = model.preprocessor.transform(rows.X[here])
    own = model.head.family_margins(Z)
    np.testing.assert_allclose(totals["own"], np.concatenate([weight @ own, weight @ own**2]), atol=1e-4)
    again = model.refits[1].head.family_margins(Z)
    drawn = totals["refits"][1][0]
    assert drawn > 0
    assert np.abs(totals["refits"][1][1 : 1 + again.shape[1]]).max() < drawn * np.abs(again).max()
    # Features of a family add up to it, out of fold too.
    families, places = list(dict.fromkeys(settings(rows).families)), np.array(settings(rows).families)
    first = totals["features"][:COLUMNS]
    np.testing.assert_allclose([first[places == family].sum() for family in families], totals["families"][: len(families)], atol=1e-2)
    published = model.backgrounds.groups[0]
    np.testing.assert_allclose(np.ravel(published.mean), totals["families"][: len(families)] / weight.sum(), atol=0.05)


def test_the_zero_of_trees_is_the_mean_of_all_they_heard(rows, trained):
    margins = trained.model.head.family_margins(trained.model.preprocessor.transform(rows.X))
    np.testing.assert_allclose(margins.mean(axis=0), 0, atol=1e-6)


def test_a_plan_for_boosted_trees_names_every_statistic_that_is_asked_for(one, trained):
    assert {ask.statistic for ask in one.asked} == set(BOOSTED)
    assert trained.exchanges == len(one.exchanges)
    trees = [step for step in one.exchanges if step.startswith("trees")]
    assert 3 + 2 * 2 <= len(trees) <= 3 + 2 * 6
    assert len(one.exchanges) - len(trees) <= 12


def test_fold_figures_are_of_trees_that_never_heard_the_fold(rows, trained, margins):
    turned = dataclasses.replace(rows, X=np.where(rows.fold[:, None] == 1, rows.X, 0.0))
    here = rows.fold == 1
    again = out_of_fold(turned, Ask("any", trained.judged))[0]
    np.testing.assert_array_equal(again[here], margins[here])
    Z = standardised(rows.X[here], trained.judged["mean"][1], trained.judged["scale"][1])
    everybody_s = trained.model.head.margins(Z)
    assert np.abs(everybody_s - margins[here]).max() > 1e-3


def test_a_head_of_another_name_is_refused(rows):
    with pytest.raises(InvalidValueError, match="head"):
        settings(rows, head="forest")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trees.centre", lambda values: values[:, :-1]),
        ("trees.cover", lambda values: values[:, :-1]),
        ("trees.feature", lambda values: np.roll(values, 1, axis=1)),
        ("trees.draw", lambda values: values[::-1]),
    ],
)
def test_a_site_describes_no_group_by_trees_that_do_not_fit(rows, one, trained, name, change):
    ask = next(ask for ask in one.asked if ask.statistic == Reference.name)
    with pytest.raises(InvalidValueError, match="trees"):
        contribution(rows, Ask(ask.statistic, {**ask.arrays, name: change(ask.arrays[name])}, ask.options))


def test_a_calibration_that_is_not_at_rest_when_it_is_scored_is_not_published(rows):
    class Altered(PooledSums):
        def total(self, step, asks):
            found = super().total(step, asks)
            if step == "scores":
                found[0]["sums"][:, 1] += 5.0
            return found

    with pytest.raises(TrainingError, match="at rest"):
        train_across(Altered({"all": rows}), settings(rows))


def test_nodes_grow_the_model_of_one_table(tmp_path):
    growing = BoostingSettings(depth=2, rounds=2)
    made = make_consortium(tmp_path, head="boosted", statistics=BOOSTED, boosting=growing)
    given = made.plan.settings
    assert (given.head, given.boosting) == ("boosted", growing)
    across, pooled = (train_across(sums, given) for sums in (made.sums(), pooled_of(made)))
    X = np.random.default_rng(0).normal(size=(50, len(given.features)))
    np.testing.assert_allclose(across.model.log_odds(X), pooled.model.log_odds(X), atol=1e-6)
    assert across.model.operating_point.threshold == pooled.model.operating_point.threshold
    assert np.ptp(across.model.log_odds(X)) > 0.1


def test_nodes_that_allow_a_linear_model_alone_grow_no_tree(tmp_path):
    made = make_consortium(tmp_path, head="boosted", statistics=BOOSTED)
    made.set_policy("bell", statistics=list(LINEAR))
    with pytest.raises(SiteRefusalError, match="bell"):
        train_across(made.sums(), made.plan.settings)
