"""Test-retest reliability: the textbook's numbers, what counts as a repetition, and what is published of whom."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.errors import BundleFeatureMismatchError, InvalidValueError, TrainingError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.card_text import card_markdown
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.evaluation.retest import MINIMUM_SUBJECTS, Repeated, Retest, measure_retest, one_way, repeatability
from clinical_ser.features import catalogue
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from tests.explain.made import three_classes, with_embedding
from tests.tables import table_of

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
"""Table 2 of Shrout & Fleiss 1979: six targets, four judges."""
SETTING = "same day, same device"


def saved(table, folder, *, task=DEPRESSION, **options):
    training = train(table, task, TrainingOptions(refits=2, split=3, **options))
    card, _ = card_of(training, None, name="voice", version="1", options=EvaluationOptions(replicates=20))
    save(training, folder, name="voice", version="1", statement="", card=card.to_json(), software={"numpy": "0"}, key=None)
    return read_bundle(folder)


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return saved(table_of(80), tmp_path_factory.mktemp("retested") / "voice")


@pytest.fixture(scope="module")
def table():
    """Fifty people, recorded three times; what repeats has SD 1 between people, what does not 0.3."""
    return table_of(50, rows_each=3, seed=5)


@pytest.fixture(scope="module")
def found(voice, table):
    return measure_retest(voice, table, setting=SETTING)


def long(values):
    """One row a recording."""
    return values.reshape(-1, 1), np.repeat(np.arange(len(values)), values.shape[1]).astype(str)


def test_the_textbook_s_table_has_its_numbers():
    """Mean squares and ICC(1,1) as printed there; the interval as irr::icc of R gives it."""
    analysed = one_way(*long(SHROUT_FLEISS))
    assert (round(analysed.between[0], 2), round(analysed.within[0], 2), analysed.freedom[0]) == (11.24, 6.26, 18)
    value, low, high = (float(part[0]) for part in analysed.icc())
    assert (round(value, 2), round(low, 3), round(high, 3)) == (0.17, -0.133, 0.723)


def test_mean_squares_are_those_of_statsmodels_where_people_have_unequally_many_recordings_and_gaps():
    rng = np.random.default_rng(1)
    subjects = np.repeat([f"s{i}" for i in range(40)], rng.integers(1, 6, 40))
    values = (rng.normal(size=40)[np.unique(subjects, return_inverse=True)[1]] + rng.normal(size=len(subjects)))[:, None] * [1.0, 250.0]
    values[rng.uniform(size=len(subjects)) < 0.15, 1] = np.nan
    analysed = one_way(values, subjects)
    for column in range(2):
        frame = pd.DataFrame({"y": values[:, column], "subject": subjects}).dropna()
        frame = frame[frame.groupby("subject")["y"].transform("size") >= 2]
        told = anova_lm(ols("y ~ C(subject)", data=frame).fit())
        assert analysed.between[column] == pytest.approx(told.loc["C(subject)", "mean_sq"])
        assert analysed.within[column] == pytest.approx(told.loc["Residual", "mean_sq"])
        assert (analysed.subjects[column] - 1, analysed.freedom[column]) == (told.loc["C(subject)", "df"], told.loc["Residual", "df"])
        sizes = frame.groupby("subject").size()
        assert analysed.values_each[column] == pytest.approx((sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1))


def test_the_true_reliability_lies_in_its_interval_in_95_percent_of_cohorts_and_the_sd_is_that_of_the_error():
    """30 people with two to four recordings; true ICC 0.8, error SD 0.5."""
    rng = np.random.default_rng(2)
    subjects = np.repeat(np.arange(30), np.resize([2, 3, 4], 30)).astype(str)
    who = subjects.astype(int)
    values = rng.normal(size=(30, 4000))[who] + 0.5 * rng.normal(size=(len(who), 4000))
    analysed = one_way(values, subjects)
    _, low, high = analysed.icc()
    assert np.mean((low < 0.8) & (high > 0.8)) == pytest.approx(0.95, abs=0.012)
    assert np.mean(analysed.within) == pytest.approx(0.25, rel=0.01)


def test_what_is_alike_in_everyone_has_no_icc_and_what_never_moves_has_an_error_of_zero():
    subjects = np.repeat([f"s{i:02}" for i in range(30)], 2)
    of_person = np.repeat(np.random.default_rng(0).normal(size=30), 2)
    constant, steady = repeatability(np.column_stack([np.full(60, 0.1), of_person]), subjects)
    assert (constant.sd_within, constant.icc, constant.icc_low) == (0, None, None)
    assert (steady.sd_within, steady.icc) == (0, 1)


def test_nothing_is_published_of_fewer_than_twenty_people():
    subjects = np.repeat([f"s{i:02}" for i in range(MINIMUM_SUBJECTS)], 2)
    values = np.random.default_rng(3).normal(size=(len(subjects), 3))
    values[0, 1] = np.nan
    values[:, 2] = np.nan
    enough, one_short, nothing = repeatability(values, subjects)
    assert (enough.subjects, enough.freedom) == (MINIMUM_SUBJECTS, MINIMUM_SUBJECTS)
    assert one_short is None
    assert nothing is None


def test_features_and_score_of_a_model_are_measured_as_they_are_answered(found, voice):
    assert (found.setting, found.subjects, found.recordings, found.changed) == (SETTING, 50, 150, 0)
    assert set(found.features) == set(voice.manifest.features)
    errors = np.array([one.sd_within for one in found.features.values()])
    assert np.median(errors) == pytest.approx(0.3, rel=0.05)
    assert np.median([one.icc for one in found.features.values()]) == pytest.approx(1 / 1.09, abs=0.02)
    assert found.log_odds.freedom == 100
    assert found.log_odds.icc_low > 0.5


def test_features_are_taken_after_the_gate(found, voice, table):
    """What a warning of the gate switches off never reached the score, and must not count as its error."""
    quiet = table.frame.copy()
    quiet.loc[quiet.index % 3 == 0, "quality.snr_db"] = DEPRESSION.limits.snr_fail_db + 1
    gated = measure_retest(voice, replace(table, frame=quiet), setting=SETTING)
    fewer = [name for name, one in gated.features.items() if one.freedom < found.features[name].freedom]
    assert fewer
    assert len(fewer) < len(gated.features)


def test_who_changed_or_came_once_is_left_out(voice, table, found):
    frame = table.frame.copy()
    flipped = frame["subject"].eq("s0000") & ~frame["subject"].duplicated()
    frame.loc[flipped, "label"] = np.where(frame.loc[flipped, "label"] == "depressed", "not_depressed", "depressed")
    frame = frame.drop(index=frame.index[frame["subject"] == "s0001"][1:])
    left = measure_retest(voice, replace(table, frame=frame), setting=SETTING)
    assert (left.subjects, left.recordings, left.changed) == (48, 144, 1)
    assert left.log_odds != found.log_odds


def test_too_few_people_are_refused_and_the_message_says_who_was_left_out(voice):
    few = table_of(MINIMUM_SUBJECTS - 1, rows_each=2, seed=5)
    with pytest.raises(TrainingError, match=r"Only 19 subjects .* 20 are needed"):
        measure_retest(voice, few, setting=SETTING)


def test_a_copy_of_a_recording_is_no_repetition(voice, table):
    twice = replace(table, frame=pd.concat([table.frame, table.frame.iloc[:1]], ignore_index=True))
    with pytest.raises(InvalidValueError, match="twice"):
        measure_retest(voice, twice, setting=SETTING)


def test_the_cohort_that_the_model_learned_from_is_refused(voice):
    with pytest.raises(InvalidValueError, match="learned from"):
        measure_retest(voice, table_of(80), setting=SETTING)


def test_a_table_of_other_extractors_is_refused(voice, table):
    with pytest.raises(BundleFeatureMismatchError):
        measure_retest(voice, replace(table, extractors={**table.extractors, "praat": "another"}), setting=SETTING)


def test_several_classes_have_features_and_no_score(tmp_path):
    """Who is sad one day and calm the next did change; 50 others stay as they are."""
    again = table_of(50, rows_each=2, seed=11)
    again.frame["label"] = np.where(again.frame["timing.pause_mean_s"].groupby(again.frame["subject"]).transform("mean") > 0, "sad", "calm")
    found = measure_retest(saved(three_classes(), tmp_path / "emotion", task=EMOTION), again, setting=SETTING)
    assert found.log_odds is None
    assert found.features["timing.pause_mean_s"].subjects == 50


def test_dimensions_of_an_embedding_are_not_published_and_count_for_the_score(tmp_path, table):
    bundle = saved(with_embedding(table_of(80)), tmp_path / "pattern")
    found = measure_retest(bundle, with_embedding(table, seed=3), setting=SETTING)
    assert set(found.features) == set(table.feature_names)
    assert found.log_odds is not None


def test_a_model_with_personal_baselines_is_refused(tmp_path, table):
    own = table_of(60, rows_each=3)
    own = replace(own, frame=own.frame.assign(baseline=~own.frame["subject"].duplicated()))
    with pytest.raises(InvalidValueError, match="baseline"):
        measure_retest(saved(own, tmp_path / "own", use_baseline=True), table, setting=SETTING)


@pytest.mark.parametrize("setting", ["", "  ", "x" * 201, "same\nday", "same\x1b[31mday"], ids=["empty", "blank", "long", "two lines", "escape"])
def test_a_setting_is_one_printable_line(voice, table, found, setting):
    with pytest.raises(InvalidValueError, match="--setting"):
        measure_retest(voice, table, setting=setting)
    with pytest.raises(ValueError, match="setting"):
        Retest.model_validate({**found.model_dump(), "setting": setting})


def test_an_icc_lies_within_its_interval():
    with pytest.raises(ValueError, match="lies within"):
        Repeated(sd_within=1, freedom=30, icc=0.5, icc_low=0.6, icc_high=0.7, subjects=30)
    with pytest.raises(ValueError, match="lies within"):
        Repeated(sd_within=1, freedom=30, icc=0.5, icc_low=None, icc_high=None, subjects=30)


def test_a_difference_from_the_mean_of_more_recordings_has_less_error():
    once = Repeated(sd_within=2, freedom=20, icc=0.5, icc_low=0.4, icc_high=0.7, subjects=20)
    assert once.error_of_difference() == pytest.approx(2 * 2**0.5)
    assert once.error_of_difference(4) == pytest.approx(2 * 1.25**0.5)
    assert once.limit == pytest.approx(2.086, abs=0.001)  # t with 20 degrees of freedom, two-sided 95 %


def test_it_stands_in_the_card_and_stays_there(voice, found):
    card = Card.from_json(voice.files["card.json"])
    assert card.retest is None
    assert "Repeated while nothing changed" not in card_markdown(card)
    extended = card.extended(retest=found)
    assert Card.from_json(extended.to_json()).retest == found
    assert extended.extended(supplied={}).retest == found
    text = card_markdown(extended)
    for words in ("Repeated while nothing changed", SETTING, "150 recordings of 50 subjects", "| Score | log-odds |"):
        assert words in text
    pause, error = catalogue.get("timing.pause_mean_s"), found.features["timing.pause_mean_s"]
    assert f"| {pause.label_en} | {pause.unit} | {error.sd_within:.3g} | {error.icc:.2f} |" in text


def test_a_card_written_before_there_was_a_retest_still_reads(voice):
    old = Card.from_json(voice.files["card.json"]).model_dump(mode="json", exclude={"retest"})
    assert Card.model_validate(old).retest is None


def test_nothing_of_a_person_is_in_it(found, table):
    said = found.model_dump_json()
    for secret in [*table.frame["subject"][:20], *table.frame["recording"][:20], *map(repr, table.frame["timing.pause_mean_s"][:50].tolist())]:
        assert secret not in said
