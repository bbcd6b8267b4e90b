"""Evidence on the way out of the command line: into files, and onto the screen."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from clinical_ser.cli.console import complain, errors, literal, output
from clinical_ser.cohorts.table import replaced
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.card_text import card_markdown
from clinical_ser.evaluation.evidence import Evidence, GateResult
from clinical_ser.evaluation.naming import describe
from clinical_ser.models.bundle import VerifiedBundle

HEADLINES = {
    True: ("auroc", "auprc", "sensitivity", "specificity", "calibration_intercept", "calibration_slope", "brier", "ece_debiased", "deferred"),
    False: ("uar", "accuracy", "f1_macro", "calibration_slope", "brier", "ece_debiased", "deferred"),
}
"""What is printed; everything is in the files."""


def write_report(evidence: Evidence, folder: Path) -> None:
    """Write evidence.json, report.html and report.pdf; each replaces what is there in one step."""
    from reports.cohort import html_report, pdf_report

    files = {
        "evidence.json": evidence.model_dump_json(indent=2).encode() + b"\n",
        "report.html": html_report(evidence).encode(),
        "report.pdf": pdf_report(evidence),
    }
    _write_files(folder, files)


def write_card(evidence: Evidence, bundle: VerifiedBundle, folder: Path) -> None:
    """Write card.json and card.md: the bundle's card with this evaluation added to those in other cohorts."""
    card = Card.from_json(bundle.files["card.json"]).extended(external=[evidence])
    _write_files(folder, {"card.json": card.to_json(), "card.md": card_markdown(card).encode()})


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replaced(folder / name) as unfinished:
            unfinished.write_bytes(content)


def show(evidence: Evidence, results: tuple[GateResult, ...] = ()) -> None:
    """Print the headlines of an evaluation."""
    flow = evidence.flow
    origin = "out of fold" if evidence.origin == "out_of_fold" else "in a cohort it has not seen"
    output.print(f"\n[bold]{literal(evidence.model.name)} {literal(evidence.model.version)}[/bold]  {literal(evidence.task.name)}, {origin}")
    classes = ", ".join(f"{n} {literal(label)}" for label, n in flow.subjects_by_class.items())
    output.print(f"  {flow.evaluated} recordings of {flow.subjects} subjects ({classes}); {flow.not_usable} refused by the gate")
    if evidence.model.statement:
        output.print(f"  [yellow]![/yellow] {literal(evidence.model.statement)}")
    table = Table(box=None, padding=(0, 2, 0, 2))
    for column, side in (("", "left"), ("value", "right"), ("95 % interval", "left"), ("subjects", "right")):
        table.add_column(column, justify="left" if side == "left" else "right", no_wrap=True)
    for name in HEADLINES[evidence.binary is not None]:
        figure = evidence.figures.get(name)
        if figure is not None and figure.value is not None:
            bounds = "" if figure.low is None or figure.high is None else f"{figure.low:.3f} to {figure.high:.3f}"
            table.add_row(describe(name).title, f"{figure.value:.3f}", bounds, str(figure.subjects))
    output.print(table)
    for gap in evidence.gaps:
        if gap.figure in HEADLINES[evidence.binary is not None][:1]:
            output.print(
                f"  Worst-group gap in {describe(gap.figure).title} by {literal(gap.column)}: {gap.difference} (worst: {literal(gap.worst)})"
            )
    for comparison in evidence.comparisons:
        if comparison.kind != "chance":
            title = describe(comparison.figure).title
            output.print(f"  {title} less {literal(comparison.against)}: {comparison.difference}")
    for warning in evidence.warnings:
        output.print(f"  [yellow]![/yellow] {literal(warning)}")
    _show_leaks(evidence)
    for result in results:
        word = "met" if result.met else "NOT MET"
        (output.print if result.met else errors.print)(
            f"  Gate {literal(result.name)}: {word}; {literal(result.found)}, wanted {literal(result.wanted)}"
        )


def _show_leaks(evidence: Evidence) -> None:
    if unseen := [finding.name for finding in evidence.leaks if finding.verdict == "not_checked"]:
        complain("Not checked", f"{', '.join(unseen)}; --training TABLE, and --features TABLE with --predictions, let the guards look")
    for finding in evidence.leaks:
        if finding.verdict in {"warn", "fail"}:
            complain(f"Leak guard {finding.name}: {finding.verdict}", finding.statement)


def passes(evidence: Evidence, results: tuple[GateResult, ...]) -> bool:
    """Return whether every leak guard passed or was accepted and every gate is met; complain by name where not."""
    failed = [finding.name for finding in evidence.leaks if finding.verdict == "fail" and finding.name not in evidence.accepted_leaks]
    unmet = [result.name for result in results if not result.met]
    if failed:
        complain("Failed", f"the test was no test: {', '.join(failed)}. Mend it, or accept it by name with --accept-leak; the report says so then")
    if unmet:
        complain("Not released", f"gates not met: {', '.join(unmet)}")
    return not failed and not unmet
