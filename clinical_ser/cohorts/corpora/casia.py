"""CASIA, the Chinese emotional speech corpus, as it circulates (4 speakers, 1,200 or more clips).

Layout: read by several public projects, which agree on <speaker>/<emotion>/<number>.wav, in the root or below the two folders for the
same 300 and the different 100 texts, where the same people are spelled otherwise. Uncertain: the full corpus of 9,600 clips has not been
seen. Folders carry the speakers' names; rows carry numbers.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clinical_ser.cohorts.corpora.base import Clip, Corpus

_EMOTIONS = {"angry": "angry", "fear": "fear", "happy": "happy", "neutral": "neutral", "normal": "neutral", "sad": "sad", "surprise": "surprise"}
_SPEAKERS: dict[str, tuple[str, Literal["female", "male"]]] = {
    **dict.fromkeys(("liuchanhg", "liuchang", "chang.liu"), ("1", "female")),
    **dict.fromkeys(("wangzhe", "zhe.wang"), ("2", "male")),
    **dict.fromkeys(("zhaoquanyin", "quanyin.zhao"), ("3", "female")),
    **dict.fromkeys(("zhaozuoxiang", "zuoxiang.zhao"), ("4", "male")),
}
_TEXTS = {"相同文本300": "same", "不同文本100": "different"}


class Casia(Corpus):
    """4 speakers (2 women), 6 emotions, Mandarin."""

    name = "casia"
    title = "CASIA Chinese Emotional Speech Corpus"
    citation = "Institute of Automation, Chinese Academy of Sciences (2005). CASIA Chinese Emotional Speech Corpus"
    licence = "see publisher (Institute of Automation, Chinese Academy of Sciences; research under agreement)"
    url = "http://www.chineseldc.org/"
    task = "emotion"
    classes = ("angry", "fear", "happy", "neutral", "sad", "surprise")
    languages = ("zh",)
    official_split = "none by the publisher; leave one speaker out"
    layout = "<speaker>/<emotion>/201.wav (or .flac), in the root or below 相同文本300 and 不同文本100, for the four published speakers."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the clips of known speakers and emotions."""
        for pattern in ("*/*/*", "*/*/*/*"):
            for path in self.media(root, pattern):
                emotion = _EMOTIONS.get(path.parent.name.lower())
                speaker = _SPEAKERS.get(path.parent.parent.name.lower())
                if emotion is None or speaker is None:
                    left_out["audio files below no known speaker and emotion"] += 1
                    continue
                number, sex = speaker
                texts = _TEXTS.get(path.parent.parent.parent.name)
                yield Clip(path, number, label=emotion, sex=sex, task="read speech", further={"text": path.stem, "texts": texts})
