"""The cohort report: everything an evaluation found, in a reviewer's order, as one HTML file or as PDF.

The one idea: this file only says what stands where and in which words; how it looks is `rendering`'s, and both outputs are made from one document.

References
----------
Collins et al. 2024, TRIPOD+AI, BMJ 385:e078378. Bossuyt et al. 2015, STARD 2015, BMJ 351:h5527.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clinical_ser.cohorts.tasks import Task
from clinical_ser.evaluation.evidence import Comparison, Evidence
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.leaks import LeakFinding
from clinical_ser.evaluation.planning import Reach
from reports import cohort_explanation, figures, rendering, rows, wording
from reports.document import BESIDE, Block, Column, Document, Notice, Paragraph, Picture, Plate, Section, Table, Terms
from reports.flow import flow
from reports.wording import bounds, count, level, name, number, plain, said, several, share, spaced

INTENDED_USE = "Screening aid for trained health workers; never a diagnosis. The figures describe groups of people, not any one person."
SIMULATED = "SIMULATED SPEECH"
ORIGINS = {
    "out_of_fold": "Out of fold: the people that the model learned from, each answered by a model that never heard them. It shows what to expect "
    "among people like these; it is no external validation.",
    "external": "External: people of another cohort than the one that the model learned from.",
}
VERDICTS = {"fail": "FAILED", "warn": "WARNING", "not_checked": "not checked", "pass": "passed"}
"""In the order of the report."""
FOREST_FIGURES = ("auroc", "uar", "accuracy", "sensitivity", "specificity", "brier", "deferred")
"""Drawn by group, where the groups have them."""
_DISCRIMINATION = ("auroc", "auprc", "prevalence", "sensitivity", "specificity", "uar", "accuracy", "f1_macro", "f1_weighted", "recall")
_BRIER_PARTS = ("brier_reliability", "brier_resolution", "brier_uncertainty", "brier_skill")
_CALIBRATION = ("calibration_intercept", "calibration_slope", "observed_to_expected", "ece_debiased", "ece_smooth", "brier", *_BRIER_PARTS)
_DECISION = ("ppv", "npv")
_RAISED_BY_CHANCE = ("ece_smooth", "brier_reliability")
WITHHELD = "withheld"
"""In place of a count that would tell who the few people of a group are."""
NOT_DRAWN = "A curve that is not defined for these recordings, because a class has too few or none, is not drawn."


def html_report(evidence: Evidence) -> str:
    """Return the report as one HTML file: no script, nothing loaded from elsewhere, and a content security policy that holds it to that.

    Parameters
    ----------
    evidence
        What an evaluation found. Its texts (names of classes, groups, models) may be anyone's and are escaped.

    Returns
    -------
    str
        The same evidence gives the same text.
    """
    return rendering.html(document_of(evidence))


def pdf_report(evidence: Evidence, *, font_paths: Sequence[Path] = (), system_fonts: bool = True) -> bytes:
    """Return the report as tagged PDF, made in PDF/UA-1 mode.

    Parameters
    ----------
    evidence
        What an evaluation found.
    font_paths
        Folders with further fonts. Latin, Greek, Cyrillic and Hebrew need none.
    system_fonts
        Whether fonts that are installed may be used for characters that the built-in ones lack.

    Returns
    -------
    bytes
        The same evidence and fonts give the same bytes.

    Raises
    ------
    ReportError
        If a character has no font; the message says what to install.
    """
    return rendering.pdf(document_of(evidence), font_paths=font_paths, system_fonts=system_fonts)


def document_of(evidence: Evidence) -> Document:
    """Return the contents of the report."""
    model = evidence.model
    sections = [
        Section("What was evaluated", tuple(_what(evidence))),
        Section("Was the test a test? Leak checks", tuple(_leaks(evidence))),
        Section("Release gates", tuple(_gates(evidence))),
        Section("Flow of recordings", tuple(_flow(evidence))),
        Section("Discrimination", tuple(_discrimination(evidence))),
        Section("Calibration", tuple(_calibration(evidence))),
        Section("Decisions: predictive values and net benefit", tuple(_decisions(evidence))),
        Section("Answers and abstention", tuple(_answers(evidence))),
        Section("Subgroups", tuple(_subgroups(evidence))),
        Section("Comparisons", tuple(_comparisons(evidence))),
        *([] if evidence.explanation is None else [cohort_explanation.section(evidence.explanation)]),
        Section("Learning curve", tuple(_learning(evidence))),
        Section("All figures", (_all_figures(evidence),)),
        Section("Methods", tuple(_methods(evidence))),
        Section("Warnings", tuple(_warnings(evidence))),
        Section("Software", (Paragraph("; ".join(f"{name(what)} {name(version)}" for what, version in sorted(evidence.software.items())) + "."),)),
    ]
    return Document(
        title=f"Cohort report: {name(model.name)} {name(model.version)}",
        subtitle=f"Evaluation for the task {name(evidence.task.name)}: {_size(evidence)}",
        notices=tuple(_notices(evidence)),
        sections=tuple(section for section in sections if section.blocks),
    )


def _size(evidence: Evidence) -> str:
    return f"{several(evidence.flow.evaluated, 'recording')} of {several(evidence.flow.subjects, 'subject')}"


def _notices(evidence: Evidence) -> Iterable[Notice]:
    """Yield what has to be read before any number."""
    simulated = [
        *(["The evaluated speech is simulated."] if evidence.simulated else []),
        *(["The model learned from simulated speech."] if evidence.model.simulated else []),
    ]
    if simulated:
        yield Notice("fail", SIMULATED, (*simulated, "These figures are for demonstration and testing; they mean nothing for a real person."))
    failed = [finding for finding in evidence.leaks if finding.verdict == "fail"]
    if failed:
        yield Notice("fail", _failed_title(failed), ("The figures below may be too good. The section on leak checks says why.",))
    if unmet := [name(gate.name) for gate in evidence.gates if not gate.met]:
        yield Notice("fail", f"NOT RELEASED: {several(len(unmet), 'release gate')} not met", tuple(unmet))
    yield Notice("calm", "Intended use", (INTENDED_USE,))
    if evidence.warnings:
        yield Notice("warn", f"{several(len(evidence.warnings), 'warning')} came with this evaluation", ("They stand in the section Warnings.",))


def _what(evidence: Evidence) -> Iterable[Block]:
    model, task = evidence.model, evidence.task
    terms = [
        ("Model", f"{name(model.name)}, version {name(model.version)}"),
        ("Digest", plain(model.digest) if model.digest else "not known: the predictions came without their bundle"),
        ("Head", plain(model.head) if model.head else "not stated"),
        ("Task", name(task.name)),
        ("Classes", ", ".join(name(label) for label in task.classes)),
        ("Label", _label(task)),
        ("Origin", ORIGINS[evidence.origin]),
        ("Speech", "simulated" if evidence.simulated else "recorded from people"),
        ("Evaluated", _size(evidence)),
    ]
    if evidence.binary is not None:
        terms += _operating_terms(evidence)
    if model.statement:
        terms.append(("Statement of the model", plain(model.statement)))
    yield Terms(tuple(terms))
    if evidence.covariates:
        cells = [
            [wording.column(column), "; ".join(f"{name(value)}: {count(n)}" for value, n in values.items())]
            for column, values in evidence.covariates.items()
        ]
        yield Table.of("Evaluated subjects, by what the cohort says of them", [Column("By"), Column("Subjects", wide=True)], cells)


def _operating_terms(evidence: Evidence) -> list[tuple[str, str]]:
    own, stated, threshold = evidence.figures.get("prevalence"), evidence.stated_prevalence, evidence.threshold
    terms = [] if own is None else [("Prevalence in the cohort", said(own, level(evidence)))]
    terms += [] if stated is None else [("Probabilities are stated for", f"a prevalence of {share(stated)}")]
    frozen = "none" if threshold is None else f"a probability of {number(threshold)}" + ("" if stated is None else f", stated for {share(stated)}")
    return [*terms, ("Frozen threshold", frozen)]


def _label(task: Task) -> str:
    if task.score_name is None or task.score_cutoff is None:
        return "as the cohort gives it"
    return (
        f"{name(task.score_name)} of {task.score_cutoff:g} or more. A questionnaire is itself a screen: the figures are about agreement with it, "
        "unless the cohort's labels come from elsewhere."
    )


def _leaks(evidence: Evidence) -> Iterable[Block]:
    found = sorted(evidence.leaks, key=lambda finding: list(VERDICTS).index(finding.verdict))
    if not found:
        yield Notice(
            "warn", "No leak check was run", ("Nothing is known of shared people, repeated recordings, or labels that nuisance gives away.",)
        )
        return
    yield _verdict(evidence, found)
    yield Terms(tuple(_leak(evidence, finding) for finding in found))


def _leak(evidence: Evidence, finding: LeakFinding) -> tuple[str, str]:
    """Return what a check is called and how it ended, and what it found in full."""
    accepted = ", accepted" if finding.name in evidence.accepted_leaks else ""
    parts = [plain(finding.statement)]
    parts += [f"Figure: {said(finding.figure, level(evidence))}."] if finding.figure else []
    counts = "; ".join(f"{plain(what).replace('_', ' ')}: {count(n)}" for what, n in finding.counts.items())
    parts += [f"Counted: {counts}."] if counts else []
    return f"{spaced(finding.name)}: {VERDICTS[finding.verdict]}{accepted}", " ".join(parts)


def _gates(evidence: Evidence) -> Iterable[Block]:
    if not evidence.gates:
        return
    unmet = [gate.name for gate in evidence.gates if not gate.met]
    if unmet:
        yield Notice("fail", f"{several(len(unmet), 'release gate')} NOT met", tuple(name(gate) for gate in unmet))
    else:
        yield Notice("calm", "All release gates are met", (f"{several(len(evidence.gates), 'requirement')}, written down before the evaluation.",))
    cells = [[gate.name, "met" if gate.met else "NOT met", gate.found, gate.wanted] for gate in evidence.gates]
    yield Table.of("Release gates", [Column("Gate", wide=True), Column("Verdict"), Column("Found", wide=True), Column("Wanted")], cells)


def _failed_title(failed: Sequence[LeakFinding]) -> str:
    return "1 leak check FAILED" if len(failed) == 1 else f"{len(failed)} leak checks FAILED"


def _verdict(evidence: Evidence, found: Sequence[LeakFinding]) -> Notice:
    of = {verdict: [finding for finding in found if finding.verdict == verdict] for verdict in VERDICTS}
    accepted = [spaced(what) for what in evidence.accepted_leaks]
    named = {"Failed": of["fail"], "Warnings": of["warn"]}
    lines = [f"{what}: {', '.join(spaced(finding.name) for finding in findings)}." for what, findings in named.items() if findings]
    lines += [f"Accepted by whoever ran the evaluation, who chose to go on: {', '.join(accepted)}."] if accepted else []
    lines.append(f"Passed: {len(of['pass'])}. Warnings: {len(of['warn'])}. Failed: {len(of['fail'])}. Not checked: {len(of['not_checked'])}.")
    if of["fail"]:
        return Notice("fail", _failed_title(of["fail"]), tuple(lines))
    if of["warn"] or of["not_checked"]:
        return Notice("warn", "No leak check failed, but not all passed", tuple(lines))
    return Notice("calm", "All leak checks passed", tuple(lines))


def _flow(evidence: Evidence) -> Iterable[Block]:
    yield flow(evidence)
    reasons = sorted(evidence.flow.reasons.items(), key=lambda item: (-item[1], item[0]))
    if reasons:
        cells = [[spaced(why), count(n)] for why, n in reasons]
        columns = [Column("Check of the gate"), Column("Recordings", "count")]
        yield Table.of("Why recordings were not usable (one recording may fail several checks)", columns, cells)
    by_class = evidence.flow.subjects_by_class
    if len(by_class) > 2:
        cells = [[label, count(by_class[label]), count(evidence.flow.by_class.get(label, 0))] for label in by_class]
        columns = [Column("Class"), Column("Subjects", "count"), Column("Recordings", "count")]
        yield Table.of("Evaluated subjects and recordings by class", columns, cells)


def _discrimination(evidence: Evidence) -> Iterable[Block]:
    yield from _figure_table(evidence, "How well the classes are told apart", _DISCRIMINATION)
    if evidence.binary is not None:
        yield from _drawn([figures.roc(evidence), figures.precision_recall(evidence)])
    if evidence.classes is not None:
        yield from _drawn([rows.confusion(evidence), rows.recalls(evidence)])


def _calibration(evidence: Evidence) -> Iterable[Block]:
    raised = [wording.title_of(key) for key in _RAISED_BY_CHANCE if key in evidence.figures]
    yield from _figure_table(evidence, "How far stated probabilities can be taken at their word", _CALIBRATION, note=_raised(raised))
    yield from _drawn([figures.reliability(evidence), figures.distributions(evidence)])


def _raised(figures_raised: Sequence[str]) -> str:
    """Say of which figures the low end of the interval leaves out what chance adds (`Bootstrap.of_distance`)."""
    if not figures_raised:
        return ""
    return (
        f"{' and '.join(figures_raised)}: chance alone adds to the value. The low end of the interval is what remains without what chance adds, and "
        "0 where chance explains it all; the high end is not moved."
    )


def _decisions(evidence: Evidence) -> Iterable[Block]:
    if evidence.binary is None:
        return
    yield Paragraph(
        "Predictive values depend on how common the condition is where the model is used, so they are given at stated prevalences. Net benefit "
        "counts true flags less needless ones at the exchange rate that the threshold probability implies (Vickers & Elkin 2006, Med Decis Making "
        "26:565)."
    )
    yield from _figure_table(evidence, "Predictive values at stated prevalences", _DECISION)
    drawn = figures.decisions(evidence)
    if drawn is not None:
        yield drawn
    if drawn is None or len(drawn.pictures) < len(evidence.binary.decisions):
        yield Paragraph(NOT_DRAWN)


def _answers(evidence: Evidence) -> Iterable[Block]:
    known = (*_DISCRIMINATION, *_CALIBRATION, *_DECISION)
    rest = tuple(dict.fromkeys(kind for kind in (key.partition(".")[0] for key in evidence.figures) if kind not in known))
    yield Paragraph(
        "A recording that the gate refuses gets no score. A usable one is answered “indeterminate” where the prediction set does not settle on one "
        "answer; figures “when answered” leave those out, and are to be read beside how many were left out."
    )
    yield from _figure_table(evidence, "Answers, abstention, and coverage of prediction sets", rest)


def _drawn(pictures: Sequence[Picture | None]) -> Iterable[Block]:
    """Yield the pictures there are, side by side if they are narrow enough, and say so where one is missing."""
    there = tuple(picture for picture in pictures if picture is not None)
    if len(there) > 1 and all(picture.drawing.width <= BESIDE for picture in there):
        yield Plate(there)
    else:
        yield from there
    if None in pictures:
        yield Paragraph(NOT_DRAWN)


def _subgroups(evidence: Evidence) -> Iterable[Block]:
    if not evidence.groups:
        yield Paragraph("The cohort has no column that forms groups, or none was asked for: nothing is known of differences between groups.")
        return
    few = sum(not group.enough for group in evidence.groups)
    yield Paragraph(
        f"{several(len(evidence.groups), 'group')} in all, {few} of them with too few people for figures; their rows are kept. Intervals are not "
        "adjusted for the number of groups. An interval of a small group is wide: that it holds the value of all says little."
    )
    several_classes = evidence.binary is None
    columns = [
        Column("Group", wide=True),
        Column("Subjects", "count"),
        *([] if several_classes else [Column("With the condition", "count")]),
        Column("Recordings", "count"),
        Column("Not usable", "count"),
        Column("Figures"),
    ]
    cells = [
        [
            rows.label_of(group),
            count(group.subjects),
            *([] if several_classes else [WITHHELD if group.positives is None else count(group.positives)]),
            count(group.recordings),
            count(group.refused),
            "given" if group.enough else rows.TOO_FEW,
        ]
        for group in evidence.groups
    ]
    yield Table.of("Groups: evaluated subjects and recordings, and recordings that the gate refused", columns, cells)
    if evidence.gaps:
        yield _gaps(evidence)
    forests = rows.forests(evidence, FOREST_FIGURES)
    if forests is not None:
        yield forests


def _gaps(evidence: Evidence) -> Table:
    interval = f"{level(evidence)} interval"
    columns = [Column("By"), Column("Figure"), Column("Best"), Column("Worst"), Column("Difference", "number"), Column(interval, "number")]
    cells = [
        [
            wording.column(gap.column),
            wording.title_of(gap.figure),
            gap.best,
            gap.worst,
            number(gap.difference.value),
            bounds(gap.difference),
            count(gap.difference.subjects),
        ]
        for gap in evidence.gaps
    ]
    return Table.of("Differences between the best and the worst group", [*columns, Column("Subjects", "count")], cells)


def _comparisons(evidence: Evidence) -> Iterable[Block]:
    if not evidence.comparisons:
        yield Paragraph("The model was compared with nothing else on these recordings.")
        return
    yield Paragraph("On the same recordings of the same subjects; differences are the model's less the other's, paired within each bootstrap sample.")
    columns = [Column("Against", wide=True), Column("Figure"), Column("Model"), Column("Other"), Column("Difference"), Column("The model is")]
    cells = [
        [
            one.against,
            wording.title_of(one.figure),
            *(f"{number(figure.value)} ({bounds(figure)})" for figure in (one.model, one.other, one.difference)),
            _told_apart(one),
            count(one.subjects),
            count(one.recordings),
        ]
        for one in evidence.comparisons
    ]
    counts = [Column("Subjects", "count"), Column("Recordings", "count")]
    yield Table.of(f"The model against others, with {level(evidence)} intervals", [*columns, *counts], cells)


def _told_apart(comparison: Comparison) -> str:
    low, high = comparison.difference.low, comparison.difference.high
    if low is None or high is None:
        return wording.NOT_DEFINED
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def _learning(evidence: Evidence) -> Iterable[Block]:
    curve = evidence.learning_curve
    if curve is None:
        return
    yield figures.learning(curve)
    if curve.targets:
        columns = [
            Column("To reach", "number"),
            Column("Subjects"),
            Column("95 % interval"),
            Column("Share of refitted curves that reach it", "number"),
        ]
        cells = [_reached(one) for one in curve.targets]
        yield Table.of(f"Subjects to train on for a {wording.title_of(curve.metric)}, by the fitted curve", columns, cells)


def _reached(target: Reach) -> list[str]:
    far = "out of reach"
    low, high = (far if n is None else count(n) for n in (target.low, target.high))
    return [number(target.target), far if target.subjects is None else count(target.subjects), f"{low} to {high}", number(target.share)]


def _figure_table(evidence: Evidence, caption: str, kinds: Sequence[str], note: str = "") -> Iterable[Table]:
    """Yield a table of the figures of some kinds, in the order of kinds, if there are any."""
    chosen = [(key, figure) for kind in kinds for key, figure in evidence.figures.items() if key.partition(".")[0] == kind]
    columns = [Column("Figure", wide=True), Column("Value", "number"), Column(f"{level(evidence)} interval", "number")]
    counts = [Column("Subjects", "count"), Column("Recordings", "count")]
    if chosen:
        yield Table.of(caption, [*columns, *counts], [[*_cells(key, figure), count(figure.recordings)] for key, figure in chosen], note)


def _cells(key: str, figure: Figure) -> list[str]:
    return [wording.title_of(key), number(figure.value), bounds(figure), count(figure.subjects)]


def _all_figures(evidence: Evidence) -> Table:
    columns = [Column("Figure"), Column("Value", "number"), Column(f"{level(evidence)} interval", "number"), Column("Subjects", "count")]
    cells = [[*_cells(key, figure), figure.method, wording.meaning_of(key)] for key, figure in evidence.figures.items()]
    return Table.of("All figures, with their method and meaning", [*columns, Column("Method"), Column("Meaning", wide=True)], cells)


def _methods(evidence: Evidence) -> Iterable[Block]:
    of_level = level(evidence)
    each = (
        "In a task of two classes every subject counts once, however many recordings they gave."
        if evidence.binary is not None
        else "In a task of several classes every recording counts once, as in published tables; intervals still go over subjects."
    )
    yield Paragraph(f"The subject is the unit: subjects, not recordings, are drawn, held out and counted. {each}")
    methods = ", ".join(sorted({plain(figure.method) for figure in evidence.figures.values()}))
    yield Paragraph(
        f"Intervals have a nominal level of {of_level}. The cluster bootstrap draws subjects with all their recordings, "
        f"{count(evidence.replicates)} times (seed {evidence.seed}); where a figure is not defined in half of the samples or more, it gets no "
        "interval. Wilson's and DeLong's intervals are used only with one recording a subject. Methods in this report: "
        f"{methods}. Bands of curves are pointwise: a whole curve may leave its band."
    )
    yield Paragraph(
        "A difference between the best and the worst group cannot be negative, and chance alone makes it positive. Its interval holds for all "
        "pairs of groups together and errs on the wide side; it starts at 0 where no two groups are told apart."
    )
    yield Paragraph(" ".join(_unknown(evidence)))


def _unknown(evidence: Evidence) -> Iterable[str]:
    """Yield what the evaluation cannot say."""
    yield "What is not known:"
    if evidence.origin == "out_of_fold":
        yield "how the model does among people recruited elsewhere, with other devices or in other languages;"
    else:
        yield "how the model does among people unlike this cohort's, with other devices or in other languages;"
    yield "how answers vary when the same person is recorded again, unless several recordings a subject were evaluated;"
    yield "whether acting on the answers helps anyone, which takes a trial."
    if evidence.simulated or evidence.model.simulated:
        yield "Simulated speech says nothing about real people."
    if evidence.binary is None:
        return
    yield "Probabilities restated for another prevalence assume that only the prevalence differs, not how people with or without the condition speak."


def _warnings(evidence: Evidence) -> Iterable[Block]:
    if evidence.warnings:
        yield Notice("warn", several(len(evidence.warnings), "warning"), tuple(plain(warning) for warning in evidence.warnings))
    else:
        yield Paragraph("None.")
