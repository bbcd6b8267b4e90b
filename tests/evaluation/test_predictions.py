"""Predictions: from training, from a model asked about another table, from a file, from other software."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.errors import EvidenceError, InvalidValueError, ManifestError
from clinical_ser.evaluation.predictions import from_scores, of_training, predict, read_predictions, write_predictions
from clinical_ser.models.operating_point import choose
from clinical_ser.models.training import TrainingOptions, train
from tests.evaluation.made import MODEL, several_classes, two_classes
from tests.tables import GOOD, table_of


@pytest.fixture(scope="module")
def training():
    quality = [GOOD] * 150
    quality[7] = replace(GOOD, speech_s=4.0)
    return train(table_of(150, quality=quality), DEPRESSION, TrainingOptions(refits=2))


def test_a_model_is_asked_exactly_as_it_would_answer(training):
    table = table_of(60, seed=5)
    asked = predict(training.model, table, MODEL)
    assert asked.origin == "external"
    np.testing.assert_allclose(asked.log_odds, training.model.log_odds(table.features))
    assert asked.frame["status"].tolist() == training.model.statuses(asked.log_odds).tolist()
    assert asked.frame["above"].tolist() == (asked.log_odds >= training.model.operating_point.threshold).tolist()


def test_what_the_gate_refused_is_in_the_account(training):
    out = of_training(training, name="m", version="1")
    assert len(out.refused) == 1
    assert sum(out.gate_failures.values()) == 1
    quality = [GOOD] * 40
    quality[0] = quality[1] = replace(GOOD, speech_s=4.0)
    asked = predict(training.model, table_of(40, seed=6, quality=quality), MODEL)
    assert len(asked.refused) == 2
    assert asked.counts["given"] == len(asked.frame) + 2


def test_a_threshold_is_judged_on_rows_that_did_not_choose_it(training):
    """Each fold is judged by the threshold of the others; the released one, chosen on all, would judge some recordings otherwise."""
    out = of_training(training, name="m", version="1").frame
    ill = (out["label"] == "depressed").to_numpy(int)
    for fold in out["fold"].unique():
        here = (out["fold"] == fold).to_numpy()
        others = choose(out["log_odds"][~here], ill[~here], groups=out["subject"][~here], target_sensitivity=DEPRESSION.target_sensitivity)
        assert out["above"][here].tolist() == others.is_above(out["log_odds"][here]).tolist()
    assert out["above"].tolist() != training.model.operating_point.is_above(out["log_odds"]).tolist()


def test_a_file_gives_back_what_was_written(tmp_path):
    for made in (two_classes(30, refused=3), several_classes(6)):
        write_predictions(made, tmp_path / "p.parquet")
        back = read_predictions(tmp_path / "p.parquet")
        columns = list(made.frame.columns)
        pd.testing.assert_frame_equal(back.frame[columns], made.frame, check_dtype=False)
        assert back.refused["subject"].tolist() == made.refused["subject"].tolist()
        assert (back.task, back.threshold, back.coverage, back.counts) == (made.task, made.threshold, made.coverage, made.counts)
        first = (tmp_path / "p.parquet").read_bytes()
        write_predictions(made, tmp_path / "p.parquet")
        assert (tmp_path / "p.parquet").read_bytes() == first
    assert (tmp_path / "p.parquet").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"subject,label\na,b\n"])
def test_a_file_that_is_none_says_what_makes_one(tmp_path, content):
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(EvidenceError, match="train --predictions"):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("status", "foo", "status"),
        ("status", None, "status"),
        ("above", None, "above"),
        ("covered", None, "covered"),
        ("label", "zzz", "label"),
        ("subject", None, "subject"),
        ("probability.depressed", 5.0, "shares"),
        ("log_odds", np.inf, "disagree"),
    ],
)
def test_a_file_that_was_changed_is_refused_without_quoting_it(tmp_path, column, value, message):
    made = two_classes(10)
    frame = made.frame.astype({"above": object, "covered": object})
    frame.loc[3, column] = value
    write_predictions(replace(made, frame=frame), tmp_path / "p.parquet")
    with pytest.raises(EvidenceError, match=message) as refused:
        read_predictions(tmp_path / "p.parquet")
    assert "zzz" not in str(refused.value)


def test_a_table_of_features_is_no_file_of_predictions(tmp_path):
    from clinical_ser.cohorts.table import write_table

    write_table(table_of(5), tmp_path / "t.parquet")
    with pytest.raises(EvidenceError, match="not one of predictions"):
        read_predictions(tmp_path / "t.parquet")
    with pytest.raises(EvidenceError, match="cannot be read"):
        read_predictions(tmp_path / "nowhere.parquet")


def test_restating_moves_odds_by_bayes_and_no_answer():
    made = two_classes(50, prevalence=0.3)
    moved = made.stated_for(0.1)
    before, after = (p.probabilities[:, 1] / p.probabilities[:, 0] for p in (made, moved))
    np.testing.assert_allclose(after / before, (0.1 / 0.9) / (0.3 / 0.7))
    assert moved.frame["status"].equals(made.frame["status"])
    np.testing.assert_array_equal(moved.log_odds >= moved.threshold, made.log_odds >= made.threshold)
    with pytest.raises(InvalidValueError, match="equal shares"):
        several_classes(6).stated_for(0.1)


def test_scores_of_other_software_are_taken():
    frame = pd.DataFrame({"subject": ["a", "b", "c", "d"], "label": ["1", "0", "", "0"], "probability": [0.9, 0.2, 0.4, 0.6], "sex": list("fmfm")})
    taken = from_scores(frame, DEPRESSION, threshold=0.5)
    assert taken.frame["label"].tolist() == ["depressed", "not_depressed", "not_depressed"]
    np.testing.assert_allclose(expit(taken.log_odds), [0.9, 0.2, 0.6])
    assert taken.frame["above"].tolist() == [True, False, True]
    assert taken.counts == {"given": 4, "without label": 1, "evaluated": 3}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"subject": ["a"], "label": ["1"]}, "probability"),
        ({"subject": ["a"], "label": ["1"], "probability": [1.4]}, "0 to 1"),
        ({"subject": ["a"], "label": ["1"], "probability": ["x"]}, "0 to 1"),
        ({"subject": [None], "label": ["1"], "probability": [0.4]}, "no row"),
    ],
)
def test_wrong_scores_are_refused(frame, message):
    with pytest.raises(InvalidValueError, match=message):
        from_scores(pd.DataFrame(frame), DEPRESSION)


def test_labels_of_another_language_are_refused_and_not_dropped():
    frame = pd.DataFrame({"subject": list("abc"), "label": ["depressed", "healthy", "healthy"], "probability": [0.9, 0.2, 0.6]})
    with pytest.raises(InvalidValueError, match="2 rows with another label"):
        from_scores(frame, DEPRESSION)


def test_a_models_score_beside_the_label_is_no_questionnaire():
    frame = pd.DataFrame({"subject": list("ab"), "label": ["1", "0"], "score": [0.9, 0.1], "probability": [0.9, 0.1]})
    assert from_scores(frame, DEPRESSION).counts["evaluated"] == 2
    asked = frame.drop(columns="label").assign(score=["14", "not done"])
    assert from_scores(asked, DEPRESSION).frame["label"].tolist() == ["depressed"]


def test_what_scores_are_stated_for_is_not_guessed():
    frame = pd.DataFrame({"subject": list("abcd"), "label": ["1", "0", "1", "0"], "probability": [0.9, 0.2, 0.7, 0.1]})
    taken = from_scores(frame, DEPRESSION)
    assert taken.stated_prevalence is None
    with pytest.raises(InvalidValueError, match="--stated-prevalence"):
        taken.stated_for(0.1)
    assert from_scores(frame, DEPRESSION, stated_prevalence=0.5).stated_for(0.1).log_odds.max() < taken.log_odds.max()


def test_rows_that_stand_twice_are_reported():
    frame = pd.DataFrame({"subject": list("aab"), "label": ["1", "1", "0"], "probability": [0.9, 0.9, 0.7]})
    assert [problem.row for problem in from_scores(frame, DEPRESSION).problems] == [2]


def test_scores_of_several_classes_and_without_labels_are_refused():
    frame = pd.DataFrame({"subject": ["a"], "label": ["calm"], "probability": [0.5]})
    with pytest.raises(InvalidValueError, match="two classes"):
        from_scores(frame, EMOTION)
    with pytest.raises(ManifestError, match="no label"):
        from_scores(frame[["subject", "probability"]], DEPRESSION)


def test_a_table_without_the_models_features_is_refused(training):
    table = table_of(20)
    less = replace(table, feature_names=table.feature_names[1:])
    with pytest.raises(InvalidValueError, match="without 1 of the model's features"):
        predict(training.model, less, MODEL)
