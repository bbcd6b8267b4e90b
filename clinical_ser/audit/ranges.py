"""Sets of record numbers, written as people write them: `3,7-9`."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Self

from clinical_ser.errors import AuditFormatError

_SPELLING = re.compile(r"(0|[1-9]\d{0,17})(-([1-9]\d{0,17}))?")


class Ranges:
    """A growing set of numbers from 0, kept as ranges.

    Examples
    --------
    >>> str(Ranges([9, 3, 8, 7]))
    '3,7-9'
    >>> 8 in Ranges.parse("3,7-9")
    True
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._spans: list[tuple[int, int]] = []
        for number in sorted(set(numbers)):
            self._add(number, number)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the spelling back; AuditFormatError for another one (out of order, touching, leading zeros)."""
        ranges = cls()
        for part in text.split(",") if text else ():
            match = _SPELLING.fullmatch(part)
            first, last = (int(match[1]), int(match[3] or match[1])) if match else (0, -1)
            if last < first or (match and match[3] and first == last) or (ranges._spans and first <= ranges._spans[-1][1] + 1):
                raise AuditFormatError("Record numbers are not written as ascending ranges, like 3,7-9.")
            ranges._spans.append((first, last))
        return ranges

    def append(self, number: int) -> None:
        """Add a number that is larger than all before."""
        self._add(number, number)

    def _add(self, first: int, last: int) -> None:
        if self._spans and first == self._spans[-1][1] + 1:
            self._spans[-1] = (self._spans[-1][0], last)
        else:
            self._spans.append((first, last))

    @classmethod
    def joined(cls, parts: "Iterable[Ranges]") -> Self:
        """Return the numbers of all."""
        joined = cls()
        for first, last in sorted(span for part in parts for span in part._spans):
            if joined._spans and first <= joined._spans[-1][1] + 1:
                joined._spans[-1] = (joined._spans[-1][0], max(last, joined._spans[-1][1]))
            else:
                joined._spans.append((first, last))
        return joined

    @property
    def last(self) -> int:
        """The largest of the numbers, -1 where there is none."""
        return self._spans[-1][1] if self._spans else -1

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield first and last of each range."""
        yield from self._spans

    def first_outside(self, other: "Ranges") -> int | None:
        """Return the first of these numbers that the other set lacks, None where it has all."""
        for first, last in self._spans:
            at = first
            while at <= last:
                covered = other._covering(at)
                if covered is None:
                    return at
                at = covered[1] + 1
        return None

    def _covering(self, number: int) -> tuple[int, int] | None:
        place = bisect_right(self._spans, (number, float("inf"))) - 1
        return self._spans[place] if place >= 0 and number <= self._spans[place][1] else None

    def __contains__(self, number: int) -> bool:
        return self._covering(number) is not None

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self._spans)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self._spans)
