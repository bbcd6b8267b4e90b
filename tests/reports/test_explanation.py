import json
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.errors import InvalidValueError
from clinical_ser.explain.explanation import Reference
from clinical_ser.explain.timeline import Tracks
from clinical_ser.screening.result import ClassProbability, Interval, ScreeningResult, Status
from reports import cohort_explanation, explanation_figures
from reports.cohort_explanation import recordings_per_dot, section
from reports.document import Notice, Picture, Table, Terms
from reports.drawing import ACCENT, FAINT, INK, PAPER, QUIET, WASH
from reports.explanation import SIMULATED, document_of, html_report, pdf_report, svg_picture
from reports.numbers import clock, measured, percent, points
from tests.reports import explanation_samples as samples
from tests.reports import layout
from tests.reports.layout import boxes
from tests.reports.test_cohort import HOSTILE, Page, unpacked
from tests.reports.test_figures import FONT, SVG, drawn, texts
from tests.reports.test_figures import points as corners

LONG = "A name that is a great deal longer than any column of any drawing has room for, and then goes on"
UNSURE = {"timing": (0.05, 0.02, False, 0.9), "embedding": (-0.04, 0.06, False, 0.6), "pitch": (0.02, 0.09, False, 0.5)}


def row_boxes(tree, label):
    """Rectangles in the row of a label, from left to right, each with its fill."""
    y = texts(tree)[label][1]
    found = [shape for shape in tree.iter(f"{SVG}rect") if y - 18 < float(shape.get("y")) < y + 8]
    return [(shape.get("fill"), float(shape.get("x")), float(shape.get("width"))) for shape in found]


def beside(tree, label):
    """Other texts on the line of a label."""
    y = texts(tree)[label][1]
    return [text.text for text in tree.iter(f"{SVG}text") if float(text.get("y")) == y and text.text != label]


def scale_below(tree):
    """From the ticks along the foot of a drawing: pixels to what they stand for."""
    ticks = [text for text in tree.iter(f"{SVG}text") if re.fullmatch("−?[0-9.]+", text.text) and text.get("text-anchor") == "middle"]
    foot = max(float(text.get("y")) for text in ticks)
    found = [(float(text.get("x")), float(text.text.replace("−", "-"))) for text in ticks if float(text.get("y")) == foot]
    return np.polynomial.Polynomial.fit(*zip(*found, strict=True), deg=1)


def named_long(model):
    """A copy in which every label is too long."""
    return type(model).model_validate_json(re.sub(r'"(label_en|target|name)":"[^"]*"', rf'"\1":"{LONG}"', model.model_dump_json()))


def all_pictures():
    told = [samples.explanation(), samples.with_embedding(), samples.explanation(UNSURE, base=0.03), named_long(samples.explanation())]
    cohorts = [samples.cohort(), samples.cohort(features=3, recordings=50), named_long(samples.cohort(features=20))]
    times = [samples.timeline(), samples.timeline(8, 2.5, (3,)), samples.timeline(out=range(40)), samples.timeline(4, 2.5, ())]
    made = [explanation_figures.families(one) for one in told] + [explanation_figures.features(one) for one in told]
    made += [explanation_figures.timeline(one) for one in times]
    return made + [make(one) for one in cohorts for make in (cohort_explanation.families, cohort_explanation.features)]


@pytest.fixture(scope="module")
def pictures():
    return all_pictures()


# --- All pictures -------------------------------------------------------------------------------------------------------------------------


def test_pictures_name_themselves_and_have_numbers_in_words_and_a_table(pictures):
    for picture in pictures:
        tree = drawn(picture)
        assert tree.find(f"{SVG}title").text == picture.title
        assert re.search("[0-9]", tree.find(f"{SVG}desc").text)
        assert re.search("recording|subject", tree.find(f"{SVG}desc").text)
        assert picture.table.rows
        assert picture.note


def test_texts_stay_on_the_page_and_apart_from_each_other(pictures):
    layout.check_texts(pictures)


def test_shapes_stay_on_the_page(pictures):
    layout.check_shapes(pictures)


def test_no_colour_is_red_or_green(pictures):
    layout.check_colours(pictures)


def test_the_same_models_draw_the_same_bytes(pictures):
    assert [picture.svg(FONT) for picture in pictures] == [picture.svg(FONT) for picture in all_pictures()]


@given(st.floats(-1, 1))
def test_points_and_percents_have_at_most_two_significant_digits(value):
    for text in (points(value), percent(abs(value))):
        bare = re.sub("[^0-9.]", "", text)
        digits = bare.replace(".", "").lstrip("0")
        assert len(digits) <= 2 or text == "100 %" or bare == "100"
    if re.fullmatch("[+−0-9.]+", points(value)):
        step = next(step for least, step in ((9.95, 1), (0.1, 0.1), (0, 0.01)) if abs(100 * value) >= least)
        assert abs(float(points(value).replace("−", "-")) - 100 * value) <= step / 2 + 1e-9


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (points(0.0996), "+10"), (points(-0.00004), "> −0.01"), (percent(0.9951), "> 99 %"), (percent(0.0), "0 %"), (measured(0.0, "dB"), "0 dB"),
        (measured(12345.6, "Hz"), "12,300 Hz"), (measured(23.4, "us"), "23.4 µs"), (clock(119.99, 1), "2:00.0"), (clock(3599), "59:59"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_they_are_read(written, wanted):
    assert written == wanted


# --- Families -----------------------------------------------------------------------------------------------------------------------------


def test_bars_lead_from_the_groups_probability_to_the_recordings():
    told = samples.explanation()
    tree = drawn(explanation_figures.families(told))
    to_x, start = scale_below(tree), 100 * told.base_probability
    for family in told.families:
        [(_, x, width)] = row_boxes(tree, family.label_en)
        effect = 100 * family.probability.value
        assert (to_x(x), to_x(x + width)) == pytest.approx(sorted((start, start + effect)), abs=0.02)
        start += effect
    ends = [np.mean(corners(shape), axis=0) for shape in tree.iter(f"{SVG}polygon") if len(corners(shape)) == 4]
    assert [to_x(x) for x, _ in ends] == pytest.approx([100 * told.base_probability, 100 * told.probability], abs=0.02)
    assert "12 %" in beside(tree, "Reference group, mean")
    assert "23 %" in beside(tree, "This recording")


def test_a_family_whose_interval_crosses_zero_is_grey_hatched_and_called_unstable():
    told = samples.explanation()
    tree = drawn(explanation_figures.families(told))
    for family in told.families:
        [(fill, _, _)] = row_boxes(tree, family.label_en)
        y = texts(tree)[family.label_en][1]
        slanted = [
            line for line in tree.iter(f"{SVG}line")
            if line.get("x1") != line.get("x2") and line.get("y1") != line.get("y2") and y - 18 < float(line.get("y1")) < y + 8
        ]  # fmt: skip
        label = next(text for text in tree.iter(f"{SVG}text") if text.text == family.label_en)
        crosses = family.probability.low < 0 < family.probability.high
        assert bool(slanted) == crosses == ("unstable" in beside(tree, family.label_en)), family.family
        assert (label.get("fill") == QUIET) == crosses
        if not crosses:
            assert fill == (ACCENT if family.probability.value > 0 else WASH)
            assert ("raises" if family.probability.value > 0 else "lowers") in beside(tree, family.label_en)


@pytest.mark.parametrize("flagged", [True, False])
def test_a_main_driver_is_named_only_where_it_is_flagged(flagged):
    told = samples.explanation({"timing": (0.08, 0.02, flagged, 0.95), "pitch": (0.02, 0.01, False, 0.95)})
    picture = explanation_figures.families(told)
    assert ("main driver" in beside(drawn(picture), "Timing and pauses")) is flagged
    assert "main driver" not in beside(drawn(picture), "Pitch and melody")
    assert picture.finding.count("main driver") == flagged
    [section_] = [one for one in document_of(samples.result(told)).sections if one.title == "What moved the probability"]
    assert section_.blocks[0].text.startswith("The main driver is Timing" if flagged else "No family may be called the main driver")


def test_the_finding_has_every_number_of_the_drawing():
    finding = explanation_figures.families(samples.explanation()).finding
    assert "reference group (84 subjects): 12 %. This recording: 23 %." in finding
    assert "Timing and pauses: raises, +8.1 points (95 % interval +5.1 to +11), main driver." in finding
    assert "Voice quality: lowers, −2.8 points (95 % interval −4.9 to −0.7)." in finding
    assert "Loudness: raises, +1.2 points (95 % interval −2.2 to +4.6), unstable." in finding


def test_an_interval_that_leaves_the_probabilities_ends_in_an_arrowhead_at_their_edge():
    tree = drawn(explanation_figures.families(samples.explanation(UNSURE, base=0.03)))
    to_x = scale_below(tree)
    heads = [corners(shape) for shape in tree.iter(f"{SVG}polygon") if len(corners(shape)) == 3]
    assert [round(float(to_x(head[0][0])), 1) + 0.0 for head in heads] == [0.0, 0.0]
    assert not [
        head for shape in drawn(explanation_figures.families(samples.explanation())).iter(f"{SVG}polygon") if len(head := corners(shape)) == 3
    ]


def test_an_interval_starts_from_where_its_bar_starts():
    told = samples.explanation()
    tree = drawn(explanation_figures.families(told))
    to_x, start = scale_below(tree), 100 * told.base_probability
    lines = [line for line in tree.iter(f"{SVG}line") if line.get("y1") == line.get("y2") and line.get("stroke-width") == "1.25"]
    for family, line in zip(told.families, lines[1:], strict=True):
        ends = [to_x(float(line.get(key))) for key in ("x1", "x2")]
        assert ends == pytest.approx([start + 100 * family.probability.low, start + 100 * family.probability.high], abs=0.02)
        start += 100 * family.probability.value


def test_the_learned_pattern_is_one_bar_with_its_name():
    tree = drawn(explanation_figures.families(samples.with_embedding()))
    assert len(row_boxes(tree, "Learned pattern")) == 1
    assert "+14" in beside(tree, "Learned pattern")


# --- Features -----------------------------------------------------------------------------------------------------------------------------


def test_a_feature_lies_where_its_band_says():
    told = samples.explanation()
    tree = drawn(explanation_figures.features(told))
    for feature in (feature for family in told.families for feature in family.features if feature.band):
        label = next(text for text in texts(tree) if text and feature.label_en.startswith(text))
        [(_, left, width)] = row_boxes(tree, label)
        x = left + width * (feature.value - feature.band.low) / (feature.band.high - feature.band.low)
        found, beyond = _mark(tree, texts(tree)[label][1])
        if beyond:
            assert (x - found) * (feature.value - feature.band.high) > 0
        else:
            assert found == pytest.approx(x, abs=0.1)


def _mark(tree, y):
    """The middle of a row's diamond or circle, and whether an arrowhead says that the value lies further out."""
    near = [shape for shape in tree.iter() if shape.get("points") and abs(np.mean(corners(shape), axis=0)[1] - y + 4) < 3]
    circles = [shape for shape in tree.iter(f"{SVG}circle") if abs(float(shape.get("cy")) - y + 4) < 3]
    diamonds = [np.mean(corners(shape), axis=0)[0] for shape in near if len(corners(shape)) == 4]
    return (diamonds or [float(circles[0].get("cx"))])[0], any(len(corners(shape)) == 3 for shape in near)


def test_a_feature_with_an_unstable_effect_is_hollow_and_called_so():
    told = samples.explanation()
    tree = drawn(explanation_figures.features(told))
    unstable = [one for family in told.families for one in family.features if one.band and not one.stable]
    assert len([shape for shape in tree.iter(f"{SVG}circle") if shape.get("fill") == PAPER]) - 1 == len(unstable)
    assert "unstable" in beside(tree, "Pitch range (semitones)")
    assert "raises" in beside(tree, "Average pause")


def test_percentiles_stop_where_the_groups_quantiles_do():
    tree = drawn(explanation_figures.features(samples.explanation()))
    assert "≥ 95" in beside(tree, "Average pause")
    assert "≤ 5" in beside(tree, "Pitch variation (semitones)")
    assert "93" in beside(tree, "Share of pauses")


def test_a_feature_without_a_band_is_in_the_table_alone():
    picture = explanation_figures.features(samples.explanation())
    assert "Average speech level" not in texts(drawn(picture))
    [row] = [row for row in picture.table.rows if row[0] == "Average speech level"]
    assert row[3:5] == ("not known", "not known")


def test_without_any_band_there_is_a_table_and_no_picture():
    bare = samples.explanation()
    families = tuple(
        family.model_copy(update={"features": tuple(one.model_copy(update={"band": None}) for one in family.features)}) for family in bare.families
    )
    bare = bare.model_copy(update={"families": families})
    assert explanation_figures.features(bare) is None
    blocks = next(one for one in document_of(samples.result(bare)).sections if one.title.startswith("Features")).blocks
    assert isinstance(blocks[0], Table)
    assert not [block for block in blocks if isinstance(block, Picture)]


def test_a_group_in_which_a_feature_never_varies_is_drawn_as_a_point():
    told = samples.explanation()
    [pause, *others] = told.families[0].features
    still = pause.model_copy(update={"band": pause.band.model_copy(update={"low": 0.5, "high": 0.5})})
    family = told.families[0].model_copy(update={"features": (still, *others)})
    tree = drawn(explanation_figures.features(told.model_copy(update={"families": (family, *told.families[1:])})))
    assert row_boxes(tree, "Average pause")[0][2] == 2


# --- Timeline -----------------------------------------------------------------------------------------------------------------------------


def test_windows_beyond_the_band_are_dark_and_numbered_by_size():
    when = samples.timeline()
    tree = drawn(explanation_figures.timeline(when))
    dark = sorted(box for box in boxes(tree, fill=ACCENT) if box[0] > 70)
    assert len(dark) == 3
    numbers = {text.text: (float(text.get("x")), float(text.get("y"))) for text in tree.iter(f"{SVG}text") if text.get("font-weight") == "bold"}
    assert sorted(numbers) == ["1", "2", "3"]
    for place, (x, y, width, height) in zip("123", dark, strict=True):
        at, base = numbers[place]
        assert at == pytest.approx(x + width / 2, abs=0.1)
        assert base < y or base > y + height


def test_bars_are_as_long_as_their_effects_and_stand_at_their_times():
    when = samples.timeline()
    tree = drawn(explanation_figures.timeline(when))
    ticks = [text for text in tree.iter(f"{SVG}text") if re.fullmatch("−?[0-9.]+", text.text) and text.get("text-anchor") == "end"][:4]
    to_y = np.polynomial.Polynomial.fit([float(t.get("y")) - 4 for t in ticks], [float(t.text.replace("−", "-")) for t in ticks], deg=1)
    dark = sorted(box for box in boxes(tree, fill=ACCENT) if box[0] > 70)
    effects = [100 * window.effect for window in when.windows if window.stands_out]
    found = [float(to_y(y) if effect > 0 else to_y(y + height)) for effect, (_, y, _, height) in zip(effects, dark, strict=True)]
    assert found == pytest.approx(effects, abs=0.02)
    times = [
        (float(t.get("x")), 60 * int(t.text[:-3]) + int(t.text[-2:])) for t in tree.iter(f"{SVG}text") if re.fullmatch("[0-9]+:[0-9]{2}", t.text)
    ]
    to_s = np.polynomial.Polynomial.fit(*zip(*times, strict=True), deg=1)
    middles = [(window.start_s + window.end_s) / 2 for window in when.windows if window.stands_out]
    assert [float(to_s(x + width / 2)) for x, _, width, _ in dark] == pytest.approx(middles, abs=0.1)


def test_without_a_window_that_stands_out_nothing_is_dark_and_the_finding_says_so():
    picture = explanation_figures.timeline(samples.timeline(4, 2.5, ()))
    assert len(boxes(drawn(picture), fill=ACCENT)) == 1  # of the key
    assert "No window stands out." in picture.finding
    assert "within −1.7 to +1.7 points (95 %)" in picture.finding


def test_the_finding_of_a_timeline_names_windows_with_their_times_and_effects():
    finding = explanation_figures.timeline(samples.timeline()).finding
    assert "40 windows of 15 s" in finding
    assert "3 windows stand out, largest first: 1:45 to 2:00, +3.4 points; 2:00 to 2:15, +3.0 points; 5:45 to 6:00, −2.6 points." in finding
    assert "0:07.5 to 0:10.0, +3.4 points" in explanation_figures.timeline(samples.timeline(8, 2.5, (3,))).finding


@pytest.mark.parametrize("stretch_s", [0.03, 0.7])
def test_ten_minutes_of_frames_make_a_small_picture(stretch_s):
    when = samples.timeline()
    frames = len(when.tracks.f0_hz)
    assert frames == 60_000
    on = np.arange(frames) * 0.01 % (2 * stretch_s) < stretch_s
    starts = np.arange(0, 599, 2 * stretch_s)
    broken = Tracks(
        step_s=0.01, f0_hz=tuple(np.where(on, np.random.default_rng(1).uniform(70, 500, frames), 0).tolist()), level_dbfs=when.tracks.level_dbfs,
        speech_s=tuple((round(a, 2), round(a + stretch_s, 2)) for a in starts),
    )  # fmt: skip
    for one in (when, when.model_copy(update={"tracks": broken})):
        assert len(explanation_figures.timeline(one).svg(FONT).encode()) < 150_000


def test_the_course_of_the_probability_is_drawn_with_a_gap_where_too_little_was_said():
    when = samples.timeline(40, 2.5, ())
    picture = explanation_figures.timeline(when)
    tree = drawn(picture)
    before, after, *_ = [corners(line) for line in tree.iter(f"{SVG}polyline")]
    assert max(x for x, _ in before) < min(x for x, _ in after) - 50
    moments = when.course["depressed"]
    heights = np.array([y for _, y in before])
    likely = np.array([moment.probability for moment in moments[: len(before)]])
    assert np.corrcoef(heights, likely)[0, 1] < -0.99
    assert "Of 10 s alone the model says between" in picture.finding
    without = explanation_figures.timeline(when.model_copy(update={"course": {}}))
    assert "alone" not in without.finding
    assert len(list(drawn(without).iter(f"{SVG}polyline"))) < len(list(tree.iter(f"{SVG}polyline")))


def test_pitch_is_drawn_at_its_height_and_only_where_a_voice_is():
    when = samples.timeline(8, 2.5, ())
    f0 = np.zeros(2000)
    f0[500:1000] = 200.0
    steady = when.tracks.model_copy(update={"f0_hz": tuple(f0.tolist()), "speech_s": ((5.0, 10.0),)})
    tree = drawn(explanation_figures.timeline(when.model_copy(update={"tracks": steady})))
    *_, pitch, level = [corners(line) for line in tree.iter(f"{SVG}polyline")]
    assert {y for _, y in pitch} == {texts(tree)["200"][1] - 4}
    left, right = texts(tree)["0:05"][0], texts(tree)["0:10"][0]
    assert (pitch[0][0], pitch[-1][0]) == pytest.approx((left, right), abs=3)
    assert (level[0][0], level[-1][0]) == pytest.approx((left, right), abs=3)
    pauses = [box for box in boxes(tree, fill=FAINT) if box[1] > 30]
    assert len(pauses) == 4
    assert pauses[0][0] + pauses[0][2] == pytest.approx(left, abs=0.1)
    assert pauses[2][0] == pytest.approx(right, abs=0.1)


def test_a_recording_without_a_voice_says_so_in_its_place():
    when = samples.timeline(4, 2.5, ())
    silent = when.tracks.model_copy(update={"f0_hz": (0.0,) * 1000, "speech_s": ()})
    assert "no voice was found" in texts(drawn(explanation_figures.timeline(when.model_copy(update={"tracks": silent}))))


# --- The report ---------------------------------------------------------------------------------------------------------------------------

CASES = {
    "whole": lambda: samples.result(when=samples.timeline(8, 2.5, (3,))),
    "embedding": lambda: samples.result(samples.with_embedding()),
    "refused": samples.refused,
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


def said(document):
    """All texts of a document."""
    return json.dumps(document.as_data(FONT), ensure_ascii=False)


def test_the_page_is_well_formed_with_unique_identifiers(case):
    html = html_report(case)
    page = Page(html)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for drawing in re.findall("<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(drawing)


def test_the_same_result_gives_the_same_bytes(case):
    assert html_report(case) == html_report(ScreeningResult.model_validate_json(case.model_dump_json()))
    assert pdf_report(case, system_fonts=False) == pdf_report(case, system_fonts=False)


def test_the_pdf_is_tagged_and_every_drawing_has_its_finding(case):
    pdf = pdf_report(case, system_fonts=False)
    written = unpacked(pdf)
    assert re.search(rb"pdfuaid", written)
    assert re.search(rb"/StructTreeRoot", written)
    drawings = [block for one in document_of(case).sections for block in one.blocks if isinstance(block, Picture)]
    assert len(re.findall(rb"/S/Figure/P [0-9]+ 0 R/Alt", written)) == len(drawings)


def test_sections_stand_in_the_order_in_which_they_are_read():
    titles = [one.title for one in document_of(samples.result(samples.with_embedding(), samples.timeline(8, 2.5, (3,)))).sections]
    assert titles == [
        "Answer", "What moved the probability", "Features against the reference group", "Whom it was compared with", "When in the recording",
        "The learned pattern", "For engineers: what would change the answer", "What this cannot tell", "Recording and model",
    ]  # fmt: skip


def test_what_has_to_be_known_stands_before_any_number():
    document = document_of(samples.result())
    assert [notice.title for notice in document.notices] == [SIMULATED, "Screening aid, never a diagnosis.", "To be known before this result is used"]
    real = samples.result(model=samples.result().model.model_copy(update={"simulated": False}))
    assert SIMULATED not in said(document_of(real))
    assert "simulated" not in svg_picture(real)


def test_every_family_has_its_sentence_and_what_it_did():
    [blocks] = [one.blocks for one in document_of(samples.result()).sections if one.title == "What moved the probability"]
    told = dict(blocks[-1].rows)
    for family in samples.explanation().families:
        assert told[family.label_en].startswith(family.sentence.en)
        assert ("is not sure" in told[family.label_en]) is not family.stable
    assert "lowers the probability by 2.8 points of percent (95 % interval −4.9 to −0.7)" in told["Voice quality"]


def test_the_reference_group_has_its_size_and_what_could_not_be_matched():
    [blocks] = [one.blocks for one in document_of(samples.result()).sections if one.title == "Whom it was compared with"]
    told = dict(blocks[0].rows)
    assert told["Compared with"] == "not depressed, female, 45 to 65 years (84 people)"
    assert told["Could not be matched"] == "device: too few people like that were recorded"
    alone = samples.explanation(reference=Reference(group="average training recording", subjects=None))
    assert "no group was large enough" in said(document_of(samples.result(alone)))


@pytest.mark.parametrize("disagrees", [True, False])
def test_answers_with_and_without_the_learned_pattern_that_differ_are_a_notice(disagrees):
    document = document_of(samples.result(samples.with_embedding(disagrees)))
    assert ("The answer rests on the learned pattern" in [notice.title for notice in document.notices]) is disagrees
    [blocks] = [one.blocks for one in document.sections if one.title == "The learned pattern"]
    assert "0.420 (95 % interval 0.310 to 0.530; 120 subjects)" in said(document)
    assert "17 % (95 % interval 11 % to 23 %), against 30 % with it" in said(document)
    assert any(isinstance(block, Notice) for block in blocks) is disagrees


def test_moves_name_families_by_their_labels_and_say_who_is_there():
    [blocks] = [one.blocks for one in document_of(samples.result()).sections if one.title.startswith("For engineers")]
    [table] = [block for block in blocks if isinstance(block, Table)]
    assert table.rows[0] == ("Timing and pauses", "+0.41", "flagged", "92", "98", "no")
    assert table.rows[1][-1] == "yes"


def test_what_it_cannot_tell_is_said_with_its_source():
    text = said(document_of(samples.result()))
    assert "It names no cause" in text
    assert "JAMA 330:2275" in text


def test_a_recording_that_is_not_usable_gets_advice_and_no_score():
    result = samples.refused()
    document = document_of(result)
    text = said(document)
    assert result.summary in text
    assert document.title == "Screening result: recording not usable"
    assert [one.title for one in document.sections] == ["Answer", "Recording and model"]
    assert not [block for one in document.sections for block in one.blocks if isinstance(block, Picture)]
    assert "%" not in text
    assert "Probability" not in text
    with pytest.raises(InvalidValueError, match="without an explanation"):
        svg_picture(result)


def test_a_task_of_several_classes_gives_every_class_its_probability():
    told = samples.explanation(scale="calibrated_centred_logit", target="depressed")
    interval = Interval(low=0.1, high=0.4, level=0.95, method="refits")
    classes = [ClassProbability(label=label, value=p, interval=interval, prevalence=1 / 3) for label, p in (("calm", 0.3), ("very_sad", 0.474))]
    result = samples.result(told, status=Status.CLASSIFIED, classes=(*classes, samples.result(told).probability), answers=(), operating_point=None)
    terms = next(block for block in document_of(result).sections[0].blocks if isinstance(block, Terms))
    assert document_of(result).title == "Screening result: most similar to depressed"
    assert [term for term, _ in terms.rows][:3] == ["Probability of depressed", "Probability of very sad", "Probability of calm"]
    assert sum("prevalence" in told for _, told in terms.rows[:3]) == 1


@pytest.mark.parametrize("result", [samples.result(), samples.refused()])
def test_what_was_wrong_with_a_recording_is_named_with_what_a_good_one_reaches(result):
    rows = [row for block in document_of(result).sections[0].blocks if isinstance(block, Terms) for row in block.rows]
    [(_, told)] = [row for row in rows if row[0] == "Speech"]
    assert told.endswith("recommended 25.0 s")


def test_what_is_switched_off_for_one_reason_is_said_in_one_go():
    quality = samples.quality("warn").model_copy(update={"switched_off": dict.fromkeys(("praat.cpps*", "praat.hnr*"), "noise")})
    rows = dict(row for block in document_of(samples.result(quality=quality)).sections[-1].blocks if isinstance(block, Terms) for row in block.rows)
    assert rows["Switched off for quality"] == "praat.cpps*, praat.hnr* (noise)"


def hostile():
    """A result in which every text that could be a stranger's holds markup of every kind."""
    fixed = {"schema_id", "status", "scale", "verdict", "signature", "sex", "sha256", "family", "bound"}

    def spoiled(value, key=""):
        match value:
            case dict():
                keyed = key in {"software", "switched_off"}
                return {k + HOSTILE if keyed else k: spoiled(v, k) for k, v in value.items()}
            case list():
                return [spoiled(item, key) for item in value]
            case str() if key not in fixed:
                return value + HOSTILE
        return value

    whole = samples.result(samples.with_embedding(), samples.timeline(8, 2.5, (3,)))
    return [ScreeningResult.model_validate_json(json.dumps(spoiled(one.model_dump(mode="json")))) for one in (whole, samples.refused())]


def test_texts_of_a_result_cannot_act():
    for result in hostile():
        page = Page(html_report(result))
        assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
        assert not any(key == "style" or key.startswith("on") for _, attributes in page.tags for key in attributes)
        text = "".join(page.text)
        assert "<script>alert(1)</script>" in text
        assert "{{ 7*7 }}" in text
        assert not set(text) & set("\u202e\x00")
        assert not re.search(rb"/URI|/JavaScript|/Launch|/EmbeddedFile", unpacked(pdf_report(result, system_fonts=False)))


def test_texts_of_a_result_are_text_in_the_picture():
    tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(svg_picture(hostile()[0])).iter()}
    assert tags <= {"svg", "title", "desc", "g", "line", "polyline", "polygon", "rect", "circle", "text"}


def test_a_timeline_without_windows_is_left_out():
    result = samples.result(when=samples.timeline(4, 2.5, ()).model_copy(update={"windows": ()}))
    assert "When in the recording" not in [one.title for one in document_of(result).sections]
    assert svg_picture(result) == svg_picture(samples.result())


@pytest.mark.parametrize("when", [None, samples.timeline()])
def test_the_picture_stands_alone(when):
    text = svg_picture(samples.result(when=when))
    tree = ET.fromstring(text)
    words = [element.text for element in tree.iter(f"{SVG}text")]
    tops = [float(re.fullmatch(r"translate\(20 ([0-9.]+)\)", group.get("transform"))[1]) for group in tree.findall(f"{SVG}g")]
    assert len(tops) == (1 if when is None else 2)
    bottoms = [*(top - 44 for top in tops[1:]), float(tree.get("height")) - 40]
    drawings = [explanation_figures.families(samples.explanation()), *([] if when is None else [explanation_figures.timeline(when)])]
    assert [bottom - top for top, bottom in zip(tops, bottoms, strict=True)] == [one.drawing.height for one in drawings]
    assert tree.find(f"{SVG}title").text == "Screening result: flagged. Screening aid, never a diagnosis."
    assert "+8.1 points" in tree.find(f"{SVG}desc").text
    assert ("1:45 to 2:00" in tree.find(f"{SVG}desc").text) is (when is not None)
    assert any("SIMULATED MODEL" in one and "never a diagnosis" in one for one in words)
    assert len(text.encode()) < 150_000
    page = tree.find(f"{SVG}rect")
    assert (page.get("width"), page.get("height"), page.get("fill")) == (tree.get("width"), tree.get("height"), PAPER)


# --- Cohorts ------------------------------------------------------------------------------------------------------------------------------


def dots(tree, label):
    """Fills and strokes of the dots in a feature's row."""
    y = texts(tree)[label][1]
    return [(c.get("fill"), c.get("stroke")) for c in tree.iter(f"{SVG}circle") if abs(float(c.get("cy")) - y + 4) < 24 and float(c.get("cx")) > 210]


@pytest.mark.parametrize(("recordings", "features"), [(40, 3), (960, 12)])
def test_dots_are_the_counts_or_as_many_of_them_as_the_note_says(recordings, features):
    told = samples.cohort(features, recordings)
    picture = cohort_explanation.features(told)
    each = recordings_per_dot(told.features)
    assert (each == 1) is (recordings == 40)
    assert ("One dot: one recording" if each == 1 else f"One dot: up to {each} recordings") in picture.note
    looks = {"low": (PAPER, INK), "high": (INK, INK)}
    for feature in told.features:
        found = dots(drawn(picture), feature.label_en)
        for third, look in looks.items():
            assert found.count(look) == sum(math.ceil(n / each) for n in feature.counts[third])
        assert len(found) == sum(math.ceil(n / each) for counts in feature.counts.values() for n in counts)


def test_thirds_differ_without_their_colour():
    tree = drawn(cohort_explanation.features(samples.cohort()))
    looks = [(c.get("fill"), c.get("stroke")) for c in tree.iter(f"{SVG}circle")][:3]
    lightness = [sum(int(fill[i : i + 2], 16) for i in (1, 3, 5)) for fill, _ in looks]
    assert lightness == sorted(lightness, reverse=True)
    assert min(a - b for a, b in pairwise(lightness)) > 150


def test_swarms_stay_within_their_rows():
    told = samples.cohort(12, 30_000)
    tree = drawn(cohort_explanation.features(told))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in tree.iter(f"{SVG}circle")][3:]
    rows = [texts(tree)[feature.label_en][1] - 4 for feature in told.features]
    assert all(min(abs(y - row) for row in rows) < 22 for _, y in circles)
    assert len(circles) == len({(round(x, 2), round(y, 2)) for x, y in circles}), "no dot hides another"


def test_which_values_raise_the_score_is_in_the_table():
    edges, counts = (-1.0, -0.5, 0.5, 1.0), {"low": (9, 1, 0), "middle": (0, 10, 0), "high": (0, 0, 10)}
    told = samples.cohort(1)
    told = told.model_copy(update={"edges": edges, "features": (told.features[0].model_copy(update={"counts": counts}),)})
    assert cohort_explanation.features(told).table.rows[0][-4:] == ("5.0 %", "50 %", "100 %", "30")


def test_families_of_a_cohort_have_bars_as_long_as_their_mean_size():
    told = samples.cohort()
    picture = cohort_explanation.families(told)
    tree = drawn(picture)
    to_x = scale_below(tree)
    for family in told.families:
        [(_, x, width)] = row_boxes(tree, family.label_en)
        assert (to_x(x), to_x(x + width)) == pytest.approx((0, 100 * family.size.value), abs=0.02)
    assert "Timing and pauses: 6.2 points (5.0 to 7.4), first in 48 % of recordings." in picture.finding
    assert "48 %" in beside(tree, "Timing and pauses")


@pytest.mark.parametrize("inside", [True, False])
def test_a_section_says_whether_the_model_learned_from_these_recordings(inside):
    blocks = section(samples.cohort(inside=inside)).blocks
    assert any(isinstance(block, Notice) for block in blocks) is inside
    [reliability] = [block for block in blocks if isinstance(block, Table)]
    assert [row[1] for row in reliability.rows] == ["0.410", "0.670", "0.380"]


def test_a_summary_without_features_has_no_beeswarm():
    blocks = section(samples.cohort().model_copy(update={"features": (), "edges": ()})).blocks
    assert [block.name for block in blocks if isinstance(block, Picture)] == ["family-sizes"]
