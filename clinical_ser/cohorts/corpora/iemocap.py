"""IEMOCAP.

Layout: as read by S3PRL (corpus/iemocap.py) and nkululeko (data/iemocap/process_database.py). Both take the speaker from the front of
the turn's name, where the letter says who wore the markers; who speaks stands at its end (Ses01F_impro01_M003: the man of session 1).
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.cohorts.corpora.base import Clip, Corpus

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
_LINE = re.compile(r"^\[\d[\d.]* - \d[\d.]*\]\t(\S+)\t(\w{3})\t\[([\d.]+), ([\d.]+), ([\d.]+)\]", re.MULTILINE)
_TURN = re.compile(r"Ses0([1-5])[FM]_(impro|script)\w*_([FM])(?:XX)?\d+")
_EMOTIONS = {
    "ang": "anger",
    "hap": "happiness",
    "exc": "excited",
    "sad": "sadness",
    "fru": "frustration",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "neu": "neutral",
    "oth": "other",
}


class Iemocap(Corpus):
    """10 actors in 5 sessions of two, 10,039 turns, categories by majority of annotators.

    Turns on which the annotators did not agree (`xxx`) come without a label. The usual four classes are anger, sadness, neutral, and
    happiness joined with excited; that is left to the user.
    """

    name = "iemocap"
    title = "IEMOCAP (Interactive Emotional Dyadic Motion Capture)"
    citation = "Busso C et al. (2008). Lang Resour Eval 42:335-359. doi:10.1007/s10579-008-9076-6"
    licence = "USC SAIL licence agreement (research, no redistribution); see publisher"
    url = "https://sail.usc.edu/iemocap/"
    task = "emotion"
    classes = tuple(_EMOTIONS.values())
    languages = ("en",)
    official_split = "column fold: the session, 5 folds, speaker-disjoint"
    layout = "Session1 to Session5, each with sentences/wav/<dialogue>/<turn>.wav (or .flac) and dialog/EmoEvaluation/<dialogue>.txt."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the turns that have audio and an evaluation."""
        evaluated = {line[0]: line[1:] for path in sorted(root.glob("Session[1-5]/dialog/EmoEvaluation/*.txt")) for line in self._lines(path)}
        if not evaluated:
            raise self.layout_error(root, "no evaluations")
        for path in self.media(root, "Session[1-5]/sentences/wav/*/*"):
            turn = _TURN.fullmatch(path.stem)
            if turn is None or path.stem not in evaluated:
                left_out["turns without an evaluation" if turn else "audio files outside the naming"] += 1
                continue
            session, kind, speaker = turn.groups()
            emotion, valence, activation, dominance = evaluated[path.stem]
            yield Clip(
                path,
                f"{session}{speaker}",
                label=_EMOTIONS.get(emotion),
                sex="female" if speaker == "F" else "male",
                task="improvisation" if kind == "impro" else "scripted dialogue",
                fold=session,
                further={"valence": float(valence), "activation": float(activation), "dominance": float(dominance)},
            )

    @staticmethod
    def _lines(path: Path) -> list[tuple[str, ...]]:
        return [] if path.name.startswith(".") else _LINE.findall(path.read_text(encoding="utf-8", errors="replace"))
