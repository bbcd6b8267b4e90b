"""Which records an export holds, said beside them, so that a reader sees what was left out and a verifier knows what must be there.

The one idea: an export of everything proves itself (the root is made anew), and one of a part says that it is a part; whose part, it does not say.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, ValidationError

from clinical_ser.audit.events import MODEL, PAYLOADS, RECORD
from clinical_ser.audit.exports.packet import Packet, PacketWriter
from clinical_ser.audit.exports.shown import check_log
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditFormatError, AuditTamperedError
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict

SCHEMA: Literal["clinical-ser/audit-selection/1"] = "clinical-ser/audit-selection/1"
SELECTION = "selection.json"


@dataclass(frozen=True)
class Selection:
    """What is asked for.

    Parameters
    ----------
    first, last
        Range of records, both ends in it; from the first and up to the last when left out.
    kinds
        Only these kinds of events; all when None.
    about
        Only records about this subject, this result (`clinical-ser:result:…`) or this model (`clinical-ser:model:…`); all when None.
    payloads
        Whether what is about persons is exported, where the reader can open it.

    Raises
    ------
    ValueError
        A kind that is not known.
    """

    first: int | None = None
    last: int | None = None
    kinds: frozenset[str] | None = None
    about: str | None = None
    payloads: bool = False

    def __post_init__(self) -> None:
        if self.kinds is not None and (unknown := self.kinds - set(PAYLOADS)):
            raise ValueError(f"{min(unknown)!r} is no kind of event; there are {', '.join(sorted(PAYLOADS))}")

    def range_of(self, reader: LogReader) -> tuple[int | None, int | None]:
        """Return the first and last index, None and None for a log without records.

        Raises
        ------
        AuditFormatError
            The log has no such records.
        """
        if reader.size == 0 and self.first is None and self.last is None:
            return None, None
        first, last = self.first or 0, reader.size - 1 if self.last is None else self.last
        if not 0 <= first <= last < reader.size:
            raise AuditFormatError(f"There are no records {first} to {last}: the log has {reader.size}, from 0.")
        return first, last

    def records(self, reader: LogReader) -> Iterator[Record]:
        """Yield the records in their order."""
        first, last = self.range_of(reader)
        if first is None or last is None:
            return
        for record in self._all_of(reader, first, last):
            if self.kinds is None or record.event.kind in self.kinds:
                yield record

    def _all_of(self, reader: LogReader, first: int, last: int) -> Iterator[Record]:
        if self.about is None:
            yield from reader.records(first, last + 1)
            return
        for index in self._found(reader, self.about):
            if first <= index <= last:
                yield from reader.records(index, index + 1)

    @staticmethod
    def _found(reader: LogReader, name: str) -> list[int]:
        """Return the records about a result or a model by its printed name, or of a subject, whose name never is one of those."""
        return reader.about(name) if name.startswith((RECORD, MODEL)) else reader.named(name)

    def is_all(self, reader: LogReader) -> bool:
        """Return whether it is every record of the log."""
        whole = (None, None) if reader.size == 0 else (0, reader.size - 1)
        return self.kinds is None and self.about is None and self.range_of(reader) == whole

    def write(self, packet: PacketWriter) -> None:
        """Say in the export what was asked for, but not about whom."""
        said = Said(
            schema=SCHEMA, kinds=None if self.kinds is None else tuple(sorted(self.kinds)), one=self.about is not None, payloads=self.payloads
        )
        packet.add(SELECTION, canonical_json(said.model_dump(mode="json", by_alias=True)), "application/json", SCHEMA)


class Said(Strict):
    """`selection.json`: what was asked for; the range is in the manifest."""

    schema_id: Literal["clinical-ser/audit-selection/1"] = Field(alias="schema")
    kinds: tuple[str, ...] | None
    one: bool
    """Whether it is about one subject, one result or one model."""
    payloads: bool

    @classmethod
    def read(cls, packet: Packet) -> Self:
        """Read it from an export."""
        raw = packet.read(SELECTION)
        try:
            parse_canonical_object(raw)
            said = cls.model_validate_json(raw, strict=True)
        except (StrictJsonError, ValidationError):
            raise AuditFormatError(f"{SELECTION} does not fit schema {SCHEMA!r}.") from None
        if said.kinds is not None and said.kinds != tuple(sorted(set(said.kinds) & set(PAYLOADS))):
            raise AuditFormatError(f"{SELECTION} names kinds that are not known, twice, or out of order.")
        return said


class Order:
    """Checks, record by record, that an export holds those of its selection in their order, and at the end that none is missing.

    Parameters
    ----------
    packet
        Whose manifest says the range, and `selection.json` what else was asked for.
    reader
        The log, to see that it is the one that the export is of, and that no record of the kinds that were asked for is missing.
    """

    def __init__(self, packet: Packet, reader: LogReader | None = None) -> None:
        manifest = packet.manifest
        self.said = Said.read(packet)
        self._size, self._first, self._last = manifest.size, manifest.first, manifest.last
        self._latest: int | None = None
        self._wanted = None
        self.count = 0
        if reader is not None:
            check_log(packet, reader)
            if not self.said.one:
                kinds = None if self.said.kinds is None else frozenset(self.said.kinds)
                self._wanted = Selection(self._first, self._last, kinds).records(reader)

    @property
    def is_range(self) -> bool:
        """Whether every record of the range has to be there."""
        return self.said.kinds is None and not self.said.one

    @property
    def is_all(self) -> bool:
        """Whether every record of the log has to be there."""
        return self.is_range and (self._size == 0 or (self._first, self._last) == (0, self._size - 1))

    def take(self, index: int, kind: str) -> None:
        """Take the next record; AuditTamperedError names the first index that does not fit."""
        first, last = self._first, self._last
        expected = first if self._latest is None else self._latest + 1
        if first is None or last is None or expected is None or not first <= index <= last:
            raise AuditTamperedError(f"Record {index} is not in the range that the manifest says.")
        if index < expected:
            raise AuditTamperedError(f"Record {index} comes after record {self._latest}: the order was changed, or it is there twice.")
        if self.is_range and index != expected:
            raise AuditTamperedError(f"Record {expected} is missing.")
        if self.said.kinds is not None and kind not in self.said.kinds:
            raise AuditTamperedError(f"Record {index} is of a kind that was not asked for.")
        if self._wanted is not None and (record := next(self._wanted, None)) is not None and record.index < index:
            raise AuditTamperedError(f"Record {record.index} is missing.")
        self._latest = index
        self.count += 1

    def finish(self) -> None:
        """Take the end."""
        if self.is_range and self._latest != self._last:
            missing = self._first if self._latest is None else self._latest + 1
            raise AuditTamperedError(f"Record {missing} is missing.")
        if self._wanted is not None and (record := next(self._wanted, None)) is not None:
            raise AuditTamperedError(f"Record {record.index} is missing.")

    def unchecked(self) -> tuple[str, ...]:
        """Return what nobody can tell from the export of a part."""
        if self.is_range or self._wanted is not None:
            return ()
        return ("Whether all records of the selection are there: only the log can tell.",)
