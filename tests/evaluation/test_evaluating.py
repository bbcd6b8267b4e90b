"""Evidence: the whole of it, against what is known of the made predictions."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit
from sklearn import metrics

from clinical_ser.errors import EvidenceError, InvalidValueError
from clinical_ser.evaluation.comparisons import Comparator
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.intervals import delong, wilson
from tests.evaluation.made import several_classes, two_classes

FEW = EvaluationOptions(replicates=100)


@pytest.fixture(scope="module")
def binary():
    made = two_classes(400, prevalence=0.3, refused=12)
    return made, evaluate(made, options=FEW)


@pytest.fixture(scope="module")
def several():
    made = several_classes()
    return made, evaluate(made, options=FEW)


def test_figures_of_two_classes_agree_with_scikit_learn(binary):
    made, evidence = binary
    y, p, above = made.target, made.probabilities[:, 1], made.frame["above"]
    expected = {
        "auroc": metrics.roc_auc_score(y, p),
        "auprc": metrics.average_precision_score(y, p),
        "sensitivity": metrics.recall_score(y, above),
        "specificity": metrics.recall_score(1 - y, ~above),
        "brier": metrics.brier_score_loss(y, p),
        "prevalence": y.mean(),
        "observed_to_expected": y.mean() / p.mean(),
        "deferred": (made.frame["status"] == "indeterminate").mean(),
        "coverage.depressed": made.frame["covered"][y == 1].mean(),
        "flagged.not_depressed": (made.frame["status"] == "flagged")[y == 0].mean(),
        "not_usable": 12 / 412,
    }
    for name, value in expected.items():
        assert evidence.figures[name].value == pytest.approx(value, abs=1e-9), name


def test_predictive_values_are_bayes_at_each_stated_prevalence(binary):
    _, evidence = binary
    sens, spec = evidence.figures["sensitivity"].value, evidence.figures["specificity"].value
    for prevalence in (0.05, 0.10, 0.20):
        ppv = sens * prevalence / (sens * prevalence + (1 - spec) * (1 - prevalence))
        npv = spec * (1 - prevalence) / (spec * (1 - prevalence) + (1 - sens) * prevalence)
        assert evidence.figures[f"ppv.{prevalence:.2f}"].value == pytest.approx(ppv)
        assert evidence.figures[f"npv.{prevalence:.2f}"].value == pytest.approx(npv)


def test_the_parts_of_the_brier_score_add_up(binary):
    figures = {name: figure.value for name, figure in binary[1].figures.items()}
    whole = figures["brier_reliability"] - figures["brier_resolution"] + figures["brier_uncertainty"]
    assert whole == pytest.approx(figures["brier"], abs=1e-9)


def test_calibrated_predictions_are_found_calibrated(binary):
    figures = binary[1].figures
    assert figures["calibration_slope"].low < 1 < figures["calibration_slope"].high
    assert figures["calibration_intercept"].low < 0 < figures["calibration_intercept"].high
    assert figures["ece_debiased"].value < 0.08


def test_one_row_a_subject_gets_wilson_and_delong_several_the_bootstrap(binary):
    made, evidence = binary
    sensitivity = evidence.figures["sensitivity"]
    ill = int((made.target == 1).sum())
    assert (sensitivity.method, sensitivity.subjects) == ("Wilson", ill)
    assert (sensitivity.low, sensitivity.high) == pytest.approx(wilson(sensitivity.value, ill, level=0.95))
    assert (evidence.figures["auroc"].low, evidence.figures["auroc"].high) == pytest.approx(delong(made.target, made.log_odds, level=0.95))
    figures = evaluate(two_classes(60, rows_each=3), options=FEW).figures
    methods = {figure.method for name, figure in figures.items() if not name.startswith(("ppv", "npv"))}
    assert methods == {"cluster bootstrap"}


def test_one_visit_of_people_with_many_is_no_independent_row():
    """Eighty ill people had one ill visit and four others, twenty only an ill one: the eighty weigh a fifth, which Wilson does not know."""
    made = two_classes(100, rows_each=5, prevalence=0.5)
    frame = made.frame.assign(label=np.where(made.frame["row"] % 5 == 1, "depressed", "not_depressed"))
    alone = frame["subject"].isin(sorted(frame["subject"].unique())[:20])
    frame = frame[~alone | (frame["label"] == "depressed")].reset_index(drop=True)
    figure = evaluate(replace(made, frame=frame), options=replace(FEW, by=())).figures["sensitivity"]
    assert (figure.subjects, figure.recordings, figure.method) == (100, 100, "cluster bootstrap")


def test_a_predictive_value_is_as_uncertain_as_what_it_is_made_of():
    """Nobody flagged wrongly among 105: the PPV is 1, and may be as low as the least specificity makes it."""
    made = two_classes(150, prevalence=0.3, separation=3.0)
    above = made.log_odds > made.log_odds[made.target == 0].max()
    figures = evaluate(replace(made, frame=made.frame.assign(above=above)), options=replace(FEW, by=())).figures
    ppv, sensitivity, specificity = figures["ppv.0.05"], figures["sensitivity"], figures["specificity"]
    assert (ppv.value, ppv.high, specificity.value) == (1, 1, 1)
    by_bayes = 0.05 * sensitivity.value / (0.05 * sensitivity.value + 0.95 * (1 - specificity.low))
    assert 0.5 * by_bayes < ppv.low < by_bayes


@pytest.fixture(scope="module")
def uneven():
    """People with one to seven recordings, who are answered otherwise when ill than when well; a quarter were ill at some visits only."""
    made = two_classes(120, rows_each=7, prevalence=0.4, separation=1.2)
    rng = np.random.default_rng(3)
    keep = rng.uniform(size=len(made.frame)) < rng.uniform(0.2, 1.0, 120)[np.repeat(np.arange(120), 7)]
    frame = made.frame[keep].reset_index(drop=True)
    sometimes = frame["subject"].isin(sorted(frame["subject"].unique())[::4]) & (rng.uniform(size=len(frame)) < 0.5)
    frame["label"] = np.where(sometimes, "depressed", frame["label"])
    answer = np.where(frame["label"] == "depressed", rng.choice(["flagged", "not_flagged", "indeterminate"], len(frame), p=[0.5, 0.1, 0.4]), "")
    frame["status"] = np.where(answer == "", rng.choice(["flagged", "not_flagged", "indeterminate"], len(frame), p=[0.2, 0.7, 0.1]), answer)
    frame["status"] = frame["status"].astype(object)
    return replace(made, frame=frame), 1 / frame.groupby("subject")["subject"].transform("size").to_numpy(float)


def test_every_share_weighs_people_alike_when_recordings_are_uneven(uneven):
    made, weight = uneven
    figures = evaluate(made, options=replace(FEW, by=())).figures
    ill, status = made.target == 1, made.frame["status"].to_numpy()
    answered = status != "indeterminate"
    expected = {
        "prevalence": np.average(ill, weights=weight),
        "deferred": np.average(~answered, weights=weight),
        "sensitivity_when_answered": np.average((status == "flagged")[ill & answered], weights=weight[ill & answered]),
        "specificity_when_answered": np.average((status == "not_flagged")[~ill & answered], weights=weight[~ill & answered]),
        "accuracy_when_answered": np.average(np.where(ill, status == "flagged", status == "not_flagged")[answered], weights=weight[answered]),
        "auroc": metrics.roc_auc_score(ill, made.log_odds, sample_weight=weight),
        "auprc": metrics.average_precision_score(ill, made.log_odds, sample_weight=weight),
        "brier": metrics.brier_score_loss(ill, made.probabilities[:, 1], sample_weight=weight),
    }
    for name, value in expected.items():
        assert figures[name].value == pytest.approx(value, abs=1e-9), name


def test_comparisons_weigh_people_alike_and_take_the_other_models_answers(uneven):
    made, weight = uneven
    other = replace(made, frame=made.frame.assign(log_odds=-made.log_odds, above=~made.frame["above"]).sample(frac=1, random_state=1))
    found = {c.figure: c for c in evaluate(made, others={"o": other}, options=replace(FEW, by=())).comparisons if c.kind == "model"}
    ill, above = made.target == 1, made.frame["above"].to_numpy()
    assert found["sensitivity"].model.value == pytest.approx(np.average(above[ill], weights=weight[ill]))
    assert found["sensitivity"].other.value == pytest.approx(np.average(~above[ill], weights=weight[ill]))
    assert found["auroc"].other.value == pytest.approx(1 - found["auroc"].model.value)


def test_net_benefit_is_that_of_the_restated_probability_at_the_stated_prevalence(uneven):
    made, weight = uneven
    curves = evaluate(made, options=replace(FEW, by=())).binary
    ill = made.target == 1
    for decision in curves.decisions:
        p = made.probabilities[:, 1] if decision.own else made.stated_for(0.10).probabilities[:, 1]
        prevalence = np.average(ill, weights=weight) if decision.own else 0.10
        t = decision.model.x[19]
        caught, alarmed = (np.average(p[group] >= t, weights=weight[group]) for group in (ill, ~ill))
        benefit = prevalence * caught - (1 - prevalence) * alarmed * t / (1 - t)
        treat_all = prevalence - (1 - prevalence) * t / (1 - t)
        assert decision.model.y[19] == pytest.approx(benefit, abs=1e-5)
        assert decision.treat_all[19] == pytest.approx(treat_all, abs=1e-5)
        assert decision.over_default.y[19] == pytest.approx(benefit - max(treat_all, 0), abs=1e-5)


def test_bands_of_shares_stay_between_0_and_1(uneven):
    curves = evaluate(uneven[0], options=replace(FEW, by=())).binary
    for band in (curves.roc, curves.precision_recall, curves.reliability):
        assert all(0 <= bound <= 1 for bounds in (band.low, band.high) for bound in bounds if bound is not None)


def test_recordings_count_alike_in_tasks_of_several_classes():
    made = several_classes(20, 12)
    fewer = made.frame[(made.frame["subject"] > "s00009") | (made.frame["row"] % 12 < 3)].reset_index(drop=True)
    made = replace(made, frame=fewer)
    figures = evaluate(made, options=replace(FEW, by=())).figures
    assert figures["accuracy"].value == pytest.approx((made.probabilities.argmax(axis=1) == made.target).mean())


def test_a_subject_counts_once_however_often_they_spoke():
    made = two_classes(150, prevalence=0.4)
    times = np.where(made.target == 1, 6, 1)
    frame = made.frame.loc[made.frame.index.repeat(times)].reset_index(drop=True)
    spoken = replace(made, frame=frame, counts={"given": len(frame)})
    once, often = (evaluate(p, options=replace(FEW, by=())).figures for p in (made, spoken))
    for name in ("auroc", "auprc", "sensitivity", "brier", "calibration_slope", "prevalence", "deferred"):
        assert often[name].value == pytest.approx(once[name].value, abs=1e-9), name
    assert often["sensitivity"].recordings == 6 * once["sensitivity"].recordings


def test_figures_of_several_classes_agree_with_scikit_learn(several):
    made, evidence = several
    y, answer = made.target, made.probabilities.argmax(axis=1)
    answered = (made.frame["status"] == "classified").to_numpy()
    expected = {
        "uar": metrics.balanced_accuracy_score(y, answer),
        "accuracy": metrics.accuracy_score(y, answer),
        "f1_macro": metrics.f1_score(y, answer, average="macro"),
        "f1_weighted": metrics.f1_score(y, answer, average="weighted"),
        "accuracy_when_answered": (y == answer)[answered].mean(),
        "recall.sad": (answer == 2)[y == 2].mean(),
        "brier": ((made.probabilities - np.eye(3)[y]) ** 2).sum(axis=1).mean(),
    }
    for name, value in expected.items():
        assert evidence.figures[name].value == pytest.approx(value, abs=1e-9), name
    assert np.array(evidence.classes.confusion).tolist() == metrics.confusion_matrix(y, answer).tolist()


def test_the_brier_score_of_several_classes_may_pass_one():
    made = several_classes(separation=-4.0)
    figure = evaluate(made, options=replace(FEW, by=())).figures["brier"]
    assert figure.value > 1
    assert figure.low < figure.value < figure.high


def test_groups_have_the_figures_of_their_own_rows(binary):
    made, evidence = binary
    women = (made.frame["sex"] == "female").to_numpy()
    group = evidence.group("sex", "female")
    assert group.figures["auroc"].value == pytest.approx(metrics.roc_auc_score(made.target[women], made.log_odds[women]))
    assert (group.subjects, group.positives, group.refused) == (200, int(made.target[women].sum()), 12)


def test_a_group_with_too_few_has_no_figure(binary):
    few = [group for group in binary[1].groups if not group.enough]
    assert few
    assert all(group.positives is None and not group.figures for group in few)


def test_the_gap_is_between_the_best_and_the_worst_group():
    made = two_classes(600, prevalence=0.4, separation=2.0)
    men = made.frame["sex"] == "male"
    made.frame.loc[men, "log_odds"] = np.random.default_rng(0).permutation(made.frame.loc[men, "log_odds"])
    evidence = evaluate(made, options=replace(FEW, by=("sex",)))
    gap = next(gap for gap in evidence.gaps if gap.figure == "auroc")
    women, men = evidence.group("sex", "female").figures["auroc"], evidence.group("sex", "male").figures["auroc"]
    assert (gap.best, gap.worst) == ("female", "male")
    assert gap.difference.value == pytest.approx(women.value - men.value)
    assert gap.difference.low > 0.2
    brier = next(gap for gap in evidence.gaps if gap.figure == "brier")
    assert evidence.group("sex", brier.best).figures["brier"].value <= evidence.group("sex", brier.worst).figures["brier"].value


def test_two_models_are_compared_pair_by_pair():
    """Nearly the same model twice: each AUROC is uncertain, their difference is not."""
    made = two_classes(200, rows_each=2)
    noise = np.random.default_rng(1).normal(0, 0.05, len(made.frame))
    other = replace(made, frame=made.frame.assign(log_odds=made.log_odds + noise).sample(frac=1, random_state=0).reset_index(drop=True))
    evidence = evaluate(made, others={"other": other}, options=replace(FEW, by=()))
    found = {comparison.figure: comparison for comparison in evidence.comparisons if comparison.kind == "model"}
    assert set(found) == {"auroc", "sensitivity", "specificity"}
    auroc = found["auroc"]
    assert auroc.difference.value == pytest.approx(auroc.model.value - auroc.other.value)
    assert auroc.difference.high - auroc.difference.low < 0.25 * (auroc.model.high - auroc.model.low)


def test_a_questionnaire_is_compared_at_its_cut_off():
    made = two_classes(300, prevalence=0.4)
    rng = np.random.default_rng(2)
    made.frame["phq2"] = np.clip(np.round(rng.normal(2.0 + 2.0 * made.target)), 0, 6)
    made.frame.loc[:49, "phq2"] = np.nan
    evidence = evaluate(made, options=replace(FEW, by=(), comparators=(Comparator("phq2", 3),)))
    found = {comparison.figure: comparison for comparison in evidence.comparisons if comparison.kind == "comparator"}
    known = made.frame["phq2"].notna().to_numpy()
    ill = known & (made.target == 1)
    assert found["sensitivity"].other.value == pytest.approx((made.frame["phq2"] >= 3)[ill].mean())
    assert found["sensitivity"].model.value == pytest.approx(made.frame["above"][ill].mean())
    assert found["auroc"].recordings == 250
    with pytest.raises(InvalidValueError, match="a score"):
        evaluate(made, options=replace(FEW, comparators=(Comparator("gad2", 3),)))


def test_simulated_speech_is_compared_with_what_can_be_known():
    made = two_classes(300)
    made.frame["true_probability"] = np.clip(made.probabilities[:, 1] * 0.5 + 0.5 * made.target, 0, 1)
    evidence = evaluate(replace(made, simulated=True), options=replace(FEW, by=()))
    best = next(comparison for comparison in evidence.comparisons if comparison.kind == "best_reachable")
    assert best.difference.value < 0
    assert any("simulated" in warning for warning in evidence.warnings)


def test_models_of_other_tasks_or_recordings_are_not_compared():
    made, other = two_classes(40), two_classes(40)
    strangers = replace(other, frame=other.frame.assign(row=other.frame["row"] + 1000))
    with pytest.raises(InvalidValueError, match="same table"):
        evaluate(made, others={"x": strangers}, options=FEW)
    with pytest.raises(InvalidValueError, match="--against"):
        evaluate(made, others={"x": several_classes(10)}, options=FEW)
    turned = replace(other, frame=other.frame.assign(label=np.where(other.target == 1, "not_depressed", "depressed")))
    with pytest.raises(InvalidValueError, match="other labels"):
        evaluate(made, others={"x": turned}, options=FEW)


def test_curves_have_bands_around_them(binary):
    made, evidence = binary
    roc = evidence.binary.roc
    assert all(low <= y <= high for y, low, high in zip(roc.y, roc.low, roc.high, strict=True) if None not in {y, low, high})
    fpr, tpr, _ = metrics.roc_curve(made.target, made.log_odds, drop_intermediate=False)
    np.testing.assert_allclose(np.array(roc.y, float)[1:-1], np.interp(roc.x[1:-1], fpr, tpr), atol=0.03)
    assert sum(sum(counts) for counts in evidence.binary.scores.counts.values()) == 400
    assert [decision.own for decision in evidence.binary.decisions] == [True, False]
    assert evidence.binary.decisions[1].prevalence == 0.10


def test_the_same_predictions_give_the_same_bytes_on_one_worker_and_two():
    made = two_classes(80, rows_each=2)
    one, two = (evaluate(made, options=replace(FEW, workers=n)).model_dump_json() for n in (1, 2))
    assert one == two
    assert evaluate(made, options=replace(FEW, seed=1)).model_dump_json() != one


def test_evidence_goes_to_json_and_back_and_names_nobody(binary):
    _, evidence = binary
    text = evidence.model_dump_json()
    assert Evidence.from_json(text.encode()) == evidence
    assert "s00001" not in text
    with pytest.raises(EvidenceError, match="again"):
        Evidence.from_json(b"{}")


def test_predictions_for_another_prevalence_are_warned_about():
    made = two_classes(400, prevalence=0.3)
    assert not [w for w in evaluate(made, options=replace(FEW, by=())).warnings if "prevalence" in w]
    evidence = evaluate(made.stated_for(0.1), options=replace(FEW, by=()))
    assert any("prevalence of 10%" in warning for warning in evidence.warnings)
    assert evidence.figures["observed_to_expected"].value > 1.5


def test_one_class_alone_is_evaluated_as_far_as_it_goes():
    made = two_classes(80, prevalence=0.4)
    ill = replace(made, frame=made.frame[made.target == 1].reset_index(drop=True))
    figures = evaluate(ill, options=replace(FEW, by=())).figures
    assert figures["auroc"].value is None
    assert figures["specificity"].value is None
    assert figures["sensitivity"].value is not None


def test_extreme_log_odds_break_nothing():
    made = two_classes(60)
    sure = np.where(made.target == 1, logit(1 - 1e-12), logit(1e-12))
    evidence = evaluate(replace(made, frame=made.frame.assign(log_odds=sure)), options=replace(FEW, by=()))
    assert evidence.figures["auroc"].value == 1
    assert evidence.figures["calibration_slope"].value is None
