import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser import audio
from clinical_ser.errors import InvalidValueError, ReportError, SiteError
from clinical_ser.monitoring.comparison import compare
from clinical_ser.screening.result import RecordingIdentity, ScoreCutoff, ScreeningResult, Status, SubjectContext
from reports import clinician_figures as figures
from reports import clinician_pages
from reports.clinician import html_report, pdf_report, sheet_of
from reports.document import Beside, Headline, Notice, Paragraph, Picture, Table, Terms
from reports.drawing import ACCENT, INK, PAPER, WASH
from reports.forbidden import findings
from reports.locale import load_locale
from reports.numbers import brief, one_place
from reports.qr import code
from reports.site import Site, read_site
from reports.visit_figures import visits
from tests.reports import clinician_samples as samples
from tests.reports import layout
from tests.reports.layout import boxes
from tests.reports.pdf_structure import broken_rules, read
from tests.reports.test_cohort import HOSTILE, Page
from tests.reports.test_figures import FONT, SVG, drawn, texts
from tests.reports.test_figures import points as corners

EN, ZH = load_locale("en"), load_locale("zh")
LANGUAGES = ("en", "zh")
_LAST_OF_2, _COMPARED_2 = samples.visits(2)
_LAST_OF_40, _COMPARED_40 = samples.visits(40, devices=("headset", "headset", "tablet"))
CASES = {
    "flagged": (samples.result(), samples.SITE, None),
    "not flagged": (samples.not_flagged(), samples.SITE, None),
    "cannot tell": (samples.indeterminate(), samples.SITE, None),
    "not usable": (samples.refused(), samples.SITE, None),
    "classified": (samples.of_classes(), samples.SITE, None),
    "one of several classes cannot be told": (samples.of_classes(Status.INDETERMINATE, ("sadness", "boredom")), samples.SITE, None),
    "a learned pattern": (samples.with_embedding(), samples.ALL_AT_ONCE, None),
    "nothing measured or known": (samples.missing(), Site(), None),
    "everything too long": (samples.long(), samples.ALL_AT_ONCE, None),
    "2 visits": (_LAST_OF_2, samples.SITE, _COMPARED_2),
    "40 visits": (_LAST_OF_40, samples.SITE, _COMPARED_40),
}
NOT_MEASURED = r"PMC\d+|36 of the 116|116 人|2021|\d{4}-\d\d-\d\d|Jacobson & Truax 1991|0000 000 00\d|\d+:\d\d(?:\.\d)?"
"""Numbers that are counts of a cited study, years, days, telephone numbers and times."""
PAGES = {"not usable": 1, "2 visits": 3, "40 visits": 3}
"""Of the cases that do not take two."""


def sheet(case, language="en"):
    result, site, comparison = CASES[case]
    return sheet_of(result, comparison=comparison, site=site, language=language)


def blocks(pages):
    """All blocks, those beside others too."""
    for page in pages:
        for section in page.sections:
            yield from _flat(section.blocks)


def _flat(found):
    for block in found:
        yield block
        if isinstance(block, Beside):
            yield from _flat((*block.left, *block.right))


def words(pages):
    """Every text of a sheet's pages that a reader sees or hears, section by section."""
    said = []
    for page in pages:
        for section in page.sections:
            said.append(section.title)
            for block in _flat(section.blocks):
                said += _words(block)
    return said


def _words(block):
    match block:
        case Paragraph(text, _):
            return [text]
        case Headline(text, lines) | Notice(_, text, lines):
            return [text, *lines]
        case Terms(rows):
            return [cell for row in rows for cell in row]
        case Picture():
            return [block.title, block.finding, *texts(drawn(block)), *(cell for row in block.table.rows for cell in row)]
        case Table():
            return [block.caption, *(cell for row in block.rows for cell in row)]
        case _:
            return []


def picture(case, name, language="en"):
    return next(block for block in blocks(sheet(case, language).pages) if isinstance(block, Picture) and block.name == name)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def cjk():
    """Skip where no font has Chinese: the report then fails by name, which another test makes sure of."""
    try:
        pdf_report(samples.refused(), language="zh")
    except ReportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pictures():
    found = [block for case in CASES for language in LANGUAGES for block in blocks(sheet(case, language).pages) if isinstance(block, Picture)]
    return [one for one in found if one.name != "code"]


# --- Pages --------------------------------------------------------------------------------------------------------------------------------


def test_a_pdf_has_its_pages_is_tagged_and_says_all_figures_in_words(case, language, request):
    if language == "zh":
        request.getfixturevalue("cjk")
    result, site, comparison = CASES[case]
    pdf = read(pdf_report(result, comparison=comparison, site=site, language=language))
    assert len(pdf.pages) == PAGES.get(case, 2)
    assert pdf.language.partition("-")[0] == language
    assert pdf.title == sheet(case, language).title
    shown = [block for block in blocks(sheet(case, language).pages) if isinstance(block, Picture)]
    assert [figure.alt for figure in pdf.tags.all("Figure")] == [one.finding for one in shown]
    sections = [section.title for page in sheet(case, language).pages for section in page.sections]
    assert [_letters(text) for _, text in pdf.headings()] == list(map(_letters, sections))
    assert (pdf.lost, pdf.faults) == ((), ())
    assert broken_rules(pdf_report(result, comparison=comparison, site=site, language=language)) == []


def _letters(text):
    return re.sub(r"\W", "", text)


def test_the_same_result_gives_the_same_bytes(case):
    result, site, comparison = CASES[case]
    again = ScreeningResult.model_validate_json(result.model_dump_json())
    for make in (html_report, pdf_report):
        assert make(result, comparison=comparison, site=site) == make(again, comparison=comparison, site=site)


def test_html_is_well_formed_has_unique_identifiers_and_loads_and_runs_nothing(case, language):
    result, site, comparison = CASES[case]
    html = html_report(result, comparison=comparison, site=site, language=language)
    page = Page(html)
    identifiers = [value for _, attributes in page.tags for key, value in attributes.items() if key == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "audio", "link", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"(?:src|href)=\"(?!#)", html)
    assert 'lang="zh-Hans-CN"' in html if language == "zh" else '<html lang="en">' in html
    policy = re.search('Content-Security-Policy" content="([^"]*)"', html)[1]
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_nothing_names_a_cause_a_diagnosis_or_a_treatment(case, language):
    assert findings("\n".join(words(sheet(case, language).pages))) == ()


def test_no_number_has_more_than_two_significant_digits(case, language):
    pages = sheet(case, language).pages
    exempt = (EN, ZH)[language == "zh"]("record.title")
    for page in pages:
        for section in page.sections:
            if section.title == exempt:
                continue
            for block in _flat(section.blocks):
                for text in _words(block):
                    spared = re.sub(NOT_MEASURED, "", text)
                    spared = re.sub(r"\d+ (?:people|人)|(?:people|visits|窗|共) ?\(?\d+", "", spared)
                    for number in re.findall(r"\d+(?:\.\d+)?", spared):
                        digits = number.replace(".", "").strip("0") if "." not in number else number.replace(".", "").lstrip("0")
                        counted = isinstance(block, Table) and number in {str(one.subjects) for one in CASES[case][0].performance}
                        assert len(digits) <= 2 or number == "100" or counted, (section.title, text, number)


# --- What an answer says ------------------------------------------------------------------------------------------------------------------


def test_a_probability_stands_with_its_interval_and_what_it_is_stated_for():
    said = " ".join(words(sheet("flagged").pages[:1]))
    assert "Probability of depressed: 23 % (95 % interval 14 to 37 %)" in said
    assert "Stated for a group in which 10 % of people are labelled depressed." in said
    assert "“depressed” means a score of 10 or more on the PHQ-8." in said
    assert "screen again" not in said


def test_a_probability_that_is_stated_for_another_share_than_the_sites_says_so():
    said = " ".join(words(sheet_of(samples.result(), site=Site(prevalence=0.3)).pages[:1]))
    assert "Your site is set to 30 %: screen again with that share" in said


@pytest.mark.parametrize("case", ["cannot tell", "not usable", "one of several classes cannot be told"])
def test_without_an_answer_there_is_no_number_and_what_to_do_is_said(case, language):
    say = load_locale(language)
    result, _, _ = CASES[case]
    pages = sheet(case, language).pages
    names = {block.name for block in blocks(pages) if isinstance(block, Picture)}
    assert not names & {"people", "classes", "families", "moments", "visits"}
    said = " ".join(words(pages))
    if result.probability:
        for number in (result.probability.value, result.probability.interval.low, result.probability.interval.high):
            assert f"{100 * number:.0f} %" not in said
    assert say(f"next.{result.status}") in said
    assert say(f"status.{result.status}", label="") in said


def test_a_recording_that_is_not_usable_has_one_page_with_what_was_wrong_and_how_to_record_again():
    [page] = sheet("not usable").pages
    said = " ".join(words([page]))
    assert "Speech: measured 4.2 s, recommended at least 25 s" in said
    [again] = [block for block in blocks([page]) if isinstance(block, Notice) and block.title == "How to record again"]
    assert "One person speaking, in a quiet room" in again.lines[-1]
    assert not [block for block in blocks([page]) if isinstance(block, Picture) and block.name != "code"]


def test_what_failed_is_asked_for_in_the_measure_that_the_advice_names():
    """A gate refuses below 10 s and advises 25: naming both would contradict itself."""
    said = " ".join(words(sheet("not usable").pages))
    assert "10 s" not in said


def test_safety_stands_on_every_report_with_the_sites_contacts(case, language):
    _, site, _ = CASES[case]
    say = load_locale(language)
    [box] = [block for block in blocks(sheet(case, language).pages[:1]) if isinstance(block, Notice) and block.title == say("safety.contacts")]
    assert box.lines[0] == say("safety.text")
    if site.contacts:
        assert all(contact.phone in line and contact.name in line for contact, line in zip(site.contacts, box.lines[1:], strict=True))
    else:
        assert box.lines[1:] == (say("safety.none"),)


def test_safety_is_the_same_whatever_the_score():
    boxes_of = [
        [block for block in blocks(sheet(case).pages) if isinstance(block, Notice) and block.title == EN("safety.contacts")]
        for case in ("flagged", "not flagged", "cannot tell", "not usable")
    ]
    assert all(found == boxes_of[0] for found in boxes_of)


def test_a_model_of_simulated_speech_says_so_before_anything_else(language):
    say = load_locale(language)
    first = next(iter(blocks(sheet("flagged", language).pages)))
    assert first == Notice("fail", say("simulated.title"), (say("simulated.text"),))
    real = samples.result(model=samples.result().model.model_copy(update={"simulated": False}))
    assert say("simulated.title") not in words(sheet_of(real, language=language).pages)


def test_the_record_is_found_by_the_digest_of_the_result():
    result = CASES["flagged"][0]
    said = words(sheet("flagged").pages)
    assert f"clinical-ser:result:{result.digest}" in said
    assert result.recording.sha256 in said
    assert result.model.digest in said


def test_the_digest_is_of_what_the_result_says_and_not_of_how_it_is_written_down():
    result = samples.result()
    written = json.loads(result.model_dump_json())
    shuffled = dict(reversed(written.items()))
    assert ScreeningResult.model_validate_json(json.dumps(shuffled, indent=3)).digest == result.digest
    assert samples.result(retest_setting="another day").digest != result.digest
    other_tracks = result.timeline.tracks.model_copy(update={"f0_hz": (0.0,) * len(result.timeline.tracks.f0_hz)})
    assert result.model_copy(update={"timeline": result.timeline.model_copy(update={"tracks": other_tracks})}).digest == result.digest


def test_the_digest_is_sha_256_of_canonical_json():
    """RFC 8785: sorted keys, no space, numbers as ECMAScript writes them."""
    result = samples.refused()
    value = result.model_dump(mode="json")
    assert all(float(n) == int(float(n)) or "e" not in repr(n) for n in re.findall(r"\d+\.\d+", json.dumps(value)))
    plain = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    plain = re.sub(r"(?<=[:,\[])(-?\d+)\.0(?=[,\]}])", r"\1", plain)
    assert result.digest == hashlib.sha256(plain.encode()).hexdigest()


def test_what_people_were_answered_is_not_left_to_the_thresholds_sensitivity():
    found = [block for block in blocks(sheet("flagged").pages) if isinstance(block, Table)]
    assert found[1].rows == (
        ("labelled depressed", "52 % [44 to 60 %]", "10 % [2.0 to 18 %]", "38 % [30 to 46 %]"),
        ("others", "11 % [3.0 to 19 %]", "55 % [47 to 63 %]", "34 % [26 to 42 %]"),
    )


@pytest.mark.parametrize(
    ("told", "wanted", "number"),
    [
        ({"status": "not_flagged"}, "“Not flagged”, at 17 % (11 to 23 %)", True),
        ({"status": "indeterminate"}, "“Cannot tell”.", False),
        ({"status": "classified", "label": "sadness"}, "“Most similar to: sadness”.", False),
    ],
)
def test_without_the_learned_pattern_a_withheld_answer_has_no_number(told, wanted, number):
    whole = samples.with_embedding()
    without = whole.explanation.without_embedding.model_copy(update=told)
    result = whole.model_copy(update={"explanation": whole.explanation.model_copy(update={"without_embedding": without})})
    said = " ".join(words(sheet_of(result).pages[:1]))
    assert wanted in said
    assert ("17 %" in said) is number


def test_the_class_that_was_explained_is_the_one_that_is_named():
    told = samples.samples.explanation(target="anger", base=0.12, scale="calibrated_centred_logit")
    explained = samples.of_classes().model_copy(update={"explanation": told})
    titles = [section.title for page in sheet_of(explained).pages for section in page.sections]
    assert EN("families.title", label="anger") in titles
    assert EN("moments.title", label="depressed") in titles


def test_a_label_is_defined_for_any_questionnaire_and_any_status():
    result = samples.refused().model_copy(update={"task": "anxiety", "defined_by": ScoreCutoff(label="anxious", score="GAD-7", cutoff=10.0)})
    assert "“anxious” means a score of 10 or more on the GAD-7." in " ".join(words(sheet_of(result).pages))


@pytest.mark.parametrize(
    ("name", "value", "unit", "limit", "topic", "said"),
    [
        ("speech", 24.96, "s", 25.0, "speech", "Speech: just short of 25 s."),
        ("clipping", 0.02, "share", 0.001, "clipping", "Clipped samples: measured 2.0 %, recommended at most 0.10 %."),
        ("clipping", 0.00104, "share", 0.001, "clipping", "Clipped samples: just over 0.10 %."),
        ("snr", 22.0, "dB", 30.0, "noise_unknown", "Signal-to-noise ratio."),
        ("codec", 32000.0, "bit/s", 64000.0, "codec", "Bit rate: measured 32 kbit/s, recommended at least 64 kbit/s."),
    ],
)
def test_a_fault_is_said_in_its_usual_unit_and_never_against_itself(name, value, unit, limit, topic, said):
    [check, *_] = samples.samples.quality("warn").checks
    bound = "at_most" if name == "clipping" else "at_least"
    told = {"name": name, "value": value, "unit": unit, "warn_limit": limit, "topic": topic, "bound": bound, "advice": "Do better."}
    quality = samples.samples.quality("warn").model_copy(update={"checks": (check.model_copy(update=told),)})
    assert f"Usable, with a fault. {said} Do better." in words(sheet_of(samples.result(quality=quality)).pages)


def test_every_text_of_the_catalogue_is_used():
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(clinician_pages.__file__).parent.glob("*.py"))
    looked_up = ("classes.", "sex.", "said_sex.", "units.", "units_of.", "checks.", "terms.", "age_bands.", "status.", "next.", "signature.")
    looked_up += ("flags.", "visits_unknown.", "groups.")
    made = re.compile(r"(?:quality\.(?:pass|warn|fail|at_\w+)|families\.(?:raises|lowers|unstable)|answer\.\w+flagged|answer\.classified)$")
    rest = [key for key in EN.texts if not key.startswith(looked_up) and not made.match(key) and not key.endswith((".one", ".other"))]
    unused = [key for key in rest if f'"{key}"' not in sources and '"{key}"' not in sources]
    assert [key for key in unused if not re.search(rf'f"{key.partition(".")[0]}\.{{', sources)] == []


def test_people_like_this_one_have_the_models_figures_or_a_word_on_why_not():
    table = next(block for block in blocks(sheet("flagged").pages) if isinstance(block, Table))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["everyone"] == ("600", "89 % [84 to 93 %]", "49 % [44 to 53 %]", "0.79 [0.74 to 0.83]")
    assert rows["women"][0] == "300"
    assert rows["age 45–59"][0] == "194"
    assert rows["device headset"] == ("18", "too few people to say", "", "")
    assert rows["everyone, other cohort"][0] == "240"
    assert "No figures for language, task" in " ".join(words(sheet("flagged").pages))


def test_the_reference_group_is_named_with_its_size_and_what_could_not_be_matched(language):
    said = " ".join(words(sheet("flagged", language).pages[1:]))
    wanted = {"en": ("people labelled not depressed, women, 45–64 years (84 people)", "people: device."), "zh": ("女性，45–64 岁（84 人）", "设备")}
    assert all(text in said for text in wanted[language])


def test_what_the_maker_says_is_cut_and_known_notices_are_said_in_the_readers_language():
    said = words(sheet("everything too long", "zh").pages)
    assert sum(text.startswith("模型制作者说明") for text in said) == 2
    assert all(len(text) < 300 for text in said if text.startswith("模型制作者说明"))
    assert "No key this installation trusts" not in " ".join(words(sheet("flagged", "zh").pages))
    assert ZH("caution.untrusted") in words(sheet("flagged", "zh").pages)


def test_switched_off_measures_take_one_sentence():
    said = [text for text in words(sheet("flagged").pages) if text.startswith("Left out")]
    assert said == ["Left out, since this recording cannot carry them: voice quality measures (noise or compression)."]


# --- Drawings -----------------------------------------------------------------------------------------------------------------------------


def test_drawings_name_themselves_and_have_numbers_in_words_and_a_table(pictures):
    for one in pictures:
        tree = drawn(one)
        assert tree.find(f"{SVG}title").text == one.title
        assert tree.find(f"{SVG}desc").text == one.finding
        assert one.table.rows


def test_texts_stay_on_the_drawing_and_apart_from_each_other(pictures):
    layout.check_texts(pictures)


def test_shapes_stay_on_the_drawing(pictures):
    layout.check_shapes(pictures)


def test_no_colour_is_red_or_green(pictures):
    layout.check_colours(pictures)


@pytest.mark.parametrize(
    ("share", "wanted", "words_of"), [(0.234, 23, "23 of 100"), (0.001, 0, "fewer than 1 of 100"), (0.999, 100, "more than 99 of 100")]
)
def test_as_many_people_are_filled_in_as_the_probability_says(share, wanted, words_of):
    told = samples.result().probability
    one = told.model_copy(update={"value": share, "interval": told.interval.model_copy(update={"low": share * 0.5, "high": (1 + share) / 2})})
    tree = drawn(figures.people(one, "depressed", EN))
    filled = [mark for mark in tree.iter(f"{SVG}circle") if mark.get("fill") == INK]
    empty = [mark for mark in tree.iter(f"{SVG}circle") if mark.get("fill") == PAPER]
    assert len(filled) == 10 + wanted
    assert len(filled) + len(empty) == 200
    assert words_of in texts(tree)


def test_family_bars_are_as_long_as_their_effects_and_unsure_ones_are_hatched():
    tree = drawn(picture("flagged", "families"))
    bars = sorted((y, width, fill) for (_, y, width, height), fill in _filled(tree) if height == 10 and width != 28)
    effects = [family.probability.value for family in samples.result().explanation.families]
    stable = [family.stable for family in samples.result().explanation.families]
    widths = [width for _, width, _ in bars]
    assert np.allclose(np.array(widths) / widths[0], np.abs(effects) / abs(effects[0]), atol=0.02)
    assert [fill for _, _, fill in bars] == [
        PAPER if not sure else (ACCENT if effect > 0 else WASH) for effect, sure in zip(effects, stable, strict=True)
    ]
    assert [text for text in texts(tree) if text == "not sure"] == ["not sure"]
    assert "main driver" in texts(tree)


def _filled(tree):
    return [(tuple(float(one.get(key)) for key in ("x", "y", "width", "height")), one.get("fill")) for one in tree.iter(f"{SVG}rect")]


def test_intervals_of_families_stand_beside_their_bars():
    assert "+5.1 to +11" in texts(drawn(picture("flagged", "families")))
    assert "Timing and pauses: +8.1 (+5.1 to +11), main driver." in picture("flagged", "families").finding


def test_a_measure_lies_on_its_line_where_its_band_says():
    one = samples.measure("timing.speech_rate_syll_per_s", 4.0, (3.0, 4.0), 75.0)
    tree = drawn(figures.measures([one], EN))
    [(left, _, width, _)] = boxes(tree, height="10")
    [diamond] = list(tree.iter(f"{SVG}polygon"))
    at = np.mean([x for x, _ in corners(diamond)])
    assert at == pytest.approx(left + width, abs=0.1)


@pytest.mark.parametrize(("value", "side"), [(90.0, 1), (-90.0, -1)])
def test_a_measure_beyond_its_line_is_an_arrowhead_at_its_end(value, side):
    tree = drawn(figures.measures([samples.measure("timing.speech_rate_syll_per_s", value, (3.0, 4.0), 50 + 45 * side)], EN))
    [line] = list(tree.iter(f"{SVG}line"))
    ends = [float(line.get("x1")), float(line.get("x2"))]
    [arrow] = list(tree.iter(f"{SVG}polygon"))
    tip = max(corners(arrow), key=lambda spot: side * spot[0])[0]
    assert side * tip > side * (max(ends) if side > 0 else min(ends))


def test_what_was_not_measured_says_so_and_is_not_drawn():
    tree = drawn(picture("nothing measured or known", "measures"))
    assert sum(text.text == "not measured" for text in tree.iter(f"{SVG}text")) == len(samples.VALUES)
    assert not list(tree.iter(f"{SVG}polygon"))


@given(st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-6))
def test_measured_values_have_two_significant_digits_and_are_near_what_was_measured(value):
    written = float(brief(value).replace("−", "-"))
    assert len(brief(value).strip("−0.").replace(".", "").rstrip("0")) <= 2
    assert written == pytest.approx(value, rel=0.051)


@given(st.floats(-50, 50))
def test_indices_have_one_decimal_and_no_negative_zero(value):
    assert re.fullmatch(r"0\.0|[+−](?:\d\.\d|\d\d)", one_place(value))


def test_moments_that_stand_out_are_named_with_their_times():
    text = picture("flagged", "moments").finding
    assert text.startswith("3 of 40 windows stand out: 1:45–2:00 (+3.4 points)")
    calm = samples.samples.timeline(out=())
    shown = figures.moments(calm, "depressed", EN)
    assert shown.finding.startswith("No moment stands out")


def test_speech_is_drawn_where_it_was_heard():
    when = samples.samples.timeline(8, 2.5, ())
    tree = drawn(figures.moments(when, "depressed", EN))
    strips = sorted(box for box in boxes(tree, height="9"))
    assert len(strips) == len(when.tracks.speech_s)
    start, end = figures.MOMENTS_TRACK
    seconds = [(x - start) / (end - start) * 20 for x, *_ in strips]
    assert seconds == pytest.approx([first for first, _ in when.tracks.speech_s], abs=0.05)


# --- Visits -------------------------------------------------------------------------------------------------------------------------------


def test_a_change_beyond_repeating_is_said_and_one_within_is_not():
    rows = {row[0]: row[1:] for row in picture("2 visits", "visits").table.rows}
    assert rows["Share of pauses"][4] == "higher than usual variation"
    assert rows["Average pitch (Hz)"][4] == "within usual variation"
    assert rows["Overall voice clarity (CPPS)"][4] == "not measured this time"


def test_a_row_of_visits_names_its_unit_once():
    shown = texts(drawn(picture("2 visits", "visits")))
    assert {"Speech rate (syllables/s)", "Average pause (s)", "Average pitch (Hz)", "Pitch variation (semitones)"} <= set(shown)


def test_visits_on_another_device_are_flagged_hollow_and_not_compared():
    said = " ".join(words(sheet("40 visits").pages[2:]))
    assert "Another device recorded 13 of the 39 earlier recordings; they are not compared." in said
    tree = drawn(picture("40 visits", "visits"))
    row = list(tree.iter(f"{SVG}circle"))
    hollow = [mark for mark in row if mark.get("fill") == PAPER]
    assert len(hollow) == 13 * len(row) // 39


def test_the_band_of_a_measure_holds_what_repeating_gives():
    _last, compared = samples.visits(12)
    change = next(one for one in compared.measures if one.name == "timing.pause_share_percent")
    only = compared.model_copy(update={"measures": (change,), "score": None})
    tree = drawn(visits(only, "", EN))
    [(_, top, _, height)] = boxes(tree, fill=WASH)
    spots = [float(mark.get("cy")) for mark in tree.iter(f"{SVG}circle")]
    [now] = [np.mean([y for _, y in corners(mark)]) for mark in tree.iter(f"{SVG}polygon")]
    values = np.array(change.values)
    inside = [change.band.low <= value <= change.band.high for value in values]
    assert [top <= y <= top + height for y in (*spots, now)] == inside
    assert not inside[-1]


def test_where_repeating_was_never_measured_no_change_is_called_one():
    last, _ = samples.visits(3)
    bare = [one.model_copy(update={"retest": None}) for one in last.measures]
    results = [samples.visits(i + 2)[0] for i in range(2)]
    from clinical_ser.monitoring.comparison import compare

    now = last.model_copy(update={"measures": tuple(bare), "retest": None})
    earlier = [
        one.model_copy(update={"recording": RecordingIdentity(sha256=f"{i + 90:064x}", duration_s=80.0), "context": now.context})
        for i, one in enumerate(results)
    ]
    pages = sheet_of(now, comparison=compare(now, earlier)).pages
    said = " ".join(words(pages[2:]))
    assert "no index is given and no change is called one" in said
    assert "than usual variation" not in said


def test_an_unusable_recording_is_not_compared_and_says_so():
    earlier = [samples.visits(3)[0].model_copy(update={"context": SubjectContext()})]
    compared = compare(samples.refused(), earlier)
    pages = sheet_of(samples.refused(), comparison=compared).pages
    assert EN("visits.no_rows") in words(pages)
    assert len(read(pdf_report(samples.refused(), comparison=compared)).pages) == 2


def test_two_values_that_look_alike_are_told_apart_by_their_change():
    last, _ = samples.visits(2)
    recording = RecordingIdentity(sha256="ab" * 32, duration_s=80.0)
    before = last.model_copy(update={"measures": samples.measures(f0_mean_hz=205.2), "recording": recording})
    now = last.model_copy(update={"measures": samples.measures(f0_mean_hz=214.4)})
    rows = {row[0]: row[1:] for row in visits(compare(now, [before]), "", EN).table.rows}
    assert rows["Average pitch (Hz)"][:3] == ("210", "210", "+9.2")


def test_probabilities_over_time_are_said_to_be_stated_for_one_share():
    assert "Probabilities are stated for a group in which 10 % are labelled so" in " ".join(words(sheet("2 visits").pages[2:]))


def test_a_probability_over_time_is_not_shown_where_this_recording_has_no_answer():
    last, _ = samples.visits(4)
    from clinical_ser.monitoring.comparison import compare

    told = last.model_copy(update={"status": Status.INDETERMINATE, "prediction_set": ("not_depressed", "depressed")})
    earlier = [last.model_copy(update={"recording": RecordingIdentity(sha256=f"{i + 50:064x}", duration_s=80.0)}) for i in range(3)]
    said = words(sheet_of(told, comparison=compare(told, earlier)).pages)
    assert EN("visits.no_score") in " ".join(said)
    assert "Probability of depressed" not in " ".join(said)


def test_an_earlier_recording_that_could_not_be_told_has_no_dot_of_its_probability():
    last, _ = samples.visits(4)
    earlier = [last.model_copy(update={"recording": RecordingIdentity(sha256=f"{i + 50:064x}", duration_s=80.0)}) for i in range(3)]
    earlier[1] = earlier[1].model_copy(update={"status": Status.INDETERMINATE, "prediction_set": ("not_depressed", "depressed")})
    only = compare(last, earlier).model_copy(update={"measures": ()})
    assert len(list(drawn(visits(only, "depressed", EN)).iter(f"{SVG}circle"))) == 2


def test_a_comparison_of_another_recording_is_refused():
    _, compared = samples.visits(3)
    with pytest.raises(InvalidValueError, match="another recording"):
        html_report(samples.refused(), comparison=compared)


# --- Texts that may be anyone's -----------------------------------------------------------------------------------------------------------


def hostile(result):
    fixed = {
        "schema_id",
        "status",
        "scale",
        "verdict",
        "signature",
        "sex",
        "sha256",
        "family",
        "origin",
        "column",
        "topic",
        "bound",
        "recorded_on",
        "name",
    }

    def spoiled(value, key=""):
        match value:
            case dict():
                return {k + HOSTILE if key in {"software", "switched_off"} else k: spoiled(v, k) for k, v in value.items()}
            case list():
                return [spoiled(item, key) for item in value]
            case str() if key not in fixed:
                return value + HOSTILE
        return value

    return ScreeningResult.model_validate_json(json.dumps(spoiled(result.model_dump(mode="json"))))


@pytest.mark.parametrize("make", [samples.result, samples.refused, samples.of_classes, samples.with_embedding])
def test_texts_of_a_result_cannot_act(make):
    result = hostile(make())
    page = Page(html_report(result))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    assert not any(key == "style" or key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert not set("".join(page.text)) & set("\u202e\x00")
    assert len(read(pdf_report(result, system_fonts=False)).pages) <= 2


def test_a_report_in_chinese_without_a_chinese_font_names_the_package():
    with pytest.raises(ReportError, match="fonts-noto-cjk or fonts-wqy-microhei"):
        pdf_report(samples.refused(), language="zh", system_fonts=False)


def test_a_class_without_a_font_is_an_error_and_no_boxes():
    one = samples.result(context=SubjectContext(task="\U00013000"))
    with pytest.raises(ReportError, match=r"U\+13000"):
        pdf_report(one, system_fonts=False)


# --- The site and its language ------------------------------------------------------------------------------------------------------------


def test_an_unknown_language_is_refused_with_those_there_are():
    with pytest.raises(InvalidValueError, match=r"en.*zh"):
        html_report(samples.result(), language="xx")


def test_a_third_language_is_one_file(tmp_path):
    folder = tmp_path / "languages"
    folder.mkdir()
    (folder / "fr.toml").write_text(_translated(), encoding="utf-8")
    site = Site(language="fr", languages_folder=folder, contacts=samples.SITE.contacts)
    for result, _, comparison in CASES.values():
        html = html_report(result, comparison=comparison, site=site)
        assert '<html lang="fr">' in html
        assert "ǁ" in html
        assert read(pdf_report(result, comparison=comparison, site=site, system_fonts=False)).language == "fr"
        ours = {text for text in EN.texts.values() if "{" not in text and len(text) > 12}
        said = words(sheet_of(result, comparison=comparison, site=site).pages)
        assert not [text for text in said if text in ours]


def _translated():
    """Our English with a mark before every text, and what a third language has to bring besides."""
    from clinical_ser.audio.advice import ADVICE
    from clinical_ser.features.catalogue import FAMILIES

    lines = [f"{_key(key)} = {json.dumps('ǁ' + text, ensure_ascii=False)}" for key, text in EN.texts.items()]
    lines += ['language.code = "fr"', 'language.name = "Français"']
    lines += [f'families.{family} = "ǁ {family}"' for family in FAMILIES]
    lines += [f'advice.{key} = "ǁ {"{limit}" if "{limit" in english else ""} {key}"' for key, (english, _) in ADVICE.items()]
    return "\n".join(lines)


def _key(key):
    group, _, rest = key.partition(".")
    return f"{group}.{json.dumps(rest)}" if rest and not re.fullmatch(r"[a-z_.]+", rest) else key


def test_a_sites_wording_is_used_and_who_reviewed_it_is_said(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(
        'name = "A clinic"\nreviewed_by = "Dr. A. Reader"\nreviewed_on = 2026-05-04\n[wording.en]\n"next.flagged" = "See the green folder."\n',
        encoding="utf-8",
    )
    said = words(sheet_of(samples.result(), site=read_site(path)).pages)
    assert "See the green folder." in said
    assert any("Wording reviewed for this site by Dr. A. Reader on 2026-05-04." in text for text in said)
    assert "Wording reviewed" not in " ".join(words(sheet_of(samples.result()).pages))


def test_a_sites_wording_that_diagnoses_is_refused(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(
        'name = "A clinic"\nreviewed_by = "X"\nreviewed_on = 2026-05-04\n[wording.en]\n"next.flagged" = "This person has depression."\n',
        encoding="utf-8",
    )
    with pytest.raises(SiteError):
        read_site(path)


def test_a_logo_is_in_the_file_and_has_words(tmp_path):
    pixel = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
    (tmp_path / "logo.png").write_bytes(pixel)
    (tmp_path / "site.toml").write_text('name = "A clinic"\nlogo = "logo.png"\nlogo_alt = "Crest of the clinic"\n', encoding="utf-8")
    site = read_site(tmp_path / "site.toml")
    html = html_report(samples.result(), site=site)
    assert "img-src data:;" in html
    assert f'src="data:image/png;base64,{base64.b64encode(pixel).decode()}" alt="Crest of the clinic"' in html
    assert read(pdf_report(samples.result(), site=site)).tags.all("Figure")[0].alt == "Crest of the clinic"


# --- The recording inside -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    """A recording, and a result that is of it."""
    recording = audio.from_samples(np.sin(np.arange(20 * 16_000) / 20).astype(np.float32) * 0.3, 16_000)
    when = samples.samples.timeline(8, 2.5, (3,))
    identity = RecordingIdentity(sha256=recording.sha256, duration_s=recording.duration_s)
    return recording, samples.result(when=when, recording=identity)


def test_a_recording_is_in_the_file_only_when_asked_for_and_then_with_a_warning(recorded):
    recording, result = recorded
    assert "<audio" not in html_report(result)
    html = html_report(result, audio=recording)
    assert EN("audio.warning") in unescape(html)
    data = base64.b64decode(re.search('src="data:audio/flac;base64,([^"]*)"', html)[1])
    again = audio.load(data)
    assert again.sha256 == recording.sha256
    script = re.search("<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"media-src data:; script-src 'sha256-{digest}'; base-uri 'none'" in html
    assert 'data-at="7.5"' in html


def test_another_recording_is_refused(recorded):
    recording, result = recorded
    with pytest.raises(InvalidValueError, match="another recording"):
        html_report(samples.result(), audio=recording)
    with pytest.raises(InvalidValueError, match="without a timeline"):
        html_report(result.model_copy(update={"timeline": None}), audio=recording)


# --- The code -----------------------------------------------------------------------------------------------------------------------------


def test_the_code_is_that_of_the_record_with_a_quiet_zone():
    """Read back module by module."""
    import segno

    text = "CLINICAL-SER:RESULT:" + "5E" * 32
    one = code(text, "Record")
    wanted = np.array([[bool(m) for m in line] for line in segno.make(text, error="m", micro=False).matrix])
    size = one.drawing.width / (len(wanted) + 8)
    found = np.zeros(np.array(wanted.shape) + 8, bool)
    for x, y, width, _ in boxes(ET.fromstring(one.svg(FONT)), fill="#000000"):
        found[round(y / size), round(x / size) : round((x + width) / size)] = True
    assert (found[4:-4, 4:-4] == wanted).all()
    assert not found[:4].any()
    assert not found[:, :4].any()
    assert one.finding == f"Record: {text}"


def test_a_timeline_that_is_absent_is_said_to_be():
    said = words(sheet_of(samples.missing()).pages)
    assert EN("moments.absent") in said
