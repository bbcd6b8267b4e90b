"""Calibration: against scikit-learn, statsmodels and formulas written out in full, by simulation, and a weight of 2 is the row twice."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import brier_score_loss

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.calibration import BINS, SPANS, Reliability, brier, intercept_and_slope
from clinical_ser.models.weights import subject_weights

GRID = np.linspace(0.02, 0.98, 49)


def stated(n: int = 300, *, slope: float = 1.4, seed: int = 0):
    """Make outcomes, overconfident log-odds and uneven weights, some 0."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-0.5, 1.2, n)
    y = (rng.uniform(size=n) < expit(truth)).astype(int)
    return y, slope * truth + 0.3, rng.integers(0, 4, n) * rng.uniform(0.2, 1.0, n)


def correlated(subjects: int, rows_each: int, rng: np.random.Generator):
    """Make perfectly calibrated risks, and as many recordings of each subject that share the outcome and, but for a little, the risk."""
    truth = rng.normal(-0.5, 1.2, subjects)
    y = (rng.uniform(size=subjects) < expit(truth)).astype(int)
    who = np.repeat(np.arange(subjects), rows_each)
    return y[who], truth[who], who


@st.composite
def few_rows(draw):
    n = draw(st.integers(2, 25))
    ints = lambda high: np.array(draw(st.lists(st.integers(0, high), min_size=n, max_size=n)))  # noqa: E731
    return ints(1), ints(6) - 3.0, ints(3)


# Brier score and its parts


def test_brier_agrees_with_scikit_learn_under_weights():
    y, log_odds, weight = stated()
    expected = brier_score_loss(y, expit(log_odds), sample_weight=weight)
    assert Reliability(y, log_odds).brier(weight) == pytest.approx(expected, abs=1e-14)
    assert brier(y, expit(log_odds), weight) == pytest.approx(expected, abs=1e-14)


def test_parts_add_up_to_the_brier_score_exactly():
    for seed in range(20):
        y, log_odds, weight = stated(n=int(37 + 11 * seed), seed=seed)
        reliability = Reliability(y, log_odds)
        low, resolution, uncertainty = reliability.brier_parts(weight)
        assert low - resolution + uncertainty == pytest.approx(reliability.brier(weight), abs=1e-14)


def test_parts_of_probabilities_that_are_one_a_bin_are_murphys():
    rng = np.random.default_rng(1)
    p = rng.choice([0.1, 0.3, 0.7], 300)
    y = (rng.uniform(size=300) < p**0.7).astype(int)
    weight = rng.integers(0, 3, 300)
    rate = {v: np.average(y[p == v], weights=weight[p == v]) for v in (0.1, 0.3, 0.7)}
    share = {v: weight[p == v].sum() / weight.sum() for v in rate}
    overall = np.average(y, weights=weight)
    expected = (
        sum(share[v] * (v - rate[v]) ** 2 for v in rate),
        sum(share[v] * (rate[v] - overall) ** 2 for v in rate),
        overall * (1 - overall),
    )
    assert Reliability(y, logit(p)).brier_parts(weight) == pytest.approx(expected, abs=1e-12)


def test_observed_to_expected_is_the_ratio_of_sums():
    y, log_odds, weight = stated()
    assert Reliability(y, log_odds).observed_to_expected(weight) == pytest.approx((weight * y).sum() / (weight * expit(log_odds)).sum())


# Intercept and slope


@pytest.mark.parametrize("seed", range(4))
def test_intercept_and_slope_agree_with_statsmodels_under_weights(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import statsmodels.api as sm
    y, log_odds, weight = stated(n=150, seed=seed)
    binomial = sm.families.Binomial()
    intercept = sm.GLM(y, np.ones(150), family=binomial, offset=log_odds, freq_weights=weight).fit(tol=1e-13).params[0]
    slope = sm.GLM(y, sm.add_constant(log_odds), family=binomial, freq_weights=weight).fit(tol=1e-13).params[1]
    for found in (Reliability(y, log_odds).intercept_and_slope(weight), intercept_and_slope(y, log_odds, weight)):
        assert found == pytest.approx((intercept, slope), abs=1e-9)


def test_warm_and_cold_starts_end_at_the_same_fit():
    y, log_odds, _ = stated(n=2000)
    warm, rng = Reliability(y, log_odds), np.random.default_rng(3)
    for _ in range(20):
        weight = rng.multinomial(2000, np.full(2000, 1 / 2000))
        assert warm.intercept_and_slope(weight) == pytest.approx(intercept_and_slope(y, log_odds, weight), abs=1e-9)


def test_fit_far_from_where_it_starts_is_found():
    """Certain of the wrong class nearly everywhere: plain Newton steps from a perfect model overshoot by thousands."""
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 400)
    log_odds = np.where(y == 1, -25.0, 25.0) + rng.normal(0, 20, 400)
    intercept, slope = intercept_and_slope(y, log_odds)
    held = np.clip(log_odds, -27.7, 27.7)
    assert slope < 0
    assert y.sum() == pytest.approx(expit(intercept + np.clip(held, -27.631021, 27.631021)).sum(), abs=1e-4)


@settings(max_examples=200, deadline=None)
@given(few_rows())
def test_a_slope_is_given_exactly_where_the_classes_overlap(rows):
    y, log_odds, times = rows
    ill, well = log_odds[(y == 1) & (times > 0)], log_odds[(y == 0) & (times > 0)]
    intercept, slope = Reliability(y, log_odds).intercept_and_slope(times)
    assert np.isfinite(intercept) == bool(len(ill) and len(well))
    overlap = bool(len(ill) and len(well)) and ill.max() > well.min() and well.max() > ill.min()
    assert np.isfinite(slope) == overlap
    if overlap:
        scale = np.abs(slope * log_odds).max() + 1
        shifts = [brentq(lambda a, b=b: times @ (y - expit(a + b * log_odds)), -50 * scale, 50 * scale) for b in (slope - 0.01, slope, slope + 0.01)]
        likelihood = [
            times @ (y * (a + b * log_odds) - np.logaddexp(0, a + b * log_odds))
            for a, b in zip(shifts, slope + np.array([-0.01, 0, 0.01]), strict=True)
        ]
        assert likelihood[1] >= max(likelihood) - 1e-12


# Calibration errors


def direct_smooth_ece(y, p, weight, points: int = 2000) -> float:
    """Take the paper's formula as it stands: every row's kernel with its reflections at every point."""
    t = (np.arange(points) + 0.5) / points
    images = np.concatenate([2 * m + sign * p for m in range(-3, 4) for sign in (1, -1)])
    residual = np.tile(weight * (y - p) / weight.sum(), 14)

    def under(sd):
        return np.abs(norm.pdf(t[:, None], images, sd) @ residual).mean()

    return brentq(lambda sd: under(sd) - sd, 1e-3, 1, xtol=1e-6)


@pytest.mark.parametrize(("n", "slope"), [(40, 1.0), (60, 3.0), (100, 1.0)])
def test_smooth_ece_agrees_with_the_direct_formula(n, slope):
    y, log_odds, weight = stated(n, slope=slope)
    assert Reliability(y, log_odds).smooth_ece(weight) == pytest.approx(direct_smooth_ece(y, expit(log_odds), weight), rel=2e-4)


def test_smooth_ece_of_certain_probabilities_sits_on_the_reflecting_ends():
    y = np.array([0, 1, 1, 1])
    log_odds = np.array([-np.inf, np.inf, np.inf, -np.inf])
    p = np.array([0.0, 1.0, 1.0, 0.0])
    assert Reliability(y, log_odds).smooth_ece(None) == pytest.approx(direct_smooth_ece(y, p, np.ones(4)), rel=2e-4)


def test_smooth_ece_of_a_shift_of_all_is_the_shift_and_of_certainty_all_or_nothing():
    y = (np.arange(1000) % 5 == 0).astype(int)
    assert Reliability(y, np.full(1000, logit(0.5))).smooth_ece(None) == pytest.approx(0.3, abs=1e-3)
    assert Reliability(y, np.where(y == 1, np.inf, -np.inf)).smooth_ece(None) < 1e-9
    assert Reliability(y, np.where(y == 1, -np.inf, np.inf)).smooth_ece(None) == pytest.approx(0.6, abs=1e-3)  # under so wide a kernel 0.8 - 0.2


def kumar(y, p, weight) -> float:
    """Kumar, Liang & Ma's debiased estimator for a model of few distinct probabilities, one bin each, counts as weights."""
    total = 0.0
    for v in np.unique(p):
        n, rate = weight[p == v].sum(), np.average(y[p == v], weights=weight[p == v])
        total += n / weight.sum() * ((rate - v) ** 2 - rate * (1 - rate) / (n - 1))
    return total


def test_debiased_error_is_kumars_with_a_row_a_subject():
    rng = np.random.default_rng(2)
    p = rng.choice([0.1, 0.25, 0.5, 0.8], 400)
    y, weight = (rng.uniform(size=400) < 0.8 * p).astype(int), rng.integers(0, 4, 400)
    reliability = Reliability(y, logit(p))
    expected = kumar(y, p, weight)
    assert reliability.debiased_squared_error(weight) == pytest.approx(expected, abs=1e-12)
    assert reliability.debiased_ece(weight) == pytest.approx(np.sqrt(max(expected, 0)))


@pytest.mark.parametrize("rows_each", [1, 5])
def test_debiased_error_of_a_perfect_model_is_nothing_on_average(rows_each):
    """As it would not be if five recordings of a person counted as five people."""
    rng = np.random.default_rng(0)
    own, as_people, repeats = [], [], 300
    for _ in range(repeats):
        y, log_odds, who = correlated(120, rows_each, rng)
        log_odds = log_odds + 1e-3 * rng.normal(size=len(y))  # recordings fall into neighbouring bins
        weight = subject_weights(who, len(y))
        own.append(Reliability(y, log_odds, who, base_weight=weight).debiased_squared_error(weight))
        as_people.append(Reliability(y, log_odds).debiased_squared_error(None))
    error = np.std(own) / np.sqrt(repeats)
    assert abs(np.mean(own)) < 3 * error
    assert error < 5e-4
    assert (np.mean(as_people) > 5 * error) == (rows_each > 1)


def test_debiased_error_of_a_miscalibrated_model_is_its_own():
    rng = np.random.default_rng(6)
    found = []
    for _ in range(60):
        y, log_odds, who = correlated(300, 5, rng)
        wrong = logit(0.1 + 0.8 * expit(log_odds))
        found.append(Reliability(y, wrong, who).debiased_squared_error(None))
    truth = expit(np.random.default_rng(7).normal(-0.5, 1.2, 200_000))
    expected = np.mean((0.1 - 0.2 * truth) ** 2)
    assert np.mean(found) == pytest.approx(expected, abs=3 * np.std(found) / np.sqrt(60) + 2e-4)


@pytest.mark.parametrize("count_once", [True, False])
def test_a_subject_drawn_three_times_is_three_subjects(count_once):
    """Both ways of counting rows: each subject once, or each recording once."""
    rng = np.random.default_rng(8)
    who = rng.integers(0, 150, 600)
    y, log_odds, _ = stated(600)
    base = subject_weights(who, 600) if count_once else np.ones(600)
    three = Reliability(np.tile(y, 3), np.tile(log_odds, 3), np.concatenate([who, who + 1000, who + 2000]), base_weight=np.tile(base, 3))
    times = rng.integers(0, 4, 150)
    drawn = np.concatenate([base * (times[who] > k) for k in range(3)])
    weighted = Reliability(y, log_odds, who, base_weight=base).debiased_squared_error(base * times[who])
    assert weighted == pytest.approx(three.debiased_squared_error(drawn), abs=1e-13)


def test_debiased_error_of_a_bin_with_one_subject_is_not_defined():
    y, log_odds, who = np.array([0, 1, 0, 1]), np.array([-1.0, -0.5, 0.5, 1.0]), np.array(["a", "a", "b", "b"])
    reliability = Reliability(y, log_odds, who)
    assert np.isfinite(reliability.debiased_squared_error(None))
    assert np.isnan(reliability.debiased_ece([1, 1, 0, 0]))


# The curve


def test_curve_follows_the_true_share():
    rng = np.random.default_rng(9)
    p = rng.uniform(size=20_000)
    truth = p**2
    y = (rng.uniform(size=len(p)) < truth).astype(int)
    assert Reliability(y, logit(p)).curve(None, GRID) == pytest.approx(GRID**2, abs=0.035)


def test_curve_of_a_straight_line_is_straight_to_its_ends_under_any_weights():
    """What a local mean would bend: y is its own expectation here, in cells of two rows."""
    rng = np.random.default_rng(10)
    p = rng.beta(2, 4, 3000)
    weight = rng.uniform(0.5, 1.5, 3000)
    line = 0.15 + 0.5 * p
    y = np.concatenate([np.ones(3000), np.zeros(3000)])
    reliability = Reliability(y, np.tile(logit(p), 2))
    found = reliability.curve(np.concatenate([weight * line, weight * (1 - line)]), GRID)
    inside = np.isfinite(found)
    assert found[inside] == pytest.approx(0.15 + 0.5 * GRID[inside], abs=5e-5)
    assert inside.sum() > 30


def test_curve_agrees_with_local_lines_through_the_rows_themselves():
    y, log_odds, weight = stated(400)
    reliability, p = Reliability(y, log_odds), expit(log_odds)
    found = reliability.curve(weight, GRID)
    nearest = int(np.ceil(reliability.span * 400))
    for at, value in zip(GRID[np.isfinite(found)], found[np.isfinite(found)], strict=True):
        reach = np.sort(np.abs(p - at))[nearest - 1]
        tricube = np.clip(1 - (np.abs(p - at) / reach) ** 3, 0, None) ** 3 * weight
        design = np.column_stack([np.ones(400), p - at])
        line = np.linalg.solve(design.T @ (design * tricube[:, None]), design.T @ (tricube * y))
        assert value == pytest.approx(np.clip(line[0], 0, 1), abs=3e-3)


def test_curve_ends_where_five_people_are_beyond():
    y, log_odds, _ = stated(200)
    who = np.arange(200) // 2
    p = expit(log_odds)
    lowest, highest = (np.sort([f(p[who == k]) for k in range(100)]) for f in (min, max))
    found = Reliability(y, log_odds, who).curve(None, GRID)
    assert np.array_equal(np.isfinite(found), (lowest[4] <= GRID) & (highest[-5] >= GRID))
    assert np.isnan(Reliability(y[:4], log_odds[:4]).curve(None, GRID)).all()


def test_span_is_wide_for_few_people_and_narrows_with_structure():
    y, log_odds, _ = stated(15)
    assert Reliability(y, log_odds).span == SPANS[-1]
    rng = np.random.default_rng(11)
    p = rng.uniform(size=20_000)
    wave = (rng.uniform(size=len(p)) < 0.5 + 0.4 * np.sin(12 * p)).astype(int)
    assert Reliability(wave, logit(p)).span == SPANS[0]


def test_span_is_chosen_across_people_so_repeated_recordings_do_not_narrow_it():
    """Ten recordings a person with the same outcome: row by row, following each person would look like structure."""
    rng = np.random.default_rng(12)
    widths = []
    for _ in range(8):
        y, log_odds, who = correlated(60, 10, rng)
        log_odds = log_odds + 0.02 * rng.normal(size=len(y))
        widths.append((Reliability(y, log_odds, who).span, Reliability(y, log_odds).span))
    by_person, by_row = np.mean(widths, axis=0)
    assert by_person > by_row + 0.1


# Weights


@settings(max_examples=100, deadline=None)
@given(few_rows())
def test_a_weight_of_two_is_the_row_twice(rows):
    y, log_odds, times = rows
    if not times.any():
        return
    weighted, repeated = Reliability(y, log_odds), Reliability(np.repeat(y, times), np.repeat(log_odds, times))
    for method in (
        lambda r, w: r.brier(w),
        lambda r, w: r.intercept_and_slope(w),
        lambda r, w: r.observed_to_expected(w),
        lambda r, w: r.smooth_ece(w),
    ):
        np.testing.assert_allclose(method(weighted, times), method(repeated, None), atol=1e-8, equal_nan=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_a_weight_of_two_is_the_row_twice_in_the_same_bins_and_windows(seed):
    """Bins and windows are of the rows whatever their weight, so here both sides have the same rows, one of them each row three times."""
    y, log_odds, _ = stated(200, seed=seed)
    times = np.random.default_rng(seed).integers(0, 4, 200)
    shares = np.concatenate([(times > k).astype(float) for k in range(3)])
    who = np.arange(200)
    once, thrice = Reliability(y, log_odds, who), Reliability(np.tile(y, 3), np.tile(log_odds, 3), np.tile(who, 3))
    np.testing.assert_allclose(once.brier_parts(times), thrice.brier_parts(shares), atol=1e-13)
    np.testing.assert_allclose(once.curve(times, GRID), thrice.curve(shares, GRID), atol=1e-9, equal_nan=True)
    people = Reliability(np.tile(y, 3), np.tile(log_odds, 3))
    assert once.debiased_squared_error(times) == pytest.approx(people.debiased_squared_error(shares), abs=1e-13)


def test_scaling_all_weights_changes_nothing_but_the_number_of_people():
    y, log_odds, weight = stated()
    reliability = Reliability(y, log_odds)
    for method in (
        reliability.brier,
        reliability.brier_parts,
        reliability.intercept_and_slope,
        reliability.observed_to_expected,
        reliability.smooth_ece,
        lambda w: reliability.curve(w, GRID),
    ):
        np.testing.assert_allclose(method(weight * 1e-3), method(weight), rtol=1e-7, equal_nan=True)


def test_swapping_the_classes_mirrors_every_figure():
    y, log_odds, weight = stated()
    one, other = Reliability(y, log_odds), Reliability(1 - y, -log_odds)
    assert other.brier(weight) == pytest.approx(one.brier(weight))
    assert other.smooth_ece(weight) == pytest.approx(one.smooth_ece(weight), abs=1e-9)
    intercept, slope = one.intercept_and_slope(weight)
    assert other.intercept_and_slope(weight) == pytest.approx((-intercept, slope), abs=1e-9)


def test_order_of_rows_changes_nothing():
    y, log_odds, weight = stated()
    who, shuffled = np.arange(300) // 3, np.random.default_rng(0).permutation(300)
    one, other = Reliability(y, log_odds, who), Reliability(y[shuffled], log_odds[shuffled], who[shuffled])
    for name in ("brier_parts", "debiased_squared_error", "smooth_ece", "intercept_and_slope"):
        np.testing.assert_allclose(getattr(other, name)(weight[shuffled]), getattr(one, name)(weight), atol=1e-9)
    np.testing.assert_allclose(other.curve(weight[shuffled], GRID), one.curve(weight, GRID), atol=1e-9, equal_nan=True)


# What is not defined


def all_figures(reliability: Reliability, weight) -> dict[str, float]:
    low, resolution, uncertainty = reliability.brier_parts(weight)
    intercept, slope = reliability.intercept_and_slope(weight)
    names = ("brier", "observed_to_expected", "debiased_ece", "smooth_ece")
    return {name: getattr(reliability, name)(weight) for name in names} | {
        "reliability": low,
        "resolution": resolution,
        "uncertainty": uncertainty,
        "intercept": intercept,
        "slope": slope,
    }


def test_without_weight_nothing_is_defined():
    y, log_odds, _ = stated(50)
    reliability = Reliability(y, log_odds)
    assert np.isnan(list(all_figures(reliability, np.zeros(50)).values())).all()
    assert np.isnan(reliability.curve(np.zeros(50), GRID)).all()
    assert np.isnan(brier(y, expit(log_odds), np.zeros(50)))


def test_without_a_class_only_the_fits_are_not_defined():
    y, log_odds, _ = stated(400)
    for k in (0, 1):
        found = all_figures(Reliability(y, log_odds), (y == k).astype(float))
        assert {name for name, value in found.items() if np.isnan(value)} == {"intercept", "slope"}
        assert found["uncertainty"] == pytest.approx(0)


def test_separated_classes_have_an_intercept_and_no_slope():
    for high in (0.2, 0.0):  # apart, and touching
        intercept, slope = Reliability([0, 0, 1, 1], [-2.0, 0.0, high, 2.0]).intercept_and_slope(None)
        assert np.isfinite(intercept)
        assert np.isnan(slope)


def test_constant_scores():
    y, reliability = np.arange(100) % 4 == 0, Reliability(np.arange(100) % 4 == 0, np.zeros(100))
    found = all_figures(reliability, None)
    assert np.isnan(found["slope"])
    assert found["intercept"] == pytest.approx(logit(y.mean()))
    assert found["reliability"] == pytest.approx(0.25**2)
    assert found["resolution"] == pytest.approx(0, abs=1e-15)
    assert found["debiased_ece"] == pytest.approx(np.sqrt(0.25**2 - 0.25 * 0.75 / 99))
    assert reliability.curve(None, [0.4, 0.5, 0.6]) == pytest.approx([np.nan, 0.25, np.nan], nan_ok=True)


def test_infinite_log_odds_break_nothing():
    y, log_odds, weight = stated(100)
    log_odds[:10], log_odds[10:20] = np.inf, -np.inf
    reliability = Reliability(y, log_odds)
    assert np.isfinite(list(all_figures(reliability, weight).values())).all()
    assert np.isfinite(reliability.curve(weight, GRID)).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Reliability([], []), "at least one"),
        (lambda: Reliability([0, 1], [0.0]), "two arrays"),
        (lambda: Reliability([0, 1], [0.0, np.nan]), "NaN"),
        (lambda: Reliability([0, 1], [0.0, 1.0], ["a"]), "one for each"),
        (lambda: Reliability([0, 1], [0.0, 1.0], base_weight=[1.0]), "one weight for each"),
        (lambda: Reliability([0, 1], [0.0, 1.0]).brier([1.0]), "one weight for each"),
        (lambda: Reliability([0, 1], [0.0, 1.0]).curve(None, [1.5]), "from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(InvalidValueError, match=match):
        make()


def test_bins_are_fewer_where_people_are_few():
    """A bin for every ten people: 25 people have two, so the decomposition looks at two rates."""
    rng = np.random.default_rng(13)
    y, log_odds = rng.integers(0, 2, 25), np.sort(rng.normal(size=25))
    low, _, _ = Reliability(y, log_odds).brier_parts(None)
    halves = np.split(np.arange(25), [13])
    expected = sum(len(h) / 25 * (y[h].mean() - expit(log_odds[h]).mean()) ** 2 for h in halves)
    assert low == pytest.approx(expected)
    assert BINS == 10
