"""Scores out of fold, counted in bins: what prediction sets and the operating point are made of (`clinical_ser.models.binned`)."""

import numpy as np
from scipy.special import expit

from clinical_ser.models.binned import BINS, Binned, bin_of, spread_of
from federated.at_site import weights_in_class
from federated.protocols.margins import calibrated
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register


@register
class Scores(Statistic):
    """Scores out of fold, counted in bins by fold and class; arrays as `margins.calibrated` reads them."""

    name = "scores"
    bound = 1e9
    counts = frozenset({"mass"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `mass` (folds, 2, BINS), subjects counting once within a class, and `spread` (folds, 2, 7), which the effective number needs."""
        log_odds = calibrated(rows, ask)
        folds = len(ask.arrays["theta"])
        cell = (rows.fold * 2 + rows.target) * BINS + bin_of(expit(log_odds))
        mass = np.bincount(cell, weights_in_class(rows), minlength=folds * 2 * BINS).reshape(folds, 2, BINS)
        cells = [[(rows.fold == fold) & (rows.target == k) for k in (0, 1)] for fold in range(folds)]
        spread = [[spread_of(log_odds[here], rows.subjects[here]) for here in of_fold] for of_fold in cells]
        return {"mass": mass, "spread": np.array(spread)}


def binned(totals: Arrays, *, without: int | None = None) -> Binned:
    """Add up the totals of all folds, or of all but one."""
    return Binned.of_folds(totals["mass"], totals["spread"], without=without)
