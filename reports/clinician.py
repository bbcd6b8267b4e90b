"""The clinician's report: two pages that are read in a minute, from any result, in the language and with the contacts of the site.

The one idea: a number is shown only with its interval, its reference and what it is stated for; where there is no answer there is no number, and
what to do is said instead. Safety does not depend on the score.

References
----------
Zikmund-Fisher et al. 2017, J Am Med Inform Assoc 24:520-528 (10.1093/jamia/ocw169), on number lines; 10.1016/j.pecinn.2021.100003, on how little is
known of showing imprecision in icon arrays, for which reason the interval stands in words.
"""

from collections.abc import Sequence
from pathlib import Path

from clinical_ser.audio import Recording
from clinical_ser.errors import InvalidValueError
from clinical_ser.monitoring.comparison import Comparison
from clinical_ser.screening.result import ScreeningResult
from reports import rendering
from reports.clinician_pages import Pages
from reports.playing import audio_of
from reports.sheet import Sheet
from reports.site import Site


def html_report(
    result: ScreeningResult,
    *,
    comparison: Comparison | None = None,
    site: Site | None = None,
    language: str | None = None,
    audio: Recording | None = None,
) -> str:
    """Return the report as one HTML file that loads nothing, and runs nothing unless it holds the recording.

    Parameters
    ----------
    result
        Of one screening. Its texts may be anyone's and are escaped.
    comparison
        Of this result with earlier ones of the same person; adds a page.
    site
        The site's name, contacts and wording; None leaves them out and says so.
    language
        `en`, `zh`, or one that the site brought along; None takes the site's, or English.
    audio
        The recording, to be put into the file and played along the timeline. A voice identifies its speaker.

    Returns
    -------
    str
        The same arguments give the same text.

    Raises
    ------
    InvalidValueError
        If the language is not known, the comparison is of another result, or the audio is of another recording.
    """
    return rendering.html(sheet_of(result, comparison=comparison, site=site, language=language, audio=audio))


def pdf_report(
    result: ScreeningResult,
    *,
    comparison: Comparison | None = None,
    site: Site | None = None,
    language: str | None = None,
    font_paths: Sequence[Path] = (),
    system_fonts: bool = True,
) -> bytes:
    """Return the report as tagged PDF, made in PDF/UA-1 mode.

    Parameters
    ----------
    result, comparison, site, language
        As for `html_report`.
    font_paths
        Folders with further fonts, of which Chinese needs one.
    system_fonts
        Whether fonts that are installed may be used for characters that the built-in ones lack.

    Returns
    -------
    bytes
        The same arguments and fonts give the same bytes.

    Raises
    ------
    InvalidValueError
        As for `html_report`.
    ReportError
        If a character has no font; the message says what to install.
    """
    sheet = sheet_of(result, comparison=comparison, site=site, language=language)
    return rendering.pdf(sheet, font_paths=font_paths, system_fonts=system_fonts)


def sheet_of(
    result: ScreeningResult,
    *,
    comparison: Comparison | None = None,
    site: Site | None = None,
    language: str | None = None,
    audio: Recording | None = None,
) -> Sheet:
    """Return what stands on the pages; as for `html_report`."""
    site = site or Site()
    locale = site.locale(language)
    last = comparison.visits[-1] if comparison else None
    if last and (last.sha256, last.status) != (result.recording.sha256, result.status):
        raise InvalidValueError("comparison", "one of another recording", "one whose last visit is this result")
    pages = Pages(result, site, locale)
    shown = [pages.first(), pages.second(), *([] if comparison is None else [pages.over_time(comparison)])]
    return Sheet(
        language=locale.tag,
        title=locale("title.document", status=pages.status),
        heading=locale("title.report"),
        site=tuple(filter(None, (site.name, site.department))),
        logo=site.image,
        blank=locale("person.label" if result.context.recorded_on else "person.label_undated"),
        facts=tuple(pages.facts()),
        pages=tuple(page for page in shown if page.sections),
        footer=locale("title.footer"),
        page_words=locale("title.page", n="{n}", of="{of}"),
        skip_words=locale("title.skip"),
        table_words=locale("figure.table"),
        audio=None if audio is None else audio_of(audio, result, locale),
    )
