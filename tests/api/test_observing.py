"""The outermost layer: ids, headers, one line and one count a request, whatever happens inside."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from clinical_ser.api.logs import Logs
from clinical_ser.api.metrics import ServerMetrics, Stage
from clinical_ser.api.observing import Observing
from clinical_ser.api.tracing import NO_FASTAPI_TELEMETRY
from tests.api.observed import App, Written, ask, asking, logging_to, samples

FIXED = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[Logs, Written]]:
    with logging_to(tmp_path / "log", "debug") as both:
        yield both


@pytest.fixture
def written(log: tuple[Logs, Written]) -> Written:
    return log[1]


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics("0")


@pytest.fixture
def observing(log: tuple[Logs, Written], metrics: ServerMetrics) -> Observing:
    return Observing(log[0], metrics)


def fastapi_app() -> FastAPI:
    app = FastAPI(telemetry=NO_FASTAPI_TELEMETRY, docs_url=None, redoc_url=None, openapi_url=None)
    inner = APIRouter(prefix="/inner")

    @app.get("/things/{name}")
    async def thing(name: str, request: Request) -> dict[str, str]:
        return {"id": request.state.request_id}

    @app.put("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("secret words")

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(403)

    @app.get("/busy")
    async def busy() -> Response:
        return PlainTextResponse("", 503)

    @app.get("/readyz")
    async def readyz(ok: int) -> Response:
        return PlainTextResponse("", 200 if ok else 404)

    @inner.get("/{which}")
    async def which(which: str) -> str:
        return which

    app.include_router(inner, prefix="/outer")
    return app


def request_lines(written: Written) -> list[dict]:
    return written.lines("request")


# The id


def test_each_request_gets_an_id_of_its_own_in_scope_header_and_log(observing: Observing, written: Written) -> None:
    app = observing.around(fastapi_app())
    answers = [ask(app, "/things/a") for _ in range(3)]
    ids = [answer.header("x-request-id") for answer in answers]
    assert len(set(ids)) == 3
    assert all(len(each) == 32 and int(each, 16) for each in ids)
    assert [answer.scope["state"]["request_id"] for answer in answers] == ids
    assert [line["request_id"] for line in request_lines(written)] == ids
    assert answers[0].body == b'{"id":"%s"}' % ids[0].encode()


def test_an_id_that_the_client_sends_is_not_taken_over(observing: Observing, written: Written) -> None:
    answer = ask(observing.around(fastapi_app()), "/things/a", headers=[(b"x-request-id", b"mine")])
    assert answer.header("x-request-id") != "mine"
    assert "mine" not in written.text


def test_state_that_the_server_put_there_stays(observing: Observing) -> None:
    async def app(scope, receive, send) -> None:
        assert scope["state"]["pool"] == "theirs"
        assert scope["state"]["request_id"]
        await Response()(scope, receive, send)

    async def with_state(scope, receive, send) -> None:
        await observing.around(app)({**scope, "state": {"pool": "theirs"}}, receive, send)

    assert ask(with_state).error is None


# Headers


@pytest.mark.parametrize("path", ["/things/a", "/broken", "/refused", "/nowhere", "/things/a/"])
def test_every_answer_has_the_fixed_headers_once(observing: Observing, path: str) -> None:
    answer = ask(observing.around(fastapi_app()), path)
    assert {name: answer.header(name) for name in FIXED} == FIXED
    assert answer.header("x-request-id")
    assert answer.header("strict-transport-security") is None


def test_over_https_browsers_are_told_to_stay_there(observing: Observing) -> None:
    answer = ask(observing.around(fastapi_app()), "/things/a", scheme="https")
    assert answer.header("strict-transport-security") == "max-age=31536000"


def test_a_route_may_set_its_own_caching_and_content_policy(observing: Observing) -> None:
    app = Response(headers={"Cache-Control": "max-age=60", "Content-Security-Policy": "default-src 'self'"})
    answer = ask(observing.around(app))
    assert (answer.header("cache-control"), answer.header("content-security-policy")) == ("max-age=60", "default-src 'self'")


def test_a_route_cannot_loosen_or_double_the_other_headers(observing: Observing) -> None:
    async def app(scope, receive, send) -> None:
        headers = [(b"X-Content-Type-Options", b"no"), (b"X-Request-Id", b"own"), (b"Strict-Transport-Security", b"max-age=0"), (b"X-Kept", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    answer = ask(observing.around(app), scheme="https")
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("x-request-id") == answer.scope["state"]["request_id"]
    assert answer.header("strict-transport-security") == "max-age=31536000"
    assert answer.header("x-kept") == "1"


def test_several_cookies_stay_several(observing: Observing) -> None:
    response = Response()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    answer = ask(observing.around(response))
    assert len([name for name, _ in answer.headers if name == b"set-cookie"]) == 2


# What is logged and counted


def test_a_request_is_one_line_with_its_template_and_never_its_path(observing: Observing, written: Written) -> None:
    ask(observing.around(fastapi_app()), "/things/jane-doe?name=jane-doe")
    (line,) = request_lines(written)
    assert line.pop("time").endswith("Z")
    assert 0 <= line.pop("duration_ms") < 10_000
    assert len(line.pop("request_id")) == 32
    assert line == {"level": "info", "event": "request", "method": "GET", "route": "/things/{name}", "status": 200, "bytes_in": 0}
    assert "jane" not in written.text


@pytest.mark.parametrize(
    ("path", "method", "route"),
    [
        ("/things/a", "GET", "/things/{name}"),
        ("/things/a", "POST", "/things/{name}"),  # 405: the route is known
        ("/outer/inner/x", "GET", "/outer/inner/{which}"),
        ("/nowhere", "GET", "(none)"),
        ("/things/a/", "GET", "(none)"),  # a redirect
        ("/outer/inner", "GET", "(none)"),
        ("", "GET", "(none)"),
    ],
)
def test_the_route_is_the_template_of_whatever_took_the_request(
    observing: Observing, written: Written, metrics: ServerMetrics, path: str, method: str, route: str
) -> None:
    ask(observing.around(fastapi_app()), path, method)
    assert [line["route"] for line in request_lines(written)] == [route]
    counted = [name for name in samples(metrics) if name.startswith("clinical_ser_http_request_duration_seconds_count")]
    assert len(counted) == 1
    assert f'route="{route}"' in counted[0]


def test_starlettes_own_routes_and_mounts_have_templates_too(observing: Observing, written: Written) -> None:
    def endpoint(request: Request) -> Response:
        return PlainTextResponse("")

    routes = [Route("/a/{x:path}", endpoint), Mount("/m", app=PlainTextResponse("")), Mount("/n", routes=[Route("/in/{y}", endpoint)])]
    app = observing.around(Starlette(routes=routes))
    for path in ("/a/b/c", "/m/secret", "/n/in/secret"):
        assert ask(app, path).status == 200
    assert [line["route"] for line in request_lines(written)] == ["/a/{x}", "/m/{path}", "/in/{y}"]


def test_an_unknown_method_is_one_word_in_log_and_metrics(observing: Observing, written: Written, metrics: ServerMetrics) -> None:
    app = observing.around(fastapi_app())
    ask(app, "/things/a", "BREW")
    ask(app, "/things/a", "get")
    assert [line["method"] for line in request_lines(written)] == ["_OTHER", "_OTHER"]
    assert samples(metrics)['clinical_ser_http_request_duration_seconds_count{method="_OTHER",route="/things/{name}",status="4xx"}'] == 2


def test_requests_are_counted_by_status_class_and_time(observing: Observing, metrics: ServerMetrics) -> None:
    app = observing.around(fastapi_app())
    for path in ("/things/a", "/things/b", "/refused", "/broken"):
        ask(app, path)
    found = samples(metrics)
    count = "clinical_ser_http_request_duration_seconds_count"
    assert found[count + '{method="GET",route="/things/{name}",status="2xx"}'] == 2
    assert found[count + '{method="GET",route="/refused",status="4xx"}'] == 1
    assert found[count + '{method="GET",route="/broken",status="5xx"}'] == 1
    assert found["clinical_ser_http_requests_in_progress"] == 0


def test_a_slow_request_is_timed_to_its_end(observing: Observing, written: Written, metrics: ServerMetrics) -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.05)
        assert samples(metrics)["clinical_ser_http_requests_in_progress"] == 1
        await send({"type": "http.response.body"})

    assert ask(observing.around(app)).error is None
    assert request_lines(written)[0]["duration_ms"] >= 50
    assert samples(metrics)['clinical_ser_http_request_duration_seconds_sum{method="GET",route="(none)",status="2xx"}'] >= 0.05


@pytest.mark.parametrize(
    ("parts", "logged"),
    [([b""], 0), ([b"x"], 1000), ([b"x" * 600, b"x" * 600], 1200), ([b"x" * 160_044], 160_000), ([b"x" * 999_999], 1_000_000)],
)
def test_a_bodys_size_is_logged_to_two_digits(observing: Observing, written: Written, parts: list[bytes], logged: int) -> None:
    answer = ask(observing.around(fastapi_app()), "/body", "PUT", body=parts)
    assert answer.body == str(sum(map(len, parts))).encode()
    assert request_lines(written)[0]["bytes_in"] == logged


def test_how_much_a_line_matters_follows_from_the_answer(observing: Observing, written: Written) -> None:
    app = observing.around(fastapi_app())
    for path in ("/things/a", "/refused", "/busy", "/broken", "/readyz?ok=1", "/readyz?ok=0"):
        ask(app, path)
    assert [line["level"] for line in request_lines(written)] == ["info", "info", "warning", "error", "debug", "info"]


# Failures


def test_of_an_exception_the_type_is_logged_and_not_what_it_says(observing: Observing, written: Written) -> None:
    answer = ask(observing.around(fastapi_app()), "/broken")
    assert (answer.status, type(answer.error)) == (500, ValueError)
    (line,) = request_lines(written)
    assert (line["status"], line["level"], line["errors"]) == (500, "error", ["ValueError"])
    assert "secret" not in written.text


def test_an_exception_that_nobody_answered_is_answered_with_a_problem_and_goes_on(observing: Observing, written: Written) -> None:
    async def app(scope, receive, send) -> None:
        raise KeyError("secret words")

    answer = ask(observing.around(app))
    assert (answer.status, type(answer.error), answer.header("content-type")) == (500, KeyError, "application/problem+json")
    assert answer.scope["state"]["request_id"].encode() in answer.body
    assert b"secret" not in answer.body
    assert {name: answer.header(name) for name in FIXED} == FIXED
    assert [line["status"] for line in request_lines(written)] == [500]


def test_an_exception_after_the_answer_began_adds_no_second_answer(observing: Observing, written: Written) -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError

    answer = ask(observing.around(app))
    assert [message["type"] for message in answer.messages] == ["http.response.start"]
    assert isinstance(answer.error, KeyError)
    assert [(line["status"], line["errors"]) for line in request_lines(written)] == [(200, ["KeyError"])]


def test_a_task_that_is_cancelled_is_still_logged_and_counted(observing: Observing, written: Written, metrics: ServerMetrics) -> None:
    async def app(scope, receive, send) -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.ensure_future(observing.around(app)({"type": "http", "method": "GET", "headers": []}, None, None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert [(line["status"], line["errors"]) for line in request_lines(written)] == [(500, ["CancelledError"])]
    assert samples(metrics)["clinical_ser_http_requests_in_progress"] == 0


# Clients that go away


def test_a_client_that_goes_away_while_sending_is_499_and_no_failure(observing: Observing, written: Written, metrics: ServerMetrics) -> None:
    async def app(scope, receive, send) -> None:
        await Request(scope, receive).body()

    answer = ask(observing.around(app), "/body", "PUT", body=[b"x" * 5000], gone_after=1)
    assert (answer.error, answer.messages) == (None, [])
    (line,) = request_lines(written)
    assert (line["status"], line["level"], line["bytes_in"], "errors" in line) == (499, "info", 5000, False)
    assert samples(metrics)['clinical_ser_http_request_duration_seconds_count{method="PUT",route="(none)",status="499"}'] == 1


def test_a_client_that_goes_away_is_499_whatever_the_route_answers_then(observing: Observing, written: Written) -> None:
    async def app(scope, receive, send) -> None:
        try:
            await Request(scope, receive).body()
        except ClientDisconnect:
            await Response(status_code=400)(scope, receive, lambda _: asyncio.sleep(0))

    ask(observing.around(app), gone_after=0)
    assert [line["status"] for line in request_lines(written)] == [499]


def test_a_client_that_goes_away_while_it_is_answered_is_499(observing: Observing, written: Written) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0)

    ask(observing.around(StreamingResponse(endless())), send_fails=True)
    assert [line["status"] for line in request_lines(written)] == [499]


def test_a_failure_of_ours_after_the_client_went_away_is_told(observing: Observing, written: Written) -> None:
    async def app(scope, receive, send) -> None:
        await receive()
        raise KeyError

    ask(observing.around(app), gone_after=0)
    assert [(line["status"], line["errors"], line["level"]) for line in request_lines(written)] == [(499, ["KeyError"], "error")]


def test_a_client_that_goes_away_after_its_answer_got_it(observing: Observing, written: Written) -> None:
    async def app(scope, receive, send) -> None:
        await JSONResponse({})(scope, receive, send)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    assert ask(observing.around(app)).error is None
    assert [line["status"] for line in request_lines(written)] == [200]


# What else goes through


def test_what_is_no_request_goes_through_unseen(observing: Observing, written: Written) -> None:
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(scope)

    asyncio.run(observing.around(app)({"type": "lifespan"}, None, None))
    assert seen == [{"type": "lifespan"}]
    assert request_lines(written) == []


def test_many_requests_at_once_keep_their_ids_apart(observing: Observing, written: Written) -> None:
    app: App = observing.around(fastapi_app())

    async def many() -> list:
        return await asyncio.gather(*(asking(app, f"/things/{number}") for number in range(50)))

    answers = asyncio.run(many())
    assert all(answer.body == b'{"id":"%s"}' % answer.header("x-request-id").encode() for answer in answers)
    assert {line["request_id"] for line in request_lines(written)} == {answer.header("x-request-id") for answer in answers}


# Parts of a screening


def test_a_stage_is_timed_also_when_it_fails(observing: Observing, metrics: ServerMetrics) -> None:
    with observing.stage(Stage.WORK):
        pass
    with pytest.raises(KeyError), observing.stage(Stage.WORK):
        raise KeyError
    found = samples(metrics)
    assert found['clinical_ser_stage_duration_seconds_count{stage="work"}'] == 2
    assert found['clinical_ser_stage_duration_seconds_count{stage="record"}'] == 0
