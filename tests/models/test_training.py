"""Training end to end on tables whose truth is known."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax

from clinical_ser.cohorts.gating import judge_table
from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.errors import BundleSchemaError, InvalidValueError, ManifestError, SplitError, SubjectLeakError, TrainingError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.discrimination import auroc
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.predictions import of_training
from clinical_ser.evaluation.release import card_of
from clinical_ser.explain.effects import Explainer
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.calibration import MarginPlatt
from clinical_ser.models.reference import Person
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey, TrustStore
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import Rows, TrainingOptions, _calibrate, rows_of_draws, train
from tests.tables import GOOD, table_of

FAST = TrainingOptions(refits=4)


def figures(training, replicates=20):
    return evaluate(of_training(training, name="m", version="1"), options=EvaluationOptions(by=(), replicates=replicates)).figures


@pytest.fixture(scope="module")
def training():
    return train(table_of(1000), DEPRESSION, TrainingOptions(refits=20))


def test_a_model_orders_unseen_subjects_nearly_as_well_as_the_truth(training):
    unseen = table_of(400, seed=1)
    y = (unseen.frame["label"] == "depressed").to_numpy(int)
    reached = auroc(y, training.model.log_odds(unseen.features))
    assert reached > auroc(y, unseen.frame["truth"].to_numpy()) - 0.06


def test_stated_probabilities_are_calibrated_on_unseen_subjects(training):
    unseen = table_of(4000, seed=2)
    y = (unseen.frame["label"] == "depressed").to_numpy(int)
    p = expit(training.model.log_odds(unseen.features))
    assert p.mean() == pytest.approx(y.mean(), abs=0.06)
    for third in np.array_split(np.argsort(p), 3):
        assert p[third].mean() == pytest.approx(y[third].mean(), abs=0.10)


def test_out_of_fold_predictions_never_come_from_a_fold_that_heard_the_subject():
    """Features that are pure noise but name the subject: a leak would look like skill, an honest split like chance."""
    table = table_of(60, rows_each=5, effect=0.0)
    out = train(table, DEPRESSION, FAST).out_of_fold
    assert out.groupby("subject")["fold"].nunique().max() == 1
    y = (out["label"] == "depressed").to_numpy(int)
    assert auroc(y, out["log_odds"].to_numpy()) < 0.72


def test_every_row_is_accounted_for():
    quality = [GOOD] * 120
    quality[3] = replace(GOOD, speech_s=4.0)
    table = table_of(120, quality=quality)
    table.frame.loc[7, "label"] = None
    counts = train(table, DEPRESSION, FAST).counts
    assert counts == {"given": 120, "without features": 0, "not usable": 1, "baseline": 0, "without label": 1, "learned from": 118}


def test_a_noisy_row_keeps_its_place_and_loses_what_noise_falsifies():
    quality = [replace(GOOD, snr_db=20.0)] + [GOOD] * 99
    table = table_of(100, quality=quality)
    gated = judge_table(table, DEPRESSION.limits)
    assert gated.usable.all()
    assert np.isnan(gated.features[0, table.feature_names.index("praat.cpps_db")])
    assert train(table, DEPRESSION, FAST).counts["learned from"] == 100


def test_the_same_table_and_options_give_the_same_bytes():
    first, second = (train(table_of(100), DEPRESSION, FAST).model.to_files() for _ in range(2))
    assert first == second
    assert first != train(table_of(100), DEPRESSION, replace(FAST, seed=1)).model.to_files()


@pytest.mark.parametrize("head", ["linear", "xgboost"])
def test_a_bundle_answers_as_the_model_that_was_saved(head, tmp_path):
    training = train(table_of(100), DEPRESSION, replace(FAST, head=head))
    back = TrainedModel.from_bundle(read_bundle(_saved(training, tmp_path / "b"), trusted=TrustStore(frozenset())))
    x = table_of(5, seed=9).features[0].copy()
    x[3] = np.nan
    for prevalence in (None, 0.02):
        ours, theirs = training.model.answer(x, prevalence=prevalence), back.answer(x, prevalence=prevalence)
        assert ours.probabilities.tolist() == theirs.probabilities.tolist()
        assert (ours.low.tolist(), ours.high.tolist(), ours.prediction_set) == (theirs.low.tolist(), theirs.high.tolist(), theirs.prediction_set)
    a, b = (Explainer(m).effects(x, target="depressed", group=0) for m in (training.model, back))
    assert (a.probability.tolist(), a.log_odds.tolist(), a.features.tolist()) == (b.probability.tolist(), b.log_odds.tolist(), b.features.tolist())


def test_several_classes_are_stated_for_equal_shares():
    table = _three_classes()
    training = train(table, EMOTION, FAST)
    assert training.model.task.classes == ("calm", "happy", "sad")
    answer = training.model.answer(table.features[0])
    assert answer.probabilities.sum() == pytest.approx(1)
    assert ((answer.low <= answer.probabilities) & (answer.probabilities <= answer.high)).all()
    found = figures(training, replicates=50)
    assert found["uar"].value > 0.6
    with pytest.raises(InvalidValueError, match="equal shares"):
        training.model.answer(table.features[0], prevalence=0.1)


def test_a_rare_class_is_not_drowned_by_a_common_one():
    """A tenth of the rows are sad: at the corpus's shares almost none would be answered so."""
    table = _three_classes(subjects=600, shares=(0.45, 0.45, 0.1))
    out = train(table, EMOTION, FAST).out_of_fold
    p = out[[f"probability.{label}" for label in ("calm", "happy", "sad")]].to_numpy()
    sad = (out["label"] == "sad").to_numpy()
    assert (p[sad].argmax(axis=1) == 2).mean() > 0.6


def test_the_interval_is_wider_for_a_model_from_fewer_subjects():
    x = table_of(5, seed=3).features[0]
    widths = []
    for n in (100, 1500):
        model = train(table_of(n, effect=3.0), DEPRESSION, replace(FAST, refits=10)).model
        answer = model.answer(x)
        widths.append(logit(answer.high[1]) - logit(answer.low[1]))
    assert widths[0] > 1.5 * widths[1]


def test_a_subjects_own_baseline_removes_what_is_theirs():
    """A large offset a person hides the effect; against their own baseline recording it is plain."""
    table = _with_offsets()
    plain = train(table, DEPRESSION, FAST)
    own = train(table, DEPRESSION, replace(FAST, use_baseline=True))
    auc = {name: figures(t, replicates=20)["auroc"].value for name, t in (("plain", plain), ("own", own))}
    assert auc["own"] > auc["plain"] + 0.1
    assert own.model.uses_baseline
    assert own.counts["baseline"] == 120


def test_a_subject_without_baseline_is_an_error_when_the_model_needs_one():
    table = _with_offsets()
    table.frame.loc[table.frame["subject"] == "s0000", "baseline"] = False
    with pytest.raises(TrainingError, match="1 subjects have no baseline recording"):
        train(table, DEPRESSION, replace(FAST, use_baseline=True))


def test_leaving_a_family_out_leaves_it_out():
    model = train(table_of(100), DEPRESSION, replace(FAST, without=("timing",))).model
    assert not [name for name in model.features if name.startswith("timing.")]
    assert "timing" not in model.head.families_


def test_a_split_that_shares_a_subject_is_refused():
    table = table_of(60, rows_each=2)
    table.frame["fold"] = np.tile([1, 2], 60)
    with pytest.raises(SubjectLeakError, match="subjects tested are trained on too"):
        train(table, DEPRESSION, replace(FAST, split="fold"))


def test_the_same_audio_under_two_subjects_is_refused():
    table = table_of(100)
    table.frame.loc[1, "recording"] = table.frame.loc[0, "recording"]
    table.frame["fold"] = np.arange(100) % 2
    with pytest.raises(SubjectLeakError, match="byte for byte"):
        train(table, DEPRESSION, replace(FAST, split="fold"))


def test_too_few_subjects_of_a_class_are_refused():
    table = table_of(100)
    table.frame["label"] = np.where(table.frame["subject"].isin(["s0001", "s0002"]), "depressed", "not_depressed")
    with pytest.raises(TrainingError, match="at least 5 subjects"):
        train(table, DEPRESSION, FAST)


def test_one_class_only_is_refused():
    table = table_of(50)
    table.frame["label"] = "depressed"
    with pytest.raises(TrainingError, match="at least 5 subjects"):
        train(table, DEPRESSION, FAST)


def test_a_table_without_labels_is_refused():
    table = table_of(50)
    with pytest.raises(ManifestError, match="no label column"):
        train(replace(table, frame=table.frame.drop(columns="label")), DEPRESSION, FAST)


@pytest.mark.parametrize(("option", "value"), [("head", "svm"), ("without", ("colour",)), ("refits", 1)])
def test_a_wrong_option_lists_the_right_ones(option, value):
    with pytest.raises(InvalidValueError, match="expected"):
        TrainingOptions(**{option: value})


def test_an_unknown_split_column_is_named():
    with pytest.raises(InvalidValueError, match="loso"):
        train(table_of(50), DEPRESSION, replace(FAST, split="nonsense"))


def test_the_card_says_simulated_and_warns_of_too_few_subjects(tmp_path):
    table = table_of(80)
    table.frame["simulated"] = True
    training = train(table, DEPRESSION, FAST)
    card, _ = card_of(training, None, name="m", version="1", options=EvaluationOptions(replicates=50))
    assert "SIMULATED" in card.statement
    assert any("too few" in warning for warning in card.warnings)
    assert Card.model_validate_json(card.model_dump_json()) == card


def test_no_subject_and_no_single_value_of_one_is_in_the_bundle(training, tmp_path):
    files = training.model.to_files()
    everything = b"".join(files.values())
    assert b"s0001" not in everything
    numbers = set(re.findall(rb"-?[0-9.]+(?:e-?[0-9]+)?", everything))
    for value in table_of(1000).features.ravel():
        assert repr(float(value)).encode() not in numbers


def test_no_tree_splits_at_one_persons_exact_value():
    table = table_of(120)
    training = train(table, DEPRESSION, replace(FAST, head="xgboost"))
    trees = json.loads(training.model.head.booster_.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    thresholds = np.concatenate([np.array(t["split_conditions"])[np.array(t["left_children"]) != -1] for t in trees])
    exact = np.sort(training.model.preprocessor.transform(table.features).ravel())
    nearest = exact[np.clip(np.searchsorted(exact, thresholds), 0, len(exact) - 1)]
    assert len(thresholds) > 20
    assert np.mean(np.isclose(nearest, thresholds, rtol=1e-6, atol=0)) < 0.2
    assert np.abs(thresholds * 200 - np.round(thresholds * 200)).max() < 1e-2


def test_a_refit_counts_a_subject_drawn_twice_as_two_people():
    rows, draw = rows_of_draws(np.array(["a", "b", "a"]), np.array(["a", "c", "a"]))
    assert rows.tolist() == [0, 2, 0, 2]
    assert draw.tolist() == [0, 0, 2, 2]


@pytest.fixture(scope="module")
def unequal():
    """The ill gave eight recordings each and the well one: whatever counts recordings instead of people is far off."""
    table = table_of(150, rows_each=8)
    frame = table.frame
    return replace(table, frame=frame[(frame["label"] == "depressed") | ~frame["subject"].duplicated()].reset_index(drop=True))


def test_people_and_not_recordings_set_shares_calibration_and_threshold(unequal):
    training = train(unequal, DEPRESSION, FAST)
    out, model = training.out_of_fold, training.model
    people = out.drop_duplicates("subject")
    ill_share = float((people["label"] == "depressed").mean())
    assert model.class_shares[1] == pytest.approx(ill_share, abs=1e-9)
    assert (out["label"] == "depressed").mean() > ill_share + 0.3
    weight = 1 / out.groupby("subject")["subject"].transform("size")
    assert np.average(out["probability.depressed"], weights=weight) == pytest.approx(ill_share, abs=0.05)
    assert model.operating_point.sensitivity.subjects == int((people["label"] == "depressed").sum())
    assert model.conformal.subjects_ == tuple(int((people["label"] == label).sum()) for label in model.task.classes)
    found = figures(training, replicates=20)
    assert found["calibration_intercept"].value == pytest.approx(0, abs=0.25)


def test_a_fold_is_calibrated_by_the_others_only():
    """One fold's margins are turned round; a calibrator that saw them would bend to them, the others' does not."""
    rng = np.random.default_rng(8)
    n = 400
    y = rng.integers(0, 2, n)
    rows = Rows(np.zeros((n, 1)), ("x",), y, np.arange(n).astype(str), pd.DataFrame(index=range(n)))
    fold_of = np.arange(n) % 2
    margins = rng.normal(2.0 * y - 1.0)
    margins[fold_of == 1] *= -1
    _, log_odds = _calibrate(rows, margins, fold_of, DEPRESSION)
    slope = np.polyfit(margins[fold_of == 1], log_odds[fold_of == 1], 1)[0]
    assert slope == pytest.approx(MarginPlatt().fit(margins[fold_of == 0], y[fold_of == 0]).scale_)


def test_inner_folds_keep_subjects_whole():
    """Noise that names the subject, ten recordings each: inner folds by row would choose a weak ridge to recognise people."""
    table = table_of(60, rows_each=10, effect=0.0)
    head = train(table, DEPRESSION, FAST).model.head
    rows = head.settled()
    assert rows.strength >= 1000


def test_the_reference_group_of_a_binary_task_holds_nobody_ill():
    table = table_of(200)
    table.frame["timing.pause_mean_s"] = np.where(table.frame["label"] == "depressed", 9.0, 1.0)
    reference = train(table, DEPRESSION, FAST).model.reference
    group = reference.groups[reference.for_person(Person())]
    assert group.subjects == int((table.frame["label"] != "depressed").sum())
    assert group.middle_half("timing.pause_mean_s") == (1.0, 1.0)


def test_a_split_with_one_tested_part_is_refused_by_name():
    table = table_of(80)
    table.frame["split"] = np.where(np.arange(80) < 50, "train", "test")
    with pytest.raises(SplitError, match="one part only"):
        train(table, DEPRESSION, replace(FAST, split="split"))


def test_separable_classes_still_give_a_card():
    table = table_of(80)
    table.frame["timing.pause_mean_s"] = np.where(table.frame["label"] == "depressed", 50.0, -50.0)
    training = train(table, DEPRESSION, FAST)
    surely = np.where(training.out_of_fold["label"] == "depressed", 4.0, -4.0)
    apart = replace(training, out_of_fold=training.out_of_fold.assign(log_odds=surely))
    card, _ = card_of(apart, None, name="m", version="1", options=EvaluationOptions(replicates=30))
    assert card.figures["auroc"].value == 1
    assert card.figures["calibration_slope"].value is None


def test_answers_of_a_card_are_those_given_out_of_fold(training):
    found = figures(training)
    out = training.out_of_fold
    statuses = out["status"].to_numpy()
    ill = (out["label"] == "depressed").to_numpy()
    assert found["flagged.depressed"].value == pytest.approx((statuses[ill] == "flagged").mean())
    assert sum(found[f"{status}.depressed"].value for status in ("flagged", "not_flagged", "indeterminate")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("probability", "members", "status"),
    [
        (0.9, (False, True), "flagged"),
        (0.1, (True, False), "not_flagged"),
        (0.9, (True, True), "indeterminate"),
        (0.9, (False, False), "indeterminate"),
        (0.9, (True, False), "indeterminate"),
        (0.1, (False, True), "indeterminate"),
    ],
)
def test_flagged_and_not_flagged_need_threshold_and_set_to_agree(training, probability, members, status):
    class Sets:
        def predict(self, p):
            return np.array([members])

    point = training.model.operating_point.model_copy(update={"threshold": 0.0})
    model = replace(training.model, conformal=Sets(), operating_point=point)
    assert model.statuses(np.array([logit(probability)]))[0] == status


def test_a_class_is_answered_only_when_it_is_the_most_probable_and_alone():
    class Sets:
        def predict(self, p):
            return np.array([[True, False, False], [False, True, False], [True, True, False]])

    model = replace(train(_three_classes(), EMOTION, FAST).model, conformal=Sets())
    first_most_probable = np.log(np.tile([0.5, 0.3, 0.2], (3, 1)))
    assert model.statuses(first_most_probable).tolist() == ["classified", "indeterminate", "indeterminate"]


def test_exact_sums_of_overlapping_groups_cannot_be_subtracted():
    """All less female less male would leave the one subject of another sex."""
    table = table_of(101)
    table.frame.loc[100, "sex"] = "other"
    table.frame["label"] = np.where(np.arange(101) < 30, "depressed", "not_depressed")
    model = train(table, DEPRESSION, FAST).model
    assert [group.name for group in model.reference.groups if group.conditions.sex] in (["not depressed, female"], ["not depressed, male"])


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    pitch_only, everything = train(table_of(60), DEPRESSION, replace(FAST, without=("timing",))), train(table_of(60), DEPRESSION, FAST)
    mixed = replace(everything.model, preprocessor=pitch_only.model.preprocessor)
    folder = _saved(replace(everything, model=mixed), tmp_path / "b")
    with pytest.raises(BundleSchemaError, match="do not fit each other"):
        TrainedModel.from_bundle(read_bundle(folder, trusted=TrustStore(frozenset())))


def test_refits_of_another_kind_than_the_model_are_refused(tmp_path):
    linear, boosted = (train(table_of(60), DEPRESSION, replace(FAST, head=head)) for head in ("linear", "xgboost"))
    mixed = replace(linear.model, refits=boosted.model.refits)
    folder = _saved(replace(linear, model=mixed), tmp_path / "b")
    with pytest.raises(BundleSchemaError, match="do not fit each other"):
        TrainedModel.from_bundle(read_bundle(folder, trusted=TrustStore(frozenset())))


@pytest.mark.parametrize("head", ["linear", "xgboost"])
@pytest.mark.parametrize("several", [False, True])
def test_refits_are_asked_as_each_would_answer_alone_at_the_models_shares(head, several):
    """A refit's own shares of the classes are chance; two classes are moved from them to the model's, more to equal ones."""
    table = _three_classes() if several else table_of(120)
    model = train(table, EMOTION if several else DEPRESSION, replace(FAST, head=head)).model
    X = table.features[:3]
    Z = model.preprocessor.transform(X)
    alone = []
    for refit in model.refits:
        log_odds = refit.calibrator.apply(refit.head.margins(Z))
        prior = np.log(refit.class_shares) if several else logit(refit.class_shares[1]) - logit(model.class_shares[1])
        alone.append(log_odds - prior)
    answers = [model.answer(x, prevalence=None if several else model.class_shares[1]) for x in X]
    for row, answer in enumerate(answers):
        told = np.array(alone)[:, row]
        if several:
            told = np.log(softmax(told, axis=1)) - np.log1p(-softmax(told, axis=1))
        point = logit(answer.probabilities if several else answer.probabilities[1])
        half = 1.959964 * told.std(axis=0, ddof=1)
        assert (answer.low if several else answer.low[1]) == pytest.approx(expit(point - half), rel=1e-9)
        assert (answer.high if several else answer.high[1]) == pytest.approx(expit(point + half), rel=1e-9)
    terms = model.terms(X)
    totals = terms.constant[1:, None] + terms.families[1:].sum(axis=2)
    moved = np.array(alone) - (np.log(3) if several else 0)
    assert totals == pytest.approx(moved if several else moved[..., None], abs=1e-6)


def _saved(training, folder):
    save(training, folder, name="m", version="1", statement="", card=b"{}\n", software={"x": "1"}, key=SigningKey.generate())
    return folder


def _three_classes(subjects=150, shares=(1 / 3, 1 / 3, 1 / 3)):
    table = table_of(subjects)
    rng = np.random.default_rng(5)
    kinds = rng.choice(3, size=subjects, p=shares)
    frame = table.frame.copy()
    frame["label"] = np.array(["calm", "happy", "sad"])[kinds]
    frame["praat.f0_median_hz"] += 2.0 * (kinds == 1)
    frame["timing.pause_mean_s"] += 2.5 * (kinds == 2)
    return replace(table, frame=frame)


def _with_offsets():
    table = table_of(120, rows_each=2, effect=0.0)
    frame = table.frame.copy()
    frame["baseline"] = np.tile([True, False], 120)
    rng = np.random.default_rng(6)
    offset = np.repeat(rng.normal(0, 4, size=120), 2)
    ill = (frame["label"] == "depressed").to_numpy(float)
    frame["timing.pause_mean_s"] = offset + 1.5 * ill * ~frame["baseline"] + rng.normal(0, 0.7, size=240)
    return replace(table, frame=frame)


def test_a_task_of_several_classes_with_two_labels_is_refused_in_words():
    with pytest.raises(TrainingError, match=r'three classes or more.*kind = "binary"'):
        train(table_of(60), EMOTION, TrainingOptions(refits=2))
