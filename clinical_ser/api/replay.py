"""What was shown already: a token that is good for one use is good for one use, and a token's id belongs to one token.

The one idea: everything that could still be replayed is remembered, or nothing more is accepted. Nothing is written to the disk: what was issued
before the server started, and could have been used then, is refused instead.
"""

import hashlib
import heapq
import hmac
import logging
import threading

from clinical_ser.errors import AuthenticationError

_log = logging.getLogger(__name__)

FULL_WAIT_S = 60
"""After so long some of what fills the memory has expired: a record system's tokens are good for five minutes."""
CAPACITY = 50_000
"""Tokens of one issuer that are remembered at a time, some 14 MB. With lifetimes of five minutes that is 160 single uses a second without end."""


class ReplayMemoryFullError(AuthenticationError):
    """Nothing is wrong with the token; there is no room to remember that it was used."""


class ReplayGuard:
    """The tokens of one issuer that were shown. Each issuer has its own, so that none can fill another's.

    Parameters
    ----------
    started
        When this process began to listen, in seconds since the epoch.
    leeway_s
        How far an issuer's clock may be ahead of ours.
    capacity
        How many tokens of each kind are remembered.
    """

    def __init__(self, *, started: float, leeway_s: float, capacity: int = CAPACITY) -> None:
        self._oldest = started + leeway_s
        self._capacity = capacity
        self._once, self._many = _Memory(), _Memory()
        self._horizon = 0.0
        self._full = False
        self._lock = threading.Lock()

    def use_once(self, jti: str, token: bytes, *, issued: float, expires: float, now: float) -> None:
        """Take note of the only use of a token.

        Parameters
        ----------
        jti, token
            Its id, and its digest.
        issued, expires
            When it was issued, and from when on its time alone refuses it (leeway included).
        now
            The time.

        Raises
        ------
        AuthenticationError
            It was used, or may have been before a leap of the clock had it forgotten (`replayed`); or it is from before this process started, which
            each restart brings about and is no sign of a replay (`expired`).
        ReplayMemoryFullError
            The memory is full.
        """
        name = _name(jti)
        with self._lock:
            # An issuer whose clock is ahead by the leeway could have had it used before we started, with a time that is after.
            if issued < self._oldest:
                raise AuthenticationError("The token was issued before this server started, and may have been used then; issue another.", "expired")
            self._horizon = max(self._horizon, now)
            # Forgotten is what expired. After the clock went back it would be good again.
            if expires <= self._horizon:
                raise AuthenticationError("The token may have been used before the clock went back; issue another.", "replayed")
            self._once.forget(self._horizon)
            if self._once.get(name) is not None:
                raise AuthenticationError("The token was used already; it is good for one request.", "replayed")
            if len(self._once) >= self._capacity:
                self._say_full()
                raise ReplayMemoryFullError("Too many tokens are in use; try again in some minutes.")
            self._full = False
            self._once.add(name, token, expires)

    def use_again(self, jti: str, token: bytes, *, expires: float, now: float) -> None:
        """Take note of a use of a token that may be used often.

        When the memory is full the token that expires first is forgotten: what is at stake here is a second token of the same issuer with the same
        id, which it signed as well, and not a replay.

        Raises
        ------
        AuthenticationError
            Another token with the same id was used.
        """
        name = _name(jti)
        with self._lock:
            self._many.forget(now)
            known = self._many.get(name)
            if known is None:
                if len(self._many) >= self._capacity:
                    self._many.forget_first()
                self._many.add(name, token, expires)
            elif not hmac.compare_digest(known, token):
                raise AuthenticationError("Another token with the same id was used.", "replayed")

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            _log.error("An issuer has %d single-use tokens in use, all that are remembered; more are refused until some expire.", self._capacity)


class _Memory:
    """Digests under names, until they expire."""

    def __init__(self) -> None:
        self._digests: dict[bytes, bytes] = {}
        self._order: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._digests)

    def get(self, name: bytes) -> bytes | None:
        return self._digests.get(name)

    def add(self, name: bytes, digest: bytes, expires: float) -> None:
        self._digests[name] = digest
        heapq.heappush(self._order, (expires, name))

    def forget(self, now: float) -> None:
        while self._order and self._order[0][0] <= now:
            self.forget_first()

    def forget_first(self) -> None:
        _, name = heapq.heappop(self._order)
        del self._digests[name]


def _name(jti: str) -> bytes:
    # 32 bytes each, however long an issuer makes its ids.
    return hashlib.sha256(jti.encode()).digest()
