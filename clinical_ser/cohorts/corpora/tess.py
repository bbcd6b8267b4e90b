"""TESS, the Toronto Emotional Speech Set.

Layout: as unpacked from the publisher's dataverse and read by nkululeko (data/tess/process_database.py). One published file is named
OA_bite_neutral instead of OAF_bite_neutral.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.cohorts.corpora.base import Clip, Corpus

_NAME = re.compile(r"(OAF?|YAF)_([a-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)", re.IGNORECASE)
# Ages when recorded: 64 and 26 (Dupuis & Pichora-Fuller 2010).
_AGES = {"OAF": 64, "YAF": 26}


class Tess(Corpus):
    """2 women (26 and 64), 200 words in one carrier phrase, 7 emotions, 2,800 clips. Two speakers carry no speaker-independent figure."""

    name = "tess"
    title = "TESS (Toronto Emotional Speech Set)"
    citation = "Dupuis K, Pichora-Fuller MK (2010). University of Toronto, Psychology Department. doi:10.5683/SP2/E8H2MF"
    licence = "CC BY-NC-ND 4.0"
    url = "https://doi.org/10.5683/SP2/E8H2MF"
    task = "emotion"
    classes = ("angry", "disgust", "fear", "happy", "pleasant_surprise", "sad", "neutral")
    languages = ("en",)
    official_split = "none by the publisher; with 2 speakers only leaving one out is speaker-independent"
    layout = "folders such as OAF_angry and YAF_sad with files such as OAF_back_angry.wav (or .flac)."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the clips; `ps` is pleasant surprise."""
        for path in self.media(root, "[OY]AF_*/*"):
            code = _NAME.fullmatch(path.stem)
            if code is None:
                left_out["audio files outside the naming"] += 1
                continue
            speaker = "YAF" if code[1].upper() == "YAF" else "OAF"
            emotion = code[3].lower()
            yield Clip(
                path,
                speaker.lower(),
                label="pleasant_surprise" if emotion == "ps" else emotion,
                sex="female",
                age=_AGES[speaker],
                task="read speech",
                further={"word": code[2].lower()},
            )
