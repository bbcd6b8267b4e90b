"""How late drift is noticed, and how often nothing is: simulated changes of microphone, prevalence, language and concept.

    python -m benchmarks.drift --data FOLDER [--speakers 260] [--repetitions 300] [--json OUT]

Tables of simulated speakers are made once (FOLDER/base.parquet; telephone.parquet: the same recordings through a telephone's band; laptop.parquet:
the same voices with one microphone everywhere). Every repetition draws a reference and a stream of people from them, with replacement, so that
"nothing has changed" is exactly true before the change. Nobody states names (devices, languages): a new one is told after five people anyway.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt
from scipy.special import expit

from benchmarks.tables import publish
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.manifest import read_manifest
from clinical_ser.cohorts.simulation import simulate
from clinical_ser.cohorts.simulation.model import DEFAULT_SITES, Microphone
from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.cells import SHIFTED, stability_index
from clinical_ser.monitoring.counts import Counts, Grid, Observation, observations_of
from clinical_ser.monitoring.detectors import BETS, Counted, Evidence, conformal_p, gains, limits_of
from clinical_ser.monitoring.outcomes import BETS as OUTCOME_BETS
from clinical_ser.monitoring.outcomes import TOLERANCE, outcome_gains
from clinical_ser.monitoring.watching import Channel, Reference, channels_of, weights_of
from clinical_ser.registry.names import find_model

Array = NDArray[np.float64]
MODEL = "depression-simulated"
SEED, SPEECH_S = 77, 20.0
REFERENCE, LARGER, CHANGE, LONGEST, MONTH = 200, 800, 100, 1000, 200
GRADUAL = 400
"""Recordings over which a gradual change becomes complete."""
BAND_HZ = (300.0, 3400.0)
Chooser = Callable[[np.random.Generator, int, int], NDArray[np.int64]]
"""From generator, repetitions and recordings since the change: which row of the pool comes next, shape (repetitions,)."""


def make_tables(folder: Path, speakers: int) -> None:
    """Simulate and extract what is not there; an hour of one processor for 260 speakers."""
    folder.mkdir(parents=True, exist_ok=True)
    base = simulate(speakers, folder / "base", seed=SEED, speech_s=SPEECH_S)
    _extract(base.manifest, folder / "base.parquet")
    if not (folder / "telephone.parquet").exists():
        frame = pd.read_csv(base.manifest)
        band = butter(4, BAND_HZ, "bandpass", fs=16_000, output="sos")
        for path in frame["path"]:
            samples, rate = soundfile.read(base.folder / path)
            (folder / "telephone" / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "telephone" / path, sosfilt(band, samples), rate, subtype="PCM_16")
        frame.to_csv(folder / "telephone" / "manifest.csv", index=False)
        _extract(folder / "telephone" / "manifest.csv", folder / "telephone.parquet")
    sites = [site.model_copy(update={"microphone": Microphone.LAPTOP}) for site in DEFAULT_SITES]
    other = simulate(speakers, folder / "laptop", seed=SEED, speech_s=SPEECH_S, sites=sites)
    _extract(other.manifest, folder / "laptop.parquet")


def _extract(manifest: Path, table: Path) -> None:
    if not table.exists():
        write_table(build_table(read_manifest(manifest), workers=1), table)


@dataclass(frozen=True, eq=False)
class Pool:
    """People to draw from, as cells: rows of `base`, then of `telephone`, then of `laptop`."""

    cells: Counted
    """Shape (rows, channels); -1 where a channel has nothing."""
    channels: tuple[Channel, ...]
    log_odds: Array
    ill: NDArray[np.bool_]
    language: NDArray[np.str_]
    people: int
    """Rows of each table."""

    @classmethod
    def of(cls, folder: Path) -> "Pool":
        """Read the tables and put every person into cells."""
        bundle = read_bundle(find_model(MODEL))
        model = TrainedModel.from_bundle(bundle)
        grid = Grid(model)
        tables = [read_table(folder / f"{name}.parquet") for name in ("base", "telephone", "laptop")]
        seen = [[one for _, one in observations_of(grid, table)] for table in tables]
        reference = Reference.of(bundle.manifest, Counts.of(bundle.digest, seen[0]))
        channels = channels_of(reference)
        cells = np.array([[_cell(one, channel) for channel in channels] for part in seen for one in part])
        frames = pd.concat([table.frame for table in tables], ignore_index=True)
        columns = [frames[name] for name in model.features]
        return cls(
            cells=cells,
            channels=channels,
            log_odds=model.log_odds(np.column_stack(columns)),
            ill=(frames["label"] == model.task.classes[1]).to_numpy(bool),
            language=frames["language"].to_numpy(str),
            people=_people(tables),
        )

    def rows(self, table: int, keep: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return the rows of a table, or those to keep."""
        rows = np.arange(table * self.people, (table + 1) * self.people)
        return rows if keep is None else rows[keep[rows]]


def _people(tables: list[FeatureTable]) -> int:
    sizes = {len(table.frame) for table in tables}
    if len(sizes) != 1:
        raise SystemExit(f"The tables have {sorted(sizes)} rows; make them again.")
    return sizes.pop()


def _cell(one: Observation, channel: Channel) -> int:
    if channel.family in {"input", "score"}:
        return one.cells.get(channel.name, -1)
    if channel.family == "gate":
        return int(channel.name.removeprefix("check.") in one.failed)
    if channel.family == "answer":
        return int(one.names["status"] == channel.name.removeprefix("status."))
    return -1


@dataclass(frozen=True)
class Found:
    """Repetitions of one scenario."""

    delay: Array
    """Recordings since the change; NaN where nothing was noticed."""
    early: float
    """Share with an alarm before the change."""
    family: dict[str, int]


def run(
    pool: Pool,
    reference: NDArray[np.int64],
    before: Chooser,
    after: Chooser,
    *,
    repetitions: int,
    run_length: float,
    seed: int,
    change: int,
    longest: int,
    people: int = REFERENCE,
) -> Found:
    """Let the detectors watch so many streams at once until each has raised an alarm."""
    rng = np.random.default_rng(seed)
    channels, widest = len(pool.channels), max(channel.width for channel in pool.channels)
    limits = limits_of(weights_of(pool.channels), run_length)
    bags = np.zeros((repetitions, channels, widest), np.int64)
    for _ in range(people):
        _add(bags, pool.cells[rng.choice(reference, repetitions)])
    evidence = Evidence.none(repetitions * channels, len(BETS))
    alive, when = np.arange(repetitions), np.full(repetitions, np.nan)
    families: dict[str, int] = {}
    for step in range(change + longest):
        rows = before(rng, len(alive), 0) if step < change else after(rng, len(alive), step - change)
        cells = pool.cells[rows]
        _add(bags, cells)
        which = np.flatnonzero(cells.ravel() >= 0)
        flat = bags.reshape(-1, widest)
        evidence.take(gains(conformal_p(flat[which], cells.ravel()[which], rng.random(len(which)))), which, step)
        over = (evidence.value.reshape(len(alive), channels) / limits) if step else np.zeros((len(alive), channels))
        crossed = (over >= 1).any(axis=1)
        if crossed.any():
            when[alive[crossed]] = step
            for k in over[crossed].argmax(axis=1):
                families[pool.channels[k].family] = families.get(pool.channels[k].family, 0) + int(step >= change)
            keep = np.repeat(~crossed, channels)
            alive, bags = alive[~crossed], bags[~crossed]
            evidence = Evidence(evidence.roberts[keep], evidence.cusum[keep], evidence.begun[keep])
        if not len(alive):
            break
    return Found(np.where(when >= change, when - change + 1, np.nan)[~(when < change)], float((when < change).mean()), families)


def _add(bags: Counted, cells: Counted) -> None:
    repetition, channel = np.nonzero(cells >= 0)
    bags[repetition, channel, cells[repetition, channel]] += 1


def always(rows: NDArray[np.int64]) -> Chooser:
    """People from these rows alike."""
    return lambda rng, n, _: rng.choice(rows, n)


def mixed(old: NDArray[np.int64], new: NDArray[np.int64], share: float, over: int = 0) -> Chooser:
    """People from new rows with a share that is there at once, or grows over so many recordings."""
    return lambda rng, n, step: np.where(rng.random(n) < share * min(1.0, (step + 1) / (over or 1)), rng.choice(new, n), rng.choice(old, n))


def monthly_index(
    pool: Pool, reference: NDArray[np.int64], before: Chooser, after: Chooser, *, repetitions: int, seed: int, only: str | None
) -> tuple[float, Array]:
    """Return what an index above 0.25 does once a month: share of months with an alarm before any change, and the delay after it (recordings)."""
    rng = np.random.default_rng(seed)
    looked = np.array([channel.family == "input" if only is None else channel.name == only for channel in pool.channels])
    widest = max(channel.width for channel in pool.channels)
    false, delays = [], np.full(repetitions, np.nan)
    for k in range(repetitions):
        base = _tenths(_total(pool.cells[rng.choice(reference, REFERENCE)][:, looked], widest), only)
        quiet = [before(rng, 1, 0)[0] for _ in range(MONTH)]
        false.append(bool((stability_index(base, _tenths(_total(pool.cells[quiet][:, looked], widest), only)) > SHIFTED).any()))
        for month in range(LONGEST // MONTH):
            rows = [after(rng, 1, month * MONTH + step)[0] for step in range(MONTH)]
            if (stability_index(base, _tenths(_total(pool.cells[rows][:, looked], widest), only)) > SHIFTED).any():
                delays[k] = (month + 1) * MONTH
                break
    return float(np.mean(false)), delays


def _total(cells: Counted, widest: int) -> Counted:
    bags = np.zeros((1, cells.shape[1], widest), np.int64)
    for row in cells:
        _add(bags, row[None])
    return np.asarray(bags[0])


def _tenths(counts: Counted, only: str | None) -> Counted:
    """Put the score's twenty cells two by two, for which limits of the index are stated; features have ten."""
    return counts if only is None else counts.reshape(len(counts), -1, 2).sum(axis=2)


def outcomes(pool: Pool, change: Callable[[Array], Array], *, repetitions: int, run_length: float, seed: int, quiet: int, longest: int) -> Found:
    """Watch calibration: outcomes follow the stated log-odds, and after `quiet` of them what `change` makes of those."""
    rng = np.random.default_rng(seed)
    limit = float(limits_of(np.array([0.5]), run_length)[0])
    stated = pool.log_odds[pool.rows(0)]
    when = np.full(repetitions, np.nan)
    for k in range(repetitions):
        evidence, total = Evidence.none(1, len(OUTCOME_BETS)), 0.0
        drawn = rng.choice(stated, quiet + longest)
        truth = np.concatenate([drawn[:quiet], change(drawn[quiet:])])
        ill = (rng.random(len(drawn)) < expit(truth)).astype(float)
        for step, (x, y) in enumerate(zip(drawn.tolist(), ill.tolist(), strict=True)):
            total += x
            evidence.take(outcome_gains(x, y, centre=total / (step + 1), tolerance=TOLERANCE)[None], np.zeros(1, np.int64), step)
            if evidence.value[0] >= limit:
                when[k] = step
                break
    return Found(np.where(when >= quiet, when - quiet + 1, np.nan)[~(when < quiet)], float((when < quiet).mean()), {})


def _delays(delay: Array, longest: int) -> dict[str, object]:
    known = delay[~np.isnan(delay)]
    censored = np.where(np.isnan(delay), np.inf, delay)
    if not len(delay):
        return {"noticed": "", "median delay": "", "5 % to 95 %": ""}
    low, middle, high = (np.quantile(censored, q, method="inverted_cdf") for q in (0.05, 0.5, 0.95))
    shown = [f"> {longest}" if np.isinf(value) else f"{value:.0f}" for value in (low, middle, high)]
    return {"noticed": f"{len(known) / len(delay):.0%}", "median delay": shown[1], "5 % to 95 %": f"{shown[0]} to {shown[2]}"}


def measure(pool: Pool, repetitions: int, run_length: float) -> dict[str, list[dict[str, object]]]:
    """Return every table."""
    base, telephone, laptop = (pool.rows(k) for k in range(3))
    ill, well, mandarin, others = (
        pool.rows(0, pool.ill),
        pool.rows(0, ~pool.ill),
        pool.rows(0, pool.language == "zh"),
        pool.rows(0, pool.language != "zh"),
    )
    prevalence = len(ill) / len(base)

    more_ill = (0.6 - prevalence) / (1 - prevalence)

    larger = f"prevalence {prevalence:.0%} to 60 %, at once, reference {LARGER}"
    scenarios: dict[str, tuple[NDArray[np.int64], Chooser, Chooser]] = {
        "telephone, at once": (base, always(base), always(telephone)),
        f"telephone, over {GRADUAL} recordings": (base, always(base), mixed(base, telephone, 1.0, GRADUAL)),
        "telephone, for one recording in five": (base, always(base), mixed(base, telephone, 0.2)),
        "laptop for headset and tablet": (base, always(base), always(laptop)),
        f"prevalence {prevalence:.0%} to 60 %, at once": (base, always(base), mixed(base, ill, more_ill)),
        larger: (base, always(base), mixed(base, ill, more_ill)),
        f"prevalence {prevalence:.0%} to 60 %, over {GRADUAL} recordings": (
            base,
            always(base),
            mixed(base, ill, more_ill, GRADUAL),
        ),
        f"prevalence {prevalence:.0%} to 20 %, at once": (base, always(base), mixed(base, well, 1 - 0.2 / prevalence)),
        "Mandarin for one recording in two": (others, always(others), mixed(others, mandarin, 0.5)),
    }
    detected, monthly = [], []
    for place, (name, (reference, before, after)) in enumerate(scenarios.items()):
        people = LARGER if name == larger else REFERENCE
        found = run(
            pool, reference, before, after, repetitions=repetitions, run_length=run_length, seed=place, change=CHANGE, longest=LONGEST, people=people
        )
        first = ", ".join(f"{family} {n}" for family, n in sorted(found.family.items(), key=lambda one: -one[1]) if n)
        detected.append({"change": name} | _delays(found.delay, LONGEST) | {"false alarm before": f"{found.early:.1%}", "first noticed in": first})
        print(detected[-1], flush=True)
        for only, label in ((None, "any feature"), ("score", "score")) if name != larger else ():
            false, delay = monthly_index(pool, reference, before, after, repetitions=max(20, repetitions // 5), seed=place, only=only)
            monthly.append({"change": name, "PSI above 0.25 of": label, "false alarm a month": f"{false:.0%}"} | _delays(delay, LONGEST))
    quiet = []
    for length in (1000.0, run_length):
        found = run(pool, base, always(base), always(base), repetitions=repetitions, run_length=length, seed=99, change=0, longest=LONGEST)
        share = float(np.mean(~np.isnan(found.delay)))
        quiet.append(
            {
                "stated run length": f"{length:,.0f}",
                "recordings": LONGEST,
                "false alarm, at most": f"{LONGEST / (2 * length):.0%}",
                "false alarm, found": f"{share:.1%} ({repetitions} streams)",
            }
        )
        print(quiet[-1], flush=True)
    changes: dict[str, Callable[[Array], Array]] = {
        "none": lambda x: x,
        "log-odds + 0.2, tolerated": lambda x: x + TOLERANCE,
        "log-odds + 0.5": lambda x: x + 0.5,
        "log-odds + 1": lambda x: x + 1.0,
        "log-odds - 1": lambda x: x - 1.0,
        "slope 0.5": lambda x: float(pool.log_odds[base].mean()) + 0.5 * (x - float(pool.log_odds[base].mean())),
        "label unrelated to the voice": lambda x: np.full_like(x, float(pool.log_odds[base].mean())),
    }
    concept = []
    for place, (name, change) in enumerate(changes.items()):
        found = outcomes(pool, change, repetitions=repetitions, run_length=run_length, seed=place, quiet=CHANGE, longest=2 * LONGEST)
        concept.append({"change": name} | _delays(found.delay, 2 * LONGEST) | {"false alarm before": f"{found.early:.1%}"})
        print(concept[-1], flush=True)
    return {
        "Nothing changes": quiet,
        f"Delay in recordings (reference {REFERENCE} people, {CHANGE} before the change, {run_length:,.0f} to a false alarm)": detected,
        f"The same by a monthly index ({MONTH} recordings a month)": monthly,
        "Concept: delay in outcomes, after they have come back": concept,
    }


def main() -> None:
    """Make what is not there, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Folder for the simulated tables; made when it is not there.")
    parser.add_argument("--speakers", type=int, default=260)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--run-length", type=float, default=10_000.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    make_tables(options.data, options.speakers)
    publish(measure(Pool.of(options.data), options.repetitions, options.run_length), options.json)


if __name__ == "__main__":
    main()
