"""`clinical-ser gate`: champion against challenger on the plan's frozen holdouts; a comparison and its report out, for two roles to sign."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.cli.console import FAILED, check_output_folder, errors, literal, output, print_json, program
from clinical_ser.cohorts.table import FeatureTable, read_table, replaced
from clinical_ser.control.approval import Approval
from clinical_ser.control.gate import Comparison, Verdict, compare, left_by_records
from clinical_ser.control.parts import ChangePlan, Modification
from clinical_ser.control.plan import Change, read_plan
from clinical_ser.control.promotion import covered, members_of
from clinical_ser.control.site_figures import LARGEST_SUMMARY_BYTES, summaries_from_json
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.figure import Figure
from clinical_ser.folders import user_folder
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.registry import Registry
from clinical_ser.registry.names import read_model

OUTCOMES = {"met": "met", "not_met": "[bold]NOT met[/bold]", "cannot_be_judged": "[bold]cannot be judged[/bold]"}
COMPARISON = "comparison.json"
Model = "A model's name, `name@challenger`, the digest of a bundle in the registry, or a bundle's folder."


def gate(
    champion: Annotated[str, typer.Argument(help=Model, show_default=False)],
    challenger: Annotated[str, typer.Argument(help=Model, show_default=False)],
    plan: Annotated[Path, typer.Option(help="The change-control plan (pccp.toml).", show_default=False)],
    output_folder: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for comparison.json, the report and each site's summary.", show_default=False)
    ],
    holdout: Annotated[
        list[str] | None, typer.Option(help="A site and its frozen feature table: SITE=TABLE (repeatable).", show_default=False)
    ] = None,
    summary: Annotated[
        list[Path] | None,
        typer.Option(help="Summary that another site made of its holdout, or sites.json of a federated run (repeatable).", show_default=False),
    ] = None,
    modification: Annotated[
        str | None, typer.Option(help="Of the plan; needed for a challenger that is not in the registry.", show_default=False)
    ] = None,
    epsilon_left: Annotated[
        float | None,
        typer.Option(help="What is left of the privacy budget after the change, by hand; the report says so. Otherwise as the registry counted."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Judge a challenger against the champion by the plan; exit 1 if a requirement is not met."""
    asked = read_plan(plan)
    tables = _tables(holdout or [])
    summaries = [one for path in summary or [] for one in summaries_from_json(_bytes(path))]
    if not tables and not summaries:
        raise InvalidValueError("--holdout", None, "the holdouts of the plan, or summaries of them with --summary")
    check_output_folder(output_folder)
    before, after = read_model(champion), read_model(challenger)
    registry = Registry.default() if user_folder("data") else None
    change, which = _change(registry, asked, after, modification)
    errors.print("Comparing ...")
    found = compare(
        asked,
        which,
        before,
        after,
        tables,
        summaries=summaries,
        members=members_of(registry, [before.digest, after.digest]) if registry else None,
        epsilon_left=(None if change is None else left_by_records(which, change)) if epsilon_left is None else epsilon_left,
        epsilon_from="records" if epsilon_left is None else "hand",
        change=change,
    )
    write_comparison(found, asked, output_folder)
    if registry is not None and change is not None:
        recorder = Recorder.find()
        told = f"comparison {found.digest}: {'met' if found.met else f'{len(found.not_met)} requirements not met'}"
        setting = f"model {found.model}: gate under plan {asked.digest}"
        recorder.record(
            Configuration(actor=recorder.actor, setting=setting, old=before.digest, new=told), purpose=Purpose.OPERATIONS, model=after.digest
        )
        registry.attach(after.digest, found.to_json())
    if as_json:
        print_json(found)
    else:
        show(found)
        if found.met:
            approve = f"model approve {literal(output_folder / COMPARISON)} --plan {literal(plan)} --role ROLE --name NAME --key KEY"
            output.print(f"Next: {program()} {approve}")
    if not found.met:
        raise typer.Exit(FAILED)


def write_comparison(found: Comparison, plan: ChangePlan, folder: Path) -> None:
    """Write comparison.json, report.html, report.pdf and a summary a site; each replaces what is there in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, {COMPARISON: found.to_json()} | {f"{site.site}.figures.json": site.to_json() for site in found.sites})
    write_reports(found, plan, folder)


def write_reports(found: Comparison, plan: ChangePlan, folder: Path, approvals: Sequence[Approval] = ()) -> None:
    """Write report.html and report.pdf with the signatures that there are."""
    from reports.change import html_report, pdf_report

    _write(folder, {"report.html": html_report(found, plan, approvals).encode(), "report.pdf": pdf_report(found, plan, approvals)})


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        with replaced(folder / name) as unfinished:
            unfinished.write_bytes(content)


def show(found: Comparison) -> None:
    """Print the verdicts."""
    output.print(f"\n[bold]{literal(found.model)}[/bold]  {found.champion[:12]} against {found.challenger[:12]}, {literal(found.modification)}")
    for site in found.sites:
        people = ", ".join(f"{n} {literal(label)}" for label, n in site.subjects_by_class.items())
        output.print(f"  {literal(site.site)}: {site.recordings} recordings of {site.subjects} people ({people})")
        if not site.members_checked:
            output.print("  [yellow]![/yellow] not checked whether people of it taught a model: the registry does not know whom they learned from")
    table = Table(box=None, padding=(0, 1, 0, 1))
    for column in ("requirement", "where", "champion", "challenger", "judged", ""):
        table.add_column(column, overflow="fold", no_wrap=column == "requirement")
    for one in found.verdicts:
        table.add_row(*_row(one))
    output.print(table)
    if found.simulated:
        output.print("  [yellow]![/yellow] simulated speech: the figures mean nothing for a real person")
    output.print(f"{'All requirements are met' if found.met else f'{len(found.not_met)} requirements are NOT met'}. Comparison {found.digest}")


def _row(one: Verdict) -> tuple[str, ...]:
    judged = one.because or "" if one.judged is None else str(one.judged)
    return (*map(literal, (one.requirement, one.where, _value(one.champion), _value(one.challenger), judged)), OUTCOMES[one.outcome])


def _value(figure: Figure | None) -> str:
    return "" if figure is None or figure.value is None else f"{figure.value:.3f}"


def _tables(given: list[str]) -> dict[str, FeatureTable]:
    tables = {}
    for text in given:
        site, equals, path = text.partition("=")
        if not equals or not site or not path:
            raise InvalidValueError("--holdout", "a text without a site, an equals sign and a table", "SITE=TABLE, such as north=north.parquet")
        if site in tables:
            raise InvalidValueError("--holdout", f"site {site!r} twice", "each site once")
        tables[site] = read_table(Path(path))
    return tables


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST_SUMMARY_BYTES + 1)


def _change(registry: Registry | None, plan: ChangePlan, challenger: VerifiedBundle, modification: str | None) -> tuple[Change | None, Modification]:
    """Return what was done and what covers it, as the registry has it; or what the caller says, for a bundle that is not in one."""
    if registry is not None and challenger.digest in registry.digests():
        change, found = covered(registry, plan.plan.model, challenger.digest, plan, recorder=Recorder.find())
        if modification not in {None, found.id}:
            raise InvalidValueError("--modification", modification, f"{found.id!r}, which covers what the registry's record says, or none")
        return change, found
    if modification is None:
        raise InvalidValueError("--modification", None, f"one of {[one.id for one in plan.modification]}: the challenger is not in the registry")
    return None, plan.modification_of(modification)
