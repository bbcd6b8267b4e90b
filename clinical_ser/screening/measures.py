"""The measures that every report shows: a few that a reader knows, timing first, whether or not they moved this score.

The one idea: a fixed panel can be read at a glance and compared from visit to visit; what moved the score is in the explanation.

References
----------
Timing and rate have the best evidence in depression, then loudness: Mundt et al. 2007 (PMC3022333), table 1; Cummins et al. 2023, J Affect Disord
341:128.
"""

from clinical_ser.evaluation.retest import Repeated, Retest
from clinical_ser.explain.explaining import band_of, published
from clinical_ser.explain.explanation import FeatureBand
from clinical_ser.features import catalogue
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.reference import ReferenceGroup
from clinical_ser.strict import Strict

PANEL = (
    ("timing.speech_rate_syll_per_s", "egemaps.loudnessPeaksPerSec"),
    ("timing.articulation_rate_syll_per_s",),
    ("timing.pause_share_percent", "egemaps.VoicedSegmentsPerSec"),
    ("timing.pause_mean_s", "egemaps.MeanUnvoicedSegmentLength"),
    ("timing.pause_sd_s", "egemaps.StddevUnvoicedSegmentLength"),
    ("praat.intensity_sd_db", "egemaps.loudness_sma3_stddevNorm"),
    ("praat.f0_mean_hz", "egemaps.F0semitoneFrom27.5Hz_sma3nz_amean"),
    ("praat.f0_sd_semitones", "egemaps.F0semitoneFrom27.5Hz_sma3nz_pctlrange0-2"),
    ("praat.cpps_db",),
)
"""Places of the panel; the first feature of each that the model has is shown. Never jitter and shimmer, which mean nothing on running speech."""


class Measure(Strict):
    """One place of the panel: the value, where it stands in the reference group, and how well it repeats."""

    name: str
    family: str
    label_en: str
    label_zh: str
    meaning_en: str
    meaning_zh: str
    unit: str
    value: float | None
    """A difference from the person's own baseline where the model works with one."""
    reason: str | None
    """Why there is no value."""
    percentile: float | None
    """Share of the reference group below this value, in percent, between 5 and 95."""
    band: FeatureBand | None
    published: str | None
    """A published reference for speech, with its source, where a sound one exists."""
    retest: Repeated | None
    """How well it repeats when nothing changed; None where nobody measured it."""


def measures_of(vector: FeatureVector, reference: ReferenceGroup | None, retest: Retest | None, *, relative: bool) -> tuple[Measure, ...]:
    """Fill the panel.

    Parameters
    ----------
    vector
        The recording's features as they entered the model.
    reference
        The person's reference group, if there is one.
    retest
        What the model's card says of how features repeat.
    relative
        Whether values are differences from the person's own baseline.
    """
    place = {name: i for i, name in enumerate(vector.names)}
    shown = (next((name for name in names if name in place), None) for names in PANEL)
    return tuple(_measure(name, float(vector.values[place[name]]), vector, reference, retest, relative) for name in shown if name is not None)


def _measure(name: str, value: float, vector: FeatureVector, reference: ReferenceGroup | None, retest: Retest | None, relative: bool) -> Measure:
    spec, missing = catalogue.get(name), vector.missing.get(name)
    return Measure(
        name=name,
        family=spec.family,
        label_en=spec.label_en,
        label_zh=spec.label_zh,
        meaning_en=spec.meaning_en,
        meaning_zh=spec.meaning_zh,
        unit=spec.unit,
        value=value if missing is None else None,
        reason=missing,
        percentile=reference.percentile(name, value) if reference and missing is None else None,
        band=band_of(name, reference),
        published=None if relative else published(spec),
        retest=retest.features.get(name) if retest else None,
    )
