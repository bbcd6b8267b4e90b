"""Whose turn it is to write: three locks, by which a writer who stays lends the log to those who come for a moment.

The one idea: `writer` is the log itself; whoever waits for it holds `wanted`, so that a writer who lends sees it and steps aside; and while that one
waits to have the log back it holds `back`, past which nobody else takes it. So both have their turns: one guest, then the host, however many wait.
Every lock ends with the process, or the session, that holds it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clinical_ser.audit.database import busy
from clinical_ser.errors import AuditUnavailableError
from clinical_ser.file_lock import FileLock

_HANDED_OVER_WITHIN_S = 1.0
"""A guest looks every 20 to 50 ms; one that was not seen to take its turn for so long was stopped, or gave up."""
_GLANCES = 10
"""How much more often than a guest the host looks whether the log was taken, so that it waits to have it back before a short visit is over."""


class Lock(Protocol):
    """A lock that is asked for and never waited for."""

    def take(self, *, shared: bool = False) -> bool:
        """Take it, alone or with others who share it; False where someone has it already."""

    def release(self) -> None:
        """Let go; nothing happens where it was not held."""


def lock_of_log(path: Path) -> FileLock:
    """Return a lock of the audit log in a file; AuditUnavailableError where the system refuses it."""
    return FileLock(path, "audit log", AuditUnavailableError)


@dataclass
class Turns:
    """The three locks of a log.

    Attributes
    ----------
    writer, wanted, back
        Held by whoever writes; by one of those who wait to; by a writer who lent the log and waits to have it back.
    poll_s
        How often a lock that someone has is asked for again.
    """

    writer: Lock
    wanted: Lock
    back: Lock
    poll_s: float
    is_mine: bool = False

    @classmethod
    def beside(cls, path: Path, poll_s: float) -> "Turns":
        """Return those of a log in a file."""
        writer, wanted, back = (lock_of_log(path.with_name(f"{path.name}.{name}")) for name in ("lock", "wanted", "back"))
        return cls(writer, wanted, back, poll_s)

    def take(self, wait_s: float, *, returning: bool = False) -> None:
        """Become the writer.

        Parameters
        ----------
        wait_s
            How long to wait where there is one.
        returning
            Whether this is the one who lent the log, whose turn it is next.

        Raises
        ------
        AuditBusyError
            There was one all the time.
        """
        deadline = time.monotonic() + wait_s
        asking, asked = self.back if returning else self.wanted, False
        try:
            while not self._try(past_others=returning):
                if time.monotonic() >= deadline:
                    raise busy(wait_s)
                asked = asked or asking.take()
                time.sleep(self.poll_s)
        finally:
            if asked:
                asking.release()
        self.is_mine = True

    def _try(self, *, past_others: bool) -> bool:
        if past_others:
            return self.writer.take()
        if not self.back.take(shared=True):
            return False
        try:
            return self.writer.take()
        finally:
            self.back.release()

    def is_wanted(self) -> bool:
        """Tell whether someone waits to become, or to be once more, the writer that this one is."""
        return self.is_mine and not (_is_free(self.wanted) and _is_free(self.back, shared=True))

    def hand_over(self) -> None:
        """Stop being the writer, and return when someone else is, or nobody wants to be any more."""
        deadline = time.monotonic() + _HANDED_OVER_WITHIN_S
        while self.is_wanted() and time.monotonic() < deadline:
            self.release()
            time.sleep(self.poll_s / _GLANCES)
            self.is_mine = self.writer.take()
        self.release()

    def release(self) -> None:
        """Stop being the writer, if this is the one."""
        self.writer.release()
        self.is_mine = False


def _is_free(lock: Lock, *, shared: bool = False) -> bool:
    free = lock.take(shared=shared)
    if free:
        lock.release()
    return free
