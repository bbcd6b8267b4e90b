"""`clinical-ser update`: a champion learns from new recordings, as far as the change-control plan lets it."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from clinical_ser.audit.answering import Recorder
from clinical_ser.cli.cohort import processors
from clinical_ser.cli.console import literal, output, print_json, program, progress
from clinical_ser.cli.train import check_version, own_key
from clinical_ser.cohorts.table import read_table
from clinical_ser.continual.recalibration import Gain, Justified
from clinical_ser.continual.self_training import Intake
from clinical_ser.continual.updating import UpdateOptions
from clinical_ser.control.learning import Learned, Learning, Method, learn
from clinical_ser.control.plan import read_plan
from clinical_ser.errors import InvalidValueError
from clinical_ser.registry import Registry
from clinical_ser.strict import Strict


class Outcome(Strict):
    """What `update --json` prints."""

    bundle: str | None
    """Digest of the challenger; None where nothing needs to change."""
    change: str | None
    justified: Justified | None
    unlabelled: Intake | None


def update(
    table: Annotated[Path, typer.Argument(help="Feature table of new people with labels; for --method retrain, of everybody.", show_default=False)],
    plan: Annotated[Path, typer.Option("--plan", help="The change-control plan (pccp.toml); it names the model.", show_default=False)],
    version: Annotated[str, typer.Option(help="Of the challenger.", show_default=False)],
    method: Annotated[
        Method,
        typer.Option(help="justified: the smallest answer that the new people justify; recalibrate: intercept or slope; update: all; retrain: anew."),
    ] = "justified",
    step: Annotated[
        Literal["intercept", "slope"] | None, typer.Option(help="Of a recalibration, in place of what the test says.", show_default=False)
    ] = None,
    forgetting: Annotated[float, typer.Option(help="What a person of then is worth in people of now; 1 forgets nothing.")] = 1.0,
    unlabelled: Annotated[Path | None, typer.Option(help="Feature table of recordings without labels, to be heard too.", show_default=False)] = None,
    unlabelled_weight: Annotated[
        float | None, typer.Option(help="What these weigh together at most, as a share of the labelled ones.", show_default=False)
    ] = None,
    trigger: Annotated[str, typer.Option(help="Why: scheduled, request, or alarm:ID.")] = "scheduled",
    keep_contributions: Annotated[
        bool, typer.Option("--keep-contributions", help="Keep what each person adds in the registry, so that they can be taken out again.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of folds and bootstrap samples.")] = 0,
    sign: Annotated[bool, typer.Option("--sign/--no-sign", help="Sign with this machine's key; made on first use.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a challenger of the champion and new recordings. It answers nothing before the gate and the signatures."""
    check_version(version)
    if step is not None and method not in {"justified", "recalibrate"}:
        raise InvalidValueError("--step", f"given with --method {method}", "--method recalibrate, or none")
    if method in {"recalibrate", "retrain"} and (keep_contributions or unlabelled):
        raise InvalidValueError("--keep-contributions, --unlabelled", f"given with --method {method}", "an update, in which coefficients learn")
    asked, registry = read_plan(plan), Registry.default()
    how = Learning(
        method="recalibrate" if step else method,
        step=step,
        options=UpdateOptions(forgetting=forgetting, seed=seed),
        unlabelled_weight=unlabelled_weight,
        trigger=trigger,
        keep_contributions=keep_contributions,
        workers=processors(),
    )
    new, silent = read_table(table), read_table(unlabelled) if unlabelled else None
    key = own_key() if sign else None
    with progress("Updating"):
        found = learn(registry, asked.plan.model, new, asked, version, key=key, recorder=Recorder.find(), learning=how, unlabelled=silent)
    if as_json:
        print_json(Outcome(bundle=found.digest, change=found.change, justified=found.justified, unlabelled=found.intake), indent=2)
        return
    _show(found, asked.plan.model, plan)


def _show(found: Learned, name: str, plan: Path) -> None:
    if found.justified is not None:
        _show_test(found.justified)
    if found.intake is not None:
        taken = "they are in the model" if found.intake.used else "they are left out: the interval reaches 0 or below"
        output.print(
            f"  {found.intake.offered} recordings without labels save {_nats(found.intake.gain)} of log-loss on labelled people out of fold: {taken}."
        )
    if found.digest is None:
        output.print(f"Nothing is to be done: what new people say is within what {literal(name)} was not sure of on the day of its release.")
        return
    assert found.card is not None
    for warning in found.card.warnings:
        output.print(f"  [yellow]![/yellow] {literal(warning)}")
    if found.displaced is not None and found.displaced != found.digest:
        output.print(f"  [yellow]![/yellow] it takes the place of challenger {found.displaced[:12]}, and ends that one's time in the shadow")
    output.print(f"The challenger of {literal(name)} is {found.digest[:12]} ({found.change}); it answers nothing yet.")
    compared = f"gate {literal(name)} {literal(name)}@challenger --plan {literal(plan)} --holdout SITE=TABLE -o DIR"
    output.print(f"  Compare it on the frozen holdouts: {program()} {compared}")


def _show_test(found: Justified) -> None:
    people = ", ".join(f"{n} {literal(label)}" for label, n in found.people.items())
    output.print(f"What new people justify ({people}): [bold]{found.step}[/bold]")
    table = Table(box=None, padding=(0, 2, 0, 2))
    for column in ("step", "numbers", "likelihood ratio", "p"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for one in found.tried:
        ratio, p = ("", "") if one.statistic is None or one.p is None else (f"{one.statistic:.2f}", f"{one.p:.3g}")
        table.add_row(one.step, str(one.numbers), ratio, p)
    output.print(table)
    if found.gain is not None:
        output.print(f"  A full update saves {_nats(found.gain)} of log-loss a person on the smaller answer, out of fold.")


def _nats(gain: Gain) -> str:
    return f"{gain.value:.4f} nats ({gain.low:.4f} to {gain.high:.4f}, 95 % over people)"
