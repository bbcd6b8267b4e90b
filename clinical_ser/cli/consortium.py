"""`clinical-ser consortium`: the coordinator's side of training across sites.

The one idea: `serve` keeps the SuperLink up and `run` hands it one plan; a run that broke off goes on with `resume`, from its last exchange.
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from clinical_ser.cli.console import complain, errors, literal, output, print_line, program
from clinical_ser.cli.node import needs_flower
from clinical_ser.cohorts.tasks import get_task, read_task
from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.features.extraction import DEFAULT_SETS

if TYPE_CHECKING:
    from federated.consortium import Consortium, RunStatus

app = typer.Typer(help="The coordinator of a consortium: approve sites, plan, run, resume.", no_args_is_help=True)

POLL_S = 0.5
TAKEN_UP_WITHIN_S = 120.0
Folder = Annotated[Path, typer.Argument(help="The consortium's folder.")]
Run = Annotated[str, typer.Argument(help="The run's name (`consortium plan`).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; `consortium status` shows how far it is.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    name: Annotated[str, typer.Option(help="Of the consortium: small letters, digits, hyphens.")],
    address: Annotated[str, typer.Option(help="Where sites reach the coordinator, as federation.example:443.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the SuperLink listens on this machine, behind the proxy.")] = 8000,
) -> None:
    """Make a consortium: the coordinator's identity, an authority, the server's certificate, systemd unit and nginx configuration."""
    from federated.consortium import Consortium, Settings

    try:
        settings = Settings(name=name, address=address, port=port)
    except ValidationError as error:
        where = str(error.errors()[0]["loc"][0])
        raise InvalidValueError(f"--{where}", "what does not fit", "see --help") from None
    made = Consortium.create(folder, settings)
    output.print(f"The consortium {literal(name)} is made in {literal(folder)}. Its key, for the sites' node.toml:")
    print_line(made.identity.public.raw.hex())
    output.print(f"The server's certificate holds until {made.certificate_ends:%Y-%m-%d}. Back up authority.key and identity.pem, offline.")
    output.print(f"Next: {program()} consortium serve {literal(folder)}, and `consortium approve` for every kit that a site sends.")


@app.command()
def approve(
    folder: Folder,
    kits: Annotated[list[Path], typer.Argument(help="Kits that sites sent (*.kit.json).")],
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprints were compared; do not ask.")] = False,
) -> None:
    """Take sites in, after their kits' fingerprints were compared by telephone; `consortium serve` registers their nodes."""
    from federated.provisioning import Kit

    consortium = _open(folder)
    for path in kits:
        kit = Kit.read(path)
        output.print(f"Site {literal(kit.name)}. Fingerprint of the kit:")
        print_line(kit.fingerprint)
        if not yes and not typer.confirm("Did the site read out the same?"):
            complain("Not approved", kit.name)
            continue
        invitation = consortium.approve(kit)
        output.print(f"Approved. Send {literal(folder / 'invitations' / (kit.name + '.invitation.json'))}, and read out its fingerprint:")
        print_line(invitation.fingerprint)


@app.command()
def plan(
    folder: Folder,
    run: Annotated[str, typer.Argument(help="A name for the run: small letters, digits, hyphens.")],
    model: Annotated[str | None, typer.Option(help="Name of the model; the run's otherwise.")] = None,
    version: Annotated[str, typer.Option(help="Of the model.")] = "1",
    task: Annotated[str, typer.Option(help="A built-in task, or a .toml file of your own.")] = "depression",
    feature_set: Annotated[list[str], typer.Option("--set", help="A feature set (repeatable).")] = list(DEFAULT_SETS),  # noqa: B006
    feature: Annotated[list[str] | None, typer.Option(help="Only this feature of the sets (repeatable).")] = None,
    head: Annotated[str, typer.Option(help="linear, boosted, or linear+local (trees of its own at each site).")] = "linear",
    site: Annotated[list[str] | None, typer.Option(help="A site that takes part (repeatable); all approved ones otherwise.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds over people.")] = 5,
    refits: Annotated[int, typer.Option(min=2, max=200, help="Bootstrap refits, for how far a result can be trusted.")] = 40,
    coverage: Annotated[float, typer.Option(min=0.5, max=0.99, help="Of the prediction sets.")] = 0.90,
    seed: Annotated[int, typer.Option(min=0, help="Of folds and samples.")] = 0,
    minimum_sites: Annotated[int, typer.Option(min=3, help="Fewer sites, and nothing is added up.")] = 3,
    kind: Annotated[str, typer.Option(help="train, update, recalibrate, monitor, or gate; all but train begin with --parent.")] = "train",
    parent: Annotated[Path | None, typer.Option(help="The champion's bundle.")] = None,
    memory: Annotated[Path | None, typer.Option(help="The champion's memory.json (update, recalibrate).")] = None,
    forgetting: Annotated[float | None, typer.Option(help="What a person of then is worth now; 1 forgets nothing (update, recalibrate).")] = None,
    step: Annotated[str | None, typer.Option(help="intercept or slope; as much as is justified otherwise (recalibrate).")] = None,
    names: Annotated[list[str] | None, typer.Option(help="What is counted by name, as device=handset,headset (monitor; repeatable).")] = None,
    challenger: Annotated[Path | None, typer.Option(help="The challenger's bundle (gate).")] = None,
    change_plan: Annotated[Path | None, typer.Option(help="The change-control plan, pccp.toml (gate).")] = None,
    modification: Annotated[str | None, typer.Option(help="Which of its modifications the challenger came from (gate).")] = None,
) -> None:
    """Write down what a run will do; its digest is what sites approve."""
    from clinical_ser.features.extraction import feature_names, fingerprints
    from federated.plan import KINDS, STATISTICS, Participant, Plan
    from federated.planning import Beginning, lay_beside, plan_beginning

    consortium = _open(folder)
    if kind not in KINDS:
        raise InvalidValueError("--kind", kind, list(KINDS))
    members, known = consortium.members(), feature_names(feature_set)
    if not members:
        raise FederationError("No site is approved yet; `consortium approve` takes their kits.")
    if unknown := sorted(set(site or ()) - set(members)):
        raise InvalidValueError("--site", unknown[0], sorted(members))
    if unknown := sorted(set(feature or ()) - set(known)):
        raise InvalidValueError("--feature", unknown[0], "a feature of the chosen sets")
    if head not in STATISTICS:
        raise InvalidValueError("--head", head, sorted(STATISTICS))
    beginning = None
    if kind != "train":
        if parent is None:
            raise InvalidValueError("--parent", "nothing", f"the folder of the champion's bundle, of kind {kind}")
        beginning = Beginning(kind, parent, memory, forgetting, step, challenger, change_plan, modification, _names(names))
    elif given := [value for value in (parent, memory, forgetting, step, names, challenger, change_plan, modification) if value is not None]:
        raise InvalidValueError("--kind", kind, f"another kind, since {len(given)} options are given that begin with a model")
    participants = tuple(Participant(name=name, identity=members[name].identity) for name in sorted(site or members))
    key = consortium.identity.public.raw.hex()
    try:
        free = {"version": version, "folds": folds, "refits": refits, "seed": seed, "minimum_sites": minimum_sites} | (
            {"name": model} if model else {}
        )
        made = (
            plan_beginning(beginning, run=run, sites=participants, coordinator=key, **free)
            if beginning
            else Plan(
                run=run,
                name=model or run,
                version=version,
                task=read_task(Path(task)) if task.endswith(".toml") else get_task(task),
                features=tuple(name for name in known if not feature or name in feature),
                extractors=fingerprints(feature_set),
                sites=participants,
                coordinator=key,
                head=head,
                statistics=STATISTICS[head],
                folds=folds,
                refits=refits,
                coverage=coverage,
                seed=seed,
                minimum_sites=minimum_sites,
                created=datetime.now(UTC),
            )
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise InvalidValueError("plan", ".".join(str(part) for part in fault["loc"]) or "its sites", fault["msg"]) from None
    consortium.add_run(run, made.to_bytes(), made.digest, beside=(lambda draft: lay_beside(beginning, made, draft)) if beginning else None)
    output.print(f"Planned for {len(made.sites)} sites, {len(made.features)} features: {literal(folder / 'runs' / run / 'plan.json')}")
    output.print("Send it to the sites; they approve it by its digest:")
    print_line(made.digest)


@app.command("run")
def run_plan(folder: Folder, run: Run, detach: Detach = False) -> None:
    """Lead a run: train, evaluate, and publish a signed model."""
    needs_flower()
    consortium = _open(folder)
    if (before := consortium.status(run)).attempt and before.state != "finished":
        raise FederationError(f"Run {run!r} was begun already; `consortium resume` goes on with it.")
    _lead(consortium, run, detach=detach)


@app.command()
def resume(folder: Folder, run: Run, detach: Detach = False) -> None:
    """Go on with a run that broke off, after its last complete exchange."""
    needs_flower()
    consortium = _open(folder)
    if not consortium.status(run).attempt:
        raise FederationError(f"Run {run!r} was not begun yet; `consortium run` begins it.")
    _lead(consortium, run, detach=detach)


@app.command()
def status(folder: Folder, run: Annotated[str | None, typer.Argument(help="One run; all otherwise.")] = None, as_json: AsJson = False) -> None:
    """Show sites and runs."""
    from federated.consortium import EXPIRES_SOON

    consortium = _open(folder)
    runs = [consortium.status(name) for name in ([run] if run else consortium.runs())]
    if as_json:
        sites = {name: name in consortium.nodes() for name in consortium.members()}
        print_line(json.dumps({"sites": sites, "runs": [each.model_dump(mode="json") for each in runs]}))
        return
    left = (consortium.certificate_ends - datetime.now(UTC)).days
    output.print(f"Consortium {literal(consortium.settings.name)} at {literal(consortium.settings.address)}; its certificate holds {left} days more.")
    if left < EXPIRES_SOON.days:
        complain("Soon", "the server's certificate ends; `consortium renew` makes a new one.")
    for name in consortium.members():
        output.print(f"  site {literal(name)}: {'registered' if name in consortium.nodes() else 'approved, not registered yet'}")
    if runs:
        _show(runs)


@app.command()
def propose(
    folder: Folder,
    run: Run,
    change_plan: Annotated[Path, typer.Option("--plan", help="The change-control plan (pccp.toml).", show_default=False)],
    trigger: Annotated[str, typer.Option(help="Why: scheduled, request, or alarm:ID.")] = "scheduled",
) -> None:
    """Make what a run updated or recalibrated the challenger, in this machine's registry."""
    from clinical_ser.audit.answering import Recorder
    from clinical_ser.control.plan import read_plan as read_change_plan
    from clinical_ser.registry import Registry
    from federated.proposing import propose as propose_run

    asked = read_change_plan(change_plan)
    entry = propose_run(_open(folder).run_folder(run), Registry.default(), asked, recorder=Recorder.find(), trigger=trigger)
    output.print(f"The challenger of {literal(entry.name)} is {(entry.bundle or '')[:12]}; it answers nothing before the gate and the signatures.")


@app.command()
def serve(
    folder: Folder,
    logs: Annotated[Path | None, typer.Option(help="A folder for what Flower writes; the terminal, or the journal, otherwise.")] = None,
) -> None:
    """Keep the SuperLink and the process that leads runs up until stopped; register sites as they are approved."""
    needs_flower()
    ended, code = _open(folder).serve(logs=logs)
    if ended:
        complain("Stopped", f"{ended} ended with exit status {code}.")
        raise typer.Exit(1)


@app.command()
def renew(folder: Folder) -> None:
    """Make a new key and certificate for the server; sites need nothing new, `consortium serve` is to be started again."""
    output.print(
        f"The server's certificate holds until {_open(folder).renew():%Y-%m-%d}. Start `consortium serve` again, and reload the proxy that shows it."
    )


def _lead(consortium: "Consortium", run: str, *, detach: bool) -> None:
    from federated.plan import read_plan

    attempt = consortium.status(run).attempt
    flower = consortium.start(run, read_plan(consortium.run_folder(run) / "plan.json").site_names)
    output.print(f"Run {literal(run)} is handed over; Flower calls this attempt {flower}.")
    if detach:
        return
    shown, handed_over, waited = 0, time.monotonic(), tuple[str, ...]()
    while True:
        now = consortium.status(run)
        if now.attempt == attempt and time.monotonic() - handed_over > TAKEN_UP_WITHIN_S:
            raise FederationError(f"Nobody has taken run {run!r} up; what `consortium serve` writes says why.")
        for exchange in now.exchanges[shown:] if now.attempt > attempt else ():
            what = "made before" if exchange.again else f"{exchange.seconds:.1f} s, {exchange.received / 1024:.0f} KiB from sites"
            errors.print(f"  {literal(exchange.step)}: {what}")
        shown = len(now.exchanges) if now.attempt > attempt else 0
        if now.missing and now.missing != waited:
            errors.print(f"  waiting for {literal(', '.join(now.missing))} ...")
        waited = now.missing
        if now.attempt > attempt and (now.state in ("finished", "failed") or now.interrupted):
            break
        time.sleep(POLL_S)
    if now.state != "finished":
        why = now.error or "whoever led it is gone."
        raise FederationError(f"Run {run!r} ended at {now.step or 'its beginning'}: {why} `consortium resume` goes on with it.")
    made = [exchange for exchange in now.exchanges if not exchange.again]
    output.print(f"[green]Finished[/green]: {len(made)} exchanges in {sum(exchange.seconds for exchange in made):.0f} s.")
    _tell_what_came_out(consortium.run_folder(run), now.bundle)


def _tell_what_came_out(folder: Path, bundle: str | None) -> None:
    from federated.leading import COMPARISON, FIGURES, JUSTIFIED, MEMORY, MODEL, MONITOR

    if (folder / JUSTIFIED).exists():
        step = json.loads((folder / JUSTIFIED).read_bytes())["step"]
        output.print(f"What the new people justify: {step} (every test is in {literal(folder / JUSTIFIED)}).")
        if bundle is None:
            output.print("No model was made: nothing is to be done. --step would make one all the same; what an update gains, an update shows.")
            return
    if bundle is not None:
        model = literal(folder / MODEL)
        output.print(f"The model is in {model} (`{program()} model card {model}` shows its figures); its digest:")
        print_line(bundle)
        if (folder / MEMORY).exists():
            output.print(f"What its next update needs lies in {literal(folder / MEMORY)}; it does not travel with the model.")
    elif (folder / MONITOR).exists():
        found = json.loads((folder / MONITOR).read_bytes())
        if found["reference"] is None:
            output.print("These counts are the reference that later runs are watched against.")
        for alarm in found["alarms"]:
            complain("Alarm", f"{alarm['channel']} ({alarm['direction']}): {alarm['advice']}")
        output.print(
            f"Counts of {found['counts']['recordings']} people are in {literal(folder / MONITOR)}; an alarm opens a candidate, never a release."
        )
    else:
        met = json.loads((folder / COMPARISON).read_bytes())["met"]
        output.print(f"The comparison is in {literal(folder / COMPARISON)}, each site's figures in {literal(folder / FIGURES)}.")
        output.print("[green]Every requirement of the change-control plan is met.[/green]" if met else "Not every requirement of the plan is met.")


def _names(given: list[str] | None) -> dict[str, tuple[str, ...]]:
    """Read `device=handset,headset`."""
    found = {}
    for one in given or ():
        what, sign, values = one.partition("=")
        if not sign or not all(values.split(",")):
            raise InvalidValueError("--names", one, "a kind and its values, as device=handset,headset")
        found[what] = tuple(values.split(","))
    return found


def _show(runs: list["RunStatus"]) -> None:
    table = Table("run", "state", "step", "exchanges", "attempts", "what is wrong")
    for each in runs:
        state = "interrupted" if each.interrupted else each.state
        waits = f"waiting for {', '.join(each.missing)} since {each.updated:%Y-%m-%d %H:%M} UTC" if each.missing and state == "running" else ""
        table.add_row(literal(each.run), state, literal(each.step), str(len(each.exchanges)), str(each.attempt), literal(each.error or waits))
    output.print(table)


def _open(folder: Path) -> "Consortium":
    from federated.consortium import Consortium

    return Consortium(folder)
