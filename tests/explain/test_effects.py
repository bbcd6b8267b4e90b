"""Effects of families and features: they add up through the calibration, agree with brute force and with shap, and say how stable they are."""

from itertools import permutations

import numpy as np
import pytest
import shap
import xgboost
from scipy.special import expit, softmax

from clinical_ser.explain.effects import Explainer, half_widths
from clinical_ser.explain.shapley import centred
from tests.explain.made import model_of, three_classes
from tests.tables import table_of

HEADS = ("linear", "xgboost")


@pytest.fixture(scope="module", params=HEADS)
def explainer(request):
    return Explainer(model_of(table_of(160), head=request.param))


@pytest.fixture(scope="module", params=HEADS)
def of_classes(request):
    return Explainer(model_of(three_classes(), head=request.param, refits=4, emotion=True))


@pytest.mark.parametrize("group", [None, 0])
@pytest.mark.parametrize("prevalence", [None, 0.02])
def test_two_classes_add_up_to_the_answer_in_the_model_and_every_refit(explainer, group, prevalence):
    model = explainer.model
    for x in table_of(6, seed=3).features:
        effects = explainer.effects(x, target="depressed", group=group, prevalence=prevalence)
        answer = model.answer(x, prevalence=prevalence)
        assert effects.stated_probability == pytest.approx(answer.probabilities[1], abs=1e-6)
        assert effects.stated_log_odds == pytest.approx(float(answer.log_odds), abs=1e-6)
        totals = effects.base_log_odds + effects.log_odds.sum(axis=1)
        assert effects.base_probability + effects.probability.sum(axis=1) == pytest.approx(expit(totals), abs=1e-9)
        assert effects.features.sum(axis=1) == pytest.approx(effects.log_odds.sum(axis=1), abs=2e-5)


def test_several_classes_add_up_for_every_class(of_classes):
    model = of_classes.model
    for x in three_classes().features[:4]:
        answer = model.answer(x)
        for k, target in enumerate(model.task.classes):
            effects = of_classes.effects(x, target=target, group=0)
            assert effects.stated_probability == pytest.approx(answer.probabilities[k], abs=1e-6)
            assert effects.stated_log_odds == pytest.approx(answer.log_odds[k] - answer.log_odds.mean(), abs=1e-6)
            assert effects.features.sum(axis=1) == pytest.approx(effects.log_odds.sum(axis=1), abs=2e-5)


def test_features_of_a_family_add_up_to_it_in_every_version(explainer, of_classes):
    for one, x, target in ((explainer, table_of(1, seed=3).features[0], "depressed"), (of_classes, three_classes().features[0], "sad")):
        effects = one.effects(x, target=target, group=0)
        columns = one.model.family_columns
        for i in range(len(effects.families)):
            assert effects.features[:, columns == i].sum(axis=1) == pytest.approx(effects.log_odds[:, i], abs=2e-5)


def test_families_are_what_all_orders_of_them_give(explainer):
    """Brute force on the probability, through head, calibrator and prevalence, with the group's own draws as background."""
    model, x = explainer.model, table_of(1, seed=4).features[0]
    effects = explainer.effects(x, target="depressed", group=0, prevalence=0.2)
    margins = model.head.family_margins(model.preprocessor.transform(x[None]))[0]
    group = model.background(0).draw()[0, :, :, 0]

    def probability(here):
        mixed = np.where(np.isin(np.arange(len(margins)), list(here)), margins, group)
        log_odds = model.calibrator.apply(float(model.head.intercept_) + mixed.sum(axis=1))
        return expit(log_odds + model.prevalence_shift(0.2)).mean()

    found = np.zeros(len(margins))
    orders = list(permutations(range(len(margins))))
    for order in orders:
        values = [probability(order[:n]) for n in range(len(order) + 1)]
        found[list(order)] += np.diff(values)
    assert effects.probability[0] == pytest.approx(found / len(orders), abs=1e-9)


def test_linear_features_are_those_of_shap():
    """LinearExplainer against the group's mean recording gives coefficient times distance; calibrated, times the calibrator's scale."""
    explainer = Explainer(model_of(table_of(160)))
    model, X = explainer.model, table_of(5, seed=3).features
    z_mean = np.array(model.background(0).z_mean)
    theirs = shap.LinearExplainer((model.head.coef_, float(model.head.intercept_)), shap.maskers.Independent(z_mean[None])).shap_values(
        model.preprocessor.transform(X)
    )
    for x, values in zip(X, theirs, strict=True):
        ours = explainer.effects(x, target="depressed", group=0).features[0]
        # The group is heard out of fold, shap's single mean is not; apart from the zero that moves they are the same.
        moved = ours - explainer.effects(X[0], target="depressed", group=0).features[0]
        assert moved == pytest.approx(model.calibrator.scale_ * (values - theirs[0]), abs=1e-9)


def test_trees_features_are_those_of_shap_and_of_xgboost():
    explainer = Explainer(model_of(table_of(160), head="xgboost"))
    model, X = explainer.model, table_of(5, seed=3).features
    Z = np.round(model.preprocessor.transform(X) / 0.01) * 0.01
    booster = model.head.booster_
    theirs = shap.TreeExplainer(booster).shap_values(Z)
    rounds = (0, booster.num_boosted_rounds())
    native = booster.predict(xgboost.DMatrix(Z), pred_contribs=True, iteration_range=rounds)[:, :-1]
    assert theirs == pytest.approx(native, abs=1e-5)
    ours = np.array([explainer.effects(x, target="depressed", group=0).features[0] for x in X])
    assert ours - ours[0] == pytest.approx(model.calibrator.scale_ * (theirs - theirs[0]), abs=1e-4)


def test_every_tree_counts_none_is_cut_off_by_early_stopping():
    """`pred_contribs` ignores the best iteration of a model stopped early; ours is grown again to the chosen number of rounds."""
    head = Explainer(model_of(table_of(160), head="xgboost")).model.head
    assert head.booster_.num_boosted_rounds() == head.rounds_
    assert head.booster_.attr("best_iteration") is None


def test_models_of_shuffled_labels_have_no_stable_effects():
    """Refits disagree about what was never there: intervals leave zero about as often as chance has it, and nothing is called a main driver.

    One model's recordings share its chance, so the mean over several cohorts counts.
    """
    stable, named = [], []
    for seed in range(12):
        table = table_of(150, effect=3.0, seed=100 + seed)
        shuffled = table.frame.assign(label=np.random.default_rng(seed).permutation(table.frame["label"].to_numpy()))
        explainer = Explainer(model_of(type(table)(shuffled, table.feature_names, table.extractors), refits=40, split=5))
        effects = [explainer.effects(x, target="depressed", group=0) for x in table_of(10, seed=12).features]
        stable.append(np.mean([one.stable for one in effects]))
        named.append(np.mean([one.main_driver is not None for one in effects]))
    assert np.mean(stable) <= 0.10
    assert np.mean(named) <= 0.05


def test_a_true_effect_is_stable_and_agreed_on():
    table = table_of(600, effect=3.0)
    explainer = Explainer(model_of(table, refits=20))
    place = explainer.model.head.families_.index("timing")
    x = table.features[int(table.frame["timing.pause_mean_s"].to_numpy().argmax())].copy()
    x[table.feature_names.index("praat.f0_median_hz")] = 0.0
    effects = explainer.effects(x, target="depressed", group=0)
    assert np.abs(effects.probability[0]).argmax() == place
    assert effects.probability[0, place] > half_widths(effects.probability)[place]
    assert effects.rank_agreement[place] >= 0.8


@pytest.mark.parametrize(("refits", "quantile"), [(2, 12.706), (3, 4.303), (40, 2.0227)])
def test_an_interval_is_as_wide_as_student_has_it_for_so_few_refits(refits, quantile):
    versions = np.random.default_rng(0).normal(size=(1 + refits, 3))
    assert half_widths(versions) == pytest.approx(quantile * versions[1:].std(axis=0, ddof=1), rel=1e-4)


def test_more_people_make_explanations_surer():
    """How wide an interval is beside the effect of what truly matters; a model from few people shrinks both."""
    x = table_of(5, seed=3).features[0].copy()
    x[table_of(1).feature_names.index("timing.pause_mean_s")] = 3.0
    relative = []
    for n in (100, 1500):
        effects = Explainer(model_of(table_of(n, effect=3.0), refits=12)).effects(x, target="depressed", group=0)
        place = effects.families.index("timing")
        relative.append(half_widths(effects.log_odds)[place] / abs(effects.log_odds[0, place]))
    assert relative[0] > 1.5 * relative[1]


def test_the_reference_moves_the_base_and_not_the_answer():
    explainer = Explainer(model_of(table_of(200)))
    x = table_of(1, seed=3).features[0]
    everyone, average = (explainer.effects(x, target="depressed", group=group) for group in (0, None))
    assert everyone.stated_probability == pytest.approx(average.stated_probability, abs=1e-9)
    assert everyone.base_log_odds[0] < average.base_log_odds[0]  # the healthy, against all of training


def test_families_by_rank_leave_and_make_the_answer_faster_than_at_random(explainer):
    """Deletion: families give way to the group's mean one by one; insertion: they are put into it. The largest effects first do both sooner."""
    rng = np.random.default_rng(0)
    moved = {("deleted", "ranked"): [], ("deleted", "random"): [], ("missing", "ranked"): [], ("missing", "random"): []}
    for x in table_of(60, seed=21).features:
        effects = explainer.effects(x, target="depressed", group=0)
        for how, order in (("ranked", np.argsort(-np.abs(effects.probability[0]))), ("random", rng.permutation(len(effects.families)))):
            put = np.cumsum(effects.log_odds[0, order])
            moved["deleted", how].append(np.abs(expit(effects.stated_log_odds - put) - effects.stated_probability).mean())
            moved["missing", how].append(np.abs(expit(effects.base_log_odds[0] + put) - effects.stated_probability).mean())
    assert np.mean(moved["deleted", "ranked"]) > 1.1 * np.mean(moved["deleted", "random"])
    assert np.mean(moved["missing", "ranked"]) < 0.9 * np.mean(moved["missing", "random"])


def test_families_rank_as_the_effects_that_made_the_labels(explainer):
    """The pause moves the risk three times as much as the pitch, and nothing else does."""
    table = table_of(800, effect=0.0, seed=31)
    risk = 3 * table.frame["timing.pause_mean_s"] - table.frame["praat.f0_median_hz"]
    ill = np.random.default_rng(0).uniform(size=800) < expit(risk)
    frame = table.frame.assign(label=np.where(ill, "depressed", "not_depressed"))
    found = Explainer(model_of(type(table)(frame, table.feature_names, table.extractors), head=explainer.model.head.kind))
    sizes = np.mean([np.abs(found.effects(x, target="depressed", group=0).probability[0]) for x in table_of(100, seed=32).features], axis=0)
    ranked = [found.model.head.families_[i] for i in np.argsort(-sizes)]
    assert ranked[:2] == ["timing", "pitch"]


def test_a_family_can_be_said_where_it_stands_in_the_group():
    explainer = Explainer(model_of(table_of(300)))
    effects = [explainer.effects(x, target="depressed", group=0) for x in table_of(300, seed=8).features]
    standing = np.array([explainer.percentiles(one, 0) for one in effects])
    well = (table_of(300, seed=8).frame["label"] == "not_depressed").to_numpy()
    below_the_middle = (standing[well] < 50).mean(axis=0)
    assert ((below_the_middle > 0.35) & (below_the_middle < 0.65)).all()
    assert explainer.percentiles(effects[0], None) is None


def test_margins_of_several_classes_are_kept_for_what_if(of_classes):
    x = three_classes().features[0]
    effects = of_classes.effects(x, target="sad", group=0)
    assert centred(effects.margins, of_classes.model.task.classes.index("sad")) == pytest.approx(effects.log_odds[0])
    logits = of_classes.model.log_odds(x[None])[0]
    assert softmax(logits).sum() == pytest.approx(1)
