"""Speakers with a known truth: a latent severity moves a synthetic voice, so every estimate can be compared with what generated it.

Simulated wherever it appears: subjects, sites, manifest and truth say so. For demonstrations and tests; it says nothing about real people.
"""

from clinical_ser.cohorts.simulation.cohort import SimulatedCohort, SimulatedVisit, simulate, simulate_visits
from clinical_ser.cohorts.simulation.model import (
    DEFAULT_SITES,
    DEMO_EFFECT_SCALE,
    LITERATURE_EFFECT_SCALE,
    CohortDesign,
    Microphone,
    Site,
    Speakers,
    best_reachable_auc,
    draw_speakers,
    true_probability,
)
from clinical_ser.cohorts.simulation.parameters import PARAMETERS, Language, Sex

__all__ = [
    "DEFAULT_SITES",
    "DEMO_EFFECT_SCALE",
    "LITERATURE_EFFECT_SCALE",
    "PARAMETERS",
    "CohortDesign",
    "Language",
    "Microphone",
    "Sex",
    "SimulatedCohort",
    "SimulatedVisit",
    "Site",
    "Speakers",
    "best_reachable_auc",
    "draw_speakers",
    "simulate",
    "simulate_visits",
    "true_probability",
]
