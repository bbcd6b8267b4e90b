"""Training a shared adapter on frozen embeddings: rounds of FedAvg or FedProx over secure sums, with or without differential privacy.

The one idea: only the sum of the sites' weighted changes is ever seen, and what is local is not among the names that are asked for. A champion
learns on from its own weights, held back by what they mattered (`ewc`) or by what it says (`distillation`); neither needs a row of its old data.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.strict import Strict
from federated.at_site import EVERYBODY, Array, standardised
from federated.privacy import Charge, Part
from federated.protocols.adapter import DOWN, HEAD, NORM, AdapterRound, PrivateAdapterRound, margins
from federated.protocols.fisher import Fisher
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
    ewc
        How strongly a champion's weights are held, as its Fisher information says they matter; 0 is not at all, 1 is as Bayes' rule would (a person
        of then counts as one of now). Not with privacy: nobody has made that information noisy.
    distillation
        Share of the loss that asks for the champion's answers in place of the labels; 0 is none.
    temperature
        Of the distillation.
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
    ewc: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0

    @model_validator(mode="after")
    def _held_without_noise(self) -> Self:
        if self.ewc and self.privacy:
            raise ValueError("ewc needs Fisher information, which no site gives under privacy; distillation holds what a champion knew instead")
        return self


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


@dataclass(frozen=True, eq=False)
class Importance:
    """What a champion must not unlearn: the Fisher information of its weights, over everybody it learned from (online EWC).

    Attributes
    ----------
    fisher
        By layer that is shared, in its shape: total over people, those of earlier stages discounted.
    people
        Whom it is a total over, discounted alike.
    """

    fisher: Arrays
    people: float

    def then(self, fresh: "Importance", forgetting: float) -> "Importance":
        """Return the total after one more stage (Schwarz et al. 2018, ICML, equation 9).

        Parameters
        ----------
        fresh
            Of the new stage's people, at the weights after it.
        forgetting
            What a person of before is worth beside one of now, above 0 and up to 1.
        """
        if not 0 < forgetting <= 1:
            raise InvalidValueError("forgetting", forgetting, "a factor above 0 and up to 1, where 1 forgets nothing")
        if {name: value.shape for name, value in self.fisher.items()} != {name: value.shape for name, value in fresh.fisher.items()}:
            raise InvalidValueError("importance", "that of another network", "the champion's own, stage by stage")
        total = {name: forgetting * value + fresh.fisher[name] for name, value in self.fisher.items()}
        return Importance(total, forgetting * self.people + fresh.people)


def measure_importance(sums: Sums, weights: AdapterWeights, settings: AdapterSettings) -> Importance:
    """Ask the sites that an adapter was trained at for its Fisher information, in one exchange.

    Parameters
    ----------
    sums
        The same sites.
    weights
        What was trained.
    settings
        With which it was.

    Raises
    ------
    InvalidValueError
        It was trained under privacy, which this exchange would break.
    FederationError
        A site refused, or nobody is there.
    """
    if settings.privacy is not None or weights.charge is not None:
        raise InvalidValueError("settings.privacy", "noise", "none: Fisher information is a total over people without noise")
    shared = first_weights(len(weights.mean), settings) | weights.shared
    options = {"left_out": settings.left_out, **_local(settings), **_kept_of(weights, settings)}
    [totals] = sums.total("fisher", [Ask(Fisher.name, {"mean": weights.mean, "scale": weights.scale} | shared, options)])
    if not totals["weight"][0] > 0:
        raise FederationError("No site has a subject to learn from.")
    # Fixed point leaves a total of nothing a little below zero.
    return Importance({name: np.maximum(totals[f"fisher.{name}"], 0.0) for name in weights.shared}, float(totals["weight"][0]))


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


def train_adapter(
    sums: Sums,
    mean: Array,
    scale: Array,
    settings: AdapterSettings,
    *,
    champion: AdapterWeights | None = None,
    importance: Importance | None = None,
) -> AdapterWeights:
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
    champion
        An adapter that learns on, with the same `mean`, `scale` and width, in place of weights drawn anew; sites go on from the layers that they
        kept of its run. None: a training from the start.
    importance
        Of its weights, for `settings.ewc`.

    Raises
    ------
    InvalidValueError
        The champion is of another kind, or `ewc` or `distillation` ask for what is not given, or for what privacy forbids.
    FederationError
        A site refused, keeps nothing although layers are local, or the training ran away.
    """
    if settings.ewc and settings.privacy:
        raise InvalidValueError("ewc", settings.ewc, "0 under privacy, where distillation holds what a champion knew")
    shared = first_weights(len(mean), settings)
    named = {name for part, names in (("norm", NORM), ("head", HEAD)) if part in settings.local for name in names}
    arrays = {"mean": np.asarray(mean, dtype=np.float64), "scale": np.asarray(scale, dtype=np.float64)}
    held: Arrays = {}
    options = _options(settings)
    if champion is not None:
        _check_champion(champion, shared, arrays, named)
        shared = shared | champion.shared
        options |= _kept_of(champion, settings)
    if settings.distillation or settings.ewc:
        if champion is None:
            raise InvalidValueError("champion", None, "an adapter that learns on: ewc and distillation hold on to one")
        held = {f"old.{name}": shared[name] for name in (*DOWN, *HEAD)}
    if settings.distillation:
        options |= {"distillation": settings.distillation, "temperature": settings.temperature}
    if settings.ewc:
        held |= _fisher_arrays(importance, shared, named)
        options["ewc"] = settings.ewc / _people(sums, arrays | shared, options)
    run = _name(arrays | held | ({f"first.{name}": shared[name] for name in shared} if champion else {}), settings)
    losses, held_out = [], []
    for number in range(1, settings.rounds + 1):
        statistic = AdapterRound.name if settings.privacy is None else PrivateAdapterRound.name
        [totals] = sums.total("adapter", [Ask(statistic, arrays | shared | held, options | {"run": run, "round": number})])
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


def _check_champion(champion: AdapterWeights, shared: Arrays, arrays: Arrays, named: set[str]) -> None:
    if not all(np.array_equal(getattr(champion, name), arrays[name]) for name in ("mean", "scale")):
        raise InvalidValueError("mean and scale", "others than the champion's", "those that it was trained with: an update does not move its inputs")
    expected = {name: value.shape for name, value in shared.items() if name not in named}
    if {name: value.shape for name, value in champion.shared.items()} != expected:
        raise InvalidValueError("champion", "an adapter of another width or with other layers kept at the sites", "one like the settings say")


def _fisher_arrays(importance: Importance | None, shared: Arrays, named: set[str]) -> Arrays:
    expected = {name: value.shape for name, value in shared.items() if name not in named}
    if importance is None or {name: value.shape for name, value in importance.fisher.items()} != expected:
        raise InvalidValueError("importance", "none, or that of another network", "the champion's: `measure_importance` asks for it")
    return {f"fisher.{name}": value for name, value in importance.fisher.items()}


def _people(sums: Sums, arrays: Arrays, options: Mapping[str, Scalar]) -> float:
    """Return how many people are learned from now: the sites' loss is a mean over them, and the Fisher information a total over those of before."""
    asked = {name: options[name] for name in ("left_out", "local_norm", "local_head", "parent", "parent_round") if name in options}
    [totals] = sums.total("people", [Ask(Fisher.name, arrays, asked)])
    if not totals["weight"][0] > 0:
        raise FederationError("No site has a subject to learn from.")
    return float(totals["weight"][0])


def _local(settings: AdapterSettings) -> dict[str, Scalar]:
    return {"local_norm": "norm" in settings.local, "local_head": "head" in settings.local}


def _kept_of(weights: AdapterWeights, settings: AdapterSettings) -> dict[str, Scalar]:
    """Return the run and round under which sites kept layers of an adapter; nothing where they keep none."""
    return {"parent": weights.run, "parent_round": weights.rounds} if settings.local else {}


def _options(settings: AdapterSettings) -> dict[str, Scalar]:
    common: dict[str, Scalar] = {"rate": settings.rate, "proximal": settings.proximal, "left_out": settings.left_out, **_local(settings)}
    if settings.privacy is None:
        return common | {"epochs": settings.epochs, "batch": settings.batch, "seed": settings.seed}
    return common | settings.privacy.model_dump()


def _share(totals: Arrays, part: str, whole: str) -> float:
    if part not in totals or not totals[whole][0] > 0:
        return float("nan")
    return float(totals[part][0] / totals[whole][0])


def _name(arrays: Arrays, settings: AdapterSettings) -> str:
    """Return a name that the same training has again, and no other: sites keep their layers under it."""
    # What is off is not told, so that a training from the start has the name that it had before there were updates.
    off = {name for name in ("ewc", "distillation") if not getattr(settings, name)}
    off |= {"temperature"} if not settings.distillation else set()
    told = hashlib.sha256(canonical_json(settings.model_dump(mode="json", exclude=off)))
    for name in sorted(arrays):
        told.update(arrays[name].tobytes())
    return told.hexdigest()[:32]
