"""CDS Hooks 2.0: what a record system sends and is sent, and the card that says in a patient's chart what was found in screenings that are done.

The one idea: a card points to the report and says less than it does. Whatever the report withholds (a number where there is no answer) the card
withholds too, and what comes from data is made plain, so that it cannot become a link, a picture or an instruction in somebody else's window.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel

from clinical_ser.evaluation.card import SIMULATED_STATEMENT
from clinical_ser.screening.result import ClassProbability, ModelIdentity, ScreeningResult, Status
from clinical_ser.screening.screener import UNTRUSTED_NOTICE
from clinical_ser.strict import Strict
from reports.locale import Locale
from reports.numbers import percent
from reports.wording import plain

SERVICE_ID = "speech-screening"
HOOK = "patient-view"
"""The one hook: somebody opens a chart. Nothing here gives a reason to interrupt an order."""
OVERRIDE_SYSTEM = "urn:clinical-ser:cds-hooks:override-reason"
TOPIC_SYSTEM = "urn:clinical-ser:cds-hooks:topic"
MAX_SUMMARY = 139
"""The specification: a summary has fewer than 140 characters."""
EARLIER = 3
"""How many earlier screenings a card lists."""
MAX_FEEDBACK = 100
"""Feedback in one request. Ours: a clinician closes some cards a minute, and each takes a record of its own."""

_MAX_CODE, _MAX_TEXT = 500, 4000
_LABEL, _SHORT_LABEL, _NAME, _NOTICE = 40, 16, 40, 260
"""Characters of the maker's words: in the detail, in the summary, of a model, of a notice."""

Decision = Literal["agreed", "overridden", "undecided"]
FhirId = Annotated[str, Field(pattern=r"^[A-Za-z0-9\-.]{1,64}$")]
"""https://hl7.org/fhir/R4/datatypes.html#id"""
Reference = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{0,63}/[A-Za-z0-9\-.]{1,64}$")]
"""[ResourceType]/[id], as context.userId is said to be."""
Filled = Annotated[str, Field(min_length=1, max_length=_MAX_TEXT)]
Code = Annotated[str, Field(min_length=1, max_length=_MAX_CODE)]
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)
"""Feedback is of cards that were given here: not before there were any, nor later than a clock that is a day ahead would say."""


def _plausible(moment: datetime) -> datetime:
    if not _EARLIEST <= moment <= datetime.now(UTC) + _AHEAD:
        raise ValueError("a time from 2000 on is expected, and none to come")
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_plausible)]


# ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Sent(Strict):
    """Something of a record system's: its names are the specification's, and only in `extension` may there be more."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True)

    extension: dict[str, JsonValue] = Field(default_factory=dict)
    """The one field that the specification leaves to whoever wants it; nothing here looks into it."""


class FhirAuthorization(_Sent):
    """A token for the record system's own data. It is checked for its form, and neither used nor kept: cards need nothing from there."""

    model_config = ConfigDict(alias_generator=None)

    access_token: Annotated[Filled, Field(repr=False)]
    token_type: Literal["Bearer"]
    expires_in: int
    scope: Filled
    subject: Filled
    patient: Filled | None = None


class PatientViewContext(Strict):
    """Whose chart was opened, and by whom. A hook's later versions may add fields, which are passed over."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True, extra="ignore")

    user_id: Reference
    patient_id: FhirId

    @property
    def clinician(self) -> bool:
        """Whether the reader is one. The hook is also called for patients and relatives, for whom this card is not written."""
        return self.user_id.partition("/")[0] in {"Practitioner", "PractitionerRole"}


class HookRequest(_Sent):
    """A call of the service."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "hook": "patient-view",
                    "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
                    "fhirServer": "https://ehr.example.org/fhir",
                    "context": {"userId": "Practitioner/example", "patientId": "1288992"},
                }
            ]
        }
    )

    hook: Literal["patient-view"]
    hook_instance: UUID
    context: PatientViewContext
    fhir_server: Filled | None = None
    fhir_authorization: FhirAuthorization | None = None
    prefetch: dict[str, JsonValue] = Field(default_factory=dict)
    """Not asked for, and passed over where it comes."""

    @model_validator(mode="after")
    def _authorization_for_a_server(self) -> Self:
        # Invariant cds-r-1 of the logical models.
        if self.fhir_authorization is not None and self.fhir_server is None:
            raise ValueError("fhirAuthorization needs fhirServer")
        return self


class SentCoding(_Sent):
    """A code as it is sent back. The reference sandbox leaves `display` out, and `system` where a reason of its own has none."""

    code: Code
    system: Code | None = None
    display: Code | None = None


class OverrideReason(_Sent):
    """Why somebody put a card aside."""

    reason: SentCoding | None = None
    user_comment: Filled | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        # Invariant cds-fb-3.
        if self.reason is None and self.user_comment is None:
            raise ValueError("overrideReason has a reason, a userComment, or both")
        return self


class AcceptedSuggestion(_Sent):
    """A suggestion that was taken; no card of ours has one."""

    id: Code


class Feedback(_Sent):
    """What became of one card."""

    card: UUID
    outcome: Literal["accepted", "overridden"]
    outcome_timestamp: Moment
    accepted_suggestions: tuple[AcceptedSuggestion, ...] = Field(default=(), max_length=MAX_FEEDBACK)
    override_reason: OverrideReason | None = None

    @model_validator(mode="after")
    def _of_one_piece(self) -> Self:
        if self.outcome == "accepted" and self.override_reason is not None:
            raise ValueError("what was accepted has no overrideReason")
        return self

    @property
    def moment(self) -> str:
        """When it happened, in one spelling whatever was sent."""
        return self.outcome_timestamp.astimezone(UTC).isoformat(timespec="microseconds")


class FeedbackRequest(_Sent):
    """What became of cards."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "feedback": [
                        {
                            "card": "4e0a3a1e-3283-4575-ab82-028d55fe2719",
                            "outcome": "overridden",
                            "overrideReason": {
                                "reason": {"code": "disagree-clinically", "system": OVERRIDE_SYSTEM},
                                "userComment": "Slept badly; the PHQ-9 of today is 4.",
                            },
                            "outcomeTimestamp": "2026-11-20T09:30:00Z",
                        }
                    ]
                }
            ]
        }
    )

    feedback: tuple[Feedback, ...] = Field(min_length=1, max_length=MAX_FEEDBACK)


# ── what goes out ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Given(Strict):
    """Something of ours, in the specification's names; what has no value is left out, since nothing may be null or empty."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=False)

    def wire(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Service(_Given):
    """What discovery says of a service. Without `prefetch`: only whose chart it is has to be known, and that is in the context."""

    hook: str
    title: str
    description: str
    id: str
    usage_requirements: str


class Discovery(_Given):
    """The services that there are."""

    services: tuple[Service, ...]


class Coding(_Given):
    """A code that is shown to people, so that it always has its text (invariant cds-resp-4)."""

    code: Code
    system: Code
    display: Code


class Source(_Given):
    """Whose word a card is."""

    label: Filled
    url: Filled | None = None
    topic: Coding | None = None


class Link(_Given):
    """A way on from a card."""

    label: Filled
    url: Filled
    type: Literal["absolute", "smart"]
    app_context: Filled | None = None

    @model_validator(mode="after")
    def _context_for_apps(self) -> Self:
        # Invariant cds-resp-3.
        if self.type != "smart" and self.app_context is not None:
            raise ValueError("appContext goes with a link of type smart only")
        return self


class Card(_Given):
    """A card. It suggests nothing, and therefore has neither suggestions nor a selectionBehavior."""

    uuid: UUID
    summary: str = Field(min_length=1, max_length=MAX_SUMMARY)
    detail: str = Field(min_length=1)
    # Never more urgent: no voice tells of an emergency, and a coloured card would say that this one did.
    indicator: Literal["info"] = "info"
    source: Source
    links: tuple[Link, ...] = Field(min_length=1)
    override_reasons: tuple[Coding, ...] = Field(min_length=1)


class Answer(_Given):
    """Cards, or none."""

    cards: tuple[Card, ...] = ()


# ── reasons for putting a card aside ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Reason:
    """A reason that a card offers, and what it says of the answer.

    Attributes
    ----------
    code, display
        As the card has it.
    decision
        What the review says that it stands for.
    """

    code: str
    display: str
    decision: Decision

    @property
    def coding(self) -> Coding:
        """As a card has it."""
        return Coding(code=self.code, system=OVERRIDE_SYSTEM, display=self.display)


REASONS = (
    Reason("disagree-clinically", "My clinical judgement is another", "overridden"),
    Reason("wrong-person", "The recording is not of this person", "overridden"),
    Reason("poor-recording", "The recording was not good enough", "overridden"),
    Reason("already-known", "I know this already", "undecided"),
    Reason("other", "Another reason", "overridden"),
)
_OUR_REASONS = {(OVERRIDE_SYSTEM, reason.code): reason for reason in REASONS}


def decided(feedback: Feedback) -> tuple[Decision, str]:
    """Return what feedback says of the answer, and in which words that is recorded.

    Never `agreed`: the card suggests nothing, so that whoever "accepts" it, or closes it, has not said that the answer is right. Agreeing is done
    with the report. A card that is closed without a reason is not an answer that was overridden either.

    Examples
    --------
    >>> told = {"card": "5e" * 16, "outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00Z"}
    >>> decided(Feedback.model_validate_json(json.dumps(told)))
    ('undecided', 'Closed in the record system on 2026-11-20 at 09:30:00 UTC, without a reason.')
    """
    when = f"in the record system on {feedback.outcome_timestamp.astimezone(UTC):%Y-%m-%d at %H:%M:%S} UTC"
    if feedback.outcome == "accepted":
        return "undecided", f"Accepted {when}. The card suggests nothing, so this does not say that the answer was agreed with."
    told = feedback.override_reason
    if told is None:
        return "undecided", f"Closed {when}, without a reason."
    decision, said = _reason(told.reason)
    comment = f" Comment: {plain(told.user_comment)}" if told.user_comment else ""
    return decision, f"Put aside {when}: {said}{comment}"


def _reason(coding: SentCoding | None) -> tuple[Decision, str]:
    if coding is None:
        return "overridden", "no reason of the list."
    # A record system that sends no system sends back what it was given.
    known = _OUR_REASONS.get((coding.system or OVERRIDE_SYSTEM, coding.code))
    if known is not None:
        return known.decision, f"{known.display} ({known.code})."
    # A reason that the record system added. What it means is not known here, and an objection must not get lost.
    return "overridden", f"{plain(coding.display or coding.code)} ({plain(coding.code)}, a reason of the record system's own)."


# ── discovery ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def discovery() -> Discovery:
    """Return what a record system is told of the service."""
    service = Service(
        hook=HOOK,
        title="Speech screening",
        description=(
            "Shows what earlier screenings of this person's speech found, with their date, their uncertainty and a link to the report. "
            "A screening aid, never a diagnosis. No recording is made or judged when a chart is opened."
        ),
        id=SERVICE_ID,
        usage_requirements=(
            "The record system signs its requests (JWT), and is registered here with its issuer and key set. People are known here by the id of "
            "their Patient resource. Cards are for practitioners; patients and relatives who open a chart get none."
        ),
    )
    return Discovery(services=(service,))


# ── the card ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Finding:
    """A screening that is done.

    Attributes
    ----------
    screening
        Its id, 32 hex digits.
    day
        Of the recording, or of the screening where nobody said when it was recorded.
    result
        What was found.
    decision
        Of the review that stands (`reviews.standing`); None where there was none.
    """

    screening: str
    day: date
    result: ScreeningResult
    decision: Decision | None = None

    @property
    def card(self) -> UUID:
        """The card's id, from which the screening is found again when feedback comes."""
        return UUID(hex=self.screening)


def screening_of(card: UUID) -> str:
    """Return the id of the screening that a card is about."""
    return card.hex


def answer(findings: Sequence[Finding], say: Locale, *, app_url: str, source_url: str | None = None) -> Answer:
    """Return the answer to a record system: one card for the newest screening, with the earlier ones listed in it; none where there is none.

    Parameters
    ----------
    findings
        Of one person, the newest first.
    say
        The reports' texts, in English.
    app_url
        Where a SMART app launch of the report begins.
    source_url
        Where a reader learns who says this.
    """
    if not findings:
        return Answer()
    newest, *earlier = findings
    card = Card(
        uuid=newest.card,
        summary=_summary(newest, earlier, say),
        detail=_detail(newest, earlier[:EARLIER], say),
        source=Source(
            label="clinical-ser speech screening",
            url=source_url,
            topic=Coding(code=SERVICE_ID, system=TOPIC_SYSTEM, display="Speech screening"),
        ),
        links=(Link(label="Open the report", url=app_url, type="smart", app_context=app_context(newest.screening)),),
        override_reasons=tuple(reason.coding for reason in REASONS),
    )
    return Answer(cards=(card,))


def app_context(screening: str) -> str:
    """Return what the report's page is told, through the record system, when it is opened from a card.

    Examples
    --------
    >>> app_context("5e" * 16)
    '{"screening":"5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"}'
    """
    return json.dumps({"screening": screening}, separators=(",", ":"))


def _summary(newest: Finding, earlier: Iterable[Finding], say: Locale) -> str:
    result = newest.result
    parts = [f"Speech screening {newest.day.isoformat()}: {_answered(result, _SHORT_LABEL, say)}"]
    if result.status is not Status.NOT_USABLE or newest.decision is not None:
        parts.append(_reviewed(newest))
    before = None if result.status.has_number else next((one for one in earlier if _stands_in(one.result, result)), None)
    # Otherwise a spoiled recording would hide the answer before it. Without its number, which belongs beside its model.
    hidden = f"; earlier, {before.day.isoformat()}: {_STATUS[before.result.status]}" if before else ""
    simulated = "SIMULATED MODEL. " if result.model.simulated else ""
    return simulated + ", ".join(parts) + hidden


def _stands_in(earlier: ScreeningResult, newest: ScreeningResult) -> bool:
    return earlier.status.has_number and earlier.task == newest.task and earlier.model.simulated == newest.model.simulated


_STATUS = {
    Status.FLAGGED: "flagged",
    Status.NOT_FLAGGED: "not flagged",
    Status.CLASSIFIED: "classified",
    Status.INDETERMINATE: "cannot tell, no number",
    Status.NOT_USABLE: "recording not usable, no answer",
}
_REVIEWED: dict[Decision | None, str] = {
    None: "not yet reviewed",
    "agreed": "reviewed: agreed",
    "overridden": "reviewed: overridden",
    "undecided": "seen, undecided",
}


def _reviewed(finding: Finding) -> str:
    return _REVIEWED[finding.decision]


def _answered(result: ScreeningResult, longest_label: int, say: Locale) -> str:
    """Return the answer in a few words, with its number where it has one."""
    one, status = result.probability, _STATUS[result.status]
    if one is None or not result.status.has_number:
        return status
    if result.status is Status.CLASSIFIED:
        status = f"most similar to “{_cut(_class(one.label, say), longest_label)}”"
    return f"{status}, {percent(one.value)} ({percent(one.interval.low).removesuffix(' %')}–{percent(one.interval.high)})"


def _detail(newest: Finding, earlier: Sequence[Finding], say: Locale) -> str:
    result = newest.result
    told = [
        _bold(say("simulated.title")) + " " + escaped(say("simulated.text")) if result.model.simulated else "",
        *_what(result, say),
        _quality(result, say),
        _model(result, say),
        _earlier(newest, earlier, say),
        escaped(result.intended_use),
    ]
    return "\n\n".join(filter(None, told))


def _what(result: ScreeningResult, say: Locale) -> Iterable[str]:
    """Yield what was found, as the report says it."""
    label = _label(result, say)
    if result.status is Status.NOT_USABLE:
        sentence = say("answer.not_usable")
    elif result.status is not Status.INDETERMINATE:
        sentence = say(f"answer.{result.status}", label=label)
    elif not result.classes:
        sentence = say("answer.indeterminate", label=label)
    else:
        sentence = say("answer.indeterminate_none")
        if result.prediction_set:
            sentence = say("answer.indeterminate_of_several", labels=", ".join(_class(name, say) for name in result.prediction_set))
    yield _bold(say(f"status.{result.status}", label=label)) + ". " + escaped(sentence)
    if result.probability is not None and result.status.has_number:
        yield escaped(" ".join(_numbers(result, result.probability, say)))
    if defined := result.defined_by:
        yield escaped(say("about.defined", label=_class(defined.label, say), cutoff=f"{defined.cutoff:g}", score=_cut(plain(defined.score), _NAME)))


def _numbers(result: ScreeningResult, one: ClassProbability, say: Locale) -> Iterable[str]:
    label = _label(result, say)
    interval = say("range", low=percent(one.interval.low).removesuffix(" %"), high=percent(one.interval.high))
    yield f"{say('answer.probability', label=label, value=percent(one.value), level=f'{100 * one.interval.level:g}', interval=interval)}."
    yield say("answer.equal") if result.classes else say("answer.stated", share=percent(one.prevalence), label=label)
    yield say("answer.interval_means")


def _quality(result: ScreeningResult, say: Locale) -> str:
    quality = result.quality
    faults = [check for check in quality.checks if check.verdict != "pass"]
    # What refused the recording first.
    faults.sort(key=lambda check: check.verdict != quality.verdict)
    names = "; ".join(_cut(say.term("checks", check.name), _NAME) for check in faults)
    advice = dict.fromkeys(filter(None, map(say.advice, faults)))
    told = " ".join(filter(None, (say(f"quality.{quality.verdict}"), f"{names}." if names else "", *advice)))
    return _bold(say("quality.title")) + ": " + escaped(told)


def _model(result: ScreeningResult, say: Locale) -> str:
    model = result.model
    told = [f"{_named(model)}."]
    if model.signature != "trusted":
        told.append(say("caution.untrusted"))
    for notice in result.notices:
        own = notice.replace(SIMULATED_STATEMENT, "").replace(UNTRUSTED_NOTICE, "").strip()
        if own:
            # What it learned from has to be known with its answer; the report has the other notices.
            told.append(say("caution.maker", text=_cut(plain(own), _NOTICE)))
            break
    return _bold("Model") + ": " + escaped(" ".join(told))


def _earlier(newest: Finding, earlier: Sequence[Finding], say: Locale) -> str:
    if not earlier:
        return ""
    lines = [f"- {one.day.isoformat()}: {escaped(_line(one, newest, say))}" for one in earlier]
    note = "Two recordings of one person differ in any case; whether a difference is more than that, the report's comparison of visits says."
    return "\n".join((_bold("Earlier screenings") + ":", "", *lines, "", escaped(note)))


def _line(one: Finding, newest: Finding, say: Locale) -> str:
    model = one.result.model
    parts = [_answered(one.result, _LABEL, say), _reviewed(one)]
    if model.digest != newest.result.model.digest:
        kind = "simulated model" if model.simulated else "model"
        parts.append(f"another {kind}, not to be compared: {_named(model)}")
    return ", ".join(parts)


def _named(model: ModelIdentity) -> str:
    return f"{_cut(plain(model.name), _NAME)}, version {_cut(plain(model.version), _NAME)}"


def _label(result: ScreeningResult, say: Locale) -> str:
    return _class(result.probability.label, say) if result.probability else ""


def _class(label: str, say: Locale) -> str:
    return _cut(say.term("classes", label), _LABEL)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


# ── markdown ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_ACTIVE = re.compile(r"[\\`*_\[\]<>&~|$]")
"""What means something within a line of GitHub Flavored Markdown, and `$`, which some viewers take for mathematics."""
_LINKED = re.compile(r"(?i)\b(?:https?|ftp|mailto|xmpp)(?=:)|\bwww(?=\.)|(?<=\S)(?=@)")
"""Where viewers make a link of plain text (GFM 6.9): a scheme, `www.`, an address of electronic mail."""
_JOINER = "\u2060"
"""Has no width, and is part of no address."""
_BLOCK = re.compile(r"^(\d*)([#+=.)-])")
"""What makes a heading or a list of a line that begins with it."""


def escaped(text: str) -> str:
    r"""Return text as Markdown that shows it and does nothing else.

    Examples
    --------
    >>> escaped("a *b* <img src=x>")
    'a \\*b\\* \\<img src=x\\>'
    """
    line = _LINKED.sub(lambda found: found[0] + _JOINER, plain(text))
    return _BLOCK.sub(r"\1\\\2", _ACTIVE.sub(lambda found: "\\" + found[0], line))


def _bold(text: str) -> str:
    return f"**{escaped(text)}**"
