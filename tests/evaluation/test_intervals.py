"""Intervals: that they hold the truth as often as they say with several recordings a subject, and agree with independent implementations."""

from functools import partial

import numpy as np
import pytest
from scipy.special import logit, ndtr
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation import intervals
from clinical_ser.evaluation.intervals import Bootstrap, bootstrap, delong, likelihood_ratio, wilson
from clinical_ser.features.workers import Lost, run_in_processes


def means(rng, rows, figures=2):
    """A statistic that a fresh interpreter can rebuild; its product goes through BLAS."""
    return partial(np.matmul, rng.normal(size=(figures, rows)))


def cohort(rng, subjects, *, data_sets=1, each=5, prevalence=0.3):
    """Labels (data_sets, subjects), of the subject, and scores (data_sets, subjects, each), which share half of their variance in a subject."""
    ill = rng.random((data_sets, subjects)) < prevalence
    own, of_recording = rng.normal(size=(data_sets, subjects, 1)), rng.normal(size=(data_sets, subjects, each))
    return ill, 1.5 * ill[..., None] + np.sqrt(0.5) * (own + of_recording)


class Specificity:
    """Share of rows without the condition that are below the threshold; one figure a data set."""

    threshold = 0.75

    def __init__(self, ill, score):
        self.well = np.repeat(~ill, score.shape[-1], axis=1).astype(float)
        self.passed = self.well * (score.reshape(self.well.shape) < self.threshold)

    def __call__(self, weight):
        return self.passed @ weight / (self.well @ weight)


def held(bounds, truth):
    low, high = np.array(bounds).T
    return np.mean((low <= truth) & (truth <= high))


# Coverage. Of 1000 intervals that cover 95 %, 936 to 964 hold the truth in 95 of 100 runs; seeds are fixed.


@pytest.mark.parametrize("subjects", [30, 60, 120])
def test_nominal_95_percent_covers_93_to_97_with_five_recordings_a_subject_where_naive_wilson_covers_80(subjects):
    ill, score = cohort(np.random.default_rng(1), subjects, data_sets=1000)
    drawn = bootstrap(Specificity(ill, score), np.repeat(np.arange(subjects), 5), replicates=600)
    people = (~ill).sum(axis=1)
    ours = [drawn.interval(i, subjects=n, share=True) for i, n in enumerate(people)]
    naive = [wilson(value, 5 * n) for value, n in zip(drawn.values, people, strict=True)]
    truth = ndtr(Specificity.threshold)
    assert 0.93 <= held(ours, truth) <= 0.97
    assert 0.72 <= held(naive, truth) <= 0.85


def test_auroc_covers_93_to_97():
    rng = np.random.default_rng(2)
    truth, bounds = ndtr(1.5 / np.sqrt(2)), []
    for ill, score in zip(*cohort(rng, 60, data_sets=600), strict=True):
        # Share of rightly ordered pairs of recordings, for every pair of subjects: replicates are then one product.
        won = (score[ill][:, None, :, None] > score[~ill][None, :, None, :]).mean((2, 3))
        times = rng.multinomial(60, np.full(60, 1 / 60), size=300).astype(float)
        positive, negative = times[:, ill], times[:, ~ill]
        replicates = np.einsum("rp,rp->r", positive, negative @ won.T) / (positive.sum(1) * negative.sum(1))
        drawn = Bootstrap(np.array([won.mean()]), replicates[:, None])
        bounds.append(drawn.interval(0, subjects=min(won.shape), share=True))
    assert 0.93 <= held(bounds, truth) <= 0.97


@pytest.mark.parametrize("subjects", [3, 8, 40])
def test_the_mean_of_subjects_gets_students_interval(subjects):
    """The one figure whose exact interval is known, if people are normal; 1 % of the width is sampling error of 5000 replicates."""
    each = np.random.default_rng(3).normal(size=subjects)
    drawn = bootstrap(partial(np.matmul, np.repeat(each, 5)[None] / (5 * subjects)), np.repeat(np.arange(subjects), 5), replicates=5000)
    expected = t.interval(0.95, subjects - 1, each.mean(), each.std(ddof=1) / np.sqrt(subjects))
    assert drawn.interval(0, subjects=subjects) == pytest.approx(expected, abs=0.04 * (expected[1] - expected[0]))


def test_the_gap_of_equal_groups_holds_0_where_percentiles_never_do():
    rng = np.random.default_rng(4)
    bounds, plain = [], []
    for _ in range(200):
        each = rng.normal(size=(6, 40))
        times = rng.multinomial(40, np.full(40, 1 / 40), size=(300, 6))
        drawn = Bootstrap(each.mean(1), np.einsum("rgs,gs->rg", times, each) / 40)
        bounds.append(drawn.gap(range(6), subjects=[40] * 6))
        plain.append(np.quantile(np.ptp(drawn.replicates, axis=1), [0.025, 0.975]))
    assert held(bounds, 0) >= 0.95
    assert held(plain, 0) == 0


def test_the_interval_of_a_distance_reaches_down_to_what_chance_does_not_add():
    rng = np.random.default_rng(5)
    values, found = [], []
    for _ in range(200):
        x = rng.normal(0.0, 1.0, size=(30, 20))
        times = rng.multinomial(30, np.full(30, 1 / 30), size=300)
        # Mean distance of twenty means from 0: at best 0, and never seen to be.
        drawn = Bootstrap(np.array([np.abs(x.mean(0)).mean()]), np.abs(times @ x / 30).mean(1)[:, None])
        values.append(drawn.values[0])
        found.append(drawn.of_distance(0, subjects=30))
    found = np.array(found)
    assert (found[:, 0] <= 0.7 * np.array(values)).all(), "half of each is chance"
    assert (found[:, 1] >= values).all(), "the figure lies within its interval"
    assert found.min() >= 0


# The engine.


def test_replicates_are_draws_of_whole_subjects():
    subjects = np.repeat(["b", "a", "c", "d"], [1, 2, 3, 4])
    seen = []
    bootstrap(lambda weight: (seen.append(weight.copy()), np.zeros(1))[1], subjects, weight=np.full(10, 0.5), replicates=50)
    all_rows, *samples = seen
    assert (all_rows == 0.5).all()
    for weight in samples:
        times = weight[[0, 1, 3, 6]] * 2
        assert (weight * 2 == np.repeat(times, [1, 2, 3, 4])).all()
        assert times.sum() == 4
    assert np.mean([weight[0] * 2 for weight in samples]) == pytest.approx(1, abs=0.4)


def test_an_answer_depends_on_the_seed_only():
    rng = np.random.default_rng(6)
    subjects, statistic = np.repeat(np.arange(30), 3), means(rng, 90)
    first, again, other = (bootstrap(statistic, subjects, replicates=45, seed=seed) for seed in (0, 0, 1))
    assert (first.replicates == again.replicates).all()
    assert (first.replicates != other.replicates).any()
    longer = bootstrap(statistic, subjects, replicates=70, seed=0)
    assert (longer.replicates[:45] == first.replicates).all()


@pytest.fixture
def eager(monkeypatch):
    """Processes for work however small; a list that says when they were used."""
    used = []

    def run(function, jobs, *, workers):
        used.append(workers)
        return run_in_processes(function, jobs, workers=workers)

    monkeypatch.setattr(intervals, "WORTH_PROCESSES_S", 0.0)
    monkeypatch.setattr(intervals, "run_in_processes", run)
    return used


def test_workers_give_the_same_bits_as_one(eager):
    subjects, statistic = np.repeat(np.arange(5000), 4), means(np.random.default_rng(7), 20_000, figures=9)
    one = bootstrap(statistic, subjects, replicates=90)
    assert not eager
    two = bootstrap(statistic, subjects, replicates=90, workers=2)
    assert eager == [2]
    assert (one.replicates == two.replicates).all()


def test_a_closure_is_computed_here(eager):
    drawn = bootstrap(lambda weight: np.array([weight.sum()]), np.arange(30), replicates=90, workers=2)
    assert not eager
    assert (drawn.replicates == 30).all()


def test_small_work_stays_here():
    subjects, statistic = np.arange(30), means(np.random.default_rng(8), 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "run_in_processes", None)
        bootstrap(statistic, subjects, replicates=90, workers=2)


def test_work_that_a_process_died_of_is_tried_here(eager, monkeypatch):
    subjects, statistic = np.arange(30), means(np.random.default_rng(9), 30)
    monkeypatch.setattr(intervals, "run_in_processes", lambda _, jobs, workers: ((i, Lost("killed")) for i in range(len(jobs))))
    lost = bootstrap(statistic, subjects, replicates=90, workers=2)
    assert (lost.replicates == bootstrap(statistic, subjects, replicates=90).replicates).all()


def test_progress_tells_all_replicates_once():
    told = []
    bootstrap(lambda weight: np.array([weight.sum()]), np.arange(3), replicates=45, progress=lambda *at: told.append(at))
    assert [total for _, total in told] == [45] * len(told)
    done = [number for number, _ in told]
    assert done == sorted(set(done))
    assert done[-1] == 45


def test_derived_figures_are_paired():
    rng = np.random.default_rng(10)
    drawn = bootstrap(means(rng, 60, figures=3), np.repeat(np.arange(20), 3), replicates=40)
    both = drawn.derived(lambda figures: figures[..., [0, 1]] - figures[..., [2]])
    assert both.replicates.shape == (40, 2)
    assert (both.replicates[:, 1] == drawn.replicates[:, 1] - drawn.replicates[:, 2]).all()
    assert (both.values == drawn.values[:2] - drawn.values[2]).all()


def test_models_that_agree_everywhere_differ_by_nothing():
    drawn = Bootstrap(np.array([0.0]), np.zeros((50, 1)))
    assert drawn.interval(0, subjects=20) == (0, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.6])
def test_a_share_without_spread_gets_wilson_on_subjects(value):
    """All caught, none caught, and three of five of everyone, up to rounding."""
    rng = np.random.default_rng(11)
    drawn = Bootstrap(np.array([value]), np.clip(value + 1e-16 * rng.normal(size=(100, 1)), 0, 1))
    assert drawn.interval(0, subjects=12, share=True) == pytest.approx(wilson(value, 12))


def test_with_one_row_a_subject_a_share_gets_about_wilson():
    y = np.arange(80) < 56
    drawn = bootstrap(lambda weight: np.array([weight @ y / weight.sum()]), np.arange(80), replicates=3000)
    assert drawn.interval(0, subjects=80, share=True) == pytest.approx(wilson(0.7, 80), abs=0.006)


def test_a_higher_level_is_wider():
    rng = np.random.default_rng(12)
    replicates = 0.8 + 0.05 * rng.normal(size=(500, 1))
    for share in (True, False):
        (low, high), (lower, higher) = (Bootstrap(np.array([0.8]), replicates, at).interval(0, subjects=30, share=share) for at in (0.9, 0.99))
        assert lower < low < 0.8 < high < higher


def test_undefined_replicates_are_left_out_and_too_many_leave_no_interval():
    rng = np.random.default_rng(13)
    replicates = rng.normal(size=(100, 1))
    whole = Bootstrap(np.array([0.0]), replicates.copy()).interval(0, subjects=20)
    replicates[:20] = np.nan
    fewer = Bootstrap(np.array([0.0]), replicates.copy()).interval(0, subjects=20)
    assert fewer == Bootstrap(np.array([0.0]), replicates[20:]).interval(0, subjects=20)
    assert fewer != whole
    replicates[20] = np.nan
    drawn = Bootstrap(np.array([0.0]), replicates)
    assert np.isnan(drawn.interval(0, subjects=20)).all()
    assert np.isnan(drawn.of_distance(0, subjects=20)).all()
    assert np.isnan(Bootstrap(np.zeros(2), np.repeat(replicates, 2, axis=1)).gap([0, 1], subjects=[20, 20])).all()


def test_one_person_and_an_undefined_figure_have_no_interval():
    drawn = bootstrap(lambda weight: np.array([weight.sum(), np.nan]), ["only"] * 5, replicates=20)
    assert np.isnan(drawn.interval(0, subjects=1)).all()
    assert np.isnan(drawn.interval(1, subjects=9)).all()


def test_few_wild_replicates_do_not_move_an_interval():
    """Near separation a slope is fitted in the hundreds now and then."""
    rng = np.random.default_rng(14)
    replicates = 1 + 0.2 * rng.normal(size=(1000, 1))
    calm = Bootstrap(np.array([1.0]), replicates.copy()).interval(0, subjects=50)
    replicates[:10] = 500.0
    assert Bootstrap(np.array([1.0]), replicates).interval(0, subjects=50) == pytest.approx(calm, rel=0.05)
    error = (calm[1] - calm[0]) / 2 / 2.0096  # t of 49 degrees of freedom
    assert error == pytest.approx(0.2, rel=0.06)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"subjects": []}, "subjects"),
        ({"weight": [1.0, 2.0]}, "weight"),
        ({"weight": [1.0, -1.0, 1.0]}, "weight"),
        ({"weight": [1.0, np.nan, 1.0]}, "weight"),
        ({"replicates": 0}, "replicates"),
        ({"level": 1.0}, "level"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"statistic": lambda weight: weight.sum()}, "statistic"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given, what):
    usual = {"statistic": lambda weight: weight[:1], "subjects": ["anna", "bo", "cy"], "replicates": 5}
    with pytest.raises(InvalidValueError, match=what) as refused:
        bootstrap(**(usual | given))
    assert "anna" not in str(refused.value)


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(InvalidValueError, match="share"):
        Bootstrap(np.array([1.2]), np.full((10, 1), 1.2)).interval(0, subjects=9, share=True)


# One row a subject.


@pytest.mark.parametrize(("right", "n"), [(0, 9), (9, 9), (1, 30), (17, 40), (3999, 4000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_agrees_with_statsmodels(right, n, level):
    assert wilson(right / n, n, level=level) == pytest.approx(proportion_confint(right, n, 1 - level, method="wilson"), abs=1e-12)


def test_wilson_of_nobody_is_not_defined():
    assert np.isnan(wilson(np.nan, 0)).all()
    with pytest.raises(InvalidValueError, match="share"):
        wilson(1.5, 3)
    with pytest.raises(InvalidValueError, match="n,"):
        wilson(0.5, -1)


def pairs(y, score):
    """Psi of DeLong et al., every positive against every negative."""
    positive, negative = score[y == 1][:, None], score[y == 0]
    return (positive > negative) + 0.5 * (positive == negative)


def error_on_logit_scale(bounds):
    low, high = logit(bounds)
    return (high - low) / 2 / 1.959963984540054


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_delong_agrees_with_brute_force_with_ties(decimals):
    rng = np.random.default_rng(15)
    y = (rng.random(90) < 0.3).astype(int)
    score = np.round(rng.normal(y, 1.0), decimals)
    won = pairs(y, score)
    area, (m, n) = won.mean(), won.shape
    variance = won.mean(1).var(ddof=1) / m + won.mean(0).var(ddof=1) / n
    bounds = delong(y, score)
    assert logit(bounds).mean() == pytest.approx(logit(area))
    assert error_on_logit_scale(bounds) == pytest.approx(np.sqrt(variance) / (area * (1 - area)))


def test_delong_agrees_with_an_independent_implementation():
    rng = np.random.default_rng(16)
    y = rng.permutation(np.repeat([0, 1], [300, 120]))
    score = rng.normal(y, 1.2)
    # Of the package confidenceinterval 1.0.5 (`delong_roc_variance`), which needs a setuptools too old for torch.
    area, variance = 0.746833324432373, 0.0007040198601417589
    assert error_on_logit_scale(delong(y, score)) == pytest.approx(float(np.sqrt(variance) / (area * (1 - area))), rel=1e-5)


def test_a_likelihood_ratio_covers_where_hardly_anyone_is_flagged_wrongly():
    """Specificity 0.99 of a hundred: the bootstrap's interval of a predictive value held the truth in 57 %."""
    rng = np.random.default_rng(23)
    sensitivity, specificity, times = 0.5, 0.99, 1500
    held = 0
    for caught, alarms in zip(rng.binomial(40, sensitivity, times), rng.binomial(100, 1 - specificity, times), strict=True):
        low, high = likelihood_ratio((caught / 40, *wilson(caught / 40, 40)), (alarms / 100, *wilson(alarms / 100, 100)))
        held += low <= sensitivity / (1 - specificity) <= high
    assert 0.93 <= held / times <= 0.985


def test_a_likelihood_ratio_without_bounds_has_none():
    assert np.isnan(likelihood_ratio((0.5, 0.4, 0.6), (0.1, np.nan, 0.2))).all()
    assert likelihood_ratio((0.5, 0.4, 0.6), (0.0, 0.0, 0.04))[1] == np.inf


def test_delong_stays_sensible_where_all_pairs_are_ordered_alike():
    y = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    assert delong(y, y) == wilson(1.0, 3)
    assert delong(y, -y) == wilson(0.0, 3)


def test_delong_needs_two_of_each_class():
    assert np.isnan(delong([0, 0, 1], [1.0, 2.0, 3.0])).all()


@pytest.mark.parametrize(("y", "score", "what"), [([0, 1], [1.0], "y and score"), ([0, 2], [1.0, 2.0], "y"), ([0, 1], [1.0, np.nan], "score")])
def test_delong_refuses_what_does_not_fit(y, score, what):
    with pytest.raises(InvalidValueError, match=f"for {what}"):
        delong(y, score)
