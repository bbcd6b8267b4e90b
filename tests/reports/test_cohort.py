import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser

import pytest

from clinical_ser.errors import InvalidValueError, ReportError
from clinical_ser.evaluation.evidence import Evidence, GateResult
from reports import rendering, wording
from reports.cohort import FOREST_FIGURES, document_of, html_report, pdf_report
from reports.document import BESIDE, Column, Document, Picture, Plate, Section, Table
from reports.drawing import Drawing
from reports.wording import number, plain
from tests.reports import samples

FIGURE = "<figure>(.*?)</figure>"
TABLE_NEXT = '(<p class="note">[^<]*</p>)?\\s*<div class="scroll"[^>]*>\\s*<table.*?<th scope="row"'
VOID = {"meta", "img", "br", "hr", "input", "link"}
SECTIONS = [
    "What was evaluated", "Was the test a test? Leak checks", "Flow of recordings", "Discrimination", "Calibration",
    "Decisions: predictive values and net benefit", "Answers and abstention", "Subgroups", "Comparisons", "Learning curve", "All figures", "Methods",
    "Warnings", "Software",
]  # fmt: skip
HOSTILE = (
    '<script>alert(1)</script>"><img src=x onerror=1> \' & {{ 7*7 }} #panic("x") #import "y.typ": * $z$ *b* @r </style>]]> \u202ex\x00\n שלום 12'
)
CASES = {
    "binary": samples.binary,
    "several": samples.several,
    "sparse": samples.sparse,
    "failing": lambda: samples.binary(leaks=(*samples.LEAKS, samples.FAILED), accepted_leaks=("same_audio",), simulated=True),
}


class Page(HTMLParser):
    """A page as a list of elements with their text; fails where tags do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def html(case):
    return html_report(case)


@pytest.fixture(scope="module")
def pdf(case):
    return pdf_report(case, system_fonts=False)


def unpacked(pdf):
    """The bytes of a PDF with its compressed streams written out."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    return pdf + b"\n".join(_inflated(stream) for stream in streams)


def _inflated(stream):
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def hostile():
    """Evidence in which every text that could be a stranger's holds markup of every kind."""
    fixed = {"schema_id", "origin", "kind", "verdict", "figure", "metric", "method"}

    def spoiled(value, key=""):
        match value:
            case dict():
                keyed = key in {"by_class", "subjects_by_class", "reasons", "counts", "covariates", "software", "recalls"}
                return {_key(k, keyed): v if k == "name" and "limits" in value else spoiled(v, k) for k, v in value.items()}
            case list():
                return [spoiled(item, key) for item in value]
            case str() if key not in fixed:
                return value + HOSTILE
        return value

    def _key(key, keyed):
        return key + HOSTILE if keyed or re.match("(flagged|not_flagged|indeterminate|coverage|recall)[.]", key) else key

    def of(evidence):
        return Evidence.from_json(json.dumps(spoiled(evidence.model_dump(mode="json"))).encode())

    return [of(CASES["failing"]()), of(samples.several())]


def test_the_page_is_well_formed_with_unique_identifiers_and_sound_drawings(html):
    page = Page(html)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for drawing in re.findall("<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(drawing)
    targets = {attributes["href"] for attributes in page.all("a")}
    assert targets
    assert all(target.startswith("#") and target[1:] in identifiers for target in targets)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')


def test_the_page_loads_nothing_runs_nothing_and_its_policy_says_so(html):
    page = Page(html)
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    assert not any(key in {"src", "style", "srcset", "action"} or key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert set(re.findall(r"[a-z]+://[^\"'\s<]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in style


def test_every_drawing_has_words_and_a_table_under_it(html):
    plates = [part.split("</div>\n", 1) for part in html.split('<div class="plate">')[1:]]
    joint = {figure for drawn, under in plates if re.match(TABLE_NEXT, under, re.DOTALL) for figure in re.findall(FIGURE, drawn, re.DOTALL)}
    figures = re.findall(FIGURE, html, re.DOTALL)
    assert figures
    for figure in figures:
        title, finding = re.search('aria-labelledby="([^ "]+) ([^ "]+)"', figure).groups()
        assert f'<title id="{title}">' in figure
        assert re.search(f'<desc id="{finding}">[^<]*[0-9][^<]*</desc>', figure)
        if figure in joint:
            continue
        after = figure.split("</svg>")[1]
        assert re.search("<details>.*<caption>.+</caption>", after, re.DOTALL)
        assert 'scope="col"' in after
        assert 'scope="row"' in after


def test_sections_stand_in_a_reviewers_order():
    headings = re.findall(r'<h2 id="section-[0-9]+"><span class="number">[0-9]+</span>(.*?)</h2>', html_report(samples.binary()))
    assert headings == SECTIONS
    headings = re.findall(r'<h2 id="section-[0-9]+"><span class="number">[0-9]+</span>(.*?)</h2>', html_report(samples.several()))
    assert headings == [title for title in SECTIONS if title not in {SECTIONS[5], SECTIONS[9]}]


def test_reports_are_the_same_bytes_each_time(case, html, pdf):
    again = Evidence.from_json(case.model_dump_json().encode())
    assert html_report(again) == html
    assert pdf_report(again, system_fonts=False) == pdf


def test_simulated_speech_is_said_before_any_number():
    for changes in ({"simulated": True}, {"model": samples.binary().model.model_copy(update={"simulated": True})}):
        notice = document_of(samples.binary(**changes)).notices[0]
        assert notice.title == "SIMULATED SPEECH"
        assert notice.tone == "fail"
    assert all("SIMULATED" not in notice.title for notice in document_of(samples.binary()).notices)


def test_failed_leak_checks_come_first_are_said_at_the_top_and_name_who_accepted_them():
    document = document_of(CASES["failing"]())
    assert "1 leak check FAILED" in [notice.title for notice in document.notices]
    verdict, checks = document.sections[1].blocks
    assert (verdict.tone, verdict.title) == ("fail", "1 leak check FAILED")
    assert verdict.lines[:2] == ("Failed: Same audio.", "Warnings: Nuisance probe.")
    assert "Accepted by whoever ran the evaluation, who chose to go on: Same audio." in verdict.lines
    ended = [("Same audio", "FAILED, accepted"), ("Nuisance probe", "WARNING"), ("Near identical", "not checked"), ("Shared subjects", "passed")]
    assert [tuple(term.split(": ")) for term, _ in checks.rows] == ended
    calm = document_of(samples.binary(leaks=samples.LEAKS[:1])).sections[1].blocks[0]
    assert (calm.tone, calm.title) == ("calm", "All leak checks passed")


def test_each_leak_check_says_what_it_found_its_figure_with_interval_and_what_it_counted():
    found = dict(document_of(samples.binary()).sections[1].blocks[1].rows)
    assert found["Nuisance probe: WARNING"] == (
        "Durations, levels and file order alone predict the label better than chance. Figure: 0.587 (95 % interval 0.537 to 0.637; 240 subjects). "
        "Counted: columns: 3."
    )


def test_release_gates_are_shown_with_what_was_found_and_wanted():
    gates = (
        GateResult(name="tells people apart", met=True, found="AUROC 0.81 [0.76, 0.85]", wanted="lower bound at least 0.7"),
        GateResult(name="fair <b>", met=False, found="not defined", wanted="upper bound at most 0.1"),
    )
    page = html_report(samples.binary(gates=gates))
    assert "1 release gate NOT met" in page
    assert "lower bound at least 0.7" in page
    assert "fair <b>" not in page
    assert "Release gates" not in html_report(samples.binary())


def test_without_leak_checks_the_report_warns():
    [notice] = document_of(samples.binary(leaks=())).sections[1].blocks
    assert (notice.tone, notice.title) == ("warn", "No leak check was run")


def test_the_origin_is_said_in_words():
    assert "no external validation" in html_report(samples.binary())
    assert "External: people of another cohort" in html_report(samples.several())


def test_groups_with_too_few_people_keep_their_rows():
    page = " ".join(Page(html_report(samples.binary())).text)
    assert re.search(r"Age band: 60-74\s+11\s+3\s+40\s+4\s+too few", page)


def test_a_count_that_evidence_withholds_is_said_to_be_withheld():
    *groups, few = samples.binary().groups
    page = " ".join(Page(html_report(samples.binary(groups=(*groups, few.model_copy(update={"positives": None}))))).text)
    assert re.search(r"Age band: 60-74\s+11\s+withheld\s+40\s+4\s+too few", page)


def test_every_number_in_a_table_has_its_interval_and_its_people(case):
    for table in tables(case):
        titles = [column.title for column in table.columns]
        if any("interval" in title or title == "Value" for title in titles) and "To reach" not in titles:
            assert "Subjects" in titles or "subject" in table.caption or "Check" in titles, table.caption
            assert any("interval" in title for title in [*titles, table.caption]), table.caption


def test_no_measured_number_has_more_than_three_significant_digits(case):
    cells = [cell for table in tables(case) for row in table.rows for cell in row]
    findings = [picture.finding for picture in pictures(case)]
    numbers = [found for text in cells + findings for found in re.findall(r"[0-9]+\.[0-9]+", text)]
    assert len(numbers) > 20 or case == samples.sparse()
    assert all(len(number.replace(".", "").lstrip("0")) <= 3 for number in numbers)


def test_all_figures_stand_in_the_full_table_with_method_and_meaning():
    evidence = samples.binary()
    [table] = document_of(evidence).sections[10].blocks
    assert len(table.rows) == len(evidence.figures)
    assert table.rows[0][:5] == ("AUROC", "0.812", "0.759 to 0.865", "240", "cluster bootstrap")
    assert table.rows[0][5].startswith("share of pairs")
    assert not any("`" in cell for row in table.rows for cell in row)


@pytest.mark.parametrize("make", [samples.binary, samples.several])
def test_each_figure_of_each_group_stands_in_the_joint_table_with_its_interval_and_its_n(make):
    evidence = make()
    plate = next(section for section in document_of(evidence).sections if section.title == "Subgroups").blocks[-1]
    drawn = [figure for figure in FOREST_FIGURES if figure in evidence.groups[0].figures]
    assert [column.title for column in plate.table.columns[2:]] == [wording.title_of(figure) for figure in drawn]
    assert len(plate.pictures) == len(drawn)
    cells = {row[0]: row[1:] for row in plate.table.rows}
    assert len(cells) == 1 + len(evidence.groups)
    for group in evidence.groups:
        subjects, *written = cells[f"{wording.column(group.column)}: {group.value}"]
        assert int(subjects.replace(",", "")) == group.subjects
        for key, cell in zip(drawn, written, strict=True):
            one = group.figures.get(key)
            shown = f"{number(one.value)} [{number(one.low)}, {number(one.high)}]" if one else "too few"
            assert cell.replace("\u00a0", " ") == shown


def test_a_figure_of_a_part_of_a_group_says_of_how_many():
    sensitivity = samples.figure(0.8, 0.1, 33, 130)
    group = samples.binary().groups[0]
    groups = (group.model_copy(update={"figures": {**group.figures, "sensitivity": sensitivity}}),)
    plate = document_of(samples.binary(groups=groups, gaps=())).sections[7].blocks[-1]
    assert plate.table.rows[1][3].replace("\u00a0", " ") == "0.800 [0.700, 0.900] n = 33 (130)"
    assert "n = " not in plate.table.rows[1][2]


def test_decision_curves_share_one_table_with_the_net_benefit_of_each():
    evidence = samples.binary()
    plate = document_of(evidence).sections[5].blocks[-1]
    assert len(plate.pictures) == 2
    assert [re.sub(".*prevalence ", "", column.title) for column in plate.table.columns[1:]] == ["0.250"] * 3 + ["0.10"] * 3
    for row in plate.table.rows:
        at = round(float(row[0]) * 100) - 1
        for curve, (model, everyone, gain) in zip(evidence.binary.decisions, (row[1:4], row[4:7]), strict=True):
            assert everyone.strip() == number(curve.treat_all[at])
            for cell, band in ((model, curve.model), (gain, curve.over_default)):
                assert cell.replace("\u00a0", " ") == wording.bracketed(band.y[at], band.low[at], band.high[at])


def test_columns_of_ours_are_named_in_words_and_those_of_a_cohort_as_they_are():
    evidence = samples.binary()
    groups = tuple(group.model_copy(update={"column": "clinic_type"}) if group.column == "sex" else group for group in evidence.groups)
    gaps = (evidence.gaps[0].model_copy(update={"column": "age_band", "best": "18-29", "worst": "45-59"}),)
    html = html_report(samples.binary(groups=groups, gaps=gaps, covariates={"age_band": {"18-29": 4}, "clinic_type": {"a": 4}}))
    assert "age_band" not in html
    assert "Age band: 60-74" in html
    assert "clinic_type: female" in html
    assert "Clinic type" not in html


def test_a_cohorts_columns_cannot_act_when_they_name_groups():
    groups = tuple(group.model_copy(update={"column": "<b>\u202e_x"}) for group in samples.binary().groups[:2])
    page = html_report(samples.binary(groups=groups, gaps=()))
    assert "<b>" not in page
    assert "&lt;b&gt;\\u202e_x: female" in page


def test_intervals_that_leave_out_what_chance_adds_are_explained_under_the_calibration_table():
    smooth = samples.binary().figures | {"ece_smooth": samples.figure(0.04, 0.01)}
    note = document_of(samples.binary(figures=smooth)).sections[4].blocks[0].note
    assert note.startswith("Smooth ECE and Brier: reliability: chance alone adds to the value.")
    assert note.endswith("0 where chance explains it all; the high end is not moved.")
    assert note in html_report(samples.binary(figures=smooth))
    assert document_of(samples.several()).sections[4].blocks[0].note == ""


def test_figures_stand_side_by_side_only_where_they_are_narrow(case):
    plates = [block for block in blocks(case) if isinstance(block, Plate)]
    assert plates or case == samples.sparse()
    assert all(picture.drawing.width <= BESIDE for plate in plates for picture in plate.pictures)


def test_a_figure_without_a_table_cannot_stand_alone_or_on_a_plate_without_one():
    bare = Picture("one", "A title", "A finding.", Drawing(100, 40), None)
    for make in (lambda: Section("One", (bare,)), lambda: Plate((bare,))):
        with pytest.raises(InvalidValueError, match="table"):
            make()
    assert Plate((bare,), table=Table.of("A table", [Column("a")], [["1"]])).pictures == (bare,)


def test_a_pdf_of_many_groups_stays_short():
    group = samples.binary().groups[0]
    sizes = {"sex": 2, "age_band": 5, "language": 3, "device": 3, "site": 3}
    groups = tuple(
        group.model_copy(update={"column": column, "value": str(i), "figures": group.figures | {"brier": samples.figure(0.1)}})
        for column, n in sizes.items()
        for i in range(n)
    )
    pdf = pdf_report(samples.binary(groups=groups, gaps=samples.binary().gaps * 25), system_fonts=False)
    assert len(re.findall(rb"/Type\s*/Page\b", unpacked(pdf))) <= 14


def test_what_is_not_defined_is_said_and_not_drawn():
    evidence = samples.sparse()
    page = " ".join(Page(html_report(evidence)).text)
    assert "A curve that is not defined for these recordings" in page
    assert page.count("<svg") == 0
    assert re.search(r"AUROC\s+not defined\s+no interval\s+0\s+0", page)


def test_the_report_names_no_diagnosis_but_to_say_that_it_makes_none_and_advises_no_treatment(html):
    words = " ".join(Page(html).text).lower()
    assert words.count("diagnos") == words.count("never a diagnosis") > 0
    assert not re.search("treatment|therap|medicat|prescri|you should|the patient|suicid", words)


def test_texts_of_a_cohort_cannot_act_in_html():
    allowed = {tag for evidence in (samples.binary(), samples.several()) for tag, _ in Page(html_report(evidence)).tags}
    for evidence in hostile():
        page = Page(html_report(evidence))
        assert {tag for tag, _ in page.tags} <= allowed
        assert not any(key == "style" or key.startswith("on") for _, attributes in page.tags for key in attributes)
        text = "".join(page.text)
        assert "{{ 7*7 }}" in text
        assert "<script>alert(1)</script>" in text
        assert not set(text) & set("\u202e\x00")
        assert "\\u202ex\\x00" in text


def test_texts_of_a_cohort_are_data_to_typst():
    for evidence in hostile():
        written = unpacked(pdf_report(evidence, system_fonts=False))
        assert not re.search(rb"/URI|/JavaScript|/Launch|/EmbeddedFile", written)


def test_pdf_is_tagged_named_in_a_language_and_claims_its_mode(pdf):
    written = unpacked(pdf)
    assert pdf.startswith(b"%PDF-1.")
    for sign in (
        rb"/MarkInfo",
        rb"/Marked true",
        rb"/StructTreeRoot",
        rb"/Lang\s*\(en\)",
        rb"/DisplayDocTitle true",
        rb"pdfuaid",
        rb"/S\s*/TH\b",
        rb"/Scope\s*/Column",
    ):
        assert re.search(sign, written), sign


def test_every_drawing_in_the_pdf_has_its_finding_for_a_text_alternative(case, pdf):
    findings = [picture.finding for picture in pictures(case)]
    alternatives = re.findall(rb"/S/Figure/P [0-9]+ 0 R/Alt(\(.*?\)|<[0-9A-F]+>)/", unpacked(pdf), re.DOTALL)
    assert [_text(one) for one in alternatives] == findings


def _text(written):
    """A PDF string as text."""
    if written.startswith(b"<"):
        return bytes.fromhex(written[1:-1].decode()).decode("utf-16")
    return re.sub(rb"\\(.)", rb"\1", written[1:-1]).decode("ascii")


def test_a_missing_cjk_font_is_an_error_that_names_the_package_and_not_the_text():
    evidence = samples.binary(model=samples.binary().model.model_copy(update={"name": "声音模型"}))
    with pytest.raises(ReportError, match=r"U\+58F0.*fonts-noto-cjk or fonts-wqy-microhei") as caught:
        pdf_report(evidence, system_fonts=False)
    assert "声" not in str(caught.value)
    assert "声音模型" in html_report(evidence)


def test_a_character_that_is_missing_only_in_a_drawing_is_an_error_too():
    with pytest.raises(ReportError, match="fonts-noto-cjk"):
        rendering.pdf(_with_drawing("声", "A finding."), system_fonts=False)
    assert rendering.pdf(_with_drawing("a", "A finding."), system_fonts=False).startswith(b"%PDF")


def test_another_missing_character_is_named_by_its_number():
    with pytest.raises(ReportError, match=r"U\+16A80.*fonts-noto-core"):
        rendering.pdf(_with_drawing("\U00016a80", "A finding."), system_fonts=False)


def test_a_drawing_without_a_text_alternative_cannot_be_made():
    with pytest.raises(InvalidValueError, match="without words"):
        _with_drawing("a", " ")


def test_names_that_run_from_right_to_left_are_set_apart_in_sentences():
    evidence = samples.binary(model=samples.binary().model.model_copy(update={"name": "שלום"}))
    assert document_of(evidence).title == "Cohort report: \u2068שלום\u2069 3"
    assert pdf_report(evidence, system_fonts=False).startswith(b"%PDF")


@pytest.mark.parametrize(
    ("text", "shown"), [("a\r\n\tb", "a b"), ("\ud800", "\\ud800"), ("\u2066x", "\\u2066x"), ("é声", "é声"), ("\u200b", "\\u200b")]
)
def test_plain_text_is_one_line_that_prints(text, shown):
    assert plain(text) == shown
    assert plain(plain(text)) == shown


def blocks(evidence):
    return [block for section in document_of(evidence).sections for block in section.blocks]


def pictures(evidence):
    """Every figure of a report, those of plates too."""
    return [picture for block in blocks(evidence) for picture in ([block] if isinstance(block, Picture) else getattr(block, "pictures", ()))]


def tables(evidence):
    """Every table of a report, those under drawings and plates too."""
    found = [block for block in blocks(evidence) if isinstance(block, Table)]
    found += [block.table for block in [*pictures(evidence), *blocks(evidence)] if isinstance(block, Picture | Plate)]
    return [table for table in dict.fromkeys(found) if table is not None]


def _with_drawing(text, finding):
    drawing = Drawing(100, 40)
    drawing.text(10, 20, text)
    table = Table.of("A table", [Column("a")], [["1"]])
    return Document("Title", "Subtitle", (), (Section("One", (Picture("one", "A title", finding, drawing, table),)),))
