"""Every report's PDF, read back by a library that did not write it; what the templates say does not count here."""

import io
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import pikepdf
import pytest

from reports import explanation
from tests.reports import explanation_samples, pdf_structure


@dataclass(frozen=True)
class Case:
    """A report as PDF, and how many pages it must have."""

    name: str
    pdf: Callable[[], bytes]
    pages: int | None = None


def _explained(name: str, result) -> Case:
    return Case(name, lambda: explanation.pdf_report(result, system_fonts=False))


CASES = (
    _explained("explanation", explanation_samples.result(when=explanation_samples.timeline())),
    _explained("explanation-with-embedding", explanation_samples.result(explanation_samples.with_embedding())),
    _explained("explanation-refused", explanation_samples.refused()),
)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def written(case):
    return case.pdf()


@pytest.fixture(scope="module")
def pdf(written):
    return pdf_structure.read(written)


def test_a_report_says_what_it_is(pdf, case):
    assert pdf.title
    assert re.fullmatch("[a-z]{2}(-[A-Za-z]+)*", pdf.language)
    assert (pdf.marked, pdf.shows_title, pdf.ua_part, pdf.faults) == (True, True, "1", ())
    assert len(pdf.pages) == case.pages or not case.pages


def test_no_rule_of_pdf_ua_is_broken(written):
    assert pdf_structure.broken_rules(written) == []


def test_nothing_is_drawn_outside_of_tags_and_artifacts(pdf):
    assert pdf.lost == ()


def test_headings_start_at_the_top_and_skip_no_level(pdf):
    levels = [level for level, _ in pdf.headings()]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(text for _, text in pdf.headings())


def test_every_figure_says_its_numbers(pdf):
    assert [figure for figure in pdf.tags.all("Figure") if not re.search("[0-9]", figure.alt or "")] == []


def test_a_table_is_as_wide_in_every_row_and_names_its_columns(pdf):
    for table in pdf.tags.all("Table"):
        head, *body = table.rows()
        assert [(cell.role, cell.scope) for cell in head] == [("TH", "Column")] * len(head)
        assert all(cell.text for cell in head)
        assert {sum(cell.span for cell in row) for row in body} == {sum(cell.span for cell in head)}


def test_what_is_tagged_is_all_that_the_pages_say_but_their_margins(pdf):
    tagged = re.sub(r"\s", "", pdf.tags.text)
    margins = re.sub(r"\s", "", "".join(pdf.artifacts))
    assert sorted(tagged + margins) == sorted(re.sub(r"\s", "", "".join(pdf.pages)))


def test_every_font_is_in_the_file_and_can_be_read_as_text(pdf):
    assert pdf.fonts
    assert [font for font in pdf.fonts if not (font.embedded and font.unicode)] == []
    assert "\ufffd" not in "".join(pdf.pages)


# --- The reader itself: each check must be able to fail -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound():
    return CASES[0].pdf()


def changed(data, change):
    """The file after something was done to it."""
    with pikepdf.open(io.BytesIO(data)) as pdf:
        change(pdf)
        pdf.save(told := io.BytesIO())
    return told.getvalue()


def element(node, role):
    """The first structure element of a role."""
    if isinstance(node, pikepdf.Dictionary):
        if node.get("/S") == f"/{role}":
            return node
        kids = node.get("/K", [])
        return next(filter(None, (element(kid, role) for kid in (kids if isinstance(kids, pikepdf.Array) else [kids]))), None)
    return None


def unmark(pdf):
    page = pdf.pages[0]
    kept = [step for step in pikepdf.parse_content_stream(page) if str(step.operator) not in {"BDC", "BMC", "EMC"}]
    page.Contents = pdf.make_stream(pikepdf.unparse_content_stream(kept))


def drop_alt(pdf):
    del element(pdf.Root.StructTreeRoot, "Figure")["/Alt"]


def lower_heading(pdf):
    element(pdf.Root.StructTreeRoot, "H1")["/S"] = pikepdf.Name.H3


def forget_mark(pdf):
    element(pdf.Root.StructTreeRoot, "LBody")["/K"] = pikepdf.Array([])


def drop_unicode(pdf):
    for page in pdf.pages:
        for font in page.Resources.Font.values():
            if "/ToUnicode" in font:
                del font["/ToUnicode"]


def test_content_without_marks_is_lost(sound):
    lost = pdf_structure.read(changed(sound, unmark)).lost
    assert any("SIMULATED MODEL" in one for one in lost)


def test_marks_that_no_tag_has_are_lost(sound):
    (one, *_) = pdf_structure.read(changed(sound, forget_mark)).lost
    assert "never a diagnosis" in one


def test_a_figure_without_words_has_none(sound):
    assert [figure.alt is None for figure in pdf_structure.read(changed(sound, drop_alt)).tags.all("Figure")] == [True, False, False]


def test_a_lowered_heading_is_read_as_such(sound):
    assert pdf_structure.read(changed(sound, lower_heading)).headings()[0][0] == 3


def test_a_font_without_a_map_to_text_cannot_be_read(sound):
    read = pdf_structure.read(changed(sound, drop_unicode))
    assert not any(font.unicode for font in read.fonts)
    assert "\ufffd" in read.pages[0]


@pytest.mark.parametrize(("change", "rule"), [(unmark, "CONTENT-TAGGING"), (drop_alt, "FIGURE-ALTERNATIVE-TEXT"), (lower_heading, "HEADING-NESTING")])
def test_rules_of_pdf_ua_are_found_broken(sound, change, rule):
    assert any(rule in one for one in pdf_structure.broken_rules(changed(sound, change)))


def test_text_is_read_in_order_with_its_spaces(sound):
    text = pdf_structure.read(sound).tags.text
    assert text.startswith("Screening result: flagged Task depression, a recording of 83 s SIMULATED MODEL The model learned")
    figure = pdf_structure.read(sound).tags.all("Figure")[0]
    assert "Reference group, mean 12 % Timing and pauses +8.1 raises main driver" in figure.text
