"""The Androids Corpus: Italian speakers with depression diagnosed by psychiatrists, and controls.

Layout and name code: the publisher's README (androidscorpus/data); fold-lists.csv: nkululeko (data/androids/process_database.py) and
others, who agree on two blocks of five columns, reading first, the second below the word Interview, names in single quotes.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.cohorts.corpora.base import DEPRESSED, NOT_DEPRESSED, Clip, Corpus

# number within its group, condition P or C, sex, age, education 1 to 4 or X (not told), then the clip within an interview
_NAME = re.compile(r"(\d{1,3})_([PC])([MF])(\d{2})_([1-4X])(?:_(\d+))?", re.IGNORECASE)
_FOLDS = 5


class Androids(Corpus):
    """118 people read a fable or answered an interviewer; the label is a psychiatrist's diagnosis, no questionnaire.

    Interviews come as the published clips of the participant's turns (Interview-Task/audio_clip), so that the interviewer is not heard.
    """

    name = "androids"
    title = "Androids Corpus"
    citation = "Tao F, Esposito A, Vinciarelli A (2023). Interspeech, 4149-4153. doi:10.21437/Interspeech.2023-894"
    licence = "academic, non-commercial research; no redistribution (publisher's terms)"
    url = "https://github.com/androidscorpus/data"
    task = "depression"
    classes = (NOT_DEPRESSED, DEPRESSED)
    languages = ("it",)
    official_split = "column fold: 5 folds for each task from fold-lists.csv; use one task at a time, since the tasks share people across folds"
    layout = "Reading-Task/audio/{HC,PT}/01_CF56_1.wav, Interview-Task/audio_clip/01_CF56_1/01_CF56_1_1.wav (or .flac) and fold-lists.csv."

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the readings and the participants' turns of the interviews."""
        folds = self._folds(root)
        for task, patterns in {
            "read speech": ("Reading-Task/audio/*/*", "Reading-Task/[HP][CT]/*"),
            "interview": ("Interview-Task/audio_clip/*/*",),
        }.items():
            for path in (path for pattern in patterns for path in self.media(root, pattern)):
                code = _NAME.fullmatch(path.stem)
                if code is None:
                    left_out["audio files outside the naming"] += 1
                    continue
                group, condition, sex, age, education, _ = code.groups()
                recording = path.stem.rsplit("_", 1)[0] if code[6] else path.stem
                yield Clip(
                    path,
                    f"{int(group):02d}_{condition.upper()}",
                    label=DEPRESSED if condition.upper() == "P" else NOT_DEPRESSED,
                    sex="female" if sex.upper() == "F" else "male",
                    age=float(age),
                    task=task,
                    fold=folds.get((task, recording)),
                    further={"education": None if education.upper() == "X" else int(education), "condition": condition.upper()},
                )

    def _folds(self, root: Path) -> dict[tuple[str, str], str]:
        path = self.optional_table(root, "fold-lists.csv", "fold-list.csv")
        if path is None:
            return {}
        head, *lines = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
        interview = next((column for column, cell in enumerate(head) if cell.strip().lower().startswith("interview")), None)
        if interview is None:
            raise self.layout_error(root, f"{path.name} has no Interview block")
        blocks = {"read speech": 0, "interview": interview}
        return {
            (task, cell.strip().strip("'\"").removesuffix(".wav")): str(fold + 1)
            for task, first in blocks.items()
            for line in lines
            for fold, cell in enumerate(line[first : first + _FOLDS])
            if _NAME.fullmatch(cell.strip().strip("'\"").removesuffix(".wav"))
        }
