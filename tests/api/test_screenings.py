"""Screenings over HTTP, against a real server with real workers."""

import io
import json
import threading
import time
from datetime import timedelta

import numpy as np
import pytest
import soundfile

from clinical_ser.audit.events import RECORD, Inference, ReportAction, Review, Submission
from clinical_ser.screening import load_model
from clinical_ser.screening.result import ScreeningResult
from tests.api.servers import SUBJECT, command, serving

PERSON = iter(range(1_000_000))


@pytest.fixture
def person():
    """Another one for each test, so that none is answered from the store for what another asked."""
    return f"{SUBJECT} {next(PERSON)}"


def finished(client, location: str, timeout_s: float = 60.0) -> dict:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = client.get(location).json
        if found["state"] in {"done", "failed"}:
            return found
        time.sleep(0.05)
    raise AssertionError("the job did not finish")


def records_of(server, digest: str) -> list:
    with server.audit.read() as reader:
        return [reader.record(index).payload for index in reader.about(RECORD + digest)]


def newest(server, kind):
    with server.audit.read() as reader:
        found = [record for record in reader.records() if isinstance(record.payload, kind)]
    return found[-1]


def test_a_short_recording_is_answered_at_once_and_recorded_before(client, server, recording, person):
    answer = client.screen(recording, subject=person, sex="female", age=54)
    assert answer.status == 201
    assert answer.headers["location"] == f"/v1/screenings/{answer.json['id']}"
    result = ScreeningResult.model_validate(answer.json["result"], strict=False)
    assert (result.context.sex, result.context.age) == ("female", 54)
    assert answer.json["audit"]["record"] == RECORD + result.digest
    [told] = [each for each in records_of(server, result.digest) if isinstance(each, Inference)][-1:]
    assert (told.actor.id, told.actor.client) == ("client-everything", "127.0.0.1")
    assert told.status == result.status
    with server.audit.read() as reader:
        assert answer.json["audit"]["index"] in reader.named(person)


def test_the_result_is_that_of_the_command_line(client, bundle, recording, person):
    asked = load_model(bundle).screen(recording, sex="female", age=54)
    answered = client.screen(recording, subject=person, sex="female", age=54).json["result"]
    assert ScreeningResult.model_validate(answered, strict=False).digest == asked.digest


def test_a_bare_recording_comes_with_its_metadata_in_a_header(client, recording, person):
    told = {"Content-Type": "audio/wav", "Screening-Metadata": json.dumps({"subject": person, "age": 30})}
    answer = client.ask("POST", "/v1/screenings", recording, told)
    assert answer.status == 201
    assert answer.json["result"]["context"]["age"] == 30


def test_what_the_gate_refuses_has_no_number_and_is_recorded_as_refused(client, server, person):
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(16_000 * 3), 16_000, format="WAV")
    answer = client.screen(silence.getvalue(), subject=person)
    assert answer.status == 201
    assert answer.json["result"]["status"] == "not_usable"
    assert answer.json["result"]["probability"] is None
    with server.audit.read() as reader:
        assert [reader.record(index).event.kind for index in reader.named(person)] == ["quality_rejection"]


@pytest.mark.parametrize("content", [b"RIFF", b"\x00" * 5000, b"%PDF-1.7 not audio", b"fLaC" + b"\xff" * 4000], ids=["cut", "zeros", "pdf", "flac"])
def test_what_is_no_audio_is_a_problem_and_recorded_as_failed(client, server, person, content):
    answer = client.screen(content, subject=person)
    assert (answer.status, answer.json["type"]) == (422, "urn:clinical-ser:problem:not-audio")
    record = newest(server, Submission)
    assert (record.payload.action, record.payload.reason, record.event.outcome.value) == ("failed", "not-audio", "failed")


def test_the_same_recording_of_the_same_person_is_answered_from_the_store_and_that_is_recorded(client, server, recording, person):
    first = client.screen(recording, subject=person)
    again = client.screen(recording, subject=person)
    assert (first.status, again.status) == (201, 200)
    assert again.json["id"] == first.json["id"]
    kinds = [type(each) for each in records_of(server, first.json["audit"]["record"].removeprefix(RECORD))]
    assert kinds[-1] is ReportAction


@pytest.mark.parametrize("change", [{"age": 30}, {"model": "random"}, {"prevalence": 0.3}], ids=["age", "model", "prevalence"])
def test_with_other_options_it_is_another_screening(client, recording, person, change):
    first = client.screen(recording, subject=person)
    other = client.screen(recording, subject=person, **change)
    assert (other.json["id"] == first.json["id"]) is ("model" in change)


def test_the_same_recording_under_another_person_is_answered_anew_and_says_so(client, recording, person):
    client.screen(recording, subject=person)
    other = client.screen(recording, subject=f"{person} other")
    assert other.status == 201
    assert "under another person" in other.json["notices"][0]


def test_an_idempotency_key_finds_its_answer_and_refuses_another_request(client, recording, person):
    key = {"Idempotency-Key": f"key of {person}".replace(" ", "-")}
    first = client.screen(recording, key, subject=person)
    again = client.screen(recording, key, subject=person)
    other = client.screen(recording + b"\0\0", key, subject=person)
    assert (first.status, again.status, again.json["id"]) == (201, 200, first.json["id"])
    assert (other.status, other.json["type"]) == (422, "urn:clinical-ser:problem:idempotency-mismatch")


def test_two_requests_at_once_with_one_key_make_one_screening(client, server, recording, person):
    key = {"Idempotency-Key": f"at-once-{person}".replace(" ", "-")}
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.screen(recording, key, subject=person))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted({each.status for each in answers} - {409}) in ([201], [200, 201])
    with server.audit.read() as reader:
        assert sum(reader.record(index).event.kind == "inference" for index in reader.named(person)) == 1


@pytest.mark.parametrize("key", ["", "ä", "x" * 256], ids=["empty", "not ascii", "long"])
def test_a_key_that_is_none_is_refused(client, recording, key):
    assert client.screen(recording, {"Idempotency-Key": key.encode("latin-1")}).status == 400


def test_whoever_prefers_it_is_answered_later(client, server, recording, person):
    accepted = client.screen(recording, {"Prefer": "respond-async, wait=5"}, subject=person)
    assert accepted.status == 202
    assert accepted.json["result"] is None
    assert int(accepted.headers["retry-after"]) > 0
    done = finished(client, accepted.headers["location"])
    assert done["state"] == "done"
    with server.audit.read() as reader:
        kinds = [reader.record(index).event.kind for index in reader.named(person)]
    assert kinds[:2] == ["submission", "inference"]
    assert not list(server.configuration.spool_folder.glob("*.recording"))


def test_an_accepted_recording_that_is_no_audio_ends_with_a_reason(client, person):
    accepted = client.screen(b"no audio at all", {"Prefer": "respond-async"}, subject=person)
    done = finished(client, accepted.headers["location"])
    assert (done["state"], done["failure"]["code"]) == ("failed", "not-audio")
    report = client.get(accepted.headers["location"] + "/report")
    assert (report.status, report.json["type"]) == (409, "urn:clinical-ser:problem:failed")


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"age": -1}, "age"),
        ({"age": "54"}, "age"),
        ({"sex": "f"}, "sex"),
        ({"subject": ""}, "subject"),
        ({"subject": "\u202e"}, "subject"),
        ({"model": "other"}, "no such model"),
        ({"diagnosis": "secret"}, "a field that is not known"),
        ({"start": 5, "end": 4}, "end"),
        ({"explained": "no_class"}, "explained"),
        ({"prevalence": True}, "prevalence"),
        ({"recorded_on": "yesterday"}, "recorded_on"),
        ({"recorded_on": "2999-01-01"}, "recorded_on"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_metadata_that_do_not_fit_are_named_by_field_and_not_repeated(client, recording, metadata, named):
    answer = client.screen(recording, **metadata)
    assert answer.status == 422
    assert named in answer.json["detail"]
    for value in metadata.values():
        assert not isinstance(value, str) or len(value) < 3 or value not in answer.body.decode()


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{}", 400), (b'{"subject": "a"}\n', 400), (b"{" + b" " * 9000 + b"\n", 400), (b'{"subject": "a", "subject": "b"}\nx', 400)],
    ids=["empty", "no line", "no recording", "long line", "key twice"],
)
def test_a_framed_body_that_is_none_is_refused(client, body, status):
    answer = client.ask("POST", "/v1/screenings", body, {"Content-Type": "application/vnd.clinical-ser.screening"})
    assert answer.status == status


def test_other_media_types_and_encodings_are_refused(client, recording):
    for told in ({"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": "audio/wav", "Content-Encoding": "gzip"}, {}):
        assert client.ask("POST", "/v1/screenings", recording, told).status == 415


def test_the_report_comes_as_html_or_pdf_in_the_language_asked_for_and_is_recorded(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    page = client.get(done["links"]["report"], Accept="text/html", Accept_Language="zh-CN")
    paper = client.get(done["links"]["report"], Accept="application/pdf")
    assert page.headers["content-type"].startswith("text/html")
    assert 'lang="zh' in page.body.decode()
    assert paper.body.startswith(b"%PDF")
    assert client.get(done["links"]["report"], Accept="image/png").status == 406
    told = [each for each in records_of(server, done["audit"]["record"].removeprefix(RECORD)) if isinstance(each, ReportAction)]
    assert [each.form for each in told[-2:]] == ["html", "pdf"]


def test_a_review_is_recorded_and_shown_from_then_on(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    receipt = client.post(done["links"]["review"], {"decision": "overridden", "reason": "Spoke in a foreign language."})
    assert receipt.status == 201
    [review] = client.get(done["links"]["self"]).json["reviews"]
    assert (review["decision"], review["name"], review["index"]) == ("overridden", "Dr. Ada Example", receipt.json["index"])
    record = newest(server, Review)
    assert record.event.flags
    bundle = client.get(done["links"]["fhir"]).json
    [risk] = [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == "RiskAssessment"]
    assert risk["status"] != "preliminary"


def test_reviews_that_are_taken_in_together_are_all_kept(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    decisions = ("overridden", "undecided", "agreed")
    with server.service.store._taking_in:
        threads = [threading.Thread(target=client.post, args=(done["links"]["review"], {"decision": one, "reason": one})) for one in decisions]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    assert sorted(each["decision"] for each in client.get(done["links"]["self"]).json["reviews"]) == sorted(decisions)


@pytest.mark.parametrize(
    "content", [{}, {"decision": "agreed"}, {"decision": "maybe", "reason": "x"}, {"decision": "agreed", "reason": ""}, []], ids=json.dumps
)
def test_a_review_that_does_not_fit_is_refused(client, recording, person, content):
    done = client.screen(recording, subject=person).json
    assert client.post(done["links"]["review"], content).status == 422


def test_a_review_by_the_command_line_is_shown_too(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    ran = command(server, "audit", "review", done["audit"]["record"], "--decision", "agreed", "--reason", "Fits.", "--subject", person)
    assert ran.returncode == 0, ran.stderr
    deadline = time.monotonic() + 10
    while not (reviews := client.get(done["links"]["self"]).json["reviews"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reviews[0]["reason"] == "Fits."


def test_an_erased_person_is_gone_from_the_store_too(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    ran = command(server, "audit", "erase", "--subject", person, "--reason", "asked", "--yes")
    assert ran.returncode == 0, ran.stderr
    for link in done["links"].values():
        answer = client.get(link) if not link.endswith("review") else client.post(link, {"decision": "agreed", "reason": "x"})
        assert answer.status == 404
    assert client.screen(recording, subject=person).json["id"] != done["id"]


def test_the_gate_alone_is_asked_without_a_record(client, server, recording):
    before = len(server.kinds)
    answer = client.ask("POST", "/v1/quality", recording, {"Content-Type": "audio/wav"})
    assert answer.status == 200
    assert answer.json["usable"] is True
    assert len(server.kinds) == before


def test_an_unknown_screening_is_not_found(client):
    for path in ("0" * 32, "x", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "0" * 31, "A" * 32):
        assert client.get(f"/v1/screenings/{path}").status == 404


def test_a_person_has_to_be_told_first_where_the_site_asks_for_it(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), require_notice=True) as server:
        client = server.client()
        assert client.screen(recording).json["type"] == "urn:clinical-ser:problem:no-notice"
        assert client.screen(recording, notice="v1").status == 201
        assert client.screen(recording, age=40).status == 201
        assert client.screen(recording, notice="v2").status == 200
    with server.audit.read() as reader:
        told = [record.payload for record in reader.records() if record.event.kind in {"notice", "inference"}]
    assert [getattr(each, "text_version", None) or each.notice for each in told] == ["v1", "v1", "v1", "v2"]


def test_a_recording_that_decodes_to_more_than_is_answered_at_once_is_accepted(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), limits={"at_once_s": 20.0}) as server:
        accepted = server.client().screen(recording)
        assert accepted.status == 202
        assert finished(server.client(), accepted.headers["location"])["state"] == "done"


def test_results_are_forgotten_after_their_time_and_not_because_a_clock_leapt(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),)) as server:
        done = server.client().screen(recording).json
        service = server.service
        service.store.expire(timedelta(days=1), timedelta(days=1))
        assert server.client().get(done["links"]["self"]).status == 200
        service.store.expire(timedelta(0), timedelta(0))
        assert server.client().get(done["links"]["self"]).status == 404
        assert service._clock_goes_on()
        service._started_at = (service._started_at[0] - 7200, service._started_at[1])
        assert not service._clock_goes_on()


def test_a_key_that_only_sends_recordings_reads_no_reviews(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    client.post(done["links"]["review"], {"decision": "agreed", "reason": "private"})
    again = server.client("screenings:write").screen(recording, subject=person)
    assert (again.status, again.json["id"], again.json["reviews"]) == (200, done["id"], [])


def test_a_review_that_is_sent_again_is_recorded_once(client, server, recording, person):
    done = client.screen(recording, subject=person).json
    key = {"Idempotency-Key": "once"}
    first, again = (client.post(done["links"]["review"], {"decision": "agreed", "reason": "x"}, **key) for _ in range(2))
    assert first.json == again.json
    assert len(client.get(done["links"]["self"]).json["reviews"]) == 1


def test_a_bundle_that_cannot_name_the_person_is_refused_and_not_recorded_as_shown(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), fhir={"subject": "reference"}) as server:
        done = server.client().screen(recording, subject="MRN 42/7").json
        answer = server.client().get(done["links"]["fhir"])
        assert (answer.status, answer.json["type"]) == (409, "urn:clinical-ser:problem:subject")
        assert "report" not in server.kinds
