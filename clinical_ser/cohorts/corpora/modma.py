"""MODMA, the speech part (Lanzhou 2015).

Layout: as read by several public projects: eight-digit folders with 01.wav to 29.wav, and a workbook whose ids lost their leading zero.
What the 29 recordings are: the dataset paper (18 interview answers, a passage, 6 word lists, 4 pictures).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd

from clinical_ser.cohorts.corpora.base import DEPRESSED, NOT_DEPRESSED, Clip, Corpus, number
from clinical_ser.errors import CorpusLayoutError

_WORKBOOK = "subjects_information_audio_lanzhou_2015"
_SEXES: dict[str, Literal["female", "male"]] = {"F": "female", "M": "male"}
_LABELS = {"MDD": DEPRESSED, "HC": NOT_DEPRESSED}
# First recording of each task, from the last to the first.
_TASKS = ((26, "picture description"), (20, "word reading"), (19, "read speech"), (1, "interview"))
_REQUIRED = ("subject id", "type", "age", "gender", "PHQ-9")


class Modma(Corpus):
    """52 people (23 with a major depressive disorder by interview), 29 recordings each, Mandarin.

    `label` is the diagnosis, `score` the PHQ-9: a depression task with a PHQ-8 cut-off takes the label.
    """

    name = "modma"
    title = "MODMA (Multi-modal Open Dataset for Mental-disorder Analysis), speech"
    citation = "Cai H et al. (2022). Sci Data 9:178. doi:10.1038/s41597-022-01211-x"
    licence = "see publisher (user licence agreement of Lanzhou University; audio on request)"
    url = "https://modma.lzu.edu.cn/data/index/"
    task = "depression"
    classes = (NOT_DEPRESSED, DEPRESSED)
    languages = ("zh",)
    official_split = "none by the publisher"
    layout = f"folders such as 02010001 with 01.wav to 29.wav (or .flac), and {_WORKBOOK}.xlsx (or .csv) beside them."
    score_name = "PHQ-9"

    def clips(self, root: Path, left_out: Counter[str]) -> Iterator[Clip]:
        """Yield the recordings of the people in the workbook."""
        people = {str(record["subject id"]).removesuffix(".0").zfill(8): record for record in self._people(root)}
        for path in self.media(root, "[0-9]*/*"):
            about = people.get(path.parent.name.zfill(8))
            if about is None or not (path.stem.isascii() and path.stem.isdigit()):
                left_out["audio files outside the naming" if about else "recordings of people who are not in the workbook"] += 1
                continue
            yield Clip(
                path,
                path.parent.name,
                label=_LABELS.get(about["type"].upper()),
                score=number(about["PHQ-9"]),
                sex=_SEXES.get(about["gender"].upper()),
                age=number(about["age"]),
                task=next((task for first, task in _TASKS if int(path.stem) >= first), None),
                further={"recording": int(path.stem), "gad7": number(about.get("GAD-7", ""))},
            )

    def _people(self, root: Path) -> list[dict[str, str]]:
        path = self.table(root, f"{_WORKBOOK}.xlsx", f"{_WORKBOOK}.csv")
        if path.suffix == ".csv":
            return self.records(path, _REQUIRED)
        try:
            sheet = pd.read_excel(path, dtype=str)
        except ImportError:
            raise CorpusLayoutError(f"{self.title}: reading the workbook needs openpyxl; install it, or save the sheet as {_WORKBOOK}.csv.") from None
        sheet.columns = pd.Index([str(name).strip() for name in sheet.columns])
        if missing := sorted(set(_REQUIRED) - set(sheet.columns)):
            raise CorpusLayoutError(f"{self.title}: {path.name} lacks the columns {missing}.")
        rows = sheet.dropna(subset=["subject id"]).fillna("").to_dict("records")
        return [{str(name): str(value).strip() for name, value in row.items()} for row in rows]
