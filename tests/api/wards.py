"""A registry with versions of one model in it, for tests of a server that follows it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clinical_ser.models.bundle import read_bundle
from clinical_ser.registry.records import Action, Pointers, Record
from clinical_ser.registry.store import Registry
from tests.api.servers import Answer, Client

NAME = "ward"
OTHERS_NAME = 3
"""The place of the bundle that calls itself otherwise."""
LATER = {"Prefer": "respond-async"}


class Ward:
    """A registry with versions of one model in it."""

    def __init__(self, versions: Sequence[Path]) -> None:
        self.registry = Registry.default()
        self.digests = [self.registry.add(each, Record.of(read_bundle(each), change="trained")) for each in versions]

    def switch(self, action: Action, **roles: int) -> str:
        """Switch, and return the digest of the champion, an empty one where none is."""
        head = self.registry.head(NAME)
        pointers = Pointers(**{role: self.digests[number] for role, number in roles.items()})
        self.registry.switch(NAME, expected=head and head.digest, action=action, pointers=pointers, actor="tests")
        return pointers.champion or ""


def digest_of(answer: Answer) -> str:
    """Return which model answered."""
    return answer.json["result"]["model"]["digest"]


def answering(client: Client) -> list[str]:
    """Return the models that answer, by their digests."""
    return [each["digest"] for each in client.get("/v1/models").json["models"]]


def until(told: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.1)
