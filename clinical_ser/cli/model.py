"""`clinical-ser model`: what models are there, what they are, and whether their bytes are what was signed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from clinical_ser.cli.console import FAILED, check_bundle_folder, check_output_folder, literal, output, print_json, print_line, program, progress
from clinical_ser.cli.explanation import with_unit
from clinical_ser.cli.model_history import diff, history
from clinical_ser.cohorts.manifest import read_manifest
from clinical_ser.cohorts.table import read_table
from clinical_ser.cohorts.tasks import TaskKind
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.card import Card, CardCheck, check_card
from clinical_ser.evaluation.card_facts import MAIN_FIGURES
from clinical_ser.evaluation.card_fields import about_template, item_list, label_of, read_about
from clinical_ser.evaluation.card_text import card_markdown, icc_cells
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.retest import Repeated, Retest, check_setting, measure_retest
from clinical_ser.features import catalogue
from clinical_ser.models.bundle import VerifiedBundle, read_bundle, sign_bundle, write_bundle
from clinical_ser.models.signing import SigningKey, default_key_path
from clinical_ser.registry.names import find_model, list_models

app = typer.Typer(help="List, describe, verify and sign models.", no_args_is_help=True)

LARGEST_EVIDENCE_BYTES = 20_000_000
_ANSWERS = ("flagged.", "not_flagged.", "indeterminate.")
"""Figures, class by class, of what people are answered."""

app.command()(history)
app.command()(diff)

Model = Annotated[str, typer.Argument(help="Name of an installed model, or a bundle's folder.", show_default=False)]


@app.command("list")
def list_() -> None:
    """List the models that ship, the registry's champions and those in your model folder."""
    name, digest = Column("name", no_wrap=True), Column("digest", no_wrap=True)
    table = Table(name, "version", "task", "signature", digest, "note", box=None)
    for entry in list_models():
        note = entry.problem or ("trained on simulated speech" if entry.simulated else "")
        task = entry.task.name if entry.task else ""
        table.add_row(
            literal(entry.name), literal(entry.version or ""), literal(task), str(entry.signature or ""), (entry.digest or "")[:12], literal(note)
        )
    output.print(table)


@app.command()
def card(
    model: Annotated[str | None, typer.Argument(help="Name of an installed model, or a bundle's folder.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print card.json; with --check, what is missing.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole card as Markdown.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 and name every blank item and every leak guard that failed.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the questions that a person answers (TOML), to fill in for --about.")] = False,
    about: Annotated[Path | None, typer.Option(help="Answers to add: the filled-in template (.toml).", show_default=False)] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option(help="Evaluation in another cohort to add: its evidence.json (repeatable).", show_default=False)
    ] = None,
    output_folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the model with this card into another folder, unsigned.", show_default=False)
    ] = None,
) -> None:
    """Show the card that travels with a model, add to it, or check that nothing in it is blank."""
    if template:
        print_line(about_template().rstrip("\n"))
        return
    if model is None:
        raise InvalidValueError("MODEL", None, "a model's name or folder, or --template")
    if markdown and (as_json or check):
        raise InvalidValueError("--markdown", "given with --json or --check", "one of them")
    answers = read_about(about) if about else None
    if output_folder:
        check_output_folder(output_folder)
    bundle = read_bundle(find_model(model))
    shown = Card.from_json(bundle.files["card.json"])
    if about or evidence:
        shown = shown.extended(supplied=answers, external=[_evidence_of(path, bundle) for path in evidence or ()])
    digest = _write(bundle, shown, output_folder) if output_folder else None
    if check:
        _print_check(check_card(shown), as_json=as_json)
    elif as_json:
        print_json(shown, indent=2)
    elif markdown:
        print_line(card_markdown(shown).rstrip("\n"))
    else:
        show_card(shown)
        if digest:
            output.print(f"Bundle written, digest {digest[:12]}, not signed. Sign it with: {program()} model sign {literal(output_folder)}")


def _percents(figure: Figure) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return str(figure)
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def _evidence_of(path: Path, bundle: VerifiedBundle) -> Evidence:
    """Read an evaluation, and make sure that it is of this model and not of another that is called alike."""
    if path.is_file() and path.stat().st_size > LARGEST_EVIDENCE_BYTES:
        raise InvalidValueError("--evidence", "a file of many megabytes", "an evidence.json of `evaluate`")
    evidence = Evidence.from_json(path.read_bytes())
    if evidence.model.learned != bundle.learned_digest:
        raise InvalidValueError("--evidence", "an evaluation of another model", "one that `evaluate` made with this bundle, whatever its card")
    return evidence


def _write(bundle: VerifiedBundle, card: Card, folder: Path) -> str:
    return write_bundle(folder, bundle.manifest, {**bundle.files, "card.json": card.to_json()})


def _print_check(found: CardCheck, *, as_json: bool) -> None:
    if as_json:
        print_json(found, indent=2)
    elif found.complete:
        accepted = f"; accepted: {literal(', '.join(found.accepted))}" if found.accepted else ""
        output.print(f"The card is complete: no item is blank, and no leak guard stands in the way{accepted}.")
    else:
        for name, keys in found.missing.items():
            for key in keys:
                output.print(f"  {literal(name)} {literal(key)}: blank")
        for leak in found.leaks:
            output.print(f"  leak guard, {literal(leak)}: failed, and not accepted")
        blank = sum(map(len, found.missing.values()))
        output.print(f"Not complete: {blank} blank items, {len(found.leaks)} leak guards that failed.")
        if found.questions:
            asked = "; ".join(f"{key} ({label_of(key)})" for key in found.questions)
            output.print(f"Answer {literal(asked)}. The file to fill in: {program()} model card --template")
    if not found.complete:
        raise typer.Exit(FAILED)


def show_card(card: Card) -> None:
    """Print what a model is and how well it does, in short."""
    facts, evidence = card.training, card.internal
    rows = ", ".join(f"{n} {what}" for what, n in facts.rows.items() if n)
    output.print(
        f"\n[bold]{literal(card.name)} {literal(card.version)}[/bold]  {literal(card.task.name)}, {literal(card.head)} head; rows: {literal(rows)}"
    )
    tested = ", ".join(f"{n} {literal(label)}" for label, n in evidence.flow.subjects_by_class.items())
    output.print(f"  {facts.subjects} subjects learned from; {evidence.flow.subjects} evaluated: {tested}")
    if card.statement:
        output.print(f"  [yellow]![/yellow] {literal(card.statement)}")
    output.print(_figure_table(card))
    for warning in card.warnings:
        output.print(f"  [yellow]![/yellow] {literal(warning)}")
    found = check_card(card)
    blank = [f"{len(keys)} of {len(item_list(name).item)} {name}" for name, keys in found.missing.items() if keys]
    if blank or found.leaks:
        failed = [f"{len(found.leaks)} leak guards failed"] if found.leaks else []
        output.print(
            f"  Not ready for release: blank items {', '.join([*blank, *failed])}. `model card --check` names them; `--markdown` prints all."
        )


def _figure_table(card: Card) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2))
    level = f"{100 * card.internal.level:g} % interval over subjects"
    for column in ("out of fold", "value", level, "subjects"):
        table.add_column(column, justify="left" if column == "out of fold" else "right")
    shown = [
        *MAIN_FIGURES[card.task.kind is TaskKind.BINARY],
        *(name for name in card.figures if name.startswith(_ANSWERS)),
        "answered",
        "not_usable",
    ]
    for name in shown:
        figure = card.figures.get(name)
        if figure is not None:
            known = figure.value is not None and figure.low is not None and figure.high is not None
            cells = (f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}") if known else ("not defined", "")
            table.add_row(literal(describe(name).title), *cells, f"{figure.subjects}")
    return table


@app.command()
def rerecord(
    model: Model,
    manifest: Annotated[Path, typer.Argument(help="Manifest of recordings to record again (CSV or Parquet).", show_default=False)],
    output_folder: Annotated[Path, typer.Option("--output", "-o", help="Write the model with this in its card, unsigned.", show_default=False)],
    most: Annotated[int, typer.Option(help="Recordings at most, spread over the manifest.", min=5)] = 50,
) -> None:
    """Measure how explanations hold when the same speech is softer, noisier or cut differently, and put it into the model's card."""
    from clinical_ser.screening.rerecording import rerecord as measure
    from clinical_ser.screening.rerecording import spoken_in
    from clinical_ser.screening.screener import Screener

    check_bundle_folder(output_folder, replace=False)
    bundle = read_bundle(find_model(model))
    screener = Screener(bundle)
    if screener.model.uses_baseline:
        raise InvalidValueError(
            "MODEL", "one that takes each person's baseline", "one that does not: their earlier recordings would have to change too"
        )
    spoken = spoken_in(read_manifest(manifest), most=most)
    with progress("Recording again") as report:
        found = measure(screener, spoken, progress=lambda done: report(done, len(spoken)))
    shown = Card.from_json(bundle.files["card.json"]).extended(rerecorded=found)
    digest = _write(bundle, shown, output_folder)
    for one in found:
        moved = f"the probability moves by {_percents(one.probability)} points, a family's effect by {_percents(one.effect)}"
        kept = f"same family first in {_percents(one.same_first)} %, same answer in {_percents(one.same_status)} %"
        output.print(f"  {literal(one.change)}: {moved}; {kept}; {one.refused} refused  [dim](95 % intervals over subjects)[/dim]")
    output.print(f"Bundle written, digest {digest[:12]}, not signed. Sign it with: {program()} model sign {literal(output_folder)}")


@app.command()
def retest(
    model: Model,
    table: Annotated[Path, typer.Argument(help="Feature table of people recorded twice or more while nothing changed.", show_default=False)],
    output_folder: Annotated[Path, typer.Option("--output", "-o", help="Write the model with this in its card, unsigned.", show_default=False)],
    setting: Annotated[str, typer.Option(help="How they were recorded again, such as 'a week apart, same device and task'.", show_default=False)],
) -> None:
    """Measure how well features and score repeat while nothing changes, and put it into the model's card: what `compare` measures a change by."""
    check_setting(setting)
    check_bundle_folder(output_folder, replace=False)
    bundle = read_bundle(find_model(model))
    found = measure_retest(bundle, read_table(table), setting=setting)
    digest = _write(bundle, Card.from_json(bundle.files["card.json"]).extended(retest=found), output_folder)
    _show_retest(found)
    output.print(f"Bundle written, digest {digest[:12]}, not signed. Sign it with: {program()} model sign {literal(output_folder)}")


def _show_retest(found: Retest) -> None:
    from clinical_ser.screening.measures import PANEL

    output.print(f"  {found.recordings} recordings of {found.subjects} subjects: {literal(found.setting)}")
    if found.changed:
        output.print(f"  [yellow]![/yellow] {found.changed} subjects left out, whose label changed between recordings: something did change")
    shown = Table(box=None, padding=(0, 2, 0, 2))
    for column in ("repeated", "SEM", "ICC(1,1)", "95 % interval", "subjects"):
        shown.add_column(column, justify="left" if column == "repeated" else "right")
    if found.log_odds:
        _add_repeated(shown, "score", f"{found.log_odds.sd_within:.3g} log-odds", found.log_odds)
    for name in (name for place in PANEL for name in place if name in found.features):
        spec, repeated = catalogue.get(name), found.features[name]
        _add_repeated(shown, spec.label_en, with_unit(f"{repeated.sd_within:.3g}", spec.unit), repeated)
    output.print(shown)
    output.print(f"  [dim]SEM: SD of one person's recordings; {len(found.features)} features in all are in the card's JSON[/dim]")


def _add_repeated(shown: Table, label: str, error: str, found: Repeated) -> None:
    shown.add_row(literal(label), error, *icc_cells(found), f"{found.subjects}")


@app.command()
def verify(model: Model, trusted: Annotated[bool, typer.Option("--trusted", help="Fail unless a trusted key signed it.")] = False) -> None:
    """Check every byte of a bundle against its manifest, and the manifest against its signature."""
    bundle = read_bundle(find_model(model), require_trusted=trusted)
    key = f" by key {bundle.signature.key_id}" if bundle.signature.key_id else ""
    output.print(f"{bundle.manifest.name} {bundle.manifest.version}: all files fit. Digest {bundle.digest}, {bundle.signature.state}{key}.")


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="Private key (PEM); this machine's otherwise.")] = None,
) -> None:
    """Sign a bundle, in place of any signature it has."""
    status = sign_bundle(bundle, SigningKey.load(key or default_key_path()))
    output.print(f"Signed by key {status.key_id}.")
