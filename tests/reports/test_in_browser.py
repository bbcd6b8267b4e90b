"""Every report in a real browser: `make browser`. Where there is none these tests are skipped."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from unicodedata import normalize

import numpy as np
import pytest

from clinical_ser import audio
from clinical_ser.screening.result import RecordingIdentity
from reports import explanation
from reports.clinician import html_report
from reports.clinician_figures import MOMENTS_TRACK
from reports.marks import WIDTH
from tests.reports import browser, clinician_samples, explanation_samples, pdf_structure, test_clinician


@dataclass(frozen=True)
class Case:
    """A report, how it is made, and on how many sheets of A4 it must print."""

    name: str
    html: Callable[[], str]
    sheets: int | None = None


def _explained(name: str, result) -> Case:
    return Case(name, lambda: explanation.html_report(result))


def _for_clinicians(name: str, language: str) -> Case:
    result, site, comparison = test_clinician.CASES[name]
    sheets = test_clinician.PAGES.get(name, 2)
    return Case(f"{name}, {language}", lambda: html_report(result, comparison=comparison, site=site, language=language), sheets)


CASES = (
    *(_for_clinicians(name, language) for name in test_clinician.CASES for language in test_clinician.LANGUAGES),
    _explained("explanation", explanation_samples.result(when=explanation_samples.timeline())),
    _explained("explanation-with-embedding", explanation_samples.result(explanation_samples.with_embedding())),
    _explained("explanation-refused", explanation_samples.refused()),
)


@pytest.fixture(scope="module")
def chromium():
    if reason := browser.missing():
        (pytest.fail if browser.REQUIRED else pytest.skip)(reason)
    with browser.chromium() as started:
        yield started


@pytest.fixture
def case(request):
    return request.param


@pytest.fixture
def shown(chromium, case):
    with browser.opened(chromium, case.html()) as opened:
        yield opened


@pytest.fixture
def show(chromium):
    """Open a small page of a test's own."""
    pages = []

    def opened(body, policy="", style="", title="A page"):
        meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
        head = f'<meta charset="utf-8">{meta}<title>{title}</title><style>{style}</style>'
        html = f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>'
        pages.append(browser.opened(chromium, html))
        return pages[-1].__enter__()

    yield opened
    for page in pages:
        page.__exit__(None, None, None)


each_report = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name, indirect=True)


@each_report
def test_a_report_loads_nothing_and_its_policy_refuses_nothing_of_its_own(shown):
    assert shown.requests == shown.errors == shown.refused == []


@each_report
@pytest.mark.parametrize("width", [1280, 320])
def test_a_report_breaks_no_rule_of_wcag(shown, width):
    shown.page.set_viewport_size({"width": width, "height": 900})
    assert not (found := browser.axe(shown.page)), "\n".join(map(str, found))


@each_report
def test_a_report_reads_in_a_narrow_window_without_scrolling_sideways(shown):
    assert browser.overflow_px(shown.page, 320) <= 0


@each_report
def test_a_keyboard_reaches_what_acts_or_scrolls_sees_where_it_is_and_leaves_again(shown):
    stops = browser.stops(shown.page)
    assert stops
    assert [stop for stop in stops if not stop.name or not stop.outlined] == []


@each_report
def test_a_report_prints_its_first_and_last_words_and_no_more_sheets_than_it_should(shown, case):
    shown.page.emulate_media(media="print")
    words = re.findall(r"[\w.]{4,}", shown.page.locator("body").inner_text())
    printed = pdf_structure.read(browser.a4(shown.page))
    # Chromium maps some Chinese glyphs to the radicals that they are drawn like.
    text = normalize("NFKC", re.sub(r"\s", "", "".join(printed.pages)))
    assert words[0] in text
    assert words[-1] in text
    assert len(printed.pages) == case.sheets or not case.sheets


LOADED = """new Promise(done => {
    const player = document.getElementById("player");
    player.readyState ? done() : player.addEventListener("loadedmetadata", () => done());
})"""


@pytest.fixture(scope="module")
def with_sound():
    """A report that holds its recording: 20 s, a moment of 2.5 s standing out at 7.5 s."""
    recording = audio.from_samples(np.sin(np.arange(20 * 16_000) / 20).astype(np.float32) * 0.3, 16_000)
    identity = RecordingIdentity(sha256=recording.sha256, duration_s=recording.duration_s)
    when = explanation_samples.timeline(8, 2.5, (3,))
    return html_report(clinician_samples.result(when=when, recording=identity), audio=recording)


def test_a_report_with_its_recording_breaks_no_rule_and_asks_for_nothing_else(chromium, with_sound):
    with browser.opened(chromium, with_sound) as shown:
        assert not (found := browser.axe(shown.page)), "\n".join(map(str, found))
        assert shown.requests == shown.errors == shown.refused == []
        stops = browser.stops(shown.page)
        assert [stop for stop in stops if not stop.name] == []
        # The player's own controls show their focus as the browser does.
        assert all(stop.outlined for stop in stops if stop.name.startswith("Play 0:07.5"))


def test_a_moment_is_played_from_its_start_and_a_line_runs_along(chromium, with_sound):
    with browser.opened(chromium, with_sound) as shown:
        page = shown.page
        page.evaluate(LOADED)
        page.get_by_role("button", name="Play 0:07.5").click()
        page.locator(".cursor").wait_for(state="visible")
        at_s = page.evaluate("document.getElementById('player').currentTime")
        assert 7.5 <= at_s < 12
        cursor, drawing = (page.locator(one).bounding_box() for one in (".cursor", ".timed svg"))
        start, end = MOMENTS_TRACK
        share = (cursor["x"] - drawing["x"]) / drawing["width"]
        assert (share - start / WIDTH) / ((end - start) / WIDTH) * 20 == pytest.approx(at_s, abs=1.5)


def test_a_click_on_the_timeline_goes_there(chromium, with_sound):
    with browser.opened(chromium, with_sound) as shown:
        page = shown.page
        page.evaluate(LOADED)
        drawing = page.locator(".timed svg").bounding_box()
        start, end = MOMENTS_TRACK
        page.locator(".timed").click(position={"x": drawing["width"] * (start + (end - start) / 2) / WIDTH, "y": 20})
        assert page.evaluate("document.getElementById('player').currentTime") == pytest.approx(10, abs=1.5)


# --- The checks themselves: each must be able to fail ---------------------------------------------------------------------------------------


def test_axe_runs_under_the_strictest_policy_and_finds_a_missing_alternative_and_low_contrast(show):
    page = show(
        '<main><h1>One</h1><img src="data:,"><p style="color:#aaa">pale</p></main>', "default-src 'none'; style-src-attr 'unsafe-inline'"
    ).page
    found = browser.axe(page)
    assert {one.rule for one in found} == {"color-contrast", "image-alt"}
    assert "pale" in next(str(one) for one in found if one.rule == "color-contrast")


def test_axe_finds_a_level_of_headings_that_is_skipped(show):
    assert [one.rule for one in browser.axe(show("<main><h1>One</h1><h3>Three</h3></main>").page)] == ["heading-order"]


def test_a_remote_picture_is_seen_where_no_policy_refuses_it(show):
    opened = show('<img alt="" src="http://elsewhere.invalid/a.png">')
    assert opened.requests == ["http://elsewhere.invalid/a.png"]
    assert opened.refused == []


def test_a_remote_picture_is_seen_where_a_policy_refuses_it(show):
    opened = show('<img alt="" src="http://elsewhere.invalid/a.png">', "default-src 'none'")
    assert opened.requests == []
    assert "img-src http://elsewhere.invalid/a.png" in opened.refused


def test_a_style_that_a_policy_does_not_know_is_seen(show):
    assert show("<p>One</p>", "default-src 'none'", "p { color: red }").refused == ["style-src-elem inline"]


def test_an_error_in_a_script_is_seen(show):
    assert show("<script>nowhere()</script>").errors == ["nowhere is not defined"]


def test_the_tab_key_names_what_it_reaches_and_says_what_cannot_be_seen(show):
    page = show('<a href="#a">To the report</a><button aria-label="Play">x</button><a href="#b"></a>', style="button:focus { outline: none }").page
    stops = browser.stops(page)
    assert [(stop.role, stop.name) for stop in stops] == [("link", "To the report"), ("button", "Play"), ("link", "")]
    assert [stop.outlined for stop in stops] == [True, False, True]


def test_a_trap_for_the_keyboard_is_an_error(show):
    page = show('<button autofocus onkeydown="event.preventDefault()">x</button>').page
    with pytest.raises(AssertionError, match="does not leave"):
        browser.stops(page, most=20)


def test_sheets_of_paper_are_counted(show):
    body = '<p>One</p><p style="break-before: page">Two</p><p style="break-before: page">Three</p>'
    printed = pdf_structure.read(browser.a4(show(body).page))
    assert printed.pages == ("One", "Two", "Three")


def test_what_is_wider_than_the_window_is_measured(show):
    page = show('<div style="width: 500px">wide</div>', style="body { margin: 0 }").page
    assert browser.overflow_px(page, 320) == 180
    assert browser.overflow_px(page, 600) == 0


def test_a_picture_of_the_page_has_the_width_asked_for(show, tmp_path):
    png = browser.screenshot(show("<p>One</p>").page, 400, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes() == png
    assert int.from_bytes(png[16:20]) == 400
