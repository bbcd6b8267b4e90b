"""`clinical-ser monitor`: freeze a reference, watch what comes after it, and say what has changed, since when, how much and how sure."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Column, Table

from clinical_ser.audit.answering import Recorder, operator
from clinical_ser.audit.events import DriftAlarm, Purpose
from clinical_ser.cli.console import check_output_file, complain, literal, output, percent, print_json, report_problems
from clinical_ser.cohorts.table import read_table, replaced
from clinical_ser.errors import InvalidValueError, MonitoringError, RegistryConflictError, RegistryError
from clinical_ser.file_lock import FileLock
from clinical_ser.folders import is_folder
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.batches import ROWS, Batch, batches_of_journal, batches_of_table, days_of, weeks_of
from clinical_ser.monitoring.counts import Counts, Grid, counts_of, read_strict
from clinical_ser.monitoring.journal import Journal
from clinical_ser.monitoring.outcomes import (
    MATURITY_DAYS,
    TOLERANCE,
    GroupCalibration,
    OutcomeWatch,
    Returned,
    check_options,
    read_outcomes,
)
from clinical_ser.monitoring.seen import Memory
from clinical_ser.monitoring.shadow import Agreement, agreement_of
from clinical_ser.monitoring.watching import NEW_NAME_PEOPLE, RUN_LENGTH, Alarm, Family, Reference, Standing, State, Watch, outcome_alarm
from clinical_ser.registry import Registry
from clinical_ser.registry.names import find_model
from clinical_ser.strict import Strict

app = typer.Typer(
    help="Watch a model: has anything changed since its reference? An alarm opens a case, and never changes a model.", no_args_is_help=True
)

ALARM = 4
"""Exit code of a run that raised an alarm."""
_LARGEST = 64 * 2**20
_SHOWN = 12
_TRIES = 5

Model = Annotated[str, typer.Argument(help="Name of an installed model, or a bundle's folder.", show_default=False)]
ReferenceFile = Annotated[Path, typer.Option("--reference", help="From `monitor reference`.", show_default=False)]
JournalFolder = Annotated[Path | None, typer.Option("--journal", help="Counts that the server or `screen` keeps, by day.", show_default=False)]
T = TypeVar("T", bound=Strict)


class Watched(Strict):
    """What `monitor watch --json` prints."""

    model: str
    reference: str
    batches: int
    recordings: int
    """In this run."""
    alarms: tuple[Alarm, ...]
    outcomes: Returned | None
    calibration: tuple[GroupCalibration, ...]
    shadow: tuple[Agreement, ...]
    """How the shadow that was asked for agrees with this model, by its answer."""
    run_length: float
    """Recordings to the first false alarm on average, at least, of all channels of counts together; as many outcomes for those of outcomes."""
    false_alarm: float
    """Probability, at most, that 1,000 recordings without any change raise one."""


class Status(Strict):
    """What `monitor status --json` prints."""

    reference: str
    batches: int
    recordings: int
    last_day: date | None
    channels: tuple[Standing, ...]


@app.command()
def reference(
    model: Model,
    target: Annotated[Path, typer.Option("--output", "-o", help="Reference to write (.json).", show_default=False)],
    table: Annotated[Path | None, typer.Argument(help="Feature table of the site's run-in, from `extract`.", show_default=False)] = None,
    journal: JournalFolder = None,
    first: Annotated[str | None, typer.Option("--from", help="First day of the journal, as 2030-01-31.", show_default=False)] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day of the journal, or of a table without dates.", show_default=False)] = None,
    run_length: Annotated[float, typer.Option(help="Recordings to the first false alarm, on average at least.")] = RUN_LENGTH,
    new_name_people: Annotated[
        int, typer.Option(help="People recorded with a device that the reference lacks, before it is told.")
    ] = NEW_NAME_PEOPLE,
) -> None:
    """Freeze what recordings look like while all is well: counts in cells, without anybody's row."""
    check_output_file(target)
    _one_of(table, journal)
    since, until = _day(first, "--from"), _day(last, "--to")
    bundle = read_bundle(find_model(model))
    if table is not None:
        rows = read_table(table)
        days = days_of(rows)
        if since is not None or (days and until is not None):
            raise InvalidValueError("--from and --to", "given for a table", "left out; --to alone where its rows have no date (recorded_at)")
        until = max(days, default=until)
        counts = counts_of(TrainedModel.from_bundle(bundle), bundle.digest, rows)
    else:
        counts = Counts(model=bundle.digest)
        batches = batches_of_journal(Journal(journal or Path()), bundle.digest, since, until)
        for batch in batches:
            counts += batch.counts
        until = batches[-1].day if batches else None
    made = Reference.of(bundle.manifest, counts, run_length=run_length, new_name_people=new_name_people, last_day=until)
    _write(target, made.to_bytes())
    output.print(f"Reference of {literal(made.name)} {literal(made.version)}: {counts.recordings} people, {counts.usable} of them usable.")
    output.print(
        f"Digest {made.digest[:12]}. If nothing changes, the first false alarm comes after {run_length:,.0f} recordings on average at least."
    )
    ends = "Its rows have no date: watch only what was recorded after it, or give its last day (--to)."
    output.print(ends if until is None else f"What is watched against it starts after {until}.")


@app.command()
def watch(
    model: Model,
    reference: ReferenceFile,
    table: Annotated[Path | None, typer.Option(help="Feature table of what came since, from `extract`.", show_default=False)] = None,
    journal: JournalFolder = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Last day that is over, of a journal or of weeks; yesterday (UTC) otherwise.", show_default=False)
    ] = None,
    weeks: Annotated[bool, typer.Option("--weeks", help="Take whole weeks and not days: for sites whose days of the week differ.")] = False,
    state: Annotated[Path | None, typer.Option(help="Where the last run stopped, and this one goes on from (.json).", show_default=False)] = None,
    outcomes: Annotated[
        Path | None, typer.Option(help="Outcomes (.csv, .parquet): screened_at, probability or log_odds, outcome, outcome_at.", show_default=False)
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="Day as of which outcomes are known; today (UTC) otherwise.", show_default=False)
    ] = None,
    maturity_days: Annotated[int, typer.Option(help="Days after screening by which an outcome is known.")] = MATURITY_DAYS,
    tolerance: Annotated[float, typer.Option(help="Log-odds by which probabilities may be off without anybody acting.")] = TOLERANCE,
    people: Annotated[int, typer.Option("--batch", help="People a batch, in a table without dates.")] = ROWS,
    shadow: Annotated[
        str | None, typer.Option(help="A shadow whose agreement with the model is shown, from the journal: a name or a digest.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Compare what came since with the reference; exits 4 if there is an alarm, 0 if there is none."""
    if table is not None and journal is not None:
        raise InvalidValueError("--table and --journal", "both", "one of them")
    if table is None and journal is None and outcomes is None:
        raise InvalidValueError("--table, --journal and --outcomes", "none", "at least one")
    if shadow is not None and journal is None:
        raise InvalidValueError("--shadow", "without --journal", "with the journal that counts its answers")
    check_options(maturity_days=maturity_days, tolerance=tolerance)
    today = datetime.now(UTC).date()
    known_as_of = _day(as_of, "--as-of") or today
    last = _day(until, "--until") or today - timedelta(days=1)
    if state is not None:
        check_output_file(state, "--state")
    bundle = read_bundle(find_model(model))
    frozen = _reference(reference, bundle)
    agreed = _agreed(shadow, bundle, journal, last)
    with _alone_with(state):
        watching = Watch(frozen, _read(State, state, "The state") if state is not None and state.exists() else None)
        memory = Memory(watching.state.seen)
        taken = _take(watching, _batches(bundle, memory, table, journal, last, people), memory, last if weeks else None)
        alarms, returned = list(taken.alarms), None
        calibrated: tuple[GroupCalibration, ...] = ()
        if outcomes is not None:
            rows = read_outcomes(outcomes)
            report_problems(rows.problems)
            calibration = OutcomeWatch(
                run_length=frozen.run_length,
                tolerance=tolerance,
                maturity_days=maturity_days,
                state=watching.state.outcomes if state is not None else None,
            )
            alarms += [outcome_alarm(crossing, frozen.run_length) for crossing in calibration.take(rows, known_as_of, memory)]
            returned, calibrated = calibration.calibration(rows, known_as_of)
            watching.with_outcomes(calibration.state)
        watching.with_seen(memory.seen)
        # The record first: an alarm whose state was kept and whose record was not would be lost. Killed in between, it is recorded again.
        cases = record(alarms, bundle.digest)
        if state is not None:
            _write(state, watching.state.to_bytes())
    found = Watched(
        model=bundle.digest,
        reference=frozen.digest,
        batches=taken.batches,
        recordings=taken.recordings,
        alarms=tuple(alarms),
        outcomes=returned,
        calibration=calibrated,
        shadow=agreed,
        run_length=frozen.run_length,
        false_alarm=min(1.0, 1000 / (2 * frozen.run_length)),
    )
    if as_json:
        print_json(found, indent=2)
    else:
        _show(found)
        for case in cases:
            name, identifier = case.split()
            output.print(f"Case {identifier} of {literal(name)}: a change that answers it is made with `update --trigger {identifier}`.")
    if alarms:
        raise typer.Exit(ALARM)


@app.command()
def status(
    state: Annotated[Path, typer.Argument(help="State that `monitor watch --state` keeps.", show_default=False)],
    reference: ReferenceFile,
    as_json: Annotated[bool, typer.Option("--json", help="Every channel, as JSON.")] = False,
) -> None:
    """Say how near each channel is to an alarm, and how far the last batches lie from the reference."""
    frozen = _read(Reference, reference, "The reference")
    watching = Watch(frozen, _read(State, state, "The state"))
    kept = watching.state
    standing = watching.standing()
    if as_json:
        print_json(
            Status(reference=frozen.digest, batches=kept.batches, recordings=kept.recordings, last_day=kept.last_day, channels=standing), indent=2
        )
        return
    output.print(f"{kept.recordings} recordings in {kept.batches} batches{f', the last of {kept.last_day}' if kept.last_day else ''}.")
    shown = Table(Column("channel", no_wrap=True), "log10 of evidence", "PSI (chance)", box=None)
    for one in standing[:_SHOWN]:
        index = "" if one.index is None else f"{one.index:.2f} ({_figure(one.index_by_chance)})"
        shown.add_row(literal(one.channel), _powers(one.value, one.limit), index)
    output.print(shown)


@dataclass(frozen=True)
class _Taken:
    alarms: tuple[Alarm, ...]
    batches: int
    recordings: int


def _take(watching: Watch, batches: Sequence[Batch], memory: Memory, weeks_until: date | None) -> _Taken:
    """Take what is new; days are told apart before they are added up to weeks, of which some days may have been taken."""
    new = [batch for batch in batches if batch.day is None or watching.is_new(batch.day)]
    if skipped := len(batches) - len(new):
        complain("Days that were taken before or belong to the reference, and are not taken again", skipped)
    looks = [batch for batch in (new if weeks_until is None else weeks_of(new, weeks_until)) if batch.counts.recordings]
    alarms: list[Alarm] = []
    for batch in looks:
        alarms += watching.take(batch.counts, day=batch.day, label=batch.label)
        memory.add(batch.tags)
    # A channel that goes on crossing is one alarm a run.
    first = {(alarm.channel, alarm.direction): alarm for alarm in reversed(alarms)}
    ordered = tuple(alarm for alarm in alarms if first[alarm.channel, alarm.direction] is alarm)
    return _Taken(ordered, len(looks), sum(batch.counts.recordings for batch in looks))


def _batches(bundle: VerifiedBundle, memory: Memory, table: Path | None, journal: Path | None, last: date, people: int) -> tuple[Batch, ...]:
    if journal is not None:
        # A mistyped folder must not read as a quiet year.
        if not is_folder(journal):
            raise InvalidValueError("--journal", "a folder that is not there", "the folder of counts that the server keeps (`monitoring.folder`)")
        days = batches_of_journal(Journal(journal), bundle.digest, last=last)
        if not days:
            complain("Nothing counted", "the journal has no day of this model yet; was it served, and is this its folder?")
        return days
    if table is None:
        return ()
    rows = read_table(table)
    batches = batches_of_table(Grid(TrainedModel.from_bundle(bundle)), bundle.digest, rows, rows=people, memory=memory)
    again = len(set(rows.subjects.tolist())) - sum(batch.counts.recordings for batch in batches)
    if again and memory.seen.tags:
        if not batches and not days_of(rows):
            raise MonitoringError("Everybody in this table was watched before, or has the same name as somebody who was; none is counted twice.")
        complain("People who were counted before, or have nothing to count, and are left out", again)
    return batches


def _agreed(shadow: str | None, bundle: VerifiedBundle, journal: Path | None, last: date) -> tuple[Agreement, ...]:
    if shadow is None or journal is None:
        return ()
    days = batches_of_journal(Journal(journal), read_bundle(find_model(shadow)).digest, last=last)
    return agreement_of((day.counts for day in days), bundle.digest)


@contextmanager
def _alone_with(state: Path | None) -> Iterator[None]:
    """Keep others from a state while it is read, gone on from, and replaced: of two at once, one's evidence would be lost."""
    if state is None:
        yield
        return
    lock = FileLock(state.with_name(f".{state.name}.lock"), "monitor's state", MonitoringError)
    if not lock.take():
        raise MonitoringError("Another `monitor watch` is at work on this state; run it again when that has ended.")
    try:
        yield
    finally:
        lock.release()


def record(alarms: Sequence[Alarm], model: str) -> tuple[str, ...]:
    """Record alarms in the site's audit log, where it has one, and in the history of each name under which the model has a role.

    One event a family: a microphone that was changed moves fifty features, and is one case. Returns `NAME alarm:ID`; `update --trigger` takes it.
    """
    cases = _cases(alarms)
    recorder = Recorder.find()
    for alarm, others in cases:
        since = datetime.combine(alarm.since, time(), UTC) if alarm.since else datetime.now(UTC)
        statistic, value, limit = alarm.recorded
        payload = DriftAlarm(actor=recorder.actor, what=_what(alarm, others), statistic=statistic, value=value, limit=limit, since=since)
        recorder.record(payload, purpose=Purpose.OPERATIONS, model=model)
    return _open_case(model, "; ".join(_what(alarm, others) for alarm, others in cases)[:1000]) if cases else ()


def _cases(alarms: Sequence[Alarm]) -> list[tuple[Alarm, int]]:
    """Return the strongest alarm of each family, news apart, and how many more there are."""
    found: dict[tuple[Family, str], list[Alarm]] = {}
    for alarm in alarms:
        found.setdefault((alarm.family, alarm.statistic if alarm.statistic != "new_name" else alarm.channel), []).append(alarm)
    return [(max(group, key=lambda alarm: alarm.value / alarm.limit), len(group) - 1) for group in found.values()]


def _what(alarm: Alarm, others: int) -> str:
    return f"{alarm.channel} {alarm.direction}{f' and {others} more of its family' if others else ''}"


def _open_case(model: str, reason: str) -> tuple[str, ...]:
    try:
        kept = Registry.default()
    except RegistryError:  # a process without a home has no registry
        return ()
    opened = []
    for name in kept.names():
        for attempt in range(_TRIES):
            head = kept.head(name)
            if head is None or not head.pointers.of(model):
                break
            try:
                entry = kept.switch(
                    name, expected=head.digest, action="alarm", pointers=head.pointers, bundle=model, actor=operator().id, reason=reason
                )
                opened.append(f"{name} alarm:{entry.digest[:12]}")
                break
            except RegistryConflictError:
                if attempt == _TRIES - 1:
                    raise
    return tuple(opened)


def _show(found: Watched) -> None:
    if found.batches:
        output.print(f"{found.recordings} recordings in {found.batches} batches.")
    if found.outcomes is not None:
        _show_outcomes(found.outcomes, found.calibration)
    for one in found.shadow:
        _show_agreement(one)
    if not found.alarms:
        output.print("No alarm.")
        return
    ranked = sorted(found.alarms, key=lambda alarm: (alarm.statistic != "new_name", -alarm.value / alarm.limit))
    for alarm in ranked[:_SHOWN]:
        output.print(f"Alarm: {literal(_line(alarm))}")
    if len(ranked) > _SHOWN:
        output.print(f"And {len(ranked) - _SHOWN} more; --json has them all.")
    if any(alarm.run_length for alarm in ranked):
        output.print(
            f"Stated rate: if nothing had changed, the first alarm would come after {found.run_length:,.0f} recordings on average at least, "
            f"and within 1,000 with a probability of at most {percent(found.false_alarm)}."
        )
    for advice in dict.fromkeys(alarm.advice for alarm in ranked):
        output.print(f"To do: {literal(advice)}")
    output.print("The model is as it was: an alarm changes nothing.")


def _show_outcomes(returned: Returned, calibrated: Sequence[GroupCalibration]) -> None:
    missing = "" if returned.missing_share is None else f", {percent(returned.missing_share)} without an outcome"
    by_score = ", ".join(percent(share) for share in returned.missing_by_score)
    output.print(f"Outcomes: {returned.mature} of {returned.given} screenings are old enough{missing} (by thirds of the score: {by_score}).")
    output.print("Those without one are taken to be like those of the same score with one; nothing here can check that.")
    for group in calibrated:
        # Lines, no table: an interval that is cut at the edge of the terminal says nothing.
        area = group.auroc
        ratio = f"{_figure(group.ratio.value)} ({_figure(group.ratio.low)} to {_figure(group.ratio.high)})"
        ranked = "too few for an AUROC" if area is None else f"AUROC {_figure(area.value)} ({_figure(area.low)} to {_figure(area.high)})"
        output.print(f"  [bold]{literal(group.name)}[/bold]: {group.people} people, {group.observed} ill, {group.expected:.1f} expected; O/E {ratio}")
        output.print(f"    intercept {_figure(group.intercept)}, slope {_figure(group.slope)}; {ranked}; 95 % intervals")


def _show_agreement(one: Agreement) -> None:
    whose = "The shadow answers alike" if one.status == "all" else f"Where the model says {one.status}, alike"
    answers = "" if one.status == "all" else f" ({', '.join(f'{n} {answer}' for answer, n in one.answers.items())})"
    interval = f"{percent(one.share)} ({percent(one.low)} to {percent(one.high)})"
    output.print(f"{whose}: {one.alike} of {one.recordings} recordings, {interval}{literal(answers)}.")


def _line(alarm: Alarm) -> str:
    if alarm.statistic == "new_name":
        return f"{alarm.channel} is new: {alarm.value:.0f} people, since {alarm.since_label}."
    index = "" if alarm.index is None else f"; PSI {alarm.index:.2f} ({alarm.size}; {_figure(alarm.index_by_chance)} by chance)"
    what, figures = f"{alarm.channel} {alarm.direction}, since {alarm.since_label}{index}", alarm.recorded
    return f"{what}; evidence 10^{figures.value:.1f}, limit 10^{figures.limit:.1f}."


def _powers(value: float, limit: float) -> str:
    """Write evidence and its limit in powers of ten; nothing is less than one to one."""
    return f"{math.log10(max(value, 1.0)):.1f} (limit {math.log10(limit):.1f})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _one_of(table: Path | None, journal: Path | None) -> None:
    if (table is None) == (journal is None):
        raise InvalidValueError("TABLE and --journal", "both" if table else "neither", "one of them")


def _reference(path: Path, bundle: VerifiedBundle) -> Reference:
    frozen = _read(Reference, path, "The reference")
    if frozen.counts.model != bundle.digest:
        raise MonitoringError("The reference is of another model, whose cells are not this one's; make one with `monitor reference`.")
    return frozen


def _read(kind: type[T], path: Path, what: str) -> T:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as error:  # its text holds the path
        raise MonitoringError(f"{what} cannot be read: {error.strerror}.") from None
    if len(raw) > _LARGEST:
        raise MonitoringError(f"{what} is larger than {_LARGEST // 2**20} MiB; this is another file.")
    return read_strict(kind, raw, what)


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole; a run that is killed leaves the one before."""
    with replaced(path) as unfinished, unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _day(text: str | None, option: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise InvalidValueError(option, "what is no date", "a day, as 2030-01-31") from None
