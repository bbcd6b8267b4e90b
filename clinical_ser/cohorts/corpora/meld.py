"""MELD.

Layout: MELD.Raw as published (declare-lab/MELD), read by nkululeko (data/meld/process_database.py) and others, who unpack train.tar.gz
and so on beside the tables or in folders of their own; both are found. StartTime and EndTime are times in the episode, not in the clip.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clinical_ser.cohorts.corpora.base import VIDEO_SUFFIXES, Clip, Corpus

_PARTS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
_SEXES: dict[str, Literal["female", "male"]] = {
    **dict.fromkeys(("chandler", "joey", "ross"), "male"),
    **dict.fromkeys(("monica", "phoebe", "rachel"), "female"),
}


class Meld(Corpus):
    """13,708 utterances of a television series in 7 emotions; the six leads are sexed, minor roles are not."""

    name = "meld"
    title = "MELD (Multimodal EmotionLines Dataset)"
    citation = "Poria S et al. (2019). ACL, 527-536. doi:10.18653/v1/P19-1050"
    licence = "GPL-3.0 as its repository states; the television footage is not said to be covered. See publisher"
    url = "https://github.com/declare-lab/MELD"
    task = "emotion"
    classes = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    languages = ("en",)
    official_split = "column split: train, dev, test; the leads speak in all three, so that it is refused as a speaker-independent one"
    layout = (
        "train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv and the folders train_splits, dev_splits_complete, "
        "output_repeated_splits_test with dia0_utt0.mp4 (or .wav, .flac)."
    )

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the utterances that are in a table and have a clip (the publisher's dev has one without)."""
        for part, folder in _PARTS.items():
            table = self.table(root, f"{part}_sent_emo.csv")
            files = {path.stem: path for pattern in (f"{folder}/*", f"*/{folder}/*") for path in self.media(root, pattern, VIDEO_SUFFIXES)}
            for record in self.records(table, ("Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")):
                path = files.get(f"dia{record['Dialogue_ID']}_utt{record['Utterance_ID']}")
                if path is None:
                    left_out["table lines without a clip"] += 1
                    continue
                role = re.sub(r"[^a-z0-9]+", "-", record["Speaker"].lower()).strip("-")
                yield Clip(
                    path,
                    role,
                    label=record["Emotion"].lower(),
                    sex=_SEXES.get(role),
                    task="conversation",
                    split=part,
                    further={"dialogue": record["Dialogue_ID"], "utterance": record["Utterance_ID"], "sentiment": record.get("Sentiment")},
                )
