"""How much of the server one client may have: so many requests a second, so many at a time.

The one idea: what is refused costs next to nothing, and says when to come back.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from clinical_ser.api.problems import Problem

_REMEMBERED = 10_000
"""Clients, beyond which the one that was heard least recently is forgotten."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class Rate:
    """Token buckets: on average `per_s`, at most `burst` at once, of each client.

    Parameters
    ----------
    per_s, burst
        How fast it fills, and how much it holds.
    clock
        Seconds that never go back.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, max(1.0, burst), clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """Take one from a client's bucket and return 0; where it is empty, return how long until it is not."""
        now = self._clock()
        bucket = self._buckets.pop(client, None) or _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_s)
        bucket.at = now
        self._buckets[client] = bucket
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / self._per_s

    def take(self, client: str) -> None:
        """Take one, or end the request with 429."""
        if wait := self.wait_s(client):
            raise too_many(wait)


class AtOnce:
    """How much goes on at a time, of each client.

    Parameters
    ----------
    most
        Of one client.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._now: dict[str, int] = {}

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """Count one for as long as it goes on, or end the request with 429."""
        now = self._now.get(client, 0)
        if now >= self._most:
            raise too_many(1.0, "too-many-at-once")
        self._now[client] = now + 1
        try:
            yield
        finally:
            left = self._now[client] - 1
            if left:
                self._now[client] = left
            else:
                del self._now[client]


def too_many(wait_s: float, kind: str = "too-many") -> Problem:
    """Return the answer to whoever asks too much."""
    after = {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, kind, "This client asks for more than it may; come back after Retry-After seconds.", after)


def unavailable(kind: str, detail: str, wait_s: float) -> Problem:
    """Return the answer where the server cannot take more, or cannot do it now."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, kind, detail, {"Retry-After": str(max(1, math.ceil(wait_s)))})
