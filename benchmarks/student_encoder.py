"""An encoder of our own against the GE2E default: a small student of GE2E, ComParE and eGeMAPS, trained on speech whose weights may be shipped.

    python -m benchmarks.student_encoder --emodb PATH/TO/emodb-2s --ravdess PATH/TO/ravdess [--speakers 60] [--epochs N] [--table FILE.parquet]

The student hears EmoDB (CC0) and simulated speakers, as they are and changed (speed, level, noise), and learns what its teachers say of the very
same samples; masks and a slight warp of frequency come on top, each epoch anew, with the same target. Epochs, width, and whether EmoDB's emotions
are a fourth target, are chosen by EmoDB speakers that a student has not heard: it is trained without half of them, and a linear model of its frozen
vectors tells the emotions of each of these from the others'; then without the other half. RAVDESS, whose licence (CC BY-NC-SA) is not one to ship
weights under, is in no training and no choice: what was chosen embeds it once, and is measured as in `benchmarks.embeddings`, by the product's own
training on EmoBox's folds, UAR with its interval over speakers. "untrained" is the same network with random weights, its normalisation learned.
`--table` is what `benchmarks.embeddings --corpus ravdess --table` wrote; `--keep` keeps what is long in the making: simulated speech, the teachers'
answers, the student. Twenty minutes of CPU, half of them training.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.embeddings import INTERPRETABLE, Answers, described, of_model
from benchmarks.emotion import only
from benchmarks.tables import publish
from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.simulation import simulate
from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.embeddings import EncoderSpec, Padding, Pooling
from clinical_ser.embeddings.onnx import write_encoder
from clinical_ser.evaluation.discrimination import Confusion, unweighted_average_recall_of
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.features.extraction import ENCODER
from clinical_ser.neural.augmentation import Augmentation, Augmenter
from clinical_ser.neural.exporting import graph_of
from clinical_ser.neural.networks import FLOOR, LogMelCnn, NetworkShape, pooled
from clinical_ser.neural.training import Wave, padded, prepared

CORPUS, CLASSES = "ravdess", get_corpus("emodb").classes
TEACHERS = ("embedding.ge2e", "compare", "egemaps")
COMPARE_DIMENSIONS = 100
FARTHEST = 5.0
"""Standard deviations beyond which a teacher's value is cut."""
CHANGED = 2
"""Changed copies of each EmoDB clip, beside the clip itself."""
PIECE_S, PIECES = 3.0, 10
"""Of each simulated recording."""
SPEED, GAIN_DB, SNR_DB = (0.85, 1.18), 6.0, (12.0, 40.0)
ON_THE_WAY = Augmentation(speed=0, warp=0.05, gain_db=0, time_masks=1, time_mask=0.1, frequency_masks=1, frequency_mask=0.08, mixup=0)
BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 4e-3, 0.02
SHAPES = {"narrow": NetworkShape(), "wide": NetworkShape(channels=(24, 48, 64, 96), width=128)}
LABEL_WEIGHT = 0.5
SEED = 0


def changed(samples: Wave, random: np.random.Generator) -> Wave:
    """Play a clip faster or slower, louder or softer, in white noise."""
    speed = random.uniform(*SPEED)
    found = soxr.resample(samples, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ / speed, quality="HQ")
    noise = np.sqrt(np.square(found).mean() * 10 ** (-random.uniform(*SNR_DB) / 10))
    found = (found + random.normal(0, noise, len(found))) * 10 ** (random.uniform(-GAIN_DB, GAIN_DB) / 20)
    return np.clip(found, -1, 1).astype(np.float32)


def written(emodb: Path, speakers: int, folder: Path, clips: Path) -> pd.DataFrame:
    """Write every clip that the student is to hear; one row each, `label` empty where there is none."""
    random = np.random.default_rng(SEED)
    rows: list[dict[str, object]] = []

    def add(samples: Wave, subject: str, label: str, origin: str) -> None:
        path = clips / f"{len(rows):05d}.wav"
        soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        rows.append({"row": len(rows) + 1, "path": str(path), "subject": subject, "label": label, "origin": origin})

    corpus = get_corpus("emodb").read(emodb)
    for path, subject, label in zip(corpus["path"], corpus["subject"], corpus["label"], strict=True):
        samples = audio.load(path).samples
        add(samples, subject, label, "clean")
        for _ in range(CHANGED):
            add(changed(samples, random), subject, label, "changed")
    cohort = simulate(speakers, folder / "simulated", seed=SEED)
    people = pd.read_csv(cohort.manifest, dtype=str)
    for path, subject in zip(people["path"], people["subject"], strict=True):
        samples = audio.load(cohort.folder / path).samples
        size = round(PIECE_S * SAMPLE_RATE_HZ)
        for number, piece in enumerate(np.split(samples, range(size, len(samples), size))[:-1][:PIECES]):
            add(changed(piece, random) if number % 2 else piece, subject, "", "simulated")
    return pd.DataFrame(rows)


def taught(emodb: Path, speakers: int, folder: Path, workers: int) -> tuple[FeatureTable, list[Wave]]:
    """Return what the teachers say, and the clips in the table's order."""
    answers, clips = folder / f"teachers-{speakers}.parquet", folder / f"clips-{speakers}"
    if not answers.exists():
        clips.mkdir(exist_ok=True)
        frame = written(emodb, speakers, folder, clips)
        write_table(build_table(Manifest(frame), sets=("egemaps", "compare", f"{ENCODER}ge2e"), workers=workers), answers)
    table = read_table(answers)
    heard = only(table, {"embedding.ge2e"}).features
    table = replace(table, frame=table.frame.loc[np.isfinite(heard).all(axis=1)].reset_index(drop=True))  # a piece may be all pause
    return table, [audio.load(clips / f"{row - 1:05d}.wav").samples for row in table.frame["row"]]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the student is to say of every clip: the teachers' dimensions one after the other, and the emotion, -1 where none is known."""

    values: NDArray[np.float32]
    parts: dict[str, slice]
    emotion: NDArray[np.int64]

    @classmethod
    def of(cls, table: FeatureTable, rows: NDArray[np.intp]) -> "Lesson":
        """Standardise, and find ComParE's components, by these rows alone."""
        columns: list[NDArray[np.float64]] = []
        parts: dict[str, slice] = {}
        for name in TEACHERS:
            values = _standardised(only(table, {name}).features, rows)
            if name == "compare":
                found = PCA(COMPARE_DIMENSIONS, svd_solver="randomized", random_state=SEED).fit(values[rows])
                values = _standardised(found.transform(values), rows)
            begin = sum(part.shape[1] for part in columns)
            parts[name] = slice(begin, begin + values.shape[1])
            columns.append(values)
        emotion = [CLASSES.index(label) if label else -1 for label in table.frame["label"]]
        return cls(np.hstack(columns).astype(np.float32), parts, np.array(emotion))

    @property
    def outputs(self) -> tuple[str, ...]:
        """A name for each output of the student."""
        return (*(f"{name}.{i}" for name, part in self.parts.items() for i in range(part.stop - part.start)), *CLASSES)

    def loss(self, outputs: Tensor, rows: NDArray[np.intp], label_weight: float) -> Tensor:
        """Mean squared error, every teacher counting alike however many dimensions it has, and the emotions' cross-entropy."""
        away = (outputs[:, : self.values.shape[1]] - torch.from_numpy(self.values[rows])).square()
        loss = torch.stack([away[:, part].mean() for part in self.parts.values()]).mean()
        emotion = torch.from_numpy(self.emotion[rows])
        if label_weight and (emotion >= 0).any():
            loss = loss + label_weight * nn.functional.cross_entropy(
                outputs[:, self.values.shape[1] :], emotion, ignore_index=-1, label_smoothing=0.08
            )
        return loss

    def explained(self, outputs: NDArray[np.float32], rows: NDArray[np.intp]) -> dict[str, float]:
        """Return for each teacher the share of its variance over these rows that the student tells."""
        told = {}
        for name, part in self.parts.items():
            wanted = self.values[rows, part]
            told[name] = 1 - np.square(outputs[:, part] - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
        return told


def _standardised(values: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    spread = np.nanstd(values[rows], axis=0)
    found = (values - np.nanmean(values[rows], axis=0)) / np.where(spread > 1e-12, spread, np.inf)
    return np.clip(np.nan_to_num(found), -FARTHEST, FARTHEST)


@dataclass(frozen=True)
class Choice:
    """One way to train a student."""

    size: str
    emotions: bool
    epochs: int

    def __str__(self) -> str:
        return f"{self.size}, {'with' if self.emotions else 'without'} emotions, {self.epochs} epochs"


def student(clips: list[Wave], lesson: Lesson, rows: NDArray[np.intp], choice: Choice, precision: str) -> LogMelCnn:
    """Train on some rows; no epoch (of an untrained one) only learns what it normalises by."""
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    network = LogMelCnn(lesson.outputs, SHAPES[choice.size]).train()
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    with torch.no_grad():
        every = torch.cat([torch.log(network.power(torch.from_numpy(clips[row])[None])[0][0] @ network.filters + FLOOR) for row in rows])
        network.normalise(every.mean(dim=0), every.std(dim=0))
    steps = -(-len(rows) // BATCH)
    augment = Augmenter(network.shape, ON_THE_WAY, random)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps * max(choice.epochs, 1) + 1, pct_start=0.3)
    for _ in range(max(choice.epochs, 1)):
        for batch in np.array_split(random.permutation(rows), steps):
            power, lengths = network.power(*padded([clips[row] for row in batch]))
            assert lengths is not None
            heard, lengths, _ = augment(network, power, lengths, torch.zeros(len(batch), 1))
            with torch.set_grad_enabled(choice.epochs > 0), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = network.classify(heard, lengths).float()
            if choice.epochs:
                optimiser.zero_grad()
                torch.autograd.backward(lesson.loss(outputs, batch, LABEL_WEIGHT * choice.emotions))
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
    return network.train(mode=False)


def embedded(network: LogMelCnn, clips: list[Wave], rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the pooled vectors of some clips, and what the student says of them."""
    vectors = []
    with torch.inference_mode():
        for batch in np.array_split(rows, -(-len(rows) // BATCH)):
            power, lengths = network.power(*padded([clips[row] for row in batch]))
            vectors.append(pooled(*network.encode(network.log_mel(power), lengths)))
        found = torch.cat(vectors)
        return found.numpy(), network.classifier(found).numpy()


def chosen(table: FeatureTable, clips: list[Wave], epochs: int, precision: str) -> tuple[Choice, list[dict[str, object]]]:
    """Try a few students on EmoDB speakers that they have not heard."""
    origin, subject = table.frame["origin"].to_numpy(str), table.subjects
    people = sorted(set(subject[origin == "clean"]))
    halves = [set(people[::2]), set(people[1::2])]
    lessons = []
    for half in halves:
        rows = np.flatnonzero(~np.isin(subject, list(half)))
        lessons.append((rows, np.flatnonzero(np.isin(subject, list(half)) & (origin == "clean")), Lesson.of(table, rows)))
    found: list[dict[str, object]] = []
    scores: dict[Choice, float] = {}

    def tried(choice: Choice) -> float:
        started, told, right = time.process_time(), [], []
        for rows, unheard, lesson in lessons:
            network = student(clips, lesson, rows, choice, precision)
            vectors, outputs = embedded(network, clips, unheard)
            told.append(lesson.explained(outputs, unheard))
            right.append(probed(vectors, table, unheard))
        mean = {name: f"{100 * np.mean([one[name] for one in told]):.0f} %" if choice.epochs else "" for name in TEACHERS}
        score = float(np.mean(right))
        row = {"student": str(choice) if choice.epochs else f"{choice.size}, untrained"} | {f"{name}, explained": mean[name] for name in TEACHERS}
        found.append(row | {"UAR, unheard speakers": f"{100 * score:.1f}", "CPU s": round(time.process_time() - started)})
        print(found[-1], flush=True)
        return score

    best = Choice("narrow", emotions=False, epochs=epochs)
    scores[best] = tried(best)
    for change in ({"emotions": True}, {"epochs": 2 * epochs}, {"size": "wide"}):  # one after the other, each kept if it helps
        other = replace(best, **change)
        scores[other] = tried(other)
        best = max(best, other, key=lambda one: scores[one])
    tried(Choice(best.size, emotions=False, epochs=0))
    for name in TEACHERS:
        score = float(np.mean([probed(_standardised(only(table, {name}).features, rows), table, unheard, unheard) for rows, unheard, _ in lessons]))
        found.append({**dict.fromkeys(found[0], ""), "student": f"(its teacher) {name}", "UAR, unheard speakers": f"{100 * score:.1f}"})
    return best, found


def probed(vectors: NDArray[np.floating], table: FeatureTable, rows: NDArray[np.intp], of: NDArray[np.intp] | None = None) -> float:
    """Return how well a linear model of other speakers' vectors tells a speaker's emotions, all of them unheard by the student."""
    labels, subjects = table.frame["label"].to_numpy(str)[rows], table.subjects[rows]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced"))
    told = cross_val_predict(model, vectors if of is None else vectors[of], labels, groups=subjects, cv=LeaveOneGroupOut())
    return float(pd.Series(told == labels).groupby(labels).mean().mean())


def published(network: LogMelCnn, name: str, folder: Path) -> Path:
    """Write a network as an encoder is served."""
    shape = network.shape
    frames = 2**shape.time_pools
    spec = EncoderSpec(
        name=name,
        title=f"Log-mel CNN, {name}",
        frame_dim=shape.width,
        frame_step_s=shape.hop * frames / SAMPLE_RATE_HZ,
        first_frame_s=(shape.window + (frames - 1) * shape.hop) / 2 / SAMPLE_RATE_HZ,
        padding=Padding.EQUAL,
        pooling=Pooling.MEAN_SD,
        licence="none yet: a benchmark",
        source="benchmarks.student_encoder",
    )
    write_encoder(folder / name, spec, graph_of(network), replace=True)
    return folder / name


def with_vectors(table: FeatureTable, frame: pd.DataFrame, encoders: list[Path], workers: int) -> FeatureTable:
    """Add the vectors of encoders to a table of the same clips."""
    more = build_table(Manifest(frame), sets=tuple(f"{ENCODER}{path}" for path in encoders), workers=workers)
    if more.frame["recording"].tolist() != table.frame["recording"].tolist():
        raise SystemExit("The table is not of these clips.")
    names = (*table.feature_names, *more.feature_names)
    both = pd.concat([table.frame, more.frame[list(more.feature_names)]], axis=1)
    return replace(table, frame=both, feature_names=names, extractors=table.extractors | more.extractors)


def measured(table: FeatureTable) -> Iterator[tuple[str, Answers]]:
    """Yield what each row's model answers on RAVDESS."""
    for what, sets in {
        "interpretable": INTERPRETABLE,
        "GE2E": ("embedding.ge2e",),
        "student": ("embedding.student",),
        "untrained": ("embedding.untrained",),
        "interpretable + GE2E": (*INTERPRETABLE, "embedding.ge2e"),
        "interpretable + student": (*INTERPRETABLE, "embedding.student"),
        "interpretable + GE2E + student": (*INTERPRETABLE, "embedding.ge2e", "embedding.student"),
    }.items():
        yield what, of_model(only(table, sets), CORPUS)


def compared(what: str, against: str, models: dict[str, Answers], frame: pd.DataFrame) -> dict[str, object]:
    """One row: the difference in UAR between two models on the same clips."""
    classes = get_corpus(CORPUS).classes
    rows = models[what].rows
    assert np.array_equal(rows, models[against].rows)
    codes, subjects = pd.Categorical(frame["label"], categories=classes).codes[rows], frame["subject"].to_numpy()[rows]
    pair = [Confusion(codes, models[name].log_p.argmax(axis=1), len(classes)) for name in (what, against)]

    def less(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        ours, theirs = (unweighted_average_recall_of(one.matrix(weight)) for one in pair)
        return np.array([ours - theirs])

    drawn = bootstrap(less, subjects)
    low, high = drawn.interval(0, subjects=len(set(subjects)))
    return {"model": what, "less": against, "UAR, points": f"{100 * drawn.values[0]:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emodb", type=Path, required=True)
    parser.add_argument("--ravdess", type=Path, required=True)
    parser.add_argument("--speakers", type=int, default=60, help="simulated ones")
    parser.add_argument("--epochs", type=int, default=8, help="those tried first; twice as many are tried too")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--table", type=Path, default=None, help="features of RAVDESS that were measured before")
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        started = time.process_time()
        teachers, waves = taught(given.emodb, given.speakers, folder, given.workers)
        clips = [prepared(wave, NetworkShape()) for wave in waves]
        print(f"{len(clips)} clips, {sum(map(len, clips)) / SAMPLE_RATE_HZ / 60:.0f} min; teachers: {time.process_time() - started:.0f} s of CPU")
        started = time.process_time()
        best, tried = chosen(teachers, clips, given.epochs, given.precision)
        rows = np.arange(len(clips))
        lesson = Lesson.of(teachers, rows)
        trained = student(clips, lesson, rows, best, given.precision)
        print(f"chosen: {best}; choice and training: {(time.process_time() - started) / 60:.1f} min of CPU", flush=True)
        untrained = student(clips, lesson, rows, replace(best, epochs=0), given.precision)
        encoders = [published(network, name, folder) for name, network in (("student", trained), ("untrained", untrained))]
        frame = get_corpus(CORPUS).read(given.ravdess)
        frame["row"] = np.arange(1, len(frame) + 1)
        if given.table:
            table = read_table(given.table)
        else:
            table = build_table(Manifest(frame), sets=(*INTERPRETABLE, f"{ENCODER}ge2e"), workers=given.workers)
        table = with_vectors(only(table, {*INTERPRETABLE, "embedding.ge2e"}), frame, encoders, given.workers)
    found = {"Choice, on EmoDB speakers that the student has not heard": tried}
    models, measures = {}, []
    for what, answers in measured(table):
        models[what] = answers
        measures.append(described(what, "none", table.frame, CORPUS, answers))
        print(measures[-1], flush=True)
    found[f"{CORPUS}, {len(table.frame)} clips"] = measures
    pairs = (
        ("student", "GE2E"),
        ("student", "untrained"),
        ("interpretable + student", "interpretable"),
        ("interpretable + student", "interpretable + GE2E"),
        ("interpretable + GE2E + student", "interpretable + GE2E"),
    )
    found["Differences"] = [compared(*pair, models, table.frame) for pair in pairs]
    publish(found, given.json)


if __name__ == "__main__":
    main()
