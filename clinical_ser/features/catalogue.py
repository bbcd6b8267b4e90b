"""What every feature is: engine, family, unit, plain meaning in two languages, reference, source, caveats.

The texts are data (`descriptions/*.toml`). Features of openSMILE are a contour under a statistic, so most of their entries are composed
from the two; a hand-written entry is used as it stands. Run as a module, this file prints `docs/features.md`.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from clinical_ser.errors import InvalidValueError

FAMILIES = ("pitch", "timing", "loudness", "voice_quality", "articulation", "embedding")
"""The units of explanation, in the order in which they are shown."""
ENGINES: Mapping[str, str] = {"egemaps": "opensmile", "praat": "praat", "timing": "timing", "compare": "opensmile"}
"""Feature set to the engine that computes it, in the order of a feature vector."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Family:
    """A group of features that is explained as one."""

    name: str
    label_en: str
    label_zh: str
    meaning_en: str
    meaning_zh: str


@dataclass(frozen=True)
class Caveat:
    """Something to bear in mind when a value is read."""

    en: str
    zh: str


@dataclass(frozen=True)
class ReferenceRange:
    """A published reference: context for a reader, never a cut-off. `low` equals `high` where the source gives one typical value."""

    low: float
    high: float
    statistic: str
    source: str
    condition: str
    """What was recorded: `speech` or `sustained vowel`. A range says nothing about a recording of the other kind."""


@dataclass(frozen=True)
class FeatureSpec:
    """One feature, for people and programs. Where `reference` is empty, a local reference group is the only honest one."""

    name: str
    engine: str
    set: str
    family: str
    unit: str
    """UCUM-like; `st` is a semitone, `1` a pure number, `a.u.` openSMILE's own scale."""
    label_en: str
    label_zh: str
    meaning_en: str
    meaning_zh: str
    higher_en: str
    higher_zh: str
    lower_en: str
    lower_zh: str
    sources: tuple[str, ...]
    caveats: tuple[Caveat, ...] = ()
    reference: Mapping[str, ReferenceRange] = field(default_factory=dict, hash=False)
    """By sex: `female`, `male`, or `any`."""
    readable: bool = True
    """False for the spread over the mean of something whose mean may be near zero, or negative: such a number says nothing to a reader."""
    voiced_only: bool = False
    """Taken over voiced frames: an exact 0 from openSMILE means there were none, and becomes missing."""


def get(name: str) -> FeatureSpec:
    """Return what is known of a feature.

    Raises
    ------
    InvalidValueError
        No feature has this name; the message lists the most similar ones.

    Examples
    --------
    >>> get("timing.pause_mean_s").lower_en
    'shorter pauses'
    """
    if name in _described():
        return _described()[name]
    if name in _compare_entries():
        return _compare_spec(name)
    if _DIMENSION.fullmatch(name):
        return _dimension_spec(name)
    known = [*_described(), *_compare_entries()]
    raise InvalidValueError("feature", name, get_close_matches(name, known, n=3) or "a name that docs/features.md lists")


def names(*sets: str) -> tuple[str, ...]:
    """Return the names of the features in these sets, set by set, each in its engine's order.

    Raises
    ------
    InvalidValueError
        An unknown set.

    Examples
    --------
    >>> len(names("egemaps")), len(names("compare"))
    (88, 6373)
    """
    for name in sets:
        if name not in ENGINES:
            raise InvalidValueError("feature set", name, ENGINES)
    return tuple(feature for name in sets for feature in _names_of(name))


def by_family(feature_names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group features by family: families in the order of `FAMILIES`, those without a feature left out, features in the order given.

    Raises
    ------
    InvalidValueError
        A name that is no feature's.
    """
    groups: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for name in feature_names:
        groups[get(name).family].append(name)
    return {family: tuple(members) for family, members in groups.items() if members}


def get_family(name: str) -> Family:
    """Return a family's texts; InvalidValueError lists the families there are."""
    if name not in FAMILIES:
        raise InvalidValueError("family", name, FAMILIES)
    return next(Family(**entry) for entry in _toml("shared")["families"] if entry["name"] == name)


# --- reading the descriptions ------------------------------------------------------------------------------------------------------------


@cache
def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("clinical_ser.features") / "descriptions" / f"{name}.toml").read_text("utf-8"))


@cache
def _names_of(feature_set: str) -> tuple[str, ...]:
    if feature_set == "compare":
        return tuple(_compare_entries())
    return tuple(name for name, spec in _described().items() if spec.set == feature_set)


@cache
def _described() -> dict[str, FeatureSpec]:
    """Every feature but ComParE's, in catalogue order."""
    specs = [*_egemaps_specs(), *_written("praat").values(), *_written("timing").values()]
    return {spec.name: spec for spec in specs}


def _written(feature_set: str) -> dict[str, FeatureSpec]:
    """Entries that are written out in a set's file."""
    file = _toml(feature_set)
    return {entry["name"]: _spec(**{"sources": file.get("sources", ()), **entry}) for entry in file["features"]}


def _spec(
    *, name: str, sources: Sequence[str], caveats: Sequence[str] = (), reference: Mapping[str, Mapping[str, Any]] | None = None, **texts: Any
) -> FeatureSpec:
    """Make an entry, putting the shared texts in place of the keys that name them."""
    shared = _toml("shared")
    feature_set = name.partition(".")[0]
    return FeatureSpec(
        name=name,
        set=feature_set,
        engine=ENGINES[feature_set],
        sources=tuple(shared["sources"][key] for key in sources),
        caveats=tuple(Caveat(**shared["caveats"][key]) for key in caveats),
        reference={sex: ReferenceRange(**{**entry, "source": shared["sources"][entry["source"]]}) for sex, entry in (reference or {}).items()},
        **texts,
    )


# --- eGeMAPS: a contour, over some frames, under a statistic -----------------------------------------------------------------------------

_OVER_VOICED = re.compile(r"(?P<start>.*[a-z1-4])V(?P<band>\d+-\d+)?")
"""`slopeV0-500` is the contour `slope0-500` over voiced frames alone."""


def _egemaps_specs() -> Iterator[FeatureSpec]:
    written = _written("egemaps")
    for own_name in _toml("egemaps")["names"]:
        name = f"egemaps.{own_name}"
        yield written[name] if name in written else _egemaps_spec(own_name)


def _egemaps_spec(own_name: str) -> FeatureSpec:
    """Compose an entry from `F1frequency_sma3nz_amean`: contour, smoothing (`nz`: unvoiced frames left out), statistic."""
    file = _toml("egemaps")
    measure, smoothing, statistic_key = own_name.split("_")
    contour_key, frames_key = _contour_and_frames(measure, smoothing)
    contour, frames, statistics = file["contours"][contour_key], file["frames"][frames_key], file["statistics"]
    sign = contour.get("mean_sign", "positive")
    statistic = statistics.get(f"{statistic_key}:{sign}", statistics[statistic_key])
    # "in voiced sounds" is said only where the same contour is also taken over other frames.
    where = frames if contour_key != measure else file["frames"]["all"]
    words = {
        **{key: value for key, value in contour.items() if isinstance(value, str)},
        **{f"frames_{language}": frames[language] for language in ("en", "zh")},
        **{f"where_{language}": where[f"where_{language}"] for language in ("en", "zh")},
    }
    return _spec(
        name=f"egemaps.{own_name}",
        family=contour["family"],
        unit=statistic["unit"].format(**words),
        **{
            f"{text}_{language}": statistic[f"{text}_{language}"].format(**words)
            for text in ("label", "higher", "lower")
            for language in ("en", "zh")
        },
        meaning_en=f"{contour['about_en']} {statistic['text_en'].format(**words)}",
        meaning_zh=contour["about_zh"] + statistic["text_zh"].format(**words),
        sources=file["sources"],
        caveats=[*statistic.get("caveats", ()), *contour["caveats"]],
        readable=statistic_key != "stddevNorm" or sign == "positive",
        voiced_only=frames_key == "voiced",
    )


def _contour_and_frames(measure: str, smoothing: str) -> tuple[str, str]:
    if found := _OVER_VOICED.fullmatch(measure):
        return found["start"] + (found["band"] or ""), "voiced"
    return measure, "voiced" if smoothing == "sma3nz" else "all"


# --- ComParE: blocks of contours, every contour of a block under all its statistics ------------------------------------------------------


@dataclass(frozen=True)
class _Contour:
    """A ComParE contour, or its rate of change (`_de`)."""

    own_name: str
    family: str
    short_en: str
    short_zh: str


@dataclass(frozen=True)
class _Entry:
    """A ComParE feature before its texts are put together: 6373 names are often asked for, 6373 descriptions seldom."""

    contour: _Contour
    statistic: str
    family: str


@cache
def _compare_entries() -> dict[str, _Entry]:
    return {
        f"compare.{contour.own_name}_{statistic}": _Entry(contour, statistic, block.get("family", contour.family))
        for block in _toml("compare")["blocks"]
        for group in block["groups"]
        for contour in _compare_contours(group)
        for statistic in block["statistics"]
    }


@cache
def _compare_contours(group: str) -> tuple[_Contour, ...]:
    """Return the contours of a group; `energy_de` names the rates of change of `energy`, and a contour's name the group of it alone."""
    file, own_group = _toml("compare"), group.removesuffix("_de")
    is_change = own_group != group
    change = file["change"] if is_change else {"short_en": "{short_en}", "short_zh": "{short_zh}"}
    contours = []
    for key, entry in file["contours"].items():
        if own_group not in (key, entry["group"]):
            continue
        first, last = entry.get("indices", (0, 0))
        for n in range(first, last + 1):
            shorts = {language: entry[f"short_{language}"].format(n=n) for language in ("en", "zh")}
            short = {key: text.format(short_en=shorts["en"], short_zh=shorts["zh"]) for key, text in change.items()}
            index = f"[{n}]" if "indices" in entry else ""
            contours.append(_Contour(f"{key}_sma{'_de' if is_change else ''}{index}", entry["family"], **short))
    return tuple(contours)


@cache
def _compare_spec(name: str) -> FeatureSpec:
    file, entry = _toml("compare"), _compare_entries()[name]
    contour, statistic = entry.contour, file["statistics"][entry.statistic]
    short_en = contour.short_en[0].upper() + contour.short_en[1:]
    return _spec(
        name=name,
        family=entry.family,
        unit="a.u.",
        label_en=f"{short_en}: {statistic['en']}",
        label_zh=f"{contour.short_zh}：{statistic['zh']}",
        meaning_en=f"{short_en} over the recording, summed up by its {statistic['en']}.",
        meaning_zh=f"{contour.short_zh}在整段录音中的{statistic['zh']}。",
        higher_en="higher value",
        higher_zh="数值更高",
        lower_en="lower value",
        lower_zh="数值更低",
        sources=file["sources"],
        caveats=file["caveats"],
        voiced_only=contour.own_name.startswith(("F0final", "jitter", "shimmer", "logHNR")) and entry.statistic != "ff0_nnz",
    )


# --- Embeddings: dimensions without a meaning of their own --------------------------------------------------------------------------------

_DIMENSION = re.compile(r"embedding\.[a-z0-9][a-z0-9_-]{0,63}\.[0-9]{1,5}")
"""`embedding.ENCODER.NUMBER`."""


@cache
def _dimension_spec(name: str) -> FeatureSpec:
    """Describe a dimension by its family: nothing else can be said of one, and an explanation never shows one alone."""
    family = get_family("embedding")
    return FeatureSpec(
        name=name,
        engine="encoder",
        set=name.rpartition(".")[0],
        family="embedding",
        unit="1",
        label_en=family.label_en,
        label_zh=family.label_zh,
        meaning_en=family.meaning_en,
        meaning_zh=family.meaning_zh,
        higher_en="higher value",
        higher_zh="数值更高",
        lower_en="lower value",
        lower_zh="数值更低",
        sources=(),
    )


# --- docs/features.md --------------------------------------------------------------------------------------------------------------------

_INTRODUCTION = """\
# Features

Made from the catalogue by `python -m clinical_ser.features.catalogue`; change `clinical_ser/features/descriptions/` and make it again.

A feature belongs to one engine, and values of two engines are never mixed, under one name or one reference range: on the same signal openSMILE's
HNR was -1.4 dB and Praat's 17.5 dB. A published reference stands here only where a source gives one for the engine and the kind of recording; it
is context, not a cut-off. Everything else is read against a local reference group.

What could not be measured is missing with a reason, never 0. A recording over two minutes is given to openSMILE in equal parts, and its
openSMILE features are the means over these parts, weighted by voiced or unvoiced time where only such frames count: one call counts
at most 1000 voiced segments, so that over a whole interview `VoicedSegmentsPerSec` would come out too low.

Units: `st` semitone, `1` pure number, `us` microsecond, `a.u.` openSMILE's own scale. The last two columns give the numbers of the notes
and sources below.
"""


def document() -> str:
    """Write the catalogue as Markdown; the same text for the same catalogue."""
    sets = {"egemaps": "eGeMAPSv02 (openSMILE)", "praat": "Praat", "timing": "Timing"}
    specs = [get(name) for name in names(*sets)]
    notes = _numbered(caveat for spec in specs for caveat in spec.caveats)
    sources = _numbered(source for spec in specs for source in (*spec.sources, *(limits.source for limits in spec.reference.values())))
    sections = [_INTRODUCTION, _document_families()]
    for feature_set, title in sets.items():
        lines = _document_set(feature_set, notes, sources)
        sections.append("\n".join([f"## {title}, {len(names(feature_set))} features", "", *lines]))
    sections.append("\n".join(["## Bear in mind", "", *(f"{number}. {note.en} {note.zh}" for note, number in notes.items()), ""]))
    sections.append("\n".join(["## Sources", "", *(f"{number}. {source}" for source, number in sources.items()), ""]))
    sections.append(_document_compare())
    return "\n".join(sections)


def _numbered(items: Iterable[_Item]) -> dict[_Item, int]:
    """Give the distinct items numbers by first appearance, from 1."""
    return {item: number for number, item in enumerate(dict.fromkeys(items), start=1)}


def _document_families() -> str:
    rows = [f"| `{item.name}` | {item.label_en} / {item.label_zh} | {item.meaning_en} {item.meaning_zh} |" for item in map(get_family, FAMILIES)]
    return "\n".join(["## Families", "", "| family | label | meaning |", "| --- | --- | --- |", *rows, ""])


def _document_set(feature_set: str, notes: Mapping[Caveat, int], sources: Mapping[str, int]) -> Iterator[str]:
    for family, members in by_family(names(feature_set)).items():
        yield f"### {get_family(family).label_en}\n"
        yield "| feature | label | unit | meaning | higher / lower | reference | bear in mind | source |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        yield from (_document_row(get(name), notes, sources) for name in members)
        yield ""


def _document_row(spec: FeatureSpec, notes: Mapping[Caveat, int], sources: Mapping[str, int]) -> str:
    references = [
        f"{sex}: {_range_text(limits)} {spec.unit}, {limits.statistic} ({limits.condition}; source {sources[limits.source]})"
        for sex, limits in spec.reference.items()
    ]
    cells = (
        f"`{spec.name}`",
        f"{spec.label_en}<br>{spec.label_zh}",
        spec.unit,
        f"{spec.meaning_en}<br>{spec.meaning_zh}",
        f"{spec.higher_en} / {spec.lower_en}<br>{spec.higher_zh} / {spec.lower_zh}",
        "<br>".join(references) or "local",
        ", ".join(str(notes[caveat]) for caveat in spec.caveats),
        ", ".join(str(sources[source]) for source in spec.sources),
    )
    return f"| {' | '.join(cells)} |"


def _range_text(limits: ReferenceRange) -> str:
    return f"{limits.low:g}" if limits.low == limits.high else f"{limits.low:g} to {limits.high:g}"


def _document_compare() -> str:
    file = _toml("compare")
    contours = [
        f"| `{key}` | {entry['group']} | {entry['family']} | {entry['short_en'].format(n='n')} / {entry['short_zh'].format(n='n')} |"
        for key, entry in file["contours"].items()
    ]
    statistics = [f"| `{key}` | {entry['en']} / {entry['zh']} |" for key, entry in file["statistics"].items()]
    blocks = [f"- {', '.join(block['groups'])}: {', '.join(block['statistics'])}" for block in file["blocks"]]
    return "\n".join(
        [
            "## ComParE 2016 (openSMILE), 6373 features",
            "",
            "Optional, for models. A name is `compare.CONTOUR_sma_STATISTIC`, with `_de` for the rate of change of a contour.",
            "",
            "| contour | group | family | label |\n| --- | --- | --- | --- |",
            *contours,
            "",
            "| statistic | label |\n| --- | --- |",
            *statistics,
            "",
            "Which statistics are taken of which group of contours (`F0final` alone: its family is timing there):",
            "",
            *blocks,
            "",
            f"Source: {get(names('compare')[0]).sources[0]}.",
        ]
    )


if __name__ == "__main__":
    print(document())
