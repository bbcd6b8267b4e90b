"""`clinical-ser registry`: which bundles are kept, what each came from, and whether all of it is as it was written."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.cli.console import FAILED, literal, output, print_json, print_line
from clinical_ser.cli.train import own_key
from clinical_ser.cohorts.table import read_table
from clinical_ser.control.learning import take_in
from clinical_ser.control.unlearning import Replaced, forget_subject
from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.evaluation.card import Card
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.registry import Record, Registry
from clinical_ser.registry.names import find_model
from clinical_ser.registry.records import Role, check_name
from clinical_ser.strict import Strict

app = typer.Typer(help="Keep bundles with their origin, list and verify them.", no_args_is_help=True)

_SHOWN = 12

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Held(Strict):
    """A role that a bundle has under a name."""

    name: str
    role: Role


class Kept(Strict):
    """A bundle of the registry: its record and what has been added since."""

    record: Record
    roles: tuple[Held, ...]
    children: tuple[str, ...]
    attachments: tuple[str, ...]
    private: tuple[str, ...]
    """Names of the files that never travel."""


@app.command()
def add(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or name of an installed model.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name to keep it under; that of its manifest otherwise.", show_default=False)] = None,
    change: Annotated[
        Literal["imported", "trained"], typer.Option(help="Whether it came from elsewhere or was trained here from the start.")
    ] = "imported",
    table: Annotated[
        Path | None,
        typer.Option(help="The table it was trained on, here: what an update needs in place of the data is made from it.", show_default=False),
    ] = None,
    keep_contributions: Annotated[
        bool, typer.Option("--keep-contributions", help="With --table: keep what each person added, so that they can be taken out again.")
    ] = False,
) -> None:
    """Take a bundle in. It answers under no name before it is promoted."""
    if name is not None:
        check_name(name)
    registry = Registry.default()
    folder = find_model(bundle)
    taken = read_bundle(folder)
    subjects, recordings = _counts(taken)
    if keep_contributions and table is None:
        raise InvalidValueError("--keep-contributions", "given without --table", "the table that the model was trained on")
    change = change if table is None else "trained"
    if taken.digest in registry.digests():
        known = registry.record(taken.digest)
        if table is not None:
            take_in(registry, folder, known, read_table(table), keep_contributions=keep_contributions)
        else:
            registry.add(folder, known)
        output.print(
            f"Bundle {taken.digest[:_SHOWN]} is in the registry already, as {literal(known.name)}{'; its memory is now, too' if table else ''}."
        )
        return
    record = Record.of(taken, change=change, name=name, subjects=subjects, recordings=recordings)
    if table is not None:
        digest = take_in(registry, folder, record, read_table(table), keep_contributions=keep_contributions)
    else:
        digest = registry.add(folder, record)
    recorder = Recorder.find()
    recorder.record(Configuration(actor=recorder.actor, setting=f"registry: {record.name} added", old=None, new=digest), purpose=Purpose.OPERATIONS)
    output.print(f"Bundle {digest[:_SHOWN]} added as {literal(record.name)} {literal(record.version)}, {taken.signature.state}.")


def _counts(bundle: VerifiedBundle) -> tuple[dict[str, int], int]:
    """Return (subjects by class, recordings) as the bundle's card has them; nothing where it is a card of another version."""
    try:
        card = Card.from_json(bundle.files["card.json"])
    except BundleSchemaError:
        return {}, 0
    return card.internal.flow.subjects_by_class, card.training.recordings


@app.command()
def forget(
    subject: Annotated[str, typer.Argument(help="The person, as your tables name them.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.", show_default=False)],
    table: Annotated[
        Path | None, typer.Option(help="The champion's training table, for models whose sums cannot be freed: they are trained again without them.")
    ] = None,
    sign: Annotated[bool, typer.Option("--sign/--no-sign", help="Sign with this machine's key; made on first use.")] = True,
    as_json: AsJson = False,
) -> None:
    """Say which bundles learned from a person, make candidates that did not, and destroy what was kept of the person."""
    found = forget_subject(
        Registry.default(),
        subject,
        recorder=Recorder.find(),
        reason=reason,
        key=own_key() if sign else None,
        table=read_table(table) if table else None,
    )
    if as_json:
        print_json(found, indent=2)
    else:
        if not found.saw:
            output.print("No bundle of this registry is known to have learned from this person.")
        for each in found.saw:
            held = f", answers as {literal(', '.join(each.answers_as))}" if each.answers_as else ""
            output.print(f"  {each.bundle[:_SHOWN]} {literal(each.name)} {literal(each.version)} learned from this person{held}")
        if found.cannot_say:
            unsure = ", ".join(digest[:_SHOWN] for digest in found.cannot_say)
            output.print(f"  [yellow]![/yellow] cannot say of {unsure}: nobody wrote down whom they learned from (`registry add --table` does)")
        for one in found.replaced:
            _show_replaced(one)
        output.print("Nothing learns from this person again: their rows are refused from now on.")
    if not found.done:
        raise typer.Exit(FAILED)


def _show_replaced(one: Replaced) -> None:
    if one.candidate is None:
        output.print(f"[yellow]![/yellow] {literal(one.name)} still answers with what it learned: {literal(one.why or '')}")
        return
    how = {"subtracted": "taken out of its sums", "retrained": "trained again without them"}.get(one.how, "done before")
    calibration = "" if one.calibration_too else ", but for the two numbers of its last recalibration"
    output.print(f"{literal(one.name)}: {how}{calibration}. Candidate {one.candidate[:_SHOWN]} is the challenger.")
    output.print(f"  {one.champion[:_SHOWN]} answers until the candidate is let through (`gate`, `model approve`, `model promote`).")


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the bundles, oldest first, and the roles they have."""
    registry = Registry.default()
    held = _held(registry)
    if as_json:
        print_line(json.dumps([_kept(registry, record.bundle, held).model_dump(mode="json") for record in registry.records()]))
        return
    if not registry.digests():
        output.print("The registry is empty: `registry add` takes a bundle in.")
    for record in registry.records():
        roles = ", ".join(f"{one.name}@{one.role}" for one in held.get(record.bundle, ()))
        output.print(f"{record.bundle[:_SHOWN]}  {literal(record.name)} {literal(record.version)}  [bold]{literal(roles)}[/bold]".rstrip())
        facts = [record.change + (f" from {record.parent[:_SHOWN]}" if record.parent else "")]
        facts += [f"{sum(record.subjects.values())} subjects"] if record.subjects else []
        facts += [f"epsilon {record.epsilon:g}"] if record.epsilon is not None else []
        output.print(f"  {', '.join(facts)}")


@app.command()
def show(
    bundle: Annotated[str, typer.Argument(help="Digest (8 digits at least), name, or name@champion, @challenger, @shadow.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show what a bundle came from, what came from it, and what is kept with it."""
    registry = Registry.default()
    digest = registry.find(bundle)
    kept = _kept(registry, digest, _held(registry))
    if as_json:
        print_json(kept, indent=2)
        return
    record, signature = kept.record, registry.bundle(digest).signature
    subjects = ", ".join(f"{count} {label}" for label, count in record.subjects.items())
    rows = {
        "digest": digest,
        "name": f"{record.name} {record.version}, {record.task}" + (", simulated speech" if record.simulated else ""),
        "signature": f"{signature.state}" + (f", key {signature.key_id}" if signature.key_id else ""),
        "change": record.change + (f", because {record.because}" if record.because else ""),
        "details": ", ".join(f"{name} {value}" for name, value in record.details.items()),
        "parent": record.parent or "",
        "plan": record.plan or "",
        "subjects of this step": subjects,
        "recordings of this step": str(record.recordings) if record.recordings else "",
        "data": record.cohort_digest,
        "epsilon": "" if record.epsilon is None else f"{record.epsilon:g}",
        "extractors": ", ".join(f"{name} {version}" for name, version in record.extractors.items()),
        "encoders": ", ".join(f"{name} {version}" for name, version in record.encoders.items()),
        "software": ", ".join(f"{name} {version}" for name, version in record.software.items()),
        "created": record.created.isoformat(timespec="seconds"),
        "answers as": ", ".join(f"{one.name}@{one.role}" for one in kept.roles),
        "children": ", ".join(child[:_SHOWN] for child in kept.children),
        "attachments": ", ".join(name[:_SHOWN] for name in kept.attachments),
        "kept private": ", ".join(kept.private),
    }
    for title, text in rows.items():
        if text:
            output.print(f"  [dim]{title}[/dim]  {literal(text)}")


@app.command()
def verify() -> None:
    """Read every byte of the registry; exit 1 and say what does not fit."""
    registry = Registry.default()
    problems = registry.verify()
    for problem in problems:
        output.print(f"  {literal(problem)}")
    if problems:
        output.print(f"Not whole: {len(problems)} problems.")
        raise typer.Exit(FAILED)
    output.print(f"All of it fits: {len(registry.digests())} bundles, {len(registry.names())} names.")


def _held(registry: Registry) -> dict[str, list[Held]]:
    held: dict[str, list[Held]] = {}
    for name in registry.names():
        for role, digest in registry.pointers(name).held.items():
            held.setdefault(digest, []).append(Held(name=name, role=role))
    return held


def _kept(registry: Registry, digest: str, held: dict[str, list[Held]]) -> Kept:
    return Kept(
        record=registry.record(digest),
        roles=tuple(held.get(digest, ())),
        children=registry.children(digest),
        attachments=registry.attachments(digest),
        private=registry.private_names(digest),
    )
