"""From results to files with the clinician's report: what `screen`, `report` and `demo` have in common.

The one idea: a file that is named here is called by its result's digest, so that its name holds nothing of a person or a recording, and a result
that comes again meets its own file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from clinical_ser.audio import Recording
from clinical_ser.cli.console import check_output_file, check_output_folder
from clinical_ser.cli.results import LARGEST_RESULT_BYTES, parsed
from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import InvalidValueError
from clinical_ser.monitoring.comparison import Comparison
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.screening.screener import Screener

if TYPE_CHECKING:  # half a second of imports that most commands do without
    from reports.site import Site

HTML, PDF = ENDINGS = (".html", ".pdf")
VOICE = "the HTML report holds the person's voice, which identifies them: keep it as you keep the recording"
_NAME_DIGITS = 12
_EXPECTED = "a result of this version's `screen --json`"


@dataclass(frozen=True)
class Reporter:
    """Makes reports for a site, in a language."""

    site: "Site"
    language: str | None = None
    """None takes the site's, or English."""

    @classmethod
    def find(cls, site: Path | None, language: str | None = None) -> Self:
        """Read the site's configuration, and make sure that its reports come in this language.

        Raises
        ------
        SiteError
            The site's file cannot be used.
        InvalidValueError
            There is no such language.
        """
        from reports.site import check_filled_in, find_site

        found = find_site(site)
        check_filled_in(found)
        found.locale(language)
        return cls(found, language)

    def prevalence_for(self, screener: Screener) -> float | None:
        """Return the site's share of positives, for a model of two classes that is not told another; None leaves it to the model."""
        return self.site.prevalence if screener.model.binary else None

    def report(self, result: ScreeningResult, ending: str, *, comparison: Comparison | None = None, audio: Recording | None = None) -> bytes:
        """Return the report in the form that a file with this ending has; the recording itself goes into HTML alone."""
        from reports.clinician import html_report, pdf_report

        if ending == PDF:
            return pdf_report(result, comparison=comparison, site=self.site, language=self.language)
        return html_report(result, comparison=comparison, site=self.site, language=self.language, audio=audio).encode()


def ending_of(path: Path) -> str:
    """Return the ending of a report's file; of anything else, which is a folder for reports, nothing."""
    ending = path.suffix.lower()
    return ending if ending in ENDINGS and not path.is_dir() else ""


def check_destination(path: Path, option: str, *, several: bool = False) -> None:
    """Make sure, before the work, that one report (or several) can be written there; InvalidValueError if not."""
    if not ending_of(path):
        if path.suffix and not several and not path.is_dir():
            raise InvalidValueError(option, "a file of another kind", f"one that ends in {' or '.join(ENDINGS)}, or a folder")
        check_output_folder(path, option)
    elif several:
        raise InvalidValueError(option, "one file for several reports", "a folder, in which each gets a name of its own")
    else:
        check_output_file(path, option)


def file_in(folder: Path, result: ScreeningResult, ending: str) -> Path:
    """Return where a report goes that has a folder, but no name."""
    return folder / f"{result.digest[:_NAME_DIGITS]}{ending}"


def write(content: bytes, path: Path) -> None:
    """Write a report, for its owner only; a file that is there is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as unfinished:
        unfinished.write_bytes(content)


def read_earlier(paths: Sequence[Path]) -> list[ScreeningResult]:
    """Read earlier results of a person; one that is none is named by its place."""
    return [read_told(path, f"--earlier, no. {place}") for place, path in enumerate(paths, start=1)]


def read_told(path: Path, what: str, *, start: int = 0, length: int = LARGEST_RESULT_BYTES + 1) -> ScreeningResult:
    """Read a result from a file, or from some of its bytes; InvalidValueError, which names it `what`, if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
    except OSError:  # its text holds the path
        raise InvalidValueError(what, "a file that cannot be read", _EXPECTED) from None
    if len(content) > LARGEST_RESULT_BYTES:
        raise InvalidValueError(what, "a result of many megabytes", _EXPECTED)
    content = _unwrapped(content, what)
    if not content.lstrip().startswith(b"{"):
        raise InvalidValueError(what, "something that is no JSON" if content.strip() else "nothing", f"{_EXPECTED}; recordings are screened first")
    return parsed(content, what, _EXPECTED)


def _unwrapped(content: bytes, what: str) -> bytes:
    """Take the result out of a line that `screen --json` prints for one of several recordings; anything else stays as it is."""
    if not content.startswith(b'{"position"'):
        return content
    try:
        line = json.loads(content)
    except (ValueError, RecursionError):  # what is wrong is said when it is read as a result
        return content
    if "error" in line:
        raise InvalidValueError(what, "a recording that could not be screened", _EXPECTED)
    return json.dumps(line["result"]).encode() if "result" in line else content
