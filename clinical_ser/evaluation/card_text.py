"""`card.md`: the card for a reader, with every figure and its interval, the groups, the leak guards, and the three lists.

The one idea: nothing is said here that card.json does not hold, and what is missing there is marked here.
"""

import re
from collections.abc import Iterator, Sequence

from clinical_ser.evaluation.card import Card, Entry, check_card
from clinical_ser.evaluation.card_facts import caveat
from clinical_ser.evaluation.card_fields import KEYS, LISTS, Item, ListName, item_list, label_of
from clinical_ser.evaluation.evidence import Evidence, Group
from clinical_ser.evaluation.explanations import RELIABILITY, CohortExplanation, Rerecorded
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.retest import Repeated, Retest
from clinical_ser.features import catalogue

MISSING = "**MISSING**"
_MARKS = re.compile(r"([\\`*_\[\]<>|#~&])")
_LIST_MARK = re.compile(r"^(?:\d+(?=[.)](?: |$))|(?=[-+=]))")
"""Before what makes a list, a rule or a heading of a line that begins with it; the rest of such marks is in `_MARKS`."""
_SOURCES = {"run": "from the run", "person": "supplied", "run_and_person": "from the run, and supplied", "missing": ""}


def card_markdown(card: Card) -> str:
    """Return the card as Markdown (CommonMark with tables); texts of people and cohorts are shown as they are and never obeyed as markup."""
    return "\n".join(_lines(card)) + "\n"


def plain(text: object) -> str:
    r"""Return text on one line, with what Markdown would read as markup escaped, and what does not print shown as its code.

    Examples
    --------
    >>> print(plain("a|b <i>"))
    a\|b \<i\>
    >>> print(plain("1. first"))
    1\. first
    """
    # Terminal codes and marks that turn the direction of writing would reach a reader's screen.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    return _LIST_MARK.sub(r"\g<0>\\", _MARKS.sub(r"\\\1", shown))


def _lines(card: Card) -> Iterator[str]:
    facts = card.training
    yield f"# {plain(card.name)} {plain(card.version)}"
    yield ""
    yield f"{plain(card.task.name)}, {plain(card.head)} head. {plain(card.intended_use)}"
    if card.statement:
        yield from ("", f"> {plain(card.statement)}")
    yield ""
    yield f"Trained on {facts.recordings:,} recordings of {facts.subjects:,} subjects; cohort digest {plain(facts.cohort_digest)}."
    yield from _warnings(card.warnings)
    yield from _evaluation("Out of fold, in the training cohort", card.internal)
    for i, evidence in enumerate(card.external, start=1):
        yield from _evaluation(f"External cohort {i}", evidence)
        yield from _warnings(evidence.warnings)
    yield from _rerecorded(card.rerecorded)
    yield from _retest(card.retest)
    yield from _blanks(card)
    for name in LISTS:
        yield from _list(name, card)


def _warnings(warnings: Sequence[str]) -> Iterator[str]:
    if warnings:
        yield ""
        yield from (f"- {plain(warning)}" for warning in warnings)


def _evaluation(title: str, evidence: Evidence) -> Iterator[str]:
    flow = evidence.flow
    yield from ("", f"## {title}", "")
    if words := caveat(evidence):
        yield from (f"> {words}", "")
    refused = f"{flow.not_usable:,} refused by the gate"
    yield f"{flow.subjects:,} subjects and {flow.evaluated:,} recordings evaluated, of {flow.given:,} recordings given; {refused}."
    if evidence.threshold is not None and evidence.stated_prevalence is not None:
        yield f"Threshold {evidence.threshold:.3g}, probabilities stated for a prevalence of {evidence.stated_prevalence:.3g}."
    yield ""
    yield from _table(("Figure", "Value", _level(evidence), "Subjects", "Meaning"), [_figure_row(name, f) for name, f in evidence.figures.items()])
    for column in dict.fromkeys(group.column for group in evidence.groups):
        yield from _groups(column, evidence)
    if evidence.explanation:
        yield from _explanation(evidence, evidence.explanation)
    if evidence.comparisons:
        yield from ("", "### Compared", "")
        rows = [(plain(c.against), plain(describe(c.figure).title), *_cells(c.difference), f"{c.subjects:,}") for c in evidence.comparisons]
        yield from _table(("Against", "Figure", "Model less other", _level(evidence), "Subjects"), rows)
    if evidence.leaks:
        yield from ("", "### Leak guards", "")
        found = [(plain(leak.name), _verdict(leak.name, leak.verdict, evidence), plain(leak.statement)) for leak in evidence.leaks]
        yield from _table(("Guard", "Verdict", "Found"), found)


def _explanation(evidence: Evidence, explanation: CohortExplanation) -> Iterator[str]:
    heard = " The model learned from them." if explanation.inside else ""
    yield from ("", "### What the model goes by", "")
    yield f"Effects on the stated probability, against each person's reference group, over {explanation.recordings:,} recordings.{heard}"
    yield ""
    rows = [(plain(f.label_en), *_cells(f.size), *_cells(f.first), f"{f.size.subjects:,}") for f in explanation.families]
    level = _level(evidence)
    yield from _table(("Family", "Mean absolute effect", level, "Share of recordings in which it comes first", level, "Subjects"), rows)
    yield ""
    reliable = [(RELIABILITY[name], *_cells(figure), f"{figure.subjects:,}") for name, figure in explanation.reliability.items()]
    yield from _table(("Reliability over refits on other people", "Value", level, "Subjects"), reliable)


def _rerecorded(changes: Sequence[Rerecorded]) -> Iterator[str]:
    if not changes:
        return
    yield from ("", "## Explanations when the same speech is recorded a little differently", "")
    header = ("Change", "Probability, mean absolute change", "Family effect, mean absolute change", "Rank correlation of families")
    rows = [
        (
            plain(one.change),
            *(str(figure) for figure in (one.probability, one.effect, one.correlation, one.same_first, one.same_status)),
            f"{one.probability.recordings:,} of {one.probability.subjects:,}",
            f"{one.refused:,}",
        )
        for one in changes
    ]
    yield from _table((*header, "Same family first", "Same answer", "Recordings of subjects", "Refused by the gate"), rows)


def _retest(retest: Retest | None) -> Iterator[str]:
    if retest is None:
        return
    changed = f"; {retest.changed:,} left out whose label changed" if retest.changed else ""
    yield from ("", "## Repeated while nothing changed", "")
    yield f"{plain(retest.setting)}. {retest.recordings:,} recordings of {retest.subjects:,} subjects{changed}."
    yield ""
    yield "SEM: SD of one person's recordings. Two of them differ by more than the last column in 5 % of people without any change."
    yield ""
    score = [_repeated_row("Score", "log-odds", retest.log_odds)] if retest.log_odds else []
    specs = {name: catalogue.get(name) for name in retest.shown}
    rows = [_repeated_row(spec.label_en, spec.unit, retest.shown[name]) for name, spec in specs.items()]
    yield from _table(("Measure", "Unit", "SEM", "ICC(1,1)", "95 % interval", "Subjects", "Differ by more in 5 %"), score + rows)


def _repeated_row(label: str, unit: str, found: Repeated) -> tuple[str, ...]:
    beyond = found.limit * found.error_of_difference()
    return (plain(label), plain(unit), f"{found.sd_within:.3g}", *icc_cells(found), f"{found.subjects:,}", f"{beyond:.3g}")


def icc_cells(found: Repeated) -> tuple[str, str]:
    """Return an ICC and its interval in words."""
    if found.icc is None:
        return "not defined", ""
    return f"{found.icc:.2f}", f"{found.icc_low:.2f} to {found.icc_high:.2f}"


def _verdict(name: str, verdict: str, evidence: Evidence) -> str:
    return f"{plain(verdict)} (accepted)" if name in evidence.accepted_leaks else plain(verdict)


def _figure_row(name: str, figure: Figure) -> tuple[str, ...]:
    text = describe(name)
    return (plain(text.title), *_cells(figure), f"{figure.subjects:,}", plain(text.meaning))


def _groups(column: str, evidence: Evidence) -> Iterator[str]:
    groups = [group for group in evidence.groups if group.column == column]
    # Per-class figures would make a table wider than a page; card.json has them.
    names = [name for name in dict.fromkeys(name for group in groups for name in group.figures) if "." not in name and not name.startswith("brier_")]
    yield from ("", f"### By {plain(column.replace('_', ' '))}", "")
    if names:
        header = ("Figure", *(f"{plain(group.value)} ({group.subjects:,} subjects)" for group in groups))
        yield from _table(header, [(plain(describe(name).title), *(_group_cell(name, group) for group in groups)) for name in names])
    if few := [f"{plain(group.value)} ({group.subjects:,} subjects)" for group in groups if not group.enough]:
        yield from ("", f"Too few people for figures: {', '.join(few)}.")
    if gaps := [gap for gap in evidence.gaps if gap.column == column]:
        yield ""
        rows = [(plain(describe(gap.figure).title), plain(gap.best), plain(gap.worst), *_cells(gap.difference)) for gap in gaps]
        yield from _table(("Gap in", "Best", "Worst", "Difference", _level(evidence)), rows)


def _group_cell(name: str, group: Group) -> str:
    figure = group.figures.get(name)
    return "too few" if figure is None else str(figure)


def _cells(figure: Figure) -> tuple[str, str]:
    if figure.value is None:
        return "not defined", ""
    return f"{figure.value:.3f}", "" if figure.low is None or figure.high is None else f"{figure.low:.3f} to {figure.high:.3f}"


def _level(evidence: Evidence) -> str:
    return f"{100 * evidence.level:g} % interval"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---' for _ in header)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _blanks(card: Card) -> Iterator[str]:
    found = check_card(card)
    yield from ("", "## What is missing", "")
    if found.complete:
        yield "Nothing."
        return
    yield from (
        f"- {plain(item_list(name).title)}: {len(keys)} of {len(item_list(name).item)} ({', '.join(f'`{key}`' for key in keys)})"
        for name, keys in found.missing.items()
        if keys
    )
    if found.questions:
        yield f"- To be answered: {', '.join(map(_key, found.questions))}"
    yield from (f"- Leak guard failed and was not accepted: {plain(leak)}" for leak in found.leaks)


def _list(name: ListName, card: Card) -> Iterator[str]:
    listed = item_list(name)
    yield from ("", f"## {plain(listed.title)}", "", f"Source: {plain(listed.source)}.")
    for section in listed.sections:
        yield from ("", f"### {plain(section)}")
        for item in listed.item:
            if item.section == section:
                yield from _item(item, card.entries(name).get(item.key))


def _item(item: Item, entry: Entry | None) -> Iterator[str]:
    yield from ("", f"**`{item.key}`** {plain(item.title)}")
    if entry is not None and entry.value is not None:
        yield ""
        yield f"> _{_SOURCES[entry.source]}_"
        for part in entry.value.split("\n\n"):
            yield from (">", f"> {plain(part)}")
    if entry is not None and entry.complete:
        return
    yield ""
    if not item.required:
        yield "> Not stated; the list leaves it open."
    else:
        wanted = ", ".join(f"{plain(label_of(key))} ({_key(key)})" for key in entry.lacking) if entry is not None else ""
        yield f"> {MISSING}{f': {wanted}' if wanted else ''}"


def _key(key: str) -> str:
    """Return a question's key as code; one that this version does not know is text like any other."""
    return f"`{key}`" if key in KEYS else plain(key)
