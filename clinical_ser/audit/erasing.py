"""Erasure: a subject's payloads, salts and key are destroyed, and the tree stays as it was.

The one idea: the tombstone is recorded first, then the key is destroyed, then what it had sealed. Interrupted anywhere, the same request again
finishes it, and until then `verify` says that an erasure is unfinished.
"""

import contextlib

from clinical_ser.audit.events import Actor, Erasure, LegalHold, Outcome, Purpose
from clinical_ser.audit.log import AuditLog, Entry, Exclusive
from clinical_ser.audit.ranges import Ranges
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import LogReader
from clinical_ser.errors import AuditConflictError, LegalHoldError

_RANGES_A_TOMBSTONE = 400
"""So many separate numbers surely fit the field."""


def active_hold(reader: LogReader, subject: str) -> int | None:
    """Return the index of the legal hold that a subject's records are under, None where there is none."""
    hold = None
    for index in reader.named(subject):
        for record in reader.records(index, index + 1):
            if isinstance(record.payload, LegalHold) and record.event.outcome is Outcome.SUCCESS:
                hold = index if record.payload.action == "placed" else None
    return hold


def erase(log: AuditLog, subject: str, *, reason: str, basis: str, actor: Actor) -> Ranges:
    """Destroy everything that the log holds of a subject, and record that.

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

    Returns
    -------
    Ranges
        The records whose payloads are gone; none where the log has nothing of this subject.

    Raises
    ------
    LegalHoldError
        The records are under a legal hold; that this was refused is recorded.
    AuditUnavailableError
        It is recorded, and destruction did not finish: ask again.
    """
    with log.exclusively() as inside:
        reader = DatabaseReader(inside.database, log.verifiers, inside.vault)
        indices = reader.named(subject)
        hold = active_hold(reader, subject)
        if hold is not None:
            refused = Erasure(actor=actor, erased="", reason=reason, basis=basis)
            inside.record([Entry(refused, outcome=Outcome.REFUSED, purpose=Purpose.COMPLIANCE)])
            raise LegalHoldError(f"Nothing was erased: record {hold} places these records under a legal hold, which has to be released first.")
        for chunk in (indices[at : at + _RANGES_A_TOMBSTONE] for at in range(0, len(indices), _RANGES_A_TOMBSTONE)):
            tombstone = Erasure(actor=actor, erased=str(Ranges(chunk)), reason=reason, basis=basis)
            # Asked for again after an interruption, it is not written twice, also if the reason is now put in other words.
            with contextlib.suppress(AuditConflictError):
                inside.record([Entry(tombstone, purpose=Purpose.COMPLIANCE)], f"erasure of {tombstone.erased}")
        _destroy(inside, subject, indices)
    return Ranges(indices)


def _destroy(inside: Exclusive, subject: str, indices: list[int]) -> None:
    """Destroy the key, which makes every copy of the payloads unreadable; then the payloads, and what they were found by."""
    inside.vault.destroy(subject)
    rows = [(index,) for index in indices]
    database = inside.database
    with database.transaction():
        database.execute_many("DELETE FROM sealed WHERE idx = ?", rows)
        # The digest of what a request asked for goes with any of its records.
        database.execute_many("UPDATE requests SET digest = NULL, mac = ? WHERE lookup = ?", _without_digest(inside, indices))
        database.execute_many("DELETE FROM names WHERE idx = ?", rows)
    database.scrub()


def _without_digest(inside: Exclusive, indices: list[int]) -> list[tuple[bytes, bytes]]:
    """Return the new authentication code of each request that one of the records came with, and which it is."""
    select = "SELECT lookup, idx, last FROM requests WHERE idx = (SELECT MAX(idx) FROM requests WHERE idx <= ?) AND last >= ?"
    found = {lookup: (first, last) for index in indices for lookup, first, last in inside.database.query(select, (index, index))}
    return [(inside.vault.request_mac(lookup, *span, None), lookup) for lookup, span in found.items()]
