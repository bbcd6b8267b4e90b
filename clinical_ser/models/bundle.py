"""A trained model on disk: a folder of plain files that is verified before anything in it is parsed.

The one idea: `manifest.json` names the size and sha256 of every other file, so the digest of the manifest is the digest of the model, and
a signature over the manifest is a signature over all of it. Every file is read once, and the bytes that were checked are the bytes that
are handed out. What the payload files mean is the business of whoever writes them; there is no pickle among them.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clinical_ser.atomic_folder import publish_folder, replace_file
from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.errors import (
    BundleFeatureMismatchError,
    BundleIncompleteError,
    BundleNotFoundError,
    BundleSchemaError,
    BundleTamperedError,
)
from clinical_ser.models.operating_point import OperatingPoint
from clinical_ser.models.signing import SignatureStatus, SigningKey, TrustStore, require_trust, verify_signature
from clinical_ser.models.strict_json import JsonValue, StrictJsonError, canonical_json, parse_canonical_object, parse_json

SCHEMA = "clinical-ser/bundle/2"
MANIFEST = "manifest.json"
SIGNATURE = "signature"

REQUIRED_FILES = frozenset({"preprocessing.json", "calibrator.json", "conformal.json", "reference.json", "background.json", "card.json"})
HEAD_FILES = frozenset({"head.json", "head.ubj", "head.onnx"})
"""Exactly one of these is there."""
REFIT_FILES = frozenset({"refits.json", "refits.ubj"})
"""The head refitted on resampled subjects, for intervals; at most one of these."""
OPTIONAL_FILES = frozenset({"interpretable.json"})
"""Of a model with embeddings: the same without them."""
PAYLOAD_FILES = REQUIRED_FILES | HEAD_FILES | REFIT_FILES | OPTIONAL_FILES
_ALL_FILES = PAYLOAD_FILES | {MANIFEST, SIGNATURE}

# Caps that stand before any reading. Ours, set far above need: a manifest with ComParE's 6373 feature names takes about 0.4 MiB.
MAX_FILE_BYTES = 64 * 1024**2
MAX_TOTAL_BYTES = 256 * 1024**2
MAX_MANIFEST_BYTES = 4 * 1024**2
MAX_SIGNATURE_BYTES = 4 * 1024
MAX_FILES = 16

_GET_AGAIN = "Get the bundle from its source again."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+-]{0,31}$")]
ShortText = Annotated[str, Field(min_length=1, max_length=256)]
Fingerprint = Annotated[str, Field(min_length=1, max_length=1024)]
FeatureName = Annotated[str, Field(min_length=1, max_length=128)]


class FileEntry(BaseModel):
    """What the manifest says of one payload file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: Sha256


class ManifestFields(BaseModel):
    """What the maker of a model says about it; the files' digests are added when the bundle is written."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    name: ModelName
    version: Version
    task: Task
    """With its classes filled in, in the order of the head's outputs."""
    head: ShortText
    """Kind of head, `linear` or `xgboost`; says how `head.*` is to be read."""
    features: tuple[FeatureName, ...] = Field(min_length=1)
    """Catalogue names in the order in which the head was trained on them."""
    extractors: dict[ShortText, Fingerprint] = Field(min_length=1)
    """Feature set -> fingerprint of the code that computed it (`FeatureTable.extractors`)."""
    operating_point: OperatingPoint | None
    """The threshold frozen at training; None for a task of several classes."""
    cohort_digest: Sha256
    """Digest of the cohort that the model was trained on."""
    simulated: bool
    """Whether any training recording was simulated."""
    statement: str = Field(max_length=2000)
    """What every result of this model has to say about its origin; never empty for a simulated one."""
    uses_baseline: bool
    """Whether features are taken against the subject's own earlier recordings."""
    software: dict[ShortText, ShortText]
    """Package -> version that trained the model."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.features)) != len(self.features):
            raise ValueError("a feature is named twice")
        if len(self.task.classes) < 2:
            raise ValueError("the task of a trained model names its classes")
        if (self.task.kind is TaskKind.BINARY) != (self.operating_point is not None):
            raise ValueError("a binary task has an operating point, and no other task has one")
        if self.simulated and not self.statement.strip():
            raise ValueError("a model trained on simulated speech says so in its statement")
        return self


class BundleManifest(ManifestFields):
    """The content of `manifest.json`."""

    schema_id: Literal["clinical-ser/bundle/2"] = Field(alias="schema")
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = self.files.keys()
        if unknown := sorted(names - PAYLOAD_FILES):
            raise ValueError(f"files has names this schema does not know: {_some(unknown)}")
        if absent := sorted(REQUIRED_FILES - names):
            raise ValueError(f"files lacks {absent}")
        if len(names & HEAD_FILES) != 1:
            raise ValueError(f"files needs exactly one of {sorted(HEAD_FILES)}")
        if len(names & REFIT_FILES) > 1:
            raise ValueError(f"files may have only one of {sorted(REFIT_FILES)}")
        if sum(entry.size for entry in self.files.values()) > MAX_TOTAL_BYTES:
            raise ValueError(f"files are larger than {MAX_TOTAL_BYTES} bytes together")
        return self


@dataclass(frozen=True, eq=False)
class VerifiedBundle:
    """A bundle whose every byte was checked; made by `read_bundle` and nothing else."""

    manifest: BundleManifest
    files: Mapping[str, bytes]
    """Payload name -> the bytes that were checked."""
    manifest_bytes: bytes
    """`manifest.json` as it was signed."""
    signature: SignatureStatus

    @property
    def digest(self) -> str:
        """Return the sha256 of `manifest.json`, in hex: the identity of the model."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    @property
    def learned_digest(self) -> str:
        """Return the sha256 of everything but the card and the signature, in hex: the same model under another card has the same."""
        about = self.manifest.model_dump(mode="json", exclude={"files"})
        payload = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items() if name != "card.json"}
        return hashlib.sha256(canonical_json({"manifest": about, "files": payload})).hexdigest()

    def json(self, name: str) -> JsonValue:
        """Parse one payload file strictly; BundleSchemaError when it is not there or not JSON."""
        return payload_json(self.files, name)


def write_bundle(
    folder: Path, manifest_fields: ManifestFields, files: Mapping[str, bytes], key: SigningKey | None = None, *, replace: bool = False
) -> str:
    """Write a bundle so that it is there completely or not at all.

    The same content and key give the same bytes: no time, no random number and no machine's name goes in.

    Parameters
    ----------
    folder
        Where the bundle goes; its parents are made. An empty folder may be there.
    manifest_fields
        What is said about the model.
    files
        Payload name -> content, `REQUIRED_FILES` and one of `HEAD_FILES` at least.
    key
        Signs the manifest; None leaves the bundle unsigned.
    replace
        Whether a bundle that is there may be replaced. It is moved aside first, so a reader never sees a mixture; if the process dies
        between the two moves, the old bundle is complete beside the target as `.<name>.*.old`.

    Returns
    -------
    str
        The bundle's digest.

    Raises
    ------
    BundleSchemaError
        The content is not one that `read_bundle` would take.
    BundleWriteError
        Something is in the way, or the system refuses to write.
    """
    contents = {name: bytes(content) for name, content in files.items()}
    manifest = _manifest_bytes(manifest_fields, contents)
    contents[MANIFEST] = manifest
    if key is not None:
        contents[SIGNATURE] = key.sign(manifest)
    publish_folder(folder, contents, known=_ALL_FILES, replace=replace)
    return hashlib.sha256(manifest).hexdigest()


def read_bundle(
    path: Path, *, trusted: TrustStore | None = None, require_trusted: bool = False, expected_digest: str | None = None
) -> VerifiedBundle:
    """Read and verify a bundle: sizes, then the signature, then the manifest, then every file against it.

    Parameters
    ----------
    path
        The bundle's folder.
    trusted
        Keys to trust; None takes `TrustStore.default()`.
    require_trusted
        Whether to refuse what no trusted key signed. Without a signature nothing ties the manifest to its maker: an unsigned bundle is
        protected against accidents and not against people, unless `expected_digest` is given.
    expected_digest
        The digest the caller knows from elsewhere (an audit record, a release note); None takes any.

    Raises
    ------
    BundleNotFoundError
        There is no readable folder.
    BundleIncompleteError
        A file is missing, cut short, or not listed, or no plain file.
    BundleTamperedError
        A digest or the signature does not fit.
    BundleUntrustedError
        `require_trusted`, and no trusted key signed.
    BundleSchemaError
        The schema is unknown, a file is too large, or the manifest does not follow the schema.
    """
    trusted = TrustStore.default() if trusted is None else trusted
    with _BundleFolder.opened(path) as folder:
        raw = folder.read(MANIFEST, MAX_MANIFEST_BYTES)
        signature = folder.read(SIGNATURE, MAX_SIGNATURE_BYTES) if SIGNATURE in folder.sizes else None
        status = verify_signature(raw, signature, trusted)
        if require_trusted:
            require_trust(status)
        digest = hashlib.sha256(raw).hexdigest()
        if expected_digest not in {None, digest}:
            raise BundleTamperedError(
                f"{MANIFEST}: the bundle's digest is {digest}, expected {expected_digest}. It is another model, or was changed."
            )
        manifest = parse_manifest(raw)
        folder.check_listing(manifest.files)
        files = {name: folder.read_listed(name, entry) for name, entry in sorted(manifest.files.items())}
    return VerifiedBundle(manifest, MappingProxyType(files), raw, status)


def sign_bundle(path: Path, key: SigningKey) -> SignatureStatus:
    """Sign a complete bundle that is on disk, in place of any signature it has; its digest stays.

    Raises
    ------
    BundleError
        As `read_bundle`: what is broken is not signed, and a signature that does not fit is not covered by a new one.
    BundleWriteError
        The system refuses to write.
    """
    own = TrustStore(frozenset({key.public}))
    bundle = read_bundle(path, trusted=own)
    replace_file(path, SIGNATURE, key.sign(bundle.manifest_bytes))
    return read_bundle(path, trusted=own, expected_digest=bundle.digest).signature


def parse_manifest(raw: bytes) -> BundleManifest:
    """Parse the bytes of `manifest.json`.

    Raises
    ------
    BundleSchemaError
        The schema is unknown, or the bytes are not the one spelling of a manifest that follows it.
    """
    try:
        schema = parse_canonical_object(raw).get("schema")
    except StrictJsonError as error:
        raise BundleSchemaError(f"{MANIFEST}: {error}. {_GET_AGAIN}") from None
    if schema != SCHEMA:
        raise BundleSchemaError(f"{MANIFEST}: schema {_shown(schema)} is unknown, this version reads {SCHEMA!r}; update clinical-ser or train again.")
    try:
        return BundleManifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise BundleSchemaError(f"{MANIFEST}: {_complaints(error)}") from None


def check_features(manifest: BundleManifest, available: Mapping[str, str], names: Iterable[str]) -> None:
    """Make sure that this installation computes the features the model was trained on, in the same way.

    Parameters
    ----------
    manifest
        Of the model.
    available
        Feature set -> fingerprint of the code that computes it here.
    names
        Catalogue names of every feature that can be computed here.

    Raises
    ------
    BundleFeatureMismatchError
        Names each extractor with both versions, and the features that are not known here.
    """
    encoders = {name: needed for extractor, needed in sorted(manifest.extractors.items()) if (name := _encoder_name(extractor))}
    here = {name: available.get(f"embedding.{name}") for name in encoders}
    if wanting := [_encoder_problem(name, here[name]) for name, needed in encoders.items() if here[name] != needed]:
        raise BundleFeatureMismatchError(f"{' '.join(wanting)} --interpretable asks the model without its embeddings.")
    problems = [
        f"{extractor} here is {available[extractor]!r}, the model needs {needed!r}"
        if extractor in available
        else f"{extractor} is not installed, the model needs {needed!r}"
        for extractor, needed in sorted(manifest.extractors.items())
        if available.get(extractor) != needed
    ]
    if absent := sorted(set(manifest.features) - set(names)):
        problems.append(f"features not known here: {_some(absent)}")
    if problems:
        raise BundleFeatureMismatchError(
            f"{MANIFEST}: {'; '.join(problems)}. Install the versions the model was trained with ({_versions(manifest)}), or train it again here."
        )


def _encoder_problem(name: str, installed: str | None) -> str:
    install = f"`clinical-ser encoder install {name}`"
    if installed is None:
        return f"The model needs the encoder {name!r}, which is not installed: {install}, or say where it is with --encoder."
    return (
        f"The encoder that is installed as {name!r} is not the one that the model learned with: {install} --replace puts the published one there, "
        "and --encoder says where another is."
    )


def _encoder_name(extractor: str) -> str:
    kind, _, name = extractor.partition(".")
    return name if kind == "embedding" else ""


@dataclass(frozen=True, eq=False)
class _BundleFolder:
    """An open bundle folder: names and sizes first, then each file once, all through one descriptor so that nobody can swap the folder."""

    descriptor: int
    sizes: Mapping[str, int]

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator["_BundleFolder"]:
        descriptor = _open_folder(path)
        try:
            yield cls(descriptor, _listed_sizes(descriptor))
        finally:
            os.close(descriptor)

    def check_listing(self, listed: Mapping[str, FileEntry]) -> None:
        """Compare names and sizes with the manifest, before a byte of the payload is read."""
        there = self.sizes.keys() - {MANIFEST, SIGNATURE}
        if absent := sorted(listed.keys() - there):
            raise BundleIncompleteError(f"{_some(absent)}: missing. {_GET_AGAIN}")
        if extra := sorted(there - listed.keys()):
            known = sorted(name for name in extra if name in _ALL_FILES)
            named = _some(known) if known else f"{len(extra)} entries"
            raise BundleIncompleteError(f"{named}: not part of the bundle according to {MANIFEST}. Remove it, or get the bundle again.")
        for name, entry in sorted(listed.items()):
            _check_size(name, self.sizes[name], entry.size)

    def read_listed(self, name: str, entry: FileEntry) -> bytes:
        content = self.read(name, entry.size)
        _check_size(name, len(content), entry.size)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleTamperedError(f"{name}: its content is not what {MANIFEST} says (sha256 differs). {_GET_AGAIN}")
        return content

    def read(self, name: str, limit: int) -> bytes:
        """Read one plain file of at most `limit` bytes; what grows meanwhile is refused, and a link or pipe is never followed."""
        if name not in self.sizes:
            raise BundleIncompleteError(f"{name}: missing. Give the folder that holds the whole bundle, or get it from its source again.")
        if self.sizes[name] > limit:
            _too_large(name, limit)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.descriptor)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    _not_plain(name)
                content = file.read(limit + 1)
        except OSError as error:
            raise BundleIncompleteError(f"{name}: cannot be read ({error.strerror}).") from None
        if len(content) > limit:
            _too_large(name, limit)
        return content


def _open_folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        reason = "it is a file; a bundle is the folder that holds manifest.json"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except ValueError:  # a NUL byte in the path
        reason = "no path can have this form"
    raise BundleNotFoundError(f"No bundle can be opened at the path given: {reason}.")


def _listed_sizes(descriptor: int) -> Mapping[str, int]:
    sizes: dict[str, int] = {}
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if len(sizes) >= MAX_FILES:
                    raise BundleIncompleteError(
                        f"More than {MAX_FILES} files are in the folder, so it is no bundle; give the folder with {MANIFEST} alone."
                    )
                if not entry.is_file(follow_symlinks=False):
                    _not_plain(entry.name)
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                if sizes[entry.name] > MAX_FILE_BYTES:
                    _too_large(entry.name, MAX_FILE_BYTES)
    except OSError as error:
        raise BundleNotFoundError(f"The bundle's folder cannot be listed: {error.strerror}.") from None
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        raise BundleSchemaError(f"The files are larger than {MAX_TOTAL_BYTES} bytes together, so this is no bundle.")
    return sizes


def _check_size(name: str, size: int, listed: int) -> None:
    if size != listed:
        raise BundleIncompleteError(f"{name}: has {size} bytes, {MANIFEST} lists {listed}; it was cut short or changed. {_GET_AGAIN}")


def _too_large(name: str, limit: int) -> NoReturn:
    entry = name if name in _ALL_FILES else "an entry that belongs to no bundle"
    raise BundleSchemaError(f"{entry}: larger than {limit} bytes, so it was not read. {_GET_AGAIN}")


def _not_plain(name: str) -> NoReturn:
    # A foreign name may be a recording's, and so a person's: it is not repeated.
    entry = name if name in _ALL_FILES else "an entry that belongs to no bundle"
    raise BundleIncompleteError(f"{entry}: is a link, a folder or a device; a bundle holds plain files only. Remove it, or get the bundle again.")


def _manifest_bytes(fields: ManifestFields, contents: Mapping[str, bytes]) -> bytes:
    """Make the manifest and read it back, so that what is written is what will be read."""
    for name, content in contents.items():
        if len(content) > MAX_FILE_BYTES:
            _too_large(name, MAX_FILE_BYTES)
        if name.endswith(".json"):
            payload_json(contents, name)
    entries = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()}
    said = fields.model_dump(mode="json", include=set(ManifestFields.model_fields))
    try:
        raw = canonical_json({**said, "schema": SCHEMA, "files": entries})
    except StrictJsonError as error:
        raise BundleSchemaError(f"{MANIFEST}: {error}.") from None
    if len(raw) > MAX_MANIFEST_BYTES:
        _too_large(MANIFEST, MAX_MANIFEST_BYTES)
    parse_manifest(raw)
    return raw


def payload_json(files: Mapping[str, bytes], name: str) -> JsonValue:
    """Parse one of a model's files strictly; BundleSchemaError when it is not there or not JSON."""
    if name not in files:
        raise BundleSchemaError(f"{name}: this bundle has no such file, it has {sorted(files)}.")
    try:
        return parse_json(files[name])
    except StrictJsonError as error:
        raise BundleSchemaError(f"{name}: {error}.") from None


def _complaints(error: ValidationError) -> str:
    """Say where the manifest is wrong without repeating what it holds."""
    faults = error.errors(include_input=False)
    return _some(": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")]) for fault in faults)


def _versions(manifest: BundleManifest) -> str:
    return ", ".join(f"{package} {version}" for package, version in sorted(manifest.software.items())) or "not recorded"


def _some(names: Iterable[str], most: int = 5) -> str:
    """Join a few of the names, and say how many more there are."""
    texts = [_shown(name) for name in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _shown(text: object) -> str:
    """Return text that came from a bundle in a form fit for a log line: bounded, and without control characters."""
    shown = str(text)[:200]
    return shown if shown.isprintable() else ascii(shown)
