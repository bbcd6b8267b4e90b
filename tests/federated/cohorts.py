"""Rows of a made-up cohort, in one place or split unevenly over sites."""

import hashlib

import numpy as np
import pandas as pd

from clinical_ser.cohorts.tasks import get_task
from clinical_ser.features.extraction import feature_names, fingerprints
from federated.statistics import SiteRows
from federated.training import Settings

SETS = ("praat", "timing")
NAMES = tuple(feature_names(SETS))
FOLDS = 5


def cohort_rows(subjects: int = 300, *, recordings_each: int = 2, effect: float = 0.35, missing: float = 0.03, seed: int = 0) -> SiteRows:
    """Make rows in units that differ by orders of magnitude, correlated, with gaps; the class moves some of the features."""
    rng = np.random.default_rng(seed)
    p = len(NAMES)
    who = np.repeat(np.arange(subjects), recordings_each)
    ill = rng.random(subjects) < 0.4
    mixing = np.eye(p) + 0.2 * rng.normal(size=(p, p))
    latent = rng.normal(size=(subjects, p))[who] + 0.5 * rng.normal(size=(len(who), p))
    latent[:, :8] += effect * ill[who][:, None]
    X = (latent @ mixing + 3 * rng.normal(size=p)) * 10.0 ** rng.integers(-3, 4, p)
    X[rng.random(X.shape) < missing] = np.nan
    subject = np.array([f"s{i:04d}" for i in who])
    frame = pd.DataFrame(
        {
            "recording": [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(len(who))],
            "subject": subject,
            "sex": np.where(rng.random(subjects) < 0.5, "female", "male")[who],
            "age": rng.integers(20, 79, subjects)[who],
        }
    )
    return SiteRows(
        X=X,
        target=ill[who].astype(np.int64),
        subjects=subject,
        fold=np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % FOLDS for name in subject]),
        frame=frame,
        names=NAMES,
        counts={"given": len(who) + 3, "not usable": 3, "learned from": len(who)},
        gate_failures={"snr": 3},
        refused=pd.DataFrame({"subject": ["r1", "r2", "s0000"]}),
        secret=b"of one site",
    )


def part_of(rows: SiteRows, index: np.ndarray, secret: bytes, *, first: bool) -> SiteRows:
    """Return some of the rows as a site of their own; what became of other rows is told by the first site."""
    return SiteRows(
        X=rows.X[index],
        target=rows.target[index],
        subjects=rows.subjects[index],
        fold=rows.fold[index],
        frame=rows.frame.iloc[index].reset_index(drop=True),
        names=rows.names,
        counts={"given": len(index) + 3 * first, "not usable": 3 * first, "learned from": len(index)},
        gate_failures=rows.gate_failures if first else {},
        refused=rows.refused if first else rows.refused.iloc[:0],
        secret=secret,
    )


def split(rows: SiteRows, sites: int, *, seed: int = 1) -> dict[str, SiteRows]:
    """Split by subject, unevenly: the largest site has several times the people of the smallest."""
    rng = np.random.default_rng(seed)
    people = np.unique(rows.subjects)
    place = dict(zip(people, rng.choice(sites, size=len(people), p=rng.dirichlet(np.full(sites, 3.0))), strict=True))
    # The person that is also among the refused stays with the first site, which tells of these.
    place["s0000"] = 0
    of = np.array([place[name] for name in rows.subjects])
    return {f"site-{k}": part_of(rows, np.flatnonzero(of == k), str(k).encode(), first=k == 0) for k in range(sites)}


def settings(**changes: object) -> Settings:
    """Return settings for `cohort_rows`, small enough for a test."""
    given: dict[str, object] = {
        "task": get_task("depression"),
        "features": NAMES,
        "extractors": fingerprints(SETS),
        "folds": FOLDS,
        "strengths": (300.0, 100.0, 30.0),
        "refits": 6,
        "checks": ("snr", "clipping"),
    }
    return Settings(**(given | changes))  # type: ignore[arg-type]
