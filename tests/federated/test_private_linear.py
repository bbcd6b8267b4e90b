"""A private head: what one subject can move is what the noise is made for, and with little noise it is the ordinary head."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clinical_ser.errors import InvalidValueError
from federated import privacy
from federated.at_site import standardised
from federated.privacy import Ledger, charge_of, epsilon
from federated.protocols.private_linear import (
    PrivateCurvature,
    PrivateGradient,
    PrivateLinearSettings,
    PrivateMoments,
    noise_for_epsilon,
    private_scales,
    train_private,
)
from federated.statistics import Arrays, Ask, PooledSums, SiteRows
from tests.federated.cohorts import cohort_rows, part_of

DELTA = 1e-4
FEATURES = 6


def few_features(subjects: int, **options: float) -> SiteRows:
    rows = cohort_rows(subjects, **options)  # type: ignore[arg-type]
    return dataclasses.replace(rows, X=rows.X[:, :FEATURES], names=rows.names[:FEATURES])


def scales_of(rows: SiteRows) -> tuple[np.ndarray, np.ndarray]:
    return np.nanmean(rows.X, axis=0), np.nanstd(rows.X, axis=0)


def asks(rows: SiteRows, clip: float = 2.0) -> list[Ask]:
    mean, scale = scales_of(rows)
    designed = {"mean": mean, "scale": scale}
    beta = np.linspace(-0.4, 0.5, FEATURES + 1)
    return [
        Ask(PrivateMoments.name, {"low": mean - 2 * scale, "high": mean + 2 * scale}, {"noise_multiplier": 1.0}),
        Ask(PrivateCurvature.name, designed, {"clip": clip, "noise_multiplier": 1.0}),
        Ask(PrivateGradient.name, designed | {"beta": beta}, {"clip": clip, "noise_multiplier": 1.0}),
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_subject_moves_a_release_by_more_than_the_noise_is_made_for(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    declared: list[float] = []

    def without_noise(values: Arrays, exact: float, noise_multiplier: float, key: bytes | None = None) -> Arrays:
        declared.append(exact)
        return values

    monkeypatch.setattr("federated.protocols.private_linear.noisy", without_noise)
    rows = few_features(40, recordings_each=3)
    # An outlier in every direction: what clipping is for.
    rows.X[:9] *= 1e4
    statistic, ask = (PrivateMoments, PrivateCurvature, PrivateGradient)[which](), asks(rows)[which]
    everybody = statistic.at_site(rows, ask)
    moved = []
    for subject in np.unique(rows.subjects):
        others = part_of(rows, np.flatnonzero(rows.subjects != subject), b"", first=True)
        fewer = statistic.at_site(others, ask)
        moved.append(math.sqrt(sum(float(((everybody[name] - fewer[name]) ** 2).sum()) for name in everybody)))
    assert max(moved) <= declared[0] + 1e-9
    assert max(moved) > declared[0] / 4


def test_with_hardly_any_noise_it_is_the_ordinary_head() -> None:
    rows = few_features(400)
    mean, scale = scales_of(rows)
    settings = PrivateLinearSettings(noise_multiplier=1e-4, clip=50.0, steps=30, strength=5.0)
    head = train_private(PooledSums({"here": rows}), mean, scale, settings)
    Z = standardised(rows.X, mean, scale)
    # The private head counts every subject once; every subject here gave two recordings.
    ordinary = LogisticRegression(C=1 / 10.0, tol=1e-8).fit(Z, rows.target)
    assert np.abs(head.margins(Z) - ordinary.decision_function(Z)).max() < 0.01
    assert head.people == pytest.approx(400, abs=1)


def test_sites_add_up_to_the_same_head_and_each_adds_its_own_noise() -> None:
    rows = few_features(300)
    mean, scale = scales_of(rows)
    half = np.unique(rows.subjects)[::2]
    here = np.isin(rows.subjects, half)
    parts = {name: part_of(rows, np.flatnonzero(one), name.encode(), first=True) for name, one in (("a", here), ("b", ~here))}
    calm = PrivateLinearSettings(noise_multiplier=1e-4, clip=3.0, steps=3)
    pooled, split = (train_private(PooledSums(tables), mean, scale, calm) for tables in ({"all": rows}, parts))
    assert np.abs(pooled.beta - split.beta).max() < 1e-3
    ask = Ask(PrivateGradient.name, {"mean": mean, "scale": scale, "beta": np.zeros(FEATURES + 1)}, {"clip": 3.0, "noise_multiplier": 50.0})
    parts = {name: dataclasses.replace(part, secret=b"") for name, part in parts.items()}
    rows = dataclasses.replace(rows, secret=b"")
    spread = [np.std([PooledSums(tables).total("x", [ask])[0]["gradient"] for _ in range(60)], axis=0).mean() for tables in ({"all": rows}, parts)]
    assert spread[1] / spread[0] == pytest.approx(math.sqrt(2), rel=0.1)


def test_the_charge_of_a_training_is_that_of_its_noise() -> None:
    noise = noise_for_epsilon(2.0, DELTA)
    settings = PrivateLinearSettings(noise_multiplier=noise, clip=2.0, steps=4, curvature_share=0.4)
    assert 1.99 < epsilon([settings.charge()], DELTA) <= 2.001


def test_what_the_asks_of_a_training_cost_is_what_its_settings_say(tmp_path: Path) -> None:
    rows = few_features(200)
    ledger = Ledger.create(tmp_path / "ledger.jsonl", site="north", dataset="voices")

    class Paying(PooledSums):
        def total(self, step: str, asks: list[Ask]) -> list[Arrays]:  # type: ignore[override]
            charge = charge_of(asks)
            assert charge is not None
            ledger.spend(charge, run="r", step=str(len(self.exchanges)), limit=9.0, delta=DELTA)
            return super().total(step, asks)

    settings = PrivateLinearSettings(noise_multiplier=2.0, clip=2.0, steps=3)
    head = train_private(Paying({"here": rows}), *scales_of(rows), settings)
    assert ledger.spent(DELTA) == pytest.approx(epsilon([head.charge], DELTA), rel=1e-6)
    assert len(ledger.entries()) == 4


def test_a_private_head_still_tells_the_classes_apart_where_there_are_enough_people() -> None:
    rows = few_features(4000)
    mean, scale = scales_of(rows)
    settings = PrivateLinearSettings(noise_multiplier=noise_for_epsilon(2.0, DELTA), clip=2.5, steps=2)
    head = train_private(PooledSums({"here": rows}), mean, scale, settings)
    fresh = few_features(4000)
    margins = head.margins(standardised(fresh.X, mean, scale))
    correct = np.mean(margins[fresh.target == 1][:2000, None] > margins[fresh.target == 0][None, :2000])
    ordinary = LogisticRegression(C=1 / 2.0).fit(standardised(rows.X, mean, scale), rows.target)
    best = ordinary.decision_function(standardised(fresh.X, mean, scale))
    assert correct > np.mean(best[fresh.target == 1][:2000, None] > best[fresh.target == 0][None, :2000]) - 0.02


def test_scales_from_noisy_moments_are_near_those_of_the_people() -> None:
    rows = few_features(3000, missing=0.0)
    mean, scale = scales_of(rows)
    found = private_scales(PooledSums({"here": rows}), mean - 5 * scale, mean + 7 * scale, 2.0)
    assert np.abs((found[0] - mean) / scale).max() < 0.1
    assert np.abs(found[1] / scale - 1).max() < 0.1


def test_noise_is_the_same_for_the_same_question_about_the_same_rows_only() -> None:
    rows = few_features(40)
    ask = asks(rows)[2]

    def answer(rows: SiteRows, ask: Ask) -> np.ndarray:
        return PrivateGradient().at_site(rows, ask)["gradient"]

    first = answer(rows, ask)
    assert np.array_equal(first, answer(rows, ask))
    others = [
        (dataclasses.replace(rows, secret=b"another"), ask),
        (dataclasses.replace(rows, secret=b""), ask),
        (rows, Ask(ask.statistic, dict(ask.arrays) | {"beta": ask.arrays["beta"] + 1e-12}, ask.options)),
        (rows, Ask(ask.statistic, ask.arrays, dict(ask.options) | {"clip": 2.0 + 1e-12})),
        (dataclasses.replace(rows, target=np.where(np.arange(len(rows)) == 0, 1 - rows.target, rows.target)), ask),
        (dataclasses.replace(rows, X=np.where(np.arange(len(rows))[:, None] == 0, rows.X + 1e-9, rows.X)), ask),
    ]
    for other_rows, other_ask in others:
        # What differs is noise in every entry, not the little that was changed.
        assert np.abs(answer(other_rows, other_ask) - first).min() > 1e-3


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf"), True, "much"])
def test_an_ask_for_no_noise_is_refused_before_anything_is_computed(noise: float) -> None:
    rows = few_features(20)
    mean, scale = scales_of(rows)
    ask = Ask(PrivateCurvature.name, {"mean": mean, "scale": scale}, {"clip": 1.0, "noise_multiplier": noise})
    with pytest.raises(InvalidValueError):
        charge_of([ask])
    with pytest.raises(InvalidValueError):
        PrivateCurvature().at_site(rows, ask)


def test_coefficients_at_which_some_margins_overflow_are_refused_whatever_the_rows() -> None:
    rows = few_features(20)
    mean, scale = scales_of(rows)
    ask = Ask(PrivateGradient.name, {"mean": mean, "scale": scale, "beta": np.full(FEATURES + 1, 1e308)}, {"clip": 1.0, "noise_multiplier": 1.0})
    with pytest.raises(InvalidValueError, match="numbers up to"):
        PrivateGradient().at_site(rows, ask)


def test_every_private_statistic_says_that_it_is() -> None:
    for statistic in (PrivateMoments, PrivateCurvature, PrivateGradient):
        assert statistic.private
        assert issubclass(statistic, privacy.PrivateStatistic)
