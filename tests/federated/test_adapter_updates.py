"""A champion that learns on: held by what its weights matter, or by what it says; the same at one site, at two, and after the sites kept layers."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit

from clinical_ser.cohorts.table import read_table
from clinical_ser.errors import InvalidValueError
from federated.adapter import AdapterPrivacy, AdapterSettings, AdapterWeights, Importance, first_weights, measure_importance, train_adapter
from federated.at_site import standardised, weights
from federated.protocols.adapter import (
    DOWN,
    HEAD,
    AdapterRound,
    PrivateAdapterRound,
    Pull,
    Teaching,
    clipped_total,
    local_layers,
    margins,
    pull_of,
)
from federated.protocols.fisher import Fisher, fisher_of
from federated.site_table import site_rows
from federated.statistics import Ask, PooledSums, SiteRows, contribution
from tests.federated.sites import make_consortium
from tests.federated.test_adapter import FEATURES, Watched, network_of, rows_of, scales_of, split

PLAIN = AdapterSettings(width=4, rounds=3, epochs=2, batch=16, rate=0.2, local=())
Shared = dict[str, np.ndarray]


def changed(**what: object) -> AdapterSettings:
    return PLAIN.model_copy(update=what)


def champion_of(rows: SiteRows, settings: AdapterSettings = PLAIN) -> tuple[AdapterWeights, Importance]:
    sums = PooledSums({"old": rows})
    champion = train_adapter(sums, *scales_of(rows), settings)
    return champion, measure_importance(sums, champion, settings)


def drifted(workspace: Path | None = None, *, people: int = 40) -> SiteRows:
    """People of another kind, in whom the class shows elsewhere."""
    rows = rows_of(people, workspace, seed=7)
    return dataclasses.replace(rows, X=np.roll(rows.X, 3, axis=1) / np.nanstd(rows.X) * np.nanstd(rows_of(40, None).X))


def distance(one: Shared, other: Shared) -> float:
    return math.sqrt(sum(((one[name] - other[name]) ** 2).sum() for name in one))


def test_the_fisher_information_is_that_of_torch_row_by_row() -> None:
    rows = rows_of(12, None)
    network, Z, weight = network_of(rows), standardised(rows.X, *scales_of(rows)), weights(rows)
    free = {name: network[name].clone().requires_grad_() for name in (*DOWN, *HEAD)}
    expected = {name: np.zeros(tuple(value.shape)) for name, value in free.items()}
    for row, one in zip(torch.tensor(Z), weight, strict=True):
        normal = torch.nn.functional.layer_norm(row, (FEATURES,))
        margin = torch.nn.functional.gelu(free["down.weight"] @ normal + free["down.bias"]) @ free["head.weight"] + free["head.bias"][0]
        for label in (0.0, 1.0):
            # The definition: the squared score, in expectation over the label that the model itself would draw.
            loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, torch.tensor(label, dtype=torch.float64))
            chance = float(torch.exp(-loss.detach()))
            for name, slope in zip(free, torch.autograd.grad(loss, list(free.values()), retain_graph=True), strict=True):
                expected[name] += one * chance * slope.numpy() ** 2
    found = fisher_of(Z, weight, {name: value.numpy() for name, value in network.items()})
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() < 1e-12 * max(1.0, np.abs(value).max())


def test_the_fisher_information_of_two_sites_is_that_of_one_and_labels_have_no_part_in_it() -> None:
    rows = rows_of(60, None)
    champion, alone = champion_of(rows)
    together = measure_importance(PooledSums(split(rows, None)), champion, PLAIN)
    turned = measure_importance(PooledSums({"a": dataclasses.replace(rows, target=1 - rows.target)}), champion, PLAIN)
    assert together.people == pytest.approx(60, abs=1e-9)
    for name, value in alone.fisher.items():
        assert np.abs(together.fisher[name] - value).max() < 1e-12 * 60
        assert np.array_equal(turned.fisher[name], value)
        assert value.min() >= 0
    assert max(value.max() for value in alone.fisher.values()) < Fisher.bound


def test_someone_left_out_is_in_no_total() -> None:
    rows = rows_of(40, None)
    champion, _ = champion_of(rows)
    some = measure_importance(PooledSums({"a": rows}), champion, changed(left_out=0))
    here = rows.fold != 0
    kept = dataclasses.replace(
        rows, X=rows.X[here], target=rows.target[here], subjects=rows.subjects[here], fold=rows.fold[here], frame=rows.frame[here]
    )
    alone = measure_importance(PooledSums({"a": kept}), champion, PLAIN)
    assert some.people == alone.people == len(np.unique(kept.subjects))
    assert all(np.allclose(some.fisher[name], alone.fisher[name], rtol=1e-12) for name in some.fisher)


def test_the_pull_is_the_gradient_of_its_penalty_taken_where_the_step_ends() -> None:
    rng = np.random.default_rng(0)
    strength, old, value = rng.random((3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    ended = Pull({"w": strength}, {"w": old}).moved("w", torch.tensor(value), 0.3).numpy()

    def penalty(at: np.ndarray) -> float:
        return float((strength * (at - old) ** 2).sum() / 2)

    step = 1e-6
    for i, j in np.ndindex(3, 4):
        aside = np.zeros((3, 4))
        aside[i, j] = step
        slope = (penalty(ended + aside) - penalty(ended - aside)) / (2 * step)
        assert (value - ended)[i, j] == pytest.approx(0.3 * slope, abs=1e-8)


def test_a_strong_hold_keeps_the_weights_that_matter_and_a_weak_one_lets_them_go() -> None:
    champion, importance = champion_of(rows_of(40, None))
    everywhere = Importance({name: np.maximum(value, 1e-3) for name, value in importance.fisher.items()}, importance.people)
    moved = {}
    for hold in (0.0, 1.0, 100.0, 1e9):
        updated = train_adapter(
            PooledSums({"new": drifted()}), champion.mean, champion.scale, changed(ewc=hold), champion=champion, importance=everywhere
        )
        moved[hold] = distance(updated.shared, champion.shared)
        assert all(np.isfinite(value).all() for value in updated.shared.values())
    assert moved[0.0] > moved[1.0] > moved[100.0] > moved[1e9]
    assert moved[0.0] > 0.1
    assert moved[1e9] < 1e-6


def test_a_weight_that_nothing_hangs_on_is_free() -> None:
    champion, importance = champion_of(rows_of(40, None))
    fisher = {name: np.full_like(value, 1e6) for name, value in importance.fisher.items()}
    fisher["down.weight"][0] = 0.0
    hold = {"champion": champion, "importance": Importance(fisher, 40.0)}
    updated = train_adapter(PooledSums({"new": drifted()}), champion.mean, champion.scale, changed(ewc=1e6), **hold)
    moved = np.abs(updated.shared["down.weight"] - champion.shared["down.weight"])
    assert moved[0].min() > 1e-5
    assert moved[1:].max() < 1e-6


def test_holding_on_remembers_more_of_what_was_learned_first() -> None:
    old, new = rows_of(80, None), drifted(people=80)
    champion, importance = champion_of(old, changed(rounds=6))
    loss = {}
    for name, what in (("fine-tuned", {}), ("ewc", {"ewc": 3.0}), ("lwf", {"distillation": 0.7})):
        settings = changed(rounds=6, **what)
        updated = train_adapter(PooledSums({"new": new}), champion.mean, champion.scale, settings, champion=champion, importance=importance)
        loss[name] = np.logaddexp(0, np.where(old.target == 1, -1, 1) * updated.margins(old.X)).mean()
    assert loss["ewc"] < loss["fine-tuned"] - 0.02
    assert loss["lwf"] < loss["fine-tuned"] - 0.02


def test_distillation_alone_keeps_what_is_said_whatever_the_labels() -> None:
    champion, _ = champion_of(rows_of(40, None))
    new = drifted()
    settings = changed(distillation=1.0)
    both = [
        train_adapter(PooledSums({"new": dataclasses.replace(new, target=target)}), champion.mean, champion.scale, settings, champion=champion)
        for target in (new.target, 1 - new.target)
    ]
    assert all(np.array_equal(both[0].shared[name], both[1].shared[name]) for name in both[0].shared)
    assert np.abs(both[0].margins(new.X) - champion.margins(new.X)).max() < 1e-9


def test_distillation_at_temperature_one_towards_the_labels_is_the_log_loss() -> None:
    rows = rows_of(10, None)
    network, names = network_of(rows), (*DOWN, *HEAD)
    Z, target, place = standardised(rows.X, *scales_of(rows)), rows.target.astype(float), np.unique(rows.subjects, return_inverse=True)[1]
    given = (names, Z, target, weights(rows), place, 1e3)
    plain = clipped_total(network, *given)
    taught = clipped_total(network, *given, Teaching(target, 1.0, 1.0))
    assert all(np.abs(plain[name] - taught[name]).max() < 1e-12 for name in names)


def test_what_the_labels_and_the_champion_ask_for_is_mixed_in_shares_and_temperature_leaves_the_slope_alike() -> None:
    logits, said, labels = np.array([-1.0, 0.3, 2.0]), np.array([0.2, 0.9, 0.6]), torch.tensor([0.5, 0.1, 0.4]).double()
    for temperature in (1.0, 3.0):
        free = torch.tensor(logits, requires_grad=True)
        mixed = Teaching(said, temperature, 0.25).mixed(labels, free, torch.tensor(said))
        p = expit(logits / temperature)
        cross = -(said * np.log(p) + (1 - said) * np.log(1 - p))
        assert np.allclose(mixed.detach().numpy(), 0.75 * labels.numpy() + 0.25 * temperature**2 * cross, atol=1e-12)
        mixed.sum().backward()
        assert np.allclose(free.grad.numpy(), 0.25 * temperature * (p - said), atol=1e-12)


def test_nothing_of_an_update_shows_where_it_is_off() -> None:
    rows = rows_of(30, None)
    sums = Watched({"a": rows})
    same = np.zeros(FEATURES), np.ones(FEATURES)
    before = train_adapter(sums, *same, PLAIN)
    assert all(not {"ewc", "distillation", "temperature", "parent"} & set(ask.options) for ask in sums.asked)
    assert all(not [name for name in ask.arrays if name.startswith(("old.", "fisher."))] for ask in sums.asked)
    # The name under which sites keep layers is the one that this training had before there were updates.
    assert before.run == "bf09c91c74de0f71331367a1b5e81837"
    assert train_adapter(PooledSums({"a": rows}), *same, changed(temperature=5.0)).run == before.run


def test_an_update_goes_on_from_the_layers_that_a_site_kept_and_a_new_site_from_the_start(tmp_path: Path) -> None:
    settings = changed(local=("norm",), distillation=1.0)
    old = rows_of(30, tmp_path / "old")
    champion = train_adapter(PooledSums({"old": old}), *scales_of(old), changed(local=("norm",)))
    new = drifted(tmp_path / "new")
    sums = Watched({"old": old, "new": new})
    updated = train_adapter(sums, champion.mean, champion.scale, settings, champion=champion)
    kept, own = (local_layers(tmp_path / "old", one.run, one.rounds) for one in (champion, updated))
    # Distillation alone has nothing to say where a site's own champion is the start, layers of its own included.
    assert np.abs(own["norm.weight"] - kept["norm.weight"]).max() < 1e-9
    assert np.abs(local_layers(tmp_path / "new", updated.run, updated.rounds)["norm.weight"] - 1).max() < 1e-9
    assert np.abs(kept["norm.weight"] - 1).max() > 1e-3
    assert champion.run != updated.run
    again = AdapterRound().at_site(old, sums.asked[-1])
    assert all(np.isfinite(value).all() for value in again.values())


def test_what_stays_at_a_site_has_no_fisher_information_and_no_hold(tmp_path: Path) -> None:
    settings = changed(local=("norm", "head"))
    old = rows_of(30, tmp_path)
    sums = Watched({"a": old})
    champion = train_adapter(sums, *scales_of(old), settings)
    importance = measure_importance(sums, champion, settings)
    assert set(importance.fisher) == set(DOWN)
    assert not {f"fisher.{name}" for name in HEAD} & set(sums.seen[-1])
    updated = train_adapter(sums, champion.mean, champion.scale, settings.model_copy(update={"ewc": 1e9}), champion=champion, importance=importance)
    assert distance(updated.shared, champion.shared) < 0.05
    assert np.abs(local_layers(tmp_path, updated.run, 3)["head.weight"] - local_layers(tmp_path, champion.run, 3)["head.weight"]).max() > 1e-3


def test_stages_add_up_with_the_old_ones_discounted() -> None:
    first, then = Importance({"w": np.array([4.0])}, 10.0), Importance({"w": np.array([1.0])}, 6.0)
    assert first.then(then, 1.0).fisher["w"] == 5.0
    assert first.then(then, 0.5).fisher["w"] == 3.0
    assert first.then(then, 0.5).people == 11.0
    for factor in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(InvalidValueError, match="forgetting"):
            first.then(then, factor)
    with pytest.raises(InvalidValueError, match="another network"):
        first.then(Importance({"w": np.ones(2)}, 1.0), 1.0)


def test_one_person_of_then_counts_as_one_of_now() -> None:
    """Twice the people of before and now, and so the same hold: Fisher information is a total and the loss a mean."""
    rows, new = rows_of(40, None), drifted()
    champion, importance = champion_of(rows)
    doubled = Importance({name: 2 * value for name, value in importance.fisher.items()}, 2 * importance.people)
    twin = dataclasses.replace(new, subjects=np.array([f"twin-{name}" for name in new.subjects]))
    settings = changed(ewc=1.0, rounds=1, epochs=3, batch=10**6)
    given = champion.mean, champion.scale, settings
    once = train_adapter(PooledSums({"a": new}), *given, champion=champion, importance=importance)
    twice = train_adapter(PooledSums({"a": new, "b": twin}), *given, champion=champion, importance=doubled)
    assert distance(once.shared, twice.shared) < 1e-12


def test_privacy_takes_distillation_and_refuses_the_other_by_name(tmp_path: Path) -> None:
    rows = rows_of(60, tmp_path)
    champion, importance = champion_of(dataclasses.replace(rows, workspace=None))
    privacy = AdapterPrivacy(noise_multiplier=1.0, sampling_probability=0.5, steps=2)
    with pytest.raises(ValidationError, match="ewc"):
        AdapterSettings(width=4, ewc=1.0, privacy=privacy)
    sums = Watched({"a": rows})
    with pytest.raises(InvalidValueError, match="under privacy"):
        train_adapter(sums, champion.mean, champion.scale, changed(ewc=1.0, privacy=privacy), champion=champion, importance=importance)
    assert sums.asked == []
    private = changed(privacy=privacy, distillation=0.5)
    updated = train_adapter(sums, champion.mean, champion.scale, private, champion=champion)
    assert updated.charge is not None
    assert distance(updated.shared, champion.shared) > 0
    with pytest.raises(InvalidValueError, match="without noise"):
        measure_importance(sums, updated, private)
    ask = sums.asked[-1]
    held = {f"fisher.{name}": value for name, value in importance.fisher.items()}
    with pytest.raises(InvalidValueError, match="ewc"):
        PrivateAdapterRound().at_site(rows, Ask(ask.statistic, {**ask.arrays, **held}, {**ask.options, "ewc": 1.0}))


def test_nobody_moves_a_private_update_by_more_than_the_clip_whatever_the_champion_says() -> None:
    rows = rows_of(20, None)
    network, names = network_of(rows), (*DOWN, *HEAD)
    Z, place = 20 * standardised(rows.X, *scales_of(rows)), np.unique(rows.subjects, return_inverse=True)[1]
    target, weight, taught = rows.target.astype(float), weights(rows), Teaching(1.0 - rows.target, 0.01, 1.0)

    def total(keep: np.ndarray) -> np.ndarray:
        index = np.flatnonzero(keep)
        found = clipped_total(network, names, Z[index], target[index], weight[index], place[index], 0.2, taught.take(index))
        return np.concatenate([found[name].ravel() for name in names])

    everybody = total(np.ones(len(rows), bool))
    assert max(np.linalg.norm(everybody - total(place != one)) for one in range(20)) <= 0.2 + 1e-12


@pytest.mark.parametrize(
    ("what", "without"),
    [({"ewc": 1.0}, ("champion",)), ({"distillation": 0.5}, ("champion",)), ({"ewc": 1.0}, ("importance",)), ({"width": 5}, ())],
)
def test_an_update_without_what_it_needs_is_refused_before_anyone_is_asked(what: dict[str, float], without: tuple[str, ...]) -> None:
    champion, importance = champion_of(rows_of(20, None))
    sums = Watched({"new": drifted()})
    given = {"champion": champion, "importance": importance}
    with pytest.raises(InvalidValueError):
        train_adapter(sums, champion.mean, champion.scale, changed(**what), **{k: v for k, v in given.items() if k not in without})
    assert sums.asked == []


def test_an_update_does_not_move_its_inputs() -> None:
    champion, _ = champion_of(rows_of(20, None))
    with pytest.raises(InvalidValueError, match="mean and scale"):
        train_adapter(PooledSums({"new": drifted()}), champion.mean + 1, champion.scale, PLAIN, champion=champion)


@pytest.mark.parametrize(
    ("options", "arrays"),
    [
        ({"ewc": -1.0}, {}),
        ({"ewc": math.nan}, {}),
        ({"ewc": "all"}, {}),
        ({"ewc": 1e13}, {}),
        ({"distillation": 1.5}, {}),
        ({"distillation": True}, {}),
        ({"temperature": 0.0}, {}),
        ({"parent": "../../etc"}, {}),
        ({"parent_round": 0}, {}),
        ({}, {"old.head.weight": np.ones(3)}),
        ({}, {"old.head.weight": np.full(4, 1e7)}),
        ({}, {"old.down.bias": np.full(4, np.nan)}),
        ({}, {"fisher.down.bias": np.array([0.0, 0.0, 0.0, -1.0])}),
        ({}, {"fisher.down.weight": np.ones((4, FEATURES + 1))}),
        ({}, {"fisher.head.bias": np.array([np.inf])}),
    ],
)
def test_a_hostile_ask_is_refused(tmp_path: Path, options: dict[str, object], arrays: Shared) -> None:
    rows = rows_of(20, tmp_path)
    start = first_weights(FEATURES, PLAIN)
    old = {f"old.{name}": value for name, value in start.items()} | {f"fisher.{name}": np.ones_like(value) for name, value in start.items()}
    asked = {"run": "r", "round": 1, "rate": 0.1, "proximal": 0.0, "left_out": -1, "local_norm": True, "local_head": False, "epochs": 1, "batch": 8}
    more = {"seed": 0, "ewc": 1.0, "distillation": 0.5, "temperature": 2.0, "parent": "q", "parent_round": 1}
    mean, scale = scales_of(rows)
    given = {"mean": mean, "scale": scale} | start | old
    assert np.isfinite(contribution(rows, Ask("adapter_round", given, asked | more))["weight"]).all()
    with pytest.raises(InvalidValueError):
        contribution(rows, Ask("adapter_round", given | arrays, asked | more | options))


def test_an_ask_without_ewc_holds_nothing() -> None:
    assert pull_of(Ask("adapter_round", {}, {"local_head": False})) is None
    assert margins(np.ones((2, FEATURES)), first_weights(FEATURES, PLAIN) | {"norm.weight": np.ones(FEATURES), "norm.bias": np.zeros(FEATURES)}).shape


def test_over_hospitals_with_masks_an_update_is_that_of_tables_in_memory(tmp_path: Path) -> None:
    made = make_consortium(tmp_path, statistics=("fisher", "adapter_round"))
    tables = {name: site_rows(read_table(made.site(name) / "features.parquet"), made.plan, name.encode(), None) for name in made.names}
    X = np.concatenate([rows.X for rows in tables.values()])
    found = []
    for sums in (made.sums(), PooledSums(tables)):
        champion = train_adapter(sums, X.mean(axis=0), X.std(axis=0), PLAIN)
        importance = measure_importance(sums, champion, PLAIN)
        settings = changed(ewc=2.0, distillation=0.5, rounds=2)
        updated = train_adapter(sums, champion.mean, champion.scale, settings, champion=champion, importance=importance)
        found.append((importance, updated))
    (masked, ours), (plain, pooled) = found
    assert masked.people == pytest.approx(plain.people, abs=1e-6)
    assert all(np.abs(masked.fisher[name] - plain.fisher[name]).max() < 1e-6 for name in plain.fisher)
    assert distance(ours.shared, pooled.shared) < 1e-5
    assert distance(ours.shared, first_weights(len(champion.mean), PLAIN)) > 0.1
