"""What a voice is made of here: twelve parameters, their reference values, and how far the literature says severity moves them.

The one table to read before believing anything simulated; `docs/simulation.md` explains it. Sizes marked as assumed have no published value.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Sex(StrEnum):
    """Sex as the reference values are split."""

    FEMALE = "female"
    MALE = "male"


class Language(StrEnum):
    """Languages there is a passage and a synthesiser voice for (ISO 639-1)."""

    ENGLISH = "en"
    GERMAN = "de"
    MANDARIN = "zh"


ALL_LANGUAGES: tuple[Language, ...] = tuple(Language)


@dataclass(frozen=True)
class VoiceParameter:
    """One property of a voice: its reference distribution over adults and its correlation with severity.

    `female` and `male` are the reference means at age 45 in English (medians where `logarithmic`); `sd`, `mandarin_shift` and
    `female_per_decade`/`male_per_decade` are on the Gaussian scale (natural logarithm where `logarithmic`).
    """

    name: str
    unit: str
    female: float
    male: float
    sd: float
    severity_r: float
    source: str
    logarithmic: bool = False
    mandarin_shift: float = 0.0
    female_per_decade: float = 0.0
    male_per_decade: float = 0.0


_MUNDT = "Mundt 2007 (PMC3022333)"
_ASSUMED = "direction published, size assumed: "
PARAMETERS: tuple[VoiceParameter, ...] = (
    VoiceParameter(
        "f0_semitones", "st re 27.5 Hz", 35.2, 25.5, 2.0, 0.0, "means Traunmüller & Eriksson; no pooled effect, p = .58 (2026 meta-analysis)",
        female_per_decade=-0.3, male_per_decade=0.1,
    ),
    VoiceParameter(
        "f0_sd_semitones", "st", 2.8, 2.6, 0.20, -0.10, f"{_ASSUMED}r = -.01 in {_MUNDT}, lower in Nilsonne 1988",
        logarithmic=True, mandarin_shift=0.20,
    ),
    VoiceParameter(
        "tempo", "articulation rate, 1 = the synthesiser's", 0.98, 1.02, 0.10, -0.12,
        f"so that, with the pauses, speech rate has the r = -.23 of {_MUNDT}; direction Cummins 2023",
        logarithmic=True, female_per_decade=-0.015, male_per_decade=-0.015,
    ),
    VoiceParameter(
        "pause_excess_s", "mean pause beyond the shortest, s", 0.34, 0.34, 0.40, 0.29, f"total pause time r = .29, {_MUNDT}",
        logarithmic=True,
    ),
    VoiceParameter("pause_sd_s", "SD of pauses, s", 0.24, 0.24, 0.40, 0.38, f"pause SD r = .38, {_MUNDT}", logarithmic=True),
    VoiceParameter("level_db", "speech level at the microphone, dBFS", -26.5, -25.5, 2.5, -0.15, f"{_ASSUMED}lower, Cummins 2023; PMC6794822"),
    VoiceParameter(
        "dynamics", "level range, 1 = the synthesiser's", 1.0, 1.0, 0.20, -0.12, f"{_ASSUMED}narrower, a vendor's range only",
        logarithmic=True,
    ),
    VoiceParameter(
        "jitter_percent", "added cycle-to-cycle jitter, %", 0.6, 0.7, 0.35, 0.08, f"{_ASSUMED}higher, MDVP study of 18/24/9",
        logarithmic=True,
    ),
    VoiceParameter(
        "shimmer_percent", "added cycle-to-cycle shimmer, %", 3.0, 3.4, 0.30, 0.08, f"{_ASSUMED}higher, MDVP study of 18/24/9",
        logarithmic=True,
    ),
    VoiceParameter(
        "hnr_db", "voiced sound over added breath noise, dB", 20.5, 19.0, 2.5, -0.10, f"{_ASSUMED}NHR higher, MDVP study of 18/24/9",
        female_per_decade=-0.3, male_per_decade=-0.4,
    ),
    VoiceParameter("articulation", "formant travel, 1 = the synthesiser's", 0.80, 0.77, 0.08, -0.17, f"F2 variability r = -.17, {_MUNDT}"),
    VoiceParameter("formant_scale", "formants, 1 = the synthesiser's", 1.0, 1.0, 0.04, 0.0, "vocal tract length; no effect", logarithmic=True),
)  # fmt: skip
PARAMETER_NAMES: tuple[str, ...] = tuple(parameter.name for parameter in PARAMETERS)

_RESIDUAL_CORRELATIONS = {
    # Between speakers of one severity; assumed here, from how the quantities hang together.
    ("pause_excess_s", "pause_sd_s"): 0.6,
    ("tempo", "pause_excess_s"): -0.2,
    ("tempo", "articulation"): -0.2,
    ("f0_semitones", "formant_scale"): 0.3,
    ("level_db", "dynamics"): 0.2,
    ("level_db", "hnr_db"): 0.3,
    ("jitter_percent", "shimmer_percent"): 0.6,
    ("jitter_percent", "hnr_db"): -0.4,
    ("shimmer_percent", "hnr_db"): -0.5,
}


def natural_values(voice: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Turn Gaussian-scale parameters, shape (..., K), into values in their units, one array a parameter."""
    return {p.name: np.exp(voice[..., k]) if p.logarithmic else voice[..., k] for k, p in enumerate(PARAMETERS)}


def reference_mean(sex: NDArray[np.str_], language: NDArray[np.str_], age: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shape (n, K): where a speaker of this sex, language and age lies at the reference severity, on the Gaussian scale."""
    female = np.asarray(sex == Sex.FEMALE)[:, None]
    base = np.where(female, _column("female"), _column("male"))
    slope = np.where(female, [p.female_per_decade for p in PARAMETERS], [p.male_per_decade for p in PARAMETERS])
    mandarin = np.asarray(language == Language.MANDARIN)[:, None] * np.array([p.mandarin_shift for p in PARAMETERS])
    return np.asarray(base + slope * (np.asarray(age)[:, None] - 45) / 10 + mandarin, dtype=np.float64)


def residual_correlation() -> NDArray[np.float64]:
    """Shape (K, K): correlation of the parameters between speakers of one severity."""
    matrix = np.eye(len(PARAMETERS))
    for (first, second), r in _RESIDUAL_CORRELATIONS.items():
        i, j = PARAMETER_NAMES.index(first), PARAMETER_NAMES.index(second)
        matrix[i, j] = matrix[j, i] = r
    return matrix


def between_speaker_sd() -> NDArray[np.float64]:
    """Shape (K,): SD between speakers of one severity, on the Gaussian scale."""
    return np.array([p.sd for p in PARAMETERS])


def severity_loadings(effect_scale: float) -> NDArray[np.float64]:
    """Standardised change per unit of severity: r / sqrt(1 - r^2) has correlation r with z at scale 1."""
    r = np.array([p.severity_r for p in PARAMETERS])
    return effect_scale * r / np.sqrt(1.0 - r**2)


def _column(sex: str) -> NDArray[np.float64]:
    return np.array([np.log(getattr(p, sex)) if p.logarithmic else getattr(p, sex) for p in PARAMETERS])
