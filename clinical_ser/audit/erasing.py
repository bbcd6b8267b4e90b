"""Erasure: a subject's payloads, salts and key are destroyed, and the tree stays as it was.

The one idea: the tombstone is recorded first, then the key is destroyed, then what it had sealed. Interrupted anywhere, the same request again
finishes it, and until then `verify` says that an erasure is unfinished.
"""

import contextlib
from dataclasses import dataclass

from clinical_ser.audit.database import SEALED_ELSEWHERE
from clinical_ser.audit.events import MODEL, RECORD, Actor, Erasure, Inference, LegalHold, Outcome, Purpose, QualityRejection
from clinical_ser.audit.log import AuditLog, Entry, Exclusive
from clinical_ser.audit.ranges import Ranges
from clinical_ser.audit.records import LogReader
from clinical_ser.errors import AuditConflictError, AuditSetupError, LegalHoldError

_RANGES_A_TOMBSTONE = 400
"""So many separate numbers surely fit the field."""


@dataclass(frozen=True)
class Erased:
    """What an erasure did.

    Attributes
    ----------
    records
        Whose payloads are gone; none where the log has nothing of this subject.
    finished
        Whether an earlier erasure, of whomever, had been interrupted before its traces were overwritten, and now is finished.
    """

    records: Ranges
    finished: bool


def active_holds(reader: LogReader, subject: str) -> list[int]:
    """Return the indices of the legal holds that a subject's records are under."""
    holds: list[int] = []
    for index in reader.named(subject):
        for record in reader.records(index, index + 1):
            told = record.payload
            if isinstance(told, LegalHold) and record.event.outcome is Outcome.SUCCESS:
                holds = [*holds, index] if told.action == "placed" else [each for each in holds if told.releases not in {None, each}]
    return holds


def erase(log: AuditLog, subject: str, *, reason: str, basis: str, actor: Actor) -> Erased:
    """Destroy everything that the log holds of a subject, and record that.

    What was answered about the same recordings without naming a person is the same person's, and goes too.

    Parameters
    ----------
    log
        The writer.
    subject
        Whose; for an answer that was recorded without a person, its record (`clinical-ser:result:…`).
    reason, basis
        Why, in words, and the clause it rests on.
    actor
        Who asked for it.

    Raises
    ------
    LegalHoldError
        The records are under a legal hold; that this was refused is recorded.
    AuditSetupError
        A record was named whose answer was recorded for a person: the person is to be named.
    AuditUnavailableError
        It is recorded, and destruction did not finish: ask again.
    """
    with log.exclusively() as inside:
        finished = _finish(inside)
        reader = inside.reader()
        own = {each: reader.named(each) for each in [*anonymous_copies(reader, subject), subject]}
        if subject.startswith((RECORD, MODEL)) and not own[subject] and reader.about(subject):
            raise AuditSetupError(
                "This was recorded for a person, or about a model: an answer is erased by its person's name, and a model's history is not."
            )
        for each in own:
            for hold in active_holds(reader, each):
                refused = Erasure(actor=actor, erased="", reason=reason, basis=basis)
                # Under the person, who may ask what was refused.
                inside.record([Entry(refused, subject=each, outcome=Outcome.REFUSED, purpose=Purpose.COMPLIANCE)])
                raise LegalHoldError(f"Nothing was erased: record {hold} places these records under a legal hold, which has to be released first.")
        indices = sorted({index for indices in own.values() for index in indices})
        for chunk in (indices[at : at + _RANGES_A_TOMBSTONE] for at in range(0, len(indices), _RANGES_A_TOMBSTONE)):
            tombstone = Erasure(actor=actor, erased=str(Ranges(chunk)), reason=reason, basis=basis)
            # Asked for again after an interruption, it is not written twice, also if the reason is now put in other words.
            with contextlib.suppress(AuditConflictError):
                inside.record([Entry(tombstone, purpose=Purpose.COMPLIANCE)], f"erasure of {tombstone.erased}")
        if indices:
            inside.vault.set_scrub_pending(True)
            # The person last: while the key is there, the copies are found again.
            for each, records in own.items():
                _destroy(inside, each, records, [key for key in reader.subjects_of(records) if key is not None])
            _finish(inside)
    return Erased(Ranges(indices), finished)


def anonymous_copies(reader: LogReader, subject: str) -> list[str]:
    """Return the records of answers about a subject's recordings that were given without naming the person."""
    answers = {
        name: None
        for index in reader.named(subject)
        for record in reader.records(index, index + 1)
        # What was only said about an answer, a review under a mistyped name say, does not make it this person's.
        if isinstance(record.payload, Inference | QualityRejection)
        for name in record.payload.records()
    }
    return [name for name in answers if name != subject and reader.named(name)]


def _destroy(inside: Exclusive, subject: str, indices: list[int], keys: list[bytes]) -> None:
    """Destroy the key, which makes every copy of the payloads unreadable; then the payloads, what they were found by, and what else it sealed."""
    inside.vault.destroy(subject)
    rows = [(index,) for index in indices]
    database = inside.database
    with database.transaction():
        for table in filter(database.has_table, SEALED_ELSEWHERE):
            # The key's name stood beside the payloads, which go in the same transaction: asked again after an interruption, it is found again.
            database.execute_many(f"DELETE FROM {table} WHERE subject = ?", [(key,) for key in keys])  # noqa: S608  # names of our own
        database.execute_many("DELETE FROM sealed WHERE idx = ?", rows)
        # The digest of what a request asked for goes with any of its records.
        database.execute_many("UPDATE requests SET digest = NULL, mac = ? WHERE lookup = ?", _without_digest(inside, indices))
        database.execute_many("DELETE FROM names WHERE idx = ?", rows)


def _finish(inside: Exclusive) -> bool:
    """Overwrite what was deleted, if that is still to be done."""
    if not inside.vault.scrub_pending:
        return False
    inside.database.scrub()
    inside.vault.set_scrub_pending(False)
    return True


def _without_digest(inside: Exclusive, indices: list[int]) -> list[tuple[bytes, bytes]]:
    """Return the new authentication code of each request that one of the records came with, and which it is."""
    select = "SELECT lookup, idx, last FROM requests WHERE idx = (SELECT MAX(idx) FROM requests WHERE idx <= ?) AND last >= ?"
    found = {lookup: (first, last) for index in indices for lookup, first, last in inside.database.query(select, (index, index))}
    return [(inside.vault.request_mac(lookup, *span, None), lookup) for lookup, span in found.items()]
