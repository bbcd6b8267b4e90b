"""A small network on frozen embeddings, trained where the recordings are: one round at a site (McMahan et al. 2017; Li et al. 2020, FedProx).

The one idea: normalisation and, if wanted, the head belong to a site's rooms and microphones. They are learned there, kept there, and are not among
the names that are ever added up (Li et al. 2021, FedBN). What a champion knew is held in two ways, both public: by its weights and their Fisher
information (elastic weight consolidation), and by its answers to the new recordings (learning without forgetting).
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.atomic_folder import sync_folder, write_new_file
from clinical_ser.errors import FederationError, InvalidValueError
from federated.at_site import EVERYBODY, Array, logistic, numbers, standardised, weights
from federated.privacy import Charge, Noise, Part, PrivateStatistic, noisy, uniform
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

NORM = ("norm.weight", "norm.bias")
DOWN = ("down.weight", "down.bias")
HEAD = ("head.weight", "head.bias")
EPSILON = 1e-5
"""Of the layer normalisation; torch's default."""
LONGEST = 10_000
"""Epochs or steps of one round that a site is ready for."""
LARGEST_WEIGHT = 1e6
MOST_GRADIENT = 1e100
MOST_PULL = 1e12
"""Times Fisher information; weights then stay where they are."""
_RUN = re.compile(r"[0-9a-z-]{1,64}")

Tensor = Any
"""Of torch, which is imported only where a round is trained."""
Weights = dict[str, Tensor]


class _Round(Statistic):
    """What plain and private rounds share.

    Arrays: `mean`, `scale` (features,); `down.weight` (width, features), `down.bias` (width,), `head.weight` (width,), `head.bias` (1,), all public.
    Options: `run`, a name of its own for what is kept here; `round`, from 1; `rate`; `proximal`, FedProx's mu; `left_out`, a fold that is not
    heard, or -1; `local_norm`, `local_head`, what is kept here.

    An update of a champion has besides: options `parent`, the champion's run, and `parent_round`, its last round, under which this site may have
    kept layers that it goes on from; `ewc` with arrays `old.<name>` and `fisher.<name>` (`pull_of`); `distillation` and `temperature` with arrays
    `old.<name>` (`teaching_of`). Where an option is missing, that is off.
    """

    bound = 1e6

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Train from the shared weights for one round and return `delta.<name>` of what is shared, times `weight`."""
        shared = {name: numbers(ask, name, ndim=ndim) for name, ndim in zip((*DOWN, *HEAD), (2, 1, 1, 1), strict=True)}
        Z = inputs_of(rows, ask, shared)
        local = _start(rows, ask, shared)
        heard = heard_by(rows, ask)
        frozen = () if flag_of(ask, "local_norm") else NORM
        kept = tuple(name for name in local if name not in frozen)
        before = shared | local
        after = self._train(rows, ask, Z[heard], heard, before, tuple(name for name in before if name not in frozen))
        _keep(rows, ask, {name: after[name] for name in kept})
        found = self._counted(rows, heard, margins(Z, before))
        weight = float(found["weight"][0])
        return found | {f"delta.{name}": weight * (after[name] - shared[name]) for name in shared if name not in local}

    def _train(self, rows: SiteRows, ask: Ask, Z: Array, heard: NDArray[np.bool_], before: Arrays, learned: tuple[str, ...]) -> Arrays:
        raise NotImplementedError

    def _counted(self, rows: SiteRows, heard: NDArray[np.bool_], before: Array, /) -> Arrays:
        raise NotImplementedError


@register
class AdapterRound(_Round):
    """Gradient descent in batches, every subject counting once; options besides: `epochs`, `batch`, `seed`.

    Order of the rows and so the result follow from `seed` and `round`. Without momentum nothing but the weights goes from batch to batch, so rounds
    at one site are one training.
    """

    name = "adapter_round"

    def _train(self, rows: SiteRows, ask: Ask, Z: Array, heard: NDArray[np.bool_], before: Arrays, learned: tuple[str, ...]) -> Arrays:
        torch = _torch()
        epochs, batch = whole_of(ask, "epochs", 1, LONGEST), whole_of(ask, "batch", 1, 10**9)
        seed, first = whole_of(ask, "seed", 0, 2**31), (whole_of(ask, "round", 1, LONGEST) - 1) * whole_of(ask, "epochs", 1, LONGEST)
        inputs, target, weight = (torch.tensor(part, dtype=torch.float64) for part in (Z, rows.target[heard], weights(rows)[heard]))
        values = {name: torch.tensor(value, dtype=torch.float64, requires_grad=name in learned) for name, value in before.items()}
        teaching, pull = teaching_of(rows, ask, Z), pull_of(ask)
        said = target if teaching is None else torch.from_numpy(teaching.said)
        for epoch in range(first, first + epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(Z))
            for start in range(0, len(order), batch):
                some = torch.from_numpy(order[start : start + batch])
                losses = _losses(values, inputs[some], target[some], teaching, said[some])
                loss = weight[some] @ losses / weight[some].sum()
                gradients = torch.autograd.grad(loss, [values[name] for name in learned])
                _descend(values, dict(zip(learned, gradients, strict=True)), before, ask, pull)
        return {name: value.detach().numpy() for name, value in values.items()}

    def _counted(self, rows: SiteRows, heard: NDArray[np.bool_], before: Array, /) -> Arrays:
        """Return subjects heard and not, and their log-loss before the round."""
        weight, loss = weights(rows), logistic(before, rows.target)[1]
        parts = {"weight": weight @ heard, "loss": (weight * heard) @ loss, "others": weight @ ~heard, "held_out": (weight * ~heard) @ loss}
        return {name: np.array([float(value)]) for name, value in parts.items()}


@register
class PrivateAdapterRound(_Round, PrivateStatistic):
    """DP-SGD by subject (Abadi et al. 2016): options besides: `steps`, `sampling_probability`, `clip`, `noise_multiplier`, `people`.

    Each step hears every subject with `sampling_probability`. A subject's gradient is the mean over the subject's recordings, in all layers
    together, the local ones included: what is shared depends on them. It is clipped to the norm `clip`, so that is the sensitivity. `people` is a
    public guess of the site's subjects, which sets the size of a step only; the true number and the losses are not released, so sites count equally.

    Distillation costs nothing: the champion is public, and a subject's gradient is clipped with it. `ewc` is refused: Fisher information is a total
    over people that nobody has made noisy.
    """

    name = "private_adapter_round"

    def charge(self, ask: Ask) -> Charge:
        """Return what a round costs."""
        part = Part(
            noise_multiplier=number_of(ask, "noise_multiplier", 1e6),
            count=whole_of(ask, "steps", 1, LONGEST),
            sampling_probability=number_of(ask, "sampling_probability", 1.0),
        )
        return Charge(parts=(part,))

    def _train(self, rows: SiteRows, ask: Ask, Z: Array, heard: NDArray[np.bool_], before: Arrays, learned: tuple[str, ...]) -> Arrays:
        torch = _torch()
        if pull_of(ask) is not None:
            raise InvalidValueError(f"{ask.statistic}.ewc", ask.options["ewc"], "0 under privacy, where distillation holds what a champion knew")
        teaching = teaching_of(rows, ask, Z)
        people, place = np.unique(rows.subjects[heard], return_inverse=True)
        target, weight = rows.target[heard].astype(np.float64), weights(rows)[heard]
        probability, clip = number_of(ask, "sampling_probability", 1.0), number_of(ask, "clip", 1e3)
        expected = probability * number_of(ask, "people", 1e9)
        noise, draws = number_of(ask, "noise_multiplier", 1e6), Noise(rows, ask, before)
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in before.items()}
        for _ in range(whole_of(ask, "steps", 1, LONGEST)):
            drawn = uniform(len(people), draws.key()) < probability
            some = np.flatnonzero(drawn[place])
            taught = None if teaching is None else teaching.take(some)
            total = clipped_total(values, learned, Z[some], target[some], weight[some], place[some], clip, taught)
            step = noisy({name: value / clip for name, value in total.items()}, 1.0, noise, draws.key())
            _descend(values, {name: torch.from_numpy(value * clip / expected) for name, value in step.items()}, before, ask, None)
        return {name: value.numpy() for name, value in values.items()}

    def _counted(self, *_: object) -> Arrays:
        return {"weight": np.ones(1)}


@dataclass(frozen=True, eq=False)
class Teaching:
    """What a champion says of rows, for a challenger to go on saying (Li & Hoiem 2016, learning without forgetting; TPAMI 40:2935-2947).

    Attributes
    ----------
    said
        Shape (rows,), the champion's probabilities of the positive class at the temperature.
    temperature
        By which both logits are divided; above 1 nearly sure answers tell more.
    share
        Of the loss that is distillation, from 0 to 1; the labels have the rest.
    """

    said: Array
    temperature: float
    share: float

    def mixed(self, losses: Tensor, logits: Tensor, said: Tensor) -> Tensor:
        """Return (1 - share) losses + share T^2 H(said, answer at T), shape (rows,); T^2 keeps gradients alike at every T (Hinton et al. 2015)."""
        functional: Any = _torch().nn.functional
        soft = functional.binary_cross_entropy_with_logits(logits / self.temperature, said, reduction="none")
        return (1 - self.share) * losses + self.share * self.temperature**2 * soft

    def take(self, some: NDArray[np.intp]) -> "Teaching":
        """Return what is said of some of the rows."""
        return Teaching(self.said[some], self.temperature, self.share)


@dataclass(frozen=True, eq=False)
class Pull:
    """The penalty sum_i c_i (w_i - old_i)^2 / 2 on the mean loss of a person (Kirkpatrick et al. 2017, PNAS 114:3521-3526).

    Attributes
    ----------
    strength
        By layer, c: `ewc` times the Fisher information of each weight.
    old
        By layer, the champion's weights.
    """

    strength: Arrays
    old: Arrays

    def moved(self, name: str, value: Tensor, rate: float) -> Tensor:
        """Return a layer after the penalty's part of a step, taken implicitly: value' = value - rate c (value' - old).

        It has the same resting points as an explicit step, and comes to rest however strong the pull is.
        """
        if name not in self.strength:
            return value
        torch = _torch()
        weight = rate * torch.from_numpy(self.strength[name])
        return (value + weight * torch.from_numpy(self.old[name])) / (1 + weight)


def teaching_of(rows: SiteRows, ask: Ask, Z: Array) -> Teaching | None:
    """Return what the champion `old.<name>`, with this site's own layers of its run, says of standardised rows; None without distillation."""
    if not ask.options.get("distillation"):
        return None
    share, temperature = number_of(ask, "distillation", 1.0), number_of(ask, "temperature", 100.0)
    old = _like(ask, "old")
    return Teaching(logistic(margins(Z, old | first_layers(rows, ask, old)) / temperature, np.zeros(len(Z), np.int64))[0], temperature, share)


def pull_of(ask: Ask) -> Pull | None:
    """Return the pull back to a champion's weights; None without one.

    Raises
    ------
    InvalidValueError
        The Fisher information has other shapes than the network, or is negative somewhere.
    """
    if not ask.options.get("ewc"):
        return None
    times, old = number_of(ask, "ewc", MOST_PULL), _like(ask, "old")
    own = HEAD if flag_of(ask, "local_head") else ()
    fisher = _like(ask, "fisher", tuple(name for name in old if name not in own))
    if any((value < 0).any() for value in fisher.values()):
        raise InvalidValueError(f"{ask.statistic}.fisher", "a negative number", "sums of squares")
    return Pull({name: times * value for name, value in fisher.items()}, old)


def clipped_total(
    values: Weights,
    learned: tuple[str, ...],
    Z: Array,
    target: Array,
    weight: Array,
    subject: NDArray[np.intp],
    clip: float,
    teaching: Teaching | None = None,
) -> Arrays:
    """Return the sum of subjects' gradients, each clipped to the norm `clip` over all layers.

    Parameters
    ----------
    values
        The network.
    learned
        Names of the layers that are trained.
    Z, target, weight
        Shape (rows, features), (rows,), (rows,); weights of a subject sum to 1.
    subject
        Shape (rows,), a number for each row's subject.
    clip
        Above 0.
    teaching
        What a champion says of these rows; its part of the loss is clipped with the rest.
    """
    torch = _torch()
    fixed = {name: value for name, value in values.items() if name not in learned}
    if not len(Z):
        return {name: np.zeros(tuple(values[name].shape)) for name in learned}

    def loss(free: Weights, row: Tensor, label: Tensor, said: Tensor) -> Tensor:
        return _losses(fixed | free, row[None], label[None], teaching, said[None])[0]

    said = target if teaching is None else teaching.said
    inputs = (torch.tensor(part, dtype=torch.float64) for part in (Z, target, said))
    by_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))({name: values[name].detach() for name in learned}, *inputs)
    people, place = np.unique(subject, return_inverse=True)
    mean = np.zeros((len(people), len(Z)))
    mean[place, np.arange(len(Z))] = weight
    # A row that overflows stays its subject's own matter: no NaN may spread to the sum, and no refusal may tell that there was one.
    bounded = {name: np.clip(np.nan_to_num(value.reshape(len(Z), -1).numpy()), -MOST_GRADIENT, MOST_GRADIENT) for name, value in by_row.items()}
    by_subject = {name: mean @ value for name, value in bounded.items()}
    norm = np.sqrt(sum((value**2).sum(axis=1) for value in by_subject.values()))
    factor = np.minimum(1.0, clip / np.maximum(norm, 1e-12))
    return {name: (factor @ value).reshape(tuple(values[name].shape)) for name, value in by_subject.items()}


def margins(Z: Array, network: Mapping[str, Array]) -> Array:
    """Return log-odds of standardised rows (rows, features) by a network in numpy, shape (rows,): what is served needs no torch."""
    from scipy.special import erf

    about = Z - Z.mean(axis=1, keepdims=True)
    normal = about / np.sqrt((about**2).mean(axis=1, keepdims=True) + EPSILON) * network["norm.weight"] + network["norm.bias"]
    hidden = normal @ network["down.weight"].T + network["down.bias"]
    hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
    return np.asarray(hidden @ network["head.weight"] + network["head.bias"][0])


def local_layers(workspace: Path, run: str, number: int) -> Arrays:
    """Read what a site learned and kept in a round of a run.

    Raises
    ------
    FederationError
        Nothing whole is there.
    """
    place = _place(workspace, run, number)
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as stored:
            return {name: np.asarray(stored[name], dtype=np.float64) for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise FederationError(f"What this site learned in round {number} for itself is not there or damaged; the run has to start again.") from None


def inputs_of(rows: SiteRows, ask: Ask, shared: Arrays) -> Array:
    """Return standardised rows, shape (rows, features); InvalidValueError unless the shared weights are those of one network for them."""
    mean, scale = numbers(ask, "mean", ndim=1), numbers(ask, "scale", ndim=1)
    width, features = shared["down.weight"].shape
    shapes = {"down.bias": (width,), "head.weight": (width,), "head.bias": (1,)}
    fits = features == rows.X.shape[1] and mean.shape == scale.shape == (features,)
    if not fits or any(shared[name].shape != shape for name, shape in shapes.items()):
        raise InvalidValueError(f"{ask.statistic}'s arrays", "shapes that do not fit together", "one network for these features")
    if any(np.abs(value).max() > LARGEST_WEIGHT for value in shared.values()):
        raise InvalidValueError(f"{ask.statistic}'s weights", "one beyond measure", f"numbers up to {LARGEST_WEIGHT:g}")
    return standardised(rows.X, mean, scale)


def heard_by(rows: SiteRows, ask: Ask) -> NDArray[np.bool_]:
    """Return which rows are learned from, shape (rows,)."""
    return np.not_equal(rows.fold, whole_of(ask, "left_out", EVERYBODY, 10**6))


def first_layers(rows: SiteRows, ask: Ask, shared: Arrays) -> Arrays:
    """Return the layers of this site alone before the first round: its own of the champion's run, or what everybody starts with.

    A site that had no part in the champion's run has none of it.
    """
    kept, features = _kept(ask), shared["down.weight"].shape[1]
    start = {"norm.weight": np.ones(features), "norm.bias": np.zeros(features)} | {name: shared[name] for name in HEAD if name in kept}
    if not kept:
        return start
    if rows.workspace is None:
        raise FederationError("This site keeps nothing between rounds, so it cannot have layers of its own.")
    if "parent" not in ask.options:
        return start
    parent, number = _run(ask, "parent"), whole_of(ask, "parent_round", 1, LONGEST)
    there = _place(rows.workspace, parent, number).exists()
    return start | _fitting(local_layers(rows.workspace, parent, number), start, kept) if there else start


def _start(rows: SiteRows, ask: Ask, shared: Arrays) -> Arrays:
    """Return the layers of this site alone: those of the round before, or of before the first."""
    number, kept = whole_of(ask, "round", 1, LONGEST), _kept(ask)
    start = first_layers(rows, ask, shared)
    if number == 1 or not kept or rows.workspace is None:
        return start
    return start | _fitting(local_layers(rows.workspace, _run(ask), number - 1), start, kept)


def _kept(ask: Ask) -> tuple[str, ...]:
    return (NORM if flag_of(ask, "local_norm") else ()) + (HEAD if flag_of(ask, "local_head") else ())


def _fitting(found: Arrays, start: Arrays, kept: tuple[str, ...]) -> Arrays:
    if set(found) != set(kept) or any(found[name].shape != start[name].shape for name in kept):
        raise FederationError("What this site learned for itself is of another network.")
    return found


def _like(ask: Ask, prefix: str, names: tuple[str, ...] = (*DOWN, *HEAD)) -> Arrays:
    """Return arrays of the ask as large as those of the network; InvalidValueError for others."""
    found = {name: numbers(ask, f"{prefix}.{name}", ndim=np.ndim(ask.arrays[name])) for name in names}
    if any(found[name].shape != np.shape(ask.arrays[name]) for name in names):
        raise InvalidValueError(f"{ask.statistic}.{prefix}", "arrays of other shapes", "one number for each weight of the network")
    if prefix == "old" and any(np.abs(value).max() > LARGEST_WEIGHT for value in found.values()):
        raise InvalidValueError(f"{ask.statistic}.old", "one beyond measure", f"numbers up to {LARGEST_WEIGHT:g}")
    return found


def _keep(rows: SiteRows, ask: Ask, layers: Arrays) -> None:
    """Write this round's local layers; the round before stays, so that a round that is asked again starts where it started."""
    if not layers or rows.workspace is None:
        return
    number = whole_of(ask, "round", 1, LONGEST)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **layers)
    place = _place(rows.workspace, _run(ask), number)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = place.with_suffix(".new")
    draft.unlink(missing_ok=True)
    write_new_file(draft, content.getvalue(), mode=0o600)
    draft.replace(place)
    sync_folder(place.parent)
    if number > 2:
        _place(rows.workspace, _run(ask), number - 2).unlink(missing_ok=True)


def _place(workspace: Path, run: str, number: int) -> Path:
    return workspace / "adapter" / run / f"round-{number:05d}.npz"


def _logits(network: Weights, Z: Tensor) -> Tensor:
    """Return the log-odds of each row; `margins` in torch."""
    functional: Any = _torch().nn.functional
    normal = functional.layer_norm(Z, (Z.shape[1],), network["norm.weight"], network["norm.bias"], EPSILON)
    hidden = functional.gelu(normal @ network["down.weight"].T + network["down.bias"])
    return hidden @ network["head.weight"] + network["head.bias"][0]


def _losses(network: Weights, Z: Tensor, target: Tensor, teaching: Teaching | None, said: Tensor) -> Tensor:
    """Return the log-loss of each row, mixed with distillation where a champion teaches; `said` is what it says of these rows."""
    functional: Any = _torch().nn.functional
    logits = _logits(network, Z)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return losses if teaching is None else teaching.mixed(losses, logits, said)


def _descend(values: Weights, gradients: Weights, before: Arrays, ask: Ask, pull: Pull | None) -> None:
    """Take one step; FedProx pulls what is shared back to where the round began, `pull` to where the champion is."""
    torch = _torch()
    rate, proximal = number_of(ask, "rate", 100.0), number_of(ask, "proximal", 1e6, zero=True)
    own = _kept(ask)
    with torch.no_grad():
        for name, gradient in gradients.items():
            back = 0.0 if name in own else proximal * (values[name] - torch.from_numpy(before[name]))
            values[name] -= rate * (gradient + back)
            if pull is not None:
                values[name].copy_(pull.moved(name, values[name], rate))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise FederationError("An adapter is trained with torch; install the extra `adapter` at this site.") from None
    return torch


def _run(ask: Ask, name: str = "run") -> str:
    run = ask.options.get(name)
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise InvalidValueError(f"{ask.statistic}.{name}", "another name", "up to 64 small letters, digits and hyphens")
    return run


def flag_of(ask: Ask, name: str) -> bool:
    """Return an option that is true or false."""
    value = ask.options.get(name)
    if not isinstance(value, bool):
        raise InvalidValueError(f"{ask.statistic}.{name}", value, "true or false")
    return value


def whole_of(ask: Ask, name: str, low: int, high: int) -> int:
    """Return an option that is a whole number from `low` to `high`."""
    value = ask.options.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValueError(f"{ask.statistic}.{name}", value, f"a whole number from {low} to {high}")
    return value


def number_of(ask: Ask, name: str, high: float, *, zero: bool = False) -> float:
    """Return an option that is a number above 0, or 0 where that is allowed."""
    value = ask.options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value <= high or (zero and value == 0)):
        raise InvalidValueError(f"{ask.statistic}.{name}", value, f"a number above 0 and up to {high:g}")
    return float(value)
