"""Who the simulated speakers are: a latent severity moves Gaussian voice parameters, so each speaker's true risk has a closed form.

No audio here. Severity z is N(m_site, 1) with the cut-off at 0; the K voice parameters are Gaussian given z, sex, language and age; Bayes'
rule for two Gaussians then gives P(score >= 10 | voice) exactly, and its AUC is the best that anything listening to the voice can reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr, ndtri
from sklearn.metrics import roc_auc_score

from clinical_ser.cohorts.simulation.parameters import (
    ALL_LANGUAGES,
    PARAMETERS,
    Language,
    Sex,
    between_speaker_sd,
    reference_mean,
    residual_correlation,
    severity_loadings,
)
from clinical_ser.errors import InvalidValueError

LITERATURE_EFFECT_SCALE = 1.0
"""Effects as published: `VoiceParameter.severity_r` is the correlation with severity."""
DEMO_EFFECT_SCALE = 2.2
"""Effects multiplied by 2.2, so that a hundred speakers are enough to learn from. Larger than life, and said so in every `truth.json`."""

SCORE_CUTOFF = 10
"""PHQ-8 >= 10: Kroenke et al. 2009, J Affect Disord 114:163-173."""
SCORE_MAX = 24
REFERENCE_SEVERITY = -1.34
"""Severity at which a speaker sounds like the reference means below: the mean of a population with 9 % above the cut-off (2009, ibid.)."""


class Microphone(StrEnum):
    """Recording devices; their responses are in `scene`."""

    HEADSET = "headset"
    TABLET = "tablet"
    LAPTOP = "laptop"


class Site(BaseModel):
    """A simulated hospital: whom it sees and how it records them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^simulated-[a-z0-9-]+$")
    prevalence_odds: float = Field(default=1.0, gt=0)
    """Odds of a positive against the other sites; the cohort's prevalence stays as asked."""
    language_weights: dict[Language, float] = Field(default=dict.fromkeys(ALL_LANGUAGES, 1.0))
    microphone: Microphone = Microphone.HEADSET
    gain_db: float = 0.0
    rt60_s: float = Field(default=0.2, ge=0, le=1.5)
    snr_db: float = Field(default=42.0, ge=-10, le=80)
    """Mean over recordings of speech power to noise power."""


DEFAULT_SITES: tuple[Site, ...] = (
    Site(name="simulated-a", prevalence_odds=0.6, language_weights={Language.ENGLISH: 3, Language.GERMAN: 1, Language.MANDARIN: 1}, snr_db=45),
    Site(
        name="simulated-b", language_weights={Language.ENGLISH: 1, Language.GERMAN: 3, Language.MANDARIN: 1},
        microphone=Microphone.TABLET, gain_db=2, rt60_s=0.3, snr_db=40,
    ),
    Site(
        name="simulated-c", prevalence_odds=1.7, language_weights={Language.ENGLISH: 1, Language.GERMAN: 1, Language.MANDARIN: 3},
        microphone=Microphone.LAPTOP, gain_db=-3, rt60_s=0.4, snr_db=35,
    ),
)  # fmt: skip


class CohortDesign(BaseModel):
    """Everything that decides a simulated cohort; equal designs give equal samples, whatever the machine's workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subjects: int = Field(ge=1, le=9_999_999)
    seed: int = Field(default=0, ge=0)
    recordings_per_subject: int = Field(default=1, ge=1, le=99)
    languages: tuple[Language, ...] = ALL_LANGUAGES
    sites: tuple[Site, ...] = DEFAULT_SITES
    prevalence: float = Field(default=0.35, gt=0, lt=1)
    effect_scale: float = Field(default=DEMO_EFFECT_SCALE, ge=0, le=10)
    speech_s: float = Field(default=27.0, ge=1, le=600)
    """Net speech per recording, pauses apart; the recording is as long as the speaker's pauses make it."""

    @field_validator("languages", "sites")
    @classmethod
    def _no_repeats(cls, values: tuple[Language | Site, ...]) -> tuple[Language | Site, ...]:
        names = [value.name for value in values]
        if not names or len(set(names)) != len(names):
            raise ValueError("at least one, each once")
        return values

    @model_validator(mode="after")
    def _sites_speak(self) -> Self:
        if any(sum(site.language_weights.get(language, 0.0) for language in self.languages) <= 0 for site in self.sites):
            raise ValueError("every site needs a positive weight for at least one of the languages")
        return self

    @classmethod
    def checked(cls, **values: object) -> Self:
        """Build a design; InvalidValueError names the first value that does not fit."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "sites"
            raise InvalidValueError(where, _shown(first["input"]), first["msg"]) from None


def _shown(value: object) -> object:
    return value if isinstance(value, int | float | str) else type(value).__name__


@dataclass(frozen=True, eq=False)
class Speakers:
    """The people of a cohort, one per entry of every array; `voice` has shape (n, K) on the Gaussian scale, columns as in `PARAMETERS`."""

    sex: NDArray[np.str_]
    age: NDArray[np.int64]
    language: NDArray[np.str_]
    site: NDArray[np.str_]
    severity: NDArray[np.float64]
    voice: NDArray[np.float64]
    true_probability: NDArray[np.float64]

    @property
    def score(self) -> NDArray[np.int64]:
        """PHQ-8-like score, 0 to 24."""
        return severity_to_score(self.severity)

    @property
    def depressed(self) -> NDArray[np.bool_]:
        """Score at or above the cut-off."""
        return self.score >= SCORE_CUTOFF

    def best_auc(self) -> float | None:
        """AUC of the true probability among these speakers; None where they are all of one class."""
        return float(roc_auc_score(self.depressed, self.true_probability)) if 0 < self.depressed.sum() < len(self.depressed) else None


def severity_to_score(severity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Map latent severity to a score: floor(12 exp(z / 2) - 2) within 0..24, so z = 0 is 10, -1 is 5, -2 is 2 and 1 is 17."""
    return np.clip(np.floor(12.0 * np.exp(severity / 2.0) - 2.0), 0, SCORE_MAX).astype(np.int64)


def site_prevalences(design: CohortDesign) -> dict[str, float]:
    """Prevalence of each site: odds in the stated ratio, mean over (equally large) sites as the design asks."""
    offsets = np.log([site.prevalence_odds for site in design.sites])

    def excess(shift: float) -> float:
        return float(expit(offsets + shift).mean()) - design.prevalence

    centre, spread = float(logit(design.prevalence)), float(np.abs(offsets).max()) + 1.0
    shift = brentq(excess, centre - spread, centre + spread, xtol=1e-12)
    return {site.name: float(p) for site, p in zip(design.sites, expit(offsets + shift), strict=True)}


def draw_speakers(design: CohortDesign, *, stream: int = 0) -> Speakers:
    """Draw the design's speakers. `stream` gives other people of the same world (a later cohort, unseen subjects).

    Sex is even, age is N(45, 16) within 18..85, sites are equally large; neither sex nor age carries risk, so they are no shortcut.
    """
    rng = np.random.default_rng(np.random.SeedSequence(design.seed, spawn_key=(0, stream)))
    n = design.subjects
    sex = rng.permutation(np.resize([sex.value for sex in Sex], n))
    age = np.clip(np.rint(rng.normal(45, 16, n)), 18, 85).astype(np.int64)
    site = rng.permutation(np.resize([site.name for site in design.sites], n))
    language = _draw_languages(design, site, rng)
    severity = _site_mean_severity(design, site) + rng.standard_normal(n)
    residual = rng.standard_normal((n, len(PARAMETERS))) @ np.linalg.cholesky(residual_correlation()).T
    standardised = severity_loadings(design.effect_scale) * (severity - REFERENCE_SEVERITY)[:, None] + residual
    voice = reference_mean(sex, language, age) + between_speaker_sd() * standardised
    probability = true_probability(voice, sex=sex, language=language, age=age, site=site, design=design)
    return Speakers(sex, age, language, site, severity, voice, probability)


def true_probability(
    voice: NDArray[np.float64],
    *,
    sex: NDArray[np.str_],
    language: NDArray[np.str_],
    age: NDArray[np.int64],
    site: NDArray[np.str_],
    design: CohortDesign,
) -> NDArray[np.float64]:
    """Return P(score >= 10 | voice, sex, language, age, site), exactly.

    With u = (voice - mean) / sd, u | z ~ N(b (z - z0), R) and z ~ N(m, 1): the posterior of z has precision q = 1 + b'R^-1 b and mean
    (m + b'R^-1 (u + b z0)) / q, and the probability is the normal distribution function of mean * sqrt(q).

    The site is conditioned on because a listener can guess it from the room and the microphone; the bound would be none otherwise.

    Parameters
    ----------
    voice : array of shape (n, K), Gaussian scale, columns as in `PARAMETERS`
    sex, language, age, site : arrays of shape (n,)

    Returns
    -------
    array of shape (n,)
    """
    loadings = severity_loadings(design.effect_scale)
    weights = np.linalg.solve(residual_correlation(), loadings)
    standardised = (voice - reference_mean(sex, language, age)) / between_speaker_sd()
    precision = 1.0 + float(weights @ loadings)
    mean = (_site_mean_severity(design, site) + (standardised + loadings * REFERENCE_SEVERITY) @ weights) / precision
    return np.asarray(ndtr(mean * np.sqrt(precision)), dtype=np.float64)


@lru_cache(maxsize=32)
def _cached_best_auc(design_json: str) -> float:
    design = CohortDesign.model_validate_json(design_json)
    speakers = draw_speakers(design, stream=1)
    return float(roc_auc_score(speakers.depressed, speakers.true_probability))


def best_reachable_auc(design: CohortDesign, *, speakers: int = 200_000) -> float:
    """AUC of the true probability in the design's population, by Monte Carlo without audio (standard error about 0.001 at 200,000).

    A bound over the voice parameters themselves: a recording shows them through noise, half a minute of pauses and a microphone, so what can
    be reached from audio is lower. Age and sex are taken as known.
    """
    population = design.model_copy(update={"subjects": speakers, "recordings_per_subject": 1})
    return _cached_best_auc(population.model_dump_json())


def _site_mean_severity(design: CohortDesign, site: NDArray[np.str_]) -> NDArray[np.float64]:
    means = {name: float(ndtri(prevalence)) for name, prevalence in site_prevalences(design).items()}
    unknown = set(map(str, site)) - set(means)
    if unknown:
        raise InvalidValueError("site", min(unknown), sorted(means))
    names, inverse = np.unique(site, return_inverse=True)
    return np.array([means[str(name)] for name in names])[inverse]


def _draw_languages(design: CohortDesign, site: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.str_]:
    uniform = rng.random(len(site))
    names = np.array([language.value for language in design.languages])
    drawn = np.empty(len(site), dtype=names.dtype)
    for place in design.sites:
        here = site == place.name
        shares = _shares([place.language_weights.get(language, 0.0) for language in design.languages])
        drawn[here] = names[np.searchsorted(np.cumsum(shares)[:-1], uniform[here], side="right")]
    return drawn


def _shares(weights: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
