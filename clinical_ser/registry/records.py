"""What the registry writes down: where a bundle came from, and each switch of which bundle answers under a name.

The one idea: every entry holds the whole state after it and the digest of the entry before, so that the newest entry vouches for all others.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from clinical_ser.errors import InvalidValueError, RegistryTamperedError
from clinical_ser.models.bundle import BundleManifest, Fingerprint, ModelName, Sha256, VerifiedBundle, Version
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict

Change = Literal["trained", "imported", "recalibrated", "updated", "retrained", "unlearned"]
"""What made a bundle out of its parent."""

Action = Literal["opened", "shadowed", "promoted", "rolled_back", "withdrawn", "alarm", "forgotten", "refused"]
"""What an entry of a name's history is about."""

Role = Literal["champion", "challenger", "shadow"]
ROLES: tuple[Role, ...] = ("champion", "challenger", "shadow")
"""champion: answers under the name. challenger: is compared with it. shadow: answers silently beside it; nothing it says is given out."""

Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
LongText = Annotated[str, Field(max_length=2000)]
Detail = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=1024)]

_NAME = re.compile(r"(?!trusted_keys$)[a-z0-9][a-z0-9_-]{0,63}")
# The least that `Registry.find` takes for the beginning of a digest.
_LIKE_A_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_EMBEDDING = "embedding."

T = TypeVar("T", bound=Strict)


def is_name(text: str) -> bool:
    """Tell whether a text has the form of a model's name: no separator, no dot, and not the folder of keys beside the shipped models."""
    return _NAME.fullmatch(text) is not None


def is_digest_like(text: str) -> bool:
    """Tell whether a text can be the beginning of a digest: 8 to 64 hex digits."""
    return _LIKE_A_DIGEST.fullmatch(text) is not None


def check_name(name: str) -> str:
    """Return a name under which the registry may hold a history; InvalidValueError for anything else."""
    if not is_name(name) or is_digest_like(name):
        raise InvalidValueError(
            "model name",
            name[:80],
            "small letters, digits, '-' and '_', at most 64, beginning with a letter or digit, and not to be taken for a digest",
        )
    return name


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC)


Time = Annotated[AwareDatetime, AfterValidator(_utc)]


class _Written(Strict):
    """What lies in the registry as canonical JSON, one spelling for one content."""

    def to_json(self) -> bytes:
        """Return the bytes that are written, and that the digest is of."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, content: bytes, what: str) -> Self:
        """Read what `to_json` wrote; RegistryTamperedError, which calls it `what`, for bytes that no version of this program wrote."""
        try:
            parse_canonical_object(content)
            read = cls.model_validate_json(content)
        except (StrictJsonError, ValidationError):
            raise RegistryTamperedError(f"{what} is damaged: it is not what this program writes.") from None
        if read.to_json() != content:
            raise RegistryTamperedError(f"{what} is damaged: it is not spelled as this program writes it.")
        return read


class Pointers(Strict):
    """Which bundle has which role under a name; a role may be empty."""

    champion: Sha256 | None = None
    challenger: Sha256 | None = None
    shadow: Sha256 | None = None

    @property
    def held(self) -> dict[Role, str]:
        """Return the roles that are taken, and by which bundle."""
        held: dict[Role, str | None] = {"champion": self.champion, "challenger": self.challenger, "shadow": self.shadow}
        return {role: digest for role, digest in held.items() if digest is not None}

    def of(self, digest: str) -> tuple[Role, ...]:
        """Return the roles that one bundle has."""
        return tuple(role for role, held in self.held.items() if held == digest)


class Record(_Written):
    """Where a bundle came from, written once when it is added.

    Examples
    --------
    A child of a bundle that is known, with the counts of this step:

    >>> Record.of(bundle, change="updated", parent=parent, subjects={"depressed": 12, "not_depressed": 30}, recordings=51)  # doctest: +SKIP
    """

    bundle: Sha256
    name: ModelName
    """Under which it is kept; a child of a shipped model has a name of its own."""
    version: Version
    task: Text
    parent: Sha256 | None = None
    """The bundle it was made from; it need not be in the registry (a shipped model)."""
    change: Change
    details: dict[Text, Detail] = Field(default_factory=dict)
    """Of the change, as its kind has them (forgetting factor, step of a recalibration, ...)."""
    subjects: dict[Text, Count] = Field(default_factory=dict)
    """People of this step, by class."""
    recordings: Count = 0
    """Recordings of this step."""
    cohort_digest: Sha256
    """Of the data of this step."""
    extractors: dict[Text, Fingerprint]
    """Feature set to the fingerprint of the code that computed it."""
    encoders: dict[Text, Fingerprint] = Field(default_factory=dict)
    """Encoder to its fingerprint."""
    software: dict[Text, Text]
    simulated: bool
    epsilon: Annotated[float, Field(ge=0)] | None = None
    """Privacy spent in this step; None where none was promised."""
    plan: Sha256 | None = None
    """Digest of the change-control plan."""
    because: Text | None = None
    """Why: an alarm's identifier, `scheduled`, ..."""
    created: Time

    @classmethod
    def of(
        cls,
        bundle: VerifiedBundle,
        *,
        change: Change,
        name: str | None = None,
        parent: str | None = None,
        cohort_digest: str | None = None,
        subjects: dict[str, int] | None = None,
        recordings: int = 0,
        details: dict[str, float | int | str | bool] | None = None,
        epsilon: float | None = None,
        plan: str | None = None,
        because: str | None = None,
        created: datetime | None = None,
    ) -> Self:
        """Return the record of a bundle, with what its manifest says filled in; `name` is the manifest's unless given.

        Raises
        ------
        InvalidValueError
            A field does not fit; its name is in the message, its content is not.
        """
        manifest = bundle.manifest
        extractors, encoders = split_extractors(manifest)
        return build(
            cls,
            "record",
            bundle=bundle.digest,
            name=manifest.name if name is None else check_name(name),
            version=manifest.version,
            task=manifest.task.name,
            parent=parent,
            change=change,
            details=details or {},
            subjects=subjects or {},
            recordings=recordings,
            cohort_digest=cohort_digest or manifest.cohort_digest,
            extractors=extractors,
            encoders=encoders,
            software=dict(manifest.software),
            simulated=manifest.simulated,
            epsilon=epsilon,
            plan=plan,
            because=because,
            created=created or datetime.now(UTC),
        )


class Entry(_Written):
    """One step of a name's history; `pointers` is the whole state after it."""

    number: Annotated[int, Field(ge=1)]
    previous: Sha256 | None
    """Digest of the entry before; None for the first."""
    time: Time
    name: ModelName
    action: Action
    pointers: Pointers
    bundle: Sha256 | None = None
    """What the entry is about."""
    record: Sha256 | None = None
    """sha256 of that bundle's record when the entry was written, so that the record cannot be written anew; filled in by the registry."""
    plan: Sha256 | None = None
    modification: Text | None = None
    """Name of the modification in the plan."""
    evaluation: Sha256 | None = None
    """The comparison that it rests on, attached to the bundle."""
    approvals: tuple[Sha256, ...] = ()
    """Signed approvals, attached to the bundle."""
    actor: Text
    reason: LongText = ""

    @property
    def digest(self) -> str:
        """Return the sha256 of the entry's bytes, in hex: what the next entry and the head name it by."""
        return hashlib.sha256(self.to_json()).hexdigest()


def split_extractors(manifest: BundleManifest) -> tuple[dict[str, str], dict[str, str]]:
    """Return (feature sets, encoders) of a manifest, each to its fingerprint."""
    sets = {name: version for name, version in manifest.extractors.items() if not name.startswith(_EMBEDDING)}
    return sets, {name.removeprefix(_EMBEDDING): version for name, version in manifest.extractors.items() if name.startswith(_EMBEDDING)}


def build(kind: type[T], what: str, **fields: object) -> T:
    """Make one of these from values of a caller; InvalidValueError names the fields that do not fit and repeats nothing of them."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'][:1]))}: {fault['msg']}" for fault in error.errors(include_input=False)[:5])
        raise InvalidValueError(what, "one with fields that do not fit", faults) from None
