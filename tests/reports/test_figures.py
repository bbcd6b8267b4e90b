import operator
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.evaluation.evidence import Band, Decision, Scores
from reports import figures, rows, wording
from reports.drawing import ACCENT, Plot, Scale, shortened, text_width, ticks
from reports.flow import flow
from tests.reports import samples

SVG = "{http://www.w3.org/2000/svg}"
FONT = "sans-serif"


def drawn(picture):
    """The drawing as a parsed tree."""
    return ET.fromstring(picture.svg(FONT))


def points(element):
    return [tuple(float(v) for v in pair.split(",")) for pair in element.get("points").split()]


def curves(tree):
    return tree.findall(f"{SVG}polyline")


def accent_curve(tree):
    return points(next(line for line in curves(tree) if line.get("stroke") == ACCENT))


def texts(tree):
    return {text.text: (float(text.get("x")), float(text.get("y"))) for text in tree.iter(f"{SVG}text")}


def axis(tree):
    """From the ticks as they are drawn: functions of pixels that give the data they stand for."""
    x_ticks, y_ticks = [], []
    for text in tree.iter(f"{SVG}text"):
        if re.fullmatch("−?[0-9.]+", text.text or "") and not text.get("font-weight"):
            value = float(text.text.replace("−", "-"))
            if text.get("text-anchor") == "middle":
                x_ticks.append((float(text.get("x")), value))
            elif text.get("text-anchor") == "end":
                y_ticks.append((float(text.get("y")) - 4, value))
    return [np.polynomial.Polynomial.fit(*zip(*found, strict=True), deg=1) for found in (x_ticks, y_ticks)]


def all_pictures(evidence):
    pictures = [
        flow(evidence),
        figures.roc(evidence),
        figures.precision_recall(evidence),
        figures.reliability(evidence),
        figures.distributions(evidence),
    ]
    pictures += [rows.confusion(evidence), rows.recalls(evidence)]
    plates = [rows.forests(evidence, ("auroc", "uar", "deferred")), figures.decisions(evidence)]
    pictures += [replace(picture, table=plate.table) for plate in plates if plate for picture in plate.pictures]
    pictures += [figures.learning(evidence.learning_curve)] if evidence.learning_curve else []
    return [picture for picture in pictures if picture]


@pytest.fixture(scope="module", params=["binary", "several"])
def pictures(request):
    return all_pictures(getattr(samples, request.param)())


def test_every_picture_is_well_formed_names_itself_and_says_what_it_shows_with_numbers(pictures):
    assert len(pictures) >= 7
    for picture in pictures:
        tree = drawn(picture)
        title, finding = (tree.find(f"{SVG}{tag}") for tag in ("title", "desc"))
        assert tree.get("role") == "img"
        assert tree.get("aria-labelledby").split() == [title.get("id"), finding.get("id")]
        assert title.text == picture.title
        assert re.search("[0-9]", finding.text)
        assert re.search("subjects?|recordings?", finding.text)


def test_every_picture_has_a_table_with_rows(pictures):
    assert all(picture.table.caption and picture.table.rows for picture in pictures)


def test_pictures_hold_shapes_and_text_only_and_nothing_that_acts_or_loads(pictures):
    shapes = {"svg", "title", "desc", "line", "polyline", "polygon", "rect", "circle", "text"}
    for picture in pictures:
        for element in drawn(picture).iter():
            assert element.tag.removeprefix(SVG) in shapes
            assert not any(key in {"style", "href", "class"} or key.startswith("on") for key in element.attrib)


def test_the_same_evidence_draws_the_same_bytes():
    once, twice = ([picture.svg(FONT) for picture in all_pictures(samples.binary())] for _ in range(2))
    assert once == twice


def test_nothing_is_drawn_outside_of_the_page(pictures):
    for picture in pictures:
        tree, width, height = drawn(picture), picture.drawing.width, picture.drawing.height
        for shape in tree.iter():
            if shape.get("points"):
                assert all(0 <= x <= width and 0 <= y <= height for x, y in points(shape)), picture.name
        for text in tree.iter(f"{SVG}text"):
            if text.get("transform"):
                continue
            x, room = float(text.get("x")), text_width(text.text, float(text.get("font-size")), bold=bool(text.get("font-weight")))
            left = x - {"end": room, "middle": room / 2}.get(text.get("text-anchor"), 0)
            assert left >= -1, (picture.name, text.text)
            assert left + room <= width + 1, (picture.name, text.text)


def test_a_scale_maps_its_ends_and_its_middle():
    across, up = Plot((0, 1), (0, 1)).x, Plot((0, 1), (0, 1)).y
    assert (across(0), across(0.5), across(1)) == (64, 262, 460)
    assert (up(0), up(1)) == (424, 20)
    assert Scale(-1, 1, 0, 100).clipped(5) == 100


@pytest.mark.parametrize("make", [figures.roc, figures.precision_recall, figures.reliability])
def test_curves_lie_where_their_ticks_say(make):
    evidence = samples.binary()
    band = {figures.roc: "roc", figures.precision_recall: "precision_recall", figures.reliability: "reliability"}[make]
    expected = [(x, y) for x, y in zip(getattr(evidence.binary, band).x, getattr(evidence.binary, band).y, strict=True) if y is not None]
    tree = drawn(make(evidence))
    to_x, to_y = axis(tree)
    found = [(to_x(x), to_y(y)) for x, y in accent_curve(tree)]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_operating_point_is_at_its_specificity_and_sensitivity_with_its_intervals_as_a_cross():
    tree = drawn(figures.roc(samples.binary()))
    to_x, to_y = axis(tree)
    diamonds = [points(shape) for shape in tree.findall(f"{SVG}polygon") if len(points(shape)) == 4]
    centre = np.mean(diamonds[0], axis=0)
    np.testing.assert_allclose((to_x(centre[0]), to_y(centre[1])), (1 - 0.7, 0.85), atol=2e-4)
    lines = [[float(line.get(key)) for key in ("x1", "y1", "x2", "y2")] for line in tree.findall(f"{SVG}line") if line.get("stroke-width") == "1.25"]
    spans = {tuple(np.round([to_x(x1), to_y(y1), to_x(x2), to_y(y2)], 3)) for x1, y1, x2, y2 in lines}
    assert (0.24, 0.85, 0.36, 0.85) in spans
    assert (0.3, 0.76, 0.3, 0.94) in spans


def test_out_of_fold_the_reader_is_told_that_the_point_can_lie_off_the_curve():
    assert "off the curve" in figures.roc(samples.binary()).note
    assert "off the curve" not in figures.roc(samples.binary(origin="external")).note


@pytest.mark.parametrize("own", [True, False])
def test_lines_of_a_plot_differ_without_their_colour(own):
    evidence = samples.binary()
    curve = next(curve for curve in evidence.binary.decisions if curve.own is own)
    for picture in (figures.roc(evidence), figures.precision_recall(evidence), figures.reliability(evidence), figures.decision(evidence, curve)):
        dashes = [line.get("stroke-dasharray", "") for line in curves(drawn(picture))]
        assert len(set(dashes)) == len(dashes)


def test_decision_curves_stay_in_the_plot_and_say_where_the_model_is_surely_better():
    evidence = samples.binary()
    curve = evidence.binary.decisions[0]
    picture = figures.decision(evidence, curve)
    tree = drawn(picture)
    to_x, to_y = axis(tree)
    everyone = next(points(line) for line in curves(tree) if line.get("stroke-dasharray") == "7 4")
    bottom = min(to_y(y) for _, y in everyone)
    assert bottom == pytest.approx(picture.drawing.y.low, abs=1e-3)
    crossing = next(to_x(x) for x, y in everyone if to_y(y) == pytest.approx(bottom, abs=1e-9))
    # The net benefit of flagging everyone is pi - (1 - pi) t / (1 - t): solved for where it leaves the plot.
    odds = (0.25 - bottom) / 0.75
    assert crossing == pytest.approx(odds / (1 + odds), abs=2e-3)
    better = [x for x, low in zip(curve.over_default.x, curve.over_default.low, strict=True) if low > 0]
    assert f"from {better[0]:.2f} to {better[-1]:.2f}" in picture.finding


def test_a_model_that_is_no_better_than_a_default_is_said_to_be_so():
    evidence = samples.binary()
    x = (0.1, 0.5, 0.9)
    flat = Band(x=x, y=(0.0, 0.0, 0.0), low=(-0.1, -0.1, -0.1), high=(0.1, 0.1, -0.01))
    picture = figures.decision(evidence, Decision(prevalence=0.2, own=True, model=flat, treat_all=(0.1, -0.6, -7.0), over_default=flat))
    assert "At no threshold probability" in picture.finding
    assert "worse" in picture.finding
    assert "from 0.90 to 0.90" in picture.finding


def test_bars_of_the_rug_go_up_and_down_by_class_and_are_as_long_as_their_counts():
    scores = Scores(edges=(0.0, 0.5, 1.0), counts={"not_depressed": (40, 10), "depressed": (5, 20)})
    curves_ = samples.binary().binary.model_copy(update={"scores": scores})
    tree = drawn(figures.reliability(samples.binary(binary=curves_)))
    bars = [shape for shape in tree.findall(f"{SVG}rect") if shape.get("width") != "30"]
    to_x, _ = axis(tree)
    found = [(round(to_x(float(bar.get("x")) - 0.5), 2), float(bar.get("y")), float(bar.get("height"))) for bar in bars]
    lengths = {(x, round(height / max(h for *_, h in found), 2)) for x, _, height in found}
    assert lengths == {(0.0, 0.12), (0.5, 0.5), (0.0, 1.0), (0.5, 0.25)}
    middle = min(y for x, y, _ in found[2:])
    assert all(y + height == pytest.approx(middle, abs=0.02) for _, y, height in found[:2])


def test_distributions_add_up_to_one_in_each_panel():
    scores = Scores(edges=(0.0, 0.25, 0.5, 0.75, 1.0), counts={"not_depressed": (6, 3, 1, 0), "depressed": (1, 1, 2, 4)})
    picture = figures.distributions(samples.binary(binary=samples.binary().binary.model_copy(update={"scores": scores})))
    tree = drawn(picture)
    floors = sorted({float(bar.get("y")) + float(bar.get("height")) for bar in tree.findall(f"{SVG}rect")})
    for floor, counts in zip(floors, ((6, 3, 1), (1, 1, 2, 4)), strict=True):
        heights = [float(bar.get("height")) for bar in tree.findall(f"{SVG}rect") if float(bar.get("y")) + float(bar.get("height")) == floor]
        np.testing.assert_allclose(np.array(heights) / sum(heights), np.array(counts) / sum(counts), atol=1e-3)
    assert "depressed, 8 recordings: the middle half has a stated probability from 0.25 to 1.00." in picture.finding
    assert picture.table.rows[-1] == ("all", "10", "8")


def test_a_forest_keeps_the_row_of_a_group_with_too_few_people_and_draws_no_mark_for_it():
    plate = rows.forests(samples.binary(), ["auroc"])
    [picture] = plate.pictures
    tree = drawn(picture)
    labels, marks = texts(tree), [np.mean(points(shape), axis=0) for shape in tree.findall(f"{SVG}polygon")]
    assert len(marks) == 1 + 5
    assert not any(abs(y - labels["60-74"][1] + 4) < 1 for _, y in marks)
    assert labels["too few"][1] == labels["60-74"][1]
    assert ["Age band: 60-74", "11", "too few"] in [[cell.replace("\u00a0", " ") for cell in row] for row in plate.table.rows]
    assert "Too few people for a figure: Age band 60-74 (11 subjects)." in picture.finding


def test_a_forest_places_values_on_its_axis():
    evidence = samples.binary()
    [picture] = rows.forests(evidence, ["auroc"]).pictures
    tree = drawn(picture)
    squares = [np.mean(points(shape), axis=0) for shape in tree.findall(f"{SVG}polygon")]
    labels = texts(tree)
    to_x = np.polynomial.Polynomial.fit(*zip(*[(labels[t][0], float(t)) for t in labels if re.fullmatch(r"0\.[0-9]", t)], strict=True), deg=1)
    expected = [0.8116, *(group.figures["auroc"].value for group in evidence.groups if group.enough)]
    np.testing.assert_allclose([to_x(x) for x, _ in squares], expected, atol=2e-4)


def test_many_groups_go_to_several_pictures_so_that_each_fits_a_page():
    group = samples.binary().groups[0]
    groups = tuple(group.model_copy(update={"column": f"c{k}", "value": str(i)}) for k in range(3) for i in range(20))
    plate = rows.forests(samples.binary(groups=groups), ["auroc"])
    assert len({part.name for part in plate.pictures}) == len({part.title for part in plate.pictures}) == 3
    assert sum(len(drawn(part).findall(f"{SVG}polygon")) - 1 for part in plate.pictures) == 60
    assert len(plate.table.rows) == 1 + 60


def test_a_confusion_matrix_has_each_number_at_its_row_and_column_and_shades_by_row():
    evidence = samples.several()
    tree = drawn(rows.confusion(evidence))
    cells = tree.findall(f"{SVG}rect")
    numbers = [text for text in tree.findall(f"{SVG}text") if re.fullmatch("[0-9]+", text.text)]
    assert [int(text.text) for text in numbers] == [n for row in evidence.classes.confusion for n in row]
    for cell, text in zip(cells, numbers, strict=True):
        assert float(cell.get("x")) < float(text.get("x")) < float(cell.get("x")) + float(cell.get("width"))
        assert float(cell.get("y")) < float(text.get("y")) < float(cell.get("y")) + float(cell.get("height"))
    labels = [text for text in tree.findall(f"{SVG}text") if text.get("transform") and text.text in evidence.task.classes]
    middles = [float(cell.get("x")) + float(cell.get("width")) / 2 for cell in cells[:5]]
    assert [text.text for text in labels] == list(evidence.task.classes)
    np.testing.assert_allclose([float(text.get("x")) for text in labels], middles, atol=6)
    red = [int(cell.get("fill")[1:3], 16) for cell in cells]
    assert all(int(np.argmin(red[5 * i : 5 * i + 5])) == i for i in range(5))
    assert "Of 80 recordings of boredom, 49 were right; most of the others were taken for neutral (26)." in rows.confusion(evidence).finding


def test_a_cell_is_shaded_by_its_share_of_the_true_class():
    classes = samples.several().classes.model_copy(update={"confusion": ((5, 5, 0, 0, 0), (500, 500, 0, 0, 0), *((0, 0, 9, 0, 0),) * 3)})
    fills = [cell.get("fill") for cell in drawn(rows.confusion(samples.several(classes=classes))).findall(f"{SVG}rect")]
    assert fills[0] == fills[1] == fills[5] == fills[6]
    assert fills[2] == "#ffffff"
    assert fills[12] == "#6d9dba"


def test_a_matrix_of_many_classes_is_listed_cell_by_cell():
    labels = tuple(f"class{k}" for k in range(12))
    matrix = tuple(tuple(3 if i == k else int(k == 0) for k in range(12)) for i in range(12))
    base = samples.several()
    classes = base.classes.model_copy(update={"confusion": matrix, "recalls": dict.fromkeys(labels, samples.figure(0.5))})
    table = rows.confusion(samples.several(classes=classes, task=base.task.model_copy(update={"classes": labels}))).table
    assert len(table.rows) == 12 + 11
    assert table.rows[0] == ("class0", "class0", "3")
    assert table.rows[1:3] == (("class1", "class0", "1"), ("class1", "class1", "3"))


def test_the_flow_has_a_box_for_what_is_unusable_and_for_indeterminate_answers():
    picture = flow(samples.binary())
    labels = texts(drawn(picture))
    assert "Not usable: refused by the gate" in labels
    assert "n = 41" in labels
    assert "every recording refused: 3 subjects" in labels
    assert any(text.startswith("indeterminate 0.290 (0.230 to 0.350)") for text in labels)
    counts = {row[0]: int(row[1].replace(",", "")) for row in picture.table.rows}
    left = sum(n for what, n in counts.items() if what not in {"given", "evaluated"} and not what.startswith("of these"))
    assert counts["given"] - left == counts["evaluated"] == 960


def test_a_learning_curve_is_dashed_where_nobody_has_trained():
    curve = samples.binary().learning_curve
    picture = figures.learning(curve)
    tree = drawn(picture)
    to_x, to_y = axis(tree)
    assert [line.get("stroke-dasharray") for line in curves(tree)] == [None, "7 4"]
    fitted, guessed = ([(to_x(x), to_y(y)) for x, y in points(line)] for line in curves(tree))
    assert fitted[-1][0] == pytest.approx(192, abs=0.2)
    assert guessed[0][0] == pytest.approx(192, abs=0.2)
    np.testing.assert_allclose([y for _, y in guessed], [curve.curve.at(x) for x, _ in guessed], atol=5e-4)
    circles = [(to_x(float(c.get("cx"))), to_y(float(c.get("cy")))) for c in tree.findall(f"{SVG}circle")][:5]
    np.testing.assert_allclose(circles, [(p.subjects, p.value) for p in curve.points], rtol=2e-3)


def test_pictures_that_would_be_empty_are_not_made():
    evidence = samples.sparse()
    assert [picture.name for picture in all_pictures(evidence)] == ["flow"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.8116, "0.812"), (1.0346, "1.03"), (0.9997, "> 0.999"), (1.0, "1"), (0.0, "0"), (2e-4, "< 0.001"), (-2e-4, "> −0.001"),
        (-0.9997, "< −0.999"), (12.34, "12.3"), (-3.456, "−3.46"), (1234.5, "1,230"), (0.99949, "0.999"), (9.996, "10.0"),
        (1 - 1e-16, "1"), (1e-17, "0"), (None, "not defined"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_false_certainty(value, written):
    assert wording.number(value) == written


@given(st.floats(-1e6, 1e6))
def test_no_number_has_more_than_three_significant_digits_or_lies(value):
    text = wording.number(value).replace("−", "-").replace(",", "")
    bare = text.lstrip("<> ")
    digits = bare.lstrip("-").replace(".", "").lstrip("0")
    assert len(digits.rstrip("0") if "." not in bare else digits) <= 3
    if text[0] in "<>":
        assert {"<": operator.lt, ">": operator.gt}[text[0]](value, float(bare))
    else:
        assert abs(float(bare) - value) <= max(5e-4, abs(value) * 6e-3)


def test_decimal_points_of_a_column_stand_below_each_other():
    column = wording.lined_up(["0.812", "1.03", "12.3", "1", "not defined", "0.1 to 0.25"])
    after = [len(re.split("[.\u2008]", cell)[-1]) for cell in column if cell != "not defined"]
    assert after == [3] * 5
    assert column[4] == "not defined"


@given(st.floats(-5, 5), st.floats(0.01, 10))
def test_ticks_are_few_round_and_within_their_ends(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-9 <= value <= low + width + 1e-9 for value in found)


def test_long_names_are_cut_to_their_room():
    cut = shortened("a name that is far too long for its place", 80)
    assert cut.endswith("…")
    assert text_width(cut) <= 80
    assert text_width("声") > text_width("a")
