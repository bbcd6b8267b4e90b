"""E-DAIC: DAIC-WOZ's sessions again, and 86 led by an autonomous agent (AVEC 2019).

Layout: as read by many public projects: data/300_P/300_AUDIO.wav and 300_Transcript.csv, labels/{train,dev,test}_split.csv. The
transcripts are a speech recogniser's and name no speaker; sources disagree on whether the agent's lines were all taken out
(one project that listened found some in session 718).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clinical_ser.cohorts.corpora.base import Clip, number
from clinical_ser.cohorts.corpora.daic_woz import DaicWoz, session_files, turn_clips
from clinical_ser.cohorts.corpora.turns import MIN_TURN_S, Span, participant_turns
from clinical_ser.errors import CorpusLayoutError

# Nothing says whose a longer pause is, so lines join over breaths only.
_MAX_GAP_S = 0.5


class EDaic(DaicWoz):
    """275 participants; one row a run of transcribed lines without a longer pause.

    Sessions 300 to 492 are DAIC-WOZ's: subjects carry the same names there, so that a split over both corpora sees it. The interviewer
    cannot be kept out with certainty (`interviewer_excluded` is False in every row): for those sessions use DAIC-WOZ's transcripts, for
    the others separate the speakers first.
    """

    name = "e-daic"
    title = "E-DAIC (Extended Distress Analysis Interview Corpus)"
    citation = "DeVault D et al. (2014). AAMAS, 1061-1068; Ringeval F et al. (2019). AVEC, doi:10.1145/3347320.3357688"
    official_split = "column split: train, dev, test of AVEC 2019, speaker-disjoint; its train and dev hold DAIC-WOZ's people, its test does not"
    layout = (
        "folders such as 300_P with 300_AUDIO.wav (or .flac) and 300_Transcript.csv, in the root or below data, and train_split.csv, "
        "dev_split.csv, test_split.csv in the root or below labels."
    )

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the runs of transcribed speech."""
        for split in ("train", "dev", "test"):
            table = self.table(root, f"{split}_split.csv")
            for record in self.records(table, ("Participant_ID", "PHQ_Score")):
                participant = self.participant({name.lower(): value for name, value in record.items()}, split, table)
                audio, transcript = session_files(root, participant.number)
                if audio is None or transcript is None:
                    left_out["participants without audio or transcript"] += 1
                    continue
                turns = self._runs(transcript)
                if turns is None:
                    left_out["participants with an unreadable transcript"] += 1
                    continue
                left_out[f"turns under {MIN_TURN_S:g} s"] += sum(turn.duration_s < MIN_TURN_S for turn in turns)
                for clip in turn_clips(participant, audio, turns):
                    yield replace(clip, further={**clip.further, "interviewer_excluded": False})

    def _runs(self, transcript: Path) -> list[Span] | None:
        try:
            records = self.records(transcript, ("Start_Time", "End_Time"))
        except CorpusLayoutError:  # one person's file is no reason to give up the others
            return None
        times = [(number(record["Start_Time"]), number(record["End_Time"])) for record in records]
        return participant_turns([Span(start_s, end_s) for start_s, end_s in times if start_s is not None and end_s is not None], (), _MAX_GAP_S)
