"""The doctor says what a site set for its reports, and what they lack."""

import json

import pytest
import typst

from clinical_ser.embeddings.registry import encoder_folder
from tests.embeddings.made import tiny_onnx


@pytest.fixture
def found(run, tmp_path, monkeypatch):
    """Run the doctor with a `site.toml`, or none; returns what it says of reports."""
    monkeypatch.delenv("CLINICAL_SER_SITE", raising=False)

    def looking(text=None):
        if text is not None:
            (tmp_path / "site.toml").write_text(text, encoding="utf-8")
            monkeypatch.setenv("CLINICAL_SER_SITE", str(tmp_path / "site.toml"))
        code, out, err = run("doctor", "--json")
        checks = {check["what"]: check for check in map(json.loads, out.splitlines())}
        assert err == ""
        assert code == (0 if all(check["ok"] for check in checks.values()) else 1)
        return checks

    return looking


CONTACT = '[[contacts]]\nname = "A"\nphone = "555 01"\n'


def test_without_a_site_the_doctor_says_so_and_misses_nothing(found):
    site = found()["site"]
    assert site["ok"]
    assert "none configured" in site["finding"]


@pytest.mark.parametrize(("contacts", "said"), [(0, "no contacts"), (1, "1 contact;"), (2, "2 contacts")])
def test_a_site_is_told_by_name_contacts_language_and_place(found, tmp_path, contacts, said):
    site = found(f'name = "Example"\nlanguage = "zh"\n{CONTACT * contacts}')["site"]
    assert site["ok"]
    assert all(part in site["finding"] for part in ("Example", said, "language zh", str(tmp_path / "site.toml")))


@pytest.mark.parametrize(
    ("text", "said"),
    [('nam = "A"', "nam is unknown"), ("", "is empty"), (CONTACT.replace("555 01", "0000 000 000"), "the example's")],
)
def test_what_is_wrong_with_a_site_is_said(found, text, said):
    site = found(text)["site"]
    assert not site["ok"]
    assert said in site["finding"]


def test_every_language_of_a_site_is_looked_at(found, tmp_path):
    (tmp_path / "fr.toml").write_text('title = "Titre"', encoding="utf-8")
    site = found('languages_folder = "."')["site"]
    assert not site["ok"]
    assert site["finding"].startswith("fr.toml: ")


@pytest.mark.parametrize(("language", "installed", "ok"), [("zh", True, True), ("zh", False, False), ("en", True, True), ("en", False, True)])
def test_a_chinese_font_is_missed_only_by_a_site_that_reports_in_chinese(found, monkeypatch, language, installed, ok):
    families = ["Libertinus Serif", *(["WenQuanYi Micro Hei"] if installed else [])]
    monkeypatch.setattr(typst, "Fonts", type("Fonts", (), {"families": lambda self: families}))
    font = found(f'language = "{language}"')["Chinese font"]
    assert font["ok"] == ok
    assert font["finding"].startswith("WenQuanYi Micro Hei" if installed else "none; for PDF reports in Chinese install")
    assert installed or ("fonts-noto-cjk" in font["finding"] and "fonts-wqy-microhei" in font["finding"])


def test_encoders_and_back_ends_are_listed_and_a_damaged_one_is_at_fault(run):
    def said():
        code, out, _ = run("doctor", "--json")
        return code, {check["what"]: check for check in map(json.loads, out.splitlines())}

    _, found = said()
    assert "none installed" in found["encoders"]["finding"]
    assert "transformers" in found["encoder back ends"]["finding"]
    tiny_onnx(encoder_folder("tiny"))
    assert said()[1]["encoder tiny"]["ok"]
    (encoder_folder("tiny") / "model.onnx").write_bytes(b"x")
    code, found = said()
    assert (code, found["encoder tiny"]["ok"]) == (1, False)
    assert "sha256" in found["encoder tiny"]["finding"]
