"""EATD: answers of Chinese volunteers to three questions, with the Self-Rating Depression Scale.

Layout: the publisher's README (speechandlanguageprocessing/ICASSP2022-Depression) and public readers of it; copies differ in how the
folders are named: t_1 and v_1 in the root, or train/1 and validation/1.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.cohorts.corpora.base import AUDIO_SUFFIXES, DEPRESSED, NOT_DEPRESSED, Clip, Corpus, number

SDS_CUTOFF = 53.0
"""Index score (raw times 1.25) at or above which the Chinese norm speaks of depressive symptoms; the publisher's own."""
_FOLDER = re.compile(r"([tv])_(\d+)")
_SPLITS = {"t": "train", "v": "validation"}


class Eatd(Corpus):
    """162 volunteers (30 depressed by SDS), three answers each, Mandarin.

    The raw recordings are used, not the published `_out` versions: those were denoised and stripped of silence, and so of the pauses.
    """

    name = "eatd"
    title = "EATD-Corpus (Emotional Audio-Textual Depression)"
    citation = "Shen Y, Yang H, Lin L (2022). ICASSP, 6247-6251. doi:10.1109/ICASSP43922.2022.9746569"
    licence = "see publisher (published for research, no licence stated)"
    url = "https://github.com/speechandlanguageprocessing/ICASSP2022-Depression"
    task = "depression"
    classes = (NOT_DEPRESSED, DEPRESSED)
    languages = ("zh",)
    official_split = "column split: train (83 people), validation (79), speaker-disjoint"
    layout = "folders t_1, v_1 (or train/1, validation/1), each with positive.wav, neutral.wav, negative.wav (or .flac) and new_label.txt."
    score_name = "SDS"

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the three answers of each volunteer who has a score."""
        for folder, part, code in self._folders(root):
            score = self._score(folder)
            if score is None:
                left_out["volunteers without a score"] += 1
                continue
            for question in ("positive", "neutral", "negative"):
                path = next((path for suffix in sorted(AUDIO_SUFFIXES) if (path := folder / f"{question}{suffix}").is_file()), None)
                if path is None:
                    left_out["answers without audio"] += 1
                    continue
                yield Clip(
                    path,
                    f"{part}{code}",
                    label=DEPRESSED if score >= SDS_CUTOFF else NOT_DEPRESSED,
                    score=score,
                    task="interview",
                    split=_SPLITS[part],
                    further={"question": question},
                )

    @staticmethod
    def _folders(root: Path) -> Iterator[tuple[Path, str, str]]:
        for folder in sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir()):
            if code := _FOLDER.fullmatch(folder.name):
                yield folder, code[1], code[2]
            elif folder.parent.name in _SPLITS.values() and folder.parent.parent == root:
                yield folder, folder.parent.name[0], folder.name

    @staticmethod
    def _score(folder: Path) -> float | None:
        path = folder / "new_label.txt"
        words = path.read_text(encoding="utf-8-sig", errors="replace").split() if path.is_file() else []
        return number(words[0]) if words else None
