"""Leak guards: each is shown a table with the leak, which it has to find, and honest tables, on which it has to be silent."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, rankdata
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler

from clinical_ser.cohorts.splits import group_k_fold
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.leaks import check_leaks, fitted_outside, near_identical, nuisance, probe_pipeline, same_audio, shared_subjects
from clinical_ser.features import catalogue
from clinical_ser.models import training
from tests.tables import table_of


def of_others(table: FeatureTable, prefix: str = "t") -> FeatureTable:
    """The same shape, other people."""
    return replace(table, frame=table.frame.assign(subject=[prefix + name for name in table.frame["subject"]]))


def with_features(table: FeatureTable, values: np.ndarray) -> FeatureTable:
    return replace(table, frame=table.frame.assign(**dict(zip(table.feature_names, values.T, strict=True))))


def rows(table: FeatureTable, index) -> FeatureTable:
    return replace(table, frame=table.frame.iloc[index].reset_index(drop=True))


def together(*tables: FeatureTable) -> FeatureTable:
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    return replace(tables[0], frame=frame.assign(row=np.arange(1, len(frame) + 1)))


# --- shared subjects, same audio ---------------------------------------------------------------------------------------------------------


def test_a_subject_in_training_and_test_fails_and_is_counted_not_named():
    table = table_of(20, rows_each=2)
    finding = shared_subjects(rows(table, range(12)), training=rows(table, range(10, 40)))
    assert (finding.verdict, finding.counts["shared"], finding.counts["subjects"]) == ("fail", 1, 6)
    assert "s0005" not in finding.model_dump_json()


def test_a_subject_in_two_folds_fails():
    table = table_of(6, rows_each=2)
    assert shared_subjects(table, fold=np.arange(12) % 2).verdict == "fail"
    assert shared_subjects(table, fold=np.repeat(np.arange(6) % 2, 2)).verdict == "pass"


def test_without_a_split_nothing_is_claimed_about_shared_subjects():
    finding = shared_subjects(table_of(6))
    assert finding.verdict == "not_checked"
    assert "give the training table" in finding.statement


def test_names_that_differ_in_spelling_only_are_a_warning():
    table = table_of(6)
    other = replace(table, frame=table.frame.assign(subject=[f" S {i}" if i else "S0000 " for i in range(6)]))
    finding = shared_subjects(table, training=other)
    assert (finding.verdict, finding.counts["spelled_alike"]) == ("warn", 1)


@pytest.mark.parametrize(("subject", "fold", "verdict", "counted"), [
    ("s0003", None, "fail", "of_two_subjects"),
    ("s0000", None, "warn", "twice_for_one_subject"),
    ("s0000", [0, 0, 0, 1, 1, 1], "fail", "on_both_sides"),
])  # fmt: skip
def test_one_recording_twice(subject, fold, verdict, counted):
    table = table_of(6)
    table.frame.loc[3, ["recording", "subject"]] = [table.frame.loc[0, "recording"], subject]
    finding = same_audio(table, fold=fold)
    assert (finding.verdict, finding.counts[counted]) == (verdict, 1)
    assert same_audio(table_of(6), fold=fold).verdict == "pass"


def test_one_recording_in_training_and_test_fails():
    table = table_of(6)
    assert same_audio(rows(table, [0, 1]), training=rows(table, [1, 2, 3])).verdict == "fail"
    assert same_audio(rows(table, [0, 1]), training=rows(table, [2, 3])).verdict == "pass"


# --- near-identical ----------------------------------------------------------------------------------------------------------------------


def copies_of(table: FeatureTable, index, *, moved: float = 0.5, by: float = 0.01) -> FeatureTable:
    """Copies as a codec makes them: some features far off, the others nearly where they were; loudness moves as with another gain."""
    rng = np.random.default_rng(7)
    part = rows(table, index)
    X = part.features.copy()
    X += by * rng.normal(size=X.shape) + np.where(rng.uniform(size=X.shape) < moved, rng.normal(size=X.shape), 0)
    loudness = [i for i, name in enumerate(table.feature_names) if catalogue.get(name).family == "loudness"]
    X[:, loudness] += 20
    made = with_features(part, X)
    return replace(made, frame=made.frame.assign(recording=[f"{i:064x}" for i in range(len(X))]))


def test_an_altered_copy_under_another_name_fails_and_under_the_same_name_is_a_warning():
    table = table_of(100)
    finding = near_identical(together(table, of_others(copies_of(table, [3, 50, 70]))))
    assert (finding.verdict, finding.counts["of_two_subjects"]) == ("fail", 3)
    finding = near_identical(together(table, copies_of(table, [3, 50, 70])))
    assert (finding.verdict, finding.counts["within_subject"]) == ("warn", 3)


def test_an_altered_copy_across_the_split_fails_though_the_name_is_the_same():
    table = table_of(100)
    finding = near_identical(copies_of(table, range(5)), training=table)
    assert (finding.verdict, finding.counts["on_both_sides"]) == ("fail", 5)
    both = together(table, copies_of(table, range(5)))
    assert near_identical(both, fold=np.repeat(["0", "1"], [100, 5])).counts["on_both_sides"] == 5


def test_copies_are_found_where_each_side_misses_some_features():
    table = table_of(100)
    copied = of_others(copies_of(table, range(10), moved=0.3))
    X = copied.features.copy()
    X[:, ::4] = np.nan
    assert near_identical(together(table, with_features(copied, X))).counts["of_two_subjects"] == 10


@pytest.mark.parametrize("subjects", [30, 300])
def test_repeated_recordings_of_one_person_are_not_copies(subjects):
    assert near_identical(table_of(subjects, rows_each=3)).verdict == "pass"


def test_strangers_in_a_crowded_table_are_not_copies():
    """Two kinds of voice far apart, and little between two of a kind: by the fixed limit alone all of a kind would be copies of each other."""
    table = table_of(1000)
    rng = np.random.default_rng(3)
    X = rng.normal(size=(1000, 8)) @ rng.normal(size=(8, len(table.feature_names))) + 200 * (np.arange(1000) % 2)[:, None]
    assert near_identical(with_features(table, X)).verdict == "pass"


def test_features_that_tie_between_strangers_do_not_make_copies():
    table = table_of(200)
    X = table.features.copy()
    X[:, ::2] = np.random.default_rng(0).integers(3, size=X[:, ::2].shape)
    assert near_identical(with_features(table, X)).verdict == "pass"


def test_too_few_features_to_tell_copies_is_said():
    table = table_of(100)
    finding = near_identical(replace(table, feature_names=table.feature_names[:10]))
    assert finding.verdict == "not_checked"
    assert "egemaps or praat" in finding.statement


def test_the_same_samples_are_left_to_the_other_guard():
    table = table_of(100)
    twice = together(table, of_others(rows(table, [0])))
    assert near_identical(twice).verdict == "pass"
    assert same_audio(twice).verdict == "fail"


# --- fitted outside the fold -------------------------------------------------------------------------------------------------------------


def measured(subjects: int = 60, rows_each: int = 3, seed: int = 0) -> FeatureTable:
    """Raw features: off zero, skewed, some counts, some missing."""
    table = table_of(subjects, rows_each=rows_each, seed=seed)
    X = 5 + np.exp(table.features / 2)
    X[:, -3:] = np.round(X[:, -3:])
    X[np.random.default_rng(seed).uniform(size=X.shape) < 0.05] = np.nan
    X[:, 0] = np.clip((X[:, 0] - 5) / 3, 0, 1)  # a ratio that does reach 0 and 1
    X[:2, 0] = [0, 1]
    return with_features(table, X)


def by_group(X, group):
    frame = pd.DataFrame(X).groupby(np.asarray(group))
    return ((pd.DataFrame(X) - frame.transform("mean")) / frame.transform("std")).to_numpy()


def normal_ranks(X):
    return norm.ppf((rankdata(X, axis=0, nan_policy="omit") - 0.5) / np.isfinite(X).sum(axis=0))


@pytest.mark.parametrize(("mark", "transform"), [
    ("centred", lambda X, frame: StandardScaler().fit_transform(X)),
    ("centred", lambda X, frame: np.round(StandardScaler().fit_transform(X), 4)),
    ("centred", lambda X, frame: StandardScaler().fit_transform(X).astype(np.float32)),
    ("scaled", lambda X, frame: MinMaxScaler().fit_transform(X)),
    ("scaled", lambda X, frame: RobustScaler().fit_transform(X)),
    ("scaled", lambda X, frame: X / np.nanmax(np.abs(X), axis=0)),
    ("ranked", lambda X, frame: rankdata(X, axis=0, nan_policy="omit")),
    ("ranked", lambda X, frame: QuantileTransformer(n_quantiles=100).fit_transform(X)),
    ("ranked", lambda X, frame: normal_ranks(X)),
    ("filled", lambda X, frame: SimpleImputer().fit_transform(X)),
    ("filled", lambda X, frame: SimpleImputer(strategy="median").fit_transform(X)),
    ("centred_by_subject", lambda X, frame: by_group(X, frame["subject"])),
    ("centred_by_class", lambda X, frame: by_group(X, frame["label"])),
    ("centred_by_fold", lambda X, frame: by_group(X, np.arange(len(X)) % 9 // 3)),
    ("centred_by_site", lambda X, frame: by_group(X, frame["site"])),
])  # fmt: skip
def test_preprocessing_over_the_tested_rows_leaves_a_mark(mark, transform):
    table = measured()
    table.frame["site"] = np.where(np.arange(len(table.frame)) % 2, "a", "b")
    leaky = with_features(table, transform(table.features, table.frame))
    finding = fitted_outside(leaky, labels=table.frame["label"], fold=np.arange(len(table.frame)) % 9 // 3)
    assert finding.verdict == "fail"
    assert finding.counts[mark] >= 0.9 * len(table.feature_names)


@pytest.mark.parametrize("seed", range(5))
def test_raw_features_bear_no_mark(seed):
    for table in (measured(seed=seed), measured(200, 1, seed), table_of(50, rows_each=2, seed=seed)):
        assert fitted_outside(table, labels=table.frame["label"], fold=np.arange(len(table.frame)) % 5).verdict == "pass"


def few_repeated(subjects_twice: int) -> tuple[FeatureTable, np.ndarray]:
    """A hundred subjects, the first few of them with two recordings each, and the positions of those."""
    table = rows(measured(100, 2), [*range(2 * subjects_twice), *range(2 * subjects_twice, 200, 2)])
    return table, np.arange(2 * subjects_twice)


def test_recordings_without_a_pause_are_not_centred_by_subject():
    table, repeated = few_repeated(4)
    X = np.nan_to_num(table.features, nan=5.0)
    pauses = [i for i, name in enumerate(table.feature_names) if "pause" in name]
    X[np.ix_(repeated, pauses)] = 0.0
    assert len(pauses) > 3
    assert fitted_outside(with_features(table, X)).verdict == "pass"


@pytest.mark.parametrize(("subjects_twice", "verdict"), [(2, "pass"), (3, "fail")])
def test_centring_by_subject_has_to_show_in_three_who_differ(subjects_twice, verdict):
    table, repeated = few_repeated(subjects_twice)
    X = np.nan_to_num(table.features, nan=5.0)
    X[repeated, :8] = np.where(repeated % 2, 1.0, -1.0)[:, None]  # signs that cancel
    assert fitted_outside(with_features(table, X)).verdict == verdict


def test_subjects_in_whom_nothing_varies_do_not_hide_centring():
    table = measured()
    X = np.nan_to_num(table.features, nan=5.0)
    X[:30] = X[0]
    centred = X - pd.DataFrame(X).groupby(table.frame["subject"].to_numpy()).transform("mean").to_numpy()
    assert fitted_outside(with_features(table, centred)).counts["centred_by_subject"] == len(table.feature_names)


def test_scaling_by_constants_of_the_training_rows_passes_and_scaling_both_together_fails():
    learned, tested = measured(seed=1), of_others(measured(seed=2))
    proper = StandardScaler().fit(learned.features)
    assert (
        fitted_outside(
            with_features(tested, proper.transform(tested.features)), training=with_features(learned, proper.transform(learned.features))
        ).verdict
        == "pass"
    )
    both = StandardScaler().fit(np.vstack([learned.features, tested.features]))
    leaky = fitted_outside(with_features(tested, both.transform(tested.features)), training=with_features(learned, both.transform(learned.features)))
    assert leaky.verdict == "fail"


def test_scaling_before_the_gate_is_seen_on_the_whole_table():
    table = measured()
    whole = with_features(table, StandardScaler().fit_transform(table.features))
    let_through = rows(whole, np.flatnonzero(np.arange(len(whole.frame)) % 3))
    assert fitted_outside(let_through).verdict == "pass"
    assert fitted_outside(let_through, whole=whole).verdict == "fail"


# --- a pipeline --------------------------------------------------------------------------------------------------------------------------

N = 60
WHO = np.repeat(np.arange(N // 2), 2)
X_NULL = np.random.default_rng(0).normal(size=(N, 40))
Y = (np.random.default_rng(1).permutation(N // 2) % 2)[WHO]


def scores(model, X, y, train, test):
    return model.fit(X[train], y[train]).predict_proba(X[test])[:, 1]


def nearest_class_mean(X, y, train, test):
    return X[test] @ (X[train][y[train] == 1].mean(axis=0) - X[train][y[train] == 0].mean(axis=0))


def scaled_on_everything(X, y, train, test):
    return nearest_class_mean(StandardScaler().fit_transform(X), y, train, test)


def filled_on_everything(X, y, train, test):
    holes = X.copy()
    holes[::7, 0] = np.nan
    return nearest_class_mean(SimpleImputer(strategy="median").fit_transform(holes), y, train, test)


def selected_on_everything(X, y, train, test):
    return nearest_class_mean(SelectKBest(k=5).fit_transform(X, y), y, train, test)


def selected_by_all_labels(X, y, train, test):
    differ = np.abs(np.corrcoef(np.c_[X, y].T)[-1, :-1])
    return nearest_class_mean(X[:, np.argsort(-differ)[:5]], y, train, test)


def scaled_on_the_test_batch(X, y, train, test):
    here = X.copy()
    here[test] = StandardScaler().fit_transform(X[test])
    return nearest_class_mean(here, y, train, test)


def proper(X, y, train, test):
    return scores(make_pipeline(StandardScaler(), SelectKBest(k=5), LogisticRegression()), X, y, train, test)


@pytest.mark.parametrize(
    "leaky", [scaled_on_everything, filled_on_everything, selected_on_everything, selected_by_all_labels, scaled_on_the_test_batch]
)
def test_a_step_fitted_on_tested_rows_is_caught(leaky):
    finding = probe_pipeline(leaky, X_NULL, Y, subjects=WHO)
    assert finding.verdict == "fail"
    assert finding.counts["moved_by_features"] + finding.counts["moved_by_labels"] > 0


def test_selection_by_tested_labels_is_told_apart():
    assert probe_pipeline(selected_by_all_labels, X_NULL, Y, subjects=WHO).counts["moved_by_labels"] > 0
    assert probe_pipeline(scaled_on_everything, X_NULL, Y, subjects=WHO).counts["moved_by_labels"] == 0


def test_a_pipeline_fitted_inside_the_fold_passes():
    finding = probe_pipeline(proper, X_NULL, Y, subjects=WHO)
    assert (finding.verdict, finding.counts["rows"], finding.counts["folds"]) == ("pass", N, 5)


@pytest.mark.parametrize("head", ["linear", "xgboost"])
def test_our_own_training_passes(head):
    table = table_of(60)
    given = training._usable_rows(table, DEPRESSION, training.TrainingOptions()).rows

    def ours(X, y, train, test):
        fitted, preprocessor = training._fit(replace(given, X=X, target=y).take(train), DEPRESSION, training.TrainingOptions(head=head))
        return fitted.margins(preprocessor.transform(X[test]))

    folds = group_k_fold(given.subjects, given.target, k=2)
    assert probe_pipeline(ours, given.X, given.target, subjects=given.subjects, folds=folds[:1]).verdict == "pass"


def test_a_pipeline_without_a_fixed_seed_is_not_judged():
    rng = np.random.default_rng()
    finding = probe_pipeline(lambda X, y, train, test: rng.normal(size=len(test)), X_NULL, Y, subjects=WHO)
    assert finding.verdict == "not_checked"
    assert "seed" in finding.statement


# --- nuisance ----------------------------------------------------------------------------------------------------------------------------


def cohort(subjects: int, rows_each: int = 1, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Recordings with the nuisance of two sites, and a label for each subject that has nothing to do with it."""
    rng = np.random.default_rng([seed, subjects, rows_each])
    who = np.repeat(np.arange(subjects), rows_each)
    n = len(who)
    frame = pd.DataFrame({
        "row": np.arange(1, n + 1),
        "subject": [f"s{i:03d}" for i in who],
        "site": np.array(["a", "b"])[rng.integers(2, size=subjects)][who],
        "duration_s": np.exp(rng.normal(3, 0.3, subjects)[who] + rng.normal(0, 0.2, n)),
        "quality.level_dbfs": rng.normal(-25, 4, subjects)[who] + rng.normal(0, 2, n),
        "quality.codec": np.array(["pcm_s16", "mp3"])[rng.integers(2, size=subjects)][who],
        "quality.bit_rate_bps": np.where(rng.uniform(size=n) < 0.3, np.nan, rng.normal(64_000, 5_000, n)),
        "recorded_at": [f"2026-03-{d:02d}T{h:02d}:00:00" for d, h in zip(rng.integers(1, 29, n), rng.integers(8, 18, n), strict=True)],
        "phq_item_9": rng.integers(4, size=subjects)[who],
    })  # fmt: skip
    y = (rng.permutation(subjects) < subjects * 0.4)[who]
    return frame, y


def names_of(y) -> np.ndarray:
    return np.where(y, "depressed", "not_depressed").astype(object)


def test_a_label_that_nuisance_does_not_tell_seldom_raises_an_alarm():
    """At the level of 99 % a false alarm is due in 1 to 2 % of cohorts: of 20, at most two (three would come up once in 500 times)."""
    found = [nuisance(*_with_names(cohort(40, 1 + seed % 3, seed))) for seed in range(20)]
    assert [finding.verdict for finding in found].count("pass") >= 18
    assert np.mean([finding.figure.value for finding in found]) < 0.55


def of_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """One column that illness may move and one that it cannot, besides the order: the probe is refitted for every column."""
    return frame[["row", "subject", "site", "duration_s"]]


def _with_names(made):
    return made[0], names_of(made[1])


def told_by_duration(frame, y):
    return frame.assign(duration_s=frame["duration_s"] * np.where(y, 2.6, 1.0))


def told_by_extremes(frame, y):
    away = np.where(y, np.where(np.arange(len(y)) % 2, 18, -18), 0)
    return frame.assign(**{"quality.level_dbfs": frame["quality.level_dbfs"] + away})


def told_by_site(frame, y):
    return frame.assign(site=np.where(y, "a", "b"))


def told_by_codec(frame, y):
    return frame.assign(**{"quality.codec": np.where(y, "mp3", "pcm_s16")})


def told_by_gaps(frame, y):
    return frame.assign(**{"quality.bit_rate_bps": np.where(y, np.nan, 64_000.0)})


def told_by_day(frame, y):
    return frame.assign(recorded_at=np.where(y, "2026-05-02", "2026-03-02"))


def told_by_order(frame, y):
    return frame.assign(row=np.argsort(np.argsort(~y, kind="stable")) + 1)


def told_by_blocks(frame, y):
    """Patients and controls took turns of some twenty people each."""
    place = np.argsort(np.argsort(~y, kind="stable"))
    healthy = place >= y.sum()
    within = np.where(healthy, place - y.sum(), place)
    return frame.assign(row=within // 20 * 1000 + healthy * 500 + within)


@pytest.mark.parametrize(("told", "words"), [
    (told_by_duration, "duration"),
    (told_by_extremes, "level"),
    (told_by_site, "site"),
    (told_by_codec, "codec"),
    (told_by_gaps, "bit rate"),
    (told_by_day, "time of recording"),
    (told_by_order, "order in the file"),
    (told_by_blocks, "order in the file"),
])  # fmt: skip
def test_a_label_told_by_nuisance_fails_and_the_statement_names_what_tells_it(told, words):
    frame, y = cohort(120)
    unrelated = ["quality.level_dbfs", "quality.codec"] if words in {"duration", "site", "bit rate"} else ["site", "duration_s"]
    finding = nuisance(told(frame, y).drop(columns=unrelated), names_of(y))
    assert finding.verdict == "fail"
    assert finding.figure.low > 0.8
    assert f"each alone: {words} " in finding.statement


def test_the_order_of_emotions_within_a_subject_fails_and_what_a_model_can_hear_is_told_apart():
    frame, _ = cohort(20, 8)
    emotions = np.tile(np.array(["anger", "fear", "joy", "neutral"], dtype=object), 40)
    ordered = np.sort(emotions.reshape(20, 8), axis=1).ravel()
    finding = nuisance(of_columns(frame), ordered)
    assert finding.verdict == "fail"
    assert "UAR" in finding.statement
    assert "order in the file within a subject" in finding.statement
    assert "a model cannot hear" in finding.statement


def model_of(value: float, low: float) -> Figure:
    return Figure(value=value, low=low, high=min(1.0, 2 * value - low), subjects=160, recordings=160, method="cluster bootstrap")


def test_nuisance_that_does_as_well_as_the_model_fails_and_else_is_a_warning():
    frame, y = cohort(160)
    somewhat = of_columns(frame.assign(duration_s=frame["duration_s"] * np.where(y, 1.35, 1.0)))
    alone = nuisance(somewhat, names_of(y))
    reached = alone.figure
    assert alone.verdict == "warn"
    assert 0.6 < reached.value < 0.8
    assert nuisance(somewhat, names_of(y), model=model_of(reached.value + 0.02, reached.value - 0.05)).verdict == "warn"
    assert nuisance(somewhat, names_of(y), model=model_of(reached.value - 0.02, reached.value - 0.1)).verdict == "fail"


def test_what_illness_cannot_move_is_held_against_the_models_lower_bound():
    frame, y = cohort(160)
    flipped = np.random.default_rng(0).uniform(size=160) < 0.3
    somewhat = of_columns(told_by_site(frame, y ^ flipped))
    reached = nuisance(somewhat, names_of(y)).figure
    assert nuisance(somewhat, names_of(y), model=model_of(reached.value + 0.05, reached.value - 0.05)).verdict == "fail"
    assert nuisance(somewhat, names_of(y), model=model_of(reached.value + 0.15, reached.value + 0.10)).verdict == "warn"


def test_sex_age_features_and_columns_of_ones_own_are_not_nuisance():
    frame, y = cohort(80)
    mine = frame.assign(sex=np.where(y, "female", "male"), age=np.where(y, 30.0, 60.0), phq_item_9=y * 3, **{"praat.f0_mean_hz": y * 1.0})
    assert nuisance(mine, names_of(y)) == nuisance(frame, names_of(y))


def test_rows_without_a_label_are_left_out():
    frame, y = cohort(80)
    labels = names_of(y)
    labels[:20] = None
    finding = nuisance(of_columns(told_by_site(frame, y)), labels)
    assert (finding.counts["recordings"], finding.figure.recordings, finding.verdict) == (60, 60, "fail")


def test_too_few_subjects_for_the_probe_is_said():
    frame, y = cohort(8)
    assert nuisance(frame, names_of(y)).verdict == "not_checked"
    assert nuisance(frame, np.full(8, None)).verdict == "not_checked"


# --- all together ------------------------------------------------------------------------------------------------------------------------


def test_all_guards_report_in_order_and_name_nobody():
    table = table_of(60, rows_each=2)
    fold = np.repeat(np.arange(60) % 5, 2)
    found = check_leaks(table, table.frame["label"].to_numpy(object), fold=fold)
    assert [finding.name for finding in found] == ["shared_subjects", "same_audio", "near_identical", "fitted_outside", "nuisance"]
    assert {finding.verdict for finding in found} <= {"pass", "not_checked"}
    leaky = together(table, of_others(copies_of(table, [0, 1])), rows(table, [4]))
    scaled = with_features(leaky, StandardScaler().fit_transform(leaky.features))
    told = check_leaks(scaled, scaled.frame["label"], training=table)
    assert [finding.verdict for finding in told[:4]] == ["fail", "fail", "fail", "fail"]
    text = "".join(finding.model_dump_json() for finding in told)
    assert not any(name in text for name in {*scaled.frame["subject"], *scaled.frame["recording"]})


def test_findings_are_the_same_each_time():
    table = table_of(40)
    labels = table.frame["label"].to_numpy(object)
    assert check_leaks(table, labels) == check_leaks(table, labels)


@pytest.mark.parametrize("wrong", [{"labels": ["depressed"]}, {"labels": [None] * 60, "fold": [1, 2]}])
def test_labels_and_folds_have_to_fit_the_rows(wrong):
    with pytest.raises(InvalidValueError, match="one entry for each of the 60 rows"):
        check_leaks(table_of(60), wrong.pop("labels"), **wrong)
