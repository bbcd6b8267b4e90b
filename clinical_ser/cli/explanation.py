"""An explanation on the screen: families, features, and when in the recording."""

from typing import TYPE_CHECKING

from rich.table import Table

from clinical_ser.cli.console import literal, output, percent
from clinical_ser.explain.explanation import Estimate, Explanation, FamilyContribution, WithoutEmbedding
from clinical_ser.explain.timeline import Timeline
from clinical_ser.features.catalogue import FAMILIES, get_family
from clinical_ser.models.reference import LEVELS

if TYPE_CHECKING:
    from reports.locale import Locale

_FEATURES_SHOWN = 6
_MOMENTS_SHOWN = 5


def show_explanation(explanation: Explanation) -> None:
    """Print what moved a score."""
    reference = explanation.reference
    whom = literal(reference.group) + (f", n={reference.subjects} subjects" if reference.subjects else "")
    output.print(
        f"  {words(explanation.target).capitalize()}: {percent(explanation.base_probability)} on average in the reference group ({whom}), "
        f"{percent(explanation.probability)} here:"
    )
    if reference.unmatched:
        output.print(f"  [dim]too few people in the cohort to match {', '.join(reference.unmatched)}[/dim]")
    _show_families(explanation)
    _show_features(explanation)
    if explanation.without_embedding:
        _show_without_embedding(explanation.without_embedding, explanation.target)


def show_moves(explanation: Explanation) -> None:
    """Print what-if, for engineers."""
    if not explanation.moves:
        output.print("  What-if: no family alone changes the answer.")
        return
    output.print("  What-if, for engineers: one family alone, moved; percentiles of the reference group")
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("family", "answer then", "log-odds", "now", "then", ""):
        table.add_column(column)
    for move in explanation.moves:
        now, then = ("" if value is None else percent(value / 100) for value in (move.percentile_now, move.percentile_then))
        seen = "" if move.within_reference else "[dim]beyond it[/dim]"
        answer = status_words(move.to_status, move.to_class or "")
        table.add_row(_family(move.family), answer, f"{move.log_odds:+.2f}", now, then, seen)
    output.print(table)


def show_timeline(timeline: Timeline) -> None:
    """Print the moments that stand out."""
    out = timeline.standing_out
    if course := timeline.course.get(timeline.target):
        lowest, highest = (pick(course, key=lambda moment: moment.probability) for pick in (min, max))
        spans = " and ".join(
            f"{percent(moment.probability)} ({percent(moment.low)} to {percent(moment.high)}) around {_clock(timeline.offset_s + moment.time_s)}"
            for moment in (lowest, highest)
        )
        output.print(f"  Over time, from {timeline.course_window_s:g} s at a time: between {spans}")
    band = f"{_points(timeline.band_low)} to {_points(timeline.band_high)} points ({100 * timeline.level:g} %) for windows at random places"
    output.print(f"  Timeline: {len(timeline.windows)} windows of {timeline.window_s:g} s, each left out in turn; {band}")
    if not out:
        output.print("    no moment stands out: the score comes from the recording as a whole")
    for window in out[:_MOMENTS_SHOWN]:
        when = f"{_clock(timeline.offset_s + window.start_s)} to {_clock(timeline.offset_s + window.end_s)}"
        did = "raised" if window.effect > 0 else "lowered"
        output.print(f"    {when}: {did} the probability by {_points(abs(window.effect)).removeprefix('+')} points")


def words(label: str) -> str:
    """Write a label as words."""
    return literal(label.replace("_", " "))


def status_words(status: str, label: str = "") -> str:
    """Return an answer in the words of the reports, with the class where it is one of several and known."""
    said = _english().term("status", status)
    if "{label}" in said:
        said = said.replace("{label}", label.replace("_", " ")) if label else status
    return literal(said[:1].lower() + said[1:])


def check_words(name: str) -> str:
    """Return what the reports call a check of the recording."""
    return literal(_english().term("checks", name))


def _english() -> "Locale":
    from reports.locale import load_locale  # reports are slow to import, and most commands show no result

    return load_locale("en")


def with_unit(number: str, unit: str) -> str:
    """Put a unit behind a number; a pure number has none to print."""
    return number if unit == "1" else f"{number} {literal(unit)}"


def _family(name: str) -> str:
    # A result from a file may name anything.
    return literal(get_family(name).label_en.lower() if name in FAMILIES else name.replace("_", " "))


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def _interval(estimate: Estimate) -> str:
    return f"{_points(estimate.low)} to {_points(estimate.high)}"


def _show_families(explanation: Explanation) -> None:
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("family", no_wrap=True)
    for column in ("points", "95 % interval", "same rank"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for family in explanation.families:
        style = "[not dim]" if family.stable else "[dim]"
        cells = (_family(family.family), _points(family.probability.value), _interval(family.probability), f"{family.rank_agreement:.0%}")
        table.add_row(*(f"{style}{cell}[/]" for cell in cells), _note(family))
    output.print(table)
    for family in explanation.families:
        output.print(f"  {_family(family.family).capitalize()}: {literal(family.sentence.en)}")
    output.print(
        "  [dim]points of percent added to the probability; unstable: the interval over refits on other people crosses zero, here or on the "
        "log-odds; same rank: share of those refits[/dim]"
    )


def _note(family: FamilyContribution) -> str:
    return "[bold]main driver[/bold]" if family.main_driver else "" if family.stable else "[dim]unstable[/dim]"


def _show_features(explanation: Explanation) -> None:
    features = [feature for family in explanation.families for feature in family.features]
    features = sorted(features, key=lambda feature: (not feature.stands_out, -abs(feature.log_odds.value)))[:_FEATURES_SHOWN]
    banded = any(feature.band for feature in features)
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("feature", overflow="fold")
    for column in ("log-odds", "value") + (("usual", "percentile") if banded else ()):
        table.add_column(column, justify="right", no_wrap=True)
    for feature in features:
        usual = f"{feature.band.low:.3g} to {feature.band.high:.3g}" if feature.band else ""
        percentile = "" if feature.percentile is None else f"{_percentile(feature.percentile)}{' *' if feature.stands_out else '  '}"
        cells = [literal(feature.label_en), f"{feature.log_odds.value:+.2f}", with_unit(f"{feature.value:.3g}", feature.unit)]
        style = "[not dim]" if feature.stable else "[dim]"
        table.add_row(*(f"{style}{cell}[/]" for cell in (*cells, *((usual, percentile) if banded else ()))))
    output.print(table)
    if banded:
        output.print("  [dim]usual: the middle half of the reference group[/dim]")
    if explanation.relative_to_baseline:
        output.print("  [dim]values are differences from the person's own baseline recordings[/dim]")
    if any(feature.stands_out for feature in features):
        output.print(
            "  [dim]* stands out: below the 10th or above the 90th percentile of the reference group; that alone does not raise the score[/dim]"
        )


def _show_without_embedding(without: WithoutEmbedding, target: str) -> None:
    output.print(
        f"  Without the learned pattern: {words(target)} {percent(without.probability.value)} ({percent(without.probability.low)} to "
        f"{percent(without.probability.high)}), {status_words(without.status, without.label)}. Named features reproduce "
        f"{max(without.reproduced_r2.value, 0.0):.0%} of what the pattern adds."
    )
    if without.disagrees:
        output.print("  [yellow]![/yellow] The two models answer differently: this answer rests on a pattern that has no name.")


def _percentile(value: float) -> str:
    """Only quantiles from 5 to 95 are known of the group; what lies beyond is said so."""
    if value <= 100 * LEVELS[0]:
        return f"≤{100 * LEVELS[0]:.0f}"
    return f"≥{100 * LEVELS[-1]:.0f}" if value >= 100 * LEVELS[-1] else f"{value:.0f}"
