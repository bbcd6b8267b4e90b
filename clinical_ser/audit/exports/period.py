"""Exports of a period: what the command line and the server both make, and both record before they hand it out.

The one idea: days are whole and in UTC, and an export is known by its manifest, which names the digest of every other file in it.
"""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Literal

from clinical_ser.audit.exports.packet import MANIFEST
from clinical_ser.audit.exports.selection import Selection
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.reading import DatabaseReader

PeriodForm = Literal["jsonl", "csv", "fhir", "ai-act"]


def first_moment(day: date) -> datetime:
    """Return when a day begins."""
    return datetime.combine(day, time.min, UTC)


def last_moment(day: date) -> datetime:
    """Return when a day ends: the last moment that is of it."""
    return datetime.combine(day, time.max, UTC)


def export_period(
    log: DatabaseReader,
    signers: Sequence[NoteSigner],
    target: Path,
    form: PeriodForm,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    kinds: frozenset[str] | None = None,
    about: str | None = None,
    payloads: bool = False,
) -> str:
    """Write the records of a period in one of the forms that are about records.

    Parameters
    ----------
    log, signers
        The log and its keys.
    target
        The folder to be.
    form
        `jsonl`, `csv`, `fhir`; or `ai-act`, which is about every kind of event and nobody.
    since, until
        The period, both ends in it.
    kinds, about
        Only these kinds of events; only what is about this subject, result or model. Not for `ai-act`.
    payloads
        Whether what is sealed goes along, where the reader can open it; for `ai-act` only what is about the system.

    Returns
    -------
    str
        Digest of the export's manifest.

    Raises
    ------
    AuditSetupError
        The log has no record of the period.
    """
    if form == "ai-act":
        from clinical_ser.audit.exports.ai_act import export_ai_act

        return export_ai_act(log, target, signers=signers, since=since, until=until, details=payloads)
    from clinical_ser.audit.exports import fhir, json_lines, table

    first, last = log.between(since, until)
    selection = Selection(first=first, last=last, kinds=kinds, about=about, payloads=payloads)
    if form == "fhir":
        return fhir.export(log, target, signers, selection)
    return (json_lines if form == "jsonl" else table).export(log, target, signers, selection)


def range_of(folder: Path) -> tuple[int | None, int | None]:
    """Return the first and last record of an export that was just made."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    return manifest["first"], manifest["last"]
