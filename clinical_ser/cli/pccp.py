"""`clinical-ser pccp`: the change-control plan: an example to fill in, its checker, its keys and its signatures."""

import base64
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.cli.console import FAILED, literal, output, print_json, print_line
from clinical_ser.cohorts.table import read_table
from clinical_ser.control.approval import RoleKey, read_signatures, sign_plan, signed_roles, write_signature
from clinical_ser.control.plan import example_plan, inspect_plan, left_open, read_plan
from clinical_ser.control.site_figures import table_digest
from clinical_ser.models.signing import default_key_path
from clinical_ser.strict import Strict

app = typer.Typer(help="Write, check and sign the plan by which a model may change.", no_args_is_help=True)

Plan = Annotated[Path, typer.Argument(help="The plan (pccp.toml).", show_default=False)]


class PlanCheck(Strict):
    """What `pccp check --json` prints."""

    valid: bool
    ready: bool
    """Filled in, and signed by every role."""
    digest: str | None
    faults: tuple[str, ...]
    to_fill_in: tuple[str, ...]
    signed: dict[str, str | None]
    """By role, the key that signed; None where none did."""


@app.command()
def example() -> None:
    """Print an example plan, to fill in."""
    print_line(example_plan().rstrip("\n"))


@app.command()
def check(plan: Plan, as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False) -> None:
    """Name every fault of a plan with its place, what is not filled in, and who signed; exit 1 for a plan with faults."""
    found, faults = inspect_plan(plan)
    valid = found is not None and not faults
    signed = signed_roles(found, read_signatures(plan)) if found is not None and valid else {}
    open_ = left_open(found) if found is not None else ()
    told = PlanCheck(
        valid=valid,
        ready=valid and not open_ and all(signed.values()),
        digest=found.digest if found is not None and valid else None,
        faults=tuple(map(str, faults)),
        to_fill_in=open_,
        signed={role: one.key_id if one else None for role, one in signed.items()},
    )
    if as_json:
        print_json(told, indent=2)
    else:
        _show(told)
        if found is not None and valid:
            about, kinds = found.plan, ", ".join(one.id for one in found.modification)
            output.print(
                f"  {literal(found.label)}: {literal(kinds)}; {len(found.requirement)} requirements, {len(found.holdout)} holdouts; "
                f"holds from {about.effective.isoformat()} to {about.expires.isoformat()}"
            )
    if not valid:
        raise typer.Exit(FAILED)


def _show(told: PlanCheck) -> None:
    for fault in told.faults:
        output.print(f"  {literal(fault)}")
    if not told.valid:
        output.print(f"The plan has {len(told.faults)} faults.")
        return
    output.print(f"The plan has no fault. Digest {told.digest}")
    for what in told.to_fill_in:
        output.print(f"  [yellow]![/yellow] to fill in: {literal(what)}")
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("role")
    table.add_column("signed by key")
    for role, key in told.signed.items():
        table.add_row(literal(role), key or "not signed")
    output.print(table)


@app.command()
def sign(
    plan: Plan,
    role: Annotated[str, typer.Option(help="The role that signs, as the plan names it.", show_default=False)],
    name: Annotated[str, typer.Option(help="Your name; it becomes part of what is signed.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="Private key of the role (PEM); this machine's otherwise.")] = None,
    handing_over: Annotated[
        bool, typer.Option("--handing-over", help="Your key is of the plan before, which this one is to replace: you agree to that.")
    ] = False,
) -> None:
    """Sign a plan in a role; the signature lies beside it."""
    asked, recorder = read_plan(plan), Recorder.find()
    signature = sign_plan(asked, role=role, name=name, key=RoleKey.load(key or default_key_path()), handing_over=handing_over)
    told = f"{signature.sha256} of plan {asked.digest} by {signature.name} (key {signature.key_id}){', handing over' if handing_over else ''}"
    setting = f"plan {asked.label}: signature by {signature.role}"
    recorder.record(Configuration(actor=recorder.actor, setting=setting, old=None, new=told), purpose=Purpose.OPERATIONS)
    write_signature(plan, signature)
    output.print(f"Signed as {literal(role)} by key {signature.key_id}: plan {signature.plan}.")


@app.command("key")
def key_(
    key: Annotated[Path | None, typer.Argument(help="Private key (PEM); this machine's otherwise.", show_default=False)] = None,
    new: Annotated[bool, typer.Option("--new", help="Make it first; the file must not be there.")] = False,
) -> None:
    """Print the public half of a key as a plan's `keys` have it."""
    path = key or default_key_path()
    if new:
        RoleKey.generate().save(path)
    print_line(base64.b64encode(RoleKey.load(path).public.raw).decode("ascii"))


@app.command()
def digest(table: Annotated[Path, typer.Argument(help="Feature table of a holdout.", show_default=False)]) -> None:
    """Print the digest of a holdout's content, as the plan's `sha256` has it."""
    print_line(table_digest(read_table(table)))
