"""Who signed: roles that approve a comparison, and roles that stand behind a plan.

The one idea: a signature is over one comparison (or plan), under one role, with what it means in words; it is good for nothing else. After
21 CFR 11.50 and 11.70: name, time and meaning are part of what is signed.
"""

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.control.gate import Comparison, check_derived
from clinical_ser.control.parts import LEAST_ROLES, ChangePlan, Id, Key, Role, Sha256
from clinical_ser.control.plan import require_filled_in
from clinical_ser.errors import ChangePlanError
from clinical_ser.models.signing import PublicKey, SigningKey
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict

APPROVAL_DOMAIN = b"clinical-ser approval of a change v1\n"
PLAN_DOMAIN = b"clinical-ser change-control plan v1\n"
"""What a key signs begins with what it is for; a signature is good for one purpose only."""
LARGEST_SIGNATURE_BYTES = 64 * 1024
CLOCKS_DIFFER = timedelta(minutes=5)
"""By how much a signer's clock may be ahead of the one where the signature is looked at."""


def _readable(name: str) -> str:
    """Refuse a name that does not say what it looks like: another spelling of the same letters (NFKC), or what cannot be seen."""
    if unicodedata.normalize("NFKC", name) != name or any(unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" for letter in name):
        raise ValueError("a name is spelled as Unicode's NFKC has it, without control and format characters")
    return name


PersonName = Annotated[str, Field(min_length=2, max_length=120), AfterValidator(_readable)]


class RoleKey(SigningKey):
    """A private key that signs for a role; the same files as `SigningKey` reads."""

    __slots__ = ()

    def sign_for(self, domain: bytes, content: bytes) -> str:
        """Return the signature in base64, for one purpose."""
        return base64.b64encode(self._key.sign(domain + content)).decode("ascii")


class _Signed(Strict):
    """What somebody signed in a role."""

    domain: ClassVar[bytes]

    plan: Sha256
    role: Id
    name: PersonName
    """Who signed."""
    meaning: str = Field(min_length=3, max_length=2000)
    time: AwareDatetime
    public_key: Key
    signature: str = Field(default="", max_length=100)

    @property
    def key_id(self) -> str:
        """Return the short name of the key."""
        return PublicKey(base64.b64decode(self.public_key)).key_id

    @property
    def sha256(self) -> str:
        """Return the digest that it has as an attachment."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Return canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read one; ChangePlanError for bytes that are none. Whether it is valid is for `fits`."""
        try:
            if len(raw) > LARGEST_SIGNATURE_BYTES:
                raise ChangePlanError("A signature is a few hundred bytes; this file is none.")
            parse_canonical_object(raw)
            return cls.model_validate_json(raw)
        except (StrictJsonError, ValidationError):
            raise ChangePlanError("The file is no signature of this version.") from None

    def fits(self) -> bool:
        """Return whether the holder of `public_key` signed exactly this."""
        try:
            signature = base64.b64decode(self.signature, validate=True)
        except (ValueError, binascii.Error):
            return False
        return PublicKey(base64.b64decode(self.public_key)).fits(signature, self.domain + self._content())

    def signed(self, key: RoleKey) -> Self:
        """Return it with a key's signature."""
        named = self.model_copy(update={"public_key": base64.b64encode(key.public.raw).decode("ascii")})
        return named.model_copy(update={"signature": key.sign_for(self.domain, named._content())})

    def _content(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))


S = TypeVar("S", bound=_Signed)


class Approval(_Signed):
    """One role's approval of one comparison."""

    domain: ClassVar[bytes] = APPROVAL_DOMAIN
    schema_id: str = Field(default="clinical-ser/approval/1", pattern=r"^clinical-ser/approval/1$")
    comparison: Sha256


class PlanSignature(_Signed):
    """One role's signature under a plan."""

    domain: ClassVar[bytes] = PLAN_DOMAIN
    schema_id: str = Field(default="clinical-ser/pccp-signature/1", pattern=r"^clinical-ser/pccp-signature/1$")


def approve(plan: ChangePlan, comparison: Comparison, *, role: str, name: str, key: RoleKey, time: datetime | None = None) -> Approval:
    """Sign a comparison in a role.

    Parameters
    ----------
    plan, comparison
        The comparison has to be of this plan, with every requirement met.
    role, name, key
        Who signs: a role of the plan, a person, and one of the role's keys.
    time
        None: now.

    Raises
    ------
    ChangePlanError
        The plan has no such role, or not this key in it; the comparison is another plan's, is not what its sites' figures say, or is not met:
        nobody signs what is not met.
    """
    require_filled_in(plan)
    if comparison.plan != plan.digest:
        raise ChangePlanError(f"The comparison was made under another plan ({comparison.plan[:12]}, not {plan.digest[:12]}).")
    check_derived(plan, comparison)
    if not comparison.met:
        raise ChangePlanError(f"Not approved: {len(comparison.not_met)} requirements are not met: {'; '.join(comparison.not_met)}.")
    held = _role(plan, role)
    _check_holder(held, key)
    blank = _filled(Approval, plan, held.name, held.meaning, name, time, comparison=comparison.digest)
    return blank.signed(key)


def sign_plan(plan: ChangePlan, *, role: str, name: str, key: RoleKey, time: datetime | None = None, handing_over: bool = False) -> PlanSignature:
    """Sign a plan in a role.

    Parameters
    ----------
    plan
        Without what the example left open.
    role, name, key, time
        As in `approve`.
    handing_over
        The key is of the plan that this one replaces: its roles agree to be followed by this plan.

    Raises
    ------
    ChangePlanError
        The plan is not filled in, or has no such role with this key.
    """
    require_filled_in(plan)
    if not handing_over:
        _check_holder(_role(plan, role), key)
    meaning = "I agree that this plan replaces the one before." if handing_over else "I agree that changes are made under this plan."
    return _filled(PlanSignature, plan, role, meaning, name, time).signed(key)


def valid_approvals(plan: ChangePlan, comparison: str, approvals: Sequence[Approval], *, now: datetime | None = None) -> tuple[Approval, ...]:
    """Return one valid approval of each role, in the plan's order.

    Parameters
    ----------
    plan
        Whose roles have to approve: all of them.
    comparison
        Digest of what they approve.
    approvals
        Of any comparison; those of others count for nothing.
    now
        When they are looked at: what was signed later than that does not count. None: now.

    Raises
    ------
    ChangePlanError
        A role has none that is valid, or two roles were signed by one person or key; the message says which, and why others do not count.
    """
    when = now or datetime.now(UTC)
    faults = {one.sha256: _fault(plan, comparison, one, when) for one in approvals}
    valid = [one for one in approvals if faults[one.sha256] is None]
    missing = [role.name for role in plan.role if role.name not in {one.role for one in valid}]
    if missing or len(plan.role) < LEAST_ROLES:
        why = sorted({f"one of {one.role!r} does not count: {fault}" for one in approvals if (fault := faults[one.sha256])})
        raise ChangePlanError(f"Approvals are missing of {missing}.{''.join(f' {text}.' for text in why)}")
    return _one_of_each(plan.role, valid)


def check_plan_signatures(plan: ChangePlan, signatures: Sequence[PlanSignature], *, roles_of: ChangePlan) -> None:
    """Raise ChangePlanError unless every role of a plan signed another one (or the same), each by another person with another key.

    Parameters
    ----------
    plan
        What has to be signed.
    signatures
        All there are.
    roles_of
        Whose roles and keys count: the plan's own, or those of the plan that it replaces.
    """
    good = [one for one in signatures if one.plan == plan.digest and one.fits()]
    missing = [role.name for role in roles_of.role if not any(one.role == role.name and one.public_key in role.keys for one in good)]
    if missing:
        which = "its own roles" if roles_of.digest == plan.digest else f"the roles of the plan that it replaces ({roles_of.label})"
        raise ChangePlanError(f"The plan {plan.label} is not signed by {which}: {missing}. Sign it with `pccp sign`.")
    _one_of_each(roles_of.role, [one for one in good if _holds(roles_of, one)])


def _one_of_each(roles: Sequence[Role], signed: Sequence[S]) -> tuple[S, ...]:
    """Return one signature of each role, the latest that can be: no two by one person or with one key."""
    by_role = [sorted((one for one in signed if one.role == role.name), key=lambda one: (one.time, one.sha256), reverse=True) for role in roles]

    def chosen(place: int, before: tuple[S, ...]) -> tuple[S, ...] | None:
        if place == len(by_role):
            return before
        people, keys = {_spelled(one.name) for one in before}, {one.public_key for one in before}
        for one in by_role[place]:
            if _spelled(one.name) not in people and one.public_key not in keys and (found := chosen(place + 1, (*before, one))) is not None:
                return found
        return None

    found = chosen(0, ())
    if found is None:
        raise ChangePlanError("Two roles were signed by one person or with one key; each role is signed by another person with another key.")
    return found


def signature_path(plan: Path, signature: PlanSignature) -> Path:
    """Return where a plan's signature lies: beside the plan."""
    return plan.with_name(f"{plan.name}.{signature.role}.{signature.key_id}.signature.json")


def write_signature(plan: Path, signature: PlanSignature) -> Path:
    """Write a plan's signature beside it; ChangePlanError where one of this role and key is there, or the folder cannot be written."""
    path = signature_path(plan, signature)
    try:
        write_new_file(path, signature.to_json(), mode=0o644)
    except FileExistsError:
        raise ChangePlanError("A signature of this role and key is there; move it away if the plan changed since.") from None
    except OSError as error:
        raise ChangePlanError(f"The signature cannot be written: {error.strerror}.") from None
    return path


def read_signatures(plan: Path) -> tuple[PlanSignature, ...]:
    """Read every signature that lies beside a plan; ChangePlanError for a file that is none."""
    found = []
    for path in sorted(plan.parent.glob(f"{_escaped(plan.name)}.*.signature.json")):
        try:
            with path.open("rb") as file:
                raw = file.read(LARGEST_SIGNATURE_BYTES + 1)
        except OSError as error:
            raise ChangePlanError(f"A signature beside the plan cannot be read: {error.strerror}.") from None
        found.append(PlanSignature.from_json(raw))
    return tuple(found)


def signed_roles(plan: ChangePlan, signatures: Sequence[PlanSignature]) -> Mapping[str, PlanSignature | None]:
    """Return for each role its valid signature under this plan, if any."""
    good = {one.role: one for one in signatures if one.plan == plan.digest and one.fits() and _holds(plan, one)}
    return {role.name: good.get(role.name) for role in plan.role}


def _holds(plan: ChangePlan, one: _Signed) -> bool:
    return any(role.name == one.role and one.public_key in role.keys for role in plan.role)


def _fault(plan: ChangePlan, comparison: str, one: Approval, now: datetime) -> str | None:
    """Say why an approval does not count; None where it does."""
    held = next((role for role in plan.role if role.name == one.role), None)
    reasons = (
        (one.comparison != comparison, "it is of another comparison"),
        (one.plan != plan.digest, "it is under another plan"),
        (held is None, "the plan has no such role"),
        (held is not None and one.public_key not in held.keys, f"key {one.key_id} is not the role's"),
        (held is not None and one.meaning != held.meaning, "its meaning is not the role's"),
        (not plan.holds_on(one.time.astimezone(UTC).date()), "it was signed when the plan did not hold"),
        (not one.fits(), "its signature does not fit: it was changed"),
        (one.time > now + CLOCKS_DIFFER, "it bears a time that is still to come"),
    )
    return next((reason for is_so, reason in reasons if is_so), None)


def _role(plan: ChangePlan, name: str) -> Role:
    for role in plan.role:
        if role.name == name:
            return role
    raise ChangePlanError(f"The plan has no role {name!r}; it has {[role.name for role in plan.role]}.")


def _check_holder(role: Role, key: RoleKey) -> None:
    if base64.b64encode(key.public.raw).decode("ascii") not in role.keys:
        known = [PublicKey(base64.b64decode(one)).key_id for one in role.keys]
        raise ChangePlanError(f"Key {key.public.key_id} is not one of role {role.name!r}, whose keys are {known}.")


def _filled(kind: type[S], plan: ChangePlan, role: str, meaning: str, name: str, time: datetime | None, **more: str) -> S:
    when = (time or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    # Any key: `signed` puts the true one in.
    blank = {
        "plan": plan.digest,
        "role": role,
        "meaning": meaning,
        "name": unicodedata.normalize("NFKC", name).strip(),
        "time": when,
        "public_key": plan.role[0].keys[0],
        **more,
    }
    try:
        return kind.model_validate(blank)
    except ValidationError as error:
        fields = sorted({str(one["loc"][0]) for one in error.errors(include_input=False)})
        raise ChangePlanError(
            f"Not signed: {', '.join(fields)} is not of a form that can be signed (a name has 2 to 120 characters that can be seen)."
        ) from None


def _spelled(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
