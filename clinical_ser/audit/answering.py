"""Answers and their records: nothing is given out whose record is not on the disk.

The one idea: where a site has a log, whoever answers goes through here; where it has none, nothing is recorded and the answer is the same.
"""

import getpass
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from clinical_ser.errors import BundleError
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening import screen as unrecorded_screen
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Source

Action = Literal["viewed", "exported", "amended"]
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
    recorder = Recorder.find(actor)
    with recorder.refusals(str(model)):
        result = unrecorded_screen(source, model=model, **options)
    recorder.answer(result, subject=subject)
    return result


def operator() -> Actor:
    """Return the account that runs this program."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown account"
    return Actor(id=name, role=Role.OPERATOR, client="clinical-ser command line")


class Recorder:
    """Records what is answered and shown in the site's log; does nothing where there is none.

    Parameters
    ----------
    configuration
        The site's log, or None.
    actor
        Who acts.
    """

    def __init__(self, configuration: LogConfiguration | None, actor: Actor) -> None:
        self._configuration = configuration
        self.actor = actor

    @classmethod
    def find(cls, actor: Actor | None = None) -> "Recorder":
        """Return one for the site's log, if it has one; AuditSetupError where its configuration cannot be used."""
        return cls(LogConfiguration.find(), actor or operator())

    @property
    def is_on(self) -> bool:
        """Whether there is a log to record in."""
        return self._configuration is not None

    def answer(self, result: ScreeningResult, *, subject: str | None = None) -> Receipt | None:
        """Record an answer, and before it that this model answers from now on, if another did before or none.

        Raises
        ------
        AuditError
            It could not be recorded; the answer must not be given.
        """
        if self._configuration is None:
            return None
        with self._configuration.write(wait_s=_WAIT_S) as log, log.exclusively() as inside:
            reader = DatabaseReader(inside.database, log.verifiers, inside.vault)
            entries = [*self._activation(reader, result), answer_entry(result, self.actor, subject=subject)]
            return inside.record(entries)[-1]

    def report(self, results: Sequence[ScreeningResult], action: Action, form: str, *, reason: str | None = None) -> list[Receipt]:
        """Record that reports on results are about to be shown or written.

        Raises
        ------
        AuditError
            It could not be recorded; the reports must not be shown.
        """
        if self._configuration is None or not results:
            return []
        payloads = [self._report(result.digest, action, form, reason) for result in results]
        with self._configuration.write(wait_s=_WAIT_S) as log, log.exclusively() as inside:
            reader = DatabaseReader(inside.database, log.verifiers, inside.vault)
            models = [result.model.digest for result in results]
            return inside.record([about_result(reader, payload, model=model) for payload, model in zip(payloads, models, strict=True)])

    def find_answer(self, result: ScreeningResult) -> int | None:
        """Return the index of the record of this very answer; None where the log has none, or there is no log."""
        if self._configuration is None:
            return None
        with self._configuration.read() as reader:
            records = [reader.record(index) for index in reader.named(RECORD + result.digest)]
        return next((record.index for record in records if isinstance(record.payload, Inference | QualityRejection)), None)

    def shown(self, results: Sequence[ScreeningResult], file: Path | None) -> list[Receipt]:
        """Record that results are about to be written into a file, named by its ending, or shown in the terminal; see `report`."""
        return self.report(results, "exported" if file else "viewed", file.suffix.lower().removeprefix(".") if file else "terminal")

    @contextmanager
    def reporting(self) -> Iterator[Callable[[str, str, str], None]]:
        """Hold the log for a batch, and give what records one report of it: by the result's digest, the model's, and the file's kind."""
        if self._configuration is None:
            yield _record_nothing
            return
        with self._configuration.write(wait_s=_WAIT_S) as log:

            def record(result: str, model: str, form: str) -> None:
                with log.exclusively() as inside:
                    reader = DatabaseReader(inside.database, log.verifiers, inside.vault)
                    inside.record([about_result(reader, self._report(result, "exported", form), model=model)])

            yield record

    def _report(self, result: str, action: Action, form: str, reason: str | None = None) -> ReportAction:
        return ReportAction.model_validate({"actor": self.actor, "result": result, "action": action, "form": form, "reason": reason})

    def record(self, payload: Payload, **about: Any) -> Receipt | None:
        """Record one event of another kind; `about` are fields of `Entry`."""
        if self._configuration is None:
            return None
        with self._configuration.write(wait_s=_WAIT_S) as log:
            return log.append(payload, **about)

    @contextmanager
    def refusals(self, model: str) -> Iterator[None]:
        """Record a bundle that is refused, and let its error go on."""
        try:
            yield
        except BundleError as error:
            # A folder's name may be a person's; what the bundle is called is known only once it is read.
            name = model if model.isidentifier() or model.replace("-", "_").isidentifier() else "a folder"
            payload = ModelChange(actor=self.actor, action="refused", name=name, old=None, new=None, reason=type(error).__name__)
            self.record(payload, outcome=Outcome.REFUSED, purpose=Purpose.OPERATIONS)
            raise

    def _activation(self, reader: LogReader, result: ScreeningResult) -> list[Entry]:
        last = None
        for index in reader.named(MODEL + result.model.name):
            for record in reader.records(index, index + 1):
                if isinstance(record.payload, ModelChange) and record.payload.action != "refused":
                    last = record.payload.new
        if last == result.model.digest:
            return []
        change = ModelChange(
            actor=self.actor,
            action="activated",
            name=result.model.name,
            old=last,
            new=result.model.digest,
            reason=f"first answer of version {result.model.version} in this log",
        )
        return [Entry(change, purpose=Purpose.OPERATIONS, model=result.model.digest)]


def answer_entry(result: ScreeningResult, actor: Actor, *, subject: str | None = None, notice: str | None = None) -> Entry:
    """Return the record of an answer. Without a subject, the result's own record stands for the person, so that it can be erased all the same."""
    checks = tuple(
        Check(name=check.name, value=check.value, verdict="warn" if check.verdict == "warn" else "fail")
        for check in result.quality.checks
        if check.verdict != "pass"
    )
    common = {
        "actor": actor,
        "result": result.digest,
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
    return Entry(payload, subject=subject or RECORD + result.digest, outcome=outcome, model=result.model.digest)


def about_result(reader: LogReader, payload: Payload, **about: Any) -> Entry:
    """Return a record that shares the subject of the answer it is about; an answer that this log does not have stands for itself."""
    [name] = payload.records()
    known = [index for index in reader.named(name) for record in reader.records(index, index + 1) if record.state == "open"]
    return Entry(payload, like=known[0], **about) if known else Entry(payload, subject=name, **about)


def _record_nothing(result: str, model: str, form: str) -> None:  # noqa: ARG001
    return


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
