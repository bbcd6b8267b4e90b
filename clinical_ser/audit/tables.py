"""Questions to the tables of a log that writer and readers share."""

from collections.abc import Sequence

from clinical_ser.audit.database import SCHEMA_VERSION, Database
from clinical_ser.audit.merkle import TILE_WIDTH, leaf_hash
from clinical_ser.errors import AuditSetupError, AuditTamperedError


class DatabaseTiles:
    """The tiles of a log's tables: leaf hashes are always taken anew from the leaves, so that a proof is never about other bytes than are there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tile(self, level: int, n: int) -> Sequence[bytes]:
        """Return the hashes of a tile, as far as they are there."""
        first = n * TILE_WIDTH
        if level == 0:
            rows = self._database.query("SELECT leaf FROM leaves WHERE idx >= ? AND idx < ? ORDER BY idx", (first, first + TILE_WIDTH))
            return [leaf_hash(leaf) for (leaf,) in rows]
        rows = self._database.query("SELECT hash FROM tiles WHERE level = ? AND n >= ? AND n < ? ORDER BY n", (level, first, first + TILE_WIDTH))
        return [digest for (digest,) in rows]


def head_of(database: Database) -> str:
    """Return the signed head; AuditSetupError where these are no tables of ours."""
    known = database.query("SELECT value FROM meta WHERE name = 'schema'")
    if known != [(SCHEMA_VERSION,)]:
        raise AuditSetupError(f"The database is no audit log of schema {SCHEMA_VERSION}, the only one that this version reads.")
    rows = database.query("SELECT note FROM head")
    if len(rows) != 1:
        raise AuditTamperedError("The audit log has no signed head.")
    return str(rows[0][0])
