"""What a corpus adapter is: published files in, manifest rows out.

An adapter knows one publisher's folders, names and label files and nothing else. Rows are `Clip`s; the frame, its order and its error
texts are made here, so that an adapter reads like the corpus's own documentation.
"""

import csv
import io
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd

from clinical_ser.errors import CorpusLayoutError

AUDIO_SUFFIXES = frozenset({".wav", ".flac"})
VIDEO_SUFFIXES = AUDIO_SUFFIXES | {".mp4"}

# The classes of the built-in depression task.
DEPRESSED, NOT_DEPRESSED = "depressed", "not_depressed"
PHQ_CUTOFF = 10.0  # Kroenke et al. 2009, J Affect Disord 114:163-173

_ORDER = ("path", "subject", "label", "score", "score_name", "sex", "age", "language", "task", "start", "end", "corpus", "split", "fold")


@dataclass(frozen=True)
class Clip:
    """One row: a recording, or `start_s` to `end_s` of one.

    `subject` is unique within the corpus; `further` becomes columns of its own.
    """

    path: Path
    subject: str
    label: str | None = None
    score: float | None = None
    sex: Literal["female", "male", "other"] | None = None
    age: float | None = None
    task: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    split: str | None = None
    fold: str | None = None
    further: Mapping[str, object] = field(default_factory=dict)


class Corpus(ABC):
    """An adapter for one corpus; subclass it, say what the corpus is, and yield its clips.

    Attributes
    ----------
    name
        What a user types: lower case, hyphens.
    licence
        As the publisher states it, or where to look. Adapters carry no data.
    task
        `emotion` or `depression`.
    classes
        The corpus's own words, in its own order.
    languages
        BCP 47; one entry is written to each row.
    official_split
        The publisher's split in a sentence, and where it shares subjects.
    layout
        What has to lie under the root, for the error that says it does not.
    subject_prefix
        Put before each subject, so that joined manifests keep people apart; corpora that share people share it.
    score_name
        The questionnaire behind `score`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    licence: ClassVar[str]
    url: ClassVar[str]
    task: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    languages: ClassVar[tuple[str, ...]]
    official_split: ClassVar[str]
    layout: ClassVar[str]
    subject_prefix: ClassVar[str | None] = None
    score_name: ClassVar[str | None] = None

    @abstractmethod
    def clips(self, root: Path, left_out: Counter[str]) -> Iterable[Clip]:
        """Yield the clips below `root`; count in `left_out`, by reason, the files that give none."""

    def read(self, root: Path) -> pd.DataFrame:
        """Read the corpus below `root` into manifest columns.

        Returns
        -------
        One row a clip, sorted by path and start; `subject` carries the corpus's prefix. `frame.attrs["left_out"]` counts what was left
        out, by reason.

        Raises
        ------
        CorpusLayoutError
            The folder is not laid out as the publisher does it; the message says what was expected and counts what was found.
        """
        if not root.is_dir():
            raise CorpusLayoutError(f"{self.title}: the root is not a folder. Expected {self.layout}")
        left_out: Counter[str] = Counter()
        clips = sorted(self.clips(root.resolve(), left_out), key=lambda clip: (clip.path, clip.start_s or 0.0))
        if not clips:
            raise self.layout_error(root, f"no clip could be read{''.join(f'; {count} {reason}' for reason, count in left_out.items())}")
        frame = pd.DataFrame([self._columns(clip) for clip in clips])
        ordered = [name for name in _ORDER if name in frame and frame[name].notna().any()]
        further = [name for name in frame.columns if name not in _ORDER]
        frame = frame[ordered + further]
        frame.attrs["left_out"] = dict(+left_out)
        return frame

    def _columns(self, clip: Clip) -> dict[str, object]:
        return {
            "path": str(clip.path),
            "subject": f"{self.subject_prefix or self.name}-{clip.subject}",
            "label": clip.label,
            "score": clip.score,
            "score_name": None if clip.score is None else self.score_name,
            "sex": clip.sex,
            "age": clip.age,
            "language": self.languages[0],
            "task": clip.task,
            "start": clip.start_s,
            "end": clip.end_s,
            "corpus": self.name,
            "split": clip.split,
            "fold": clip.fold,
            **clip.further,
        }

    def layout_error(self, root: Path, what: str) -> CorpusLayoutError:
        """Build the error for a wrong layout: what failed, what was expected, and counts (never names) of what is there."""
        found = Counter(_kind(path) for path in root.rglob("*") if not path.name.startswith("."))
        folders = sum(1 for path in root.iterdir() if path.is_dir())
        counts = f"{folders} folders in it, {found['audio']} audio, {found['video']} video and {found['table']} table files below"
        return CorpusLayoutError(f"{self.title}: {what}. Expected {self.layout} Found {counts}.")

    def media(self, root: Path, pattern: str, suffixes: frozenset[str] = AUDIO_SUFFIXES) -> Iterator[Path]:
        """Yield the media files that match, sorted; hidden files (macOS leaves `._` copies) are none of them.

        Raises
        ------
        CorpusLayoutError
            A clip is there twice, as `.wav` and as `.flac`: it would be counted twice.
        """
        files = sorted(path for path in root.glob(pattern) if path.suffix.lower() in suffixes and not path.name.startswith("."))
        if twice := len(files) - len({path.with_suffix("") for path in files}):
            raise CorpusLayoutError(f"{self.title}: {twice} clips are there in two formats; keep one.")
        yield from files

    def table(self, root: Path, *names: str) -> Path:
        """Find a label file by name in the root or one folder below it.

        Raises
        ------
        CorpusLayoutError
            None of the names is there.
        """
        found = self.optional_table(root, *names)
        if found is None:
            raise self.layout_error(root, f"no {' or '.join(names)}")
        return found

    @staticmethod
    def optional_table(root: Path, *names: str) -> Path | None:
        """Find a label file by name in the root or one folder below it; None if there is none."""
        candidates = (path for name in names for pattern in (name, f"*/{name}") for path in sorted(root.glob(pattern)))
        return next((path for path in candidates if path.is_file()), None)

    def records(self, path: Path, required: Iterable[str], delimiter: str = ",") -> list[dict[str, str]]:
        """Read a label file into one dict a line, names and values stripped.

        Raises
        ------
        CorpusLayoutError
            It is not UTF-8 text, or lacks a column.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise CorpusLayoutError(f"{self.title}: {path.name} is not UTF-8 text.") from None
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        if missing := sorted(set(required) - set(names)):
            raise CorpusLayoutError(f"{self.title}: {path.name} lacks the columns {missing}.")
        reader.fieldnames = names
        return [{name: (value or "").strip() for name, value in row.items() if isinstance(name, str)} for row in reader]


def number(text: str) -> float | None:
    """Return a table's number, None where it is empty or none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    return "video" if suffix in VIDEO_SUFFIXES else "table" if suffix in {".csv", ".xlsx", ".txt", ".tsv"} else "other"
