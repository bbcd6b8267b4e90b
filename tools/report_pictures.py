"""Make the pictures of docs/clinicians.md: `python tools/report_pictures.py docs/pictures`, a part of `make docs`.

Every voice in them is simulated. The Chinese page needs a font that has Chinese (Debian: fonts-noto-cjk).
"""

import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

import pandas as pd

from clinical_ser.cohorts.simulation import simulate, simulate_visits
from clinical_ser.monitoring.comparison import compare
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener
from reports import rendering
from reports.clinician import sheet_of
from reports.site import Contact, Site

MODEL = "depression-simulated"
SPEAKERS, VISITS = 12, 4
"""Simulated people who come four times; one whom the model cannot tell is among them."""
SEED = 5
SITE = Site(
    name="A hospital",
    department="Outpatient clinic",
    contacts=(
        Contact(name="Psychiatric emergency service of this hospital", phone="0000 000 000", hours="day and night"),
        Contact(name="On-call psychiatrist, for staff", phone="0000 000 001"),
    ),
    prevalence=0.1,
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    screener = Screener.load(MODEL)
    with tempfile.TemporaryDirectory() as work:
        flagged, _, unusable = (
            screener.screen(one.path, sex=one.sex.value, age=one.age, device="headset", timeline=True)
            for one in simulate_visits(Path(work) / "visits")
        )
        cohort = simulate(SPEAKERS, Path(work) / "cohort", recordings_per_subject=VISITS, seed=SEED)
        people = [_visits(screener, rows, cohort.manifest.parent) for _, rows in pd.read_csv(cohort.manifest).groupby("subject")]
    unsure = next(one for visits in people for one in visits if one.status is Status.INDETERMINATE)
    returned = next(visits for visits in people if visits[-1].status is Status.NOT_FLAGGED)
    _write(folder, "flagged", flagged)
    _write(folder, "flagged-zh", flagged, language="zh", pages=(0,))
    _write(folder, "cannot-tell", unsure, pages=(0,))
    _write(folder, "not-usable", unusable)
    comparison = compare(returned[-1], returned[:-1])
    _put(folder, "over-time", sheet_of(returned[-1], site=SITE, comparison=comparison), (2,))


def _visits(screener: Screener, rows: pd.DataFrame, beside: Path) -> list[ScreeningResult]:
    """Screen one person's recordings, a week apart."""
    return [
        screener.screen(
            beside / row["path"],
            sex=row["sex"],
            age=row["age"],
            task=row["task"],
            device=row["device"],
            language=row["language"],
            recorded_on=date(2026, 3, 2) + timedelta(weeks=week),
            timeline=True,
        )
        for week, row in enumerate(rows.to_dict("records"))
    ]


def _write(folder: Path, name: str, result: ScreeningResult, *, language: str = "en", pages: tuple[int, ...] | None = None) -> None:
    _put(folder, name, sheet_of(result, site=SITE, language=language), pages)


def _put(folder: Path, name: str, sheet, pages: tuple[int, ...] | None) -> None:
    drawn = rendering.png(sheet, pixels_per_inch=96)
    for number, page in enumerate(drawn, start=1):
        if pages is None or number - 1 in pages:
            (folder / (f"{name}.png" if len(drawn) == 1 or pages else f"{name}-{number}.png")).write_bytes(page)
    print(name, len(drawn), "pages")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
