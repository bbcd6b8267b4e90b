"""EmoDB, the Berlin Database of Emotional Speech.

Name code, speakers and ages: Burkhardt et al. 2005, Interspeech, and the corpus's own page; read against a copy of the corpus.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clinical_ser.cohorts.corpora.base import Clip, Corpus

_NAME = re.compile(r"(03|08|09|1[0-6])([ab]\d\d)([WLEAFTN])([a-z])")
# The letters stand for the German words: Wut, Langeweile, Ekel, Angst, Freude, Trauer, neutral.
_EMOTIONS = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral"}
_SPEAKERS: dict[str, tuple[Literal["female", "male"], int]] = {
    "03": ("male", 31),
    "08": ("female", 34),
    "09": ("female", 21),
    "10": ("male", 32),
    "11": ("male", 26),
    "12": ("male", 30),
    "13": ("female", 32),
    "14": ("female", 35),
    "15": ("male", 25),
    "16": ("female", 31),
}


class EmoDB(Corpus):
    """10 speakers (5 women), 10 sentences, 7 emotions, 535 clips."""

    name = "emodb"
    title = "EmoDB (Berlin Database of Emotional Speech)"
    citation = "Burkhardt F, Paeschke A, Rolfes M, Sendlmeier W, Weiss B (2005). Interspeech, 1517-1520"
    licence = "CC0-1.0 (as published by audEERING)"
    url = "https://github.com/audeering/emodb"
    task = "emotion"
    classes = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")
    languages = ("de",)
    official_split = "none by the publisher; leave one speaker out is usual (EmoBox's folds share all 10 speakers)"
    layout = "a folder wav with 535 files such as 03a01Fa.wav (or .flac): speaker, text, emotion letter, version."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the clips named as the corpus does it."""
        for path in self.media(root, "wav/*"):
            code = _NAME.fullmatch(path.stem)
            if code is None:
                left_out["audio files outside the naming"] += 1
                continue
            speaker, text, emotion, version = code.groups()
            sex, age = _SPEAKERS[speaker]
            yield Clip(path, speaker, label=_EMOTIONS[emotion], sex=sex, age=age, task="read speech", further={"text": text, "version": version})
