"""A way to real nodes in one process, on which tests lose, change and keep letters."""

from collections.abc import Callable, Mapping

from federated.node import Node
from tests.federated.sites import Consortium

Letter = tuple[bytes, bytes]


class Wires:
    """A channel; every letter is answered by a node that is opened for it, as under Flower.

    Attributes
    ----------
    silent
        Sites that get no letter.
    lost
        Sites that answer, and whose answers do not arrive.
    changed
        What becomes of a site's answer on its way.
    sent, received
        Every letter and every answer, with the site's name.
    """

    def __init__(self, made: Consortium):
        self._made = made
        self.silent: set[str] = set()
        self.lost: set[str] = set()
        self.changed: dict[str, Callable[[bytes, bytes], Letter]] = {}
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.received: list[tuple[str, bytes, bytes]] = []
        self.calls = 0

    def exchange(self, messages: Mapping[str, Letter], timeout_s: float) -> Mapping[str, Letter]:
        """See `secure_sums.Channel.exchange`."""
        del timeout_s
        self.calls += 1
        found = {}
        for name, letter in messages.items():
            if name in self.silent:
                continue
            self.sent.append((name, *letter))
            answer = Node.open(self._made.site(name)).answer(*letter)
            self.received.append((name, *answer))
            if name not in self.lost:
                found[name] = self.changed[name](*answer) if name in self.changed else answer
        return found
