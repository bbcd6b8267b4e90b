"""The card that travels with a model: what it was trained on, how well it did on people it had not heard, and what it may be used for.

The one idea: three lists (HTI-1's source attributes, CHAI's model card, TRIPOD+AI's items) are filled from one evaluation and one set of answers.
What the run knows it says with figures, intervals and numbers of people; what only a person knows is missing until a person says it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.evaluation.card_facts import INTENDED_USE, TrainingFacts, statements
from clinical_ser.evaluation.card_fields import LISTS, Item, ListName, checked_answers, item_list, label_of
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.explanations import Rerecorded
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.retest import Retest
from clinical_ser.models.sample_size import warning_for
from clinical_ser.strict import Strict

STEADY_SHARE = 0.9
"""Of recordings that should be answered alike when only the recording differs a little; fewer, and the card warns."""
SIMULATED_STATEMENT = "Trained on SIMULATED speech, for demonstration only: its results mean nothing for a real person."


class Entry(Strict):
    """What the card says to one item of a list."""

    value: str | None
    source: Literal["run", "person", "run_and_person", "missing"]
    lacking: tuple[str, ...] = ()
    """Questions that a person still has to answer for it."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.value is None) != (self.source == "missing") or (self.value is not None and not self.value.strip()):
            raise ValueError("an entry has a text and says where it is from, or is missing")
        return self

    @property
    def complete(self) -> bool:
        """Whether nothing is left to supply."""
        return self.value is not None and not self.lacking


class Card(Strict):
    """`card.json`."""

    schema_id: Literal["clinical-ser/card/2"] = "clinical-ser/card/2"
    name: str
    version: str
    task: Task
    head: str
    intended_use: str
    statement: str
    internal: Evidence
    """Of the training cohort, out of fold; without curves, which stay in evidence.json."""
    external: tuple[Evidence, ...] = ()
    """Of other cohorts."""
    rerecorded: tuple[Rerecorded, ...] = ()
    """How explanations change when the same speech is recorded a little differently; empty where nobody measured it."""
    retest: Retest | None = None
    """How well features and score repeat while nothing changes; None where nobody measured it."""
    training: TrainingFacts
    supplied: dict[str, str]
    """What a person answered, by question."""
    hti1: dict[str, Entry]
    chai: dict[str, Entry]
    tripod: dict[str, Entry]

    @classmethod
    def from_json(cls, content: bytes) -> "Card":
        """Read `card.json`; BundleSchemaError if it does not follow this version's schema."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            raise BundleSchemaError("card.json does not follow this version's schema; train the model again.") from None

    def to_json(self) -> bytes:
        """Return the bytes of `card.json`."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @property
    def figures(self) -> dict[str, Figure]:
        """Of the out-of-fold evaluation."""
        return self.internal.figures

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the training run, of its evaluation, of the number of subjects, and of recordings made again; each once."""
        few = _too_few_subjects(self.training, self.internal)
        return tuple(dict.fromkeys((*self.training.warnings, *self.internal.warnings, *few, *_unsteady(self.rerecorded))))

    @property
    def missing(self) -> dict[ListName, tuple[str, ...]]:
        """Required items, list by list, that have no text or still want a person's answer."""
        return {name: tuple(item.key for item in item_list(name).item if item.required and not self._complete(name, item.key)) for name in LISTS}

    def entries(self, name: ListName) -> dict[str, Entry]:
        """Return the entries of one of the lists."""
        return {"hti1": self.hti1, "chai": self.chai, "tripod": self.tripod}[name]

    def _complete(self, name: ListName, key: str) -> bool:
        entry = self.entries(name).get(key)
        return entry is not None and entry.complete

    def extended(
        self,
        *,
        supplied: Mapping[str, object] | None = None,
        external: Iterable[Evidence] = (),
        rerecorded: Sequence[Rerecorded] = (),
        retest: Retest | None = None,
    ) -> "Card":
        """Return the card with further answers and measurements (new ones replace old ones) and evaluations in other cohorts, its lists filled anew.

        Raises
        ------
        InvalidValueError
            As in `make_card`.
        """
        known = list(self.external)
        for evidence in map(without_curves, external):
            if evidence not in known:
                known.append(evidence)
        return make_card(
            self.training,
            self.internal,
            name=self.name,
            version=self.version,
            statement=self.statement,
            supplied={**self.supplied, **(supplied or {})},
            external=known,
            rerecorded=rerecorded or self.rerecorded,
            retest=retest or self.retest,
        )


class CardCheck(Strict):
    """Whether a card lets its model out."""

    complete: bool
    missing: dict[ListName, tuple[str, ...]]
    """Items without a text, or with part of it only, list by list."""
    questions: tuple[str, ...]
    """What a person has to answer to fill them."""
    leaks: tuple[str, ...]
    """Leak guards that failed and were not accepted; shared subjects in another cohort cannot be."""
    accepted: tuple[str, ...] = ()
    """Leak guards that failed, or did not look, and were accepted."""


def make_card(
    facts: TrainingFacts,
    evidence: Evidence,
    *,
    name: str,
    version: str,
    statement: str = "",
    supplied: Mapping[str, object] | None = None,
    external: Sequence[Evidence] = (),
    rerecorded: Sequence[Rerecorded] = (),
    retest: Retest | None = None,
) -> Card:
    """Fill a card.

    Parameters
    ----------
    facts
        Of the training run.
    evidence
        Its out-of-fold evaluation.
    name, version, statement
        What the model is called, and what each of its results has to say of its origin (added for simulated speech).
    supplied
        What a person answered, as `read_about` reads it.
    external
        Evaluations of the same model in other cohorts.
    rerecorded
        How explanations change when recordings do.
    retest
        How well features and score repeat.

    Returns
    -------
    Card
        The same arguments give the same bytes of JSON.

    Raises
    ------
    InvalidValueError
        An answer is refused (`checked_answers`), or an evaluation is not of this model, or not of this kind.
    """
    _check_evidence(evidence, "out_of_fold", name, version, facts.task)
    for other in external:
        _check_evidence(other, "external", name, version, facts.task)
    answers = checked_answers(supplied or {})
    internal, others = without_curves(evidence), tuple(map(without_curves, external))
    statement = with_origin(statement, simulated=facts.simulated)
    say = statements(facts, internal, others, name=name, version=version, statement=statement)
    lists = {which: {item.key: _entry(item, say, answers) for item in item_list(which).item} for which in LISTS}
    return Card(
        name=name,
        version=version,
        task=facts.task,
        head=facts.head,
        intended_use=INTENDED_USE,
        statement=statement,
        internal=internal,
        external=others,
        rerecorded=tuple(rerecorded),
        retest=retest,
        training=facts,
        supplied=answers,
        **lists,
    )


def check_card(card: Card) -> CardCheck:
    """Say what keeps a model from being released: blank items, questions nobody answered, leak guards that failed."""
    missing = card.missing
    lacking = {key for name in LISTS for item in missing[name] if item in card.entries(name) for key in card.entries(name)[item].lacking}
    named = [("out of fold", card.internal), *((f"external cohort {i}", evidence) for i, evidence in enumerate(card.external, start=1))]
    leaks = [f"{where}: {name}" for where, evidence in named for name in _failed_leaks(evidence)]
    accepted = [f"{where}: {name}" for where, evidence in named for name in evidence.accepted_leaks if f"{where}: {name}" not in leaks]
    return CardCheck(
        complete=not any(missing.values()) and not leaks,
        missing=missing,
        questions=tuple(sorted(lacking)),
        leaks=tuple(leaks),
        accepted=tuple(accepted),
    )


def without_curves(evidence: Evidence) -> Evidence:
    """Return evidence without what is only drawn, about half of its size; it stays in evidence.json."""
    explanation = evidence.explanation and evidence.explanation.without_features()
    return evidence.model_copy(update={"binary": None, "classes": None, "explanation": explanation})


def _check_evidence(evidence: Evidence, origin: str, name: str, version: str, task: Task) -> None:
    if evidence.origin != origin:
        raise InvalidValueError("evidence", f"an evaluation that is {evidence.origin}", f"one that is {origin}")
    if (evidence.model.name, evidence.model.version) != (name, version):
        raise InvalidValueError("evidence", f"an evaluation of {evidence.model.name} {evidence.model.version}", f"one of {name} {version}")
    if (evidence.task.name, evidence.task.classes) != (task.name, task.classes):
        raise InvalidValueError("evidence", f"an evaluation of the task {evidence.task.name}", f"one of {task.name} with the model's classes")


def with_origin(statement: str, *, simulated: bool) -> str:
    """Return what every result of a model says of its origin: for simulated speech that it is simulated, once, and then the rest."""
    if simulated and not statement.startswith(SIMULATED_STATEMENT):
        return f"{SIMULATED_STATEMENT} {statement}".strip()
    return statement


def _too_few_subjects(facts: TrainingFacts, evidence: Evidence) -> tuple[str, ...]:
    auroc = evidence.figures.get("auroc")
    if auroc is None or auroc.value is None or auroc.value >= 1:
        return ()
    prevalence = list(facts.class_shares.values())[1]
    warning = warning_for(facts.subjects, sum(facts.features.values()), prevalence, auroc.value)
    return (warning,) if warning else ()


def _unsteady(rerecorded: Sequence[Rerecorded]) -> Iterable[str]:
    """Name the changes of a recording that a listener would not mind and the model does."""
    for one in rerecorded:
        share = one.same_status.value
        if share is not None and share < STEADY_SHARE:
            yield (
                f"The same speech {one.change} was answered differently in {1 - share:.0%} of recordings: record as the training cohort was, and "
                "read an explanation with that in mind."
            )


def _failed_leaks(evidence: Evidence) -> list[str]:
    """Name what failed, and the one guard that an evaluation in another cohort cannot do without: whether it was another one."""
    failed = [finding.name for finding in evidence.leaks if finding.verdict == "fail"]
    looked = any(finding.name == "shared_subjects" and finding.verdict != "not_checked" for finding in evidence.leaks)
    if evidence.origin == "external" and not looked:
        failed.append("shared_subjects")
    # Whom the model has heard is no other cohort, whoever accepts it.
    heard = evidence.origin == "external" and any(finding.name == "shared_subjects" and finding.verdict == "fail" for finding in evidence.leaks)
    return [name for name in failed if name not in evidence.accepted_leaks or (heard and name == "shared_subjects")]


def _entry(item: Item, say: Callable[[str], str | None], answers: Mapping[str, str]) -> Entry:
    run = [text for name in item.run if (text := say(name))]
    asked = item.otherwise if item.run and not run and item.otherwise else item.person
    given = [key for key in (*asked, *item.optional) if key in answers]
    person = [f"{label_of(key)}: {answers[key]}" for key in given] if len(given) > 1 else [answers[key] for key in given]
    if not run and not person:
        return Entry(value=None, source="missing", lacking=asked)
    return Entry(
        value="\n\n".join([*run, *person]),
        source="run_and_person" if run and person else "run" if run else "person",
        lacking=tuple(key for key in asked if key not in answers),
    )
