"""The report of a change: champion beside challenger, requirement by requirement, with room for the signatures of two roles.

The one idea: it says what the comparison holds and nothing else, so that what is signed is what was judged.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clinical_ser.control.approval import Approval
from clinical_ser.control.checking import EXAMPLE_KEYS
from clinical_ser.control.figures import DISTANCE_TO_BEST, EXPLANATION_FIGURES, direction, title_of
from clinical_ser.control.gate import Comparison, Verdict
from clinical_ser.control.parts import ChangePlan, Requirement
from clinical_ser.control.site_figures import PairedFigure
from clinical_ser.evaluation.figure import Figure
from reports import forbidden, rendering, wording
from reports.document import Block, Column, Document, Notice, Paragraph, Picture, Section, Table, Terms
from reports.drawing import ACCENT, DASHED, FAINT, INK, QUIET, SMALL, Drawing, Scale, shortened, tick, ticks
from reports.wording import bracketed, count, name, number, plain, several

INTENDED_USE = "Screening aid for trained health workers; never a diagnosis. The figures describe groups of people, not any one person."
OUTCOMES = {"met": "met", "not_met": "NOT met", "cannot_be_judged": "cannot be judged"}
KINDS = {
    "recalibrated": "Recalibrated: the probabilities are stated anew, the ranking of people stays",
    "updated": "Updated with new recordings",
    "retrained": "Trained anew",
    "unlearned": "A person's data taken out",
}
MAIN = ("auroc", "uar", "sensitivity", "specificity", "brier", "ece_smooth", "calibration_intercept", "calibration_slope", "deferred", "not_usable")
_WIDTH, _LABELS, _ROW, _TOP, _BOTTOM = 620, 190, 30, 34, 56


def html_report(comparison: Comparison, plan: ChangePlan, approvals: Sequence[Approval] = ()) -> str:
    """Return the report as one HTML file, without a script and with nothing loaded from elsewhere.

    Parameters
    ----------
    comparison
        What was judged.
    plan
        The plan that it was judged by.
    approvals
        Signatures under this comparison; their validity is not looked at here.

    Returns
    -------
    str
        The same input gives the same text.
    """
    return rendering.html(document_of(comparison, plan, approvals))


def pdf_report(
    comparison: Comparison, plan: ChangePlan, approvals: Sequence[Approval] = (), *, font_paths: Sequence[Path] = (), system_fonts: bool = True
) -> bytes:
    """Return the report as tagged PDF, made in PDF/UA-1 mode; ReportError where a character has no font."""
    return rendering.pdf(document_of(comparison, plan, approvals), font_paths=font_paths, system_fonts=system_fonts)


def document_of(comparison: Comparison, plan: ChangePlan, approvals: Sequence[Approval] = ()) -> Document:
    """Return the contents of the report.

    Raises
    ------
    ReportError
        A text of the plan states a diagnosis, a treatment, or a risk of suicide or none.
    """
    modification = plan.modification_of(comparison.modification)
    forbidden.check({"title": modification.title, "rationale": modification.rationale, "changes": modification.changes})
    sections = [
        Section("What was changed, why and who asked", tuple(_what(comparison, plan))),
        Section("Requirements", tuple(_requirements(comparison, plan))),
        Section("Champion and challenger, all sites", tuple(_overall(comparison, plan))),
        Section("Site by site", tuple(_sites(comparison))),
        Section("Groups of people", tuple(_groups(comparison))),
        Section("Explanations and privacy", tuple(_explanations(comparison))),
        Section("Signatures", tuple(_signatures(comparison, plan, approvals))),
        Section("Methods", tuple(_methods(comparison))),
        Section("Software", (Paragraph("; ".join(f"{name(what)} {name(version)}" for what, version in sorted(comparison.software.items())) + "."),)),
    ]
    return Document(
        title=f"Change report: {name(comparison.model)}",
        subtitle=f"{name(modification.title)}, under the change-control plan {name(comparison.plan_label)}",
        notices=tuple(_notices(comparison)),
        sections=tuple(section for section in sections if section.blocks),
    )


def _notices(comparison: Comparison) -> Iterable[Notice]:
    if comparison.simulated:
        yield Notice("fail", "SIMULATED SPEECH", ("These figures are for demonstration and testing; they mean nothing for a real person.",))
    if comparison.met:
        yield Notice(
            "calm", "All requirements are met", ("The challenger may be promoted once every role has signed and the shadow period is over.",)
        )
    else:
        yield Notice("fail", f"NOT RELEASED: {several(len(comparison.not_met), 'requirement')} not met", tuple(map(plain, comparison.not_met)))
    if unknown := [name(one.site) for one in comparison.sites if not one.members_checked]:
        line = "The registry does not know whom the models learned from; that nobody of the holdout is among them rests on the word of the sites."
        yield Notice("warn", f"Not checked at {', '.join(unknown)}: whether people of the holdout taught a model", (line,))
    yield Notice("calm", "Intended use", (INTENDED_USE,))


def _what(comparison: Comparison, plan: ChangePlan) -> Iterable[Block]:
    modification, change = plan.modification_of(comparison.modification), comparison.change
    terms = [
        ("Model", name(comparison.model)),
        ("Task", f"{name(comparison.task)}: {', '.join(name(label) for label in comparison.classes)}"),
        ("Champion", comparison.champion),
        ("Challenger", comparison.challenger),
        ("Modification of the plan", f"{name(modification.id)}: {plain(modification.title)}"),
        ("What changes, and what stays", plain(modification.changes)),
        ("Why such changes are made", plain(modification.rationale)),
    ]
    if change is not None:
        terms += [
            ("What was done", KINDS.get(change.kind, name(change.kind))),
            ("Asked for by", name(change.trigger)),
            ("People of this step", "; ".join(f"{name(label)}: {count(n)}" for label, n in change.subjects.items()) or "not stated"),
            ("Sites", count(change.sites)),
        ]
        terms += [("Step of the recalibration", change.step)] if change.step else []
        terms += [("Forgetting factor", f"{change.forgetting:g}")] if change.forgetting is not None else []
        terms += [("Weight of unlabelled recordings", f"{change.unlabelled_weight:g}")] if change.unlabelled_weight else []
        terms += [("Privacy spent in all (epsilon)", f"{change.epsilon:g}")] if change.epsilon is not None else []
    else:
        terms.append(("What was done", "not known: the challenger is in no registry here"))
    terms += [("Plan", plain(plan.label)), ("Digest of the plan", comparison.plan), ("Digest of this comparison", comparison.digest)]
    yield Terms(tuple(terms))


def _requirements(comparison: Comparison, plan: ChangePlan) -> Iterable[Block]:
    columns = [Column("Requirement"), Column("Where"), Column("Wanted", wide=True), Column("Found"), Column("Verdict")]
    cells = [[one.requirement, wording.plain(one.where), one.wanted, _found(one), _verdict(one)] for one in comparison.verdicts]
    note = "The cautious end of the interval decides. Of a worst site or group it is the worst end of any of them. What cannot be judged is not met."
    yield Table.of("Requirements of the plan, written down before the change", columns, cells, note)
    reasons = {one.id: one.rationale for one in plan.requirements_of(plan.modification_of(comparison.modification))}
    yield Terms(tuple((name(one), plain(reason)) for one, reason in reasons.items()))


def _found(one: Verdict) -> str:
    if one.judged is None:
        return plain(one.because or "nothing")
    value = number(one.judged.value) if one.figure == "epsilon_left" else _bracketed(one.judged)
    return value if one.champion is None else f"{'difference ' if _is_difference(one) else ''}{value}"


def _is_difference(one: Verdict) -> bool:
    return one.champion is not None and "the champion's" in one.wanted


def _verdict(one: Verdict) -> str:
    return OUTCOMES[one.outcome] + (f" ({plain(one.because)})" if one.because and one.judged is not None else "")


def _bracketed(figure: Figure) -> str:
    return bracketed(figure.value, figure.low, figure.high)


def _overall(comparison: Comparison, plan: ChangePlan) -> Iterable[Block]:
    if comparison.pooled:
        yield _paired_table("Means over sites, weighted by people", comparison.pooled, comparison.level)
    drawn = _picture(comparison, plan, _main(comparison))
    if drawn is not None:
        yield drawn


def _main(comparison: Comparison) -> str:
    """Return the figure that is drawn and looked at by group."""
    return "auroc" if len(comparison.classes) == len(("negative", "positive")) else "uar"


def _sites(comparison: Comparison) -> Iterable[Block]:
    for site in comparison.sites:
        people = "; ".join(f"{name(label)}: {count(n)}" for label, n in site.subjects_by_class.items())
        yield Terms(
            (
                ("Site", name(site.site)),
                ("People of the holdout", people),
                ("Recordings", count(site.recordings)),
                ("Frozen table", site.table),
                ("Probabilities stated for", "equal shares" if site.prevalence is None else f"a prevalence of {number(site.prevalence)}"),
            )
        )
        yield _paired_table(f"Champion and challenger at {name(site.site)}", site.figures, comparison.level)


def _paired_table(caption: str, figures: dict[str, PairedFigure], level: float) -> Table:
    columns = [Column("Figure", wide=True), Column("Champion"), Column("Challenger"), Column("Difference"), Column("Subjects", "count")]
    chosen = [figure for figure in MAIN if figure in figures]
    cells = [
        [
            title_of(figure),
            *(_bracketed(one) for one in (figures[figure].champion, figures[figure].challenger, figures[figure].difference)),
            count(figures[figure].difference.subjects),
        ]
        for figure in chosen
    ]
    apart = [title_of(figure) for figure in chosen if figure in DISTANCE_TO_BEST]
    note = f"Of {' and '.join(apart)} the difference is one of distances to the best value." if apart else ""
    return Table.of(f"{caption}, with {100 * level:g} % intervals", columns, cells, note)


def _groups(comparison: Comparison) -> Iterable[Block]:
    main = _main(comparison)
    cells = []
    for site in comparison.sites:
        for group in site.groups:
            pair = group.figures.get(main)
            told = ["too few people", "", ""] if pair is None else [_bracketed(one) for one in (pair.champion, pair.challenger, pair.difference)]
            cells.append([f"{wording.column(group.column)}: {name(group.value)}", name(site.site), *told, count(group.subjects)])
    if cells:
        columns = [Column("Group", wide=True), Column("Site"), Column("Champion"), Column("Challenger"), Column("Difference")]
        yield Table.of(f"{title_of(main)} by group and site", [*columns, Column("Subjects", "count")], cells)


def _explanations(comparison: Comparison) -> Iterable[Block]:
    cells = [
        [title_of(figure), name(site.site), _bracketed(site.explanations[figure]), count(site.explanations[figure].recordings), meaning]
        for figure, meaning in EXPLANATION_FIGURES.items()
        for site in comparison.sites
        if figure in site.explanations
    ]
    if cells:
        columns = [Column("Figure"), Column("Site"), Column("Value"), Column("Recordings", "count"), Column("Meaning", wide=True)]
        yield Table.of("Whether the challenger goes by what the champion went by", columns, cells)
    left = comparison.epsilon_left
    yield Paragraph(
        "What is left of the privacy budget: " + ("nobody said." if left is None else f"epsilon {left:g}, {_LEFT_BY[comparison.epsilon_from]}.")
    )


_LEFT_BY = {
    "records": "as the registry's records of all bundles of this name say",
    "hand": "as whoever ran the gate typed in; no record was asked",
    None: "by nobody's word",
}


def _signatures(comparison: Comparison, plan: ChangePlan, approvals: Sequence[Approval]) -> Iterable[Block]:
    signed = {one.role: one for one in approvals if one.comparison == comparison.digest}
    cells = []
    for role in plan.role:
        one = signed.get(role.name)
        cells.append([role.name, role.meaning, *([one.name, one.time.isoformat(), one.key_id] if one else ["", "", ""])])
    columns = [Column("Role"), Column("What the signature says", wide=True), Column("Name"), Column("Time (UTC)"), Column("Key")]
    note = "An empty row is not signed yet. Signatures are Ed25519 over the digest of this comparison; the registry holds and checks them."
    yield Table.of("Signatures under this comparison", columns, cells, note)
    if any(EXAMPLE_KEYS & set(role.keys) for role in plan.role):
        yield Notice("fail", "The plan holds the keys of the example", ("Anyone could sign with them.",))


def _methods(comparison: Comparison) -> Iterable[Block]:
    checked = all(site.members_checked for site in comparison.sites)
    whom = "whom neither learned from" if checked else "who are said to have taught neither: not every site could check it"
    yield Paragraph(
        f"Both models answered the same recordings of the same people, {whom}. People, with all their recordings, were drawn "
        f"{count(comparison.replicates)} times at each site; a difference is taken within each draw. Intervals have a nominal level of "
        f"{100 * comparison.level:g} %, so each end by itself holds at {100 * (1 + comparison.level) / 2:g} %."
    )
    yield Paragraph(
        "The difference of two shares has a paired score interval (Newcombe 1998, Stat Med 17:2635, method 10), which is no point where both models "
        "answered everybody alike. "
        "Sites are pooled as means weighted by people; their errors add as those of independent people (Zou & Donner 2008, Stat Med 27:1693). A "
        "worst site or group is judged by the worst end of any interval (Berger & Hsu 1996, Stat Sci 11:283). Non-inferiority as in Piaggio et al. "
        "2012, JAMA 308:2594. The plan follows the three parts of FDA's guidance on predetermined change control plans (December 2024, August 2025)."
    )
    yield Paragraph("What is not known: how either model does among people unlike those of the holdouts, and whether acting on answers helps anyone.")


def _picture(comparison: Comparison, plan: ChangePlan, figure: str) -> Picture | None:
    """Draw the differences of a figure: all sites, each site, and each group at each site; None where there is none."""
    rows = [("All sites", comparison.pooled[figure].difference)] if figure in comparison.pooled else []
    rows += [(f"Site {plain(one.site)}", one.figures[figure].difference) for one in comparison.sites if figure in one.figures]
    for site in comparison.sites:
        groups = [group for group in site.groups if figure in group.figures]
        rows += [(f"{plain(group.value)}, {plain(site.site)}", group.figures[figure].difference) for group in groups]
    known = [(label, one) for label, one in rows if one.value is not None and one.low is not None and one.high is not None]
    if not known:
        return None
    margin = _margin(plan.requirements_of(plan.modification_of(comparison.modification)), figure)
    title = f"{title_of(figure)}: challenger less champion"
    columns = [Column("Where", wide=True), Column("Difference"), Column("Subjects", "count")]
    table = Table.of(title, columns, [[label, _bracketed(one), count(one.subjects)] for label, one in rows])
    worse = [label for label, one in known if direction(figure) * (one.value or 0.0) < 0]
    finding = " ".join(f"{label}: {_bracketed(one)}." for label, one in known)
    finding += f" {several(len(worse), 'row')} of {len(known)} on the worse side of 0."
    return Picture(
        name=f"difference-{figure.replace('_', '-').replace('.', '-')}",
        title=title,
        finding=finding,
        drawing=_drawn(known, title, margin),
        table=table,
        note="Squares, and a diamond for all sites: challenger less champion, with intervals. Full line: no difference."
        + ("" if margin is None else f" Dashed line: the plan's margin for all sites, {number(margin)}."),
    )


def _margin(requirements: Sequence[Requirement], figure: str) -> float | None:
    """Return where the margin lies on the scale of the difference."""
    for one in requirements:
        if (one.figure, one.comparison, one.scope) == (figure, "non_inferior", "overall") and one.margin is not None:
            return -direction(figure) * one.margin
    return None


def _drawn(rows: Sequence[tuple[str, Figure]], title: str, margin: float | None) -> Drawing:
    ends = [end for _, one in rows for end in (one.low, one.high) if end is not None] + [0.0] + ([] if margin is None else [margin])
    room = max(0.02, 0.08 * (max(ends) - min(ends)))
    x = Scale(min(ends) - room, max(ends) + room, _LABELS, _WIDTH - 20)
    floor = _TOP + _ROW * len(rows)
    drawing = Drawing(_WIDTH, floor + _BOTTOM)
    marks = ticks(x.low, x.high)
    for value in marks:
        drawing.line(x(value), _TOP - 10, x(value), floor, stroke=FAINT)
        drawing.text(x(value), floor + 19, tick(value, marks), anchor="middle", size=SMALL, fill=QUIET)
    drawing.line(x(0), _TOP - 10, x(0), floor, stroke=INK)
    if margin is not None:
        drawing.line(x(margin), _TOP - 10, x(margin), floor, stroke=INK, width=1.25, dash=DASHED)
        drawing.text(x(margin), _TOP - 16, "margin", anchor="middle", size=SMALL)
    for i, (label, one) in enumerate(rows):
        y = _TOP + _ROW * (i + 0.5)
        drawing.text(8, y + 4, shortened(label, _LABELS - 20))
        drawing.line(x.clipped(one.low or 0.0), y, x.clipped(one.high or 0.0), y, stroke=ACCENT, width=2)
        drawing.mark("diamond" if i == 0 else "square", x.clipped(one.value or 0.0), y, fill=ACCENT)
    drawing.text((x.start + x.end) / 2, floor + 44, title, anchor="middle")
    return drawing
