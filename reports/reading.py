"""Files that a site gives to a report (settings, languages, a logo): small, read whole, and refused with a reason.

The one idea: an error says which file is meant by what it is for, never where it lies.
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clinical_ser.errors import SiteError

_SHOWN = 5
_MOST_DOTS = 100
"""In a line: tomllib takes memory by the square of a dotted key's parts, 14 GB for a key of 400,000."""
_NAME = re.compile(r"[\w.-]{1,80}")
_POSITION = re.compile(r"at line \d+, column \d+|at end of document")


def read_small(path: Path, what: str, at_most: int) -> bytes:
    """Return a file's bytes; SiteError where there is no such file, or one that is empty or larger than `at_most` bytes."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise SiteError(f"{what} is a folder or a device, not a file.")
        with path.open("rb") as file:
            raw = file.read(at_most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise SiteError(f"{what} cannot be read: {reason}.") from None
    if not raw:
        raise SiteError(f"{what} is empty.")
    if len(raw) > at_most:
        raise SiteError(f"{what} is larger than {at_most:,} bytes.")
    return raw


def parse_toml(raw: bytes, what: str) -> dict[str, Any]:
    """Return the tables of a TOML file; SiteError says where it breaks off."""
    try:
        # Windows editors put a byte order mark in front.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SiteError(f"{what} is not text in UTF-8; save it in that encoding.") from None
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise SiteError(f"{what} has a line with more than {_MOST_DOTS} dots.")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, a number of thousands of digits, arrays nested without end
        position = _POSITION.search(str(error))
        raise SiteError(f"{what} is not TOML{f' ({position[0]})' if position else ''}: one key = value a line, texts in quotation marks.") from None


def quotable(name: str) -> str:
    """Return a name from a file for a message, which ends up in logs: as it is if it looks like a key."""
    return name if _NAME.fullmatch(name) else "a name with other characters"


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """Return the first few of some items, and how many more there are."""
    found = list(items)
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return separator.join(found[:_SHOWN]) + more
