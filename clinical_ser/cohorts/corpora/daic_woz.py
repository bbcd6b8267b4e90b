"""DAIC-WOZ: clinical interviews by a virtual interviewer, with PHQ-8.

Layout: the publisher's documentation (DAICWOZDepression_Documentation_AVEC2017.pdf) as many public projects read it; corrections of
times and the interrupted sessions: adbailey1/daic_woz_process (config_files), used by later papers too. Gender 0 is female, 1 male.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clinical_ser.cohorts.corpora.base import AUDIO_SUFFIXES, DEPRESSED, NOT_DEPRESSED, PHQ_CUTOFF, Clip, Corpus, number
from clinical_ser.cohorts.corpora.turns import MIN_TURN_S, Span, participant_turns

_TABLES = {
    "train": ("train_split_Depression_AVEC2017.csv",),
    "dev": ("dev_split_Depression_AVEC2017.csv",),
    # The first has the scores; the second, of the challenge, only names the participants.
    "test": ("full_test_split.csv", "test_split_Depression_AVEC2017.csv"),
}
# Seconds to add to the transcript's times.
_MISALIGNED_S = {318: 34.319917, 321: 3.8379167, 341: 6.1892, 362: 16.8582}
_INTERRUPTED = {373: Span(395.0, 428.0), 444: Span(286.0, 387.0)}
_SYNC = re.compile(r"[<\[]sync", re.IGNORECASE)
_SCRUBBED = "scrubbed_entry"
# Sessions 451, 458 and 480 have no interviewer lines: a longer pause may be the interviewer's.
_UNTRANSCRIBED_GAP_S = 0.5
_SEXES: dict[str, Literal["female", "male"]] = {"0": "female", "1": "male", "female": "female", "male": "male"}


@dataclass(frozen=True)
class Participant:
    """A line of a split table."""

    number: int
    split: str
    score: float | None
    label: str | None
    sex: Literal["female", "male"] | None


class DaicWoz(Corpus):
    """189 participants; one row a participant's turn of at least a second, nobody else's voice in it.

    Consecutive lines of the participant are one turn, pauses included; where the interviewer speaks, even over them, it is cut, and so
    are the published interruptions, synchronisation marks, scrubbed names and what comes before the interviewer's first line. The label
    is PHQ-8 >= 10 wherever there is a score: the published PHQ8_Binary of participant 409 (score 10) says otherwise.
    """

    name = "daic-woz"
    title = "DAIC-WOZ (Distress Analysis Interview Corpus, Wizard of Oz)"
    citation = "Gratch J et al. (2014). LREC, 3123-3128; Ringeval F et al. (2017). AVEC, doi:10.1145/3133944.3133953"
    licence = "USC ICT end-user licence (academic, non-profit research; no redistribution); see publisher"
    url = "https://dcapswoz.ict.usc.edu/"
    task = "depression"
    classes = (NOT_DEPRESSED, DEPRESSED)
    languages = ("en",)
    official_split = "column split: train, dev, test of AVEC 2017, speaker-disjoint"
    layout = (
        "folders 300_P to 492_P, each with 300_AUDIO.wav (or .flac) and 300_TRANSCRIPT.csv, and train_split_Depression_AVEC2017.csv, "
        "dev_split_Depression_AVEC2017.csv, full_test_split.csv beside them or one folder below."
    )
    subject_prefix = "daic"
    score_name = "PHQ-8"

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the participants' turns."""
        for participant in self._participants(root):
            audio, transcript = session_files(root, participant.number)
            if audio is None or transcript is None:
                left_out["participants without audio or transcript"] += 1
                continue
            turns = self._turns(transcript, participant.number)
            if turns is None:
                left_out["participants with an unreadable transcript"] += 1
                continue
            left_out[f"turns under {MIN_TURN_S:g} s"] += sum(turn.duration_s < MIN_TURN_S for turn in turns)
            yield from turn_clips(participant, audio, turns)

    def _participants(self, root: Path) -> Iterator[Participant]:
        for split, names in _TABLES.items():
            table = self.table(root, *names)
            records = self.records(table, ())
            for record in ({name.lower(): value for name, value in record.items()} for record in records):
                yield self.participant(record, split, table)

    def participant(self, record: dict[str, str], split: str, table: Path) -> Participant:
        """Read a line of a split table, its column names lower-cased (they differ between the published files)."""
        code = number(record.get("participant_id", ""))
        if code is None:
            raise self.layout_error(table.parent, f"{table.name} has a line without a participant number")
        score = number(record.get("phq8_score") or record.get("phq_score", ""))
        binary = number(record.get("phq8_binary") or record.get("phq_binary", ""))
        positive = score >= PHQ_CUTOFF if score is not None else None if binary is None else binary > 0
        label = None if positive is None else DEPRESSED if positive else NOT_DEPRESSED
        return Participant(int(code), split, score, label, _SEXES.get(record.get("gender", "").lower()))

    @staticmethod
    def _turns(transcript: Path, code: int) -> list[Span] | None:
        lines = _transcript_lines(transcript, _MISALIGNED_S.get(code, 0.0))
        if lines is None:
            return None
        asked = [span for span, speaker, _ in lines if speaker == "ellie"]
        begin_s = min((span.start_s for span in asked), default=0.0)
        said = [
            span
            for span, speaker, text in lines
            if speaker == "participant" and span.start_s >= begin_s and not _SYNC.match(text) and _SCRUBBED not in text
        ]
        cut = [span for span, _, text in lines if _SCRUBBED in text or _SYNC.match(text)]
        others = asked + cut + ([_INTERRUPTED[code]] if code in _INTERRUPTED else [])
        return participant_turns(said, others, float("inf") if asked else _UNTRANSCRIBED_GAP_S)


def turn_clips(participant: Participant, audio: Path, turns: list[Span]) -> Iterator[Clip]:
    """Yield a row for each turn that is long enough, numbered from 1."""
    for index, turn in enumerate((turn for turn in turns if turn.duration_s >= MIN_TURN_S), start=1):
        yield Clip(
            audio,
            str(participant.number),
            label=participant.label,
            score=participant.score,
            sex=participant.sex,
            task="interview",
            start_s=round(turn.start_s, 3),
            end_s=round(turn.end_s, 3),
            split=participant.split,
            further={"turn": index},
        )


def session_files(root: Path, code: int) -> tuple[Path | None, Path | None]:
    """Find a session's audio and transcript; the folder stands in the root or one below, and the names' case differs between releases."""
    for folder in (*root.glob(f"{code}_P"), *root.glob(f"*/{code}_P")):
        files = {path.name.lower(): path for path in folder.iterdir()}
        audio = next((files[name] for suffix in sorted(AUDIO_SUFFIXES) if (name := f"{code}_audio{suffix}") in files), None)
        return audio, files.get(f"{code}_transcript.csv")
    return None, None


def _transcript_lines(path: Path, offset_s: float) -> list[tuple[Span, str, str]] | None:
    """Read start_time, stop_time, speaker, value; None if this is no such table."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # one published transcript is a macOS metadata file in some downloads
        return None
    lines = []
    for start, stop, speaker, *value in (row for row in csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) >= 3):
        start_s, stop_s = number(start), number(stop)
        if start_s is not None and stop_s is not None:
            lines.append((Span(start_s + offset_s, stop_s + offset_s), speaker.strip().lower(), "".join(value).strip().lower()))
    return lines or None
