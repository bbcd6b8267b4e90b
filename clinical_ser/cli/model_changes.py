"""`clinical-ser model approve|shadow|promote|rollback|withdraw`: who answers under a name, changed by the plan and recorded."""

from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.cli.console import literal, output, program
from clinical_ser.cli.gate import write_reports
from clinical_ser.control import promotion
from clinical_ser.control.approval import RoleKey, read_signatures
from clinical_ser.control.approval import approve as approve_comparison
from clinical_ser.control.gate import LARGEST_COMPARISON_BYTES, Comparison
from clinical_ser.control.parts import ChangePlan
from clinical_ser.control.plan import read_plan
from clinical_ser.control.unlearning import destroy_what_is_left, knows_forgotten
from clinical_ser.errors import ChangePlanError, InvalidValueError
from clinical_ser.models.signing import default_key_path
from clinical_ser.monitoring.journal import Journal
from clinical_ser.registry import Entry, Registry

Bundle = Annotated[str, typer.Argument(help="A bundle in the registry: 8 hex digits of its digest or more, or NAME@challenger.", show_default=False)]
PlanOption = Annotated[Path, typer.Option("--plan", help="The change-control plan (pccp.toml).", show_default=False)]
Name = Annotated[str, typer.Argument(help="The name under which the model answers.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.", show_default=False)]


def approve(
    comparison: Annotated[Path, typer.Argument(help="comparison.json of `gate`.", show_default=False)],
    plan: PlanOption,
    role: Annotated[str, typer.Option(help="The role that approves, as the plan names it.", show_default=False)],
    name: Annotated[str, typer.Option(help="Your name; it becomes part of what is signed.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="Private key of the role (PEM); this machine's otherwise.")] = None,
) -> None:
    """Sign a comparison in a role, and keep the signature with the challenger in the registry."""
    read, asked = _read(comparison), read_plan(plan)
    signed = approve_comparison(asked, read, role=role, name=name, key=RoleKey.load(key or default_key_path()))
    registry, recorder = Registry.default(), Recorder.find()
    promotion.check_signed(registry, asked, read)
    told = f"{signed.sha256} of comparison {read.digest} by {signed.name} (key {signed.key_id})"
    recorder.record(
        Configuration(actor=recorder.actor, setting=f"model {read.model}: approval by {signed.role}", old=None, new=told),
        purpose=Purpose.OPERATIONS,
        model=read.challenger,
    )
    registry.attach(read.challenger, read.to_json())
    registry.attach(read.challenger, signed.to_json())
    output.print(f"Approved as {literal(role)} by key {signed.key_id}: comparison {read.digest[:12]} of bundle {read.challenger[:12]}.")
    output.print(f'  "{literal(signed.meaning)}"')
    approvals = promotion.approvals_of(registry, read)
    write_reports(read, asked, comparison.parent, approvals)
    output.print(f"  {len(approvals)} of {len(asked.role)} roles have signed; report.html and report.pdf beside the comparison say so.")


def shadow(bundle: Bundle, plan: PlanOption, reason: Annotated[str, typer.Option(help="Why.", show_default=False)] = "") -> None:
    """Let a challenger answer silently beside the champion: nothing it says is given out."""
    asked, registry = read_plan(plan), Registry.default()
    digest = registry.find(bundle)
    entry = promotion.shadow(registry, asked.plan.model, digest, asked, recorder=Recorder.find(), signatures=read_signatures(plan), reason=reason)
    _tell(entry, f"{digest[:12]} answers in the shadow of {literal(entry.name)}")


def promote(
    bundle: Bundle,
    plan: Annotated[Path | None, typer.Option("--plan", help="The change-control plan (pccp.toml).", show_default=False)] = None,
    first: Annotated[str | None, typer.Option(help="Let a first bundle answer under this name, which has none yet.", show_default=False)] = None,
    reason: Annotated[str, typer.Option(help="Why; needed with --first.", show_default=False)] = "",
    journal: Annotated[
        Path | None,
        typer.Option(
            help="The server's folder of counts, where the plan asks for recordings in the shadow; that of this site's server otherwise.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a challenger the champion: only what the plan covers, the gate found met, and every role approved."""
    registry = Registry.default()
    digest = registry.find(bundle)
    if plan is None and first is None:
        raise InvalidValueError("--plan", None, "the plan, or --first NAME for a first bundle (with --plan too, to bind the plan from the beginning)")
    asked = None if plan is None else read_plan(plan)
    signatures = () if plan is None else read_signatures(plan)
    if first is not None:
        entry = promotion.open_name(registry, first, digest, recorder=Recorder.find(), reason=reason, plan=asked, signatures=signatures)
    elif asked is not None:
        entry = promotion.promote(
            registry,
            asked.plan.model,
            digest,
            asked,
            recorder=Recorder.find(),
            signatures=signatures,
            journal=_journal(journal, asked),
            reason=reason,
        )
    _tell(entry, f"{digest[:12]} answers as {literal(entry.name)}")
    destroy_what_is_left(registry)
    if first is not None and plan is None:
        output.print(
            f"  [yellow]![/yellow] no plan is bound to {literal(entry.name)}: the first plan that promotes will be trusted on first use. "
            "Bind one from the beginning with --plan."
        )
    elif first is None:
        output.print(f"  Back at once with: {program()} model rollback {literal(entry.name)} --reason REASON")


def rollback(
    name: Name,
    reason: Reason,
    to: Annotated[
        str | None, typer.Option(help="A bundle that was champion: its digest. Needed for one that was withdrawn.", show_default=False)
    ] = None,
) -> None:
    """Bring back the champion before, at once; one that was withdrawn only when it is asked for with --to."""
    registry = Registry.default()
    entry = promotion.rollback(registry, name, recorder=Recorder.find(), reason=reason, to=registry.find(to) if to else None)
    _tell(entry, f"{(entry.pointers.champion or '')[:12]} answers again as {literal(name)}")
    if gone := knows_forgotten(registry, entry.pointers.champion or ""):
        output.print(
            f"  [yellow]![/yellow] it learned from {gone} people who were to be forgotten: `registry forget` makes a candidate without them again"
        )


def withdraw(
    name: Name,
    reason: Reason,
    champion: Annotated[bool, typer.Option("--champion", help="The champion too: then nothing answers under the name.")] = False,
) -> None:
    """Take challenger and shadow away; with --champion, let nothing answer under the name."""
    entry = promotion.withdraw(Registry.default(), name, recorder=Recorder.find(), reason=reason, champion=champion)
    _tell(entry, f"Withdrawn from {literal(name)}")


def _journal(folder: Path | None, plan: ChangePlan) -> Journal | None:
    """Return the journal that is given, or, where the plan asks for one, that of the server that is configured here."""
    if folder is None and plan.protocol.shadow_recordings:
        from clinical_ser.api.configuration import ServerConfiguration

        folder = ServerConfiguration.find().monitoring.folder
    return None if folder is None else Journal(folder)


def _tell(entry: Entry, what: str) -> None:
    output.print(f"{what}. Entry {entry.number} of its history, {entry.digest[:12]}.")
    if not Recorder.find().is_on:
        output.print("  [yellow]![/yellow] this site has no audit log, so only the registry's history has it")


def _read(path: Path) -> Comparison:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_COMPARISON_BYTES + 1)
    except OSError as error:
        raise ChangePlanError(f"The comparison cannot be read: {error.strerror}.") from None
    return Comparison.from_json(raw)
