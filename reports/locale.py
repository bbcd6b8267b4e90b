"""What a report says, in a language: one TOML file a language, nested tables of texts.

The one idea: English is the reference. Every other language has its keys and its placeholders, which is checked when the file is read, so that no
report comes out half translated, and no sentence fails when it is needed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Final, Protocol

from clinical_ser.audio.advice import ADVICE
from clinical_ser.audio.quality import QualityCheck
from clinical_ser.errors import InvalidValueError, ReportError
from clinical_ser.features import catalogue
from reports import forbidden
from reports.reading import listed, parse_toml, quotable, read_small
from reports.wording import count, plain

REFERENCE = "en"
WRITTEN_ELSEWHERE = ("en", "zh")
"""Languages in which features, families and advice have their texts where they are defined; every other language brings them along."""
MAX_FILE_BYTES = 1_000_000
MAX_WORDING = 1000
"""Characters of a text that a site puts in place of ours; ours: some 150 words, above which a page no longer holds it."""

_SHIPPED: Final = files("reports") / "locales"
_CODE = re.compile(r"(?P<language>[a-z]{2,3})(?:-(?P<script>[A-Z][a-z]{3}))?(?:-(?P<region>[A-Z]{2}|[0-9]{3}))?")
"""BCP 47 (RFC 5646), as much of it as names a written language: `fr`, `pt-BR`, `zh-Hant-TW`."""
_ABOUT = ("code", "name", "script", "region")
"""What a file says of its language."""
_ONE, _OTHER = ".one", ".other"
_NUMBER = frozenset({"n"})
"""What "1 person" may be said without."""
_LABEL = "label"
"""What a feature's name, which English has elsewhere, is like: not empty, and without placeholders."""
_UNFIT = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
"""Controls, and marks that turn the direction of what follows: behind one of these, 15 reads 51."""


class Labelled(Protocol):
    """A feature, a family, or something of one: it has a `name`, or a `family`, too."""

    @property
    def label_en(self) -> str:
        """Its name in English."""


@dataclass(frozen=True, eq=False)
class Locale:
    """The texts of one language. Called with a key, it gives the text; a key or a value that is not there is a KeyError, since a program lacks it."""

    code: str
    """BCP 47, and the file's name."""
    name: str
    """What its speakers call it."""
    region: str
    script: str
    texts: Mapping[str, str]
    """By dotted key."""

    @property
    def language(self) -> str:
        """The language alone, without script and region."""
        return self.code.partition("-")[0]

    @property
    def tag(self) -> str:
        """The whole tag, for HTML's `lang`: `zh-Hans-CN`."""
        return "-".join(filter(None, (self.language, self.script, self.region)))

    def __call__(self, key: str, /, **values: object) -> str:
        """Return a text with its placeholders filled."""
        return self.texts[key].format(**values)

    def several(self, key: str, n: int, /, **values: object) -> str:
        """Return the text for a number of things: `key.one` for 1 where the language has one, else `key.other`."""
        one = f"{key}{_ONE}"
        return self(one if n == 1 and one in self.texts else f"{key}{_OTHER}", n=count(n), **values)

    def label(self, thing: Labelled) -> str:
        """Return what a feature or family is called; in English where the language has no word for a feature."""
        if self.code in WRITTEN_ELSEWHERE:
            return plain(getattr(thing, f"label_{self.code}"))
        name = getattr(thing, "name", "") or getattr(thing, "family", "")
        return self.texts.get(f"features.{name}") or self.texts.get(f"families.{name}", thing.label_en)

    def advice(self, check: QualityCheck) -> str:
        """Return what to tell the person who made the recording; empty on a pass."""
        if self.code in WRITTEN_ELSEWHERE or not check.topic:
            return plain(check.advice_zh if self.code == "zh" else check.advice)
        limit = "" if check.warn_limit is None else f"{check.warn_limit:g}"
        return self(f"advice.{check.topic}", limit=limit)

    def term(self, group: str, word: str) -> str:
        """Return the word for one of a vocabulary (`classes`, `sex`); a word that is in none, a cohort's own, as plain text."""
        return self.texts.get(f"{group}.{word}", plain(word).replace("_", " "))


# --- finding and loading -----------------------------------------------------------------------------------------------------------------


def available(folder: Path | None = None) -> tuple[str, ...]:
    """Return the codes of the languages there are: those shipped, then those of a site's folder.

    Raises
    ------
    ReportError
        The folder cannot be listed, or has a language that is shipped.
    """
    shipped = _codes(entry.name for entry in _SHIPPED.iterdir())
    if folder is None:
        return shipped
    try:
        own = _codes(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ReportError(f"The languages folder cannot be read: {error.strerror}.") from None
    if taken := set(own) & set(shipped):
        raise ReportError(f"The languages folder has {listed(taken)}, which is built in: change its texts by the site's wording instead.")
    return (*shipped, *own)


def load_locale(language: str, *, folder: Path | None = None, wording: Mapping[str, str] | None = None) -> Locale:
    """Load a language.

    Parameters
    ----------
    language
        One of `available(folder)`.
    folder
        Where a site keeps languages of its own, one `CODE.toml` each.
    wording
        Texts to put in place of the language's, by key.

    Raises
    ------
    InvalidValueError
        There is no such language, or `wording` has a key that is none, or a text that does not fit its place.
    ReportError
        The language's file does not fit the English one, or a text says what no report may say.
    """
    known = available(folder)
    if language not in known:
        raise InvalidValueError("language", quotable(language), known)
    locale = _loaded(language, _content(language, folder))
    return _reworded(locale, tuple(sorted(wording.items()))) if wording else locale


def _codes(names: Iterable[str]) -> tuple[str, ...]:
    stems = (name.removesuffix(".toml") for name in names if name.endswith(".toml"))
    return tuple(sorted(stem for stem in stems if _CODE.fullmatch(stem)))


def _content(language: str, folder: Path | None) -> bytes:
    shipped = _SHIPPED / f"{language}.toml"
    if folder is None or shipped.is_file():
        return shipped.read_bytes()
    return read_small(folder / f"{language}.toml", f"{language}.toml", MAX_FILE_BYTES)


@lru_cache(maxsize=16)
def _loaded(language: str, raw: bytes) -> Locale:
    """Check a file once, however many reports are made; a file that changed has other bytes."""
    return locale_of(language, raw, {} if language == REFERENCE else _reference())


@cache
def _reference() -> Mapping[str, str]:
    return _loaded(REFERENCE, _content(REFERENCE, None)).texts


# --- checking ----------------------------------------------------------------------------------------------------------------------------


def locale_of(code: str, raw: bytes, reference: Mapping[str, str]) -> Locale:
    """Make a locale from the bytes of its file.

    Parameters
    ----------
    code
        What the file is called.
    raw
        What is in it.
    reference
        The English texts, whose keys and placeholders it has to have; empty for English itself.

    Raises
    ------
    ReportError
        The file does not fit; the message names what lacks, what is too much, and which texts have other placeholders.
    """
    texts = _texts(raw, code)
    about = _about(texts, code)
    wanted = {**(reference or texts), **({} if code in WRITTEN_ELSEWHERE else _written_elsewhere())}
    faults = [*_about_faults(about, code), *_key_faults(texts, wanted, code), *_text_faults(texts, wanted)]
    if faults:
        raise ReportError(f"{code}.toml: {listed(faults, '; ')}.")
    if code not in WRITTEN_ELSEWHERE:
        forbidden.check(texts)
    return Locale(texts=MappingProxyType(texts), **about)


def flattened(tables: Mapping[str, object]) -> dict[str, object]:
    """Return what nested tables hold, by dotted path; ValueError where a path is there twice (`"a.b"` and `a.b` are one).

    Examples
    --------
    >>> flattened({"status": {"flagged": "Flagged"}, "page.number": "Page {n}"})
    {'status.flagged': 'Flagged', 'page.number': 'Page {n}'}
    """
    leaves = list(_leaves(tables))
    if twice := [path for path, times in Counter(path for path, _ in leaves).items() if times > 1]:
        raise ValueError(f"{listed(map(quotable, twice))} is there twice, in two spellings")
    return dict(leaves)


def _leaves(tables: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{path}", leaf) for path, leaf in _leaves(value))
        else:
            yield key, value


def placeholders(text: str) -> frozenset[str]:
    """Return the names that a text has in braces; ValueError where braces hold more than a name, which could reach into what is shown.

    Examples
    --------
    >>> sorted(placeholders("{n} of {whole}"))
    ['n', 'whole']
    """
    fields = [(name, bool(spec or conversion)) for _, name, spec, conversion in Formatter().parse(text) if name is not None]
    if any(more or not name.isidentifier() for name, more in fields):
        raise ValueError("braces hold more than a name")
    return frozenset(name for name, _ in fields)


def _texts(raw: bytes, code: str) -> dict[str, str]:
    try:
        leaves = flattened(parse_toml(raw, f"{code}.toml"))
    except ValueError as error:
        raise ReportError(f"{code}.toml: {error}.") from None
    if other := [key for key, value in leaves.items() if not isinstance(value, str)]:
        raise ReportError(f"{code}.toml: {listed(map(quotable, other))} is not a text in quotation marks.")
    return {key: str(value) for key, value in leaves.items()}


@cache
def _written_elsewhere() -> Mapping[str, str]:
    """Return, in English, what a language besides English and Chinese brings along."""
    families = {f"families.{name}": catalogue.get_family(name).label_en for name in catalogue.FAMILIES}
    return {**families, **{f"advice.{topic}": english.replace("{limit:g}", "{limit}") for topic, (english, _) in ADVICE.items()}}


def _about(texts: dict[str, str], code: str) -> dict[str, str]:
    """Take out of the texts what they say of their language; script and region may be part of the code."""
    about = {field: texts.pop(f"language.{field}", "") for field in _ABOUT}
    parts = _CODE.fullmatch(code)
    return {**about, **{field: part for field, part in (parts.groupdict() if parts else {}).items() if part and field in about}}


def _about_faults(about: Mapping[str, str], code: str) -> Iterator[str]:
    if about["code"] != code:
        yield f"language.code is not {code}, as the file is called"
    if not about["name"].strip() or not about["name"].isprintable():
        yield "language.name, what its speakers call it, is missing"
    if not _CODE.fullmatch("-".join(filter(None, (code.partition("-")[0], about["script"], about["region"])))):
        yield "language.script or language.region is not as BCP 47 has it (Hans, CN)"


def _key_faults(texts: Mapping[str, str], wanted: Mapping[str, str], code: str) -> Iterator[str]:
    """Say which keys lack, and which are too much."""
    plurals = _plurals(wanted)
    if lacking := [key for key in wanted if key not in texts and key not in plurals]:
        yield f"it lacks {listed(lacking)}"
    surplus = [key for key in texts if key not in wanted and key not in plurals]
    if code not in WRITTEN_ELSEWHERE:
        surplus = [key for key in surplus if not _names_feature(key)]
    if surplus:
        yield f"it has {listed(map(quotable, surplus))}, which English has not"


def _plurals(wanted: Mapping[str, str]) -> Mapping[str, str]:
    """Return the keys for a number of 1, which a language may do without, and the texts for any number, which they are like."""
    counted = (key for key, text in wanted.items() if key.endswith(_OTHER) and "{n}" in text)
    return {key.removesuffix(_OTHER) + _ONE: wanted[key] for key in counted}


def _names_feature(key: str) -> bool:
    group, _, name = key.partition(".")
    try:
        return group == "features" and bool(catalogue.get(name))
    except InvalidValueError:
        return False


def _text_faults(texts: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[str]:
    """Say which texts cannot stand where the wanted ones stand; keys that are not wanted have been told apart already."""
    plurals = _plurals(wanted)
    for key, text in texts.items():
        model = plurals.get(key) or wanted.get(key, _LABEL)
        if fault := _fault(text, model, may_lack=_NUMBER if key in plurals else frozenset()):
            yield f"{key if key in wanted else quotable(key)} {fault}"


def _fault(text: str, model: str, *, may_lack: frozenset[str]) -> str:
    """Say what keeps a text from standing in place of `model`; "" where nothing does."""
    if model.strip() and not text.strip():
        return "is empty"
    if _UNFIT.search(text):
        return "has characters that do not print"
    try:
        found, named = placeholders(text), placeholders(model)
    except ValueError:
        return "has braces that hold more than a name, or are not closed; {{ and }} stand for braces themselves"
    return "" if named - may_lack <= found <= named else f"has {_braced(found)} where {_braced(named)} is due"


# --- a site's wording --------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _reworded(locale: Locale, wording: tuple[tuple[str, str], ...]) -> Locale:
    for key, text in wording:
        if key not in locale.texts:
            near = get_close_matches(key, locale.texts, n=3)
            raise InvalidValueError("a key of the wording", quotable(key), near or f"one of reports/locales/{REFERENCE}.toml")
        if len(text) > MAX_WORDING:
            raise ReportError(f"The wording of {key} has more than {MAX_WORDING:,} characters.")
    changed = dict(wording)
    if faults := list(_text_faults(changed, locale.texts)):
        raise ReportError(f"The wording of {listed(faults, '; ')}.")
    forbidden.check(changed)
    return replace(locale, texts=MappingProxyType({**locale.texts, **changed}))


# --- words for errors --------------------------------------------------------------------------------------------------------------------


def _braced(names: frozenset[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) or "no placeholder"
