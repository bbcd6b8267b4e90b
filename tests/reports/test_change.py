"""The report of a change: what it says of a comparison, in HTML and in PDF."""

import re

import pytest

from clinical_ser.control.gate import comparison_of
from clinical_ser.errors import ReportError
from reports.change import document_of, html_report, pdf_report
from reports.document import Picture, Table
from reports.forbidden import findings
from tests.control.made import PERSONS, approvals, comparison, filled_in, pair, plan_of, site_of

A, B = "a" * 64, "b" * 64
PLAN = plan_of(filled_in())
MET = comparison(PLAN, A, B, modification="update")
SECTIONS = [
    "What was changed, why and who asked", "Requirements", "Champion and challenger, all sites", "Site by site", "Groups of people",
    "Explanations and privacy", "Signatures", "Methods", "Software",
]  # fmt: skip


def tables(document):
    return {block.caption: block for section in document.sections for block in section.blocks if isinstance(block, Table)}


def test_it_holds_what_two_roles_need_to_sign():
    document = document_of(MET, PLAN)
    assert [section.title for section in document.sections] == SECTIONS
    text = html_report(MET, PLAN)
    assert all(digest in text for digest in (A, B, PLAN.digest, MET.digest))
    verdicts = tables(document)["Requirements of the plan, written down before the change"]
    assert {row[-1] for row in verdicts.rows} == {"met"}
    assert len(verdicts.rows) == len(MET.verdicts)
    assert any(
        cell.startswith("0.810 [0.796, 0.824]")
        for row in tables(document)["Means over sites, weighted by people, with 95 % intervals"].rows
        for cell in row
    )


def test_signatures_have_room_and_are_listed_once_they_are_there():
    empty = tables(document_of(MET, PLAN))["Signatures under this comparison"]
    assert [row[2] for row in empty.rows] == ["", ""]
    signed = tables(document_of(MET, PLAN, approvals(PLAN, MET)))["Signatures under this comparison"]
    assert [row[2] for row in signed.rows] == list(PERSONS.values())
    other = comparison(PLAN, A, "c" * 64, modification="update")
    assert [row[2] for row in tables(document_of(MET, PLAN, approvals(PLAN, other)))["Signatures under this comparison"].rows] == ["", ""]


def test_what_is_not_met_stands_first_and_by_name():
    worse = comparison(PLAN, A, B, modification="update", auroc=pair(0.8, 0.6))
    notice = next(notice for notice in document_of(worse, PLAN).notices if notice.title.startswith("NOT RELEASED"))
    assert notice.lines == ("discrimination (all sites)", "worst-site (worst site (north))")
    lost = comparison_of(PLAN, PLAN.modification_of("update"), [], champion=A, challenger=B)
    assert "cannot be judged" in html_report(lost, PLAN)


def test_what_was_typed_in_or_not_checked_is_not_called_checked():
    assert "typed in" in html_report(MET, PLAN)
    booked = comparison(PLAN, A, B, modification="update", epsilon=(4.0, "records"))
    assert "registry's records" in html_report(booked, PLAN).replace("&#39;", "'").replace("&#x27;", "'")
    assert "typed in" not in html_report(booked, PLAN)
    assert "whom neither learned from" in html_report(MET, PLAN)
    unknown = MET.model_copy(update={"sites": tuple(one.model_copy(update={"members_checked": False}) for one in MET.sites)})
    assert "whom neither learned from" not in html_report(unknown, PLAN)


def test_every_figure_is_said_in_words_and_given_as_a_table():
    [picture] = [block for section in document_of(MET, PLAN).sections for block in section.blocks if isinstance(block, Picture)]
    assert picture.finding.startswith("All sites: 0.010 [")
    assert len(picture.table.rows) == 1 + 2 + 4
    assert "−0.050" in picture.note


def test_it_never_states_a_diagnosis_and_a_plan_that_does_is_refused():
    words = re.sub(r"<[^>]+>", " ", html_report(MET, PLAN))
    assert findings(words) == ()
    claims = plan_of(filled_in().replace("New people and microphones carry information that the model has not seen.", "The person is depressed."))
    with pytest.raises(ReportError, match="is depressed"):
        document_of(comparison(claims, A, B, modification="update"), claims)


def test_hostile_words_are_escaped_and_the_pdf_is_tagged():
    hostile = '<script>alert(1)</script> #panic("x")'
    plan = plan_of(filled_in().replace('title = "Update of the linear head with new recordings"', f"title = '{hostile}'"))
    made = comparison(plan, A, B, modification="update")
    sites = [one.model_copy(update={"groups": tuple(g.model_copy(update={"value": hostile}) for g in one.groups)}) for one in made.sites]
    made = made.model_copy(update={"sites": tuple(sites)})
    text = html_report(made, plan)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    pdf = pdf_report(made, plan)
    assert pdf.startswith(b"%PDF-")
    assert b"/MarkInfo" in pdf or b"StructTreeRoot" in pdf or b"pdfuaid" in pdf
    assert pdf_report(made, plan) == pdf
    assert site_of(plan, 0, A, B).site == "north"
