"""A person is taken out of the models that learned from them: which those are, what replaces them, what is left to do.

The one idea: a bundle knows whom it learned from by keyed tags, its ancestors' people included. A replacement is a candidate like any other: the old
model answers until the plan lets the new one, and the result of this says so.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from threadpoolctl import threadpool_limits

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.unlearning import Contributions, Since, forget, model_of
from clinical_ser.control.learning import CONTRIBUTIONS, MEMORY, listed, members_in, memory_in, options_of
from clinical_ser.control.promotion import MEMBERS
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.card import Card, with_origin
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.bundle import ManifestFields, read_bundle, write_bundle
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import train
from clinical_ser.registry import Record, Registry
from clinical_ser.strict import Strict

_FORGOT = re.compile(r"\+forgot(\d+)$")
How = Literal["subtracted", "retrained", "waiting", "to_do"]


class Saw(Strict):
    """A bundle that learned from the person, itself or through an ancestor."""

    bundle: str
    name: str
    version: str
    answers_as: tuple[str, ...]
    """Roles, as `name@champion`."""


class Replaced(Strict):
    """What was done about a champion that saw the person."""

    name: str
    champion: str
    how: How
    """`subtracted` from its sums, `retrained` on the table without the person, `waiting`: one that did not know the person is the challenger already,
    or `to_do`: nothing of any of these is here."""
    candidate: str | None
    calibration_too: bool
    """Whether calibration was freed of the person: not after a recalibration, whose two numbers are all that is left of it."""
    why: str | None = None


class Unlearned(Strict):
    """What `registry forget` came to."""

    saw: tuple[Saw, ...]
    replaced: tuple[Replaced, ...]

    @property
    def done(self) -> bool:
        """Whether every champion that saw the person has a candidate to replace it."""
        return all(each.how != "to_do" for each in self.replaced)


def forget_subject(
    registry: Registry,
    subject: str,
    *,
    recorder: Recorder,
    reason: str,
    key: SigningKey | None,
    table: FeatureTable | None = None,
) -> Unlearned:
    """Say which bundles learned from a person, make candidates that did not, and destroy what was kept of the person.

    Parameters
    ----------
    registry
        Whose bundles.
    subject
        As the tables name them; it is turned into a tag and goes nowhere else but, sealed, into the audit log.
    recorder, reason
        Where it is recorded, and why it is done.
    key
        Signs the candidates.
    table
        What the champion was trained on, for models whose sums were not kept by person; the person's rows in it are not looked at.

    Raises
    ------
    InvalidValueError
        The subject is empty.
    """
    if not subject.strip():
        raise InvalidValueError("SUBJECT", "none", "the person, as your tables name them")
    tag = registry.tag(subject)
    saw = _saw(registry, tag)
    known = {each.bundle for each in saw}
    names = [name for name in registry.names() if registry.pointers(name).champion in known]
    replaced = tuple(_Forgetter(registry, name, tag, subject, recorder, reason, key, table).replace() for name in names)
    for digest in known:
        _drop(registry, digest, tag)
    purge(registry, sorted(known))
    if saw:
        recorder.record(
            Configuration(actor=recorder.actor, setting="models: a person forgotten", old=None, new=", ".join(sorted(d[:12] for d in known))[:500]),
            subject=subject,
            purpose=Purpose.COMPLIANCE,
        )
    return Unlearned(saw=saw, replaced=replaced)


def _saw(registry: Registry, tag: str) -> tuple[Saw, ...]:
    roles: dict[str, list[str]] = {}
    for name in registry.names():
        for role, digest in registry.pointers(name).held.items():
            roles.setdefault(digest, []).append(f"{name}@{role}")
    found = [record for record in registry.records() if tag in members_in(registry, record.bundle)]
    return tuple(
        Saw(bundle=record.bundle, name=record.name, version=record.version, answers_as=tuple(roles.get(record.bundle, ()))) for record in found
    )


def _drop(registry: Registry, digest: str, tag: str) -> None:
    """Destroy what a person added, where it was kept."""
    content = registry.private(digest, CONTRIBUTIONS)
    if content is None:
        return
    kept = Contributions.from_bytes(content)
    if tag in kept.tags:
        registry.keep_private(digest, CONTRIBUTIONS, kept.without(tag).to_bytes())


@dataclass(frozen=True, eq=False)
class _Line:
    """How a champion came to know a person."""

    first: TrainedModel
    first_memory: Memory
    gone: Contributions
    since: tuple[Since, ...]


@dataclass(frozen=True, eq=False)
class _Forgetter:
    """One champion, and the person that it is to forget."""

    registry: Registry
    name: str
    tag: str
    subject: str
    recorder: Recorder
    reason: str
    key: SigningKey | None
    table: FeatureTable | None

    def replace(self) -> Replaced:
        """Make a candidate, by subtraction where that can be done, else by training again, else not."""
        champion = self.registry.pointers(self.name).champion
        assert champion is not None
        if (waiting := self._waiting(champion)) is not None:
            return Replaced(name=self.name, champion=champion, how="waiting", candidate=waiting, calibration_too=True)
        line = self._line(champion)
        memory = memory_in(self.registry, champion)
        if line is not None and memory is not None:
            return self._subtracted(champion, memory, line)
        if self.table is not None:
            return self._retrained(champion, self.table)
        why = "What this person added was not kept, and no table to train on again was given (--table)."
        return Replaced(name=self.name, champion=champion, how="to_do", candidate=None, calibration_too=False, why=why)

    def _waiting(self, champion: str) -> str | None:
        """Return the challenger, if it forgot the person already."""
        challenger = self.registry.pointers(self.name).challenger
        if challenger is None:
            return None
        record, members = self.registry.record(challenger), members_in(self.registry, challenger)
        return challenger if record.change == "unlearned" and record.parent == champion and members and self.tag not in members else None

    def _line(self, champion: str) -> _Line | None:
        """Walk back to the step that heard the person; None where it, or a step since, is not here any more."""
        since: list[Since] = []
        digest: str | None = champion
        while digest is not None and digest in self.registry.digests():
            record = self.registry.record(digest)
            model = TrainedModel.from_bundle(self.registry.bundle(digest))
            content, memory = self.registry.private(digest, CONTRIBUTIONS), memory_in(self.registry, digest)
            gone = Contributions.from_bytes(content).of_person(self.tag) if content is not None else None
            if gone is not None and memory is not None:
                return _Line(model, memory, gone, tuple(reversed(since)))
            if record.change not in {"updated", "recalibrated", "unlearned"}:
                return None
            forgetting = float(record.details.get("forgetting", 1.0))
            since.append(Since(forgetting, model, heads_learned=record.change != "recalibrated"))
            digest = record.parent
        return None

    def _subtracted(self, champion: str, memory: Memory, line: _Line) -> Replaced:
        parent = self.registry.bundle(champion)
        with threadpool_limits(limits=1):
            left = forget(memory, line.first, line.first_memory, line.gone, line.since)
            model = model_of(TrainedModel.from_bundle(parent), left)
        version, card = _next_version(parent.manifest.version), Card.from_json(parent.files["card.json"])
        said = with_origin(
            f"Model {champion[:12]} without one person, whose part was taken out; its figures are of before.", simulated=parent.manifest.simulated
        )
        card = card.model_copy(update={"version": version, "statement": said})
        fields = ManifestFields(
            **{name: getattr(parent.manifest, name) for name in ManifestFields.model_fields}
            | {"version": version, "statement": said, "operating_point": model.operating_point}
        )
        candidate = self._added(champion, fields, model.to_files() | {"card.json": card.to_json()}, left, {"method": "subtracted"})
        calibrated = all(step.heads_learned for step in line.since)
        return Replaced(name=self.name, champion=champion, how="subtracted", candidate=candidate, calibration_too=calibrated)

    def _retrained(self, champion: str, table: FeatureTable) -> Replaced:
        parent = self.registry.bundle(champion)
        card = Card.from_json(parent.files["card.json"])
        others = replace(table, frame=table.frame[table.subjects != self.subject].reset_index(drop=True))
        try:
            training = train(others, parent.manifest.task, options_of(parent, card))
        except TrainingError as error:
            return Replaced(name=self.name, champion=champion, how="to_do", candidate=None, calibration_too=False, why=str(error))
        version = _next_version(parent.manifest.version)
        training = replace(training, simulated=training.simulated or parent.manifest.simulated)
        said = f"Trained again, in place of model {champion[:12]}, without one person."
        made, _ = card_of(training, others, name=parent.manifest.name, version=version, statement=said)
        model = training.model
        fields = ManifestFields(
            **{name: getattr(parent.manifest, name) for name in ManifestFields.model_fields}
            | {
                "version": version,
                "statement": made.statement,
                "operating_point": model.operating_point,
                "features": model.features,
                "extractors": model.extractors,
                "cohort_digest": training.cohort_digest,
                "simulated": training.simulated,
            }
        )
        candidate = self._added(champion, fields, model.to_files() | {"card.json": made.to_json()}, None, {"method": "retrained"})
        return Replaced(name=self.name, champion=champion, how="retrained", candidate=candidate, calibration_too=True)

    def _added(
        self, champion: str, fields: ManifestFields, files: dict[str, bytes], memory: Memory | None, details: dict[str, float | int | str | bool]
    ) -> str:
        registry = self.registry
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bundle"
            digest = write_bundle(folder, fields, files, self.key)
            private = {MEMBERS: listed(members_in(registry, champion) - {self.tag})}
            if memory is not None:
                private[MEMORY] = memory.of(digest).to_bytes()
            name = registry.record(champion).name
            record = Record.of(read_bundle(folder), change="unlearned", name=name, parent=champion, details=details, because="erasure")
            registry.add(folder, record, private=private)
        head, before = registry.head(self.name), registry.pointers(self.name)
        registry.switch(
            self.name,
            expected=head.digest if head else None,
            action="forgotten",
            # Whatever waited to replace the champion came from it, and knows the person too.
            pointers=before.model_copy(update={"challenger": digest, "shadow": None}),
            bundle=digest,
            actor=self.recorder.actor.id,
            reason=self.reason,
        )
        return digest


def _next_version(version: str) -> str:
    match = _FORGOT.search(version)
    return f"{version[: match.start()]}+forgot{int(match[1]) + 1}" if match else f"{version}+forgot1"


def purge(registry: Registry, digests: Sequence[str]) -> None:
    """Destroy the memories of bundles that hold no role any more."""
    held = {digest for name in registry.names() for digest in registry.pointers(name).held.values()}
    for digest in set(digests) - held:
        for private in (MEMORY, CONTRIBUTIONS):
            if registry.private(digest, private) is not None:
                registry.drop_private(digest, private)
