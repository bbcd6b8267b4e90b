"""The history of one name: a chain of entries, and a head that says which of them is current.

The one idea: the order of the three steps of a switch. The entry is synced under a draft's name; one rename of the head makes it current; then
it gets its final name. So a killed switch leaves the old state or the new, and an entry with a final name beyond the head is never the trace
of a crash: somebody moved the head back.
"""

import contextlib
import hashlib
import re
from pathlib import Path
from typing import NoReturn

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.errors import RegistryTamperedError
from clinical_ser.registry.files import OWN_FILE, listed, make_folder, read_file, refused_by_system, rename_if_there, replace_file
from clinical_ser.registry.records import Entry

MAX_ENTRY_BYTES = 64 * 1024
_ENTRY_FILE = re.compile(r"([0-9]{8})-([0-9a-f]{64})\.json")
_DRAFT = re.compile(r"\.next-[0-9]{8}-[0-9a-f]{64}\.json|\.head\.[0-9a-f]{16}\.tmp")
_HEAD = re.compile(rb"([1-9][0-9]{0,7}) ([0-9a-f]{64})\n")
_MAX_HEAD_BYTES = 128


class NameHistory:
    """What the folder of one name holds; whoever appends holds the name's lock.

    Parameters
    ----------
    name
        Of the model; checked.
    folder
        Its folder, which need not be there.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    @property
    def head_path(self) -> Path:
        """Return where the head lies: what a server watches."""
        return self.folder / "head"

    def head(self) -> Entry | None:
        """Return the current entry, or None where the name has no history.

        Raises
        ------
        RegistryTamperedError
            The head or its entry is damaged or missing, or there are entries beyond the head.
        """
        return self._head(self._named())

    def entries(self) -> tuple[Entry, ...]:
        """Return the whole history, oldest first, each entry checked against the one after it.

        Raises
        ------
        RegistryTamperedError
            Names the entry at which the chain ends that should not.
        """
        there = self._named()
        chain: list[Entry] = []
        entry = self._head(there)
        while entry is not None:
            chain.append(entry)
            if (entry.number == 1) != (entry.previous is None):
                raise RegistryTamperedError(f"Entry {entry.number} of {self.name!r} does not continue the history as its number says.")
            entry = self._entry(entry.number - 1, entry.previous) if entry.previous else None
        if strange := there - {(entry.number, entry.digest) for entry in chain}:
            raise RegistryTamperedError(f"Entry {min(strange)[0]} of {self.name!r} is there and not part of the history that the head names.")
        return tuple(reversed(chain))

    def _head(self, there: set[tuple[int, str]]) -> Entry | None:
        """Read the head, after the entries were listed: heads only grow, so what is beyond it was not written by a switch meanwhile."""
        place = self._place()
        if place is None:
            if there:
                raise RegistryTamperedError(f"The head of {self.name!r} is missing, and entry {max(there)[0]} is there.")
            return None
        number, digest = place
        if beyond := sorted(found for found, _ in there if found > number):
            raise RegistryTamperedError(f"The head of {self.name!r} was moved back: it names entry {number}, and entry {beyond[0]} follows it.")
        return self._entry(number, digest)

    def append(self, entry: Entry) -> None:
        """Make an entry the current one; it continues the head, which the caller has compared under the name's lock."""
        make_folder(self.folder)
        self.settle()
        draft, final = self._files(entry.number, entry.digest)
        with refused_by_system():
            write_new_file(draft, entry.to_json(), mode=OWN_FILE)
        replace_file(self.head_path, b"%d %s\n" % (entry.number, entry.digest.encode()))
        rename_if_there(draft, final)

    def settle(self) -> None:
        """Finish what a killed switch left: the current entry gets its name, other drafts go. For whoever holds the name's lock."""
        if place := self._place():
            rename_if_there(*self._files(*place))
        for name in listed(self.folder):
            if _DRAFT.fullmatch(name):
                with refused_by_system(), contextlib.suppress(FileNotFoundError):
                    (self.folder / name).unlink()

    def _place(self) -> tuple[int, str] | None:
        content = read_file(self.head_path, _MAX_HEAD_BYTES, f"The head of {self.name!r}")
        if content is None:
            return None
        found = _HEAD.fullmatch(content)
        if found is None:
            raise RegistryTamperedError(f"The head of {self.name!r} is damaged: it does not name an entry.")
        return int(found[1]), found[2].decode()

    def _entry(self, number: int, digest: str) -> Entry:
        what = f"Entry {number} of {self.name!r}"
        draft, final = self._files(number, digest)
        # The final name again at the end: a switch may have given it between the first two looks.
        content = next((found for path in (final, draft, final) if (found := read_file(path, MAX_ENTRY_BYTES, what)) is not None), None)
        if content is None:
            self._missing(number)
        if hashlib.sha256(content).hexdigest() != digest:
            raise RegistryTamperedError(f"{what} was changed: its digest is not the one that is written after it.")
        entry = Entry.from_json(content, what)
        if (entry.number, entry.name) != (number, self.name):
            raise RegistryTamperedError(f"{what} is the entry of another place: it says {entry.number} of {entry.name!r}.")
        return entry

    def _missing(self, number: int) -> NoReturn:
        also = " under the digest that is written after it" if any(number == found for found, _ in self._named()) else ""
        raise RegistryTamperedError(f"Entry {number} of {self.name!r} is missing{also}.")

    def _files(self, number: int, digest: str) -> tuple[Path, Path]:
        name = f"{number:08d}-{digest}.json"
        return self.folder / f".next-{name}", self.folder / name

    def _named(self) -> set[tuple[int, str]]:
        return {(int(found[1]), found[2]) for name in listed(self.folder) if (found := _ENTRY_FILE.fullmatch(name))}
