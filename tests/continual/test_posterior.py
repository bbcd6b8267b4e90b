"""The old data's quadratic: what is exact, what is exact only in the limit, and what forgetting does."""

import numpy as np
import pytest

from clinical_ser.continual.linear import Loss, Rows
from clinical_ser.continual.posterior import Posterior, minimise
from clinical_ser.errors import InvalidValueError, TrainingError

RIDGE = np.array([5.0, 5.0, 5.0, 0.0])


def made(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 3))
    return Z, (rng.uniform(size=n) < 1 / (1 + np.exp(-(Z @ [1.0, -0.7, 0.2] - 0.3)))).astype(np.int64)


def loss_of(Z: np.ndarray, y: np.ndarray) -> Loss:
    return Loss(Rows(Z, y, np.ones(len(y))), 2)


def squared(D: np.ndarray, y: np.ndarray):
    """A quadratic loss: linear regression."""
    return lambda b: (float(((D @ b - y) ** 2).sum() / 2), D.T @ (D @ b - y), D.T @ D)


def test_with_a_quadratic_loss_learning_in_steps_is_learning_at_once():
    rng = np.random.default_rng(0)
    parts = [(np.column_stack([rng.normal(size=(40, 3)), np.ones(40)]), rng.normal(size=40)) for _ in range(4)]
    known = Posterior.nothing(RIDGE)
    for D, y in parts:
        _, known = minimise(squared(D, y), known, np.zeros(4))
    at_once, _ = minimise(squared(np.vstack([D for D, _ in parts]), np.concatenate([y for _, y in parts])), Posterior.nothing(RIDGE), np.zeros(4))
    assert np.allclose(known.mode, at_once, atol=1e-12)


def test_with_logistic_loss_the_difference_is_a_small_part_of_a_standard_error_and_falls_with_people():
    away = []
    for n in (100, 6400):
        (Za, ya), (Zb, yb) = made(n, 1), made(n, 2)
        _, first = minimise(loss_of(Za, ya), Posterior.nothing(RIDGE), np.zeros(4))
        in_steps, _ = minimise(loss_of(Zb, yb), first)
        at_once, whole = minimise(loss_of(np.vstack([Za, Zb]), np.concatenate([ya, yb])), Posterior.nothing(RIDGE), np.zeros(4))
        away.append(np.abs((in_steps - at_once) / np.sqrt(np.diag(whole.covariance))).max())
    assert away[0] < 0.5
    assert away[1] < away[0] / 4


def test_forgetting_discounts_data_and_never_the_ridge():
    _, known = minimise(loss_of(*made(300, 3)), Posterior.nothing(RIDGE), np.zeros(4))
    faded = known.discounted(0.01).discounted(0.01)
    assert np.allclose(faded.whole, 1e-4 * known.precision + np.diag(RIDGE))
    assert np.abs(faded.mode[:3]).max() < 0.05 * np.abs(known.mode[:3]).max()
    assert np.array_equal(known.discounted(1.0).mode, known.mode)
    for factor in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InvalidValueError):
            known.discounted(factor)


def test_the_minimum_has_no_slope_whatever_the_number_of_classes():
    rng = np.random.default_rng(4)
    Z, y = rng.normal(size=(200, 3)), rng.integers(0, 4, 200)
    loss = Loss(Rows(Z, y, rng.uniform(0.5, 2, 200)), 4)
    ridge = np.append(np.full(9, 5.0), np.zeros(3))
    at, posterior = minimise(loss, Posterior.nothing(ridge), np.zeros(12))
    assert np.abs(loss(at)[1] + ridge * at).max() < 1e-6
    assert np.allclose(posterior.mode, at)
    step = 1e-5
    numeric = [(loss(at + step * e)[0] - loss(at - step * e)[0]) / (2 * step) for e in np.eye(12)]
    assert np.allclose(numeric, loss(at)[1], atol=1e-5)
    curvature = np.array([(loss(at + step * e)[1] - loss(at - step * e)[1]) / (2 * step) for e in np.eye(12)])
    assert np.allclose(curvature, loss(at)[2], atol=1e-4)


def test_drawn_posteriors_spread_as_bootstrap_samples_of_the_lost_data_do():
    Z, y = made(400, 5)
    _, known = minimise(loss_of(Z, y), Posterior.nothing(RIDGE), np.zeros(4))
    rng = np.random.default_rng(0)
    drawn = np.array([known.drawn(rng).mode for _ in range(400)])
    again = []
    for _ in range(400):
        i = rng.integers(400, size=400)
        again.append(minimise(loss_of(Z[i], y[i]), Posterior.nothing(RIDGE), known.mode)[0])
    assert np.allclose(drawn.std(axis=0), np.std(again, axis=0), rtol=0.2)
    assert np.allclose(drawn.mean(axis=0), known.mode, atol=4 * drawn.std(axis=0).max() / 20)


def test_what_nothing_decides_is_an_error_in_words():
    with pytest.raises(TrainingError, match="Nothing is known"):
        _ = Posterior.nothing([1.0, 0.0]).mode
    Z = np.array([[-1.0], [1.0]])
    with pytest.raises(TrainingError):
        minimise(Loss(Rows(Z, np.array([0, 1]), np.ones(2)), 2), Posterior.nothing([0.0, 0.0]), np.zeros(2))
