"""What a site configures for its reports: who it is, whom to call, in which language, in which words.

The one idea: one file, `site.toml`, read once and checked whole, so that what is wrong with it is found by whoever wrote it and not by a clinician.
"""

import base64
import os
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from clinical_ser.errors import ReportError, SiteError
from clinical_ser.folders import user_folder
from clinical_ser.strict import Strict
from reports import forbidden
from reports.locale import REFERENCE, Locale, available, flattened, load_locale
from reports.logo import MAX_BYTES, Logo
from reports.reading import listed, parse_toml, quotable, read_small
from reports.sheet import Image

SITE_VARIABLE = "CLINICAL_SER_SITE"
FILE_NAME = "site.toml"
MAX_FILE_BYTES = 1_000_000
MAX_CONTACTS = 6
"""Ours: what is still read in an emergency."""
MAX_LINE, MAX_REFERENCE = 120, 600
LOCKED = ("status.", "simulated.", "about.", "answer.", "safety.", "signature.", "title.footer")
"""Beginnings of keys whose texts a site's wording leaves alone: with other words a report would say something else."""


def _one_line(text: str) -> str:
    """Return a text with plain spaces; ValueError where something in it breaks the line, or does not print."""
    line = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)
    if not line.isprintable():
        raise ValueError("one line of characters that print is expected")
    return line


def _running(text: str) -> str:
    return _one_line(" ".join(text.split()))


def _by_path(tables: object) -> object:
    """Let a key of the wording be written as a path of tables too, as TOML reads a dotted key without quotation marks."""
    return flattened(tables) if isinstance(tables, Mapping) else tables


Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_LINE), AfterValidator(_one_line)]
FilledLine = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_LINE), AfterValidator(_one_line)]
ReferenceText = Annotated[str, StringConstraints(max_length=MAX_REFERENCE), AfterValidator(_running)]
Wording = Annotated[dict[str, str], BeforeValidator(_by_path)]


class Contact(Strict):
    """Whom to call when a person is in danger or in doubt."""

    name: FilledLine
    phone: FilledLine
    hours: Line = ""
    note: Line = ""


class Site(Strict):
    """Everything a site configures; a site that configured nothing is `Site()`.

    Raises
    ------
    ReportError
        A text says what no report may say, or a language's file does not fit.
    """

    name: Line = ""
    department: Line = ""
    logo: Logo | None = None
    logo_alt: Line = ""
    """What the logo shows, for who does not see it; the site's name where it is empty."""
    contacts: tuple[Contact, ...] = Field(default=(), max_length=MAX_CONTACTS)
    prevalence: float | None = Field(default=None, gt=0, lt=1, strict=True)
    """Share of positives among the people who are screened here."""
    language: str | None = None
    languages_folder: Path | None = None
    reference_text: dict[str, ReferenceText] = Field(default_factory=dict)
    """What the site says beside the reference group, by language."""
    wording: dict[str, Wording] = Field(default_factory=dict)
    """Texts in place of ours, by language and key."""
    reviewed_by: Line = ""
    """Who read the wording, and answers for it."""
    reviewed_on: date | None = Field(default=None, strict=True)

    @property
    def image(self) -> Image | None:
        """The logo as a page takes it."""
        if self.logo is None:
            return None
        encoded = base64.b64encode(self.logo.content).decode()
        return Image(self.logo.media_type, encoded, self.logo_alt or self.name, self.logo.width, self.logo.height)

    def locale(self, language: str | None = None) -> Locale:
        """Return the texts in a language (the site's where none is given, else English), with the site's wording.

        Raises
        ------
        InvalidValueError
            There is no such language; the message lists those there are.
        """
        code = language or self.language or REFERENCE
        return load_locale(code, folder=self.languages_folder, wording=self.wording.get(code))

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.logo and not (self.logo_alt or self.name):
            raise ValueError("a logo needs logo_alt, or the site's name, for who does not see it")
        if self.reviewed_on and self.reviewed_on > date.today():
            raise ValueError("reviewed_on is a day that has not come yet")
        if locked := sorted({key for texts in self.wording.values() for key in texts if key.startswith(LOCKED)}):
            raise ValueError(
                f"wording cannot replace {', '.join(locked)}: what an answer is called, what it is, and what is said for safety stay as they are"
            )
        if any(self.wording.values()) and not (self.reviewed_by and self.reviewed_on):
            raise ValueError("wording of the site's own needs reviewed_by and reviewed_on: who read it, and when")
        return self

    @model_validator(mode="after")
    def _fit_for_a_report(self) -> Self:
        for language in sorted({*filter(None, [self.language]), *self.reference_text, *self.wording}):
            self.locale(language)
        if self.languages_folder is not None:
            available(self.languages_folder)
        forbidden.check({f"reference_text.{language}": text for language, text in self.reference_text.items()})
        # Names are not searched: a service may be called after what it is for.
        forbidden.check({f"contacts, no. {i}": contact.note for i, contact in enumerate(self.contacts, 1)})
        return self


def read_site(path: Path) -> Site:
    """Read a `site.toml`, and the logo and languages that it names.

    Raises
    ------
    SiteError
        It cannot be read, or something in it cannot be used; the message names the field.
    """
    given = parse_toml(read_small(path, FILE_NAME, MAX_FILE_BYTES), FILE_NAME)
    if not given:
        raise SiteError(f"{FILE_NAME} says nothing: give at least one of {list(Site.model_fields)}, or leave the file out.")
    try:
        return Site.model_validate(_with_files(given, path.parent))
    except ValidationError as error:
        raise SiteError(f"{FILE_NAME}: {listed(_faults(error), '; ')}.") from None
    except ReportError as error:
        raise SiteError(f"{FILE_NAME}: {error}") from None


def find_site(given: Path | None = None) -> Site:
    """Read the site's configuration from where it is, or return one that says nothing where there is none.

    Parameters
    ----------
    given
        What the caller names; else `CLINICAL_SER_SITE`, else `site.toml` in this user's configuration folder.

    Raises
    ------
    SiteError
        As `read_site`; also where a file that is named is not there.
    """
    path = site_path(given)
    return Site() if path is None else read_site(path)


def check_filled_in(site: Site) -> None:
    """Raise SiteError for a contact whose number is still the example's: whoever dials it needs help."""
    for i, contact in enumerate(site.contacts, 1):
        if set(filter(str.isdigit, contact.phone)) == {"0"}:
            raise SiteError(f"contacts, no. {i} has the example's telephone number; give that of your site.")


def site_path(given: Path | None = None) -> Path | None:
    """Return where `find_site` reads; None where nothing is configured."""
    if named := given or os.environ.get(SITE_VARIABLE):
        return Path(named)
    folder = user_folder("config")
    own = folder / FILE_NAME if folder else None
    return own if own and os.path.lexists(own) else None


def _with_files(given: dict[str, Any], beside: Path) -> dict[str, Any]:
    """Put what the file names in place of the names, which are relative to it."""
    read = dict(given)
    if "logo" in given:
        if not isinstance(given["logo"], str):
            raise SiteError("logo is not the name of a file.")
        read["logo"] = Logo.of(read_small(beside / given["logo"], "logo", MAX_BYTES))
    if isinstance(given.get("languages_folder"), str):
        read["languages_folder"] = beside / given["languages_folder"]
    return read


def _faults(error: ValidationError) -> Iterator[str]:
    """Say each fault with its place, and without what was given, which may be anything."""
    for fault in error.errors(include_url=False, include_input=False):
        place = ", ".join(f"no. {part + 1}" if isinstance(part, int) else quotable(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            within = len(fault["loc"]) > 1
            known = list((Contact if within else Site).model_fields)
            # In TOML, everything below [[contacts]] belongs to it.
            hint = "; it belongs above the first [table]" if within and fault["loc"][-1] in Site.model_fields else ""
            yield f"{place} is unknown, expected one of {known}{hint}"
        else:
            said = fault["msg"].removeprefix("Value error, ").removesuffix(".")
            yield f"{place}: {said}" if place else said
