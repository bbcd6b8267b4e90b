"""The newest head that was kept, in a file apart from the database.

A log that was put back to an older copy fits its own signed head, and nothing inside of it can tell. Beside the keys lies one head that only ever
grows, so that whoever restores the database alone is told before the log signs a second history.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.notes import VerifierKey
from clinical_ser.errors import AuditTamperedError, AuditUnavailableError


class Pin:
    """The file.

    Parameters
    ----------
    path
        Where it is, or will be.
    verifiers
        The log's keys, past and present.
    """

    def __init__(self, path: Path, verifiers: Iterable[VerifierKey]) -> None:
        self._path = path
        self._verifiers = tuple(verifiers)

    def note(self) -> str | None:
        """Return the head that was kept, as it was signed; None before the first."""
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise AuditTamperedError("The kept checkpoint beside the keys is no text.") from None
        except OSError as error:
            raise AuditUnavailableError(f"The kept checkpoint beside the keys cannot be read: {error.strerror}.") from None

    def read(self) -> Checkpoint | None:
        """Return the head that was kept; None before the first."""
        note = self.note()
        return None if note is None else Checkpoint.open(note, self._verifiers)[0]

    def check(self, head: Checkpoint, root_at: Callable[[int], bytes]) -> None:
        """Raise AuditTamperedError unless the log has grown from what was kept; `root_at` gives its root at a size."""
        kept = self.read()
        if kept is None:
            return
        if kept.size > head.size:
            raise AuditTamperedError(
                f"The log has {head.size} records and had {kept.size}: it was put back to an older copy, or its end was cut off. "
                "Nothing was written. Restore the newer copy; if there is none, begin a new log (docs/compliance.md)."
            )
        if kept.origin != head.origin or root_at(kept.size) != kept.root:
            raise AuditTamperedError(f"The first {kept.size} records are not those that were kept beside the keys: the log was exchanged or changed.")

    def keep(self, note: str) -> None:
        """Replace the file, in one step that survives a loss of power."""
        draft = self._path.with_suffix(".tmp")
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(note)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise AuditUnavailableError(f"The checkpoint cannot be kept beside the keys: {error.strerror}.") from None
