"""The ledger is paid before anything leaves, is never paid twice for one step, and cannot be lost or cut short unnoticed."""

import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import kstest

from clinical_ser.errors import FederationError, InvalidValueError, SiteRefusalError
from federated.privacy import (
    BUDGET_SPENT,
    GRID_BITS,
    Charge,
    Ledger,
    Noise,
    Part,
    epsilon,
    gaussian,
    noise_for,
    noisy,
    sensitivity,
    uniform,
    with_noise,
)
from federated.statistics import Ask
from tests.federated.cohorts import cohort_rows

DELTA = 1e-5


def gauss(noise: float, count: int = 1) -> Charge:
    return Charge(parts=(Part(noise_multiplier=noise, count=count),))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.jsonl", site="north", dataset="voices 2026")


def exact_delta(eps: float, noise: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact delta of a Gaussian mechanism of sensitivity 1."""
    return float(ndtr(0.5 / noise - eps * noise) - math.exp(eps) * ndtr(-0.5 / noise - eps * noise))


@pytest.mark.parametrize("noise", [0.5, 1.0, 5.0])
def test_epsilon_of_a_gaussian_release_is_the_exact_one(noise: float) -> None:
    assert exact_delta(epsilon([gauss(noise)], DELTA), noise) == pytest.approx(DELTA, rel=0.01)


def test_four_releases_cost_what_one_with_half_the_noise_does() -> None:
    assert epsilon([gauss(4, 2), gauss(4, 2)], DELTA) == pytest.approx(epsilon([gauss(2)], DELTA), rel=1e-6)


def test_sampling_costs_less_than_hearing_everybody() -> None:
    sampled = Charge(parts=(Part(noise_multiplier=1.0, count=20, sampling_probability=0.1),))
    assert epsilon([sampled], DELTA) < 0.3 * epsilon([gauss(1.0, 20)], DELTA)


def test_noise_too_small_to_mean_anything_costs_infinity_and_takes_no_time() -> None:
    assert epsilon([gauss(1e-3)], DELTA) == math.inf
    assert epsilon([Charge(parts=(Part(noise_multiplier=0.05, sampling_probability=0.01),))], DELTA) == math.inf


def test_noise_for_an_epsilon_reaches_it_and_not_more() -> None:
    noise = noise_for(2.0, DELTA, lambda z: gauss(z, 3))
    assert 1.99 < epsilon([gauss(noise, 3)], DELTA) <= 2.0


def test_a_charge_beyond_the_limit_is_refused_and_leaves_no_trace(ledger: Ledger) -> None:
    ledger.spend(gauss(5), run="r1", step="1", limit=1.0, delta=DELTA)
    with pytest.raises(SiteRefusalError) as refused:
        ledger.spend(gauss(5), run="r1", step="2", limit=1.0, delta=DELTA)
    assert (refused.value.site, refused.value.reason) == ("north", BUDGET_SPENT)
    assert len(ledger.entries()) == 2
    assert ledger.spent(DELTA) == pytest.approx(epsilon([gauss(5)], DELTA))
    assert 0 < ledger.remaining(1.0, DELTA) < 1 - 0.7


def test_runs_share_the_account(ledger: Ledger) -> None:
    for run in ("a", "b", "c"):
        ledger.spend(gauss(9), run=run, step="1", limit=1.0, delta=DELTA)
    with pytest.raises(SiteRefusalError):
        ledger.spend(gauss(9), run="d", step="1", limit=0.75, delta=DELTA)


def test_a_step_that_comes_again_is_not_paid_twice_even_when_the_budget_is_gone(ledger: Ledger) -> None:
    first = ledger.spend(gauss(5), run="r", step="1", limit=0.8, delta=DELTA)
    assert ledger.spend(gauss(5), run="r", step="1", limit=0.8, delta=DELTA) == first
    assert len(ledger.entries()) == 2
    with pytest.raises(FederationError, match="another request"):
        ledger.spend(gauss(6), run="r", step="1", limit=9.0, delta=DELTA)


def test_one_payment_is_for_one_request(ledger: Ledger) -> None:
    ledger.spend(gauss(5), run="r", step="1", request="a", limit=9.0, delta=DELTA)
    ledger.spend(gauss(5), run="r", step="1", request="a", limit=9.0, delta=DELTA)
    with pytest.raises(FederationError, match="another request"):
        ledger.spend(gauss(5), run="r", step="1", request="b", limit=9.0, delta=DELTA)


def test_a_ledger_goes_on_after_a_restart(ledger: Ledger, tmp_path: Path) -> None:
    digest = ledger.spend(gauss(5), run="r", step="1", limit=9.0, delta=DELTA)
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.spent(DELTA) == ledger.spent(DELTA)
    assert (again.site, again.dataset) == ("north", "voices 2026")
    assert again.holds(digest)


def test_a_lost_ledger_is_not_an_empty_one(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(FederationError, match="restore it"):
        Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(FederationError, match="stays spent"):
        Ledger.create(tmp_path / "ledger.jsonl", site="north", dataset="voices 2026")


@pytest.mark.parametrize(
    "damage", ["last line gone", "middle line gone", "noise raised", "head gone", "head of before", "emptied", "half a line at the end"]
)
def test_a_ledger_that_is_not_whole_is_refused(ledger: Ledger, tmp_path: Path, damage: str) -> None:
    path, head = tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.head"
    old_heads = []
    for step in ("1", "2", "3"):
        old_heads.append(head.read_bytes())
        ledger.spend(gauss(20), run="r", step=step, limit=9.0, delta=DELTA)
    lines = path.read_bytes().splitlines(keepends=True)
    match damage:
        case "last line gone":
            path.write_bytes(b"".join(lines[:-1]))
        case "middle line gone":
            path.write_bytes(lines[0] + b"".join(lines[2:]))
        case "noise raised":
            path.write_bytes(path.read_bytes().replace(b":20.0", b":200.0", 1))
        case "head gone":
            head.unlink()
        case "head of before":
            head.write_bytes(old_heads[0])
        case "emptied":
            path.write_bytes(b"")
        case "half a line at the end":
            path.write_bytes(b"".join(lines)[:-30])
    with pytest.raises(FederationError, match="not whole"):
        ledger.spend(gauss(20), run="r", step="4", limit=9.0, delta=DELTA)
    with pytest.raises(FederationError, match="not whole"):
        Ledger(path)


def test_power_lost_between_a_line_and_its_head_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    head = tmp_path / "ledger.jsonl.head"
    before = head.read_bytes()
    ledger.spend(gauss(5), run="r", step="1", limit=9.0, delta=DELTA)
    head.write_bytes(before)
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.spent(DELTA) == pytest.approx(epsilon([gauss(5)], DELTA))
    again.spend(gauss(5), run="r", step="2", limit=9.0, delta=DELTA)
    assert len(Ledger(tmp_path / "ledger.jsonl").entries()) == 3


def test_power_lost_within_a_line_leaves_the_account_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    path, head = tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.head"
    before, known = path.read_bytes(), head.read_bytes()
    ledger.spend(gauss(5), run="r", step="1", limit=9.0, delta=DELTA)
    path.write_bytes(path.read_bytes()[:-10])
    head.write_bytes(known)
    assert Ledger(path).spent(DELTA) == 0
    assert path.read_bytes() == before


def test_an_older_ledger_put_back_whole_is_seen_by_the_digests_that_the_audit_log_has(ledger: Ledger, tmp_path: Path) -> None:
    files = [tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.head"]
    backup = [file.read_bytes() for file in files]
    digest = ledger.spend(gauss(5), run="r", step="1", limit=9.0, delta=DELTA)
    for file, content in zip(files, backup, strict=True):
        file.write_bytes(content)
    assert not Ledger(files[0]).holds(digest)


def _spend_some(path: Path, run: str) -> None:
    ledger = Ledger(path)
    for step in range(5):
        ledger.spend(gauss(50), run=run, step=str(step), limit=9.0, delta=DELTA)


def test_two_processes_pay_into_one_chain(ledger: Ledger, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_spend_some, args=(tmp_path / "ledger.jsonl", run)) for run in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Ledger(tmp_path / "ledger.jsonl").entries()) == 11


def test_noise_is_normal_and_never_the_same_twice() -> None:
    assert kstest(gaussian((20000,), bytes(32)), "norm").pvalue > 0.01
    assert not np.array_equal(gaussian((4,)), gaussian((4,)))
    draws = uniform(20000, b"k" * 32)
    assert draws.min() > 0
    assert draws.max() < 1
    assert kstest(draws, "uniform").pvalue > 0.01


def test_a_noisy_value_lies_on_the_grid_and_keeps_no_low_bit() -> None:
    key = bytes(32)
    one = with_noise(np.array([0.1]), 1.0, key)
    other = with_noise(np.array([0.1 + 2.0**-40]), 1.0, key)
    assert one == other
    assert np.ldexp(one, GRID_BITS) == np.rint(np.ldexp(one, GRID_BITS))


def test_noise_below_the_grid_is_refused() -> None:
    with pytest.raises(InvalidValueError):
        with_noise(np.zeros(3), 2.0**-20)


def test_noisy_arrays_share_one_sensitivity() -> None:
    found = noisy({"a": np.zeros((50, 100)), "b": np.full(5000, 3.0)}, 2.0, 4.0)
    assert found["a"].std() == pytest.approx(8.0, rel=0.05)
    assert (found["b"] - 3.0).std() == pytest.approx(8.0, rel=0.05)
    assert abs(found["b"].mean() - 3.0) < 0.6
    assert sensitivity(2.0, 10000) == pytest.approx(2.0, rel=1e-3)


def test_noise_is_another_one_where_the_answer_depends_on_other_layers():
    """A round that is asked again with other layers at the site would else cancel the noise, and be paid for twice."""
    rows, ask = cohort_rows(20), Ask("private_adapter_round")
    assert Noise(rows, ask, {"w": np.zeros(3)}).key() == Noise(rows, ask, {"w": np.zeros(3)}).key()
    assert Noise(rows, ask, {"w": np.zeros(3)}).key() != Noise(rows, ask, {"w": np.ones(3)}).key()
