"""Explanations against what is known: how exact, how private, how stable, how fast.

    python -m benchmarks.explanation --data FOLDER [--subjects 300] [--emodb PATH]

Trains on one simulated cohort and explains another of the same world, both heads: what the private reference costs, whether the ranking of families
is that of the effects that made the voices, deletion and insertion curves against random order, models of shuffled labels, agreement of refits, and
time a recording.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr

from benchmarks.simulated_truth import cohort
from benchmarks.tables import publish
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.simulation import DEMO_EFFECT_SCALE, SimulatedCohort
from clinical_ser.cohorts.simulation.model import draw_speakers
from clinical_ser.cohorts.simulation.parameters import (
    PARAMETERS,
    between_speaker_sd,
    reference_mean,
    residual_correlation,
    severity_loadings,
)
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.explain.effects import Effects, Explainer, half_widths
from clinical_ser.explain.explaining import explain
from clinical_ser.explain.shapley import probability_values, shapley_matrix, sums_of_others
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.background import SAMPLES
from clinical_ser.models.reference import Person
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import TrainingOptions, train

Array = NDArray[np.float64]
FAMILY_OF = {
    "f0_semitones": "pitch", "f0_sd_semitones": "pitch", "tempo": "timing", "pause_excess_s": "timing", "pause_sd_s": "timing",
    "level_db": "loudness", "dynamics": "loudness", "jitter_percent": "voice_quality", "shimmer_percent": "voice_quality",
    "hnr_db": "voice_quality", "articulation": "articulation", "formant_scale": "articulation",
}  # fmt: skip
"""Which family a voice parameter is heard in; what each of them moves besides is part of what is measured."""
SHUFFLES = 20
MORE_SAMPLES = 16_384


def rows_of(table: FeatureTable, model: TrainedModel) -> Rows:
    """Return the usable rows of a cohort."""
    return select_rows(table, model.task, model.features, use_baseline=False, used_as="explained").rows


def everyone(model: TrainedModel) -> int:
    """Return the place of the group that is not cut."""
    return next(i for i, group in enumerate(model.reference.groups) if not group.conditions.words())


def privacy(model: TrainedModel, own: Rows, fresh: Rows) -> dict[str, object]:
    """Compare Shapley values of the probability, in points, against three references: moments of the bundle, the rows learned from, fresh people."""
    terms = model.terms(fresh.X, refits=False)
    matrix = shapley_matrix(terms.families.shape[2])
    constant = terms.constant + model.prevalence_shift(None)

    def against(members: Array) -> Array:
        """Shape (rows, families + 1): values, and the base."""
        others = sums_of_others(members[None])
        found = [probability_values(constant, terms.families[:, i], others, 0)[0] for i in range(len(fresh.X))]
        return np.array([[*(matrix @ values), values[0]] for values in found]) * 100

    healthy = fresh.target == 0
    truth = against(terms.families[0][healthy])
    people = terms.families[0][healthy]
    ours = against(model.scales[0] * model.background(everyone(model)).draw()[0])
    rows = against(model.terms(own.X[own.target == 0], refits=False).families[0])
    more = against(model.scales[0] * model.background(everyone(model)).draw(MORE_SAMPLES)[0])
    normal = against(people.mean(axis=0) + (ours_like(people) if len(people) else people))
    return {
        "mean absolute value, points": f"{np.abs(truth[:, :-1]).mean():.2f}",
        "error of the bundle's moments": f"{np.abs(ours - truth)[:, :-1].mean():.2f}",
        "error of the rows learned from": f"{np.abs(rows - truth)[:, :-1].mean():.2f}",
        "of that, moments instead of rows": f"{np.abs(normal - truth)[:, :-1].mean():.3f}",
        f"of that, {SAMPLES} draws instead of {MORE_SAMPLES:,}": f"{np.abs(ours - more)[:, :-1].mean():.3f}",
        "base of fresh people, bundle, rows": f"{truth[0, -1]:.1f}, {ours[0, -1]:.1f}, {rows[0, -1]:.1f}",
        "sign differs among values over 1 point": f"{(np.sign(ours) != np.sign(truth))[np.abs(truth) > 1].mean():.3f}",
    }


def ours_like(people: Array) -> Array:
    """Draw from a normal distribution with the moments of these very people: what is lost by keeping moments alone."""
    flat = (people - people.mean(axis=0)).reshape(len(people), -1)
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(flat.shape[1]), np.cov(flat.T, bias=True), MORE_SAMPLES)
    return draws.reshape(-1, *people.shape[1:])


def true_effects(made: SimulatedCohort) -> tuple[dict[str, int], dict[str, Array]]:
    """Return the place of each subject, and each family's part of the true score (the probit's argument), against the mean of the healthy."""
    speakers = draw_speakers(made.design)
    standardised = (speakers.voice - reference_mean(speakers.sex, speakers.language, speakers.age)) / between_speaker_sd()
    weights = np.linalg.solve(residual_correlation(), severity_loadings(made.design.effect_scale))
    parts = standardised * weights
    parts = parts - parts[~speakers.depressed].mean(axis=0)
    names = [parameter.name for parameter in PARAMETERS]
    families = {f: parts[:, [i for i, name in enumerate(names) if FAMILY_OF[name] == f]].sum(axis=1) for f in dict.fromkeys(FAMILY_OF.values())}
    return {f"simulated-{i + 1:04d}": i for i in range(len(parts))}, families


def recovery(effects: list[Effects], rows: Rows, made: SimulatedCohort) -> dict[str, object]:
    """Compare the families' effects with those that made the voices."""
    place, truth = true_effects(made)
    at = np.array([place[subject] for subject in rows.subjects])
    found = {name: np.array([one.log_odds[0, i] for one in effects]) for i, name in enumerate(effects[0].families)}
    shared = [name for name in found if name in truth]
    sizes, true_sizes = ([float(np.abs(values[name][index]).mean()) for name in shared] for values, index in ((found, slice(None)), (truth, at)))
    within = [spearmanr([abs(found[n][i]) for n in shared], [abs(truth[n][at[i]]) for n in shared]).statistic for i in range(len(at))]
    tops = np.mean([max(shared, key=lambda n: abs(found[n][i])) == max(shared, key=lambda n: abs(truth[n][at[i]])) for i in range(len(at))])
    return {
        "families by size, rank correlation": f"{spearmanr(sizes, true_sizes).statistic:.2f}",
        "families by size, found": ", ".join(sorted(shared, key=lambda n: -sizes[shared.index(n)])),
        "true": ", ".join(sorted(shared, key=lambda n: -true_sizes[shared.index(n)])),
        "within a person, mean rank correlation of sizes": f"{np.mean(within):.2f}",
        "same first family": f"{tops:.2f}",
    } | {f"{name}, correlation over people": f"{np.corrcoef(found[name], truth[name][at])[0, 1]:.2f}" for name in shared}


def curves(effects: list[Effects], seed: int = 0) -> dict[str, object]:
    """Delete (insert) families one by one, largest first and in random order; mean over steps of the move of the probability, in points."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"deletion": [], "deletion, random": [], "insertion": [], "insertion, random": []}
    for one in effects:
        parts, base = one.log_odds[0], one.base_log_odds[0]
        for name, order in (("", np.argsort(-np.abs(one.probability[0]))), (", random", rng.permutation(len(parts)))):
            steps = np.cumsum(parts[order])[:-1]
            whole = expit(base + parts.sum())
            found[f"deletion{name}"].append(float(np.abs(expit(base + parts.sum() - steps) - whole).mean()))
            found[f"insertion{name}"].append(float(np.abs(expit(base + steps) - whole).mean()))
    return {name: f"{100 * np.mean(values):.2f}" for name, values in found.items()}


def agreement(effects: list[Effects]) -> dict[str, object]:
    """How often refits agree with the model."""
    first = np.mean([one.rank_agreement[np.abs(one.probability[0]).argmax()] for one in effects])
    features = np.mean([(np.abs(one.features[1:]).argmax(axis=1) == np.abs(one.features[0]).argmax()).mean() for one in effects])
    return {
        "first family agrees": f"{first:.2f}",
        "first feature agrees": f"{features:.2f}",
        "families stable": f"{np.mean([one.stable.mean() for one in effects]):.2f}",
        "main driver named": f"{np.mean([one.main_driver is not None for one in effects]):.2f}",
        "mean half interval, points": f"{100 * np.mean([half_widths(one.probability).mean() for one in effects]):.2f}",
    }


def shuffled(table: FeatureTable, unseen: FeatureTable, head: str) -> dict[str, object]:
    """Train on shuffled labels: what is called stable then is chance."""
    stable, named = [], []
    for seed in range(SHUFFLES):
        label = np.random.default_rng(seed).permutation(table.frame["label"].to_numpy())
        # Without the score too: a row whose label contradicts its score is left out of training.
        mixed = FeatureTable(table.frame.assign(label=label).drop(columns="score"), table.feature_names, table.extractors)
        model = train(mixed, DEPRESSION, TrainingOptions(head=head)).model
        X = rows_of(unseen, model).X[:40]
        effects = Explainer(model).table(X, targets=["depressed"] * len(X), groups=[everyone(model)] * len(X), refits=True)
        stable.append(np.mean([one.stable for one in effects]))
        named.append(np.mean([one.main_driver is not None for one in effects]))
    return {"shuffles": SHUFFLES, "families stable": f"{np.mean(stable):.3f}", "main driver named": f"{np.mean(named):.3f}"}


def milliseconds(model: TrainedModel, X: Array, target: str) -> dict[str, object]:
    """Time of one recording's whole explanation, with all refits, words and what-if; the first one also makes the background."""
    explainer = Explainer(model)
    times = []
    for x in X[:31]:
        missing = {name: "missing" for name, value in zip(model.features, x, strict=True) if np.isnan(value)}
        start = time.perf_counter()
        explain(explainer, FeatureVector(model.features, x, missing), target=target, person=Person(sex="female", age=45))
        times.append(1000 * (time.perf_counter() - start))
    return {"refits": len(model.refits), "ms a recording, median": f"{np.median(times[1:]):.0f}", "first, ms": f"{times[0]:.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder for the simulated cohorts.")
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--effect-scale", type=float, default=DEMO_EFFECT_SCALE)
    parser.add_argument("--emodb", type=Path, default=None, help="EmoDB, for the time of a model of several classes.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    (_, table), (made, unseen) = (cohort(given.data, given.subjects, seed, given.effect_scale, given.workers) for seed in (1, 2))
    found: dict[str, list[dict[str, object]]] = {}
    for head in ("linear", "xgboost"):
        model = train(table, DEPRESSION, TrainingOptions(head=head)).model
        own, fresh = rows_of(table, model), rows_of(unseen, model)
        groups = [model.reference.for_person(Person.of_row(row)) for row in fresh.frame.to_dict("records")]
        effects = Explainer(model).table(fresh.X, targets=["depressed"] * len(fresh.X), groups=groups, refits=True)
        for title, row in (
            ("What the private reference costs", privacy(model, own, fresh)),
            ("Families against the effects that made the voices", recovery(effects, fresh, made)),
            ("Deletion and insertion by family, points", curves(effects)),
            ("Refits", agreement(effects)),
            ("Shuffled labels", shuffled(table, unseen, head)),
            ("Time", milliseconds(model, fresh.X, "depressed")),
        ):
            found.setdefault(title, []).append({"head": head, **row})
    if given.emodb:
        frame = get_corpus("emodb").read(given.emodb).assign(row=lambda rows: np.arange(1, len(rows) + 1))
        acted = build_table(Manifest(frame), workers=given.workers, cache=given.data / "cache")
        for head in ("linear", "xgboost"):
            model = train(acted, EMOTION, TrainingOptions(head=head, refits=40)).model
            row = milliseconds(model, rows_of(acted, model).X, model.task.classes[0])
            found["Time"].append({"head": f"{head}, {len(model.task.classes)} classes", **row})
    publish(found, given.json)


if __name__ == "__main__":
    main()
