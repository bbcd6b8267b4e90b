"""Who asks, and what they may do.

The one idea: everything is denied that no scope allows, and a scope is one verb on one kind of thing.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from clinical_ser.audit.events import Actor, Role


class Scope(StrEnum):
    """One verb on one kind of thing, spelled as it stands in tokens."""

    SCREEN = "screenings:write"
    READ = "screenings:read"
    REVIEW = "reviews:write"
    MODELS = "models:read"
    AUDIT = "audit:read"
    EXPORT = "audit:export"


class Open(StrEnum):
    """What asks for no scope."""

    PUBLIC = "public"
    """Anyone: probes, the page's own files, what a protocol wants public."""
    SIGNED_IN = "signed in"
    """Whoever is known here, whatever they may do."""
    CDS_CLIENT = "a record system"
    """A record system that signs its requests as CDS Hooks 2.0 says; the route itself verifies the signature."""


Access = Scope | Open


@dataclass(frozen=True)
class Principal:
    """Someone, or some program, that is known here.

    Attributes
    ----------
    id
        The account or client as the site names it.
    tenant
        The site that it belongs to; "" where the installation has one.
    role, scopes
        In what role it acts, and what it may do.
    name
        The printed name, for reviews.
    method
        How it was recognised.
    """

    id: str
    tenant: str
    role: Role
    scopes: frozenset[Scope]
    name: str | None = None
    method: Literal["token", "api_key", "cds_hooks"] = "token"

    @property
    def client(self) -> str:
        """Return what tells this one from all others: an account of an issuer and an API key's client may have one name."""
        return f"{self.method}\n{self.tenant}\n{self.id}"

    def actor(self, address: str | None) -> Actor:
        """Return who acts, for the audit trail."""
        return Actor(id=named_in(self.tenant, self.id), role=self.role, name=self.name, client=address)

    def subject(self, name: str) -> str:
        """Return what the audit trail calls a person: two sites may give one number to two people."""
        return named_in(self.tenant, name)


def named_in(tenant: str, name: str) -> str:
    """Return a name that is one site's alone."""
    return f"{tenant}/{name}" if tenant else name
