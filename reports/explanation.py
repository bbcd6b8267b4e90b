"""The report on one recording: what was answered, what moved the probability and how surely, as HTML, as PDF, or as one picture.

The one idea: what has to be known before a number is read stands before it, and a recording without an answer gets a report without a number.

References
----------
Jabbour et al. 2023, JAMA 330:2275-2284, on what explanations do not do.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clinical_ser.audio import QualityCheck
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.card import SIMULATED_STATEMENT
from clinical_ser.explain.explanation import Explanation, FamilyContribution, Move, WithoutEmbedding
from clinical_ser.screening.result import AnswerRates, ClassProbability, ScreeningResult, Share, Status
from reports import explanation_figures, rendering, wording
from reports.document import Block, Column, Document, Notice, Paragraph, Picture, Section, Table, Terms
from reports.drawing import INK, PAPER, QUIET, SMALL, Drawing, shortened
from reports.explanation_figures import spoken
from reports.locale import load_locale
from reports.marks import WIDTH
from reports.numbers import measured, percent, points, points_range, signed
from reports.wording import name, number, plain, several, share, spaced

SIMULATED = "SIMULATED MODEL"
SIMULATED_WORDS = "The model learned from simulated speech. Its answers show what a report looks like; they mean nothing for a real person."
NO_DIAGNOSIS = "Screening aid, never a diagnosis."
PERSONAL = "Personal data: keep it as you keep the recording."
STATUS = {
    Status.FLAGGED: "flagged",
    Status.NOT_FLAGGED: "not flagged",
    Status.CLASSIFIED: "classified",
    Status.INDETERMINATE: "cannot tell",
    Status.NOT_USABLE: "recording not usable",
}
_LIMITS = (
    "A contribution says what changed the score. It names no cause: it is no evidence that the person speaks as they do because they are ill.",
    "An explanation does not make a wrong model right. Clinicians who were shown a biased model's answers judged worse, and explanations shown "
    "with the answers did not undo it (Jabbour et al. 2023, JAMA 330:2275). Where the answer contradicts what you know of the person, trust what "
    "you know.",
    "Intervals come from refits of the model on other people. They say how much an explanation depends on who happened to be in training; they "
    "are no range for this person.",
    "A feature that could not be measured is not shown, and the model answered with the usual value in its place.",
)
_PICTURE_GAP, _PICTURE_MARGIN = 44.0, 20.0


def html_report(result: ScreeningResult) -> str:
    """Return the report as one HTML file that loads and runs nothing.

    Parameters
    ----------
    result
        Of one screening. Its texts may be anyone's and are escaped.

    Returns
    -------
    str
        The same result gives the same text.
    """
    return rendering.html(document_of(result))


def pdf_report(result: ScreeningResult, *, font_paths: Sequence[Path] = (), system_fonts: bool = True) -> bytes:
    """Return the report as tagged PDF, made in PDF/UA-1 mode.

    Parameters
    ----------
    result
        Of one screening.
    font_paths
        Folders with further fonts. Latin, Greek, Cyrillic and Hebrew need none.
    system_fonts
        Whether fonts that are installed may be used for characters that the built-in ones lack.

    Returns
    -------
    bytes
        The same result and fonts give the same bytes.

    Raises
    ------
    ReportError
        If a character has no font; the message says what to install.
    """
    return rendering.pdf(document_of(result), font_paths=font_paths, system_fonts=system_fonts)


def svg_picture(result: ScreeningResult) -> str:
    """Return families, and under them the timeline if there is one, as one SVG that stands alone.

    Parameters
    ----------
    result
        Of one screening.

    Returns
    -------
    str
        On white paper, with the words that must not be left behind.

    Raises
    ------
    InvalidValueError
        If the result has no explanation.
    """
    explanation = result.explanation
    if explanation is None:
        raise InvalidValueError("result", "one without an explanation", "one of a usable recording")
    pictures = [explanation_figures.families(explanation)]
    pictures += [explanation_figures.timeline(result.timeline)] if result.timeline and result.timeline.windows else []
    warning = SIMULATED_WORDS if result.model.simulated else ""
    title = f"Screening result: {_answer(result)}. {NO_DIAGNOSIS}"
    finding = " ".join(filter(None, [warning, *(picture.finding for picture in pictures)]))
    return _stacked(result, pictures).svg("explanation", title, finding, rendering.HTML_FONT)


def _stacked(result: ScreeningResult, pictures: Sequence[Picture]) -> Drawing:
    """Draw pictures below each other, each under its title, with the answer above and what must not be left behind below."""
    head = 58.0
    height = head + sum(_PICTURE_GAP + picture.drawing.height for picture in pictures) + 40
    page = Drawing(WIDTH + 2 * _PICTURE_MARGIN, height)
    page.box(0, 0, page.width, height, fill=PAPER)
    page.text(_PICTURE_MARGIN, 34, shortened(f"Screening result: {_answer(result)}", WIDTH, 17, bold=True), size=17, bold=True)
    learned = ", which learned from simulated speech" if result.model.simulated else ""
    group = result.explanation.reference if result.explanation else None
    people = f"; compared with {plain(group.group)}{f' ({group.subjects} people)' if group.subjects else ''}" if group else ""
    model = f"Model {plain(result.model.name)} {plain(result.model.version)}{learned}{people}"
    page.text(_PICTURE_MARGIN, 54, shortened(model, WIDTH, SMALL), size=SMALL, fill=QUIET)
    y = head
    for picture in pictures:
        page.text(_PICTURE_MARGIN, y + 26, shortened(plain(picture.title), WIDTH, bold=True), bold=True)
        page.place(picture.drawing, _PICTURE_MARGIN, y + _PICTURE_GAP)
        y += _PICTURE_GAP + picture.drawing.height
    mark = f"{SIMULATED}: its answers mean nothing for a real person. " if result.model.simulated else ""
    page.text(_PICTURE_MARGIN, height - 16, f"{mark}{NO_DIAGNOSIS} {PERSONAL}", size=SMALL, fill=INK, bold=bool(mark))
    return page


def document_of(result: ScreeningResult) -> Document:
    """Return the contents of the report."""
    explanation = result.explanation
    sections = [Section("Answer", tuple(_answered(result)))]
    if explanation is not None:
        sections += [
            Section("What moved the probability", tuple(_families(explanation))),
            Section("Features against the reference group", tuple(_features(explanation))),
            Section("Whom it was compared with", tuple(_reference(result, explanation))),
            Section("When in the recording", tuple(_timeline(result))),
            Section("The learned pattern", tuple(_embedding(result, explanation))),
            Section("For engineers: what would change the answer", tuple(_moves(explanation))),
            Section("What this cannot tell", (*map(Paragraph, _LIMITS),)),
        ]
    sections.append(Section("Recording and model", tuple(_identity(result))))
    return Document(
        title=f"Screening result: {_answer(result)}",
        subtitle=f"Task {spoken(result.task)}, a recording of {result.recording.duration_s:.0f} s",
        notices=tuple(_notices(result)),
        sections=tuple(section for section in sections if section.blocks),
    )


def _answer(result: ScreeningResult) -> str:
    if result.status is Status.CLASSIFIED and result.probability is not None:
        return f"most similar to {spoken(result.probability.label)}"
    return STATUS[result.status]


def _status_words(status: str) -> str:
    """Return what another answer than the result's own is called; of several classes it names the class too."""
    return STATUS[Status(status)] if status in set(Status) else spaced(status).lower()


def _notices(result: ScreeningResult) -> Iterable[Notice]:
    """Yield what has to be read before any number."""
    if result.model.simulated:
        yield Notice("fail", SIMULATED, (SIMULATED_WORDS,))
    yield Notice("calm", NO_DIAGNOSIS, (plain(result.intended_use), PERSONAL))
    said = (notice.replace(SIMULATED_STATEMENT, "").strip() if result.model.simulated else notice for notice in result.notices)
    if told := tuple(plain(notice) for notice in said if notice):
        yield Notice("warn", "To be known before this result is used", told)
    without = result.explanation.without_embedding if result.explanation else None
    if without is not None and without.disagrees:
        yield Notice("warn", "The answer rests on the learned pattern", (_disagreement(result, without),))


def _disagreement(result: ScreeningResult, without: WithoutEmbedding) -> str:
    return (
        f"With the learned pattern the answer is “{_answer(result)}”, without it “{_status_words(without.status)}”. What the pattern hears has no "
        "name; be careful with this answer."
    )


# --- The answer ---------------------------------------------------------------------------------------------------------------------------


def _answered(result: ScreeningResult) -> Iterable[Block]:
    refused = result.status is Status.NOT_USABLE
    yield Notice("warn" if refused else "calm", spaced(STATUS[result.status]), (plain(result.summary),))
    advice = tuple(plain(check.advice) for check in result.quality.checks if check.advice)
    if refused:
        yield Paragraph("There is no probability, and there are no contributions: what cannot be heard well enough is not judged.")
        yield from _faults(result)
        return
    yield Terms(tuple(_answer_terms(result)))
    if advice:
        yield Notice("warn", "Quality of the recording", advice)
        yield from _faults(result)
    if result.answers:
        yield _rates(result.answers)
    if result.explanation is None:
        yield Paragraph("This result came without an explanation.")


def _faults(result: ScreeningResult) -> Iterable[Block]:
    say = load_locale("en")
    if faults := [check for check in result.quality.checks if check.verdict != "pass"]:
        yield Terms(tuple((say.term("checks", check.name), _found(check)) for check in faults))


def _found(check: QualityCheck) -> str:
    """Return what was measured and what a good recording reaches, which the advice asks for; the gate's own limit is lower."""
    limit = check.fail_limit if check.warn_limit is None else check.warn_limit
    if check.value is None or limit is None:
        return plain(check.advice) or "failed"
    return f"measured {measured(check.value, check.unit)}, recommended {measured(limit, check.unit)}"


def _answer_terms(result: ScreeningResult) -> Iterable[tuple[str, str]]:
    if result.probability is not None:
        yield f"Probability of {spoken(result.probability.label)}", _probability(result.probability)
    for one in sorted(result.classes, key=lambda one: -one.value):
        if result.probability is None or one.label != result.probability.label:
            yield f"Probability of {spoken(one.label)}", _value(one)
    if result.prediction_coverage is not None and len(result.classes) > 2:
        members = ", ".join(map(spoken, result.prediction_set)) or "none of the classes"
        yield "Could be", f"{members}: sets like this one hold the true class for {percent(result.prediction_coverage)} of people of each class"
    if point := result.operating_point:
        note = f". {plain(point.note)}" if point.note else ""
        yield "Threshold", f"a probability of {percent(point.probability)}; an answer also needs the prediction set to rule one class out{note}"


def _probability(one: ClassProbability) -> str:
    return f"{_value(one)[:-1]}; stated for a prevalence of {share(one.prevalence)})"


def _value(one: ClassProbability) -> str:
    interval = f"{100 * one.interval.level:g} % interval {percent(one.interval.low)} to {percent(one.interval.high)}"
    return f"{percent(one.value)} ({interval})"


def _rates(answers: Sequence[AnswerRates]) -> Table:
    columns = [Column("People who are"), Column("Flagged"), Column("Not flagged"), Column("Cannot tell")]
    rows = [[spoken(one.label), *map(_out_of_fold, (one.flagged, one.not_flagged, one.indeterminate))] for one in answers]
    return Table.of("What people of each class were answered, whom the model had not heard: share [95 % interval]", columns, rows)


def _out_of_fold(rate: Share) -> str:
    if rate.value is None:
        return wording.NOT_DEFINED
    interval = wording.NO_INTERVAL if rate.low is None or rate.high is None else f"{percent(rate.low)} to {percent(rate.high)}"
    return f"{percent(rate.value)} [{interval}]"


# --- What moved it ------------------------------------------------------------------------------------------------------------------------


def _families(explanation: Explanation) -> Iterable[Block]:
    driver = explanation.main_driver
    yield Paragraph(
        f"The main driver is {name(driver.label_en)}: it comes first, its interval does not cross zero, and it comes first in "
        f"{percent(driver.rank_agreement)} of refits of the model on other people."
        if driver
        else "No family may be called the main driver: none is first surely enough when the model is refitted on other people."
    )
    yield explanation_figures.families(explanation)
    yield Terms(tuple((plain(family.label_en), _said(family)) for family in explanation.families))


def _said(family: FamilyContribution) -> str:
    """Return what stands out in a family, and what that did to the probability."""
    effect = family.probability
    moved = "changes the probability by" if not effect.value else "raises the probability by" if effect.value > 0 else "lowers the probability by"
    size = points(abs(effect.value)).replace("+", "")
    interval = f"95 % interval {points_range(effect.low, effect.high)}"
    if not family.stable:
        return f"{plain(family.sentence.en)} What it does to the probability is not sure: {points(effect.value)} points of percent ({interval})."
    return f"{plain(family.sentence.en)} It {moved} {size} points of percent ({interval})."


def _features(explanation: Explanation) -> Iterable[Block]:
    drawn = explanation_figures.features(explanation)
    shown = [feature for family in explanation.families for feature in family.features]
    if not shown:
        return
    yield drawn or explanation_figures.features_table(explanation)
    if drawn is None:
        yield Paragraph("None of these features can be compared with the reference group.")
    if bare := [feature for feature in shown if feature.band is None and drawn]:
        yield Paragraph(f"Not drawn, since the group's values are not known: {', '.join(name(feature.label_en) for feature in bare)}.")
    meanings = [f"{feature.meaning_en}{f' Published: {feature.published}.' if feature.published else ''}" for feature in shown]
    rows = [[feature.label_en, meaning] for feature, meaning in zip(shown, meanings, strict=True)]
    yield Table.of("What these features mean", [Column("Feature"), Column("Meaning", wide=True)], rows)


def _reference(result: ScreeningResult, explanation: Explanation) -> Iterable[Block]:
    group, context = explanation.reference, result.context
    people = several(group.subjects, "person").replace("persons", "people") if group.subjects else "no group was large enough"
    known = {"sex": context.sex, "age": context.age, "task": context.task, "device": context.device}
    told = ", ".join(f"{what} {plain(f'{value:g}' if isinstance(value, float) else value)}" for what, value in known.items() if value is not None)
    unmatched = ", ".join(map(name, group.unmatched))
    terms = [
        ("Compared with", f"{name(group.group)} ({people})"),
        ("Known of the person", told or "nothing was said of sex, age, task or device"),
        *([("Could not be matched", f"{unmatched}: too few people like that were recorded")] if unmatched else []),
        ("Mean probability there", percent(explanation.base_probability)),
    ]
    if explanation.relative_to_baseline:
        terms.append(("Own baseline", f"values are differences from {several(context.baseline_recordings, 'earlier recording')} of the same person"))
    yield Terms(tuple(terms))
    yield Paragraph("The group chooses what the recording is compared with. It never changes the probability.")


def _timeline(result: ScreeningResult) -> Iterable[Block]:
    if result.timeline is None or not result.timeline.windows:
        return
    yield Paragraph(
        "Each window was left out in turn, and the probability computed anew. Windows at random places change it too; only what goes beyond that "
        "stands out. Windows do not add up to the probability."
    )
    yield Paragraph(explanation_figures.outstanding(result.timeline))
    yield explanation_figures.timeline(result.timeline)


def _embedding(result: ScreeningResult, explanation: Explanation) -> Iterable[Block]:
    without = explanation.without_embedding
    if without is None:
        return
    r2 = without.reproduced_r2
    interval = f"95 % interval {number(r2.low)} to {number(r2.high)}; {several(without.reproduced_subjects, 'subject')}"
    yield Paragraph(
        "Part of the answer comes from a pattern that a network learned. Its parts have no name, so it is shown as one family. Two things help to "
        "judge it."
    )
    told = (
        f"R² {number(r2.value)} ({interval}): the share of its variation that pitch, timing, loudness, voice quality and articulation reproduce. The "
        "rest has no name."
    )
    yield Terms((("How much of it named features tell", told), ("The answer without it", _without(explanation, without))))
    if without.disagrees:
        yield Notice("warn", "The two answers disagree", (_disagreement(result, without),))


def _without(explanation: Explanation, without: WithoutEmbedding) -> str:
    probability = without.probability
    interval = f"{percent(max(probability.low, 0.0))} to {percent(min(probability.high, 1.0))}"
    return (
        f"{_status_words(without.status)}, with a probability of {percent(probability.value)} (95 % interval {interval}), against "
        f"{percent(explanation.probability)} with it"
    )


def _moves(explanation: Explanation) -> Iterable[Block]:
    if not explanation.moves:
        return
    labels = {family.family: family.label_en for family in explanation.families}
    columns = [
        Column("Family, moved alone"),
        Column("Log-odds", "number"),
        Column("Answer then", wide=True),
        Column("Percentile now", "count"),
        Column("Percentile then", "count"),
        Column("Seen in the group"),
    ]
    yield Paragraph("How far one family alone would have to move for another answer. It describes the model; it is no advice to anyone.")
    rows = [[labels.get(move.family, spaced(move.family)), *_move_cells(move)] for move in explanation.moves]
    note = "Seen in the group: at least 5 % of the reference group lie as far out. Single features are not moved: they move together."
    yield Table.of("What would change the answer", columns, rows, note)


def _move_cells(move: Move) -> list[str]:
    seen = "yes" if move.within_reference else "no"
    return [
        signed(move.log_odds),
        _status_words(" ".join(filter(None, (move.to_status, move.to_class)))),
        _place(move.percentile_now),
        _place(move.percentile_then),
        seen,
    ]


def _place(percentile: float | None) -> str:
    """Write where a family's part stands, in percent; it comes from a fitted normal distribution, so its ends are no more than ends."""
    if percentile is None:
        return wording.NOT_DEFINED
    return "< 1" if percentile < 1 else "> 99" if percentile > 99 else f"{percentile:.0f}"


# --- What was asked -----------------------------------------------------------------------------------------------------------------------


def _identity(result: ScreeningResult) -> Iterable[Block]:
    model, quality = result.model, result.quality
    reasons = dict.fromkeys(quality.switched_off.values())
    off = "; ".join(f"{', '.join(name(what) for what, of in quality.switched_off.items() if of == why)} ({name(why)})" for why in reasons)
    missing = "; ".join(f"{name(one.name)}: {name(one.reason)}" for one in result.missing)
    terms = [
        ("Recording", f"{result.recording.duration_s:.1f} s, SHA-256 of its samples {plain(result.recording.sha256)}"),
        ("Quality", {"pass": "good", "warn": "usable, with warnings", "fail": "not usable"}[quality.verdict]),
        ("Switched off for quality", off or "nothing"),
        *([("Not measured", missing)] if missing else []),
        ("Model", f"{name(model.name)}, version {name(model.version)}, signature {model.signature}"),
        ("Digest of the model", plain(model.digest)),
        ("Software", "; ".join(f"{name(what)} {name(version)}" for what, version in sorted(result.software.items()))),
    ]
    yield Terms(tuple(terms))
