"""What a record system is told, and what is understood of what it says: held against the specification's text and the invariants of its models."""

import json
import re
from datetime import date
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError

from clinical_ser.interop.cds_hooks import (
    EARLIER,
    MAX_FEEDBACK,
    OVERRIDE_SYSTEM,
    REASONS,
    Feedback,
    FeedbackRequest,
    Finding,
    HookRequest,
    Link,
    answer,
    app_context,
    decided,
    discovery,
    escaped,
    screening_of,
)
from clinical_ser.screening.result import ClassProbability, Interval, ModelIdentity, Status
from reports import forbidden
from reports.locale import load_locale
from reports.wording import plain
from tests.api import cds_client
from tests.reports import clinician_samples, explanation_samples

SAY = load_locale("en")
TOLD = explanation_samples.explanation()
APP = "https://speech.example.org/launch"
DAY = date(2026, 11, 20)
REQUEST = {
    "hook": "patient-view",
    "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
    "context": {"userId": "Practitioner/example", "patientId": "1288992"},
}
FEEDBACK = {"card": "4e0a3a1e-3283-4575-ab82-028d55fe2719", "outcome": "overridden", "outcomeTimestamp": "2026-11-20T09:30:00Z"}


def result(status=Status.FLAGGED, *, value=0.62, low=0.55, high=0.68, label="depressed", model=None, **changes):
    if status is Status.NOT_USABLE:
        return explanation_samples.refused(**{"model": _model(**(model or {})), **changes})
    one = ClassProbability(label=label, value=value, prevalence=0.1, interval=Interval(low=low, high=high, level=0.95, method="refits"))
    members = {Status.FLAGGED: (label,), Status.CLASSIFIED: (label,), Status.NOT_FLAGGED: ("other",), Status.INDETERMINATE: (label, "other")}
    fields = {
        "status": status,
        "probability": one,
        "prediction_set": members[status],
        "operating_point": None,
        "explanation": None,
        "timeline": None,
        "classes": (one,) if status is Status.CLASSIFIED else (),
        "model": _model(**(model or {})),
        "notices": (),
    }
    return clinician_samples.result(TOLD, (), **fields | changes)


def _model(**changes):
    fields = {
        "name": "voice-one",
        "version": "3",
        "digest": "5e" * 32,
        "signature": "trusted",
        "simulated": False,
        "uses_baseline": False,
    }
    return ModelIdentity(**fields | changes)


def finding(of=None, *, day=DAY, decision=None, screening="5e" * 16):
    return Finding(screening, day, of or result(), decision)


def card(*findings):
    [one] = answer(findings or [finding()], SAY, app_url=APP).wire()["cards"]
    return one


# ── discovery ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_discovery_offers_one_service_for_an_opened_chart_and_asks_for_no_data():
    told = discovery().wire()
    [service] = told["services"]
    assert (service["id"], service["hook"]) == ("speech-screening", "patient-view")
    assert "prefetch" not in service
    assert "never a diagnosis" in service["description"]
    assert cds_client.faults_of_discovery(told) == []


# ── the card ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_summary_says_day_answer_number_with_interval_and_that_nobody_has_reviewed():
    assert card()["summary"] == "Speech screening 2026-11-20: flagged, 62 % (55–68 %), not yet reviewed"


@pytest.mark.parametrize(
    ("decision", "said"), [("agreed", "reviewed: agreed"), ("overridden", "reviewed: overridden"), ("undecided", "seen, undecided")]
)
def test_a_summary_says_what_the_reviewer_decided(decision, said):
    assert card(finding(decision=decision))["summary"].endswith(f"62 % (55–68 %), {said}")


def test_a_card_says_what_the_number_is_of_for_whom_it_is_stated_and_which_model_gave_it():
    told = card()["detail"]
    assert "Probability of depressed: 62 % (95 % interval 55 to 68 %)." in told
    assert "Stated for a group in which 10 % of people are labelled depressed." in told
    assert "“depressed” means a score of 10 or more on the PHQ-8." in told
    assert "voice-one, version 3." in told
    assert "It is not a diagnosis." in told
    assert result().intended_use in told


def test_a_flagged_card_is_no_more_urgent_than_any_other():
    assert {card(finding(result(status)))["indicator"] for status in Status} == {"info"}


def test_the_link_opens_the_app_and_hands_the_screening_through_the_record_system_and_not_in_the_address():
    [link] = card()["links"]
    assert link == {"label": "Open the report", "type": "smart", "url": APP, "appContext": app_context("5e" * 16)}
    assert json.loads(link["appContext"]) == {"screening": "5e" * 16}


def test_a_card_is_found_again_by_its_id():
    assert screening_of(UUID(card(finding(screening="0123456789abcdef" * 2))["uuid"])) == "0123456789abcdef" * 2


@pytest.mark.parametrize("status", [Status.INDETERMINATE, Status.NOT_USABLE])
def test_where_there_is_no_answer_there_is_no_number_anywhere_in_the_card(status):
    told = card(finding(result(status)))
    assert "%" not in told["summary"] + told["detail"]
    assert "Probability" not in told["detail"]


def test_a_recording_that_is_not_usable_says_so_and_how_to_record_again():
    told = card(finding(result(Status.NOT_USABLE)))
    assert told["summary"] == "Speech screening 2026-11-20: recording not usable, no answer"
    assert "Record at least 25 seconds of speech in a quiet room." in told["detail"]


@pytest.mark.parametrize("spoiled", [Status.INDETERMINATE, Status.NOT_USABLE])
def test_a_recording_without_an_answer_does_not_hide_the_answer_before_it(spoiled):
    told = card(finding(result(spoiled)), finding(result(), day=date(2026, 11, 18)))
    assert told["summary"].endswith("; earlier, 2026-11-18: flagged")
    assert "- 2026-11-18: flagged, 62 % (55–68 %), not yet reviewed" in told["detail"]


@pytest.mark.parametrize("other", [{"task": "emotion"}, {"model": {"simulated": True}}])
def test_an_answer_to_another_question_or_of_a_simulated_model_does_not_stand_in(other):
    told = card(finding(result(Status.NOT_USABLE)), finding(result(**other), day=date(2026, 11, 18)))
    assert "earlier" not in told["summary"]


def test_a_model_of_simulated_speech_says_so_before_everything_else():
    told = card(finding(result(model={"simulated": True})))
    assert told["summary"].startswith("SIMULATED MODEL. Speech screening")
    assert told["detail"].startswith("**SIMULATED MODEL** It learned from simulated speech.")


def test_a_real_model_is_not_called_simulated():
    assert "SIMULATED" not in card()["summary"] + card()["detail"]


def test_faults_of_the_recording_are_told_even_where_it_could_be_used():
    assert "Usable, with a fault. Speech. Speak a little longer." in card()["detail"]


def test_a_model_that_nobody_trusted_has_signed_is_told_of_once():
    notices = ("No key this installation trusts has signed this model; make sure you know where it comes from.",)
    told = card(finding(result(model={"signature": "untrusted"}, notices=notices)))["detail"]
    assert told.count("make sure you know where it comes from") == 1


def test_what_its_maker_says_of_the_model_is_told():
    assert "From the model's maker: Adults only." in card(finding(result(notices=("Adults only.", "More."))))["detail"]


def test_earlier_screenings_are_listed_newest_first_and_no_more_than_three():
    days = [date(2026, 11, 20 - i) for i in range(6)]
    lines = re.findall(r"^- (\S+): (.*)$", card(*(finding(day=day) for day in days))["detail"], re.MULTILINE)
    assert [day for day, _ in lines] == [day.isoformat() for day in days[1 : 1 + EARLIER]]


def test_an_earlier_screening_without_an_answer_is_listed_without_a_number():
    told = card(finding(), finding(result(Status.INDETERMINATE), day=date(2026, 11, 18)))["detail"]
    assert re.search(r"^- 2026-11-18: (.*)$", told, re.MULTILINE)[1] == "cannot tell, no number, not yet reviewed"


def test_an_earlier_answer_of_another_model_is_not_left_to_be_compared():
    other = result(model={"digest": "6f" * 32, "name": "voice-two"})
    told = card(finding(), finding(other, day=date(2026, 11, 18)))["detail"]
    assert "another model, not to be compared: voice-two, version 3" in told


def test_nobody_screened_means_no_card():
    assert answer([], SAY, app_url=APP).wire() == {"cards": []}


def test_every_reason_for_putting_a_card_aside_has_a_code_of_ours_and_a_text():
    told = card()["overrideReasons"]
    assert [one["code"] for one in told] == ["disagree-clinically", "wrong-person", "poor-recording", "already-known", "other"]
    assert {one["system"] for one in told} == {OVERRIDE_SYSTEM}
    assert all(one["display"].strip() for one in told)


def test_no_text_of_ours_diagnoses():
    texts = {f"reason.{one.code}": one.display for one in REASONS}
    for status in Status:
        told = card(finding(result(status)), finding(result(model={"digest": "6f" * 32}), day=date(2026, 11, 18)))
        texts |= {f"{status}.summary": told["summary"], f"{status}.detail": told["detail"]}
    service = discovery().services[0]
    forbidden.check(texts | {"title": service.title, "description": service.description, "usage": service.usage_requirements})


# ── the card, whatever was found ────────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = st.sampled_from(
    [
        "<img src=x onerror=alert(1)>",
        "[open](https://evil.example/)",
        "![x](https://evil.example/p.png)",
        "https://evil.example/a_b",
        "www.evil.example",
        "a@evil.example",
        "mailto:a@evil.example",
        "# heading",
        "1. one",
        "- item",
        "> quote",
        "`code`",
        "**bold** _em_ ~~no~~",
        "&lt;b&gt;",
        "a\n\n# b",
        "\u202eleft",
        "{label}",
        "| a | b |",
        "```",
        "\\",
    ]
)
TEXT = st.one_of(HOSTILE, st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60).filter(lambda text: plain(text).strip()))
SHARE = st.floats(0, 1)
STATUS = st.sampled_from(list(Status))


@st.composite
def findings(draw):
    def one():
        low, value, high = sorted(draw(st.tuples(SHARE, SHARE, SHARE)))
        digest = draw(st.sampled_from(["5e" * 32, "6f" * 32]))
        of = result(
            draw(STATUS), value=value, low=low, high=high, label=draw(TEXT), notices=draw(st.lists(TEXT, max_size=2).map(tuple)),
            model={"name": draw(TEXT), "version": draw(TEXT), "simulated": draw(st.booleans()), "digest": digest},
        )  # fmt: skip
        decision = draw(st.sampled_from([None, "agreed", "overridden", "undecided"]))
        return Finding(draw(st.uuids()).hex, draw(st.dates(date(1900, 1, 1), date(2999, 1, 1))), of, decision)

    return [one() for _ in range(draw(st.integers(1, 6)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(findings(), st.sampled_from([None, "https://speech.example.org"]))
def test_whatever_was_found_the_answer_is_as_the_specification_has_it(found, source):
    told = json.loads(json.dumps(answer(found, SAY, app_url=APP, source_url=source).wire()))
    assert cds_client.faults_of_answer(told) == []
    assert len(told["cards"]) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(findings())
def test_whatever_was_found_a_card_without_an_answer_has_no_number_of_it(found):
    newest = found[0]
    if newest.result.status.has_number:
        assert "Probability of" in card(*found)["detail"]
    else:
        told = card(newest)
        assert "Probability of" not in told["detail"]
        assert not re.search(r"[\d.] %", told["summary"])


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
SHOWN = {"paragraph", "strong", "bullet_list", "list_item", "text", "softbreak", "inline", "text_special"}


def shown(markdown):
    """What a viewer makes of Markdown: the kinds of what it shows, and the text."""
    tokens = [token for block in MARKDOWN.parse(markdown) for token in (block, *(block.children or ()))]
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    return kinds, "".join(token.content if token.type in {"text", "text_special"} else " " for token in tokens if token.type != "inline")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(findings())
def test_whatever_was_found_nothing_in_a_card_acts(found):
    kinds, text = shown(card(*found)["detail"])
    assert kinds <= SHOWN
    # GFM 6.9: what a viewer makes a link of although nobody wrote one.
    assert not re.search(r"(?i)(?:https?|ftp)://|\bwww\.|mailto:|[\w.+-]+@[\w-]", text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT)
def test_escaped_text_is_shown_as_it_was(text):
    kinds, told = shown(escaped(text))
    assert kinds <= SHOWN
    assert told.replace("\u2060", "").strip() == plain(text)


def test_a_link_that_is_no_app_has_no_context():
    with pytest.raises(ValidationError, match="smart only"):
        Link(label="x", url=APP, type="absolute", app_context="{}")


# ── what is understood ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sent(**changes):
    return json.dumps({**REQUEST, **changes}).encode()


def without(field):
    return json.dumps({name: value for name, value in REQUEST.items() if name != field}).encode()


def test_the_specifications_own_example_is_understood():
    told = HookRequest.model_validate_json(
        sent(
            fhirServer="http://hooks.smarthealthit.org:9080",
            fhirAuthorization={
                "access_token": "some-opaque-fhir-access-token",
                "token_type": "Bearer",
                "expires_in": 300,
                "scope": "user/Patient.read user/Observation.read",
                "subject": "cds-service4",
            },
            context={"userId": "Practitioner/example", "patientId": "1288992", "encounterId": "89284"},
            prefetch={"patientToGreet": {"resourceType": "Patient", "gender": "male", "birthDate": "1925-12-23", "id": "1288992", "active": True}},
        )
    )
    assert (told.context.patient_id, told.context.user_id) == ("1288992", "Practitioner/example")


def test_the_token_for_the_record_systems_data_is_not_in_what_is_printed():
    token = {"access_token": "canary-token", "token_type": "Bearer", "expires_in": 300, "scope": "user/Patient.read", "subject": "us"}
    assert "canary-token" not in repr(HookRequest.model_validate_json(sent(fhirServer="https://ehr.example.org", fhirAuthorization=token)))


def test_a_token_without_a_server_to_use_it_on_is_refused():
    token = {"access_token": "t", "token_type": "Bearer", "expires_in": 300, "scope": "s", "subject": "us"}
    with pytest.raises(ValidationError):
        HookRequest.model_validate_json(sent(fhirAuthorization=token))


def test_extensions_are_passed_over_wherever_there_may_be_one():
    extension = {"org.example.x": [1, {"y": None}]}
    assert (
        HookRequest.model_validate_json(sent(extension=extension, context={**REQUEST["context"], "extension": extension})).context.patient_id
        == "1288992"
    )
    told = {**FEEDBACK, "extension": extension, "overrideReason": {"userComment": "x", "extension": extension}}
    assert FeedbackRequest.model_validate_json(json.dumps({"feedback": [told], "extension": extension}).encode()).feedback[0].card


def test_what_later_hooks_add_to_the_context_and_what_was_fetched_unasked_is_passed_over():
    told = HookRequest.model_validate_json(
        sent(context={**REQUEST["context"], "somethingNew": {"a": 1}}, prefetch={"patient": None, "more": {"resourceType": "Bundle"}})
    )
    assert told.context.patient_id == "1288992"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(without("hook"), id="no-hook"),
        pytest.param(without("hookInstance"), id="no-instance"),
        pytest.param(without("context"), id="no-context"),
        pytest.param(sent(hook="order-select"), id="another-hook"),
        pytest.param(sent(hookInstance="1"), id="instance-is-no-uuid"),
        pytest.param(sent(context={"patientId": "1"}), id="no-user"),
        pytest.param(sent(context={"userId": "Practitioner/1"}), id="no-patient"),
        pytest.param(sent(context={"userId": "1", "patientId": "1"}), id="user-is-no-reference"),
        pytest.param(sent(context={"userId": "Practitioner/1", "patientId": "Patient/1"}), id="patient-is-a-reference"),
        pytest.param(sent(context={"userId": "Practitioner/1", "patientId": "1\n"}), id="patient-with-a-newline"),
        pytest.param(sent(context={"userId": "Practitioner/1", "patientId": 1}), id="patient-is-a-number"),
        pytest.param(sent(context={"user_id": "Practitioner/1", "patient_id": "1"}), id="our-own-names"),
        pytest.param(sent(hook_instance=REQUEST["hookInstance"]), id="unknown-field"),
        pytest.param(sent(extension=[]), id="extension-is-no-object"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff", id="no-text"),
        pytest.param(b'{"extension":' + b"[" * 500 + b"]" * 500 + b"}", id="deep"),
    ],
)
def test_a_call_that_is_not_as_the_specification_has_it_is_refused(raw):
    with pytest.raises(ValidationError):
        HookRequest.model_validate_json(raw)


def test_a_refusal_repeats_nothing_of_what_was_sent():
    with pytest.raises(ValidationError) as refused:
        HookRequest.model_validate_json(sent(context={"userId": "canary", "patientId": "canary/2"}))
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("user", "reads"), [("Practitioner/1", True), ("PractitionerRole/1", True), ("Patient/1", False), ("RelatedPerson/1", False), ("Device/1", False)]
)
def test_only_practitioners_are_readers_of_a_card(user, reads):
    assert HookRequest.model_validate_json(sent(context={"userId": user, "patientId": "1"})).context.clinician is reads


# ── feedback ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def feedback(**changes):
    [one] = FeedbackRequest.model_validate_json(json.dumps({"feedback": [{**FEEDBACK, **changes}]}).encode()).feedback
    return one


def coded(code, system=OVERRIDE_SYSTEM, **more):
    return {"reason": {"code": code, **({"system": system} if system else {}), **more}}


WHEN = "in the record system on 2026-11-20 at 09:30:00 UTC"


@pytest.mark.parametrize(
    ("told", "decision", "said"),
    [
        pytest.param({}, "undecided", f"Closed {WHEN}, without a reason.", id="closed"),
        pytest.param(
            {"outcome": "accepted", "acceptedSuggestions": [{"id": "e56e1945-20b3-4393-8503-a1a20fd73152"}]},
            "undecided",
            f"Accepted {WHEN}. The card suggests nothing, so this does not say that the answer was agreed with.",
            id="accepted",
        ),
        pytest.param(
            {"overrideReason": coded("disagree-clinically")},
            "overridden",
            f"Put aside {WHEN}: My clinical judgement is another (disagree-clinically).",
            id="disagrees",
        ),
        pytest.param(
            {"overrideReason": {**coded("wrong-person"), "userComment": "It is\nhis brother."}},
            "overridden",
            f"Put aside {WHEN}: The recording is not of this person (wrong-person). Comment: It is his brother.",
            id="with-a-comment",
        ),
        pytest.param(
            {"overrideReason": coded("already-known")}, "undecided", f"Put aside {WHEN}: I know this already (already-known).", id="known-already"
        ),
        pytest.param(
            {"overrideReason": coded("poor-recording", system=None)},
            "overridden",
            f"Put aside {WHEN}: The recording was not good enough (poor-recording).",
            id="without-system",
        ),
        pytest.param(
            {"overrideReason": coded("already-known", system="urn:theirs", display="Seen it")},
            "overridden",
            f"Put aside {WHEN}: Seen it (already-known, a reason of the record system's own).",
            id="our-code-in-another-system",
        ),
        pytest.param(
            {"overrideReason": {"userComment": "No."}}, "overridden", f"Put aside {WHEN}: no reason of the list. Comment: No.", id="comment-alone"
        ),
    ],
)
def test_feedback_is_recorded_as_no_more_than_it_says(told, decision, said):
    assert decided(feedback(**told)) == (decision, said)


@given(
    st.sampled_from(["accepted", "overridden"]),
    st.none() | st.builds(coded, st.sampled_from([*(one.code for one in REASONS), "their-own"])) | st.just({"userComment": "agreed"}),
)
def test_no_feedback_is_ever_recorded_as_agreement(outcome, reason):
    told = {} if reason is None or outcome == "accepted" else {"overrideReason": reason}
    assert decided(feedback(outcome=outcome, **told))[0] != "agreed"


def test_one_moment_has_one_spelling_however_it_was_written():
    spellings = ["2026-11-20T09:30:00Z", "2026-11-20T09:30:00.000Z", "2026-11-20T10:30:00+01:00"]
    assert len({feedback(outcomeTimestamp=one).moment for one in spellings}) == 1


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"outcome": "ignored"}, id="another-outcome"),
        pytest.param({"card": "1"}, id="card-is-no-uuid"),
        pytest.param({"outcomeTimestamp": "2026-11-20T09:30:00"}, id="time-without-zone"),
        pytest.param({"outcomeTimestamp": 1763631000}, id="time-is-a-number"),
        pytest.param({"outcomeTimestamp": "0001-01-01T00:00:00+14:00"}, id="time-before-all-time"),
        pytest.param({"outcomeTimestamp": "1999-12-31T23:59:59Z"}, id="time-before-there-were-cards"),
        pytest.param({"outcomeTimestamp": "9999-12-31T23:59:59-14:00"}, id="time-after-all-time"),
        pytest.param({"outcomeTimestamp": "2199-01-01T00:00:00Z"}, id="time-to-come"),
        pytest.param({"overrideReason": {}}, id="empty-reason"),
        pytest.param({"outcome": "accepted", "overrideReason": coded("other")}, id="accepted-with-reason"),
        pytest.param({"overrideReason": {"userComment": "x" * 4001}}, id="long-comment"),
        pytest.param({"outcome_timestamp": "2026-11-20T09:30:00Z"}, id="unknown-field"),
    ],
)
def test_feedback_that_is_not_as_the_specification_has_it_is_refused(told):
    with pytest.raises(ValidationError):
        feedback(**told)


@pytest.mark.parametrize("number", [0, MAX_FEEDBACK + 1])
def test_feedback_comes_in_bounded_numbers(number):
    with pytest.raises(ValidationError):
        FeedbackRequest.model_validate_json(json.dumps({"feedback": [FEEDBACK] * number}).encode())


def test_feedback_is_frozen():
    with pytest.raises(ValidationError):
        Feedback.model_validate_json(json.dumps(FEEDBACK)).outcome = "accepted"
