"""The page in a real browser with a synthetic microphone, against the real server: `make browser`. Where there is no Chromium these are skipped."""

import base64
import io
import json
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import numpy as np
import pytest
import soundfile
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clinical_ser.api.api_keys import add_key, revoke_key
from clinical_ser.api.screenings import ScreeningView
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.events import Review
from clinical_ser.audit.exports.packet import verify_export
from clinical_ser.audit.merkle import Frontier, leaf_hash
from clinical_ser.audit.notes import Algorithm, Ed25519Signer, VerifierKey
from clinical_ser.audit.tiles import tile_path
from reports import numbers
from reports.clinician import html_report
from tests import signals
from tests.api.page_server import COMPLIANCE, PEOPLE, Site, page_site
from tests.api.servers import Client
from tests.reports import browser, clinician_samples

SUBJECT = "MRN 0042 Müller"
MICROPHONE_HZ = 48_000
WIDTHS = (1280, 320)
LANGUAGES = ("en", "zh")
HOSTILE = '<img src=x onerror="alert(1)">\u202e</p><script>alert(2)</script>'
_FAILED = "Failed to load resource"
_REFUSALS = "document.addEventListener('securitypolicyviolation', e => console.debug(`refused: ${e.effectiveDirective} ${e.blockedURI}`))"


@dataclass
class Window:
    """The page in a window of its own, and what it did."""

    page: object
    site: Site
    requests: list = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """What went wrong by the console and by scripts, and what the policy refused."""

    def open(self, path=""):
        self.page.goto(self.site.address + path)
        self.page.locator("h1").wait_for()
        return self

    def sign_in(self, name):
        self.page.get_by_role("textbox", name=re.compile("Access key|访问密钥")).fill(self.site.keys[name])
        self.page.keyboard.press("Enter")
        self.page.locator("#account").wait_for()
        return self

    def go(self, view):
        self.page.evaluate("view => { location.hash = view; }", view)
        return self

    def button(self, name, **options):
        return self.page.get_by_role("button", name=name, **options)

    def field(self, name, role="textbox"):
        return self.page.get_by_role(role, name=name, exact=True)

    @property
    def heading(self):
        return self.page.locator("h1").inner_text()

    @property
    def text(self):
        return self.page.locator("main").inner_text()

    @property
    def views(self):
        return [link.inner_text() for link in self.page.locator("nav a:visible").all()]

    @property
    def view(self):
        """What the window's title calls the view."""
        return self.page.title().partition(" – ")[0]

    def waits_for(self, words):
        self.page.get_by_text(words).first.wait_for()
        return self

    def until(self, condition):
        """Wait until an expression is true; what Playwright has for this takes a page that may evaluate text."""
        deadline = time.monotonic() + 15
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(50)

    def sent(self, method, path):
        """The requests of a method to a path, without the query."""
        return [one for one in self.requests if one.method == method and urlsplit(one.url).path == path]

    def tab_to(self, name, most=60):
        """Press Tab until what has focus has this name, as a person would who sees where they are."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("(e => e.labels?.[0]?.textContent ?? e.ariaLabel ?? e.textContent)(document.activeElement)").strip() == name:
                return
        raise AssertionError(f"the keyboard does not reach {name}")


def wav(samples, rate_hz=MICROPHONE_HZ):
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()


def speech(phrases=12, *, rate_hz=MICROPHONE_HZ, **options):
    return signals.sentence(phrases=phrases, seed=3, pauses_s=(0.3, 0.4), rate_hz=rate_hz, **options).samples


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if reason := browser.missing():
        (pytest.fail if browser.REQUIRED else pytest.skip)(reason)
    with page_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(site, tmp_path_factory):
    from playwright.sync_api import sync_playwright

    microphone = tmp_path_factory.mktemp("microphone") / "speech.wav"
    microphone.write_bytes(wav(speech()))
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=next(filter(None, map(shutil.which, browser.EXECUTABLES))), args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def new_window(chromium, site):
    """Open windows that share nothing; at the end each must have asked nobody else for anything, and nothing must have gone wrong in it."""
    made = []

    @contextmanager
    def opened(*, fails=False, **options):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"} | options))
        window = Window(context.new_page(), site)
        page = window.page
        page.add_init_script(_REFUSALS)
        page.on("request", lambda one: window.requests.append(one))  # noqa: PLW0108  # playwright marks what it calls
        page.on("console", lambda one: window.told.append(one.text) if one.type == "error" or one.text.startswith("refused: ") else None)
        page.on("pageerror", lambda error: window.told.append(str(error)))
        # Only what goes through a route has its body told.
        page.route("**/v1/screenings", lambda route: route.fallback())
        page.set_default_timeout(15_000)
        try:
            yield window
        finally:
            context.close()
        # What a test makes fail, the browser says too.
        assert [one for one in window.told if not (fails and one.startswith(_FAILED))] == []
        origins = {f"{parts.scheme}://{parts.netloc}" for parts in (urlsplit(one.url) for one in window.requests) if parts.scheme.startswith("http")}
        assert origins <= {site.address.rstrip("/"), site.sign_in.address}

    def make(**options):
        made.append(opened(**options))
        return made[-1].__enter__()

    yield make
    for one in made:
        one.__exit__(None, None, None)
    site.sign_in.behave()


@pytest.fixture
def window(new_window):
    return new_window()


@pytest.fixture
def failing(new_window):
    """A window in which requests are made to fail."""
    return new_window(fails=True)


@pytest.fixture(scope="module")
def api(site):
    return Client(site.server.port, site.keys["both"])


@pytest.fixture(scope="module")
def screened(api):
    """The number of a screening that is answered."""
    return api.screen(wav(speech(6)), model="emotion-emodb").json["id"]


def storage(page):
    return page.evaluate("({...localStorage, ...sessionStorage})")


def refuse(status, kind="refused", detail="No.", **headers):
    """Answer a route with a problem."""
    told = {"type": f"urn:clinical-ser:problem:{kind}", "title": "No", "status": status, "detail": detail, "request_id": "0123abcd"}
    return lambda route: route.fulfill(status=status, body=json.dumps(told), content_type="application/problem+json", headers=headers)


# --- Signing in -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "views"),
    [
        ("clinician", ["New screening", "Results"]),
        ("compliance", ["Audit trail", "Verify the log", "Export"]),
        ("sender", []),
        ("both", ["New screening", "Results", "Audit trail", "Verify the log", "Export"]),
    ],
)
def test_who_signs_in_with_a_key_sees_what_they_may_do_and_nothing_else(window, who, views):
    window.open().sign_in(who)
    assert window.views == views
    for view in ("screen", "result", "trail", "verify", "export"):
        assert window.view in (views or ["New screening"])
        window.go(view)
        window.page.wait_for_timeout(50)
    assert window.view in (views or ["New screening"])


def test_a_key_is_kept_nowhere_but_in_memory(window, site):
    window.open().sign_in("both")
    page = window.page
    assert storage(page) == {}
    assert site.keys["both"] not in page.content()
    assert page.locator("#key").count() == 0
    assert all(site.keys["both"] not in one.url for one in window.requests)
    page.reload()
    page.get_by_role("heading", name="Sign in", exact=True).wait_for()


def test_a_key_that_is_not_known_is_refused_in_words_and_forgotten(failing):
    failing.open()
    failing.field("Access key").fill("cser_aaaaaaaa_" + 43 * "A")
    failing.page.keyboard.press("Enter")
    failing.waits_for("This key is not known here, or no longer good.")
    assert failing.field("Access key").input_value() == ""
    assert failing.page.locator("nav a").count() == 0


@pytest.mark.parametrize("typed", ["", "two words", "clé\u00e9"])
def test_what_cannot_be_a_key_is_not_sent_to_find_out(window, typed):
    window.open()
    window.field("Access key").fill(typed)
    window.page.keyboard.press("Enter")
    window.waits_for("Enter the access key")
    assert window.sent("GET", "/v1/me") == []
    assert window.field("Access key").get_attribute("aria-invalid") == "true"


def by_service(window, path=""):
    window.open(path)
    window.button("Sign in with Example Hospital").click()
    window.page.wait_for_url(window.site.address + "**")
    window.page.locator("#account:visible, [role=alert]:visible").first.wait_for()
    return window


def test_signing_in_at_the_sites_service_uses_pkce_and_leaves_nothing_behind(window, site):
    by_service(window)
    assert window.page.locator("#who").inner_text().startswith("Dr. Ada Example")
    assert window.page.url == site.address
    assert storage(window.page) == {}
    [asked], [sent] = site.sign_in.asked, site.sign_in.exchanged
    verifier = sent["code_verifier"]
    assert len(verifier) >= 43
    assert asked["code_challenge"] == base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    assert asked["redirect_uri"] == site.address
    assert "client_secret" not in sent
    assert len({asked["state"], asked["nonce"], verifier}) == 3


def test_what_outlived_the_redirect_is_gone_before_the_token_is_there(window, site):
    window.page.route("**/token", lambda route: None)
    window.open()
    with window.page.expect_request("**/token"):
        window.button("Sign in with Example Hospital").click()
    assert storage(window.page) == {}
    assert window.page.url == site.address


def test_a_view_that_was_asked_for_is_shown_after_signing_in_elsewhere(window, screened, site):
    by_service(window, f"#result/{screened}")
    assert window.page.url == f"{site.address}#result/{screened}"
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()


def test_an_answer_to_another_windows_sign_in_is_refused_before_a_token_is_asked_for(window, site):
    site.sign_in.forges_state = True
    by_service(window)
    window.waits_for("the answer did not belong to a sign-in that began in this window")
    assert site.sign_in.exchanged == []
    assert (storage(window.page), window.page.url) == ({}, site.address)


def test_a_code_that_comes_without_a_sign_in_is_refused(window, site):
    window.open("?code=stolen&state=made-up")
    window.waits_for("the answer did not belong to a sign-in that began in this window")
    assert site.sign_in.exchanged == []
    assert window.page.url == site.address


def test_an_identity_token_of_another_sign_in_is_refused(window, site):
    site.sign_in.forges_nonce = True
    by_service(window)
    window.waits_for("the answer did not belong to a sign-in")
    assert window.sent("GET", "/v1/me") == []


def test_a_refusal_of_the_sign_in_service_is_told(window, site):
    site.sign_in.refuses = True
    by_service(window)
    window.waits_for("The sign-in service did not let you in.")


def naming_its_issuer(window, issuer):
    """Have the page told what the sign-in service is called."""

    def named(route):
        told = route.fetch().json()
        told["issuers"][0]["issuer"] = issuer
        route.fulfill(json=told)

    window.page.route("**/page/configuration.json", named)


@pytest.mark.parametrize(("configured", "answers"), [(None, "{host}/realm"), ("{host}/realm", "{host}/realm"), ("{host}/realm/", "{host}/realm")])
def test_an_answer_that_names_the_service_that_was_asked_is_taken(window, site, configured, answers):
    naming_its_issuer(window, configured and configured.format(host=site.sign_in.address))
    site.sign_in.named = answers.format(host=site.sign_in.address)
    by_service(window)
    assert window.page.locator("#who").inner_text().startswith("Dr. Ada Example")


@pytest.mark.parametrize(
    ("configured", "answers"), [(None, "https://other.example"), (None, ""), (None, "no address"), ("{host}/realm", "{host}/other"), ("{host}", "")]
)
def test_an_answer_that_names_another_service_is_refused_before_its_code_is_sent_anywhere(window, site, configured, answers):
    naming_its_issuer(window, configured and configured.format(host=site.sign_in.address))
    site.sign_in.named = answers.format(host=site.sign_in.address)
    by_service(window)
    window.waits_for("the answer came from another sign-in service than the one that was asked")
    assert site.sign_in.exchanged == []
    assert (storage(window.page), window.page.url) == ({}, site.address)


@pytest.mark.parametrize("form", ["id", "text", "object"])
def test_a_known_record_systems_link_opens_the_report_that_it_means(window, site, screened, form):
    site.sign_in.screening = {"id": screened, "text": json.dumps({"screening": screened}), "object": {"screening": screened}}[form]
    window.page.goto(f"{site.address}launch?{urlencode({'iss': site.sign_in.fhir, 'launch': 'xyz'})}")
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    assert window.page.url == f"{site.address}#result/{screened}"
    [asked] = site.sign_in.asked
    assert (asked["aud"], asked["launch"], asked["client_id"]) == (site.sign_in.fhir, "xyz", "screening-in-record")
    assert storage(window.page) == {}


@pytest.mark.parametrize("context", [None, "", "../v1/me", {"screening": 7}, '{"other": 1}'])
def test_a_record_system_that_does_not_say_which_screening_is_told_of(window, site, context):
    site.sign_in.screening = context
    window.page.goto(f"{site.address}launch?{urlencode({'iss': site.sign_in.fhir, 'launch': 'xyz'})}")
    window.waits_for("The record system did not say which screening to open.")
    assert not any(urlsplit(one.url).path.startswith("/v1/screenings") for one in window.requests)


@pytest.mark.parametrize("iss", ["https://evil.example/fhir", "", "javascript:alert(1)", "{known}.evil.example", "{known}/more"])
def test_an_unknown_record_system_leads_nowhere(window, site, iss):
    window.open(f"launch?{urlencode({'iss': iss.format(known=site.sign_in.fhir), 'launch': 'xyz'})}")
    window.waits_for("This page was opened by a record system that is not known here")
    assert (site.sign_in.asked, window.page.url) == ([], site.address)


# --- The end of a session ---------------------------------------------------------------------------------------------------------------


def test_signing_out_forgets_everything_that_was_shown(window, screened, site):
    window.open().sign_in("clinician").go(f"result/{screened}")
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    window.button("Sign out").click()
    window.waits_for("You are signed out.")
    assert window.page.locator("nav a, #who *, .answer").count() == 0
    assert window.page.url == site.address
    window.page.go_back()
    assert window.heading == "Sign in"


def test_who_does_nothing_for_15_minutes_is_warned_and_may_stay_and_is_signed_out_otherwise(window):
    window.page.clock.install()
    window.open().sign_in("clinician")
    window.page.clock.fast_forward("12:00")
    assert not window.page.locator("dialog").is_visible()
    window.page.clock.fast_forward("01:10")
    window.page.get_by_role("dialog", name="Are you still there?").wait_for()
    assert not (found := browser.axe(window.page)), "\n".join(map(str, found))
    window.page.keyboard.press("Enter")
    assert not window.page.locator("dialog").is_visible()
    window.page.clock.fast_forward("12:50")
    assert not window.page.locator("dialog").is_visible()
    window.page.clock.fast_forward("02:20")
    window.waits_for("You were signed out after 15 minutes without activity.")
    assert not window.page.locator("dialog").is_visible()


def test_a_question_that_nobody_answers_does_not_keep_a_session_open(window):
    window.page.clock.install()
    window.open().sign_in("clinician")
    choose(window, wav(speech(3)))
    window.button("Discard").click()
    window.page.get_by_role("dialog", name="Discard the recording?").wait_for()
    window.page.clock.fast_forward("13:10")
    window.page.get_by_role("dialog", name="Are you still there?").wait_for()
    window.page.clock.fast_forward("02:00")
    window.waits_for("You were signed out after 15 minutes without activity.")
    assert window.page.locator("audio").count() == 0


def test_who_uses_the_keyboard_is_not_warned(window):
    window.page.clock.install()
    window.open().sign_in("clinician")
    for _ in range(4):
        window.page.clock.fast_forward("10:00")
        window.page.keyboard.press("Tab")
    assert not window.page.locator("dialog").is_visible()
    assert window.heading == "New screening"


def test_a_token_that_ends_soon_is_told_of(window, site):
    site.sign_in.lifetime_s = 110
    by_service(window)
    window.page.get_by_role("dialog", name="Your sign-in ends soon").wait_for()
    assert re.search(r"lets this sign-in last 1:[345]\d more", window.page.locator("dialog").inner_text())


def test_a_token_that_ends_while_something_else_is_asked_is_told_of_afterwards(window, site):
    site.sign_in.lifetime_s = 200
    window.page.clock.install()
    by_service(window)
    choose(window, wav(speech(3)))
    window.button("Discard").click()
    window.page.clock.fast_forward("02:00")
    window.page.get_by_role("dialog", name="Discard the recording?").wait_for()
    window.button("Keep it").click()
    window.page.clock.fast_forward("00:02")
    window.page.get_by_role("dialog", name="Your sign-in ends soon").wait_for()
    assert re.search(r"lets this sign-in last (0:\d\d|1:[01]\d) more", window.page.locator("dialog").inner_text())


def waiting_for(window, screened, api):
    """Have someone wait for a result that does not come."""
    view = api.get(f"/v1/screenings/{screened}").json | {"state": "running", "result": None, "audit": None, "finished_at": None}
    window.page.route(f"**/v1/screenings/{screened}", lambda route: route.fulfill(json=view, headers={"Retry-After": "30"}))
    window.page.clock.install()
    window.open().sign_in("clinician").go(f"result/{screened}")
    return window.waits_for("The recording is being screened.")


def test_waiting_for_a_result_keeps_a_session_for_half_an_hour_and_no_longer(window, screened, api):
    waiting_for(window, screened, api)
    for _ in range(4):
        window.page.clock.fast_forward("10:00")
        window.page.wait_for_timeout(100)
    assert not window.page.locator("dialog").is_visible()
    window.page.clock.fast_forward("03:10")
    window.page.get_by_role("dialog", name="Are you still there?").wait_for()


def test_a_server_that_does_not_answer_keeps_no_session(failing, screened, api):
    waiting_for(failing, screened, api)
    failing.page.route(f"**/v1/screenings/{screened}", lambda route: route.abort())
    failing.page.clock.fast_forward("00:31")
    failing.waits_for("The server did not answer.")
    failing.page.clock.fast_forward("13:10")
    failing.page.get_by_role("dialog", name="Are you still there?").wait_for()


def choose(window, content, name="visit.wav"):
    window.page.locator("#file").set_input_files({"name": name, "mimeType": "audio/wav", "buffer": content})
    window.waits_for("Quality of the whole recording")


def fill_in(window, model="emotion-emodb"):
    window.field("Whom it is of").fill(SUBJECT)
    window.page.locator("#model").select_option(model)


def test_a_recording_outlives_a_sign_in_that_ended_but_only_for_who_made_it(failing):
    failing.open().sign_in("both")
    choose(failing, wav(speech(3)))
    fill_in(failing)
    failing.page.route("**/v1/screenings", refuse(401))
    failing.button("Send for screening").click()
    failing.waits_for("Your sign-in is no longer good.")
    failing.page.unroute("**/v1/screenings")
    failing.sign_in("both").waits_for("Quality of the whole recording")
    assert failing.page.locator("audio").is_visible()

    failing.page.route("**/v1/screenings", refuse(401))
    fill_in(failing)
    failing.button("Send for screening").click()
    failing.waits_for("Your sign-in is no longer good.")
    failing.sign_in("clinician")
    assert failing.page.locator("audio").count() == 0


def refused_with_a_recording(window):
    """Have the session end while there is a recording that was not sent."""
    window.open().sign_in("both")
    choose(window, wav(speech(3)))
    fill_in(window)
    window.page.route("**/v1/screenings", refuse(401))
    window.button("Send for screening").click()
    return window.waits_for("Your sign-in is no longer good.")


def test_a_recording_that_outlived_its_session_is_not_lost_without_asking(failing, site):
    refused_with_a_recording(failing)
    asked = []
    failing.page.on("dialog", lambda one: (asked.append(one.type), one.dismiss()))
    failing.page.close(run_before_unload=True)
    failing.button("Sign in with Example Hospital").click()
    failing.page.get_by_role("dialog", name="There is a recording that was not sent").wait_for()
    assert asked == ["beforeunload"]
    failing.button("Stay here").click()
    assert site.sign_in.asked == []
    failing.sign_in("both").waits_for("Quality of the whole recording")


def test_a_recording_that_someone_gave_up_does_not_hold_them_back(failing, site):
    refused_with_a_recording(failing).button("Sign in with Example Hospital").click()
    failing.button("Sign in there").click()
    failing.page.locator("#account").wait_for()
    assert failing.page.locator("audio").count() == 0


def test_a_recording_is_not_given_to_an_account_of_the_same_name_in_another_tenant(failing):
    refused_with_a_recording(failing)
    failing.page.route("**/v1/me", lambda route: route.fulfill(json=route.fetch().json() | {"tenant": "other"}))
    failing.sign_in("both").field("Whom it is of").wait_for()
    assert failing.page.locator("audio").count() == 0


def test_a_microphone_that_is_allowed_after_the_session_ended_records_nothing(window):
    window.page.add_init_script("""
        const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        const allowed = new Promise(allow => { window.allow = allow; });
        navigator.mediaDevices.getUserMedia = async asked => { await allowed; return (window.stream = await open(asked)); };
    """)
    window.open().sign_in("clinician").button("Record with the microphone").click()
    window.button("Sign out").click()
    window.waits_for("You are signed out.")
    window.page.evaluate("window.allow()")
    window.until("window.stream?.getTracks().every(track => track.readyState === 'ended')")


def test_signing_out_with_a_recording_that_was_not_sent_is_asked_about(window):
    window.open().sign_in("clinician")
    choose(window, wav(speech(3)))
    window.button("Sign out").click()
    window.page.get_by_role("dialog", name="There is a recording that was not sent").wait_for()
    window.button("Go back to it").click()
    assert window.page.locator("audio").is_visible()
    window.button("Sign out").click()
    window.page.locator("dialog").get_by_role("button", name="Sign out").click()
    window.waits_for("You are signed out.")
    window.sign_in("clinician")
    assert window.page.locator("audio").count() == 0


# --- From the microphone to the review --------------------------------------------------------------------------------------------------


def test_the_whole_way_by_keyboard_alone(window, site):
    """Sign in, say whom it is of, record with the gate live, listen, send, read, open the report, review."""
    page = window.page
    window.open()
    window.tab_to("Access key")
    page.keyboard.insert_text(site.keys["clinician"])
    page.keyboard.press("Enter")
    page.locator("#account").wait_for()
    window.tab_to("Whom it is of")
    page.keyboard.insert_text(SUBJECT)
    window.tab_to("Age in years")
    page.keyboard.type("54")
    window.tab_to("Record with the microphone")
    page.keyboard.press("Enter")
    page.locator("#gate .checks li").first.wait_for()
    assert "Quality so far" in window.text
    assert len(window.sent("POST", "/v1/quality")) == 1
    page.wait_for_timeout(1500)
    assert page.evaluate("document.activeElement.textContent") == "Stop"
    page.keyboard.press("Enter")
    window.waits_for("Quality of the whole recording")
    window.tab_to("Send for screening")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Result", exact=True).wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    assert f"Of: {SUBJECT}" in window.text
    assert "Most similar to:" in window.text
    assert re.search(r"Probability of \w+: .* % \(95 % interval", window.text)

    window.tab_to("Show the report")
    page.keyboard.press("Enter")
    frame = page.locator("iframe")
    frame.wait_for()
    assert frame.get_attribute("sandbox") == ""
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="Speech screening report").wait_for()
    assert report.locator("h1").evaluate("e => getComputedStyle(e).fontWeight") == "650"
    window.tab_to("Close the report")
    page.keyboard.press("Enter")

    window.tab_to("I agree with the answer")
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("I decide otherwise").is_checked()
    window.tab_to("Reason")
    page.keyboard.insert_text("Sounded tired after the night shift.")
    window.tab_to("Record the review")
    page.keyboard.press("Enter")
    window.waits_for(re.compile(r"Recorded in the audit trail as record \d+"))
    assert "Decided otherwise" in page.locator(".reviews").inner_text()
    assert "Dr. Ada Example" in page.locator(".reviews").inner_text()
    index = int(re.search(r"as record (\d+)", window.text)[1])
    with site.server.audit.read() as reader:
        review = reader.record(index).payload
        assert isinstance(review, Review)
        assert (review.decision, review.reason, review.actor.name) == ("overridden", "Sounded tired after the night shift.", PEOPLE["clinician"][2])
        assert index in reader.named(SUBJECT)
    assert not any("MRN" in one.url or "0042" in one.url for one in window.requests)


def record(window, seconds):
    window.button("Record with the microphone").click()
    window.until(f"document.querySelector('.time')?.textContent >= '0:0{seconds}'")


def sent_recording(window):
    """What was sent last, taken apart: metadata and samples."""
    line, _, raw = window.sent("POST", "/v1/screenings")[-1].post_data_buffer.partition(b"\n")
    return json.loads(line), raw


def test_what_the_microphone_heard_is_sent_as_mono_16_bit_at_the_devices_rate(window):
    window.open().sign_in("clinician")
    fill_in(window)
    window.page.locator("#sex").select_option("female")
    window.field("What was spoken").fill("interview")
    window.field("Version of the notice given").fill("2026-1")
    record(window, 3)
    window.button("Stop").click()
    window.page.locator("audio").wait_for()
    told = window.page.locator("#recording strong").first.inner_text()
    window.button("Send for screening").click()
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    metadata, raw = sent_recording(window)
    heard = soundfile.info(io.BytesIO(raw))
    rate = window.page.evaluate("new AudioContext().sampleRate")
    assert (heard.channels, heard.subtype, heard.samplerate) == (1, "PCM_16", rate)
    assert told == f"Recorded: 0:0{int(heard.duration)}"
    samples, _ = soundfile.read(io.BytesIO(raw))
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(np.sqrt(np.mean(speech() ** 2)), rel=0.4)
    today = window.page.evaluate("new Date().toLocaleDateString('sv')")
    assert metadata == {
        "subject": SUBJECT, "model": "emotion-emodb", "sex": "female", "task": "interview", "recorded_on": today, "notice": "2026-1",
    }  # fmt: skip


def test_the_microphone_is_asked_for_as_it_is(window):
    window.page.add_init_script("""
        const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = asked => { window.asked = asked; return open(asked); };
    """)
    window.open().sign_in("clinician")
    record(window, 1)
    assert window.page.evaluate("window.asked") == {
        "audio": {"channelCount": 1, "echoCancellation": False, "noiseSuppression": False, "autoGainControl": False}
    }


def test_a_pause_is_not_recorded_and_a_discarded_recording_is_gone(window):
    window.open().sign_in("clinician")
    record(window, 1)
    window.button("Pause").click()
    window.page.wait_for_timeout(200)
    before = window.page.locator(".time").inner_text()
    window.page.wait_for_timeout(1500)
    assert window.page.locator(".time").inner_text() == before
    assert "Paused" in window.text
    window.button("Go on").click()
    window.until(f"document.querySelector('.time').textContent > '{before}'")
    window.button("Discard").click()
    window.button("Keep it").click()
    assert window.button("Stop").is_visible()
    window.button("Discard").click()
    window.button("Discard it").click()
    window.button("Record with the microphone").wait_for()
    assert window.page.locator("audio, meter").count() == 0


def test_the_level_is_shown_and_said(window):
    window.open().sign_in("clinician")
    record(window, 1)
    window.until("document.querySelector('meter').value > -40")
    window.page.get_by_text("Level: good").first.wait_for()
    assert "Level: " in window.page.locator(".level [role=status]").text_content()


def test_a_recording_ends_by_itself_where_it_would_be_too_long_to_send(window):
    def shorter(route):
        told = route.fetch().json()
        told["limits"]["recording_s"] = 1.5
        route.fulfill(json=told)

    window.page.route("**/page/configuration.json", shorter)
    window.open().sign_in("clinician")
    window.button("Record with the microphone").click()
    window.waits_for("The longest recording that can be sent is reached.")
    assert "What was recorded until then is kept." in window.text
    assert window.page.locator("audio").is_visible()


def test_a_recording_goes_on_when_the_gate_cannot_be_asked(failing):
    failing.page.route("**/v1/quality*", lambda route: route.abort())
    failing.open().sign_in("clinician")
    record(failing, 1)
    failing.waits_for("The quality is no longer checked while you record. The recording goes on.")
    so_far = failing.page.locator(".time").inner_text()
    failing.until(f"document.querySelector('.time').textContent > '{so_far}'")
    failing.button("Stop").click()
    failing.page.locator("audio").wait_for()


def test_a_busy_gate_is_asked_again_when_it_says(failing):
    answers = [refuse(429, **{"Retry-After": "1"}), lambda route: route.fallback()]
    failing.page.route("**/v1/quality*", lambda route: answers.pop(0)(route) if answers else route.fallback())
    failing.open().sign_in("clinician")
    record(failing, 1)
    failing.page.locator("#gate .checks li").first.wait_for()


@pytest.mark.parametrize(
    ("name", "words"),
    [("NotAllowedError", "was not allowed to use it"), ("NotFoundError", "There is none"), ("AbortError", "Another program may be using it")],
)
def test_a_microphone_that_cannot_be_used_is_told_of_and_a_file_can_still_be_chosen(window, name, words):
    window.page.add_init_script(f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{name}'); }}")
    window.open().sign_in("clinician")
    window.button("Record with the microphone").click()
    window.waits_for("The microphone cannot be used")
    assert words in window.text
    choose(window, wav(speech(3)))


def test_a_file_is_dropped_judged_once_and_sent(window):
    window.open().sign_in("clinician")
    data = window.page.evaluate_handle(
        """encoded => {
            const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "dropped.wav", { type: "audio/wav" }));
            return data;
        }""",
        base64.b64encode(wav(speech(12))).decode(),
    )
    window.page.locator("#recording").dispatch_event("drop", {"dataTransfer": data})
    window.waits_for("Quality of the whole recording")
    assert "dropped.wav" in window.text
    assert len(window.sent("POST", "/v1/quality")) == 1
    fill_in(window, "depression-simulated")
    window.waits_for("recommended at least 25 s")
    assert len(window.sent("POST", "/v1/quality")) == 2
    window.button("Send for screening").click()
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    assert "SIMULATED MODEL" in window.text


def test_what_is_missing_is_said_beside_its_field_and_nothing_is_sent(window):
    window.open().sign_in("clinician")
    window.button("Send for screening").click()
    assert window.page.evaluate("document.activeElement.id") == "subject"
    assert "Say whom the recording is of." in window.text
    fill_in(window)
    window.field("Age in years", "spinbutton").fill("131")
    window.button("Send for screening").click()
    assert window.page.evaluate("document.activeElement.id") == "age"
    window.field("Age in years", "spinbutton").fill("")
    window.button("Send for screening").click()
    window.waits_for("There is no recording yet")
    assert window.sent("POST", "/v1/screenings") == []
    assert not (found := browser.axe(window.page)), "\n".join(map(str, found))


def test_what_is_of_one_person_is_not_left_standing_for_the_next(window):
    window.open().sign_in("clinician")
    choose(window, wav(speech(3)))
    fill_in(window)
    window.page.locator("#sex").select_option("female")
    window.page.locator("#notice").fill("2026-1")
    window.button("Send for screening").click()
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    window.go("screen")
    window.field("Whom it is of").wait_for()
    assert [window.page.locator(name).input_value() for name in ("#subject", "#sex", "#notice")] == ["", "", ""]
    assert window.page.locator("audio").count() == 0


def test_a_recording_whose_answer_was_lost_is_sent_again_with_the_same_key_and_answered_once(failing, site):
    def lost(route):
        route.fetch()
        route.abort()

    failing.open().sign_in("clinician")
    choose(failing, wav(speech(4, f0_hz=141.0)))
    fill_in(failing)
    failing.page.route("**/v1/screenings", lost, times=1)
    failing.button("Send for screening").click()
    failing.waits_for("The server did not answer.")
    assert "The recording is still here." in failing.text
    failing.button("Try again").click()
    failing.page.get_by_role("heading", name="Result", exact=True).wait_for()
    first, second = failing.sent("POST", "/v1/screenings")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.post_data_buffer == second.post_data_buffer
    record_string = failing.page.locator("#record-string").inner_text()
    with site.server.audit.read() as reader:
        kinds = [reader.record(index).event.kind for index in reader.about(record_string)]
    assert kinds.count("inference") == 1


def test_other_words_about_the_same_recording_are_another_request(failing):
    failing.open().sign_in("clinician")
    choose(failing, wav(speech(3)))
    fill_in(failing)
    failing.page.route("**/v1/screenings", refuse(503, "not-recorded", "The audit trail cannot take a record now.", **{"Retry-After": "5"}))
    failing.button("Send for screening").click()
    failing.waits_for("The server cannot do this now.")
    assert "The audit trail cannot take a record now." in failing.text
    assert "Try again in 5 seconds." in failing.text
    assert "Request: 0123abcd" in failing.text
    failing.field("Age in years", "spinbutton").fill("30")
    failing.button("Send for screening").click()
    failing.until("!document.querySelector('button[type=submit]').disabled")
    keys = [one.headers["idempotency-key"] for one in failing.sent("POST", "/v1/screenings")]
    assert len(keys) == len(set(keys)) == 2


def test_a_file_that_is_no_recording_is_told_of_in_words(failing):
    failing.open().sign_in("clinician")
    failing.page.locator("#file").set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": b"no sound"})
    failing.waits_for("The recording could not be used")
    fill_in(failing)
    failing.button("Send for screening").click()
    failing.button("Try again").wait_for()
    assert "The recording could not be answered" in failing.text
    assert re.search(r"Request: [0-9a-f]{32}", failing.text)


def test_a_file_that_is_too_large_is_not_sent(window):
    def smaller(route):
        told = route.fetch().json()
        told["limits"]["body_bytes"] = 1000
        route.fulfill(json=told)

    window.page.route("**/page/configuration.json", smaller)
    window.open().sign_in("clinician")
    window.page.locator("#file").set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": wav(speech(3))})
    window.waits_for("The file is too large.")
    assert window.sent("POST", "/v1/quality") == []


def test_a_recording_that_is_answered_later_is_waited_for(window):
    window.page.route("**/v1/screenings", lambda route: route.continue_(headers=route.request.headers | {"prefer": "respond-async"}))
    window.open().sign_in("clinician")
    choose(window, wav(speech(5, f0_hz=152.0)))
    fill_in(window)
    window.button("Send for screening").click()
    window.waits_for(re.compile("waits for its turn|being screened"))
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    assert "Most similar to" in window.text


def test_waiting_goes_on_when_the_server_is_gone_for_a_while_and_when_the_page_comes_to_the_front(failing, screened, api):
    view = api.get(f"/v1/screenings/{screened}").json
    waiting = view | {"state": "running", "result": None, "audit": None, "finished_at": None}
    answers = [
        lambda route: route.fulfill(json=waiting, headers={"Retry-After": "1"}),
        lambda route: route.abort(),
        lambda route: route.fulfill(json=waiting, headers={"Retry-After": "30"}),
        lambda route: route.fulfill(json=view),
    ]
    failing.page.route(f"**/v1/screenings/{screened}", lambda route: (answers.pop(0))(route))  # noqa: PLW0108  # another one each time
    failing.open().sign_in("clinician").go(f"result/{screened}")
    failing.waits_for("The recording is being screened.")
    failing.waits_for("The server did not answer.")
    failing.until("!document.querySelector('[role=alert]')")
    failing.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    failing.page.get_by_role("heading", name="Result", exact=True).wait_for()
    assert answers == []


# --- What a result says -----------------------------------------------------------------------------------------------------------------


def shown_result(window, made, **changes):
    """Show a result that is not the server's, as if it were."""
    number = "ab" * 16
    view = ScreeningView.model_validate_json(
        json.dumps(
            {
                "id": number,
                "state": "done",
                "accepted_at": "2026-11-03T10:00:00Z",
                "finished_at": "2026-11-03T10:00:01Z",
                "result": json.loads(made.model_dump_json()),
                "failure": None,
                "audit": {"index": 7, "record": f"clinical-ser:result:{made.digest}"},
                "reviews": [],
                "notices": [],
                "links": {"self": "", "report": None, "fhir": None, "review": None},
            }
        )
    )
    body = json.loads(view.model_dump_json()) | changes
    window.page.route(f"**/v1/screenings/{number}", lambda route: route.fulfill(json=body))
    window.open().sign_in("clinician").go(f"result/{number}")
    window.page.locator("#record-title, .notice.fail").first.wait_for()
    return window


def as_text(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def plain_text(window):
    return re.sub(r"\s+", " ", window.text)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["flagged", "not_flagged", "classified"])
def test_an_answer_says_what_its_report_says(new_window, kind, language):
    result = {"flagged": clinician_samples.result, "not_flagged": clinician_samples.not_flagged, "classified": clinician_samples.of_classes}[kind]()
    window = shown_result(new_window(locale=language), result)
    report = as_text(html_report(result, language=language))
    lines = [line.inner_text() for line in window.page.locator("[aria-labelledby=answer-title] p").all()]
    assert len(lines) == 5
    for line in lines:
        assert line in report
    families = [row.inner_text().split("\t") for row in window.page.locator("[aria-labelledby=families-title] tbody tr").all()]
    assert [len(cells) for cells in families] == [3] * len(result.explanation.families)
    for (label, points, _), family in zip(families, result.explanation.families, strict=True):
        assert label == getattr(family, f"label_{language}")
        assert points.startswith(numbers.points(family.probability.value))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["indeterminate", "not_usable", "indeterminate_of_several", "indeterminate_none"])
def test_without_an_answer_there_is_no_number(new_window, kind, language):
    result = {
        "indeterminate": clinician_samples.indeterminate,
        "not_usable": clinician_samples.refused,
        "indeterminate_of_several": lambda: clinician_samples.of_classes(clinician_samples.Status.INDETERMINATE, ("sadness", "fear")),
        "indeterminate_none": lambda: clinician_samples.of_classes(clinician_samples.Status.INDETERMINATE, ()),
    }[kind]()
    window = shown_result(new_window(locale=language), result)
    answer = window.page.locator("[aria-labelledby=answer-title]").inner_text()
    assert "%" not in answer
    assert not re.search(r"\d", answer)
    assert window.page.locator("[aria-labelledby=families-title], table").count() == 0
    report = as_text(html_report(result, language=language))
    for line in window.page.locator("[aria-labelledby=answer-title] p").all():
        assert line.inner_text() in report


def test_a_result_says_what_it_is_and_what_is_safe_whatever_it_answered(window):
    shown_result(window, clinician_samples.not_flagged())
    text = plain_text(window)
    assert "A voice cannot tell whether someone is in danger." in text
    assert "That does not rule illness or risk out." in text
    assert "It is not a diagnosis" in text
    assert clinician_samples.result().intended_use in text


def test_a_job_without_a_result_says_why(window):
    shown_result(window, clinician_samples.result(), state="failed", result=None, audit=None, failure={"code": "time", "detail": "It took too long."})
    assert "The recording could not be screened" in window.text
    assert "It took too long." in window.text


def test_what_others_wrote_is_shown_as_text_and_never_acts(new_window):
    hostile = clinician_samples.result(notices=(HOSTILE,))
    hostile = hostile.model_copy(update={"model": hostile.model.model_copy(update={"name": HOSTILE, "version": HOSTILE})})
    window = new_window()
    alerts = []
    window.page.on("dialog", lambda one: (alerts.append(one.message), one.dismiss()))
    review = {"decision": "agreed", "reason": HOSTILE, "name": HOSTILE, "time": "2026-11-03T11:00:00Z", "index": 9}
    shown_result(window, hostile, notices=[HOSTILE], reviews=[review], links={})
    main = window.page.locator("main")
    assert main.locator("img, script").count() == 0
    assert main.inner_text().count("<img src=x onerror=") >= 5
    assert "\u202e" not in main.inner_text()
    assert "\\u202e" in main.inner_text()
    assert alerts == []


def test_a_hostile_name_goes_through_the_whole_page_as_text(window, site):
    alerts = []
    window.page.on("dialog", lambda one: (alerts.append(one.message), one.dismiss()))
    window.open().sign_in("both")
    choose(window, wav(speech(3)), name="<b>a.wav")
    fill_in(window)
    name = HOSTILE.replace("\u202e", "")
    window.field("Whom it is of").fill(name)
    window.button("Send for screening").click()
    window.page.get_by_role("heading", name="Result", exact=True).wait_for()
    assert name in window.page.locator(".facts").first.inner_text()
    window.go("result")
    window.page.get_by_role("link", name="<img src=x").wait_for()
    window.go("trail")
    window.field("Person").fill(name)
    window.button("Search").click()
    window.waits_for(re.compile(r"^[1-3] records?\."))
    assert window.page.locator("main img, main b, main script").count() == 0
    assert alerts == []


def test_the_report_and_the_bundle_are_saved_under_names_that_say_nothing_of_the_person(window, screened, api):
    window.open().sign_in("clinician").go(f"result/{screened}")
    with window.page.expect_download() as pdf:
        window.button("Save the report as PDF").click()
    assert pdf.value.suggested_filename == f"report-{screened[:8]}.pdf"
    assert Path(pdf.value.path()).read_bytes().startswith(b"%PDF-")
    with window.page.expect_download() as bundle:
        window.button("Save as FHIR").click()
    assert bundle.value.suggested_filename == f"screening-{screened[:8]}.fhir.json"
    assert json.loads(Path(bundle.value.path()).read_bytes())["resourceType"] == "Bundle"


def test_the_report_is_in_the_language_of_the_page(window, screened):
    window.open().sign_in("clinician").go(f"result/{screened}")
    window.button("中文").click()
    window.button("显示报告").click()
    window.page.frame_locator("iframe").get_by_role("heading", name="语音筛查报告").wait_for()
    assert window.page.locator("html").get_attribute("lang") == "zh-Hans-CN"


def test_the_records_string_is_copied(new_window, screened):
    window = new_window(permissions=["clipboard-read", "clipboard-write"])
    window.open().sign_in("clinician").go(f"result/{screened}")
    window.button("Copy").click()
    window.waits_for("Copied.")
    copied = window.page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch("clinical-ser:result:[0-9a-f]{64}", copied)


def test_a_review_needs_a_decision_and_a_reason(window, screened):
    window.open().sign_in("clinician").go(f"result/{screened}")
    window.button("Record the review").click()
    assert "Choose one of the three." in window.text
    assert "Give a reason." in window.text
    window.page.get_by_label("I agree with the answer").check()
    window.button("Record the review").click()
    assert window.page.evaluate("document.activeElement.id") == "reason"
    assert window.sent("POST", f"/v1/screenings/{screened}/review") == []


def test_a_screening_is_opened_by_its_number_and_what_is_no_number_is_not_asked_for(failing, screened):
    failing.open().sign_in("clinician").go("result")
    failing.field("Open another screening").fill("../me")
    failing.button("Open", exact=True).click()
    failing.waits_for("A screening's number is 32 digits")
    failing.field("Open another screening").fill(screened.upper())
    failing.button("Open", exact=True).click()
    failing.page.get_by_role("heading", name="Result", exact=True).wait_for()
    failing.field("Open another screening").fill("0" * 32)
    failing.button("Open", exact=True).click()
    failing.waits_for("There is no such thing here, or none that you may see.")


# --- The trail --------------------------------------------------------------------------------------------------------------------------


def rows(window):
    return window.page.locator(".trail tbody tr:not(.details)")


def test_the_trail_is_filtered_by_what_happened(window, screened):
    window.open().sign_in("compliance")
    rows(window).first.wait_for()
    window.page.locator("#kind").select_option("inference")
    window.button("Search").click()
    window.waits_for("There are no more.")
    assert rows(window).count() >= 1
    assert {row.locator("td").nth(1).inner_text() for row in rows(window).all()} == {"Answer given"}
    window.page.locator("#outcome").select_option("8")
    window.button("Search").click()
    window.waits_for("0 records.")


def test_days_are_looked_for_by_utc(window, screened):
    window.open().sign_in("compliance")
    window.page.locator("#until").fill("2000-01-01")
    window.button("Search").click()
    window.waits_for("0 records.")
    window.page.locator("#since").fill("2000-01-02")
    window.button("Search").click()
    assert "the last is not before the first" in window.text
    window.page.locator("#until").fill("2999-01-01")
    window.button("Search").click()
    rows(window).first.wait_for()
    asked = [parse_qs(urlsplit(one.url).query).get("date") for one in window.sent("GET", "/v1/AuditEvent")]
    assert asked == [None, ["le2000-01-01"], ["ge2000-01-02", "le2999-01-01"]]


def test_a_person_is_looked_for_without_their_name_in_an_address(window, api):
    api.screen(wav(speech(3, f0_hz=133.0)), subject=SUBJECT + " 7", model="emotion-emodb")
    window.open().sign_in("compliance")
    window.field("Person").fill(SUBJECT + " 7")
    window.button("Search").click()
    window.waits_for(re.compile(r"^1 record\."))
    [sent] = window.sent("POST", "/v1/AuditEvent/_search")
    assert dict(parse_qsl(sent.post_data))["subject"] == SUBJECT + " 7"
    assert not any("0042" in one.url for one in window.requests)


def test_the_trail_goes_on_page_by_page_also_for_a_person(window, api):
    for f0_hz in (120.0, 127.0, 134.0, 141.0):
        api.screen(wav(speech(3, f0_hz=f0_hz)), subject=SUBJECT + " 8", model="emotion-emodb")

    def smaller(route):
        one = route.request
        if one.method == "POST":
            route.continue_(post_data=one.post_data.replace("_count=50", "_count=3"))
        else:
            route.continue_(url=one.url.replace("_count=50", "_count=3"))

    window.page.route("**/v1/AuditEvent*", smaller)
    window.page.route("**/v1/AuditEvent/_search", smaller)
    window.open().sign_in("compliance")
    window.waits_for(re.compile(r"^3 records\."))
    window.button("Show more").click()
    window.waits_for(re.compile(r"^6 records\."))
    places = [int(row.locator("th").inner_text()) for row in rows(window).all()]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == 6
    assert window.page.evaluate("document.activeElement.ariaLabel") == f"Details of record {places[3]}"
    window.field("Person").fill(SUBJECT + " 8")
    window.button("Search").click()
    window.button("Show more").click()
    window.waits_for(re.compile(r"^4 records\. There are no more\."))
    assert rows(window).count() == 4


def test_a_record_shows_who_did_what_and_gives_its_proof(window, api, site):
    api.screen(wav(speech(3, f0_hz=126.0)), subject=SUBJECT + " 9", model="emotion-emodb")
    window.open().sign_in("compliance")
    window.page.locator("#kind").select_option("inference")
    window.button("Search").click()
    window.waits_for("There are no more.")
    details = window.page.get_by_role("button", name="Details of record").first
    details.click()
    assert details.get_attribute("aria-expanded") == "true"
    text = window.page.locator("tr.details:not([hidden])").inner_text()
    for told in ("Account", "both", "127.0.0.1", "Treatment", "clinical-ser:result:", "emotion-emodb"):
        assert told in text
    with window.page.expect_download() as proof:
        window.button("Save the proof").click()
    assert Path(proof.value.path()).read_bytes().startswith(b"c2sp.org/tlog-proof@v1\n")
    window.page.get_by_text("As FHIR (JSON)").click()
    assert json.loads(window.page.locator("pre").inner_text())["resourceType"] == "AuditEvent"


def test_an_export_is_saved_and_can_be_verified(window, site, tmp_path):
    window.open().sign_in("compliance").go("export")
    window.page.locator("#export-since").fill("2000-01-01")
    with window.page.expect_download() as export:
        window.button("Export", exact=True).click()
    assert export.value.suggested_filename == "audit-jsonl.zip"
    window.waits_for("Saved with your downloads.")
    with zipfile.ZipFile(export.value.path()) as archive:
        archive.extractall(tmp_path)
    [folder] = [manifest.parent for manifest in tmp_path.rglob("manifest.json")]
    assert verify_export(folder, site.server.audit.load_keys().verifiers).findings.records > 0


# --- Verifying the log ------------------------------------------------------------------------------------------------------------------


def verify(window, key=""):
    window.go("verify")
    window.field("Key of the log").fill(key)
    window.button("Verify", exact=True).click()
    window.page.locator("#verdict-title").wait_for()
    return window.page.locator(".verdict-box").inner_text()


def test_a_log_that_is_in_order_is_verified_and_what_was_not_is_said(window, site, screened):
    window.open().sign_in("compliance")
    found = verify(window, site.verifier)
    assert found.startswith("Nothing wrong was found")
    assert "signed with the key that you gave" in found
    assert re.search(r"All \d+ records make up the tree of the checkpoint", found)
    assert "Not verified" in found
    assert "this browser sees the log for the first time" in found
    assert "sealed beside the tree" in found
    kept = storage(window.page)
    assert kept.keys() == {"clinical-ser.audit-log"}
    assert json.loads(kept["clinical-ser.audit-log"]).keys() == {"origin", "keys", "checkpoint", "confirmed"}
    again = verify(window)
    assert "signed with the key that this browser remembers" in again
    assert "Whether this key is the log's own" not in again
    assert re.search(r"The first \d+ records are the same that this browser saw the last time\.", again)


def test_a_key_that_only_the_server_vouches_for_is_said_to_be_that(window, site):
    found = verify(window.open().sign_in("compliance"))
    assert "signed with a key that the server gives out" in found
    assert "Whether this key is the log's own" in found
    assert site.verifier in found
    again = verify(window)
    assert "signed with the key that this browser remembers" in again
    assert "Whether this key is the log's own" in again
    verify(window, site.verifier)
    assert "Whether this key is the log's own" not in verify(window)


@pytest.mark.parametrize("change", [{"checkpoint": "spoiled"}, {"checkpoint": ""}, {"keys": ["spoiled"]}])
def test_what_the_browser_remembers_and_cannot_read_any_more_is_a_finding_and_is_not_replaced(window, site, change):
    window.open().sign_in("compliance")
    verify(window, site.verifier)
    window.page.evaluate(
        "change => (key => { localStorage[key] = JSON.stringify({...JSON.parse(localStorage[key]), ...change}); })('clinical-ser.audit-log')",
        change,
    )
    before = storage(window.page)
    found = verify(window)
    assert found.startswith("Do not rely on this log")
    assert re.search("What this browser remembers of the log cannot be read|or that this browser remembers, is not spelled as one is", found)
    assert storage(window.page) == before


def test_another_key_than_the_one_that_was_given_is_loud(window, site):
    other = str(Ed25519Signer(site.server.audit.origin, Ed25519PrivateKey.generate()).key)
    found = verify(window.open().sign_in("compliance"), other)
    assert found.startswith("Do not rely on this log")
    assert "not signed with the key that you gave" in found
    assert storage(window.page) == {}


def test_a_changed_record_is_loud_and_named(window, site, screened):
    def changed(route):
        raw = bytearray(route.fetch().body())
        first = int.from_bytes(raw[:2]) + 2
        raw[first + 2 + raw[first + 2 :].index(b'"kind":"') + 8] ^= 1
        route.fulfill(body=bytes(raw))

    window.open().sign_in("compliance")
    verify(window, site.verifier)
    before = storage(window.page)
    window.page.route("**/v1/audit/tile/entries/**", changed)
    found = verify(window, site.verifier)
    assert found.startswith("Do not rely on this log")
    assert "Record 1 is not the one that the log has in its tree" in found
    assert window.page.locator(".verdict-box").get_attribute("role") == "alert"
    assert storage(window.page) == before
    assert not (violations := browser.axe(window.page)), "\n".join(map(str, violations))


def test_a_log_that_became_smaller_is_loud_and_what_was_seen_is_kept(failing, site, api):
    older = api.get("/v1/audit/checkpoint").body
    api.screen(wav(speech(3, f0_hz=118.0)), model="emotion-emodb")
    failing.open().sign_in("compliance")
    verify(failing, site.verifier)
    before = storage(failing.page)
    failing.page.route("**/v1/audit/checkpoint", lambda route: route.fulfill(body=older))
    found = verify(failing, site.verifier)
    assert found.startswith("Do not rely on this log")
    assert "The log has become smaller" in found
    assert storage(failing.page) == before
    with failing.page.expect_download() as both:
        failing.button("Save the checkpoints").click()
    assert Path(both.value.path()).read_bytes().count(site.server.audit.origin.encode()) == 4


def test_verifying_is_cancelled_and_then_nothing_was_verified(window):
    window.page.route("**/v1/audit/tile/entries/**", lambda route: None)
    window.open().sign_in("compliance").go("verify")
    window.button("Verify", exact=True).click()
    window.button("Cancel").click()
    window.waits_for("Cancelled. Nothing was verified.")
    assert storage(window.page) == {}


def test_what_the_browser_remembers_is_forgotten_when_someone_says_so(window, site):
    window.open().sign_in("compliance")
    verify(window, site.verifier)
    window.button("Forget it").click()
    window.page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    assert storage(window.page) != {}
    window.button("Forget it").click()
    window.page.get_by_role("dialog").get_by_role("button", name="Forget it").click()
    window.waits_for("Nothing yet.")
    assert storage(window.page) == {}


# --- What verifying finds, over logs that are made for it -------------------------------------------------------------------------------

ORIGIN = "made.example/log"
SIGNER = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
_VERIFY = """async ({files, trusted, remembered}) => {
    const { verifyLog } = await import("/page/verification.js");
    const bytes = encoded => Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
    const read = async path => path in files ? bytes(files[path]) : null;
    const { findings } = await verifyLog({ read, trusted, remembered });
    return findings.map(one => [one.state, one.key, one.values]);
}"""


def leaves_of(size):
    return [f"leaf {number} {'x' * (number % 50)}".encode() for number in range(size)]


def note_of(leaves, signers=(SIGNER,), origin=ORIGIN):
    tree = Frontier()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return Checkpoint(origin, len(leaves), tree.root).sign(signers)


def log_files(leaves, note=None, keys=(SIGNER.key,)):
    files = {"checkpoint": (note or note_of(leaves)).encode(), "keys": "".join(f"{key}\n" for key in keys).encode()}
    for start in range(0, len(leaves), 256):
        some = leaves[start : start + 256]
        n, width = start // 256, len(some)
        files[tile_path("entries", n, width)] = b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in some)
        files[tile_path(0, n, width)] = b"".join(map(leaf_hash, some))
    return files


@pytest.fixture(scope="module")
def verified(chromium, site):
    """What the page's own code finds."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(site.address)

    def found(files, trusted=(str(SIGNER.key),), remembered=None):
        encoded = {path: base64.b64encode(content).decode() for path, content in files.items()}
        told = page.evaluate(_VERIFY, {"files": encoded, "trusted": list(trusted), "remembered": remembered})
        return {key: (state, values) for state, key, values in told}

    yield found
    context.close()


def states(findings):
    return {key for key, (state, _) in findings.items() if state == "bad"}


def kept(note, origin=ORIGIN, keys=(SIGNER.key,)):
    return {"origin": origin, "keys": list(map(str, keys)), "checkpoint": note}


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 300, 511, 512, 513, 700])
def test_a_log_of_any_size_is_verified(verified, size):
    found = verified(log_files(leaves_of(size)))
    assert states(found) == set()
    assert found["root"] == ("good", {"size": size})
    assert found["signature_pasted"][0] == "good"


@pytest.mark.parametrize("before", [0, 1, 100, 255, 256, 257, 400, 512, 599, 600])
def test_a_log_that_grew_is_the_log_that_was_seen(verified, before):
    leaves = leaves_of(600)
    found = verified(log_files(leaves), remembered=kept(note_of(leaves[:before])))
    assert states(found) == set()
    assert found["grew"] == ("good", {"before": before})


@pytest.mark.parametrize("before", [1, 100, 256, 257, 512, 600])
@pytest.mark.parametrize("at", [0, 599])
def test_a_history_that_was_rewritten_and_signed_anew_is_found(verified, before, at):
    leaves = leaves_of(600)
    seen = note_of(leaves[:before])
    leaves[at] = b"another"
    assert states(verified(log_files(leaves), remembered=kept(seen))) == ({"rewritten"} if at < before else set())


def test_a_log_that_is_smaller_than_what_was_seen_is_found(verified):
    leaves = leaves_of(300)
    found = verified(log_files(leaves[:299]), remembered=kept(note_of(leaves)))
    assert found["shrunk"] == ("bad", {"before": 300, "now": 299})


@pytest.mark.parametrize("at", [0, 255, 256, 599])
def test_a_changed_leaf_is_named(verified, at):
    leaves = leaves_of(600)
    files = log_files(leaves)
    changed = [leaf if number != at else leaf + b"!" for number, leaf in enumerate(leaves)]
    entries = {path: content for path, content in log_files(changed).items() if "/entries/" in path}
    assert verified(files | entries)["changed"] == ("bad", {"index": at})


def test_leaves_and_hashes_that_were_changed_together_are_found(verified):
    leaves = leaves_of(300)
    changed = [leaves[1], leaves[0], *leaves[2:]]
    assert states(verified(log_files(changed, note_of(leaves)))) == {"root_differs"}


@pytest.mark.parametrize("missing", ["tile/entries/000", "tile/entries/001.p/44"])
def test_leaves_that_are_not_given_out_are_found(verified, missing):
    files = log_files(leaves_of(300))
    del files[missing]
    assert states(verified(files)) == {"entries_missing"}


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\5abc", b"\xff\xff"])
def test_a_bundle_that_is_cut_or_has_too_few_leaves_is_found(verified, content):
    assert states(verified(log_files(leaves_of(3)) | {"tile/entries/000.p/3": content})) == {"entries_missing"}


def test_a_log_that_grew_while_it_was_read_gives_its_full_tile_instead(verified):
    leaves = leaves_of(256)
    files = log_files(leaves) | {"checkpoint": note_of(leaves[:200]).encode()}
    found = verified(files)
    assert states(found) == set()
    assert found["root"] == ("good", {"size": 200})


def test_a_signature_of_another_key_under_the_same_name_does_not_count(verified):
    leaves = leaves_of(3)
    assert states(verified(log_files(leaves, note_of(leaves, [OTHER])))) == {"signature_other_key"}
    assert states(verified(log_files(leaves, note_of(leaves, [OTHER]), [OTHER.key]))) == {"signature_other_key", "key_differs"}
    assert states(verified(log_files(leaves, note_of(leaves, [OTHER]), [OTHER.key]), trusted=())) == set()
    assert states(verified(log_files(leaves, note_of(leaves, [OTHER]), [OTHER.key]), (), kept(note_of(leaves[:1])))) == {
        "signature_other_key", "key_differs",
    }  # fmt: skip


def test_a_signature_that_was_changed_is_found(verified):
    leaves = leaves_of(3)
    text, _, line = note_of(leaves).rpartition(" ")
    raw = bytearray(base64.b64decode(line))
    raw[-1] ^= 1
    assert states(verified(log_files(leaves, f"{text} {base64.b64encode(raw).decode()}\n"))) == {"signature_forged"}


def test_a_checkpoint_of_another_log_is_found(verified):
    leaves = leaves_of(3)
    other = Ed25519Signer("other.example/log", Ed25519PrivateKey.generate())
    files = log_files(leaves, note_of(leaves, [other], "other.example/log"), [other.key])
    assert states(verified(files, (), kept(note_of(leaves)))) == {"other_log", "signature_other_key", "key_differs"}


def test_cosignatures_are_said_not_to_be_checked(verified):
    leaves = leaves_of(3)
    witness = Ed25519Signer("witness.example", Ed25519PrivateKey.generate())
    found = verified(log_files(leaves, note_of(leaves, [SIGNER, witness])))
    assert states(found) == set()
    assert found["cosignatures"] == ("open", {"n": 1})


def test_a_browser_that_cannot_check_signatures_says_so(chromium, site):
    page = chromium.new_page()
    page.add_init_script("""
        const { importKey } = SubtleCrypto.prototype;
        SubtleCrypto.prototype.importKey = function (...given) {
            if (given[2] === "Ed25519") throw new DOMException("", "NotSupportedError");
            return importKey.apply(this, given);
        };
    """)
    page.goto(site.address)
    encoded = {path: base64.b64encode(content).decode() for path, content in log_files(leaves_of(3)).items()}
    found = page.evaluate(_VERIFY, {"files": encoded, "trusted": [str(SIGNER.key)], "remembered": None})
    page.close()
    assert ["open", "signature_unable", {}] in found
    assert not any(state == "bad" or key.startswith("signature_p") for state, key, _ in found)


@pytest.mark.parametrize(
    "checkpoint",
    [
        b"",
        b"no note",
        b"\xff\n\n\xe2\x80\x94 a b\n",
        b"made.example/log\n3\n\n\xe2\x80\x94 made.example/log AAAA\n",
        b"made.example/log\n03\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\xe2\x80\x94 made.example/log AAAAAAA=\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(verified, checkpoint):
    assert states(verified(log_files(leaves_of(3)) | {"checkpoint": checkpoint})) == {"checkpoint_unreadable"}


def _spelled(name, algorithm, public):
    key_id = sha256(name.encode() + b"\n" + bytes([algorithm]) + public).hexdigest()[:8]
    return f"{name}+{key_id}+{base64.b64encode(bytes([algorithm]) + public).decode()}"


@pytest.mark.parametrize(
    "key",
    [
        "nonsense",
        str(SIGNER.key).replace("+", "+0", 1)[:-1],
        re.sub(r"\+[0-9a-f]{8}\+", "+00000000+", str(SIGNER.key)),
        _spelled("a b", 1, SIGNER.key.public),
        _spelled(ORIGIN, 9, SIGNER.key.public),
        _spelled(ORIGIN, 1, bytes(32)),
        _spelled(ORIGIN, 1, b"\1" + bytes(31)),
        _spelled(ORIGIN, 1, b"\xec" + b"\xff" * 30 + b"\x7f"),
    ],
    ids=["nonsense", "cut", "another id", "a space", "an unknown kind", "order 4", "order 1", "order 2"],
)
def test_a_key_that_is_none_or_under_which_anyone_can_sign_is_refused(verified, key):
    assert "key_unreadable" in states(verified(log_files(leaves_of(3)), trusted=(key,)))


def test_a_key_is_read_as_python_reads_it(verified):
    assert VerifierKey(ORIGIN, Algorithm.ED25519, SIGNER.key.public) == VerifierKey.parse(_spelled(ORIGIN, 1, SIGNER.key.public))
    assert states(verified(log_files(leaves_of(1)), trusted=(_spelled(ORIGIN, 1, SIGNER.key.public),))) == set()


def test_ten_thousand_records_are_verified_in_a_few_seconds(verified, chromium, site):
    leaves = [leaf * 12 for leaf in leaves_of(10_000)]
    encoded = {path: base64.b64encode(content).decode() for path, content in log_files(leaves).items()}
    page = chromium.new_page()
    page.goto(site.address)
    timed = f"async given => {{ const began = performance.now(), found = await ({_VERIFY})(given); return [performance.now() - began, found]; }}"
    spent_ms, found = page.evaluate(timed, {"files": encoded, "trusted": [str(SIGNER.key)], "remembered": None})
    page.close()
    assert ["good", "root", {"size": 10_000}] in found
    assert spent_ms < 5_000


# --- Numbers ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["percent", "points", "brief"])
def test_numbers_are_written_as_in_the_reports(verified, chromium, site, name):
    rng = np.random.default_rng(7)
    values = [0.0, 1.0, 0.125, 0.005, 0.00099, 0.001, 0.0995, 0.0994, 0.99, 0.9901, 0.995, 0.245, 0.355, 0.025, 0.0025, 0.00625, 0.105, 0.115]
    values += list(np.round(rng.random(300), 3)) + list(rng.random(300)) + list(np.round(rng.random(100) / 100, 4)) + [k / 800 for k in range(801)]
    values = [float(value) for value in values]
    if name != "percent":
        values += [-value for value in values]
    if name == "brief":
        values += [float(f"{value * scale:.4g}") for value in values[:300] for scale in (100, 10_000)]
    page = chromium.new_page()
    page.goto(site.address)
    written = page.evaluate("async ([name, values]) => values.map((await import('/page/numbers.js'))[name])", [name, values])
    page.close()
    write: Callable = getattr(numbers, name)
    assert [(value, one) for value, one in zip(values, written, strict=True) if one != write(value)] == []


# --- For everyone -----------------------------------------------------------------------------------------------------------------------

VIEWS = ("screen", "chosen", "recording", "result", "open", "trail", "verify", "export")


def show_view(window, view, screened, site):
    page = window.page
    if view in {"screen", "chosen", "recording"}:
        window.go("screen")
        page.locator("#recording button").first.wait_for()
    if view == "chosen":
        page.locator("#file").set_input_files({"name": "visit.wav", "mimeType": "audio/wav", "buffer": wav(speech(3))})
        page.locator("#gate .checks li").first.wait_for()
    elif view == "recording":
        page.locator("#recording button").first.click()
        page.locator("#gate .checks li").first.wait_for()
    elif view == "result":
        window.go(f"result/{screened}")
        page.locator("#record-title").wait_for()
        page.locator("[aria-labelledby=take-title] button").first.click()
        page.frame_locator("iframe").locator("h1").wait_for()
    elif view == "open":
        window.go("result")
        page.locator("#other").wait_for()
    elif view == "trail":
        window.go("trail")
        rows(window).first.wait_for()
        rows(window).first.locator("button").click()
    elif view == "verify":
        window.go("verify")
        page.locator("#keys").fill(site.verifier)
        page.locator("form button").first.click()
        page.locator("#verdict-title").wait_for()
    elif view == "export":
        window.go("export")
        page.locator("#format").wait_for()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_breaks_no_rule_of_wcag_and_reads_in_a_narrow_window(new_window, site, screened, view, language):
    window = new_window(locale=language)
    window.open().sign_in("both")
    show_view(window, view, screened, site)
    for width in WIDTHS:
        assert browser.overflow_px(window.page, width) <= 0, width
        assert not (found := browser.axe(window.page)), f"at {width} px: " + "\n".join(map(str, found))


@pytest.mark.parametrize("language", LANGUAGES)
def test_signing_in_breaks_no_rule_of_wcag_and_reads_in_a_narrow_window(new_window, language):
    window = new_window(locale=language).open()
    for width in WIDTHS:
        assert browser.overflow_px(window.page, width) <= 0
        assert not (found := browser.axe(window.page)), "\n".join(map(str, found))


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "recording"])
def test_a_keyboard_reaches_what_acts_sees_where_it_is_and_leaves_again(new_window, site, screened, view):
    window = new_window()
    window.open().sign_in("both")
    show_view(window, view, screened, site)
    # As after loading: the first thing that Tab reaches.
    window.page.locator("#skip").focus()
    assert window.page.locator("#skip").bounding_box()["x"] > 0
    stops = browser.stops(window.page)
    assert [stop.name for stop in stops[:3]] == ["English", "中文", "Sign out"]
    # The frame and the player show their focus as the browser does.
    assert [stop for stop in stops if not stop.name and stop.role not in {"Iframe", "generic", "video", "audio"}] == []
    assert [stop for stop in stops if not stop.outlined and stop.role in {"link", "button", "textbox", "combobox", "checkbox", "radio"}] == []


def test_everything_is_there_with_the_systems_own_colours_and_without_motion(new_window, site, screened):
    window = new_window(forced_colors="active", reduced_motion="reduce")
    window.open().sign_in("both")
    show_view(window, "result", screened, site)
    outline = window.page.locator("nav a[aria-current]").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    assert window.page.locator("button.main").first.evaluate("e => getComputedStyle(e).transitionDuration") == "0s"


def test_the_language_changes_in_place_and_nothing_that_was_entered_is_lost(window):
    window.open().sign_in("clinician")
    choose(window, wav(speech(3)))
    window.field("Whom it is of").fill(SUBJECT)
    window.button("中文").click()
    assert window.heading == "新筛查"
    assert window.page.title() == "新筛查 – 语音筛查"
    assert window.page.get_by_role("textbox", name="受检者标识").input_value() == SUBJECT
    assert window.page.locator("audio").is_visible()
    left = re.sub(r"[\u3000-\u9fff\uff00-\uffef]", " ", window.text)
    # What is left in Latin letters are names: of models, units, formats.
    names = {"emotion", "emodb", "depression", "simulated", "interview", "read", "speech", "dBFS", "visit", "FLAC"}
    assert set(re.findall(r"[A-Za-z]{4,}", left)) <= names
    window.button("English").click()
    assert window.heading == "New screening"


@pytest.mark.parametrize(("locale", "heading"), [("zh-CN", "登录"), ("zh-TW", "登录"), ("de-DE", "Sign in"), ("en-US", "Sign in")])
def test_the_browsers_language_is_spoken_where_the_page_can(new_window, locale, heading):
    assert new_window(locale=locale).open().heading == heading


def test_a_key_that_is_revoked_ends_the_session(failing, site):
    path = site.server.configuration.keys_file
    role, _, _ = PEOPLE["compliance"]
    made = add_key(path, client="leaver", role=role, scopes=frozenset(COMPLIANCE))
    failing.open()
    failing.field("Access key").fill(made.text)
    failing.page.keyboard.press("Enter")
    rows(failing).first.wait_for()
    revoke_key(path, made.record.id)
    failing.page.wait_for_timeout(1500)
    failing.button("Search").click()
    failing.waits_for("Your sign-in is no longer good.")
    assert failing.page.locator(".trail, nav a").count() == 0
