"""A small network on frozen embeddings, trained where the recordings are: one round at a site (McMahan et al. 2017; Li et al. 2020, FedProx).

The one idea: normalisation and, if wanted, the head belong to a site's rooms and microphones. They are learned there, kept there, and are not among
the names that are ever added up (Li et al. 2021, FedBN).
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping
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
_RUN = re.compile(r"[0-9a-z-]{1,64}")

Tensor = Any
"""Of torch, which is imported only where a round is trained."""
Weights = dict[str, Tensor]


class _Round(Statistic):
    """What plain and private rounds share.

    Arrays: `mean`, `scale` (features,); `down.weight` (width, features), `down.bias` (width,), `head.weight` (width,), `head.bias` (1,), all public.
    Options: `run`, a name of its own for what is kept here; `round`, from 1; `rate`; `proximal`, FedProx's mu; `left_out`, a fold that is not
    heard, or -1; `local_norm`, `local_head`, what is kept here.
    """

    bound = 1e6

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Train from the shared weights for one round and return `delta.<name>` of what is shared, times `weight`."""
        shared = {name: numbers(ask, name, ndim=ndim) for name, ndim in zip((*DOWN, *HEAD), (2, 1, 1, 1), strict=True)}
        Z = _inputs(rows, ask, shared)
        local = _start(rows, ask, shared)
        heard = rows.fold != _whole(ask, "left_out", EVERYBODY, 10**6)
        frozen = () if _flag(ask, "local_norm") else NORM
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
        epochs, batch = _whole(ask, "epochs", 1, LONGEST), _whole(ask, "batch", 1, 10**9)
        seed, first = _whole(ask, "seed", 0, 2**31), (_whole(ask, "round", 1, LONGEST) - 1) * _whole(ask, "epochs", 1, LONGEST)
        inputs, target, weight = (torch.tensor(part, dtype=torch.float64) for part in (Z, rows.target[heard], weights(rows)[heard]))
        values = {name: torch.tensor(value, dtype=torch.float64, requires_grad=name in learned) for name, value in before.items()}
        for epoch in range(first, first + epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(Z))
            for start in range(0, len(order), batch):
                some = torch.from_numpy(order[start : start + batch])
                loss = weight[some] @ _losses(values, inputs[some], target[some]) / weight[some].sum()
                gradients = torch.autograd.grad(loss, [values[name] for name in learned])
                _descend(values, dict(zip(learned, gradients, strict=True)), before, ask)
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
    """

    name = "private_adapter_round"

    def charge(self, ask: Ask) -> Charge:
        """Return what a round costs."""
        part = Part(
            noise_multiplier=_number(ask, "noise_multiplier", 1e6),
            count=_whole(ask, "steps", 1, LONGEST),
            sampling_probability=_number(ask, "sampling_probability", 1.0),
        )
        return Charge(parts=(part,))

    def _train(self, rows: SiteRows, ask: Ask, Z: Array, heard: NDArray[np.bool_], before: Arrays, learned: tuple[str, ...]) -> Arrays:
        torch = _torch()
        people, place = np.unique(rows.subjects[heard], return_inverse=True)
        target, weight = rows.target[heard].astype(np.float64), weights(rows)[heard]
        probability, clip = _number(ask, "sampling_probability", 1.0), _number(ask, "clip", 1e3)
        expected = probability * _number(ask, "people", 1e9)
        noise, draws = _number(ask, "noise_multiplier", 1e6), Noise(rows, ask, before)
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in before.items()}
        for _ in range(_whole(ask, "steps", 1, LONGEST)):
            drawn = uniform(len(people), draws.key()) < probability
            some = np.flatnonzero(drawn[place])
            total = clipped_total(values, learned, Z[some], target[some], weight[some], place[some], clip)
            step = noisy({name: value / clip for name, value in total.items()}, 1.0, noise, draws.key())
            _descend(values, {name: torch.from_numpy(value * clip / expected) for name, value in step.items()}, before, ask)
        return {name: value.numpy() for name, value in values.items()}

    def _counted(self, *_: object) -> Arrays:
        return {"weight": np.ones(1)}


def clipped_total(
    values: Weights, learned: tuple[str, ...], Z: Array, target: Array, weight: Array, subject: NDArray[np.intp], clip: float
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
    """
    torch = _torch()
    fixed = {name: value for name, value in values.items() if name not in learned}
    if not len(Z):
        return {name: np.zeros(tuple(values[name].shape)) for name in learned}

    def loss(free: Weights, row: Tensor, label: Tensor) -> Tensor:
        return _losses(fixed | free, row[None], label[None])[0]

    inputs = torch.tensor(Z, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    by_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))({name: values[name].detach() for name in learned}, *inputs)
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


def _inputs(rows: SiteRows, ask: Ask, shared: Arrays) -> Array:
    mean, scale = numbers(ask, "mean", ndim=1), numbers(ask, "scale", ndim=1)
    width, features = shared["down.weight"].shape
    shapes = {"down.bias": (width,), "head.weight": (width,), "head.bias": (1,)}
    fits = features == rows.X.shape[1] and mean.shape == scale.shape == (features,)
    if not fits or any(shared[name].shape != shape for name, shape in shapes.items()):
        raise InvalidValueError(f"{ask.statistic}'s arrays", "shapes that do not fit together", "one network for these features")
    if any(np.abs(value).max() > LARGEST_WEIGHT for value in shared.values()):
        raise InvalidValueError(f"{ask.statistic}'s weights", "one beyond measure", f"numbers up to {LARGEST_WEIGHT:g}")
    return standardised(rows.X, mean, scale)


def _start(rows: SiteRows, ask: Ask, shared: Arrays) -> Arrays:
    """Return the layers of this site alone: those of the round before, or what everybody starts with."""
    number, features = _whole(ask, "round", 1, LONGEST), shared["down.weight"].shape[1]
    kept = (NORM if _flag(ask, "local_norm") else ()) + (HEAD if _flag(ask, "local_head") else ())
    start = {"norm.weight": np.ones(features), "norm.bias": np.zeros(features)} | {name: shared[name] for name in HEAD if name in kept}
    if not kept:
        return start
    if rows.workspace is None:
        raise FederationError("This site keeps nothing between rounds, so it cannot have layers of its own.")
    if number == 1:
        return start
    found = local_layers(rows.workspace, _run(ask), number - 1)
    if set(found) != set(kept) or any(found[name].shape != start[name].shape for name in kept):
        raise FederationError("What this site learned for itself is of another network.")
    return start | found


def _keep(rows: SiteRows, ask: Ask, layers: Arrays) -> None:
    """Write this round's local layers; the round before stays, so that a round that is asked again starts where it started."""
    if not layers or rows.workspace is None:
        return
    number = _whole(ask, "round", 1, LONGEST)
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


def _losses(network: Weights, Z: Tensor, target: Tensor) -> Tensor:
    """Return the log-loss of each row."""
    functional: Any = _torch().nn.functional
    normal = functional.layer_norm(Z, (Z.shape[1],), network["norm.weight"], network["norm.bias"], EPSILON)
    hidden = functional.gelu(normal @ network["down.weight"].T + network["down.bias"])
    logits = hidden @ network["head.weight"] + network["head.bias"][0]
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _descend(values: Weights, gradients: Weights, before: Arrays, ask: Ask) -> None:
    """Take one step; FedProx pulls what is shared back to where the round began."""
    torch = _torch()
    rate, proximal = _number(ask, "rate", 100.0), _number(ask, "proximal", 1e6, zero=True)
    own = (NORM if _flag(ask, "local_norm") else ()) + (HEAD if _flag(ask, "local_head") else ())
    with torch.no_grad():
        for name, gradient in gradients.items():
            pull = 0.0 if name in own else proximal * (values[name] - torch.from_numpy(before[name]))
            values[name] -= rate * (gradient + pull)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise FederationError("An adapter is trained with torch; install the extra `adapter` at this site.") from None
    return torch


def _run(ask: Ask) -> str:
    run = ask.options.get("run")
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise InvalidValueError(f"{ask.statistic}.run", "another name", "up to 64 small letters, digits and hyphens")
    return run


def _flag(ask: Ask, name: str) -> bool:
    value = ask.options.get(name)
    if not isinstance(value, bool):
        raise InvalidValueError(f"{ask.statistic}.{name}", value, "true or false")
    return value


def _whole(ask: Ask, name: str, low: int, high: int) -> int:
    value = ask.options.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValueError(f"{ask.statistic}.{name}", value, f"a whole number from {low} to {high}")
    return value


def _number(ask: Ask, name: str, high: float, *, zero: bool = False) -> float:
    value = ask.options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value <= high or (zero and value == 0)):
        raise InvalidValueError(f"{ask.statistic}.{name}", value, f"a number above 0 and up to {high:g}")
    return float(value)
