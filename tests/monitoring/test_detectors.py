"""The rate of false alarms is the one that is stated, and changes are noticed."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest

from clinical_ser.errors import MonitoringError
from clinical_ser.monitoring.detectors import BETS, Evidence, conformal_p, gains, generator, limits_of, restored, states_of, watch

CELLS = np.array([0.1, 0.2, 0.4, 0.2, 0.1])


def bags(rng, streams, people):
    return rng.multinomial(people, CELLS, size=streams).astype(np.int64)


def run(rng, streams, batches, limit, *, people=100, shares=CELLS, size=10, restart=False):
    """Return the batch in which each stream first crossed; infinity where none did."""
    bag, evidence = bags(rng, streams, people), Evidence.none(streams, len(BETS))
    first = np.full(streams, np.inf)
    for batch in range(1, batches + 1):
        counts = rng.multinomial(size, shares, size=streams).astype(np.int64)
        for crossing in watch(bag, evidence, counts, np.full(streams, limit), batch=batch, rng=rng, restart=restart):
            first[crossing.channel] = min(first[crossing.channel], batch)
    return first


def test_every_bet_is_fair():
    for bet in range(len(BETS)):
        mean, _ = quad(lambda p, k=bet: gains(np.array([p]))[0, k], 0, 1, limit=400, points=[1e-6, 1e-3, 0.5, 0.999, 1 - 1e-6])
        assert mean == pytest.approx(1.0, abs=2e-3)


def test_p_values_are_uniform_and_independent_of_each_other_while_nothing_changes():
    rng = np.random.default_rng(1)
    streams, steps = 400, 30
    bag, found = bags(rng, streams, 40), []
    for _ in range(steps):
        cell = rng.choice(5, streams, p=CELLS)
        bag[np.arange(streams), cell] += 1
        found.append(conformal_p(bag, cell, rng.random(streams)))
    p = np.array(found)
    assert kstest(p.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[:-1].ravel(), p[1:].ravel())[0, 1]) < 0.03
    # Of what the reference happens to be, too: the mean over a stream varies as that of independent ones does.
    assert p.mean(axis=0).std() == pytest.approx(np.sqrt(1 / 12 / steps), rel=0.12)


def test_no_more_streams_cross_by_chance_than_is_stated():
    rng = np.random.default_rng(2)
    streams, recordings, limit = 1500, 200, 1000.0
    share = np.isfinite(run(rng, streams, recordings // 10, limit)).mean()
    stated = recordings / limit
    assert share <= stated + 3 * np.sqrt(stated * (1 - stated) / streams)
    assert share > 0.02  # and the bound is not empty


def test_the_run_length_to_a_false_alarm_is_at_least_the_limit():
    rng = np.random.default_rng(3)
    first = run(rng, 400, 100, 50.0)
    assert np.minimum(first, 101).mean() * 10 > 50


def test_a_change_is_noticed_soon_and_dated():
    rng = np.random.default_rng(4)
    bag, evidence = bags(rng, 50, 200), Evidence.none(50, len(BETS))
    limits = np.full(50, 1e6)
    shifted = np.array([0.02, 0.08, 0.2, 0.4, 0.3])
    first = {}
    for batch in range(1, 60):
        counts = rng.multinomial(10, CELLS if batch < 20 else shifted, size=50).astype(np.int64)
        for crossing in watch(bag, evidence, counts, limits, batch=batch, rng=rng):
            first.setdefault(crossing.channel, (batch, crossing.begun))
            assert BETS[crossing.bet] in {"up", "narrower"}
    noticed, begun = np.array(list(first.values())).T
    assert len(first) == 50
    assert noticed.min() >= 20
    assert np.median(noticed) < 25
    assert abs(np.median(begun) - 20) <= 1


def test_a_day_of_thousands_that_all_changed_is_no_overflow():
    bag, evidence = np.array([[500, 500, 0]], np.int64), Evidence.none(1, len(BETS))
    [crossing] = watch(bag, evidence, np.array([[0, 0, 5000]], np.int64), np.array([1e6]), batch=1, rng=np.random.default_rng(0), restart=False)
    assert np.isfinite(crossing.value)
    assert np.isfinite(evidence.roberts).all()


def test_a_channel_without_recordings_stays_as_it_was():
    bag, evidence = np.array([[5, 5], [5, 5]], np.int64), Evidence.none(2, len(BETS))
    watch(bag, evidence, np.array([[0, 0], [2, 1]], np.int64), np.full(2, 1e9), batch=1, rng=np.random.default_rng(0))
    assert bag.tolist() == [[5, 5], [7, 6]]
    assert not evidence.roberts[0].any()
    assert evidence.roberts[1].any()


def test_a_detector_goes_on_from_what_was_kept_of_it():
    rng = np.random.default_rng(5)
    whole, parts = (Evidence.none(3, len(BETS)) for _ in range(2))
    bag = bags(rng, 3, 100)
    other, names, chain = bag.copy(), ["a", "b", "c"], "0" * 64
    for batch in range(1, 9):
        counts = rng.multinomial(7, CELLS, size=3).astype(np.int64)
        order, following = generator(chain, counts.tobytes())
        watch(bag, whole, counts, np.full(3, 1e9), batch=batch, rng=order)
        states = states_of(names, parts, other, [5, 5, 5])
        parts = restored(names, {name: type(state).model_validate_json(state.model_dump_json()) for name, state in states.items()}, len(BETS))
        watch(other, parts, counts, np.full(3, 1e9), batch=batch, rng=generator(chain, counts.tobytes())[0])
        chain = following
    assert (whole.roberts == parts.roberts).all()
    assert (whole.begun == parts.begun).all()
    assert (bag == other).all()
    with pytest.raises(MonitoringError):
        restored(["a", "b"], states, len(BETS))


def test_limits_share_the_rate_by_weight():
    assert limits_of(np.array([0.5, 0.25, 0.25]), 1000.0).tolist() == [4000.0, 8000.0, 8000.0]
