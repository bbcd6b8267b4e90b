"""Which record systems may ask for cards, and whether it is one of them who asks (CDS Hooks 2.0, "Trusting CDS Clients").

The one idea: a record system is what the configuration says of it: its issuer, its key set, its site. Its token proves that it asks, and chooses
nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Literal, Self

from clinical_ser.api.access import Principal
from clinical_ser.api.configuration import CdsClientEntry
from clinical_ser.api.key_sets import Algorithm, Keys, keys_at
from clinical_ser.api.tokens import Issuer, TenantClaim, TokenVerifier
from clinical_ser.audit.events import Role
from clinical_ser.errors import ServerSetupError

MAX_LIFETIME_S = 300
"""From `iat` to `exp`. Ours: the specification has no limit, the reference sandbox takes five minutes, and a token is good for one request anyway."""
ALGORITHMS: frozenset[Algorithm] = frozenset({"ES384", "RS384"})
"""The two that the specification recommends."""
_TENANT_CLAIM = "tenant"


@dataclass(frozen=True)
class CdsClient:
    """A record system.

    Attributes
    ----------
    iss
        What its tokens say in `iss`, to the letter.
    keys
        Its key set: a file, or the address that the site was given when the two were introduced.
    jku
        What its tokens may say in `jku`; compared and never fetched. Without, tokens that have one are refused.
    algorithms
        What it signs with.
    tenant
        The site whose screenings it is shown; "" where the installation has one.
    organisation
        What its tokens have to say in `tenant`, for a record system that serves several organisations with one key; None where it serves one.
    subject
        Whether this site names a person by the id of the Patient resource (`123`), or by the reference (`Patient/123`).
    """

    iss: str
    keys: Path | str
    jku: str | None = None
    algorithms: frozenset[Algorithm] = ALGORITHMS
    tenant: str = ""
    organisation: str | None = None
    subject: Literal["id", "reference"] = "id"

    @classmethod
    def of(cls, entry: CdsClientEntry) -> Self:
        """Return what the configuration says."""
        return cls(
            iss=entry.iss,
            keys=entry.keys,
            jku=entry.jku,
            algorithms=frozenset(entry.algorithms),
            tenant=entry.tenant or "",
            organisation=entry.organisation,
            subject=entry.subject,
        )

    def person(self, patient_id: str) -> str:
        """Return what this site calls the person of a Patient resource."""
        return patient_id if self.subject == "id" else f"Patient/{patient_id}"

    def issuer(self) -> Issuer:
        """Return it as one whose tokens are believed: for the address that was called, for one request, and for nothing else here."""
        return Issuer(
            issuer=self.iss,
            audience=None,
            keys=self.keys,
            algorithms=self.algorithms,
            tenant=self.tenant if self.organisation is None else TenantClaim(_TENANT_CLAIM, frozenset({self.organisation})),
            role=Role.SERVICE,
            # Cards are all that it is shown, whatever scopes its tokens name.
            at_most=frozenset(),
            max_lifetime_s=MAX_LIFETIME_S,
            single_use=True,
            jku=self.jku,
        )


class CdsClients:
    """The record systems that an installation knows.

    Parameters
    ----------
    clients
        No two with one issuer.
    clock, keys
        As for `TokenVerifier`.

    Raises
    ------
    ServerSetupError
        Two have one issuer, or one signs with something that is not for this.
    """

    def __init__(self, clients: Iterable[CdsClient], *, clock: Callable[[], float] = time, keys: Callable[[Path | str], Keys] = keys_at) -> None:
        known = tuple(clients)
        self._clients = {client.iss: client for client in known}
        if len(self._clients) < len(known):
            raise ServerSetupError("Two record systems have the same issuer.")
        self._verifier = TokenVerifier((client.issuer() for client in known), clock=clock, keys=keys)

    @classmethod
    def of(cls, entries: Iterable[CdsClientEntry]) -> Self:
        """Return the record systems of a configuration; ServerSetupError as above."""
        return cls(map(CdsClient.of, entries))

    def load_keys(self) -> int:
        """Look for every record system's keys before it asks, and return how many have none now; the log says why."""
        return self._verifier.load_keys()

    def recognise(self, token: str, called: str) -> "Recognised":
        """Return which record system asks. It may wait for a key set: call it in a worker thread.

        Parameters
        ----------
        token
            What it sent.
        called
            The address that it called, which the token has to be for, alone and to the letter.

        Raises
        ------
        AuthenticationError
            It is none that is known, or the token is not good for this one request.
        """
        principal = self._verifier.verify_single_use(token, called)
        client = self._clients[principal.id]
        # With an organisation, what the token said of it stands where the site's own name for it belongs.
        return Recognised(client, replace(principal, tenant=client.tenant))


@dataclass(frozen=True)
class Recognised:
    """A record system that asks."""

    client: CdsClient
    principal: Principal
