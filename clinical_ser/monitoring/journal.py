"""The journal of counts: one file a day and model, to which whoever screens adds, and from which monitoring reads.

The one idea: a file is replaced whole, under a lock. Two writers lose nothing to each other, and a crash loses at most what was still in memory.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.file_lock import FileLock
from clinical_ser.monitoring.counts import Counts

_FILE = re.compile(r"(\d{4}-\d{2}-\d{2})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2999, 12, 31)
"""Of what may be watched; what lies beyond is a slip, and more than a calendar can add to."""
_LARGEST = 16 * 2**20
_WAIT_S = 30.0


class Journal:
    """Counts by model and day.

    Parameters
    ----------
    folder
        Made when the first counts are added; it is for its owner only. `<digest>/<day>.json`, each as `Counts.to_bytes` spells it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     journal = Journal(Path(folder))
    ...     for _ in range(2):
    ...         journal.add(date(2030, 1, 1), Counts(model="0" * 64, recordings=3))
    ...     [(str(day), counts.recordings) for day, counts in journal.between("0" * 64)]
    [('2030-01-01', 6)]
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, day: date, counts: Counts) -> None:
        """Add counts to a day's; on the disk when this returns.

        Raises
        ------
        MonitoringError
            The day's file is damaged (it is left as it is), or the system refuses.
        """
        if not counts.recordings:
            return
        with _system(), self._locked():
            path = self._path(counts.model, day)
            before = self._read(path, counts.model) if path.exists() else None
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with replaced(path) as unfinished, unfinished.open("wb") as file:
                file.write((counts if before is None else before + counts).to_bytes())
                file.flush()
                os.fsync(file.fileno())

    def models(self) -> tuple[str, ...]:
        """Return the digests of the models that have counts."""
        with _system():
            return tuple(sorted(path.name for path in self._folder.iterdir() if _DIGEST.fullmatch(path.name))) if self._folder.is_dir() else ()

    def days(self, model: str) -> tuple[date, ...]:
        """Return the days that have counts of a model, in order."""
        folder = self._folder / _digest(model)
        with _system():
            named = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return tuple(_day(match[1]) for name in named if (match := _FILE.fullmatch(name)))

    def between(self, model: str, first: date | None = None, last: date | None = None) -> tuple[tuple[date, Counts], ...]:
        """Return the days from `first` to `last`, both included, that have counts of a model, in order; MonitoringError if one is damaged."""
        days = [day for day in self.days(model) if (first is None or day >= first) and (last is None or day <= last)]
        with _system():
            return tuple((day, self._read(self._path(model, day), model)) for day in days)

    def _path(self, model: str, day: date) -> Path:
        return self._folder / _digest(model) / f"{day.isoformat()}.json"

    def _read(self, path: Path, model: str) -> Counts:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise MonitoringError(f"The journal's counts of {path.stem} are larger than {_LARGEST} bytes; they are not counts.")
        try:
            counts = Counts.from_bytes(raw)
        except MonitoringError as error:
            raise MonitoringError(f"The journal's counts of {path.stem} cannot be used. {error}") from None
        if counts.model != model:
            raise MonitoringError(f"The journal's counts of {path.stem} are of another model than their folder says.")
        return counts

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(self._folder / "lock", "journal of counts", MonitoringError)
        until = time.monotonic() + _WAIT_S
        while not lock.take():
            if time.monotonic() > until:
                raise MonitoringError(f"The journal of counts was locked for {_WAIT_S:.0f} s by another process.")
            time.sleep(0.005)
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _system() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its text holds the path
        raise MonitoringError(f"The journal of counts cannot be used: {error.strerror}.") from None


def _digest(model: str) -> str:
    if not _DIGEST.fullmatch(model):
        raise InvalidValueError("model", model[:80], "the digest of a bundle, 64 hexadecimal digits")
    return model


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if not FIRST_DAY <= day <= LAST_DAY:
        raise MonitoringError("The journal of counts has a file that is named after no day.")
    return day
