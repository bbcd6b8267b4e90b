"""What may be told of an exception in a log.

The one idea: an exception's text, its arguments and the variables around it may hold someone's name; its type, and the place in our own source,
do not.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import clinical_ser

_MAX_ERRORS = 8
_MAX_PLACES = 12
_MAX_PLACES_EACH = 6
_MAX_FRAMES = 2000
"""A recursion that ended is a thousand frames deep."""
_NAME = re.compile(r"[A-Za-z0-9_.<>]{1,100}")


@dataclass(frozen=True)
class Described:
    """What may be told of an exception: the types of it and of what it came from, and the places in this package, the deepest of each last."""

    types: tuple[str, ...]
    places: tuple[str, ...]


def describe(error: BaseException) -> Described:
    """Return what may be told of an exception. Its text, arguments and variables may be someone's name."""
    types: list[str] = []
    places: list[str] = []
    for each in _chain(error):
        name = type(each).__qualname__
        types.append(name if _NAME.fullmatch(name) else "(unnamed)")
        places += _places(each.__traceback__)[-_MAX_PLACES_EACH:]
    return Described(tuple(types), tuple(places[:_MAX_PLACES]))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what it came from, and the members of groups; each once, and not too many."""
    seen: dict[int, BaseException] = {}
    waiting = [error]
    while waiting and len(seen) < _MAX_ERRORS:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen[id(each)] = each
        yield each
        came_from = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        waiting += [came_from] if came_from is not None else []
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


# Both packages of this distribution lie beside each other, installed or not.
_HOME = Path(clinical_ser.__file__).parent.parent
_OURS = tuple(str(_HOME / name) + os.sep for name in ("clinical_ser", "reports"))


def place_of(path: str, line: int) -> str | None:
    """Return file and line where the file is of this package, None elsewhere: another file's path may say whose folder it lies in."""
    return f"{Path(path).relative_to(_HOME).as_posix()}:{line}" if path.startswith(_OURS) else None


def _places(trace: TracebackType | None) -> list[str]:
    places = []
    for _ in range(_MAX_FRAMES):
        if trace is None:
            break
        place = place_of(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        places += [place] if place is not None else []
        trace = trace.tb_next
    return places
