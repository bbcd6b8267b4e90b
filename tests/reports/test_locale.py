"""A language is one file that fits the English one key by key, or is refused by name; nothing in it reaches further than its placeholders."""

import json
from dataclasses import dataclass
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audio.advice import ADVICE, advice
from clinical_ser.audio.quality import QualityCheck
from clinical_ser.errors import ClinicalSerError, InvalidValueError, ReportError
from clinical_ser.features import catalogue
from reports.locale import MAX_WORDING, available, flattened, load_locale, locale_of, placeholders

ENGLISH = {
    "title": "Result",
    "status.flagged": "Flagged: {label}",
    "people.one": "{n} person",
    "people.other": "{n} people",
    "sex.female": "women",
    "sex.other": "another sex",
    "line.one": "{label}: {value}",
    "separator": " ",
}
BROUGHT_ALONG = {
    **{f"families.{family}": f"famille {family}" for family in catalogue.FAMILIES},
    **{f"advice.{topic}": "Enregistrez {limit} s." if "{limit:g}" in texts[0] else f"Conseil {topic}." for topic, texts in ADVICE.items()},
}
FRENCH = {**{key: text.upper().replace("{N}", "{n}") for key, text in ENGLISH.items()}, **BROUGHT_ALONG}
FRENCH |= {"status.flagged": "Signalé : {label}", "line.one": "{label} : {value}", "people.one": "une personne"}


@dataclass(frozen=True)
class Contribution:
    """As an explanation has them: of a family, or of a feature."""

    label_en: str
    label_zh: str
    family: str = ""
    name: str = ""


def toml(texts, **about):
    """The bytes of a catalogue, with dotted keys."""
    return "\n".join(f"{json.dumps(key)} = {json.dumps(text)}" for key, text in {**texts, **about}.items()).encode()


def catalogue_of(code, texts, /, **about):
    language = {"language.code": code, "language.name": code.title(), **{f"language.{key}": text for key, text in about.items()}}
    return toml({**language, **texts})


def in_french(changes=(), *, without=(), **about):
    texts = {key: text for key, text in {**FRENCH, **dict(changes)}.items() if key not in without}
    return locale_of("fr", catalogue_of("fr", texts, **about), ENGLISH)


def in_english(texts=ENGLISH):
    return locale_of("en", catalogue_of("en", texts), {})


def in_chinese(**about):
    return locale_of("zh", catalogue_of("zh", ENGLISH, **about), ENGLISH)


def check(topic="speech", limit=30.0):
    english, chinese = advice(topic, limit) if topic else ("", "")
    about = {"name": "speech", "value": 4.0, "unit": "s", "verdict": "warn", "source": ""}
    return QualityCheck(**about, warn_limit=limit, fail_limit=10.0, advice=english, advice_zh=chinese, topic=topic)


@pytest.fixture
def folder(tmp_path):
    """A site's languages: French, made from the shipped English."""
    texts = {**load_locale("en").texts, **BROUGHT_ALONG}
    (tmp_path / "languages").mkdir()
    (tmp_path / "languages" / "fr.toml").write_bytes(catalogue_of("fr", {**texts, "status.flagged": "Signalé"}))
    return tmp_path / "languages"


# Texts


def test_a_text_is_filled_by_name():
    assert in_english()("status.flagged", label="depressed") == "Flagged: depressed"


def test_a_key_or_a_value_that_is_not_there_is_an_error_of_the_program():
    with pytest.raises(KeyError, match="nothing"):
        in_english()("nothing")
    with pytest.raises(KeyError, match="label"):
        in_english()("status.flagged")


def test_what_fills_a_text_is_not_read_as_one():
    assert in_english()("status.flagged", label="{n.__class__}") == "Flagged: {n.__class__}"


@pytest.mark.parametrize(("n", "said"), [(1, "1 person"), (0, "0 people"), (2, "2 people"), (12345, "12,345 people")])
def test_one_and_several_are_told_apart(n, said):
    assert in_english().several("people", n) == said


def test_a_language_without_a_singular_says_one_like_several():
    assert in_french(without=["people.one"]).several("people", 1) == "1 PEOPLE"


def test_one_thing_may_be_said_without_its_number():
    assert in_french().several("people", 1) == "une personne"


@pytest.mark.parametrize(
    ("thing", "en", "zh", "fr"),
    [
        (Contribution("Pitch", "音高", family="pitch"), "Pitch", "音高", "famille pitch"),
        (Contribution("Mean pause", "平均停顿", name="timing.pause_mean_s"), "Mean pause", "平均停顿", "pause moyenne"),
        (Contribution("Mean pause", "平均停顿", family="timing", name="timing.pause_mean_s"), "Mean pause", "平均停顿", "pause moyenne"),
        (Contribution("Pause share", "停顿占比", family="timing", name="timing.pause_share_percent"), "Pause share", "停顿占比", "Pause share"),
    ],
)
def test_features_and_families_have_their_names_in_each_language(thing, en, zh, fr):
    third = in_french({"features.timing.pause_mean_s": "pause moyenne"})
    assert [locale.label(thing) for locale in (in_english(), in_chinese(), third)] == [en, zh, fr]


def test_advice_is_given_in_each_language_with_its_limit():
    said = [locale.advice(check()) for locale in (in_english(), in_chinese(), in_french())]
    assert said == ["Record at least 30 s of speech.", "请录制至少 30 秒的讲话。", "Enregistrez 30 s."]
    assert in_french().advice(check("clipping", None)) == "Conseil clipping."


def test_no_advice_is_given_on_a_pass():
    assert [locale.advice(check("")) for locale in (in_english(), in_french())] == ["", ""]


def test_a_word_of_no_vocabulary_is_shown_as_plain_words():
    locale = in_english()
    assert locale.term("sex", "female") == "women"
    assert locale.term("sex", "not_said") == "not said"
    assert locale.term("classes", "a\nb\x00\u202e") == "a b\\x00\\u202e"


# What a catalogue has to be


def test_a_catalogue_may_be_tables_or_dotted_keys():
    tables = b'[language]\ncode = "en"\nname = "English"\n[status]\nflagged = "Flagged"\n[units]\n"1/s" = "per s"\n"a.b" = "c"\n'
    assert dict(locale_of("en", tables, {}).texts) == {"status.flagged": "Flagged", "units.1/s": "per s", "units.a.b": "c"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status.flaged": "x"}, r"it has status\.flaged, which English has not"),
        ({"features.timing.pause": "x"}, r"it has features\.timing\.pause, which English has not"),
        ({"title.one": "x"}, r"it has title\.one, which English has not"),
        ({"sex.one": "x"}, r"it has sex\.one, which English has not"),
        ({"/home/jane": "x"}, "it has a name with other characters, which English has not"),
        ({"status.flagged": "x"}, r"status\.flagged has no placeholder where \{label\} is due"),
        ({"status.flagged": "{label} {n}"}, r"status\.flagged has \{label\}, \{n\} where \{label\} is due"),
        ({"title": "{n}"}, r"title has \{n\} where no placeholder is due"),
        ({"people.one": "{n} {m}"}, r"people\.one has \{m\}, \{n\} where \{n\} is due"),
        ({"line.one": "{label} {value} {n}"}, r"line\.one has .* where \{label\}, \{value\} is due"),
        ({"people.other": "des gens"}, r"people\.other has no placeholder where \{n\} is due"),
        ({"advice.speech": "Plus long."}, r"advice\.speech has no placeholder where \{limit\} is due"),
        ({"families.pitch": "{n}"}, r"families\.pitch has \{n\} where no placeholder is due"),
        ({"features.timing.pause_mean_s": "{n}"}, r"features\.timing\.pause_mean_s has \{n\} where no placeholder is due"),
        ({"title": " \n"}, "title is empty"),
        ({"features.timing.pause_mean_s": ""}, r"features\.timing\.pause_mean_s is empty"),
        ({"title": "a\x00b"}, "title has characters that do not print"),
        ({"title": "15\u202e"}, "title has characters that do not print"),
        ({"title": "Dites {{n}"}, "title has braces that .* are not closed"),
    ],
)
def test_a_text_that_does_not_fit_is_named(changes, said):
    with pytest.raises(ReportError, match=rf"^fr\.toml: {said}"):
        in_french(changes)


@pytest.mark.parametrize("key", ["status.flagged", "people.other", "families.pitch", "advice.no_speech"])
def test_a_text_that_lacks_is_named(key):
    with pytest.raises(ReportError, match=rf"^fr\.toml: it lacks {key}\.$"):
        in_french(without=[key])


def test_many_faults_are_counted():
    with pytest.raises(ReportError, match=r"it lacks status\.flagged.*\(and \d+ more\)"):
        in_french(without=[key for key in FRENCH if key != "title"])


def test_a_blank_may_stand_where_english_has_one():
    assert in_french({"separator": ""})("separator") == ""


def test_no_language_but_english_and_chinese_may_leave_out_what_they_have_elsewhere():
    assert in_chinese().texts == ENGLISH
    with pytest.raises(ReportError, match=r"^de\.toml: it lacks families\.pitch, families\.timing"):
        locale_of("de", catalogue_of("de", ENGLISH), ENGLISH)
    with pytest.raises(ReportError, match=r"it has families\.pitch, which English has not"):
        locale_of("zh", catalogue_of("zh", {**ENGLISH, "families.pitch": "音高"}), ENGLISH)


@pytest.mark.parametrize(
    "field", ["{label.__class__}", "{label[0]}", "{label:>999999}", "{label!r}", "{}", "{0}", "{label:{n}}", "{ label}", "{", "{label"]
)
def test_a_placeholder_is_a_name_and_nothing_else(field):
    with pytest.raises(ReportError, match=r"status\.flagged has braces that hold more than a name"):
        in_french({"status.flagged": field})
    with pytest.raises(ReportError, match=r"^en\.toml: status\.flagged has braces"):
        in_english({**ENGLISH, "status.flagged": field})


def test_what_no_report_may_say_is_refused_in_a_third_language():
    with pytest.raises(ReportError, match="title says “is depressed”"):
        in_french({"title": "The person is depressed."})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"\x00\x01\x02", "is not TOML"),
        (b"title = ", r"is not TOML \(at "),
        (b"{" * 5000, "is not TOML"),
        (b"a = " + b"[" * 5000, "is not TOML"),
        (b"title = 7", "title is not a text in quotation marks"),
        (b"title = ['a']", "title is not a text in quotation marks"),
        (b'"a.b" = "1"\n[a]\nb = "2"', r"a\.b is there twice, in two spellings"),
        (b".".join([b"a"] * 400_000) + b' = "x"', "has a line with more than 100 dots"),
        (b"a = " + b"{a = " * 5000, "is not TOML"),
    ],
)
def test_a_file_that_is_no_catalogue_is_refused(content, said):
    with pytest.raises(ReportError, match=rf"^fr\.toml:? {said}"):
        locale_of("fr", content, ENGLISH)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"code": "de"}, r"language\.code is not fr, as the file is called"),
        ({"name": " "}, r"language\.name, what its speakers call it, is missing"),
        ({"region": "France"}, r"language\.script or language\.region is not as BCP 47 has it"),
        ({"script": "latin"}, r"language\.script or language\.region is not as BCP 47 has it"),
        ({"nme": "x"}, r"it has language\.nme"),
    ],
)
def test_what_a_file_says_of_its_language_is_checked(about, said):
    with pytest.raises(ReportError, match=said):
        in_french(**about)


def test_the_tag_names_language_script_and_region():
    assert in_french().tag == "fr"
    chinese = in_chinese(script="Hans", region="CN")
    assert (chinese.tag, chinese.language) == ("zh-Hans-CN", "zh")
    other = locale_of("pt-BR", catalogue_of("pt-BR", FRENCH), ENGLISH)
    assert (other.tag, other.language, other.region) == ("pt-BR", "pt", "BR")


@given(st.text(alphabet="{}ab.[]!:0 é", max_size=20))
def test_a_text_that_passes_needs_its_names_and_nothing_more(text):
    try:
        names = placeholders(text)
    except ValueError:
        return
    assert Formatter().vformat(text, (), dict.fromkeys(names, "x")) == text.format(**dict.fromkeys(names, "x"))


@given(st.recursive(st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=10))
def test_every_leaf_of_nested_tables_is_kept(tables):
    def leaves(value):
        return [leaf for inner in value.values() for leaf in leaves(inner)] if isinstance(value, dict) else [value]

    assert sorted(flattened({"all": tables}).values()) == sorted(leaves({"all": tables}))


# Finding and loading


def test_english_and_chinese_are_shipped_and_say_the_same():
    english_texts, chinese = (load_locale(code).texts for code in available())
    assert available() == ("en", "zh")
    plurals = {f"{key.removesuffix('.other')}.one" for key in english_texts if key.endswith(".other")}
    assert chinese.keys() - english_texts.keys() == set()
    assert english_texts.keys() - chinese.keys() <= plurals


def test_a_language_is_one_file_in_the_sites_folder(folder):
    assert available(folder) == ("en", "zh", "fr")
    assert load_locale("fr", folder=folder)("status.flagged") == "Signalé"
    assert load_locale("en", folder=folder)("status.flagged") == load_locale("en")("status.flagged")


def test_a_file_that_changes_is_read_again(folder):
    assert load_locale("fr", folder=folder) is load_locale("fr", folder=folder)
    path = folder / "fr.toml"
    path.write_bytes(path.read_bytes().replace(b"Signal", b"Marqu"))
    assert load_locale("fr", folder=folder)("status.flagged").startswith("Marqu")


@pytest.mark.parametrize("language", ["de", "", "EN", "../fr", "fr.toml", "/etc/passwd"])
def test_an_unknown_language_is_refused_with_those_there_are(folder, language):
    with pytest.raises(InvalidValueError, match=r"for language, expected one of \['en', 'zh', 'fr'\]") as caught:
        load_locale(language, folder=folder)
    assert "/" not in str(caught.value)


def test_what_is_built_in_cannot_be_replaced(folder):
    (folder / "en.toml").write_bytes((folder / "fr.toml").read_bytes())
    with pytest.raises(ReportError, match="The languages folder has en, which is built in"):
        load_locale("en", folder=folder)


@pytest.mark.parametrize("name", ["site.toml", "fr.txt", "FR.toml", "french.toml", ".toml", "notes"])
def test_other_files_in_the_folder_are_let_be(folder, name):
    (folder / name).write_bytes(b"\xff")
    assert available(folder) == ("en", "zh", "fr")


def test_a_folder_that_cannot_be_listed_is_an_error_without_its_path(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ReportError, match="The languages folder cannot be read") as caught:
            available(folder)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"#" * 1_000_001, "is larger than 1,000,000 bytes")])
def test_an_empty_or_huge_file_is_refused(folder, content, said):
    (folder / "fr.toml").write_bytes(content)
    with pytest.raises(ReportError, match=rf"^fr\.toml {said}"):
        load_locale("fr", folder=folder)


def test_a_folder_in_place_of_a_language_is_refused(folder):
    (folder / "de.toml").mkdir()
    with pytest.raises(ReportError, match=r"^de\.toml is a folder"):
        load_locale("de", folder=folder)


# A site's wording


def test_wording_replaces_a_text_and_no_other(folder):
    plain, changed = load_locale("fr", folder=folder), load_locale("fr", folder=folder, wording={"status.flagged": "À revoir"})
    assert changed("status.flagged") == "À revoir"
    assert {key for key in plain.texts if plain.texts[key] != changed.texts[key]} == {"status.flagged"}
    assert load_locale("fr", folder=folder)("status.flagged") == "Signalé"


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ({"status.flaged": "x"}, r"Bad value 'status\.flaged' for a key of the wording, expected one of \['status\.flagged'"),
        ({"language.code": "x"}, r"Bad value 'language\.code' for a key of the wording"),
        ({"a b/c": "x"}, "Bad value 'a name with other characters' for a key of the wording"),
        ({"title.page": "Page {n}"}, r"The wording of title\.page has \{n\} where \{n\}, \{of\} is due"),
        ({"title.page": "{n.__class__} {of}"}, r"The wording of title\.page has braces that hold more than a name"),
        ({"status.flagged": " "}, r"The wording of status\.flagged is empty"),
        ({"status.flagged": "x\x1b"}, r"The wording of status\.flagged has characters that do not print"),
        ({"status.flagged": "x" * (MAX_WORDING + 1)}, r"The wording of status\.flagged has more than 1,000 characters"),
        ({"status.flagged": "This person has depression."}, r"status\.flagged says “has depression”"),
    ],
)
def test_wording_that_does_not_fit_its_place_is_refused(wording, said):
    with pytest.raises(ClinicalSerError, match=said):
        load_locale("en", wording=wording)
