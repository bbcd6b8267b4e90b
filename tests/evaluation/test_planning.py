"""Planning: sample sizes against published examples and simulated studies, learning curves on tables of known truth."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.errors import InvalidValueError, SubjectLeakError, TrainingError
from clinical_ser.evaluation import planning
from clinical_ser.evaluation.discrimination import auroc
from clinical_ser.evaluation.planning import LearningCurve, Precision, check_curve_options, fit_power_law, learning_curve, validation_minimum
from tests.tables import table_of

COARSE = Precision(ln_observed_to_expected=0.1, calibration_slope=0.12, auroc=0.03, net_benefit=0.08, operating_point=0.06)
"""Small studies, so that many can be simulated."""


# --- sample size -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prevalence", "auc", "published"), [(0.1, 0.7, 1154), (0.5, 0.8, 302), (0.018, 0.80, 4252), (0.048, 0.743, 2027)])
def test_c_statistic_agrees_with_published_sizes(prevalence, auc, published):
    """Riley et al. 2021 (sections 3.3 and 4), and the eFalls protocol, by pmvalsampsize."""
    assert validation_minimum(prevalence, auc).for_auroc == published


@pytest.mark.parametrize(("prevalence", "se", "published"), [(0.5, 0.051, 385), (0.1, 0.051, 3461), (0.1, 0.175, 294)])
def test_observed_to_expected_agrees_with_published_sizes(prevalence, se, published):
    assert validation_minimum(prevalence, 0.75, precision=Precision(ln_observed_to_expected=se)).for_observed_to_expected == published


def test_slope_agrees_with_the_information_that_statsmodels_finds_in_many_people():
    """Linear predictor from prevalence and AUC as in section 4.6 of the paper; a million people there, 400,000 here."""
    y, log_odds = study(np.random.default_rng(0), 400_000, 0.2, 0.75)[:2]
    fitted = sm.Logit(y, sm.add_constant(log_odds[:, 0])).fit(disp=0)
    assert fitted.params == pytest.approx([0, 1], abs=0.02)  # the predictor is calibrated, as was assumed
    needed = len(y) * fitted.bse[1] ** 2 / Precision().calibration_slope ** 2
    assert validation_minimum(0.2, 0.75).for_calibration_slope == pytest.approx(needed, rel=0.015)


@pytest.mark.parametrize(("recordings_each", "icc"), [(1, None), (4, 0.5)])
def test_studies_of_the_returned_size_have_the_precision_asked_for(recordings_each, icc):
    """Each measure's standard deviation over simulated studies, against the standard error that it was planned for."""
    planned = validation_minimum(0.3, 0.75, recordings_each=recordings_each, icc=icc, precision=COARSE, threshold=0.25)
    rng, repeats = np.random.default_rng(1), 500
    for measure, subjects, target in (
        (slope, planned.for_calibration_slope, COARSE.calibration_slope),
        (area, planned.for_auroc, COARSE.auroc),
        (net_benefit, planned.for_net_benefit, COARSE.net_benefit),
        (ln_observed_to_expected, planned.for_observed_to_expected, COARSE.ln_observed_to_expected),
        (sensitivity, planned.for_sensitivity, COARSE.operating_point / 1.96),
    ):
        found = [measure(*study(rng, subjects, 0.3, 0.75, recordings_each, icc or 0.0)) for _ in range(repeats)]
        # The standard deviation of 500 studies is itself uncertain by 3 %.
        assert np.std(found) == pytest.approx(target, rel=0.11), measure.__name__


def test_wilson_size_is_the_least_that_does():
    planned = validation_minimum(0.5, 0.8, sensitivity=0.9)
    for n, enough in ((planned.for_sensitivity, True), (planned.for_sensitivity - 2, False)):
        positives = n / 2
        low, high = proportion_confint(0.9 * positives, positives, method="wilson")
        assert ((high - low) / 2 <= 0.05) == enough


def test_specificity_lies_where_the_auc_puts_it():
    y, _, x = study(np.random.default_rng(2), 200_000, 0.5, 0.8)
    planned = validation_minimum(0.5, 0.8, sensitivity=0.85)
    cut = np.quantile(x[y == 1], 0.15)
    assert planned.specificity == pytest.approx(np.mean(x[y == 0] < cut), abs=0.01)
    assert planned.threshold == pytest.approx(expit(2 * 0.8416212**2 * cut / math.sqrt(2 * 0.8416212**2) - 0.8416212**2), abs=0.01)


def test_further_recordings_buy_less_than_people_and_nothing_where_they_are_copies():
    alone = validation_minimum(0.2, 0.75).by_criterion
    alike, some, free = (validation_minimum(0.2, 0.75, recordings_each=5, icc=icc).by_criterion for icc in (1.0, 0.6, 0.0))
    assert alike == alone
    assert free["auroc"] == pytest.approx(alone["auroc"] / 5, abs=1)
    for name, n in alone.items():
        if name == "observed_to_expected":
            assert some[name] == free[name] == n
        else:
            assert free[name] < some[name] < n < 5 * some[name]
            assert some[name] <= math.ceil(n * (1 + 4 * 0.6) / 5) or name == "net_benefit"  # Kish's design effect is a bound


def test_the_largest_criterion_decides_and_events_follow():
    planned = validation_minimum(0.2, 0.75)
    assert planned.subjects == max(planned.by_criterion.values()) == planned.for_calibration_slope
    assert planned.events == math.ceil(0.2 * planned.subjects)
    wider = validation_minimum(0.2, 0.75, precision=Precision(calibration_slope=0.4 / 3.92))
    assert wider.for_calibration_slope == pytest.approx(planned.for_calibration_slope / 4, abs=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prevalence": 0.0},
        {"prevalence": 1.0},
        {"auc": 0.5},
        {"auc": 1.0},
        {"sensitivity": 1.0},
        {"threshold": 0.0},
        {"recordings_each": 0},
        {"recordings_each": 10_001, "icc": 0.0},
        {"recordings_each": 3},
        {"recordings_each": 3, "icc": 1.2},
    ],
)
def test_assumptions_out_of_range_raise(wrong):
    with pytest.raises(InvalidValueError):
        validation_minimum(**({"prevalence": 0.2, "auc": 0.75} | wrong))


def test_a_precision_of_nothing_raises():
    with pytest.raises(InvalidValueError, match="auroc"):
        Precision(auroc=0.0)


def study(rng, subjects, prevalence, auc, recordings_each=1, icc=0.0):
    """Outcomes (n,), calibrated log-odds and scores (n, recordings) of people as the formulas take them to be."""
    distance = np.sqrt(2) * norm.ppf(auc)
    y = (rng.uniform(size=subjects) < prevalence).astype(int)
    own, each = rng.normal(size=(subjects, 1)), rng.normal(size=(subjects, recordings_each))
    x = y[:, None] * distance + np.sqrt(icc) * own + np.sqrt(1 - icc) * each
    return y, logit(prevalence) + distance * x - distance**2 / 2, x


def slope(y, log_odds, _x):
    repeated, design = np.repeat(y, log_odds.shape[1]), sm.add_constant(log_odds.ravel())
    return sm.Logit(repeated, design).fit(disp=0).params[1]


def area(y, _log_odds, x):
    return auroc(np.repeat(y, x.shape[1]), x.ravel())


def net_benefit(y, log_odds, _x):
    flagged, phi = expit(log_odds) >= 0.25, y.mean()
    return (np.mean(flagged & (y[:, None] == 1)) - np.mean(flagged & (y[:, None] == 0)) * 0.25 / 0.75) / phi


def ln_observed_to_expected(y, _log_odds, _x):
    return np.log(y.mean() / 0.3)  # the expected share is that of the people invited, as in the paper


def sensitivity(y, _log_odds, x):
    cut = np.sqrt(2) * norm.ppf(0.75) - norm.ppf(0.85)
    return np.mean(x[y == 1] >= cut)


# --- power law -------------------------------------------------------------------------------------------------------------------------------

SIZES = np.array([30, 60, 120, 240, 480])


@pytest.mark.parametrize(("a", "b", "c"), [(0.85, 1.2, 0.6), (0.95, 0.8, 0.3), (0.7, 4.0, 1.0)])
def test_the_power_law_recovers_known_parameters(a, b, c):
    law = fit_power_law(SIZES, a - b * SIZES**-c)
    assert (law.asymptote, law.exponent) == pytest.approx((a, c), abs=0.02)
    assert law.at(2000) == pytest.approx(a - b * 2000**-c, abs=2e-3)
    target = a - b * 1000**-c
    assert law.subjects_for(target) == pytest.approx(1000, rel=0.05)
    assert math.isinf(law.subjects_for(a + 0.03))


def test_the_power_law_stays_within_bounds():
    steep = fit_power_law(SIZES, np.array([0.5, 0.6, 0.7, 0.8, 0.9]))
    assert steep.asymptote == 1.0
    falling = fit_power_law(SIZES, np.array([0.8, 0.79, 0.78, 0.77, 0.76]))
    assert (falling.scale, falling.asymptote) == pytest.approx((0, 0.78))
    assert falling.subjects_for(0.7) == 0
    assert math.isinf(falling.subjects_for(0.9))
    below = fit_power_law(SIZES, np.full(5, 0.45))
    assert (below.asymptote, below.scale) == pytest.approx((0.5, 0), abs=0.2)


def test_the_bounded_fit_is_no_worse_than_any_other_within_bounds():
    rng = np.random.default_rng(3)
    for _ in range(20):
        values, variance = rng.uniform(0.4, 1.0, 5), rng.uniform(0.5, 2.0, 5)
        law = fit_power_law(SIZES, values, variance)
        best = np.sum((values - law.asymptote + law.scale * SIZES**-law.exponent) ** 2 / variance)
        x = SIZES**-law.exponent
        for a in np.linspace(0.5, 1.0, 101):
            b = max(0.0, np.sum(x * (a - values) / variance) / np.sum(x**2 / variance))
            assert best <= np.sum((values - a + b * x) ** 2 / variance) + 1e-9


def test_a_noisy_size_counts_less():
    values = 0.85 - 1.2 * SIZES**-0.6
    bent = values + np.array([0.1, 0, 0, 0, 0])
    trusting, wary = (fit_power_law(SIZES, bent, np.array([v, 1, 1, 1, 1])).at(1000) for v in (1.0, 1e4))
    assert abs(wary - (0.85 - 1.2 * 1000**-0.6)) < abs(trusting - (0.85 - 1.2 * 1000**-0.6)) / 5


def test_two_sizes_make_no_law():
    with pytest.raises(InvalidValueError, match="three"):
        fit_power_law([10, 20], [0.6, 0.7])


# --- learning curve --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curve():
    table = table_of(120, effect=4.0, seed=1)
    return learning_curve(table, DEPRESSION, sizes=[18, 36, 75], folds=3, repeats=2, replicates=100, targets=[0.55, 0.99999])


def test_the_curve_rises_and_carries_its_uncertainty(curve):
    first, *_, last = curve.points
    assert curve.metric == "auroc"
    assert last.value > first.value + 0.05
    assert all(point.low < point.value < point.high for point in curve.points)
    assert last.calibration_slope_low < last.calibration_slope < last.calibration_slope_high
    assert curve.curve.scale > 0
    widths = [ahead.high - ahead.low for ahead in curve.extrapolated]
    assert widths[-1] > widths[0]
    assert [ahead.subjects for ahead in curve.extrapolated] == [120, 180, 240, 360, 600]


def test_a_target_is_reached_or_said_to_be_out_of_reach(curve):
    low, beyond = curve.targets
    assert low.subjects == 18  # reached from the first size on, below which nothing is known
    assert low.share > 0.9
    assert beyond.subjects is None
    assert beyond.high is None


def test_the_curve_is_plain_numbers_and_comes_back_from_json(curve):
    assert LearningCurve.model_validate_json(curve.model_dump_json()) == curve
    assert "s0001" not in curve.model_dump_json()


class Spy:
    """Stands in for `train`: notes who was trained on and who was asked about, and answers from `score`."""

    def __init__(self, table, score):
        self.table, self.score, self.calls = table, score, []
        self.subject_of = {row.tobytes(): subject for row, subject in zip(table.features, table.subjects, strict=True)}

    def __call__(self, part, _task, _options):
        asked = []
        self.calls.append((part.subjects.tolist(), asked))

        def log_odds(X):
            asked.extend(self.subject_of[row.tobytes()] for row in np.ascontiguousarray(X))
            return self.score(len(self.calls), X)

        return SimpleNamespace(model=SimpleNamespace(log_odds=log_odds))


def test_whoever_is_tested_is_in_no_subset_and_everyone_is_tested_once_a_repeat(monkeypatch):
    table = table_of(60, rows_each=2, seed=2)
    spy = Spy(table, lambda _call, X: X[:, 0])
    monkeypatch.setattr(planning, "train", spy)
    learning_curve(table, DEPRESSION, sizes=[15, 30, 45], folds=4, repeats=3, replicates=40)
    assert len(spy.calls) == 3 * 4 * 3
    tested = {}
    for number, (trained, asked) in enumerate(spy.calls):
        assert not set(trained) & set(asked)
        assert len(set(trained)) == [15, 30, 45][number % 3]
        tested.setdefault((number // 12, number % 3), []).extend(asked)
    for smaller, larger in zip(spy.calls, spy.calls[1:], strict=False):
        if len(smaller[0]) < len(larger[0]):
            assert set(smaller[0]) < set(larger[0])  # nested: the same people and some more
    assert all(sorted(asked) == sorted(table.subjects) for asked in tested.values())


def test_a_subset_that_held_tested_people_would_be_refused(monkeypatch):
    order = planning._spread_order
    monkeypatch.setattr(planning, "_spread_order", lambda rows, task, rng: np.append(order(rows, task, rng)[:-1], "s0000"))
    monkeypatch.setattr(planning, "train", Spy(table_of(60), lambda _call, X: X[:, 0]))
    with pytest.raises(SubjectLeakError):
        learning_curve(table_of(60), DEPRESSION, sizes=[48], repeats=2, replicates=40)


def test_subsets_keep_the_shares_of_the_classes(monkeypatch):
    table = table_of(100, seed=3)
    spy = Spy(table, lambda _call, X: X[:, 0])
    monkeypatch.setattr(planning, "train", spy)
    learning_curve(table, DEPRESSION, sizes=[20, 40, 80], repeats=2, replicates=40)
    ill = dict(zip(table.subjects.tolist(), table.frame["label"] == "depressed", strict=True))
    share = np.mean(list(ill.values()))
    for trained, _ in spy.calls:
        assert abs(sum(ill[subject] for subject in trained) - share * len(trained)) <= 2


def test_pairs_are_compared_within_a_fold_and_every_subject_counts_once(monkeypatch):
    """Each call's answers lie on a scale of their own: across folds they would be ordered by the fold."""
    table = table_of(60, rows_each=3, seed=4)
    truth = {row.tobytes(): value for row, value in zip(table.features, table.frame["truth"], strict=True)}
    spy = Spy(table, lambda call, X: np.array([truth[row.tobytes()] for row in np.ascontiguousarray(X)]) + 50 * call)
    monkeypatch.setattr(planning, "train", spy)
    found = learning_curve(table, DEPRESSION, sizes=[20, 40], repeats=2, replicates=40)
    y = (table.frame["label"] == "depressed").to_numpy(int)
    whole = auroc(y[::3], table.frame["truth"].to_numpy()[::3])
    assert found.points[0].value == pytest.approx(whole, abs=0.04)
    assert found.curve is None  # two sizes are no curve


def test_several_classes_get_uar_with_subjects_of_every_class():
    table = emotions(30)
    found = learning_curve(table, EMOTION, sizes=[7, 15], folds=2, repeats=2, replicates=40)
    assert (found.metric, found.prevalence, found.features) == ("uar", None, len(table.feature_names))
    assert found.points[-1].value > found.points[0].value > 1 / 3
    assert found.points[0].calibration_slope is None


def emotions(subjects):
    """Three emotions from everyone, told apart by two features."""
    table = table_of(subjects, rows_each=3, seed=5)
    frame, kind = table.frame.copy(), np.tile([0, 1, 2], subjects)
    frame["label"] = np.array(["angry", "neutral", "sad"])[kind]
    for name, shift in zip(table.feature_names[:2], ([0.0, 1.5, 0.0], [0.0, 0.0, 1.5]), strict=True):
        frame[name] = frame[name] + np.array(shift)[kind]
    return replace(table, frame=frame)


def test_sizes_are_chosen_within_what_can_be_trained_on(monkeypatch):
    table = table_of(100, seed=6)
    monkeypatch.setattr(planning, "train", Spy(table, lambda _call, X: X[:, 0]))
    sizes = [point.subjects for point in learning_curve(table, DEPRESSION, repeats=2, replicates=40).points]
    assert (len(sizes), sizes[-1]) == (5, 80)
    assert sizes == sorted(sizes)
    for wrong in ([8, 40], [40, 95]):
        with pytest.raises(InvalidValueError, match="the others are tested"):
            learning_curve(table, DEPRESSION, sizes=wrong, repeats=2, replicates=40)


def test_sizes_at_which_nothing_was_learned_are_no_part_of_the_fit(monkeypatch):
    table = table_of(60, seed=7)
    pause = table.feature_names.index("timing.pause_mean_s")
    monkeypatch.setattr(planning, "train", Spy(table, lambda call, X: np.zeros(len(X)) if call % 4 == 1 else X[:, pause]))
    found = learning_curve(table, DEPRESSION, sizes=[15, 25, 35, 45], repeats=2, replicates=40)
    assert found.points[0].value == 0.5
    assert found.curve.scale == pytest.approx(0, abs=1e-9)  # the other three sizes answer alike


def test_the_same_seed_gives_the_same_curve_and_progress_counts_trainings(monkeypatch):
    table = table_of(60, seed=8)
    seen = []
    curves = []
    for seed in (1, 1, 2):
        monkeypatch.setattr(planning, "train", Spy(table, lambda _call, X: X[:, 0] + 1e-3 * X[:, 1]))
        curves.append(
            learning_curve(table, DEPRESSION, sizes=[15, 30], repeats=2, replicates=40, seed=seed, progress=lambda *done: seen.append(done))
        )
    assert curves[0] == curves[1] != curves[2]
    assert seen[:20] == [(done, 20) for done in range(1, 21)]


def test_too_few_people_of_a_class_raise():
    table = table_of(30)
    table.frame["label"] = np.where(np.arange(30) < 5, "depressed", "not_depressed")
    with pytest.raises(TrainingError, match="beside those tested"):
        learning_curve(table, DEPRESSION, repeats=2)


@pytest.mark.parametrize("wrong", [{"repeats": 1}, {"replicates": 10}, {"targets": [1.0]}, {"sizes": [2, 40]}, {"sizes": []}])
def test_options_out_of_range_raise(wrong):
    with pytest.raises(InvalidValueError):
        learning_curve(table_of(60), DEPRESSION, **wrong)
    with pytest.raises(InvalidValueError):  # the same without a table
        check_curve_options(**wrong)


def test_two_classes_in_a_task_of_several_are_refused_before_any_training(monkeypatch):
    spy = Spy(table_of(60), lambda _call, X: X[:, 0])
    monkeypatch.setattr(planning, "train", spy)
    with pytest.raises(InvalidValueError, match="a task of two classes: this one is for 3 or more, and the table's labels name 2"):
        learning_curve(table_of(60), EMOTION, sizes=[20, 40], repeats=2)
    assert not spy.calls
