"""The registry of bundles: what each came from, what was found of it, and which of them answers under a name.

The one idea: bundles, evaluations and entries are named by the digest of what they hold and never written again; all that ever changes is one
short file a name, replaced by one rename. So whatever stops a switch, the old state stands or the new.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from clinical_ser.atomic_folder import publish_folder, sync_folder
from clinical_ser.atomic_folder import replace_file as replace_in_bundle
from clinical_ser.errors import (
    ClinicalSerError,
    InvalidValueError,
    RegistryConflictError,
    RegistryError,
    RegistryTamperedError,
)
from clinical_ser.file_lock import FileLock
from clinical_ser.folders import HOME_VARIABLE, user_folder
from clinical_ser.models.bundle import MANIFEST, MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, SIGNATURE, VerifiedBundle, read_bundle
from clinical_ser.models.signing import SignatureState, TrustStore, verify_signature
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.registry.files import (
    check_folder,
    check_own,
    is_own_folder,
    listed,
    make_folder,
    read_file,
    refused_by_system,
    replace_file,
    write_once,
)
from clinical_ser.registry.history import NameHistory
from clinical_ser.registry.records import ROLES, Action, Entry, Pointers, Record, build, check_name, is_digest_like, is_name
from clinical_ser.registry.shipped import is_shipped

MAX_RECORD_BYTES = 1024**2
MAX_ATTACHMENT_BYTES = 16 * 1024**2
MAX_PRIVATE_BYTES = 256 * 1024**2
LONGEST_WAIT_S = 10.0
"""How long a writer waits for another one; a switch takes milliseconds."""

_WAIT_STEP_S = 0.01
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAMED_BY_DIGEST = re.compile(r"([0-9a-f]{64})\.json")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_KEY_BYTES = 32
# Nothing else is tagged with this key; the domain keeps it so should something ever be.
_TAG_DOMAIN = b"clinical-ser registry subject v1\n"
_HINT = "a bundle's digest (8 hex digits of it at least), a name, or a name with @champion, @challenger or @shadow"

FORGOTTEN = "forgotten.json"


class Registry:
    """A folder of bundles with their records, evaluations, private files and histories.

    Nothing is made before something is written; a registry that is not there is an empty one.

    Parameters
    ----------
    folder
        Of the registry; only its owner may enter what is made in it.

    Examples
    --------
    >>> registry = Registry.default()  # doctest: +SKIP
    >>> digest = registry.add(folder, Record.of(read_bundle(folder), change="trained"))  # doctest: +SKIP
    >>> head = registry.head("ward")  # doctest: +SKIP
    >>> registry.switch(
    ...     "ward", expected=head and head.digest, action="promoted", pointers=Pointers(champion=digest), bundle=digest, actor="qa"
    ... )  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._bundles, self._records = self.folder / "bundles", self.folder / "records"
        self._evaluations, self._private, self._names = self.folder / "evaluations", self.folder / "private", self.folder / "names"

    @classmethod
    def default(cls) -> Self:
        """Return this user's registry; RegistryError where the process has no home."""
        own = user_folder("data")
        if own is None:
            raise RegistryError(f"This process has no home folder to keep a registry in; set {HOME_VARIABLE}.")
        return cls(own / "registry")

    def _sound(self, folder: Path) -> Path:
        """Return one of the registry's folders, unless it is a link or others may write in it: what it holds is believed."""
        with refused_by_system(), contextlib.suppress(FileNotFoundError):
            # The registry itself may be a link of its owner's.
            check_folder(self.folder.resolve(), "The registry's folder")
        check_folder(folder, f"The registry's folder {folder.name!r}")
        return folder

    # --- bundles ---------------------------------------------------------------------------------------------------------------------------

    def add(self, bundle: Path, record: Record, *, private: Mapping[str, bytes] | None = None) -> str:
        """Take a bundle in, after every byte of it was checked; a second time changes nothing.

        Parameters
        ----------
        bundle
            Its folder, which is copied.
        record
            Where it came from. It is what makes the bundle one of the registry, so it is written last.
        private
            Private files that belong to it, by name (see `keep_private`): there before the bundle is, so that none is without its own.

        Returns
        -------
        str
            The bundle's digest.

        Raises
        ------
        BundleError
            It is not sound.
        InvalidValueError
            The record is of another bundle.
        RegistryConflictError
            The bundle is there with another record (the time of writing apart).
        """
        taken = read_bundle(bundle)
        _check_record(record, taken)
        make_folder(self._bundles)
        make_folder(self._records)
        with self._locked(self._lock_path(), "registry"):
            before = self._record_or_none(taken.digest)
            if before is not None and before.model_copy(update={"created": record.created}) != record:
                raise RegistryConflictError(f"Bundle {taken.digest[:12]} is in the registry already, with another record; nothing was changed.")
            self._sweep(self._bundles)
            for name, content in sorted((private or {}).items()):
                self._keep_private(taken.digest, name, content)
            self._publish(taken, bundle)
            if before is None and not write_once(self._records / f"{taken.digest}.json", record.to_json()):
                raise RegistryConflictError(f"A record of bundle {taken.digest[:12]} came in meanwhile; nothing was changed.")
        return taken.digest

    def _publish(self, bundle: VerifiedBundle, source: Path) -> None:
        target = self.folder_of(bundle.digest)
        signature = _signature_of(source, bundle)
        if not target.is_dir() or not listed(target):
            contents = {**bundle.files, MANIFEST: bundle.manifest_bytes} | ({SIGNATURE: signature} if signature is not None else {})
            publish_folder(target, contents, known=contents.keys(), replace=False)
        kept = self.bundle(bundle.digest)
        if signature is not None and kept.signature.state is SignatureState.UNSIGNED:
            replace_in_bundle(target, SIGNATURE, signature)

    def digests(self) -> tuple[str, ...]:
        """Return the digests of the bundles that are in, sorted; one whose adding was cut short is not."""
        return _digests_in(self._sound(self._records))

    def find(self, text: str) -> str:
        """Return the digest of one bundle.

        Parameters
        ----------
        text
            A digest or at least its first 8 digits; a name (its champion); `name@champion`, `name@challenger`, `name@shadow`; `name@` and the
            beginning of the digest of a bundle that was kept under this name or has had a role in it.

        Raises
        ------
        InvalidValueError
            Nothing, or more than one bundle, is meant.
        RegistryTamperedError
            The name's history does not fit together.
        """
        if is_digest_like(text):
            return self._only(text, self.digests())
        name, at, role = text.partition("@")
        if not is_name(name) or (at and role not in ROLES and not is_digest_like(role)):
            raise InvalidValueError("bundle", text[:80], _HINT)
        if at and role not in ROLES:
            return self._only(role, self.known_as(name))
        held = self.pointers(name).held
        wanted = role or "champion"
        for taken, digest in held.items():
            if taken == wanted:
                return digest
        raise InvalidValueError("bundle", text[:80], f"a name with a {wanted}; {name!r} has {', '.join(held) or 'none'}")

    def _only(self, prefix: str, digests: Sequence[str]) -> str:
        found = [digest for digest in digests if digest.startswith(prefix)]
        if len(found) != 1:
            reason = f"more digits: it begins {len(found)} digests" if found else f"{_HINT}; no bundle's digest here begins so"
            raise InvalidValueError("bundle", prefix, reason)
        return found[0]

    def known_as(self, name: str) -> tuple[str, ...]:
        """Return the bundles that were kept under a name or have had a role in it, sorted."""
        had = {digest for entry in self.history(name) for digest in entry.pointers.held.values()}
        kept = {digest for digest in self.digests() if self.record(digest).name == name}
        return tuple(sorted(had | kept))

    def folder_of(self, digest: str) -> Path:
        """Return where the folder of a bundle lies, or would lie."""
        return self._sound(self._bundles) / _checked(digest)

    def sound_folder(self, digest: str) -> Path:
        """Return the folder of a bundle whose manifest is the one that was added, for `read_bundle` to check the rest against it.

        Raises
        ------
        RegistryTamperedError
            Another bundle, sound or not, lies there.
        """
        folder = self.folder_of(digest)
        manifest = read_file(folder / MANIFEST, MAX_MANIFEST_BYTES, f"The manifest of bundle {digest[:12]}")
        if manifest is None or hashlib.sha256(manifest).hexdigest() != digest:
            raise RegistryTamperedError(
                f"Bundle {digest[:12]} is not the one that was added: its manifest is {'another' if manifest else 'missing'}."
            )
        return folder

    def bundle(self, digest: str) -> VerifiedBundle:
        """Read and verify a bundle; BundleError where it is not, byte for byte, the one that was added."""
        return read_bundle(self.folder_of(digest), expected_digest=digest)

    def record(self, digest: str) -> Record:
        """Return the record of a bundle; InvalidValueError where it is not in the registry."""
        record = self._record_or_none(digest)
        if record is None:
            raise InvalidValueError("bundle", digest[:12], "the digest of a bundle in the registry")
        return record

    def records(self) -> tuple[Record, ...]:
        """Return every record, oldest first."""
        return tuple(sorted((self.record(digest) for digest in self.digests()), key=lambda record: (record.created, record.bundle)))

    def _record_or_none(self, digest: str) -> Record | None:
        content = self._record_bytes(digest)
        if content is None:
            return None
        what = f"The record of bundle {digest[:12]}"
        record = Record.from_json(content, what)
        if record.bundle != digest:
            raise RegistryTamperedError(f"{what} is that of another bundle.")
        return record

    def _record_bytes(self, digest: str) -> bytes | None:
        return read_file(self._sound(self._records) / f"{_checked(digest)}.json", MAX_RECORD_BYTES, f"The record of bundle {digest[:12]}")

    def children(self, digest: str) -> tuple[str, ...]:
        """Return the bundles that were made from this one, oldest first."""
        return tuple(record.bundle for record in self.records() if record.parent == digest)

    def descendants(self, digest: str) -> tuple[str, ...]:
        """Return the bundles that were made from this one, from those, and so on; oldest first, each once."""
        records, found = self.records(), {digest}
        while more := {record.bundle for record in records if record.parent in found} - found:
            found |= more
        return tuple(record.bundle for record in records if record.bundle in found - {digest})

    # --- evaluations and approvals ---------------------------------------------------------------------------------------------------------

    def attach(self, digest: str, content: bytes) -> str:
        """Keep a comparison or an approval with a bundle, and return its sha256; a second time changes nothing.

        Raises
        ------
        InvalidValueError
            The bundle is not in the registry, or the content is no object in canonical JSON, or larger than `MAX_ATTACHMENT_BYTES`.
        """
        self.record(digest)
        if len(content) > MAX_ATTACHMENT_BYTES:
            raise InvalidValueError("attachment", f"{len(content)} bytes", f"{MAX_ATTACHMENT_BYTES} bytes at most")
        try:
            parse_canonical_object(content)
        except StrictJsonError as error:
            raise InvalidValueError("attachment", f"{len(content)} bytes", f"an object in canonical JSON: {error}") from None
        name = hashlib.sha256(content).hexdigest()
        folder = self._attached(digest)
        make_folder(folder)
        if not write_once(folder / f"{name}.json", content):
            self.attachment(digest, name)
        return name

    def attachments(self, digest: str) -> tuple[str, ...]:
        """Return the sha256 of everything that is attached to a bundle, sorted."""
        return _digests_in(self._attached(digest))

    def _attached(self, digest: str) -> Path:
        return self._sound(self._sound(self._evaluations) / _checked(digest))

    def attachment(self, digest: str, sha256: str) -> bytes:
        """Return what is attached; InvalidValueError where nothing is, RegistryTamperedError where it was changed."""
        what = f"Attachment {sha256[:12]} of bundle {digest[:12]}"
        content = read_file(self._attached(digest) / f"{_checked(sha256)}.json", MAX_ATTACHMENT_BYTES, what)
        if content is None:
            raise InvalidValueError("attachment", sha256[:12], f"one of bundle {digest[:12]}: {[name[:12] for name in self.attachments(digest)]}")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise RegistryTamperedError(f"{what} was changed: its digest is not its name.")
        return content

    # --- what never travels ----------------------------------------------------------------------------------------------------------------

    def keep_private(self, digest: str, name: str, content: bytes) -> None:
        """Keep a file that never travels (mode 0600), in place of any of this name; the bundle may come later.

        Raises
        ------
        InvalidValueError
            The name is not one of small letters, digits, '.', '_' and '-', or the content is larger than `MAX_PRIVATE_BYTES`.
        RegistryTamperedError
            Others may enter the folder.
        """
        with self._locked(self._lock_path(), "registry"):
            self._keep_private(digest, name, content)

    def _keep_private(self, digest: str, name: str, content: bytes) -> None:
        if len(content) > MAX_PRIVATE_BYTES:
            raise InvalidValueError("private file", f"{len(content)} bytes", f"{MAX_PRIVATE_BYTES} bytes at most")
        path = self._private_path(digest, name)
        make_folder(path.parent)
        self._check_private_folders(digest)
        self._sweep(path.parent)
        replace_file(path, content)

    def private(self, digest: str, name: str) -> bytes | None:
        """Return a private file, or None where there is none; RegistryTamperedError where others may use it or its folder."""
        path = self._private_path(digest, name)
        self._check_private_folders(digest)
        return read_file(path, MAX_PRIVATE_BYTES, f"{name} of bundle {digest[:12]}", private=True)

    def private_names(self, digest: str) -> tuple[str, ...]:
        """Return the names of a bundle's private files, sorted."""
        return tuple(name for name in listed(self._private / _checked(digest)) if _FILE_NAME.fullmatch(name))

    def drop_private(self, digest: str, name: str) -> None:
        """Remove a private file; nothing happens where there is none. The disk may keep its blocks until they are written over."""
        path = self._private_path(digest, name)
        if not path.parent.is_dir():
            return
        with self._locked(self._lock_path(), "registry"), refused_by_system():
            self._sweep(path.parent)
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def _private_path(self, digest: str, name: str) -> Path:
        if not _FILE_NAME.fullmatch(name):
            raise InvalidValueError("name of a private file", name[:80], "small letters, digits, '.', '_' and '-', beginning with a letter or digit")
        return self._private / _checked(digest) / name

    def _check_private_folders(self, digest: str) -> None:
        for folder, what in ((self._private, "The folder of private files"), (self._private / digest, f"The private folder of bundle {digest[:12]}")):
            try:
                check_own(os.lstat(folder), what)
            except FileNotFoundError:
                return
            except OSError as error:  # its text holds the path
                raise RegistryError(f"{what} cannot be looked at: {error.strerror}.") from None

    def tag(self, subject: str) -> str:
        """Return the tag of a subject, 64 hex digits: HMAC-SHA256 (RFC 2104) under a key that never leaves this registry.

        Without the key nobody can try names; with it, `registry forget` finds the bundles that saw a person.

        Raises
        ------
        InvalidValueError
            The subject is empty or no text that UTF-8 can hold; it is not repeated.
        RegistryTamperedError
            The key is damaged or others may read it, or it is gone while private files are there that may hold tags under it.
        """
        try:
            spelled = subject.encode()
        except UnicodeEncodeError:
            spelled = b""
        if not spelled:
            raise InvalidValueError("subject", "a text that is empty or holds half a character", "a subject's identifier")
        return hmac.new(self._tag_key(), _TAG_DOMAIN + spelled, hashlib.sha256).hexdigest()

    def secret(self, purpose: str) -> bytes:
        """Return 32 bytes that only this registry can make, the same for the same purpose."""
        return hmac.new(self._tag_key(), b"clinical-ser registry secret v1\n" + purpose.encode(), hashlib.sha256).digest()

    def forgotten(self) -> frozenset[str]:
        """Return the tags of people who are to be forgotten: nothing may learn from them again."""
        content = read_file(self.folder / FORGOTTEN, MAX_PRIVATE_BYTES, "The list of forgotten people", private=True)
        if content is None:
            return frozenset()
        try:
            tags = parse_canonical_object(content)["tags"]
        except (StrictJsonError, KeyError):
            tags = None
        if not isinstance(tags, list) or not all(isinstance(tag, str) and _DIGEST.fullmatch(tag) for tag in tags):
            raise RegistryTamperedError("The list of forgotten people is damaged.")
        return frozenset(map(str, tags))

    def mark_forgotten(self, tag: str) -> None:
        """Add a tag to those of people who are to be forgotten."""
        with self._locked(self._lock_path(), "registry"):
            make_folder(self.folder)
            replace_file(self.folder / FORGOTTEN, canonical_json({"tags": sorted(self.forgotten() | {tag})}))

    def private_digests(self) -> tuple[str, ...]:
        """Return the digests with private files, also those whose bundle never came."""
        return tuple(digest for digest in listed(self._private) if _DIGEST.fullmatch(digest))

    def _tag_key(self) -> bytes:
        path = self.folder / "tag.key"
        key = read_file(path, _KEY_BYTES, "The key of subjects' tags", private=True)
        if key is None:
            if any(map(self.private_names, self.private_digests())):
                raise RegistryTamperedError(
                    "The key of subjects' tags is missing while private files are there: a new one would find nobody in them."
                )
            make_folder(self.folder)
            write_once(path, secrets.token_bytes(_KEY_BYTES))
            key = read_file(path, _KEY_BYTES, "The key of subjects' tags", private=True)
        if key is None or len(key) != _KEY_BYTES:
            raise RegistryTamperedError(f"The key of subjects' tags is damaged: it has not {_KEY_BYTES} bytes.")
        return key

    # --- names -----------------------------------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Return the names that have a history, sorted; a damaged one is among them."""
        return tuple(name for name in listed(self._sound(self._names)) if is_name(name) and self._is_taken(self._names / name))

    @staticmethod
    def _is_taken(folder: Path) -> bool:
        """Tell whether a folder holds a history; a link to one is taken for a damaged history, which `head` and `history` refuse."""
        return folder.is_symlink() or (is_own_folder(folder) and any(not file.startswith(".") and file != "lock" for file in listed(folder)))

    def pointers(self, name: str) -> Pointers:
        """Return which bundle has which role; none has where the name has no history."""
        head = self.head(name)
        return head.pointers if head else Pointers()

    def head(self, name: str) -> Entry | None:
        """Return the current entry of a name, or None; RegistryTamperedError where it does not fit, or the head was moved back."""
        return self._history(name).head()

    def history(self, name: str) -> tuple[Entry, ...]:
        """Return the entries of a name, oldest first, the whole chain checked; RegistryTamperedError names the entry that does not fit."""
        return self._history(name).entries()

    def head_path(self, name: str) -> Path:
        """Return the file that a switch replaces by one rename: what a server watches."""
        return self._history(name).head_path

    def switch(
        self,
        name: str,
        *,
        expected: str | None,
        action: Action,
        pointers: Pointers,
        actor: str,
        reason: str = "",
        bundle: str | None = None,
        plan: str | None = None,
        modification: str | None = None,
        evaluation: str | None = None,
        approvals: Sequence[str] = (),
        at: datetime | None = None,
    ) -> Entry:
        """Write the next entry of a name and make it the current one, in one step: compare and swap.

        Parameters
        ----------
        name
            Of the model. Under that of a shipped one no bundle gets a role; an alarm may be written down there.
        expected
            Digest of the entry that was current when the caller looked; None: there was none.
        action
            What happens.
        pointers
            The whole state afterwards. Each bundle that gets a role by it is verified, byte for byte, and all answer one task.
        actor, reason
            Who switches and why.
        bundle, plan, modification, evaluation, approvals
            See `Entry`. What is attached has to be there.
        at
            Time of the entry; None: now.

        Returns
        -------
        Entry
            The new one.

        Raises
        ------
        RegistryConflictError
            Another entry is the current one by now, or another process holds the name for `LONGEST_WAIT_S`; nothing was changed.
        RegistryTamperedError
            The history, or a bundle's record, does not fit; nothing was changed.
        InvalidValueError
            A field does not fit, or a bundle or an attachment is not in the registry.
        BundleError
            A bundle that gets a role is not what was added.
        """
        history = self._history(check_name(name))
        if is_shipped(name) and pointers.held:
            raise InvalidValueError("model name", name, "a name of your own: a shipped name always means the shipped model")
        make_folder(history.folder)
        with self._locked(history.folder / "lock", f"history of {name!r}"):
            entry = self._next(
                history,
                expected,
                action=action,
                pointers=pointers,
                actor=actor,
                reason=reason,
                bundle=bundle,
                plan=plan,
                modification=modification,
                evaluation=evaluation,
                approvals=tuple(approvals),
                time=at or datetime.now(UTC),
            )
            history.append(entry)
        return entry

    def rehearse(self, name: str, *, expected: str | None, **entry: object) -> None:
        """Raise what `switch` with the same arguments would raise now, and write nothing: for whoever records a switch before it is made."""
        history = self._history(check_name(name))
        pointers = entry.get("pointers")
        if is_shipped(name) and isinstance(pointers, Pointers) and pointers.held:
            raise InvalidValueError("model name", name, "a name of your own: a shipped name always means the shipped model")
        self._next(history, expected, **{"time": datetime.now(UTC)} | entry)

    def _next(self, history: NameHistory, expected: str | None, **fields: object) -> Entry:
        """Return the next entry of a history, checked."""
        chain = history.entries()
        head = chain[-1] if chain else None
        if expected != (head.digest if head else None):
            raise RegistryConflictError(
                f"{history.name!r} is at entry {head.number if head else 0} by now, which is not the one that was looked at; nothing was changed."
            )
        about = fields.get("bundle")
        entry = build(
            Entry,
            "entry of a history",
            number=head.number + 1 if head else 1,
            previous=head.digest if head else None,
            name=history.name,
            record=self._record_digest(about) if isinstance(about, str) else None,
            **fields,
        )
        self._check_attached(entry)
        self._check_roles(entry, head.pointers if head else Pointers())
        return entry

    def _check_attached(self, entry: Entry) -> None:
        for sha256 in (*([entry.evaluation] if entry.evaluation else []), *entry.approvals):
            if entry.bundle is None:
                raise InvalidValueError("bundle", None, "the bundle that the evaluation or approval is attached to")
            self.attachment(entry.bundle, sha256)

    def _check_roles(self, entry: Entry, before: Pointers) -> None:
        tasks = {}
        for digest in sorted(set(entry.pointers.held.values())):
            tasks[digest] = self.record(digest).task
            if entry.pointers.of(digest) != before.of(digest):
                self.bundle(digest)
        if len(set(tasks.values())) > 1:
            raise InvalidValueError("bundles of one name", sorted(set(tasks.values())), "bundles of one task")

    def _record_digest(self, digest: str) -> str:
        return hashlib.sha256(self.record(digest).to_json()).hexdigest()

    def _history(self, name: str) -> NameHistory:
        if not is_name(name):
            raise InvalidValueError("model name", name[:80], "small letters, digits, '-' and '_', at most 64, beginning with a letter or digit")
        return NameHistory(name, self._sound(self._sound(self._names) / name))

    # --- all of it -------------------------------------------------------------------------------------------------------------------------

    def verify(self) -> tuple[str, ...]:
        """Read everything and return what does not fit, one sentence each; none where all is whole."""
        problems: list[str] = []
        for folder in (self._bundles, self._records, self._evaluations, self._names):
            with _noted(problems):
                self._sound(folder)
        if problems:
            return tuple(dict.fromkeys(problems))
        known = self.digests()
        for digest in known:
            with _noted(problems, f"Bundle {digest[:12]}: "):
                _check_record(self.record(digest), self.bundle(digest))
            for sha256 in self.attachments(digest):
                with _noted(problems):
                    self.attachment(digest, sha256)
        for folder in (self._bundles, self._evaluations, self._private):
            problems += _strange(folder, known)
        for digest in (name for name in listed(self._private) if _DIGEST.fullmatch(name)):
            for name in self.private_names(digest):
                with _noted(problems):
                    self.private(digest, name)
        if (self.folder / "tag.key").exists():
            with _noted(problems):
                self._tag_key()
        for name in self.names():
            with _noted(problems):
                self._check_history(name)
        return tuple(problems)

    def _check_history(self, name: str) -> None:
        known = self.digests()
        for entry in self.history(name):
            if absent := sorted(set(entry.pointers.held.values()) - set(known)):
                raise RegistryTamperedError(
                    f"Entry {entry.number} of {name!r} gives a role to bundle {absent[0][:12]}, which is not in the registry."
                )
            if entry.bundle and self._record_digest(entry.bundle) != entry.record:
                raise RegistryTamperedError(f"The record of bundle {entry.bundle[:12]} is not the one that entry {entry.number} of {name!r} saw.")
            self._check_attached(entry)

    def _lock_path(self) -> Path:
        make_folder(self.folder)
        return self.folder / "lock"

    def _sweep(self, folder: Path) -> None:
        """Remove drafts that a killed process left, which may hold what was to be private; for whoever holds the registry's lock."""
        for name in listed(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                with refused_by_system():
                    if is_own_folder(folder / name):
                        shutil.rmtree(folder / name)
                    else:
                        (folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, path: Path, what: str) -> Iterator[None]:
        lock = FileLock(path, what, RegistryError)
        end = time.monotonic() + LONGEST_WAIT_S
        while not lock.take():
            if time.monotonic() >= end:
                raise RegistryConflictError(f"Another process holds the {what}; nothing was changed. Try again when it is done.")
            time.sleep(_WAIT_STEP_S)
        try:
            yield
        finally:
            lock.release()


def _checked(digest: str) -> str:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidValueError("digest", str(digest)[:80], "64 hex digits in small letters")
    return digest


def _check_record(record: Record, bundle: VerifiedBundle) -> None:
    manifest = bundle.manifest
    said = {"bundle": record.bundle, "version": record.version, "task": record.task, "simulated": record.simulated}
    true = {"bundle": bundle.digest, "version": manifest.version, "task": manifest.task.name, "simulated": manifest.simulated}
    if wrong := sorted(field for field in said if said[field] != true[field]):
        raise InvalidValueError(f"record ({', '.join(wrong)})", [said[field] for field in wrong], str([true[field] for field in wrong]))


def _digests_in(folder: Path) -> tuple[str, ...]:
    return tuple(found[1] for name in listed(folder) if (found := _NAMED_BY_DIGEST.fullmatch(name)))


def _signature_of(source: Path, bundle: VerifiedBundle) -> bytes | None:
    """Read the signature once more, which a verified bundle does not keep, and verify these bytes."""
    if bundle.signature.state is SignatureState.UNSIGNED:
        return None
    signature = read_file(source / SIGNATURE, MAX_SIGNATURE_BYTES, "The bundle's signature")
    verify_signature(bundle.manifest_bytes, signature, TrustStore(frozenset()))
    return signature


def _strange(folder: Path, known: Sequence[str]) -> Iterator[str]:
    for name in listed(folder):
        if name.startswith("."):  # a draft
            continue
        if not _DIGEST.fullmatch(name):
            yield f"The folder of {folder.name} holds what belongs to no bundle."
        elif name not in known:
            yield f"Adding bundle {name[:12]} was cut short, or its record was removed: {folder.name} holds it."


@contextlib.contextmanager
def _noted(problems: list[str], prefix: str = "") -> Iterator[None]:
    try:
        yield
    except ClinicalSerError as error:
        problems.append(f"{prefix}{error}")
