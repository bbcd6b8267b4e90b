"""RAVDESS, the speech part.

Layout and name code: Livingstone & Russo 2018, PLoS ONE 13(5): e0196391, and the Zenodo record; read against a copy of the corpus.
`emobox_folds.csv` (six speaker-disjoint test folds of the EmoBox benchmark) is used when it lies in the root.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.cohorts.corpora.base import Clip, Corpus

# modality 03 audio only, channel 01 speech or 02 song, emotion, intensity, statement, repetition, actor
_NAME = re.compile(r"03-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")
_SPEECH = "01"


class Ravdess(Corpus):
    """24 actors (12 women), 2 sentences, 8 emotions, 1,440 clips of speech; song clips are left out."""

    name = "ravdess"
    title = "RAVDESS (Ryerson Audio-Visual Database of Emotional Speech and Song), speech"
    citation = "Livingstone SR, Russo FA (2018). PLoS ONE 13(5): e0196391. doi:10.1371/journal.pone.0196391"
    licence = "CC BY-NC-SA 4.0"
    url = "https://zenodo.org/records/1188976"
    task = "emotion"
    classes = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    languages = ("en",)
    official_split = "none by the publisher; column fold from EmoBox's emobox_folds.csv (6 folds, speaker-disjoint) where it is in the root"
    layout = "Actor_01 to Actor_24, each with 03-01-EE-II-SS-RR-AA.wav (or .flac)."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the speech clips; odd actors are male, even ones female."""
        folds = self._folds(root)
        for path in self.media(root, "Actor_*/*"):
            code = _NAME.fullmatch(path.stem)
            if code is None or code[1] != _SPEECH:
                left_out["song clips" if code else "audio files outside the naming"] += 1
                continue
            _, emotion, intensity, statement, repetition, actor = code.groups()
            yield Clip(
                path,
                subject=actor,
                label=self.classes[int(emotion) - 1],
                sex="male" if int(actor) % 2 else "female",
                task="read speech",
                fold=folds.get(int(actor)),
                further={
                    "emotion_intensity": ("normal", "strong")[int(intensity) - 1],
                    "statement": ("kids are talking by the door", "dogs are sitting by the door")[int(statement) - 1],
                    "repetition": int(repetition),
                },
            )

    def _folds(self, root: Path) -> dict[int, str]:
        path = root / "emobox_folds.csv"
        if not path.is_file():
            return {}
        records = self.records(path, ("fold", "test_actors"))
        return {int(actor): record["fold"] for record in records for actor in record["test_actors"].split()}
