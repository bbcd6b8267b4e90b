"""Rounds of an adapter: at one site they are one training, over sites their mean, and what is local is never among the totals."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from clinical_ser.errors import FederationError, InvalidValueError
from federated.adapter import AdapterPrivacy, AdapterSettings, first_weights, train_adapter
from federated.at_site import standardised, weights
from federated.privacy import charge_of, epsilon
from federated.protocols.adapter import HEAD, NORM, AdapterRound, PrivateAdapterRound, clipped_total, local_layers, margins
from federated.statistics import Arrays, Ask, PooledSums, SiteRows
from tests.federated.cohorts import cohort_rows, part_of

FEATURES = 8
DELTA = 1e-4


def rows_of(subjects: int, workspace: Path | None, *, seed: int = 0) -> SiteRows:
    rows = cohort_rows(subjects, seed=seed, effect=0.8)
    return dataclasses.replace(rows, X=rows.X[:, :FEATURES], names=rows.names[:FEATURES], workspace=workspace)


def scales_of(rows: SiteRows) -> tuple[np.ndarray, np.ndarray]:
    return np.nanmean(rows.X, axis=0), np.nanstd(rows.X, axis=0)


def split(rows: SiteRows, tmp_path: Path | None, first: float = 0.7) -> dict[str, SiteRows]:
    people = np.unique(rows.subjects)
    here = np.isin(rows.subjects, people[: int(first * len(people))])
    parts = {}
    for name, index in (("a", np.flatnonzero(here)), ("b", np.flatnonzero(~here))):
        workspace = None if tmp_path is None else tmp_path / name
        parts[name] = dataclasses.replace(part_of(rows, index, name.encode(), first=True), workspace=workspace)
    return parts


class Watched(PooledSums):
    """Keeps what the coordinator sees."""

    def __init__(self, tables: dict[str, SiteRows]):
        super().__init__(tables)
        self.asked: list[Ask] = []
        self.seen: list[Arrays] = []

    def total(self, step: str, asks: list[Ask]) -> list[Arrays]:  # type: ignore[override]
        self.asked += asks
        self.seen += super().total(step, asks)
        return self.seen[-len(asks) :]


def trained_plainly(rows: SiteRows, settings: AdapterSettings, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """One training of a torch module with torch's own optimiser, for as many epochs as all rounds have."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(FEATURES)
            self.down = torch.nn.Linear(FEATURES, settings.width)
            self.head = torch.nn.Linear(settings.width, 1)

        def forward(self, Z: "torch.Tensor") -> "torch.Tensor":
            return self.head(torch.nn.functional.gelu(self.down(self.norm(Z))))[:, 0]

    network = Network().double()
    start = {name: torch.tensor(value) for name, value in first_weights(FEATURES, settings).items()}
    start["head.weight"] = start["head.weight"][None]
    network.load_state_dict(start, strict=False)
    inputs, target, weight = torch.tensor(standardised(rows.X, mean, scale)), torch.tensor(rows.target).double(), torch.tensor(weights(rows))
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.rate)
    for epoch in range(settings.rounds * settings.epochs):
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(inputs))
        for some in map(torch.from_numpy, (order[i : i + settings.batch] for i in range(0, len(order), settings.batch))):
            losses = torch.nn.functional.binary_cross_entropy_with_logits(network(inputs[some]), target[some], reduction="none")
            optimiser.zero_grad()
            ((weight[some] * losses).sum() / weight[some].sum()).backward()
            optimiser.step()
    found = {name: value.detach().numpy() for name, value in network.named_parameters()}
    return found | {"head.weight": found["head.weight"][0]}


def test_rounds_at_one_site_are_one_training_in_torch(tmp_path: Path) -> None:
    rows = rows_of(60, tmp_path)
    mean, scale = scales_of(rows)
    settings = AdapterSettings(width=4, rounds=3, epochs=2, batch=16, rate=0.2)
    adapter = train_adapter(PooledSums({"only": rows}), mean, scale, settings)
    plain = trained_plainly(rows, settings, mean, scale)
    for name, value in adapter.shared.items():
        assert np.abs(value - plain[name]).max() < 1e-10
    own = local_layers(tmp_path, adapter.run, 3)
    assert np.abs(own["norm.weight"] - plain["norm.weight"]).max() < 1e-10
    assert np.abs(own["norm.weight"] - 1).max() > 1e-3
    assert np.abs(adapter.margins(rows.X, own) - margins(standardised(rows.X, mean, scale), plain)).max() < 1e-9


def test_a_round_over_sites_is_the_mean_of_their_trainings_weighted_by_subjects(tmp_path: Path) -> None:
    rows = rows_of(60, None)
    mean, scale = scales_of(rows)
    parts = split(rows, None)
    settings = AdapterSettings(width=4, rounds=1, epochs=3, batch=16, local=())
    alone = {name: train_adapter(PooledSums({name: part}), mean, scale, settings).shared for name, part in parts.items()}
    together = train_adapter(PooledSums(parts), mean, scale, settings).shared
    for name, value in together.items():
        assert np.abs(value - (0.7 * alone["a"][name] + 0.3 * alone["b"][name])).max() < 1e-12


def test_fedprox_without_a_pull_is_fedavg_and_a_strong_pull_holds_the_weights(tmp_path: Path) -> None:
    rows = rows_of(60, None)
    mean, scale = scales_of(rows)
    start = first_weights(FEATURES, AdapterSettings(width=4))
    moved = {}
    for pull in (0.0, 1e-300, 1.0, 8.0):
        settings = AdapterSettings(width=4, rounds=1, epochs=5, batch=16, rate=0.1, proximal=pull, local=())
        adapter = train_adapter(PooledSums(split(rows, None)), mean, scale, settings)
        moved[pull] = math.sqrt(sum(((value - start[name]) ** 2).sum() for name, value in adapter.shared.items()))
    assert moved[1e-300] == moved[0.0]
    assert moved[8.0] < moved[1.0] < moved[0.0]
    assert moved[8.0] < 0.5 * moved[0.0]


@pytest.mark.parametrize("local", [("norm",), ("norm", "head")])
def test_what_is_local_never_reaches_the_coordinator(tmp_path: Path, local: tuple[str, ...]) -> None:
    rows = rows_of(40, None)
    sums = Watched(split(rows, tmp_path))
    settings = AdapterSettings(width=4, rounds=3, local=local)  # type: ignore[arg-type]
    adapter = train_adapter(sums, *scales_of(rows), settings)
    secret = {*NORM, *(HEAD if "head" in local else ())}
    for totals in sums.seen:
        assert not secret & {name.removeprefix("delta.") for name in totals}
    assert not secret & set(adapter.shared)
    # Nor do the asks carry more than what everybody started with.
    start = first_weights(FEATURES, settings)
    for ask in sums.asked:
        assert all(np.array_equal(ask.arrays[name], start[name]) for name in secret & set(ask.arrays))
    own = {name: local_layers(tmp_path / name, adapter.run, 3) for name in ("a", "b")}
    for name in secret:
        assert not np.array_equal(own["a"][name], own["b"][name])


def test_a_local_head_needs_its_site(tmp_path: Path) -> None:
    rows = rows_of(40, None)
    adapter = train_adapter(PooledSums(split(rows, tmp_path)), *scales_of(rows), AdapterSettings(width=4, rounds=2, local=("norm", "head")))
    with pytest.raises(InvalidValueError, match="own head"):
        adapter.margins(rows.X)
    assert np.isfinite(adapter.margins(rows.X, local_layers(tmp_path / "a", adapter.run, 2))).all()


def test_a_site_that_keeps_nothing_refuses_layers_of_its_own() -> None:
    rows = rows_of(20, None)
    with pytest.raises(FederationError, match="keeps nothing"):
        train_adapter(PooledSums({"a": rows}), *scales_of(rows), AdapterSettings(width=4, rounds=1))


def test_a_round_that_is_asked_again_gives_the_same_answer(tmp_path: Path) -> None:
    rows = rows_of(30, tmp_path)
    sums = Watched({"a": rows})
    train_adapter(sums, *scales_of(rows), AdapterSettings(width=4, rounds=3))
    again = AdapterRound().at_site(rows, sums.asked[-1])
    assert all(np.array_equal(again[name], sums.seen[-1][name]) for name in again)


def test_the_same_settings_give_the_same_weights(tmp_path: Path) -> None:
    rows = rows_of(30, None)
    both = [train_adapter(PooledSums(split(rows, tmp_path / name)), *scales_of(rows), AdapterSettings(width=4, rounds=2)) for name in ("x", "y")]
    assert all(np.array_equal(both[0].shared[name], both[1].shared[name]) for name in both[0].shared)


def test_damaged_layers_of_a_site_stop_the_run(tmp_path: Path) -> None:
    rows = rows_of(20, tmp_path)
    sums = Watched({"a": rows})
    adapter = train_adapter(sums, *scales_of(rows), AdapterSettings(width=4, rounds=2))
    kept = tmp_path / "adapter" / adapter.run / "round-00001.npz"
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(FederationError, match="start again"):
        AdapterRound().at_site(rows, sums.asked[-1])


@pytest.mark.parametrize("run", ["../../etc", "", "A", "a" * 65, 3])
def test_a_run_cannot_be_a_path(tmp_path: Path, run: object) -> None:
    rows = rows_of(20, tmp_path)
    sums = Watched({"a": rows})
    train_adapter(sums, *scales_of(rows), AdapterSettings(width=4, rounds=1))
    ask = sums.asked[0]
    with pytest.raises(InvalidValueError):
        AdapterRound().at_site(rows, Ask(ask.statistic, ask.arrays, dict(ask.options) | {"run": run}))  # type: ignore[dict-item]


def test_it_learns_and_says_how_well_those_left_out_are_predicted(tmp_path: Path) -> None:
    rows = rows_of(300, None)
    settings = AdapterSettings(width=8, rounds=8, rate=0.3, left_out=0)
    adapter = train_adapter(PooledSums(split(rows, tmp_path)), *scales_of(rows), settings)
    assert adapter.losses[-1] < adapter.losses[0] - 0.05
    assert adapter.held_out[-1] < adapter.held_out[0] - 0.05
    # What fold 0 says has no part in the training.
    turned = dataclasses.replace(rows, target=np.where(rows.fold == 0, 1 - rows.target, rows.target))
    other = train_adapter(PooledSums(split(turned, tmp_path / "turned")), *scales_of(rows), settings)
    assert all(np.array_equal(other.shared[name], adapter.shared[name]) for name in other.shared)


def network_of(rows: SiteRows) -> dict[str, "torch.Tensor"]:
    weights_ = first_weights(FEATURES, AdapterSettings(width=4)) | {"norm.weight": np.ones(FEATURES), "norm.bias": np.zeros(FEATURES)}
    return {name: torch.tensor(value) for name, value in weights_.items()}


def test_no_subject_moves_the_sum_of_gradients_by_more_than_the_clip() -> None:
    rows = rows_of(25, None)
    network, place = network_of(rows), np.unique(rows.subjects, return_inverse=True)[1]
    Z, target, weight = 20 * standardised(rows.X, *scales_of(rows)), rows.target.astype(float), weights(rows)
    names = tuple(network)

    def total(keep: np.ndarray) -> np.ndarray:
        found = clipped_total(network, names, Z[keep], target[keep], weight[keep], place[keep], 0.2)
        return np.concatenate([found[name].ravel() for name in names])

    everybody = total(np.ones(len(rows), bool))
    moved = [np.linalg.norm(everybody - total(place != one)) for one in range(25)]
    assert max(moved) <= 0.2 + 1e-12
    assert max(moved) == pytest.approx(0.2)


def test_a_subject_whose_gradient_overflows_moves_nobody_elses() -> None:
    rows = rows_of(10, None)
    network, place = network_of(rows), np.unique(rows.subjects, return_inverse=True)[1]
    network["head.weight"] = network["head.weight"] * 1e307
    Z = standardised(rows.X, *scales_of(rows))
    Z[place > 0] = 0.0  # the normalised row is 0 too: only subject 0 reaches the head
    with np.errstate(over="ignore"):
        found = clipped_total(network, tuple(network), Z, rows.target.astype(float), weights(rows), place, 0.5)
        others = clipped_total(
            network, tuple(network), Z[place > 0], rows.target[place > 0].astype(float), weights(rows)[place > 0], place[place > 0], 0.5
        )
    difference = math.sqrt(sum(((found[name] - others[name]) ** 2).sum() for name in found))
    assert math.isfinite(difference)
    assert difference <= 0.5 + 1e-12
    assert any(np.abs(value).max() > 0 for value in others.values())


def test_clipped_gradients_are_those_of_opacus() -> None:
    from opacus.grad_sample import GradSampleModule

    rows = rows_of(12, None)
    rows = part_of(rows, np.arange(0, len(rows), 2), b"", first=True)  # one recording each: Opacus counts rows
    Z, target = standardised(rows.X, *scales_of(rows)), rows.target.astype(float)
    network = network_of(rows)
    module = torch.nn.Sequential(torch.nn.LayerNorm(FEATURES), torch.nn.Linear(FEATURES, 4), torch.nn.GELU(), torch.nn.Linear(4, 1)).double()
    names = ("norm.weight", "norm.bias", "down.weight", "down.bias", "head.weight", "head.bias")
    with torch.no_grad():
        for parameter, name in zip(module.parameters(), names, strict=True):
            parameter.copy_(network[name].reshape(parameter.shape))
    watched = GradSampleModule(module, loss_reduction="sum")
    torch.nn.functional.binary_cross_entropy_with_logits(
        watched(torch.tensor(Z, requires_grad=True))[:, 0], torch.tensor(target), reduction="sum"
    ).backward()
    samples = [parameter.grad_sample.reshape(len(Z), -1) for parameter in watched.parameters()]
    norm = torch.cat(samples, dim=1).norm(dim=1)
    expected = [((0.3 / norm).clamp(max=1.0) @ sample).numpy() for sample in samples]
    found = clipped_total(network, names, Z, target, np.ones(len(Z)), np.arange(len(Z)), 0.3)
    for name, value in zip(names, expected, strict=True):
        assert np.abs(found[name].ravel() - value).max() < 1e-10


def test_a_private_training_tells_no_numbers_and_costs_what_its_asks_do(tmp_path: Path) -> None:
    rows = rows_of(200, None)
    sums = Watched(split(rows, tmp_path))
    privacy = AdapterPrivacy(noise_multiplier=1.0, sampling_probability=0.2, steps=5, people=100)
    adapter = train_adapter(sums, *scales_of(rows), AdapterSettings(width=4, rounds=4, privacy=privacy))
    assert all(set(totals) == {"weight", *(f"delta.{name}" for name in adapter.shared)} for totals in sums.seen)
    assert all(totals["weight"] == 2 for totals in sums.seen)
    assert adapter.charge is not None
    paid = charge_of(sums.asked)
    assert paid is not None
    assert epsilon([paid], DELTA) == pytest.approx(epsilon([adapter.charge], DELTA))
    assert PrivateAdapterRound.private
    assert all(math.isnan(value) for value in adapter.losses + adapter.held_out)


def test_a_private_round_that_is_asked_again_gives_the_same_answer(tmp_path: Path) -> None:
    rows = rows_of(30, tmp_path)
    sums = Watched({"a": rows})
    privacy = AdapterPrivacy(noise_multiplier=1.0, sampling_probability=0.3, steps=3)
    train_adapter(sums, *scales_of(rows), AdapterSettings(width=4, rounds=2, privacy=privacy))
    again = PrivateAdapterRound().at_site(rows, sums.asked[-1])
    assert all(np.array_equal(again[name], sums.seen[-1][name]) for name in again)


def test_a_private_training_learns_where_there_are_enough_people() -> None:
    rows, fresh = rows_of(1500, None), rows_of(1500, None, seed=0)
    parts = split(rows, None, 0.5)
    privacy = AdapterPrivacy(noise_multiplier=1.0, sampling_probability=0.1, steps=40, people=750)
    settings = AdapterSettings(width=4, rounds=4, rate=2.0, local=(), privacy=privacy)
    auc = []
    for one in (settings, AdapterSettings(width=4, rounds=8, rate=0.3, local=())):
        p = expit(train_adapter(PooledSums(parts), *scales_of(rows), one).margins(fresh.X))
        auc.append(np.mean(p[fresh.target == 1][:1000, None] > p[fresh.target == 0][None, :1000]))
    assert auc[0] > auc[1] - 0.05
    assert auc[0] > 0.6


def test_a_step_that_hears_nobody_moves_by_the_noise_that_is_promised(tmp_path: Path) -> None:
    rows = rows_of(10, tmp_path)
    sums = Watched({"a": rows})
    privacy = AdapterPrivacy(noise_multiplier=3.0, clip=2.0, sampling_probability=1e-9, steps=1, people=100)
    train_adapter(sums, *scales_of(rows), AdapterSettings(width=64, rounds=1, rate=1e-9, privacy=privacy))
    # rate * clip * noise / (probability * people)
    assert sums.seen[0]["delta.down.weight"].std() == pytest.approx(0.06, rel=0.2)
