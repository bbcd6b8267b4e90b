"""A site's configuration is read once and checked whole: every fault is named by its field, and by no path."""

import base64
import json
import re
import struct
import tempfile
import zlib
from datetime import date
from pathlib import Path

import pytest
import typst
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_ser.errors import InvalidValueError, ReportError, SiteError
from reports.locale import load_locale
from reports.logo import MAX_BYTES, MAX_SIDE, Logo
from reports.site import MAX_CONTACTS, Contact, Site, check_filled_in, find_site, read_site
from tests.reports.test_locale import BROUGHT_ALONG, catalogue_of

ROOT = Path(__file__).parents[2]
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAKBueIx4ZKCMgoy0qqC+8P//8Nzc8P//////////////////////////////////////////////////////////wAALCAACAAMBAREA/8QAFAAB"
    "AAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AR//Z"
)
"""Grey, 3 × 2, baseline; the next one is progressive."""
PROGRESSIVE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAKBueIx4ZKCMgoy0qqC+8P//8Nzc8P//////////////////////////////////////////////////////////wgALCAACAAMBAREA/8QAFAAB"
    "AAAAAAAAAAAAAAAAAAAAAv/aAAgBAQAAAAFf/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABBQJ//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQAGPwJ//8QAFBABAAAAAAAAAAAA"
    "AAAAAAAAAP/aAAgBAQABPyF//9oACAEBAAAAEH//xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oACAEBAAE/EH//2Q=="
)


def png(width=3, height=2, *, filling=0):
    """A white picture, with as many bytes of remarks as asked for."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress((b"\0" + b"\xff" * min(width, 4000)) * min(height, 4000))
    remarks = [chunk(b"tEXt", b"x" * filling)] if filling else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *remarks, chunk(b"IDAT", lines), chunk(b"IEND", b"")])


@pytest.fixture(autouse=True)
def _no_site_of_the_testers(monkeypatch):
    monkeypatch.delenv("CLINICAL_SER_SITE", raising=False)


@pytest.fixture
def read(tmp_path):
    """Write files, `site.toml` among them, and read the site."""

    def reading(text, **files):
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(content)
        (tmp_path / "site.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_site(tmp_path / "site.toml")

    return reading


# What a site may set


def test_everything_a_site_may_set_is_read(read):
    site = read(
        """
name = "Example Hospital"
department = "Psychiatry"
logo = "logo.png"
prevalence = 0.12
language = "zh"
reviewed_by = "Dr Example, psychiatrist"
reviewed_on = 2026-01-31

[[contacts]]
name = "Emergency"
phone = "0000 000 000"

[[contacts]]
name = "Night"
phone = "+00 0 (0) 0, ext. 0"
hours = "22:00 to 6:00"
note = "in English and Chinese"

[reference_text]
en = "Recorded in three clinics,\\n 2025."

[wording.en]
"next.flagged" = "Talk with the person."
next.not_flagged = "Go on as you would"
""",
        logo_png=png(),
    )
    assert (site.name, site.department, site.prevalence, site.language) == ("Example Hospital", "Psychiatry", 0.12, "zh")
    assert site.contacts == (
        Contact(name="Emergency", phone="0000 000 000"),
        Contact(name="Night", phone="+00 0 (0) 0, ext. 0", hours="22:00 to 6:00", note="in English and Chinese"),
    )
    assert (site.logo.media_type, site.logo.content) == ("image/png", png())
    assert site.reference_text == {"en": "Recorded in three clinics, 2025."}
    assert site.wording == {"en": {"next.flagged": "Talk with the person.", "next.not_flagged": "Go on as you would"}}
    assert (site.reviewed_by, site.reviewed_on) == ("Dr Example, psychiatrist", date(2026, 1, 31))


def test_a_site_may_set_one_thing_alone(read):
    assert read('name = "Example"') == Site(name="Example")


def test_the_example_is_read_as_it_is_and_so_is_what_stands_behind_its_comments(read):
    example = (ROOT / "reports" / "templates" / "site.toml").read_text(encoding="utf-8")
    assert len(read(example).contacts) == 2
    whole = re.sub(r"^# (\S+ = |\[)", r"\1", example, flags=re.MULTILINE)
    assert set(read(whole.replace("languages_folder", "# "), logo_png=png()).model_dump(exclude_defaults=True)) == set(Site.model_fields) - {
        "languages_folder"
    }


def test_the_page_for_the_hospital_names_every_field():
    page = (ROOT / "docs" / "site.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `\[*(\w+)", page, flags=re.MULTILINE))
    assert rows == set(Site.model_fields)


def test_a_byte_order_mark_and_windows_lines_are_taken(read):
    assert read(b'\xef\xbb\xbfname = "Example"\r\nlanguage = "en"\r\n').name == "Example"


def test_spaces_of_any_width_become_plain(read):
    assert read('name = "  Example\u00a0Hospital\u3000 "').name == "Example Hospital"


# What it may not


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", r"site\.toml is empty\."),
        (b"# nothing\n", r"site\.toml says nothing: give at least one of \['name', 'department', 'logo'"),
        (b'name = "Exam', r"site\.toml is not TOML \(at "),
        (b'name = "A"\nname = "B"', r"site\.toml is not TOML \(at "),
        (b'name = "\xff"', r"site\.toml is not text in UTF-8"),
        ('name = "A"'.encode("utf-16"), r"site\.toml is not text in UTF-8"),
        (b"\x00\x01\x02\x03", r"site\.toml is not TOML"),
        (b"a = " + b"[" * 10_000, r"site\.toml is not TOML"),
        (b"prevalence = " + b"9" * 5000, r"site\.toml"),
        (b"#" * 1_000_001, r"site\.toml is larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_none_is_refused(read, tmp_path, text, said):
    with pytest.raises(SiteError, match=rf"^{said}") as caught:
        read(text)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path):
    for path, said in [(tmp_path / "none.toml", "cannot be read: No such file"), (tmp_path, "is a folder"), (tmp_path / "a\0b", "cannot be read")]:
        with pytest.raises(SiteError, match=rf"^site\.toml {said}") as caught:
            read_site(path)
        assert str(tmp_path) not in str(caught.value)


CONTACT = '[[contacts]]\nname = "A"\nphone = "0"\n'
REVIEWED = 'reviewed_by = "Dr A"\nreviewed_on = 2026-01-31\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nam = "A"', r"nam is unknown, expected one of \['name', 'department', .*'reviewed_on'\]"),
        ('"/home/jane" = "A"', "a name with other characters is unknown"),
        (f'{CONTACT}fone = "0"', r"contacts, no\. 1, fone is unknown, expected one of \['name', 'phone', 'hours', 'note'\]"),
        (f'{CONTACT}language = "en"', r"contacts, no\. 1, language is unknown, .*; it belongs above the first \[table\]"),
        ("name = 7", "name: Input should be a valid string"),
        ('name = ["A"]', "name: Input should be a valid string"),
        (f'name = "{"x" * 121}"', "name: String should have at most 120 characters"),
        ('name = "two\\nlines"', "name: one line of characters that print is expected"),
        ('name = "\\u001b[31m"', "name: one line of characters that print is expected"),
        ('name = "15\\u202e"', "name: one line of characters that print is expected"),
        ('contacts = "911"', "contacts: Input should be a valid tuple"),
        ('[[contacts]]\nname = "A"', r"contacts, no\. 1, phone: Field required"),
        ('[[contacts]]\nname = "A"\nphone = 112', r"contacts, no\. 1, phone: Input should be a valid string"),
        ('[[contacts]]\nname = "A"\nphone = " "', r"contacts, no\. 1, phone: String should have at least 1 character"),
        (f'{CONTACT}note = "{"x" * 121}"', r"contacts, no\. 1, note: String should have at most 120 characters"),
        (CONTACT * (MAX_CONTACTS + 1), "contacts: Tuple should have at most 6 items"),
        (f'{CONTACT}note = "Start medication."', r"contacts, no\. 1 says “start medication”"),
        ("prevalence = 0.0", "prevalence: Input should be greater than 0"),
        ("prevalence = 1", "prevalence: Input should be less than 1"),
        ("prevalence = nan", "prevalence: Input should be"),
        ("prevalence = inf", "prevalence: Input should be"),
        ("prevalence = true", "prevalence: Input should be a valid number"),
        ('prevalence = "0.1"', "prevalence: Input should be a valid number"),
        ('language = "de"', r"Bad value 'de' for language, expected one of \['en', 'zh'\]"),
        ('[reference_text]\nfrench = "A"', r"Bad value 'french' for language, expected one of \['en', 'zh'\]"),
        (f'[reference_text]\nen = "{"x" * 601}"', "reference_text, en: String should have at most 600 characters"),
        ('[reference_text]\nen = "a\\u0000b"', "reference_text, en: one line of characters that print"),
        ('[reference_text]\nen = "This person has depression."', r"reference_text\.en says “has depression”"),
        ('[wording.en]\n"next.flagged" = "A"', "wording of the site's own needs reviewed_by and reviewed_on"),
        (f'{REVIEWED}[wording.xx]\n"next.flagged" = "A"', "Bad value 'xx' for language"),
        (
            f'{REVIEWED}[wording.en]\n"next.flaged" = "A"',
            r"Bad value 'next\.flaged' for a key of the wording, expected one of \['next\.flagged'",
        ),
        (f'{REVIEWED}[wording.en]\n"next.flagged" = "A {{n}}"', r"The wording of next\.flagged has \{n\} where no placeholder is due"),
        (f'{REVIEWED}[wording.en]\n"next.flagged" = "The person is depressed"', r"next\.flagged says “is depressed”"),
        (f'{REVIEWED}[wording.en]\n"next.flagged" = "A"\nnext.flagged = "B"', r"wording, en: next\.flagged is there twice"),
        (f'{REVIEWED}[wording.en]\n"status.flagged" = "Depression likely"', r"wording cannot replace status\.flagged"),
        (f'{REVIEWED}[wording.en]\n"simulated.text" = "Validated"', r"wording cannot replace simulated\.text"),
        ("reviewed_on = 2999-01-01", r"reviewed_on is a day that has not come yet"),
        (f'{REVIEWED}[wording.en]\n"next.flagged" = 7', r"wording, en, next\.flagged: Input should be a valid string"),
        (f"{REVIEWED}wording = 7", "wording: Input should be a valid dictionary"),
        ('reviewed_on = "2026-01-31"', "reviewed_on: Input should be a valid date"),
        ("reviewed_on = 20260131", "reviewed_on: Input should be a valid date"),
        ("logo = 7", "logo is not the name of a file"),
        ('[logo]\ncontent = "x"', "logo is not the name of a file"),
        ('logo = "none.png"', "logo cannot be read: No such file"),
        ('logo = "."', "logo is a folder"),
        ('logo = "a\\u0000b"', "logo cannot be read"),
        ("languages_folder = 7", "languages_folder: "),
        ('languages_folder = "none"', "The languages folder cannot be read: No such file"),
        ('languages_folder = "site.toml"', "The languages folder cannot be read: Not a directory"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(read, tmp_path, text, said):
    with pytest.raises(SiteError, match=rf"^site\.toml: {said}") as caught:
        read(text)
    assert str(tmp_path) not in str(caught.value)


def test_what_was_given_is_not_repeated(read):
    with pytest.raises(SiteError) as caught:
        read('name = "Jane Doe\\n1970"\ndepartment = 19701970')
    assert "Jane" not in str(caught.value)
    assert "1970" not in str(caught.value)


_LITERALS = st.one_of(
    st.text(max_size=20).map(json.dumps),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["true", "2026-01-31", "2026-01-31T10:00:00Z", "[]", "[[1]]", "{}", '{en = "A"}', '{en = {a = "b"}}', '[{name = "A", phone = "0"}]']
    ),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*Site.model_fields, "other"]), _LITERALS, max_size=4))
def test_any_fields_are_a_site_or_an_error_of_ours(fields):
    lines = [f"{key} = {literal}" for key, literal in fields.items()]
    check_refusal("\n".join(lines).encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_site_or_an_error_of_ours(raw):
    check_refusal(raw)


def check_refusal(raw):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "site.toml").write_bytes(raw)
        assert folder not in refusal(Path(folder) / "site.toml")


def refusal(path):
    """Why a file is refused; "" if it is not."""
    try:
        read_site(path)
    except SiteError as error:
        return str(error)
    return ""


# Logo


@pytest.mark.parametrize(
    ("content", "kind"), [(png(), "image/png"), (JPEG, "image/jpeg"), (PROGRESSIVE, "image/jpeg")], ids=["png", "jpeg", "progressive"]
)
def test_a_logo_is_known_by_its_content_whatever_it_is_called(read, content, kind):
    site = read('name = "A"\nlogo = "logo.gif"', logo_gif=content)
    assert (site.logo.media_type, site.logo.width, site.logo.height) == (kind, 3, 2)
    assert (site.image.media_type, base64.b64decode(site.image.content_base64), site.image.alt) == (kind, content, "A")


@pytest.mark.parametrize("content", [png(), JPEG, PROGRESSIVE], ids=["png", "jpeg", "progressive"])
def test_what_is_taken_for_a_picture_can_be_set(content):
    Logo.of(content)
    typst.compile(f"#image(bytes(({','.join(map(str, content))})))".encode(), format="svg")


@pytest.mark.parametrize("content", [png(), JPEG, PROGRESSIVE], ids=["png", "jpeg", "progressive"])
def test_a_logo_that_ends_early_is_refused(content):
    for length in range(len(content)):
        with pytest.raises(SiteError, match=r"^logo is"):
            Logo.of(content[:length])


@given(st.integers(0, len(png()) - 1), st.integers(1, 255))
def test_a_damaged_png_is_refused(at, change):
    damaged = bytearray(png())
    damaged[at] ^= change
    with pytest.raises(SiteError, match=r"^logo is"):
        Logo.of(bytes(damaged))


@given(st.binary(max_size=40), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x02"]))
def test_any_bytes_are_a_logo_or_an_error_of_ours(tail, head):
    with pytest.raises(SiteError, match=r"^logo"):
        Logo.of(head + tail)


@pytest.mark.parametrize("content", [b"GIF89a" + bytes(20), b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"RIFF0000WEBP"])
def test_other_pictures_are_refused(content):
    with pytest.raises(SiteError, match="neither a PNG nor a JPEG"):
        Logo.of(content)


def test_a_logo_has_a_largest_size_in_pixels_and_in_bytes():
    assert Logo.of(png(MAX_SIDE, 1)).width == MAX_SIDE
    for width, height in ((MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (2**31, 2**31)):
        with pytest.raises(SiteError, match="a side has 1 to 2,000"):
            Logo.of(png(width, height))
    spare = MAX_BYTES - len(png(filling=1)) + 1
    assert len(Logo.of(png(filling=spare)).content) == MAX_BYTES
    with pytest.raises(SiteError, match="larger than 200 kB"):
        Logo.of(png(filling=spare + 1))


def test_a_logo_that_is_too_large_is_not_read_whole(read):
    with pytest.raises(SiteError, match="logo is larger than 200,000 bytes"):
        read('name = "A"\nlogo = "logo.png"', logo_png=png(filling=MAX_BYTES))


def test_a_logo_has_words(read):
    with pytest.raises(SiteError, match="a logo needs logo_alt, or the site's name"):
        read('logo = "logo.png"', logo_png=png())
    assert read('name = "A"\nlogo = "logo.png"\nlogo_alt = "Two trees"').image.alt == "Two trees"
    assert Site(name="A").image is None


# Where it is looked for


@pytest.fixture
def named(tmp_path):
    """Write a site of a name."""

    def written(name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'name = "{name}"')
        return path

    return written


def test_without_any_file_nothing_is_configured():
    assert find_site() == Site()
    assert find_site().contacts == ()


def test_what_is_named_goes_before_the_environment_and_that_before_the_users_folder(tmp_path, named, monkeypatch):
    named("home", tmp_path / "home" / "site.toml")
    assert find_site().name == "home"
    monkeypatch.setenv("CLINICAL_SER_SITE", str(named("environment", tmp_path / "e.toml")))
    assert find_site().name == "environment"
    assert find_site(named("given", tmp_path / "g.toml")).name == "given"


def test_a_file_that_is_named_and_not_there_is_no_empty_site(tmp_path, monkeypatch):
    monkeypatch.setenv("CLINICAL_SER_SITE", str(tmp_path / "none.toml"))
    with pytest.raises(SiteError, match="cannot be read"):
        find_site()
    monkeypatch.delenv("CLINICAL_SER_SITE")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "site.toml").symlink_to(tmp_path / "none.toml")
    with pytest.raises(SiteError, match="cannot be read"):
        find_site()


# Languages and wording


def test_a_site_speaks_the_language_asked_for_else_its_own_else_english():
    assert Site().locale().code == "en"
    assert Site(language="zh").locale().code == "zh"
    assert Site(language="zh").locale("en").code == "en"
    with pytest.raises(InvalidValueError, match=r"expected one of \['en', 'zh'\]"):
        Site().locale("fr")


def test_a_sites_wording_is_in_its_language_alone():
    site = Site(wording={"en": {"next.flagged": "To be looked at"}}, reviewed_by="Dr A", reviewed_on=date(2026, 1, 31))
    assert site.locale("en")("next.flagged") == "To be looked at"
    assert site.locale("zh")("next.flagged") == load_locale("zh")("next.flagged")
    assert Site().locale("en")("next.flagged") == load_locale("en")("next.flagged")


def test_a_language_of_the_sites_own_lies_beside_its_file(read, tmp_path):
    (tmp_path / "languages").mkdir()
    french = catalogue_of("fr", {**load_locale("en").texts, **BROUGHT_ALONG, "next.flagged": "Signalé"})
    (tmp_path / "languages" / "fr.toml").write_bytes(french)
    site = read(f'language = "fr"\nlanguages_folder = "languages"\n{REVIEWED}[wording.fr]\nnext.not_flagged = "Rien"')
    assert site.locale()("next.flagged") == "Signalé"
    assert site.locale()("next.not_flagged") == "Rien"


def test_a_language_that_does_not_fit_is_found_when_the_site_is_read(read, tmp_path):
    (tmp_path / "fr.toml").write_bytes(catalogue_of("fr", BROUGHT_ALONG))
    with pytest.raises(SiteError, match=r"^site\.toml: fr\.toml: it lacks "):
        read('language = "fr"\nlanguages_folder = "."')
    assert read('languages_folder = "."').locale().code == "en"


def test_a_site_made_in_a_program_is_checked_alike():
    with pytest.raises(ReportError, match="has depression"):
        Site(reference_text={"en": "She has depression."})
    with pytest.raises(ValueError, match="for language"):
        Site(language="de")


def test_the_examples_number_is_refused_where_a_report_is_made(read):
    example = (ROOT / "reports" / "templates" / "site.toml").read_text(encoding="utf-8")
    with pytest.raises(SiteError, match=r"contacts, no\. 1 has the example's telephone number"):
        check_filled_in(read(example))
    check_filled_in(read(example.replace("0000 000 000", "0100 000 000")))
