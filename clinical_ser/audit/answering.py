"""Answers and their records: nothing is given out whose record is not on the disk.

The one idea: where a site has a log, whoever answers goes through here; where it has none, nothing is recorded and the answer is the same.
"""

import getpass
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import (
    MODEL,
    RECORD,
    Actor,
    Check,
    FamilyEffect,
    Inference,
    ModelChange,
    Notice,
    Outcome,
    Payload,
    Purpose,
    QualityRejection,
    ReportAction,
    Role,
)
from clinical_ser.audit.log import Entry, Receipt
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import LogReader
from clinical_ser.errors import AuditSetupError, BundleError
from clinical_ser.folders import is_folder
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening import screen as unrecorded_screen
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Source

Action = Literal["viewed", "exported", "amended"]
_NOTICE = b'"kind":"notice"'
_WAIT_S = 30.0
"""For another process that is writing: a record takes milliseconds, an erasure of a large log many seconds."""


def screen(
    source: Source, *, model: str | Path = DEFAULT_MODEL, subject: str | None = None, actor: Actor | None = None, **options: Any
) -> ScreeningResult:
    """Screen one recording and, where a site has an audit log, record the answer before it is returned.

    Parameters
    ----------
    source, model, options
        As `clinical_ser.screening.screen` takes them.
    subject
        Whom the recording is of, as the site knows the person, for the log to find and erase by; it enters no result.
    actor
        Who asks; the account that runs this otherwise.

    Raises
    ------
    AuditError
        The answer cannot be recorded, and is not given.
    """
    recorder = Recorder.find(actor, subject=subject)
    with recorder.refusals(model):
        result = unrecorded_screen(source, model=model, **options)
    recorder.answer(result)
    return result


def operator() -> Actor:
    """Return the account that runs this program."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown account"
    return Actor(id=name, role=Role.OPERATOR)


@dataclass(frozen=True)
class Recorded:
    """What became of an answer's record.

    Attributes
    ----------
    receipt
        Where it is.
    under_others
        Whether the log has the same answer, of the same recording, under another person: one of the two names may be wrong.
    """

    receipt: Receipt
    under_others: bool


class Recorder:
    """Records what is answered and shown in the site's log; does nothing where there is none.

    Parameters
    ----------
    configuration
        The site's log, or None.
    actor
        Who acts.
    subject
        Whom all of it is about, where that is known.
    """

    def __init__(self, configuration: LogConfiguration | None, actor: Actor, subject: str | None = None) -> None:
        self._configuration = configuration
        self.actor = actor
        self._subject = subject

    @classmethod
    def find(cls, actor: Actor | None = None, *, subject: str | None = None) -> "Recorder":
        """Return one for the site's log, if it has one; AuditSetupError where its configuration cannot be used."""
        return cls(LogConfiguration.find(), actor or operator(), subject)

    @property
    def is_on(self) -> bool:
        """Whether there is a log to record in."""
        return self._configuration is not None

    def answer(self, result: ScreeningResult) -> Recorded | None:
        """Record an answer, and before it that this model answers from now on, if another did before or none.

        Raises
        ------
        AuditError
            It could not be recorded; the answer must not be given.
        """
        if self._configuration is None:
            return None
        with self._configuration.write(wait_s=_WAIT_S) as log, log.exclusively() as inside:
            reader = inside.reader()
            entry = answer_entry(result, self.actor, subject=self._subject, notice=last_notice(reader, self._subject))
            others = persons_of(reader, RECORD + result.digest).keys() - {key.id for key in [inside.vault.find(entry.subject or "-")] if key}
            model = result.model
            change = activation(reader, self.actor, name=model.name, digest=model.digest, version=model.version)
            return Recorded(inside.record([*change, entry])[-1], bool(others))

    def report(self, results: Sequence[ScreeningResult], action: Action, form: str, *, reason: str | None = None) -> list[Receipt]:
        """Record that reports on results are about to be shown or written.

        Raises
        ------
        AuditError
            It could not be recorded, or an answer is known under several persons and none was named; the reports must not be shown.
        """
        if self._configuration is None or not results:
            return []
        payloads = [self._report(result.digest, action, form, reason) for result in results]
        with self._configuration.write(wait_s=_WAIT_S) as log, log.exclusively() as inside:
            reader = inside.reader()
            together = zip(payloads, results, strict=True)
            return inside.record([about_result(reader, payload, self._subject, model=result.model.digest) for payload, result in together])

    def exported(self, result: str, model: str, form: str) -> None:
        """Record that a report is about to be written, by the digests of its result and its model: for batches made in other processes."""
        if self._configuration is None:
            return
        # Opened for each, so that a batch of thousands keeps nobody else from recording.
        with self._configuration.write(wait_s=_WAIT_S) as log, log.exclusively() as inside:
            reader = inside.reader()
            inside.record([about_result(reader, self._report(result, "exported", form), self._subject, model=model)])

    def find_answer(self, result: ScreeningResult) -> int | None:
        """Return the index of the record of this very answer; None where the log has none, or there is no log."""
        if self._configuration is None:
            return None
        with self._configuration.read() as reader:
            records = [reader.record(index) for index in reader.about(RECORD + result.digest)]
        return next((record.index for record in records if isinstance(record.payload, Inference | QualityRejection)), None)

    def shown(self, results: Sequence[ScreeningResult], file: Path | None, *, as_json: bool = False) -> list[Receipt]:
        """Record that results are about to be written into a file, named by its ending, or shown in the terminal; see `report`."""
        form = file.suffix.lower().removeprefix(".") if file else "json" if as_json else "terminal"
        return self.report(results, "exported" if file else "viewed", form)

    def _report(self, result: str, action: Action, form: str, reason: str | None = None) -> ReportAction:
        return ReportAction.model_validate({"actor": self.actor, "result": result, "action": action, "form": form, "reason": reason})

    def record(self, payload: Payload, **about: Any) -> Receipt | None:
        """Record one event of another kind; `about` are fields of `Entry`."""
        if self._configuration is None:
            return None
        with self._configuration.write(wait_s=_WAIT_S) as log:
            return log.append(payload, **about)

    @contextmanager
    def refusals(self, model: str | Path) -> Iterator[None]:
        """Record a bundle that is refused, and let its error go on."""
        try:
            yield
        except BundleError as error:
            # A folder's name may be a person's, and what the bundle calls itself is not believed.
            named = isinstance(model, str) and not is_folder(Path(model)) and not set(model) & set("/\\.")
            name = str(model) if named else "a folder"
            payload = ModelChange(actor=self.actor, action="refused", name=name, old=None, new=None, reason=type(error).__name__)
            self.record(payload, outcome=Outcome.REFUSED, purpose=Purpose.OPERATIONS)
            raise


def activation(reader: LogReader, actor: Actor, *, name: str, digest: str, version: str) -> list[Entry]:
    """Return the record that from now on this model answers under its name; none where it did already."""
    last = None
    for index in reader.about(MODEL + name):
        for record in reader.records(index, index + 1):
            if isinstance(record.payload, ModelChange) and record.payload.action != "refused":
                last = record.payload.new
    if last == digest:
        return []
    reason = f"first answer of version {version} in this log"
    change = ModelChange(actor=actor, action="activated", name=name, old=last, new=digest, reason=reason)
    return [Entry(change, purpose=Purpose.OPERATIONS, model=digest)]


def answer_entry(result: ScreeningResult, actor: Actor, *, subject: str | None = None, notice: str | None = None, digest: str | None = None) -> Entry:
    """Return the record of an answer. Without a subject, the result's own record stands for the person, so that it can be erased all the same.

    `digest` is the result's, for whoever has it already: it takes milliseconds.
    """
    digest = digest or result.digest
    checks = tuple(
        Check(name=check.name, value=check.value, verdict="warn" if check.verdict == "warn" else "fail")
        for check in result.quality.checks
        if check.verdict != "pass"
    )
    common = {
        "actor": actor,
        "result": digest,
        "recording": result.recording.sha256,
        "duration_s": result.recording.duration_s,
        "task": result.task,
        "checks": checks,
        "model_name": result.model.name,
        "model_version": result.model.version,
    }
    payload: Payload
    if result.status is Status.NOT_USABLE:
        payload = QualityRejection(**common)
    else:
        payload = Inference(**common, **_answer(result), simulated=result.model.simulated, encoders=result.model.encoders, notice=notice)
    outcome = Outcome.REFUSED if result.status is Status.NOT_USABLE else Outcome.SUCCESS
    return Entry(payload, subject=RECORD + digest if subject is None else subject, outcome=outcome, model=result.model.digest)


def last_notice(reader: DatabaseReader, subject: str | None) -> str | None:
    """Return the version of the notice that a person was given last."""
    if subject is not None:
        for index in reversed(reader.named(subject)):
            # The leaf says what kind it is; a person may have thousands of records, and only one of these is opened.
            if any(_NOTICE in leaf for leaf in reader.leaves(index, index + 1)) and isinstance(told := reader.record(index).payload, Notice):
                return told.text_version
    return None


def persons_of(reader: DatabaseReader, record: str) -> dict[bytes | None, list[int]]:
    """Return the records about a result by person, under their random names, those aside that name none."""
    anonymous = set(reader.named(record))
    return {subject: indices for subject, indices in reader.subjects_of(reader.about(record)).items() if not anonymous.issuperset(indices)}


def about_result(reader: DatabaseReader, payload: Payload, subject: str | None, **about: Any) -> Entry:
    """Return a record that is about the same person as the answer it is about; an answer that this log does not have stands for itself.

    Raises
    ------
    AuditSetupError
        The answer is known under several persons, and nobody said whose this is; or it is known, and not under this one.
    """
    [name] = payload.records()
    persons = persons_of(reader, name)
    if subject is not None:
        known = set(reader.about(name))
        if known and known.isdisjoint(reader.named(subject)):
            raise AuditSetupError("The log has this answer under another person, or without one, and not under the one named. Nothing was recorded.")
        return Entry(payload, subject=subject, **about)
    if len(persons) > 1:
        raise AuditSetupError("The log has this answer under several persons: say whose with --subject. Nothing was recorded.")
    latest = max((index for indices in (persons.values() or [reader.named(name)]) for index in indices), default=None)
    return Entry(payload, subject=name, **about) if latest is None else Entry(payload, like=latest, **about)


def _answer(result: ScreeningResult) -> dict[str, Any]:
    """Return what an answer was, without what it was of: a number that was withheld from the reader is in the record, which is not for readers."""
    told, point = result.explanation, result.operating_point
    p = result.probability
    return {
        "status": str(result.status),
        "label": p.label if p else None,
        "probability": p.value if p else None,
        "low": p.interval.low if p else None,
        "high": p.interval.high if p else None,
        "prevalence": p.prevalence if p else None,
        "threshold": point.probability if point else None,
        "prediction_set": result.prediction_set,
        "families": tuple(
            FamilyEffect(family=family.family, points=family.probability.value * 100, stable=family.stable)
            for family in (told.families if told else ())
        ),
    }
