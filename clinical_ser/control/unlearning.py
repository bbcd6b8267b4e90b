"""People are taken out of the models that learned from them: which those are, what replaces them, what is left to do.

The one idea: whoever is to be forgotten is on a list that nothing may learn from again, and a candidate forgets everybody on it at once. The old
model answers until the plan lets the candidate through; what the people added is destroyed when no champion knows them any more, and not before, or
a second try would have nothing to subtract.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.events import Configuration, Outcome, Purpose
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.unlearning import Contributions, Since, forget, model_of
from clinical_ser.control.learning import CONTRIBUTIONS, MEMORY, Heard, memory_in, options_of, tags_of
from clinical_ser.control.promotion import MEMBERS
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.card import Card, with_origin
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.bundle import ManifestFields, VerifiedBundle, read_bundle, write_bundle
from clinical_ser.models.rows import select_rows
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import cohort_digest, train
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
    cannot_say: tuple[str, ...]
    """Digests of bundles whose list of people is not whole: they may have learned from the person too."""
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
    """Say which bundles learned from a person, and make candidates that did not; nothing learns from the person again.

    Recorded first, with what was found, so that a request has its evidence also where nobody knew the person.

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
        What the champion was trained on, for models whose sums were not kept by person. Rows of people who are to be forgotten are not looked at, and
        all others have to be those whom the champion knows.

    Raises
    ------
    InvalidValueError
        Subject or reason is empty, or the table is not the champion's.
    AuditError
        It cannot be recorded; nothing was changed.
    """
    if not subject.strip():
        raise InvalidValueError("SUBJECT", "none", "the person, as your tables name them")
    if not reason.strip():
        raise InvalidValueError("--reason", "none", "why, in words")
    tag = registry.tag(subject)
    saw, cannot_say = _saw(registry, tag)
    found = ", ".join(sorted(each.bundle[:12] for each in saw)) or "no bundle is known to have learned from this person"
    payload = Configuration(actor=recorder.actor, setting="models: a person to be forgotten", old=reason[:2000], new=found[:2000])
    recorder.record(payload, subject=subject, purpose=Purpose.COMPLIANCE, outcome=Outcome.SUCCESS)
    registry.mark_forgotten(tag)
    replaced = tuple(_Forgetter(registry, name, recorder, reason, key, table).replace() for name in _names_that_know(registry, {tag}))
    destroy_what_is_left(registry)
    return Unlearned(saw=saw, cannot_say=cannot_say, replaced=replaced)


def destroy_what_is_left(registry: Registry) -> None:
    """Destroy what forgotten people added, as far as no champion knows them any more, and memories of bundles without a role that do.

    Called when somebody is forgotten, and after every switch.
    """
    forgotten = registry.forgotten()
    if not forgotten:
        return
    held = {digest for name in registry.names() for digest in registry.pointers(name).held.values()}
    champions = [champion for name in registry.names() if (champion := registry.pointers(name).champion) is not None]
    known_still = {tag for champion in champions for tag in Heard.by(registry, champion).tags}
    for digest in registry.private_digests():
        kept = _contributions(registry, digest)
        if kept is not None and (gone := (forgotten - known_still) & set(kept.tags)):
            registry.keep_private(digest, CONTRIBUTIONS, kept.without(gone).to_bytes())
        if digest not in held and Heard.by(registry, digest).tags & forgotten and registry.private(digest, MEMORY) is not None:
            registry.drop_private(digest, MEMORY)


def knows_forgotten(registry: Registry, digest: str) -> int:
    """Return how many people a bundle learned from who were forgotten since."""
    return len(Heard.by(registry, digest).tags & registry.forgotten())


def _names_that_know(registry: Registry, tags: set[str]) -> list[str]:
    champions = {name: registry.pointers(name).champion for name in registry.names()}
    return [name for name, champion in champions.items() if champion is not None and Heard.by(registry, champion).tags & tags]


def _saw(registry: Registry, tag: str) -> tuple[tuple[Saw, ...], tuple[str, ...]]:
    roles: dict[str, list[str]] = {}
    for name in registry.names():
        for role, digest in registry.pointers(name).held.items():
            roles.setdefault(digest, []).append(f"{name}@{role}")
    found, unsure = [], []
    for record in registry.records():
        heard = Heard.by(registry, record.bundle)
        if tag in heard.tags:
            answers_as = tuple(roles.get(record.bundle, ()))
            found.append(Saw(bundle=record.bundle, name=record.name, version=record.version, answers_as=answers_as))
        elif not heard.complete:
            unsure.append(record.bundle)
    return tuple(found), tuple(unsure)


def _contributions(registry: Registry, digest: str) -> Contributions | None:
    content = registry.private(digest, CONTRIBUTIONS)
    return None if content is None else Contributions.from_bytes(content)


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of the champion's line that heard people who are to be forgotten."""

    first: TrainedModel
    gone: Contributions
    since: tuple[Since, ...]


@dataclass(frozen=True, eq=False)
class _Forgetter:
    """One champion, and everybody whom it is to forget."""

    registry: Registry
    name: str
    recorder: Recorder
    reason: str
    key: SigningKey | None
    table: FeatureTable | None

    def replace(self) -> Replaced:
        """Make a candidate, by subtraction where that can be done, else by training again, else not."""
        champion = self.registry.pointers(self.name).champion
        assert champion is not None
        gone = Heard.by(self.registry, champion).tags & self.registry.forgotten()
        if (waiting := self._waiting(champion)) is not None:
            return Replaced(name=self.name, champion=champion, how="waiting", candidate=waiting, calibration_too=True)
        memory, steps = memory_in(self.registry, champion), self._steps(champion, gone)
        if memory is not None and steps is not None:
            return self._subtracted(champion, memory, steps, gone)
        if self.table is not None:
            return self._retrained(champion, self.table)
        why = "What this person added was not kept, and no table to train on again was given (--table)."
        return Replaced(name=self.name, champion=champion, how="to_do", candidate=None, calibration_too=False, why=why)

    def _waiting(self, champion: str) -> str | None:
        """Return the challenger, if it knows nobody who is to be forgotten."""
        challenger = self.registry.pointers(self.name).challenger
        if challenger is None:
            return None
        record, heard = self.registry.record(challenger), Heard.by(self.registry, challenger)
        fits = record.change == "unlearned" and record.parent == champion and heard.complete and not heard.tags & self.registry.forgotten()
        return challenger if fits else None

    def _steps(self, champion: str, gone: frozenset[str]) -> tuple[_Step, ...] | None:
        """Walk back to the steps that heard these people; None where one of them, or a step since, is not here any more."""
        since: list[Since] = []
        found: list[_Step] = []
        wanted, digest = set(gone), champion
        while wanted:
            if digest not in self.registry.digests():
                return None
            record, model = self.registry.record(digest), TrainedModel.from_bundle(self.registry.bundle(digest))
            kept = _contributions(self.registry, digest)
            here = None if kept is None else kept.of_people(wanted)
            if here is not None:
                found.append(_Step(model, here, tuple(reversed(since))))
                wanted -= set(here.tags)
            goes_on = record.change in {"updated", "recalibrated"} or record.details.get("method") == "subtracted"
            if wanted and (record.parent is None or not goes_on):
                return None
            since.append(Since(float(record.details.get("forgetting", 1.0)), model, heads_learned=record.change != "recalibrated"))
            digest = record.parent or ""
        return tuple(found)

    def _subtracted(self, champion: str, memory: Memory, steps: tuple[_Step, ...], gone: frozenset[str]) -> Replaced:
        parent = self.registry.bundle(champion)
        with threadpool_limits(limits=1):
            left = memory
            for step in steps:
                left = forget(left, step.first, step.gone, step.since)
            model, left = model_of(TrainedModel.from_bundle(parent), left, secret=self.registry.secret(f"forget {champion} {sorted(gone)}"))
        people = "one person, whose part was" if len(gone) == 1 else f"{len(gone)} people, whose parts were"
        said = f"Model {champion[:12]} without {people} taken out; its figures are of before."
        card = Card.from_json(parent.files["card.json"]).model_copy(update={"version": _next_version(parent), "statement": _origin(said, parent)})
        files = model.to_files() | {"card.json": card.to_json()}
        details: dict[str, float | int | str | bool] = {"method": "subtracted", "people": len(gone)}
        candidate = self._added(parent, {"statement": card.statement, "operating_point": model.operating_point}, files, left, details)
        calibrated = all(one.heads_learned for step in steps for one in step.since)
        return Replaced(name=self.name, champion=champion, how="subtracted", candidate=candidate, calibration_too=calibrated)

    def _retrained(self, champion: str, table: FeatureTable) -> Replaced:
        parent, registry = self.registry.bundle(champion), self.registry
        card = Card.from_json(parent.files["card.json"])
        forgotten = registry.forgotten()
        others = np.array([registry.tag(subject) not in forgotten for subject in table.subjects.tolist()])
        kept = replace(table, frame=table.frame[others].reset_index(drop=True))
        self._check_table(parent, champion, table, kept)
        try:
            training = train(kept, parent.manifest.task, options_of(parent, card))
        except TrainingError as error:
            return Replaced(name=self.name, champion=champion, how="to_do", candidate=None, calibration_too=False, why=str(error))
        training = replace(training, simulated=training.simulated or parent.manifest.simulated)
        said = f"Trained again, in place of model {champion[:12]}, without people who asked for it."
        made, _ = card_of(training, kept, name=parent.manifest.name, version=_next_version(parent), statement=said)
        model = training.model
        fields: dict[str, Any] = {
            "statement": made.statement,
            "operating_point": model.operating_point,
            "features": model.features,
            "extractors": model.extractors,
            "cohort_digest": training.cohort_digest,
            "simulated": training.simulated,
        }
        flow = made.internal.flow.subjects_by_class
        details: dict[str, float | int | str | bool] = {"method": "retrained", "people": len(np.unique(table.subjects[~others]))}
        candidate = self._added(parent, fields, model.to_files() | {"card.json": made.to_json()}, None, details, subjects=dict(flow), rows=kept)
        return Replaced(name=self.name, champion=champion, how="retrained", candidate=candidate, calibration_too=True)

    def _check_table(self, parent: VerifiedBundle, champion: str, table: FeatureTable, kept: FeatureTable) -> None:
        """Make sure that a table is the champion's: a retraining on anything else is another change, which the plan calls so."""
        heard = Heard.by(self.registry, champion)
        usable = select_rows(kept, parent.manifest.task, (), use_baseline=parent.manifest.uses_baseline, used_as="learned from").rows
        if heard.complete:
            alike = tags_of(self.registry, usable) == heard.tags - self.registry.forgotten()
        else:
            rows = select_rows(table, parent.manifest.task, (), use_baseline=parent.manifest.uses_baseline, used_as="learned from").rows
            alike = cohort_digest(rows.frame["recording"], rows.target) == parent.manifest.cohort_digest
        if not alike:
            raise InvalidValueError("--table", "a table of other people than the champion learned from", "the very table that it was trained on")

    def _added(
        self,
        parent: VerifiedBundle,
        changed: Mapping[str, Any],
        files: Mapping[str, bytes],
        memory: Memory | None,
        details: dict[str, float | int | str | bool],
        *,
        subjects: dict[str, int] | None = None,
        rows: FeatureTable | None = None,
    ) -> str:
        """Write the candidate, add it with what is private, and make it the challenger: recorded first, then switched."""
        registry, champion = self.registry, parent.digest
        fields = ManifestFields(
            **{name: getattr(parent.manifest, name) for name in ManifestFields.model_fields} | {"version": _next_version(parent), **changed}
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bundle"
            digest = write_bundle(folder, fields, files, self.key)
            heard = Heard.by(registry, champion).without(registry.forgotten())
            if rows is not None:
                heard = Heard(frozenset(map(registry.tag, np.unique(rows.subjects).tolist())), complete=True)
            private = {MEMBERS: heard.to_bytes()}
            if memory is not None:
                private[MEMORY] = memory.of(digest).to_bytes()
            record = Record.of(
                read_bundle(folder),
                change="unlearned",
                name=registry.record(champion).name,
                parent=champion,
                details=details,
                because="erasure",
                subjects=subjects,
                recordings=0 if rows is None else len(rows.frame),
            )
            registry.add(folder, record, private=private)
        head, before = registry.head(self.name), registry.pointers(self.name)
        payload = Configuration(actor=self.recorder.actor, setting=f"model {self.name}: challenger", old=before.challenger, new=digest)
        self.recorder.record(payload, purpose=Purpose.OPERATIONS, model=digest)
        registry.switch(
            self.name,
            expected=head.digest if head else None,
            action="forgotten",
            # Whatever waited to replace the champion came from it, and knows them too.
            pointers=before.model_copy(update={"challenger": digest, "shadow": None}),
            bundle=digest,
            actor=self.recorder.actor.id,
            reason=self.reason[:2000],
        )
        return digest


def _origin(said: str, parent: VerifiedBundle) -> str:
    return with_origin(said, simulated=parent.manifest.simulated)


def _next_version(parent: VerifiedBundle) -> str:
    version = parent.manifest.version
    match = _FORGOT.search(version)
    return f"{version[: match.start()]}+forgot{int(match[1]) + 1}" if match else f"{version}+forgot1"
