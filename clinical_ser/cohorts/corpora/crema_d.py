"""CREMA-D.

Layout: the publisher's repository (CheyneyComputerScience/CREMA-D), as read by nkululeko (data/crema-d/process_database.py) and by
several projects that join VideoDemographics.csv.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clinical_ser.cohorts.corpora.base import Clip, Corpus, number

_NAME = re.compile(r"(1\d{3})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX?)", re.IGNORECASE)
_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high"}
_SEXES: dict[str, Literal["female", "male"]] = {"male": "male", "female": "female"}


class CremaD(Corpus):
    """91 actors, 12 sentences, 6 emotions as intended by the actor, 7,442 clips."""

    name = "crema-d"
    title = "CREMA-D (Crowd-sourced Emotional Multimodal Actors Dataset)"
    citation = "Cao H et al. (2014). IEEE Trans Affect Comput 5(4):377-390. doi:10.1109/TAFFC.2014.2336244"
    licence = "ODbL 1.0 (contents: DbCL 1.0)"
    url = "https://github.com/CheyneyComputerScience/CREMA-D"
    task = "emotion"
    classes = ("anger", "disgust", "fear", "happy", "neutral", "sad")
    languages = ("en",)
    official_split = "none by the publisher (EmoBox's shares all 91 speakers; EMO-SUPERB's five do not)"
    layout = "AudioWAV with files such as 1001_DFA_ANG_XX.wav (or .flac), and VideoDemographics.csv."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the clips, with age and sex from VideoDemographics.csv."""
        actors = {record["ActorID"]: record for record in self.records(self.table(root, "VideoDemographics.csv"), ("ActorID", "Age", "Sex"))}
        for path in self.media(root, "AudioWAV/*"):
            code = _NAME.fullmatch(path.stem)
            if code is None:
                left_out["audio files outside the naming"] += 1
                continue
            actor, sentence, emotion, intensity = code.groups()
            about = actors.get(actor, {})
            yield Clip(
                path,
                actor,
                label=_EMOTIONS[emotion.upper()],
                sex=_SEXES.get(about.get("Sex", "").lower()),
                age=number(about.get("Age", "")),
                task="read speech",
                further={"sentence": sentence.upper(), "emotion_intensity": _INTENSITIES.get(intensity.upper())},
            )
