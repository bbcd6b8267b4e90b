"""Training a shared adapter on frozen embeddings: rounds of FedAvg or FedProx over secure sums, with or without differential privacy.

The one idea: only the sum of the sites' weighted changes is ever seen, and what is local is not among the names that are asked for.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.strict import Strict
from federated.at_site import EVERYBODY, Array, standardised
from federated.privacy import Charge, Part
from federated.protocols.adapter import DOWN, HEAD, NORM, AdapterRound, PrivateAdapterRound, margins
from federated.statistics import Arrays, Ask, Scalar, Sums

MOST_WEIGHTS = 10**6
"""Larger networks belong to the encoder, which stays frozen."""


class AdapterPrivacy(Strict):
    """DP-SGD at every site; the unit is one subject.

    Attributes
    ----------
    noise_multiplier
        SD of the noise of a step over `clip`.
    clip
        Largest norm of a subject's gradient.
    sampling_probability
        With which a step hears a subject.
    steps
        Of one round.
    people
        A public guess of a site's subjects; it sets how far a step goes, and has no part in the promise.
    """

    noise_multiplier: Annotated[float, Field(ge=0.3, le=1e5)]
    clip: Annotated[float, Field(gt=0, le=1e3)] = 1.0
    sampling_probability: Annotated[float, Field(gt=0, le=1)] = 0.1
    steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    people: Annotated[int, Field(ge=1)] = 100

    def charge(self, rounds: int) -> Charge:
        """Return what a training costs every site."""
        part = Part(noise_multiplier=self.noise_multiplier, count=rounds * self.steps, sampling_probability=self.sampling_probability)
        return Charge(parts=(part,))


class AdapterSettings(Strict):
    """How an adapter is trained; public.

    Attributes
    ----------
    width
        Of the bottleneck.
    rounds
        Exchanges.
    epochs, batch
        At a site in a round; under privacy `AdapterPrivacy.steps` counts instead.
    rate
        Of the descent.
    proximal
        FedProx's mu; 0 is FedAvg.
    local
        Layers that a site keeps to itself.
    seed
        Of the first weights and the order of rows.
    left_out
        A fold that is not heard, for choosing `rounds` and `rate`; -1 hears everybody.
    privacy
        None: no noise; the sum alone protects.
    """

    width: Annotated[int, Field(ge=1, le=512)] = 16
    rounds: Annotated[int, Field(ge=1, le=500)] = 10
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    batch: Annotated[int, Field(ge=1)] = 32
    rate: Annotated[float, Field(gt=0, le=100)] = 0.1
    proximal: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    local: tuple[Literal["norm", "head"], ...] = ("norm",)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    left_out: Annotated[int, Field(ge=EVERYBODY)] = EVERYBODY
    privacy: AdapterPrivacy | None = None


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """A shared network.

    Attributes
    ----------
    shared
        `down.weight` (width, features), `down.bias` (width,), and unless the head is local `head.weight` (width,), `head.bias` (1,).
    mean, scale
        Shape (features,), of the inputs.
    run
        Under which the sites keep their own layers (`federated.protocols.adapter.local_layers`, of round `rounds`).
    rounds
        That were trained.
    losses, held_out
        Mean log-loss in nats before each round, over subjects heard and not; NaN under privacy, or where nobody was left out.
    charge
        What it cost every site; None without privacy.
    """

    shared: Arrays
    mean: Array
    scale: Array
    run: str
    rounds: int
    losses: tuple[float, ...]
    held_out: tuple[float, ...]
    charge: Charge | None

    def margins(self, X: Array, own: Mapping[str, Array] | None = None) -> Array:
        """Return log-odds, shape (rows,).

        Parameters
        ----------
        X
            Shape (rows, features), NaN where missing.
        own
            The site's own layers; without them normalisation is the one that everybody started with.

        Raises
        ------
        InvalidValueError
            The head is local, and none was given.
        """
        features = len(self.mean)
        network = {"norm.weight": np.ones(features), "norm.bias": np.zeros(features)} | self.shared | dict(own or {})
        if not set(HEAD) <= set(network):
            raise InvalidValueError("own", sorted(own or {}), "the site's own head: this adapter shares none")
        return margins(standardised(X, self.mean, self.scale), network)


def first_weights(features: int, settings: AdapterSettings) -> Arrays:
    """Return the weights that every site starts with: normal, with the variance that keeps that of the inputs."""
    if features * settings.width > MOST_WEIGHTS:
        raise InvalidValueError("width", settings.width, f"at most {MOST_WEIGHTS // features} for {features} features")
    rng = np.random.default_rng([settings.seed, 0])
    return {
        "down.weight": rng.normal(size=(settings.width, features)) / np.sqrt(features),
        "down.bias": np.zeros(settings.width),
        "head.weight": rng.normal(size=settings.width) / np.sqrt(settings.width),
        "head.bias": np.zeros(1),
    }


def train_adapter(sums: Sums, mean: Array, scale: Array, settings: AdapterSettings) -> AdapterWeights:
    """Train an adapter, one exchange a round.

    Sites weigh as they have subjects (McMahan et al. 2017, algorithm 1); under privacy they weigh the same, because their numbers are not released.
    The same settings and rows give the same weights, but under privacy, where the noise is nobody's to repeat.

    Parameters
    ----------
    sums
        Where totals come from.
    mean, scale
        Shape (features,); under privacy of public origin, or from `private_scales`.
    settings
        Public.

    Raises
    ------
    FederationError
        A site refused, keeps nothing although layers are local, or the training ran away.
    """
    shared = first_weights(len(mean), settings)
    named = {name for part, names in (("norm", NORM), ("head", HEAD)) if part in settings.local for name in names}
    arrays = {"mean": np.asarray(mean, dtype=np.float64), "scale": np.asarray(scale, dtype=np.float64)}
    run = _name(arrays, settings)
    losses, held_out = [], []
    for number in range(1, settings.rounds + 1):
        statistic = AdapterRound.name if settings.privacy is None else PrivateAdapterRound.name
        [totals] = sums.total("adapter", [Ask(statistic, arrays | shared, _options(settings) | {"run": run, "round": number})])
        if named & {name.removeprefix("delta.") for name in totals}:
            raise FederationError("A site sent what it should keep; nothing was used.")
        weight = float(totals["weight"][0])
        if not weight > 0:
            raise FederationError("No site has a subject to learn from.")
        shared = {name: value + totals[f"delta.{name}"] / weight if name not in named else value for name, value in shared.items()}
        losses.append(_share(totals, "loss", "weight"))
        held_out.append(_share(totals, "held_out", "others"))
    charge = settings.privacy.charge(settings.rounds) if settings.privacy else None
    kept = {name: shared[name] for name in (*DOWN, *HEAD) if name not in named}
    return AdapterWeights(kept, arrays["mean"], arrays["scale"], run, settings.rounds, tuple(losses), tuple(held_out), charge)


def _options(settings: AdapterSettings) -> dict[str, Scalar]:
    common: dict[str, Scalar] = {
        "rate": settings.rate,
        "proximal": settings.proximal,
        "left_out": settings.left_out,
        "local_norm": "norm" in settings.local,
        "local_head": "head" in settings.local,
    }
    if settings.privacy is None:
        return common | {"epochs": settings.epochs, "batch": settings.batch, "seed": settings.seed}
    return common | settings.privacy.model_dump()


def _share(totals: Arrays, part: str, whole: str) -> float:
    if part not in totals or not totals[whole][0] > 0:
        return float("nan")
    return float(totals[part][0] / totals[whole][0])


def _name(arrays: Arrays, settings: AdapterSettings) -> str:
    """Return a name that the same training has again, and no other: sites keep their layers under it."""
    told = hashlib.sha256(canonical_json(settings.model_dump(mode="json")))
    for name in sorted(arrays):
        told.update(arrays[name].tobytes())
    return told.hexdigest()[:32]
