"""CH-SIMS (and CH-SIMS v2, supervised part).

Layout: as described and read for MMSA (thuiar): label.csv (v2: meta.csv) and Raw/<video_id>/<clip_id>.mp4; clip ids lose their leading
zeros in some copies of the table, so they are compared as numbers.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.cohorts.corpora.base import VIDEO_SUFFIXES, Clip, Corpus, number


class ChSims(Corpus):
    """2,281 clips of films and series in Mandarin, with a sentiment for the whole clip and one for its sound alone.

    The corpus names no speakers: `subject` is the video a clip was cut from, the closest there is. One video can hold several people
    and one actor can be in several videos.
    """

    name = "ch-sims"
    title = "CH-SIMS (Chinese Single- and Multimodal Sentiment)"
    citation = "Yu W et al. (2020). ACL, 3718-3727. doi:10.18653/v1/2020.acl-main.343"
    licence = "see publisher (offered for research)"
    url = "https://github.com/thuiar/MMSA"
    task = "emotion"
    classes = ("negative", "neutral", "positive")
    languages = ("zh",)
    official_split = "column split: train, valid, test, drawn by clip; it shares videos, so that it is refused as a subject-independent one"
    layout = "label.csv (or meta.csv) with video_id, clip_id, label, annotation, mode, and Raw/video_0001/0001.mp4 (or .wav, .flac)."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the clips in the table; `sentiment_audio` is the annotators' -1 to 1 for the sound alone."""
        table = self.table(root, "label.csv", "meta.csv")
        files = {
            (path.parent.name, int(path.stem)): path
            for path in self.media(root, "Raw/*/*", VIDEO_SUFFIXES)
            if path.stem.isascii() and path.stem.isdigit()
        }
        for record in self.records(table, ("video_id", "clip_id", "annotation", "mode")):
            clip = number(record["clip_id"])
            path = None if clip is None else files.get((record["video_id"], int(clip)))
            if path is None:
                left_out["table lines without a clip"] += 1
                continue
            yield Clip(
                path,
                record["video_id"],
                label=record["annotation"].lower().replace(" ", "_") or None,
                task="acted scene",
                split=record["mode"] or None,
                further={"sentiment": number(record.get("label", "")), "sentiment_audio": number(record.get("label_A", ""))},
            )
