"""What a card has to say: the items of three lists, and the questions that only a person can answer.

The one idea: a person answers each question once, under a plain key; the lists say which of their items an answer fills, and what the run fills.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clinical_ser.errors import InvalidValueError
from clinical_ser.strict import Strict

ListName = Literal["hti1", "chai", "tripod"]
LISTS: tuple[ListName, ...] = ("hti1", "chai", "tripod")

MAX_FILE_BYTES = 256 * 1024
MAX_TEXT = 4000
"""Characters of one answer; ours: some six hundred words, above which a card should cite a document."""
MIN_REASON = 10
"""Letters and digits behind `unknown:` and `not applicable:`; ours: enough for three words."""

_Name = Annotated[str, Field(min_length=1, max_length=80)]
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")
"""What stands around the words of an answer and says nothing: N/A with or without a full stop is N/A."""
_NO_ANSWER = re.compile(r"(?P<word>unknown|not applicable)\s*(?:[^\w\s](?P<reason>.*))?", re.IGNORECASE | re.DOTALL)
_PLACEHOLDERS = frozenset(
    {"n/a", "na", "n.a", "none", "null", "nil", "tbd", "tba", "tbc", "todo", "to do", "to be determined", "to be done", "pending", "fixme", "xxx"}
)
_WANTED = "what is so, or 'unknown: REASON' or 'not applicable: REASON'"


class Item(Strict):
    """One item of a list, and where its text comes from.

    It takes what the run says and what a person answers to all of `person`. Where the run has nothing to say, `otherwise` is asked instead.
    """

    key: _Name
    title: str
    section: str
    run: tuple[_Name, ...] = ()
    """Statements of the run, in this order."""
    person: tuple[_Name, ...] = ()
    otherwise: tuple[_Name, ...] = ()
    optional: tuple[_Name, ...] = ()
    """Answers that are added where they are given."""
    required: bool = True
    """False: the list itself leaves the item open."""

    @property
    def questions(self) -> tuple[str, ...]:
        """Keys of every question that may fill the item."""
        return (*self.person, *self.otherwise, *self.optional)


class ItemList(Strict):
    """One of the lists."""

    title: str
    source: str
    sections: tuple[str, ...]
    item: tuple[Item, ...]


@dataclass(frozen=True)
class Question:
    """What a person has to supply."""

    key: str
    label: str
    wanted: str


QUESTIONS = (
    Question("abstract", "Abstract", "Structured abstract of the study, as TRIPOD+AI for Abstracts asks."),
    Question("developer", "Developer", "Organisation or person who made the model."),
    Question("contact", "Contact", "Where questions and reports of harm go: an address that is read."),
    Question("funding", "Funding", "Who paid for the development, and what part they had in it."),
    Question("conflicts", "Conflicts of interest", "Of everyone who made or evaluated the model."),
    Question("rationale", "Rationale", "Healthcare context, diagnostic or prognostic, why a model, and what models there are (with references)."),
    Question("care_pathway", "Care pathway", "Where in care the model is asked, by whom, and what follows from each answer."),
    Question("population", "Intended population", "For whom it is meant: ages, languages, settings, reason for being asked."),
    Question("users", "Users", "Who uses it, what they have to know, and what they do with recordings and results."),
    Question("out_of_scope", "Out of scope", "People, tasks and situations that it must not be used for."),
    Question("risks", "Risks and limitations", "Known risks and limitations: what goes wrong for a person who is flagged, or missed, wrongly."),
    Question("risk_level", "Clinical risk level", "Level of clinical risk, and by which scheme it was judged."),
    Question(
        "inequalities", "Inequalities", "Known health inequalities, biases and ethical concerns: who is ill more often, or found less often, and why."
    ),
    Question(
        "data_source",
        "Source of data",
        "Where the training data come from (trial, cohort, routine care, corpus), why these, and what they stand for.",
    ),
    Question("data_dates", "Dates", "First and last day of collection."),
    Question("setting", "Setting", "Kind of care or place, number of centres and where they are."),
    Question("eligibility", "Eligibility", "Who could take part, and who could not."),
    Question(
        "demographics", "Demographics", "What the cohort's columns do not hold: race, ethnicity, gender identity, social circumstances, health."
    ),
    Question("relevance", "Relevance", "How the training data compare with the place where the model will be used."),
    Question(
        "recording_procedure", "Recording procedure", "What people were asked to say, on what device, where, and whether anyone knew the outcome."
    ),
    Question("treatments", "Treatments", "Treatments that people received, and how they were dealt with."),
    Question("outcome", "Outcome", "How and when the label was assessed, over what time, why this outcome, and whether alike in all groups."),
    Question(
        "outcome_assessors",
        "Outcome assessors",
        "Who judged the label, with what qualification and background; for a questionnaire, that people did.",
    ),
    Question("blinding", "Blinding", "Whether the label was assessed without knowledge of the recordings."),
    Question(
        "predictor_choice", "Choice of features", "Why these features, and whether any was chosen or left out beforehand, by what and in which data."
    ),
    Question("sample_size", "Sample size", "How the size of the study was arrived at."),
    Question("fairness", "Fairness", "What you did so that the output is fair: whom you recruited, how you labelled, what you changed for a group."),
    Question("performance_goal", "Goal for performance", "Only for several classes: what level you had set as enough, and when."),
    Question(
        "reliability_goal", "Goal for safety and reliability", "What you had set as enough (calibration, answers withheld, refusals), and when."
    ),
    Question("fairness_goal", "Goal for fairness", "What difference between groups you had set as acceptable, and when."),
    Question("fairness_unexamined", "Fairness not examined", "Only if the cohort names no groups: why not, and what is planned."),
    Question("interpretation", "Interpretation", "What the figures mean for the intended use, fairness included, beside earlier studies."),
    Question("next_steps", "Next steps", "What has to be studied next before wider use."),
    Question("external_validation", "External validation", "Only if the card holds no evaluation in another cohort: why not, and what is planned."),
    Question(
        "external_setting", "External setting", "Of the other cohorts, if any: source, setting, people, and how these differ from the training data."
    ),
    Question("external_tester", "External tester", "Who ran the evaluation in the other cohorts; not applicable, with the reason, if there is none."),
    Question("updating", "Changes after evaluation", "Whether an evaluation led to a changed model (recalibration, ...), how, and what came of it."),
    Question("outcome_evaluation", "Effect on outcomes", "References to studies of what using the model did for people's health."),
    Question("local_evaluation", "Local evaluation", "Validity and fairness in data of the place of use."),
    Question("monitoring", "Monitoring", "How, and how often, validity and fairness are watched after release, and by whom."),
    Question("update_process", "Updates", "How, and how often, the model is updated."),
    Question("correction_process", "Corrections", "How soon performance is put right once a risk to validity or fairness is found."),
    Question("ethics_approval", "Ethical approval", "Committee and number, or its waiver."),
    Question("consent", "Consent", "How the people in the data agreed, to the study and to this use of their voice."),
    Question("patient_notice", "Notice to patients", "How the people screened are told of the model and asked."),
    Question("protocol", "Protocol", "Where it can be read, or that there was none."),
    Question("registration", "Registration", "Register and number, or that the study was not registered."),
    Question("data_sharing", "Data sharing", "Who can get the data, and how."),
    Question("code_sharing", "Code sharing", "Where code of your own can be found; the package's is known."),
    Question("public_involvement", "Public involvement", "What part patients, the public and other stakeholders had, or that they had none."),
    Question("release_stage", "Release stage", "Research, pilot, general availability, ..."),
    Question("release_date", "Release date", "Day of release."),
    Question("availability", "Availability", "Where it can be had, on what terms, and in which countries and languages it may be used."),
    Question("ehr_compatibility", "Record systems", "Record systems that it works with."),
    Question("regulatory_approval", "Regulatory approval", "Clearances and certificates, with numbers."),
    Question(
        "third_parties", "Third parties", "Who else has a part where it runs (hosting, storage, support), and which recordings or results they get."
    ),
    Question("security", "Security", "Certificates and measures of the place that runs it."),
    Question("publications", "Publications", "Peer-reviewed papers about this model."),
    Question("clinical_trial", "Clinical trial", "Register number of a trial of the model."),
    Question("reimbursement", "Reimbursement", "Whether its use is paid for, and by whom."),
)
KEYS = tuple(question.key for question in QUESTIONS)
_LABELS = {question.key: question.label for question in QUESTIONS}


@cache
def item_list(name: ListName) -> ItemList:
    """Return one of the lists as this version ships it.

    Examples
    --------
    >>> [len(item_list(name).item) for name in ("hti1", "tripod")]
    [31, 52]
    """
    raw = (files("clinical_ser.evaluation") / "fields" / f"{name}.toml").read_text(encoding="utf-8")
    return ItemList.model_validate(tomllib.loads(raw))


def label_of(key: str) -> str:
    """Return how a question is called for a reader; a key that this version does not know, in another version's card, as it is."""
    return _LABELS.get(key, key)


def read_about(path: Path) -> dict[str, str]:
    """Read what a person says about a model: a TOML file with the keys of `about_template`.

    Parameters
    ----------
    path
        The file, of at most `MAX_FILE_BYTES`.

    Returns
    -------
    dict
        Answers by key. A key with an empty text, as the template has them, is left out, and so is missing on the card.

    Raises
    ------
    InvalidValueError
        The file is not there, is not TOML, or is too large, or `checked_answers` refuses one.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        raise InvalidValueError("--about", "a file that cannot be read", "a .toml file that is there") from None
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidValueError("--about", "a file that is too large", f"at most {MAX_FILE_BYTES:,} bytes")
    try:
        given = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):  # no UTF-8, no TOML, a number of thousands of digits, arrays nested without end
        raise InvalidValueError("--about", "a file that is not TOML", "what `clinical-ser model card --template` prints, filled in") from None
    return checked_answers(given)


def checked_answers(given: Mapping[str, object]) -> dict[str, str]:
    """Return answers in the order of the questions, stripped, with plain spaces for those of any other width, without empty ones.

    Raises
    ------
    InvalidValueError
        A key is none of the questions', or an answer is no text, is too long, has control characters, stands in for an answer ("N/A", "TBD"),
        or is `unknown` or `not applicable` without a reason of at least `MIN_REASON` letters and digits. No answer is quoted.

    Examples
    --------
    >>> checked_answers({"funding": "unknown: the sponsor's file was not kept", "contact": ""})
    {'funding': "unknown: the sponsor's file was not kept"}
    """
    if unknown := sorted(set(given) - set(KEYS)):
        near = sorted({match for key in unknown for match in get_close_matches(key, KEYS, n=2)})
        shown = [key if re.fullmatch(r"\w{1,40}", key) else "a key with other characters" for key in unknown]
        raise InvalidValueError("a key of --about", ", ".join(shown), near or "the keys that `clinical-ser model card --template` prints")
    answers = {key: _answer(key, given[key]) for key in KEYS if key in given}
    return {key: text for key, text in answers.items() if text}


def about_template() -> str:
    """Return a TOML file with every question, what is wanted, and which items an answer fills."""
    head = (
        "# What only a person knows about a model. Fill in, and give the file to clinical-ser as --about FILE.\n"
        f"# An empty text counts as missing. Where there is no answer: {_WANTED.partition(', or ')[2]}.\n"
        '# Several lines go between three quotation marks: key = """..."""\n'
    )
    return head + "".join(f'\n# {question.wanted}\n# Fills {_filled_by(question.key)}\n{question.key} = ""\n' for question in QUESTIONS)


def _filled_by(key: str) -> str:
    filled = {name: [item.key for item in item_list(name).item if key in item.questions] for name in LISTS}
    return "; ".join(f"{name}: {', '.join(keys)}" for name, keys in filled.items() if keys)


def _answer(key: str, given: object) -> str:
    if not isinstance(given, str):
        raise InvalidValueError(f"{key} of --about", type(given).__name__, "a text in quotation marks")
    text = "".join(" " if unicodedata.category(c) == "Zs" else c for c in given).strip()
    if faults := list(_faults(text)):
        raise InvalidValueError(f"{key} of --about", faults[0], _WANTED)
    return text


def _faults(text: str) -> Iterator[str]:
    if len(text) > MAX_TEXT:
        yield f"a text of {len(text):,} characters, more than {MAX_TEXT:,}"
    if not all(c.isprintable() or c in "\n\t" for c in text.replace("\r\n", "\n")):
        yield "a text with characters that do not print"
    words = " ".join(_AROUND.sub("", text).split())
    if text and (not words or words.lower() in _PLACEHOLDERS):
        yield "a text that only stands in for an answer"
    without = _NO_ANSWER.fullmatch(words)
    if without and sum(map(str.isalnum, without["reason"] or "")) < MIN_REASON:
        yield f"'{without['word'].lower()}' without a reason of at least {MIN_REASON} letters and digits"
