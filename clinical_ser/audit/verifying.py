"""The separate reader: it takes a log's database, trusts nothing that the writer said, and says whether all of it fits together.

The one idea: only keys and checkpoints that the verifier brings along are believed. From them follows the root, from the root every leaf, from a leaf
its payload; whatever else the tables say (hashes, tiles, names) is held against what was computed.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.database import Database, StorageError
from clinical_ser.audit.events import Erasure, Event, Flag, parse_payload
from clinical_ser.audit.merkle import TILE_WIDTH, Frontier, perfect_root
from clinical_ser.audit.notes import VerifierKey, parse_note
from clinical_ser.audit.ranges import Ranges
from clinical_ser.audit.tables import head_of
from clinical_ser.audit.vault import Vault
from clinical_ser.errors import AuditFormatError, AuditTamperedError, AuditUnavailableError

_SHOWN = 10
_Row = tuple[int, bytes, bytes]
"""Index, leaf and the hash that stands beside it."""

Report = Callable[[int, int], None]
"""Called with (records done, records in all)."""


@dataclass
class VerifiedLog:
    """What was verified, of a log in which everything fits.

    Attributes
    ----------
    origin, size, root
        As the signed head says, and as computed.
    signed_by
        The keys whose signatures on the head fit, as `name+id`.
    checkpoints
        How many older checkpoints that were brought along it was held against; with 0, and none `pinned`, a log that was put back to an older
        copy would look like this too.
    pinned
        Whether it was held against the head that is kept beside the keys.
    opened, sealed, erased
        Payloads that fit what their records commit to; those for which no key was at hand; those that a tombstone says were destroyed.
    kinds
        How many events of each kind; empty if only the tree was looked at.
    clock_anomalies
        The first indices at which time went back or jumped; `anomalies` counts them.
    unfinished
        Records that a tombstone says were erased and that are still there: the erasure was interrupted, and has to be asked for again.
    unscrubbed
        Whether what an erasure deleted was not overwritten yet; any erasure does it.
    """

    origin: str
    size: int
    root: bytes
    signed_by: tuple[str, ...]
    checkpoints: int = 0
    pinned: bool = False
    opened: int = 0
    sealed: int = 0
    erased: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    clock_anomalies: list[int] = field(default_factory=list)
    anomalies: int = 0
    unfinished: int = 0
    unscrubbed: bool = False


def verify_log(
    database: Database,
    verifiers: Iterable[VerifierKey],
    *,
    vault: Vault | None = None,
    retained: Sequence[str] = (),
    tree_only: bool = False,
    report: Report | None = None,
) -> VerifiedLog:
    """Verify a log from its first record to its signed head.

    Parameters
    ----------
    database
        A connection of its own.
    verifiers
        The log's keys as the verifier knows them, past and present.
    vault
        The keys of payloads; without it leaves are verified and payloads are not.
    retained
        Signed checkpoints that the verifier kept, got from a witness, or typed in from paper.
    tree_only
        Leave payloads and names alone.
    report
        Called as it goes on.

    Raises
    ------
    AuditTamperedError, AuditFormatError
        Something does not fit; the message names the first record that does not.
    AuditUnavailableError
        The database cannot be read.
    """
    keys = tuple(verifiers)
    try:
        with database.snapshot():
            return _Verification(database, keys, vault, tree_only=tree_only).run(retained, report)
    except StorageError as error:
        raise AuditUnavailableError(f"The audit log cannot be read: {error.reason}.") from None


class _Verification:
    def __init__(self, database: Database, keys: tuple[VerifierKey, ...], vault: Vault | None, *, tree_only: bool) -> None:
        self._database, self._keys, self._vault, self._tree_only = database, keys, vault, tree_only
        self._tree = Frontier()
        self._tiles: list[list[bytes]] = [[]]
        self._gone = Ranges()
        self._tombstones: list[Ranges] = []
        self._latest = ""

    def run(self, retained: Sequence[str], report: Report | None) -> VerifiedLog:
        if not self._tree_only:
            self._database.check()
        head, note = Checkpoint.open(head_of(self._database), self._keys)
        found = VerifiedLog(head.origin, head.size, head.root, tuple(f"{key.name}+{key.key_id:08x}" for key, _ in note.verified))
        due = deque([*self._older(head, retained), head])
        # What the database itself keeps proves nothing about older copies of it; only what was brought along does.
        found.checkpoints = len(retained)
        for rows in self._rows(head.size):
            hashes = _leaf_hashes(rows)
            while due and due[0].size <= rows[0][0] + len(rows):
                self._see_root(due.popleft(), hashes)
            self._grow(hashes)
            if not self._tree_only:
                self._see_contents(rows, found)
            if report:
                report(self._tree.size, head.size)
        for checkpoint in due:
            self._see_root(checkpoint, [])
        self._see_tiles()
        if not self._tree_only:
            self._see_erasures(found)
        return found

    # ── the tree ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _older(self, head: Checkpoint, retained: Sequence[str]) -> list[Checkpoint]:
        kept = self._database.query("SELECT size, note FROM checkpoints ORDER BY size")
        older = [Checkpoint.open(note, self._keys, head.origin)[0] for note in (*(note for _, note in kept), *retained)]
        self._see_filed(head, kept, older)
        for checkpoint in older:
            if checkpoint.size > head.size:
                raise AuditTamperedError(
                    f"A checkpoint counts {checkpoint.size} records, the log {head.size}: it was put back to an older copy, or its end was cut off."
                )
        return sorted(older, key=lambda each: each.size)

    def _see_filed(self, head: Checkpoint, kept: Sequence[tuple[int, str]], older: Sequence[Checkpoint]) -> None:
        """See that checkpoints are filed under their sizes, and cosignatures under checkpoints."""
        filed = [*self._database.query("SELECT size FROM head"), *((size,) for size, _ in kept)]
        if filed != [(checkpoint.size,) for checkpoint in (head, *older[: len(kept)])]:
            raise AuditTamperedError("A checkpoint is filed under another size than it has.")
        notes = dict(kept)
        for size, line in self._database.query("SELECT size, line FROM cosignatures"):
            if size not in notes:
                raise AuditTamperedError(f"There is a cosignature of a checkpoint of {size} records, and no such checkpoint.")
            # Whether it fits, only whoever knows the witness's key can tell; what is no signature would spoil the note.
            parse_note(notes[size] + line)

    def _rows(self, size: int) -> Iterator[list[_Row]]:
        """Yield leaves in groups of a tile, seeing that none is missing, and none too many."""
        stream = self._database.stream("SELECT idx, leaf, hash FROM leaves ORDER BY idx")
        at = 0
        while rows := list(islice(stream, TILE_WIDTH)):
            if rows[-1][0] != at + len(rows) - 1 or rows[0][0] != at:
                missing = next(expected for expected, row in enumerate(rows, start=at) if row[0] != expected)
                raise AuditTamperedError(f"Record {missing} is missing.")
            at += len(rows)
            if at > size:
                raise AuditTamperedError(f"Record {size} is there, and the signed head counts only {size}.")
            yield rows
        if at != size:
            raise AuditTamperedError(f"Record {at} is missing: the signed head counts {size}.")

    def _see_root(self, checkpoint: Checkpoint, hashes: Sequence[bytes]) -> None:
        """Compute the root at a checkpoint's size, which lies in the tile that comes next."""
        tree = self._tree.copy()
        for digest in hashes[: checkpoint.size - tree.size]:
            tree.append(digest)
        if tree.root != checkpoint.root:
            raise AuditTamperedError(
                f"The first {checkpoint.size} records are not those of the checkpoint of {checkpoint.size}: one was changed, dropped, moved or "
                "forged, and the hashes in the database were made to fit."
            )

    def _grow(self, hashes: list[bytes]) -> None:
        if len(hashes) < TILE_WIDTH:
            for digest in hashes:
                self._tree.append(digest)
            return
        root = perfect_root(hashes)
        self._tree.extend_by_tile(root)
        self._tiles[0].append(root)

    def _see_tiles(self) -> None:
        """Compare the stored roots of tiles with computed ones."""
        level, computed = 1, self._tiles[0]
        while computed:
            expected = [(n, digest) for n, digest in enumerate(computed)]
            if self._database.query("SELECT n, hash FROM tiles WHERE level = ? ORDER BY n", (level,)) != expected:
                raise AuditTamperedError(f"The stored hashes of tiles at level {level} are not those of the records, so that proofs would be wrong.")
            level += 1
            whole = len(computed) // TILE_WIDTH * TILE_WIDTH
            computed = [perfect_root(computed[at : at + TILE_WIDTH]) for at in range(0, whole, TILE_WIDTH)]
        if self._database.query("SELECT COUNT(*) FROM tiles WHERE level < 1 OR level >= ?", (level,)) != [(0,)]:
            raise AuditTamperedError("There are stored hashes of tiles for more records than there are.")

    # ── what the leaves say, and what lies beside them ──────────────────────────────────────────────────────────────────

    def _see_contents(self, rows: list[_Row], found: VerifiedLog) -> None:
        first, end = rows[0][0], rows[-1][0] + 1
        payloads = self._database.query("SELECT idx, subject, data FROM sealed WHERE idx >= ? AND idx < ?", (first, end))
        sealed = {index: (subject, data) for index, subject, data in payloads}
        names: dict[int, set[bytes]] = {}
        for lookup, index in self._database.query("SELECT lookup, idx FROM names WHERE idx >= ? AND idx < ?", (first, end)):
            names.setdefault(index, set()).add(lookup)
        for index, leaf, _ in rows:
            try:
                event = Event.parse(leaf)
                self._see_record(index, event, sealed.get(index), names.get(index, set()), found)
            except (AuditFormatError, AuditTamperedError) as error:
                raise AuditTamperedError(f"Record {index}: {str(error)[0].lower()}{str(error)[1:]}") from None
            found.kinds[event.kind] += 1
            self._see_time(index, event, found)

    def _see_record(self, index: int, event: Event, sealed: tuple[bytes | None, bytes] | None, names: set[bytes], found: VerifiedLog) -> None:
        if sealed is None:
            self._gone.append(index)
            found.erased += 1
            return
        if self._vault is None:
            found.sealed += 1
            return
        key = self._vault.by_id(sealed[0])
        if key is None:
            # Its key was destroyed and its payload was not yet: either an erasure that did not finish, or nobody's right.
            self._gone.append(index)
            found.erased += 1
            return
        salt, raw = key.open(event.id, sealed[1])
        if sha256(salt + raw).hexdigest() != event.commitment:
            raise AuditTamperedError("its payload is not the one that its leaf commits to.")
        payload = parse_payload(raw)
        if (payload.kind, payload.version, payload.actor.role) != (event.kind, event.version, event.role):
            raise AuditTamperedError("its leaf and its payload speak of different events.")
        if event.subject_tag != (None if key.id is None else key.tag(event.id)):
            raise AuditTamperedError("its payload is sealed for another subject than its leaf says.")
        expected = {self._vault.lookup(record) for record in payload.records()}
        if key.id is not None:
            expected.add(key.lookup)
        if names != expected:
            raise AuditTamperedError("the index by which it is found was changed.")
        if isinstance(payload, Erasure):
            self._tombstones.append(Ranges.parse(payload.erased))
            if self._tombstones[-1].last >= index:
                raise AuditTamperedError("it says that records were erased which came after it.")
        found.opened += 1

    def _see_time(self, index: int, event: Event, found: VerifiedLog) -> None:
        # The spelling has a fixed length, so that text compares as time does.
        if event.time < self._latest or Flag.CLOCK_ANOMALY in event.flags:
            found.anomalies += 1
            if found.anomalies <= _SHOWN:
                found.clock_anomalies.append(index)
        self._latest = max(self._latest, event.time)

    def _see_erasures(self, found: VerifiedLog) -> None:
        for what, rows in (
            ("payloads", self._database.query("SELECT COUNT(*) FROM sealed WHERE idx < 0 OR idx >= ?", (found.size,))),
            ("names", self._database.query("SELECT COUNT(*) FROM names WHERE idx < 0 OR idx >= ?", (found.size,))),
            ("requests", self._database.query("SELECT COUNT(*) FROM requests WHERE idx < 0 OR last >= ? OR last < idx", (found.size,))),
        ):
            if rows != [(0,)]:
                raise AuditTamperedError(f"There are {what} that belong to no record.")
        if self._vault is None:
            return
        for lookup, first, last, digest, mac in self._database.stream("SELECT lookup, idx, last, digest, mac FROM requests"):
            if mac != self._vault.request_mac(lookup, first, last, digest):
                raise AuditTamperedError(f"Record {first}: what the log knows of the request that it came with was changed.")
        erased = Ranges.joined(self._tombstones)
        if (missing := self._gone.first_outside(erased)) is not None:
            raise AuditTamperedError(f"Record {missing}: its payload, or the key to it, is gone, and no erasure says so.")
        found.unscrubbed = self._vault.scrub_pending
        for first, last in erased.spans():
            [(left,)] = self._database.query("SELECT COUNT(*) FROM sealed WHERE idx >= ? AND idx <= ?", (first, last))
            found.unfinished += left


def _leaf_hashes(rows: list[_Row]) -> list[bytes]:
    hashes = [sha256(b"\x00" + leaf).digest() for _, leaf, _ in rows]
    if hashes != [stored for _, _, stored in rows]:
        changed = next(index for (index, _, stored), digest in zip(rows, hashes, strict=True) if stored != digest)
        raise AuditTamperedError(f"Record {changed} was changed: its leaf does not have the hash that stands beside it.")
    return hashes
