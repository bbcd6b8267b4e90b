"""From a transcript's lines to the stretches in which only the participant speaks.

The interviewer's voice must not count: a model would learn who asks follow-up questions (Burdisso et al. 2024, ClinicalNLP, on DAIC-WOZ).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_TURN_S = 1.0
"""Shorter turns ("yes", "mhm") are below what the quality gate takes for any task."""


@dataclass(frozen=True, order=True)
class Span:
    """From `start_s` to `end_s`, in seconds of the recording."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


def participant_turns(participant: Iterable[Span], others: Iterable[Span], max_gap_s: float = float("inf")) -> list[Span]:
    """Join the participant's lines into turns and cut out every stretch in which someone else speaks.

    Lines join across a pause (it is the participant's own, and pauses are measured) unless somebody else speaks in it or it is longer
    than `max_gap_s`.

    Parameters
    ----------
    participant, others
        Lines in any order; those that do not end after they start are ignored.
    max_gap_s
        Finite where the other's lines are not transcribed, so that a pause may be theirs.

    Returns
    -------
    Turns in order, without overlap, of any length.
    """
    speech = sorted(span for span in participant if span.duration_s > 0)
    foreign = sorted(span for span in others if span.duration_s > 0)
    joined: list[Span] = []
    for span in speech:
        if joined and _one_turn(joined[-1], span, foreign, max_gap_s):
            joined[-1] = Span(joined[-1].start_s, max(joined[-1].end_s, span.end_s))
        else:
            joined.append(span)
    return [piece for span in joined for piece in _without(span, foreign)]


def _one_turn(earlier: Span, later: Span, foreign: Sequence[Span], max_gap_s: float) -> bool:
    gap = Span(earlier.end_s, later.start_s)
    if gap.duration_s <= 0:
        return True
    return gap.duration_s <= max_gap_s and not any(span.start_s < gap.end_s and span.end_s > gap.start_s for span in foreign)


def _without(span: Span, foreign: Sequence[Span]) -> list[Span]:
    pieces = []
    start_s = span.start_s
    for other in foreign:
        if other.end_s <= start_s or other.start_s >= span.end_s:
            continue
        if other.start_s > start_s:
            pieces.append(Span(start_s, other.start_s))
        start_s = other.end_s
    if start_s < span.end_s:
        pieces.append(Span(start_s, span.end_s))
    return pieces
