"""Which of several reviews of one screening stands: for the card in the chart, and for the resources in the record system.

The one idea: one rule for both, so that a chart does not say one thing and the card above it another.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Decided(Protocol):
    """Something that says how somebody decided."""

    @property
    def decision(self) -> str:
        """`agreed`, `overridden` or `undecided`."""


_Review = TypeVar("_Review", bound=Decided)


def standing(reviews: Sequence[_Review]) -> _Review | None:
    """Return the review that stands, of some in their order: the last that decided. Leaving it open, or closing a card, undoes no decision."""
    return next((review for review in reversed(reviews) if review.decision != "undecided"), reviews[-1] if reviews else None)
