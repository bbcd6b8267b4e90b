"""How often a shadow answers as its champion does, from the pairs that a server's journal counts.

The one idea: agreement says how many people would be told something else, and not who is right; that takes outcomes, and is the gate's.
"""

from collections import Counter
from collections.abc import Iterable

from clinical_ser.errors import MonitoringError
from clinical_ser.evaluation.intervals import wilson
from clinical_ser.monitoring.counts import BESIDE, Counts
from clinical_ser.screening.result import Status
from clinical_ser.strict import Strict

_SEPARATOR = " > "


class Agreement(Strict):
    """How a shadow's answers lie to the champion's, among recordings with one answer of the champion, or all."""

    status: str
    """Of the champion; `all` for all of them."""
    recordings: int
    alike: int
    """Recordings that the shadow gave the same status."""
    share: float
    low: float
    high: float
    """Wilson's 95 % interval of the share; one recording a person, as the journal counts them."""
    answers: dict[str, int]
    """Of the shadow."""


def agreement_of(counts: Iterable[Counts], champion: str) -> tuple[Agreement, ...]:
    """Return the agreement of a shadow's answers with a champion's, of all recordings first and then by the champion's answer; empty for none.

    Parameters
    ----------
    counts
        Of the shadow, for example a journal's days.
    champion
        Its digest; pairs beside another champion are left out.

    Raises
    ------
    MonitoringError
        What was counted is no pair of answers.
    """
    kind, pairs = f"{BESIDE}{champion[:12]}.status", Counter[tuple[str, str]]()
    known = {str(status) for status in Status}
    for one in counts:
        for name, n in one.names.get(kind, {}).items():
            told, _, shadowed = name.partition(_SEPARATOR)
            if not {told, shadowed} <= known:
                raise MonitoringError("The journal's counts of the shadow hold what is no pair of answers.")
            pairs[told, shadowed] += n
    found = (_agreement("all", pairs), *(_agreement(status, pairs) for status in sorted({told for told, _ in pairs})))
    return tuple(one for one in found if one is not None)


def _agreement(status: str, pairs: Counter[tuple[str, str]]) -> Agreement | None:
    here = {pair: n for pair, n in pairs.items() if status in {"all", pair[0]}}
    if not (recordings := sum(here.values())):
        return None
    alike = sum(n for (told, shadowed), n in here.items() if told == shadowed)
    low, high = wilson(alike / recordings, recordings)
    answers: Counter[str] = Counter()
    for (_, shadowed), n in here.items():
        answers[shadowed] += n
    return Agreement(
        status=status,
        recordings=recordings,
        alike=alike,
        share=alike / recordings,
        low=float(low),
        high=float(high),
        answers=dict(sorted(answers.items())),
    )
