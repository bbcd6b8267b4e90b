"""What a model forgets as it learns on: sites, microphones and languages in turn (simulated), and RAVDESS, then emodb-2s (real speech).

    python -m benchmarks.forgetting --data FOLDER --tables FOLDER [--repeats 3] [--json OUT] [--pictures docs/pictures]

FOLDER of `--data` holds ravdess and emodb-2s; what is measured of them, and of two simulated cohorts, is written to `--tables` once. Every
sequence is learned stage by stage from three quarters of each stage's people, and after each update every stage is judged by the people left out, in
four folds: each person is judged once in a repeat, by models that never heard them. Figures are means over repeats, each with other folds; intervals
are those of other people (cluster bootstrap over subjects).

The real task: angry, fearful and happy speech (aroused) against neutral, calm and sad (RAVDESS) or neutral and sad (EmoDB). Other emotions are left
out, because where they belong is disputed (disgust, surprise, boredom). The gate refuses no recording here. The simulated task is the depression of
the demonstration; nobody is in two stages.

All methods but retraining keep the first stage's scales of features. "Retrained on everything" has all data so far, and scales, strength and weights
of its own: the upper bound. "All data, scales of the first stage" is what the Bayesian update approximates by quadratics. "Newest stage alone" is the
linear head fitted to the newest stage, which is where fine-tuning ends for a convex model; "fine-tuned" is the adapter going on without a hold: the
lower bounds.
"""

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from benchmarks.tables import markdown
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest, read_manifest
from clinical_ser.cohorts.simulation.cohort import simulate
from clinical_ser.cohorts.simulation.model import DEFAULT_SITES, Microphone, Site
from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.continual.forgetting import Forgetting, Measure, OfWeights, Stage, auroc, measure_forgetting, recall_at_zero
from clinical_ser.continual.linear import Loss, Rows
from clinical_ser.continual.posterior import Posterior, minimise
from clinical_ser.evaluation.calibration import Reliability
from clinical_ser.features import catalogue
from clinical_ser.features.extraction import DEFAULT_SETS, ENCODER
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.preprocessing import CONSTANT_RELATIVE_SD
from federated.adapter import AdapterSettings, AdapterWeights, Importance, measure_importance, train_adapter
from federated.at_site import standardised
from federated.statistics import PooledSums, SiteRows
from reports.drawing import ACCENT, DASH_DOT, DASHED, DOTTED, INK, PAPER, QUIET, Drawing, Look, Plot, ticks
from reports.rendering import HTML_FONT

Array = NDArray[np.float64]
EMBEDDED = "embedding.ge2e"
SETS = (*DEFAULT_SETS, f"{ENCODER}ge2e")
PEOPLE, SPEECH_S, FOLDS = 300, 12.0, 4
COHORTS = {
    "sites": DEFAULT_SITES,
    "microphones": tuple(Site(name=f"simulated-{microphone}", microphone=microphone) for microphone in Microphone),
}
ORDERED_BY = {"sites": ("sites", "site"), "microphones": ("microphones", "device"), "languages": ("microphones", "language")}
"""Cohort and column; every microphone hears all languages alike."""
CORPORA = {"ravdess": "ravdess", "emodb": "emodb-2s"}
CALLED = {"ravdess": "RAVDESS", "emodb": "EmoDB (2 s)"}
AROUSED = {"angry", "fearful", "happy", "anger", "fear", "happiness"}
CALM = {"neutral", "calm", "sad", "sadness"}
INPUTS = {"features": "interpretable features", "ge2e": "GE2E embedding"}
ADAPTER = AdapterSettings(width=16, rounds=10, epochs=4, batch=32, rate=0.1, local=())
FORGETTING = (1.0, 0.9, 0.5)
SAME_SCALES = "all data, scales of the first stage"
SHARE = 0.5
"""Of the loss that is distillation."""


@dataclass(frozen=True, eq=False)
class Part:
    """Recordings of one stage."""

    name: str
    X: Array
    y: NDArray[np.int64]
    subjects: NDArray[np.str_]

    def take(self, index: NDArray[np.bool_]) -> "Part":
        """Return some of them."""
        return Part(self.name, self.X[index], self.y[index], self.subjects[index])


def tables(data: Path | None, folder: Path, workers: int, wanted: set[str]) -> dict[str, FeatureTable]:
    """Measure what is wanted and not measured yet, and read all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, sites) in enumerate(COHORTS.items(), start=11):
        if name in wanted and not (folder / f"{name}.parquet").exists():
            cohort = simulate(PEOPLE, folder / name, seed=seed, sites=sites, speech_s=SPEECH_S, workers=max(workers, 1))
            write_table(build_table(read_manifest(cohort.manifest), sets=SETS, workers=workers), folder / f"{name}.parquet")
    for name, place in CORPORA.items():
        if name in wanted and not (folder / f"{name}.parquet").exists():
            if data is None:
                raise SystemExit(f"No table of {name} yet: --data is needed.")
            frame = get_corpus(name).read(data / place)
            frame["row"] = np.arange(1, len(frame) + 1)
            write_table(build_table(Manifest(frame), sets=SETS, workers=workers), folder / f"{name}.parquet")
    return {name: read_table(folder / f"{name}.parquet") for name in (*COHORTS, *CORPORA) if name in wanted}


def sequences(found: Mapping[str, FeatureTable], of: str) -> dict[str, list[Part]]:
    """Return every sequence's stages, in the order in which they are learned."""
    made = {}
    for name, (cohort, column) in ORDERED_BY.items():
        if cohort in found:
            frame = found[cohort].frame
            values = sorted(frame[column].unique())
            made[name] = [part(found[cohort], of, str(value), frame[column] == value, {"depressed"}, {"not_depressed"}) for value in values]
    for first, then in (("ravdess", "emodb"), ("emodb", "ravdess")):
        if {first, then} <= set(found):
            stages = [part(found[one], of, CALLED[one], found[one].frame["label"].notna(), AROUSED, CALM) for one in (first, then)]
            made[f"{CALLED[first]}, then {CALLED[then]}"] = stages
    return made


def part(table: FeatureTable, of: str, name: str, here: "pd.Series[bool]", positive: set[str], negative: set[str]) -> Part:
    """Take the recordings of a stage that are of one class or the other."""
    names = [one for one in table.feature_names if (one.startswith(EMBEDDED) if of == "ge2e" else of_sets(one, DEFAULT_SETS))]
    frame = table.frame[here & table.frame["label"].isin(positive | negative)]
    return Part(name, frame[names].to_numpy(np.float64), frame["label"].isin(positive).to_numpy(np.int64), frame["subject"].to_numpy(str))


def of_sets(name: str, sets: Sequence[str]) -> bool:
    """Tell whether a feature is one of some sets."""
    return not name.startswith("embedding.") and catalogue.get(name).set in sets


def folds_of(part: Part, repeat: int) -> NDArray[np.int64]:
    """Return the fold in which each recording's person is left out: in turn, classes alike, in another order in every repeat."""
    positive = {name: bool(part.y[part.subjects == name].mean() > 0.5) for name in np.unique(part.subjects)}
    order = sorted(positive, key=lambda name: (positive[name], hashlib.sha256(f"{repeat}:{name}".encode()).digest()))
    place = {name: i % FOLDS for i, name in enumerate(order)}
    return np.array([place[name] for name in part.subjects], dtype=np.int64)


Model = Callable[[Array], Array]
"""Features, shape (rows, features), to log-odds, shape (rows,)."""


def scales_of(parts: Sequence[Part]) -> tuple[Array, Array]:
    """Return means and SDs of some stages' people, as `federated.protocols.standardisation` finds them; 0 for a feature that does not vary."""
    X = np.concatenate([one.X for one in parts])
    known = ~np.isnan(X)
    mean = np.where(known, X, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    spread = np.sqrt((np.where(known, X - mean, 0.0) ** 2).mean(axis=0))
    return mean, np.where(spread > CONSTANT_RELATIVE_SD * np.abs(mean), spread, 0.0)


def rows_of(part: Part, mean: Array, scale: Array) -> Rows:
    """Return a stage as the linear head hears it."""
    return Rows(standardised(part.X, mean, scale), part.y, np.ones(len(part.y)))


def joined(parts: Sequence[Part]) -> Part:
    """Return stages as one."""
    names = ("X", "y", "subjects")
    return Part("all", *(np.concatenate([getattr(one, name) for one in parts]) for name in names))


def linear_models(parts: Sequence[Part]) -> dict[str, list[Model]]:
    """Return, by method, the linear head after the update on each stage."""
    mean, scale = scales_of(parts[:1])
    rows = [rows_of(one, mean, scale) for one in parts]
    families = ["all"] * parts[0].X.shape[1]
    strength = LinearHead(families).fit(rows[0].Z, parts[0].y, groups=parts[0].subjects).strength_
    nothing = Posterior.nothing(np.append(np.full(rows[0].Z.shape[1], strength), 0.0))
    start, first = minimise(Loss(rows[0], 2), nothing, np.zeros(nothing.size))
    found: dict[str, list[Array]] = {SAME_SCALES: [start], "newest stage alone": [start], "EWC": [start], "LwF": [start]}
    found |= {f"Bayesian, forgetting {factor:g}": [start] for factor in FORGETTING}
    diagonal = replace(first, precision=np.diag(np.diag(first.precision))).after(start, np.zeros((nothing.size, nothing.size)))
    posterior = dict.fromkeys(FORGETTING, first)
    for i, one in enumerate(rows[1:], start=1):
        loss = Loss(one, 2)
        found[SAME_SCALES].append(minimise(Loss(rows_of(joined(parts[: i + 1]), mean, scale), 2), nothing, start)[0])
        found["newest stage alone"].append(minimise(loss, nothing, start)[0])
        at, _ = minimise(loss, diagonal)
        found["EWC"].append(at)
        diagonal = diagonal.after(at, np.diag(np.diag(loss(at)[2])))
        said = expit(np.column_stack([one.Z, np.ones(len(one.Z))]) @ found["LwF"][-1])
        mixed = (1 - SHARE) * one.target + SHARE * said
        # Each recording stands there twice, once as each class, with what is believed of it for its weight.
        both = Rows(np.vstack([one.Z, one.Z]), np.repeat([0, 1], len(one.Z)), np.concatenate([1 - mixed, mixed]))
        taught = Loss(both, 2)
        found["LwF"].append(minimise(taught, nothing, found["LwF"][-1])[0])
        for factor in FORGETTING:
            at, posterior[factor] = minimise(loss, posterior[factor].discounted(factor))
            found[f"Bayesian, forgetting {factor:g}"].append(at)
    models = {name: [linear(beta, mean, scale) for beta in betas] for name, betas in found.items()}
    return {"retrained on everything": [retrained(parts[: i + 1], families) for i in range(len(parts))]} | models


def retrained(parts: Sequence[Part], families: list[str]) -> Model:
    """Train the linear head on all stages so far, as if there had been no updates."""
    (mean, scale), everybody = scales_of(parts), joined(parts)
    head = LinearHead(families).fit(standardised(everybody.X, mean, scale), everybody.y, groups=everybody.subjects)
    return linear(np.append(head.coef_, head.intercept_), mean, scale)


def linear(beta: Array, mean: Array, scale: Array) -> Model:
    """Return a linear head as a function."""
    return lambda X: np.asarray(standardised(X, mean, scale) @ beta[:-1] + beta[-1])


def at_a_site(part: Part) -> PooledSums:
    """Return a stage as the one site that is learned from; adapters are trained through the protocol that hospitals answer."""
    rows = SiteRows(
        X=part.X,
        target=part.y,
        subjects=part.subjects,
        fold=np.zeros(len(part.y), dtype=np.int64),
        frame=pd.DataFrame(index=range(len(part.y))),
        names=(),
    )
    return PooledSums({"site": rows})


def adapter_models(parts: Sequence[Part], holds: Sequence[float]) -> dict[str, list[Model]]:
    """Return, by method, the adapter after the update on each stage."""
    mean, scale = scales_of(parts[:1])
    sites = [at_a_site(one) for one in parts]
    champion = train_adapter(sites[0], mean, scale, ADAPTER)
    known = measure_importance(sites[0], champion, ADAPTER)
    updates = {"fine-tuned": ADAPTER, "LwF": ADAPTER.model_copy(update={"distillation": SHARE})}
    updates |= {("EWC" if hold == 1 else f"EWC, hold {hold:g}"): ADAPTER.model_copy(update={"ewc": hold}) for hold in holds}
    found: dict[str, list[Model]] = {"retrained on everything": [champion.margins]}
    for i in range(1, len(parts)):
        own = scales_of(parts[: i + 1])
        found["retrained on everything"].append(train_adapter(at_a_site(joined(parts[: i + 1])), *own, ADAPTER).margins)
    for name, settings in updates.items():
        now: tuple[AdapterWeights, Importance] = champion, known
        found[name] = [champion.margins]
        for site in sites[1:]:
            weights, importance = now
            again = train_adapter(site, mean, scale, settings, champion=weights, importance=importance)
            fresh = measure_importance(site, again, settings) if settings.ewc else importance
            now = again, importance.then(fresh, 1.0) if settings.ewc else importance
            found[name].append(again.margins)
    return found


def scores_of(parts: Sequence[Part], train: Callable[[Sequence[Part]], Mapping[str, list[Model]]], repeats: int) -> dict[str, list[list[Array]]]:
    """Return log-odds out of fold and the log-odds of the newest stage's prevalence, by method and stage, each of shape (updates, repeats x rows)."""
    found: dict[str, list[list[Array]]] = {}
    for repeat in range(repeats):
        folds = [folds_of(one, repeat) for one in parts]
        blank = [np.full((len(parts), len(one.y)), np.nan) for one in parts]
        these: dict[str, list[list[Array]]] = {}
        for fold in range(FOLDS):
            heard = [one.take(of != fold) for one, of in zip(parts, folds, strict=True)]
            for name, models in train(heard).items():
                said = these.setdefault(name, [[one.copy(), one.copy()] for one in blank])
                for i, model in enumerate(models):
                    for one, of, (margins, cuts) in zip(parts, folds, said, strict=True):
                        margins[i, of == fold] = model(one.X[of == fold])
                        cuts[i, of == fold] = logit(heard[i].y.mean())
        for name, said in these.items():
            before = found.setdefault(name, [[np.empty((len(parts), 0)), np.empty((len(parts), 0))] for _ in parts])
            found[name] = [[np.concatenate(pair, axis=1) for pair in zip(was, now, strict=True)] for was, now in zip(before, said, strict=True)]
    return found


def over_repeats(measure: Measure, repeats: int) -> Measure:
    """Return the mean of a figure over repeats, whose rows follow each other."""

    def mean(y: NDArray[np.int64], score: Array) -> OfWeights:
        each = [measure(a, b) for a, b in zip(y.reshape(repeats, -1), score.reshape(repeats, -1), strict=True)]

        def figure(weight: object) -> float:
            parts = np.asarray(weight, np.float64).reshape(repeats, -1) if weight is not None else [None] * repeats
            return float(np.mean([one(some) for one, some in zip(each, parts, strict=True)]))

        return figure

    return mean


def calibration_error(y: NDArray[np.int64], score: Array) -> OfWeights:
    """Smooth calibration error of stated probabilities."""
    return Reliability(y, score).smooth_ece


@dataclass(frozen=True, eq=False)
class Found:
    """What came of one method on one sequence."""

    sequence: str
    inputs: str
    model: str
    method: str
    auc: Forgetting
    uar: Forgetting
    ece: Array

    def row(self, base: "Found") -> dict[str, object]:
        """One row of the table."""
        last, difference = self.auc.matrix[-1], self.auc.less(base.auc, "average")
        bounds = "" if self is base or difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
        return {
            "inputs": INPUTS[self.inputs],
            "model": self.model,
            "method": self.method,
            "AUROC at the end, stages in turn": ", ".join(f"{value:.3f}" for value in last),
            "mean": f"{last.mean():.3f}",
            "less that of retraining": "0" if self is base else f"{difference.value:+.3f}{bounds}",
            "forgetting": str(self.auc.summary("forgetting")),
            "backward transfer": f"{self.auc.summary('backward_transfer').value:+.3f}",
            "forward transfer": f"{self.auc.summary('forward_transfer').value:+.3f}",
            "UAR at the end": ", ".join(f"{value:.3f}" for value in self.uar.matrix[-1]),
            "calibration error at the end": ", ".join(f"{value:.3f}" for value in self.ece[-1]),
        }

    def every(self) -> list[dict[str, object]]:
        """Every cell of the matrices, for the file."""
        stages = range(len(self.auc.names))
        of = {"sequence": self.sequence, "inputs": self.inputs, "model": self.model, "method": self.method}
        return [
            of
            | {"after": self.auc.names[i], "on": self.auc.names[j], "AUROC": str(self.auc.cell(i, j)), "UAR": str(self.uar.cell(i, j))}
            | {"calibration error": f"{self.ece[i, j]:.3f}"}
            for i, j in itertools.product(stages, stages)
        ]


def measured(sequence: str, inputs: str, parts: Sequence[Part], holds: Sequence[float], repeats: int, replicates: int) -> list[Found]:
    """Learn one sequence by every method."""
    found = []
    for model, train in (("linear head", linear_models), ("adapter", lambda heard: adapter_models(heard, holds))):
        for method, scores in scores_of(parts, train, repeats).items():
            given = [(one.name, np.tile(one.y, repeats), np.tile(one.subjects, repeats)) for one in parts]
            plain = [Stage(*one, margins) for one, (margins, _) in zip(given, scores, strict=True)]
            cut = [Stage(*one, margins - cuts) for one, (margins, cuts) in zip(given, scores, strict=True)]
            error = over_repeats(calibration_error, repeats)
            ece = np.array([[error(one.y, one.scores[i])(None) for one in plain] for i in range(len(parts))])
            auc, uar = (
                measure_forgetting(stages, measure=over_repeats(measure, repeats), replicates=replicates)
                for measure, stages in ((auroc, plain), (recall_at_zero, cut))
            )
            found.append(Found(sequence, inputs, model, method, auc, uar, ece))
    return found


LOOKS = {
    "retrained on everything": Look("retrained on everything", INK, 2.5),
    "newest stage alone": Look("newest stage alone", QUIET, 1.5, DOTTED),
    "fine-tuned": Look("fine-tuned", QUIET, 1.5, DOTTED),
    "EWC": Look("EWC", INK, 1.25, DASHED, mark="triangle"),
    "EWC, hold 100": Look("EWC, hold 100", ACCENT, 1.5, DASH_DOT, mark="circle"),
    "LwF": Look("LwF", QUIET, 1.25, DASHED, mark="square"),
    "Bayesian, forgetting 1": Look("Bayesian, forgetting 1", ACCENT, 2, mark="circle"),
    "Bayesian, forgetting 0.5": Look("Bayesian, forgetting 0.5", ACCENT, 1.5, DASHED, mark="diamond"),
}


def titled(sequence: str) -> str:
    """Return a sequence's name as a heading."""
    return sequence[:1].upper() + sequence[1:]


def picture(found: Sequence[Found], name: str, title: str) -> str:
    """Draw AUROC on the first stage's people after every update, one panel a sequence."""
    panels = {
        sequence: [one for one in found if one.sequence == sequence and one.method in LOOKS] for sequence in {one.sequence: None for one in found}
    }
    width, height, top = 380, 300, 64
    page = Drawing(2 * width, top + height * ((len(panels) + 1) // 2))
    page.box(0, 0, page.width, page.height, fill=PAPER)
    looks = [LOOKS[one.method] for one in next(iter(panels.values()))]
    key = Plot((0, 1), (0, 1), width=2 * width, height=top, left=64, bottom=0, top=0)
    key.key(looks)
    page.place(key, 0, 0)
    words = []
    for number, (sequence, each) in enumerate(panels.items()):
        stages = each[0].auc.names
        values = [one.auc.matrix[:, 0] for one in each]
        low, high = min(map(np.min, values)) - 0.02, min(max(map(np.max, values)) + 0.02, 1.0)
        plot = Plot((0.9, len(stages) + 0.1), (low, high), width=width, height=height, top=40)
        plot.axes(f"Updates: {', '.join(stages)}", f"AUROC on {stages[0]}", range(1, len(stages) + 1), ticks(low, high, 4))
        plot.text(plot.x.start, 20, titled(sequence), bold=True)
        for one, value in zip(each, values, strict=True):
            look, at = LOOKS[one.method], range(1, len(stages) + 1)
            plot.curve(at, value.tolist(), look)
            if look.mark:
                for x, y in zip(at, value, strict=True):
                    plot.point(x, y, look.mark, fill=look.stroke)
        page.place(plot, width * (number % 2), top + height * (number // 2))
        ends = "; ".join(f"{one.method}: {value[-1]:.2f}" for one, value in zip(each, values, strict=True))
        words.append(f"{titled(sequence)}: {values[0][0]:.2f} after the first stage; at the end {ends}.")
    return page.svg(name, title, " ".join(words), HTML_FONT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="Tables to use, separated by commas: sites, microphones, ravdess, emodb; all otherwise.")
    parser.add_argument("--inputs", default=",".join(INPUTS), help="Separated by commas.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--holds", default="1,10,100", help="Strengths of EWC, separated by commas.")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--pictures", type=Path, default=None)
    given = parser.parse_args()
    started, holds = time.monotonic(), [float(one) for one in given.holds.split(",")]
    found: list[Found] = []
    shown: dict[str, list[dict[str, object]]] = {}
    wanted = set(given.only.split(",")) if given.only else {*COHORTS, *CORPORA}
    measured_tables = tables(given.data, given.tables, given.workers, wanted)
    # Small networks: threads of BLAS and torch would wait for each other longer than they work.
    with threadpool_limits(limits=1):
        for inputs in given.inputs.split(","):
            for sequence, parts in sequences(measured_tables, inputs).items():
                these = measured(sequence, inputs, parts, holds, given.repeats, given.replicates)
                base = {one.model: one for one in these if one.method == "retrained on everything"}
                rows = [one.row(base[one.model]) for one in these]
                print(f"\n{sequence}, {INPUTS[inputs]}, {time.monotonic() - started:.0f} s\n\n{markdown(rows)}", flush=True)
                shown.setdefault(sequence, []).extend(rows)
                found += these
    if given.json:
        publish_cells(shown, found, given.json)
    if given.pictures:
        for model in ("linear head", "adapter"):
            # On the same inputs, so that the two can be compared; those of the embedding are in the table.
            name, title = f"forgetting-{model.split()[0]}", f"What is left of the first stage: {model} on {INPUTS['features']}"
            some = [one for one in found if (one.model, one.inputs) == (model, "features")]
            (given.pictures / f"{name}.svg").write_text(picture(some, name, title) + "\n", encoding="utf-8")


def publish_cells(shown: Mapping[str, list[dict[str, object]]], found: Sequence[Found], path: Path) -> None:
    """Write the tables and every cell behind them."""
    path.write_text(json.dumps(dict(shown) | {"cells": [cell for one in found for cell in one.every()]}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
