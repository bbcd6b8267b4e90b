"""What a site allows: `node.toml`, read anew for every request.

The one idea: nothing is allowed that is not written down. A file that is missing, misspelt or half edited allows nothing.
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from clinical_ser.errors import FederationError
from clinical_ser.strict import Strict
from federated.names import Hex32, SiteName
from federated.plan import MINIMUM_SITES, Kind, Word

MOST_BYTES = 1 << 20


class Approved(Strict):
    """What people at the site said yes to."""

    builds: tuple[Hex32, ...] = ()
    """SHA-256 of the Flower app builds that may run."""
    plans: tuple[Hex32, ...] = ()
    """Digests of the plans that may be trained."""


class Release(Strict):
    """What may leave."""

    statistics: tuple[Word, ...] = ()
    kinds: tuple[Kind, ...] = ("train",)
    """What kinds of run may ask for them: training, unless more are written down."""
    minimum_sites: int = Field(default=MINIMUM_SITES, ge=MINIMUM_SITES)
    minimum_subjects: int = Field(default=20, ge=1)
    """Fewer people with a usable, labelled recording, and this site takes no part."""
    minimum_subjects_of_a_class: int = Field(default=5, ge=1)
    minimum_changed_subjects: int = Field(default=5, ge=1)
    """A run about nearly the same people as an earlier one is refused if fewer of them have come, gone or been recorded anew: subtraction would show
    what these few add. About exactly the same people it is not."""
    minimum_group: int = Field(default=5, ge=1)
    """People of one sex, age band or another group: where fewer are here, they are counted among everybody only."""
    sets: tuple[tuple[SiteName, ...], ...] = ()
    """Sets of sites that are allowed beside the first one; any two sets may isolate a site by subtraction."""


class PrivacyLimit(Strict):
    """How much of the data set's privacy may be spent, over all runs."""

    epsilon: float = Field(default=0.0, ge=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    required: bool = False
    """Whether nothing leaves without noise."""


class Told(Strict):
    """Who is told of every release and refusal."""

    command: tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...] = ()
    """A program and its arguments; it reads one line of JSON."""


class Policy(Strict):
    """`node.toml`."""

    name: SiteName
    coordinator: Hex32 | None = None
    """Ed25519 public key of whoever may ask; None before the site joined a consortium."""
    table: str
    """The site's feature table, in this folder or with its whole path."""
    tables: dict[Kind, str] = Field(default_factory=dict)
    """Tables of other kinds of run: the new people of an update or a recalibration, the recordings that are watched, the frozen holdout of a gate.
    `table` is what is trained on; where none is named it serves for monitoring too, and for nothing else: it holds the people whom a model heard."""
    models: dict[Hex32, str] = Field(default_factory=dict)
    """Digest of a bundle to its folder, in this folder or with its whole path: the models that are watched or compared here."""
    change_plan: str | None = None
    """The change-control plan (pccp.toml) that a gate is held to, as the site has it."""
    approved: Approved = Approved()
    release: Release = Release()
    privacy: PrivacyLimit = PrivacyLimit()
    sites: dict[SiteName, Hex32] = Field(default_factory=dict)
    """Other sites and the identities that people compared: of those in a plan, `minimum_sites` have to be known here, this one included."""
    told: Told = Told()

    @property
    def approved_builds(self) -> tuple[str, ...]:
        """SHA-256 of the Flower app builds that may run."""
        return self.approved.builds

    def table_of(self, kind: Kind) -> str | None:
        """Return the table that a kind of run is about, None where there is none."""
        return self.tables.get(kind, self.table if kind in {"train", "monitor"} else None)

    @classmethod
    def read(cls, path: Path) -> "Policy":
        """Read the file; FederationError where it cannot be read or is not sound, naming the settings and never what they hold."""
        try:
            with path.open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
            return cls.model_validate(tomllib.loads(raw[:MOST_BYTES].decode("utf-8")), strict=False)
        except OSError as error:
            raise FederationError(f"{path.name} cannot be read: {error.strerror}; nothing is allowed.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            where = str(error).rpartition("(")[2].rstrip(")") if isinstance(error, tomllib.TOMLDecodeError) else "a character"
            raise FederationError(f"{path.name} is not TOML ({where}); nothing is allowed.") from None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:5])
            raise FederationError(f"{path.name} is not a node's settings ({faults}); nothing is allowed.") from None
