"""The catalogue describes exactly what the engines compute, completely, in both languages, and its document is up to date."""

import re
import string
from pathlib import Path

import opensmile
import pytest

from clinical_ser.errors import InvalidValueError
from clinical_ser.features import catalogue, egemaps, praat, timing

DEFAULT_SETS = ("egemaps", "praat", "timing")
ALL = catalogue.names(*catalogue.ENGINES)
DESCRIBED = [catalogue.get(name) for name in catalogue.names(*DEFAULT_SETS)]
TEXTS = ("label", "meaning", "higher", "lower")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize(
    ("feature_set", "computed"),
    [("egemaps", egemaps.EGEMAPS_NAMES), ("praat", praat.NAMES), ("timing", timing.NAMES), ("compare", egemaps.COMPARE_NAMES)],
)
def test_catalogue_and_engine_name_the_same_features_in_the_same_order(feature_set, computed):
    assert catalogue.names(feature_set) == computed
    assert all(catalogue.get(name).set == feature_set and name.startswith(f"{feature_set}.") for name in computed)


@pytest.mark.parametrize(("feature_set", "smile_set"), [("egemaps", "eGeMAPSv02"), ("compare", "ComParE_2016")])
def test_openSMILEs_names_are_openSMILEs(feature_set, smile_set):
    smile = opensmile.Smile(opensmile.FeatureSet[smile_set], opensmile.FeatureLevel.Functionals)
    assert catalogue.names(feature_set) == tuple(f"{feature_set}.{name}" for name in smile.feature_names)


def test_sets_are_joined_in_the_order_asked_for():
    assert catalogue.names("timing", "egemaps") == timing.NAMES + egemaps.EGEMAPS_NAMES
    assert len(ALL) == len(set(ALL))


@pytest.mark.parametrize("spec", [*DESCRIBED, *map(catalogue.get, catalogue.names("compare")[::97])], ids=lambda spec: spec.name)
def test_every_entry_is_complete(spec):
    assert spec.family in catalogue.FAMILIES[:-1]
    assert spec.unit in {"Hz", "st", "dB", "dB/Hz", "s", "us", "%", "1", "1/s", "1/min", "st/s", "a.u."}
    assert spec.sources
    for text in TEXTS:
        english, chinese = getattr(spec, f"{text}_en"), getattr(spec, f"{text}_zh")
        assert english == english.strip() != ""
        assert not CHINESE.search(english)
        assert CHINESE.search(chinese)
        assert not set("{}") & set(english + chinese)
    assert spec.meaning_en.endswith(".")
    assert spec.meaning_en[0] in string.ascii_uppercase + string.digits
    assert spec.meaning_zh.endswith("。")
    assert len(spec.label_en) <= (90 if spec.set == "compare" else 60)
    assert spec.higher_en != spec.lower_en
    assert spec.higher_zh != spec.lower_zh
    assert not re.search(r"[,;:]", re.sub(r"[0-9a-zA-Z][,;:]", "", spec.meaning_zh)), "Chinese takes full-width punctuation"


@pytest.mark.parametrize("feature_set", catalogue.ENGINES)
@pytest.mark.parametrize("text", ["label_en", "label_zh", "meaning_en", "meaning_zh"])
def test_no_two_features_of_a_set_share_a_text(feature_set, text):
    texts = [getattr(catalogue.get(name), text) for name in catalogue.names(feature_set)]
    assert len(texts) == len(set(texts))


def test_families_are_those_of_the_voice():
    family = {spec.name: spec.family for spec in DESCRIBED}
    assert family["egemaps.F0semitoneFrom27.5Hz_sma3nz_pctlrange0-2"] == "pitch"
    assert family["egemaps.loudness_sma3_amean"] == family["egemaps.equivalentSoundLevel_dBp"] == "loudness"
    assert family["egemaps.loudnessPeaksPerSec"] == family["egemaps.MeanUnvoicedSegmentLength"] == "timing"
    assert family["egemaps.slopeV0-500_sma3nz_amean"] == family["egemaps.logRelF0-H1-A3_sma3nz_amean"] == "voice_quality"
    assert family["egemaps.mfcc3V_sma3nz_amean"] == family["egemaps.F2bandwidth_sma3nz_stddevNorm"] == "articulation"
    assert catalogue.get("compare.F0final_sma_ff0_meanSegLen").family == "timing"
    assert catalogue.get("compare.F0final_sma_de_range").family == "pitch"


def test_by_family_keeps_every_feature_once_and_the_order_given():
    names = catalogue.names(*DEFAULT_SETS)[::-1]
    groups = catalogue.by_family(names)
    assert list(groups) == [family for family in catalogue.FAMILIES if family in groups]
    assert sorted(name for members in groups.values() for name in members) == sorted(names)
    assert all([name for name in names if name in members] == list(members) for members in groups.values())
    assert catalogue.by_family(["timing.pause_mean_s"]) == {"timing": ("timing.pause_mean_s",)}


def test_voiced_only_is_what_openSMILE_takes_over_voiced_frames():
    for name in catalogue.names("egemaps"):
        over_voiced = ("sma3nz" in name and "UV" not in name) or name.endswith(("MeanVoicedSegmentLengthSec", "StddevVoicedSegmentLengthSec"))
        assert catalogue.get(name).voiced_only == over_voiced, name


def test_the_direction_of_a_ratio_follows_the_sign_of_its_mean():
    assert catalogue.get("egemaps.F0semitoneFrom27.5Hz_sma3nz_stddevNorm").higher_en == "more variable pitch"
    assert catalogue.get("egemaps.alphaRatioV_sma3nz_stddevNorm").lower_en == "more variable brightness"
    assert "ratio" in catalogue.get("egemaps.mfcc2_sma3_stddevNorm").higher_en


@pytest.mark.parametrize("spec", [spec for spec in DESCRIBED if spec.reference], ids=lambda spec: spec.name)
def test_references_are_sound(spec):
    assert spec.engine == "praat", "published ranges hold for Praat's values, never for openSMILE's"
    assert set(spec.reference) in ({"any"}, {"female", "male"})
    for limits in spec.reference.values():
        assert limits.low <= limits.high
        assert limits.condition in {"speech", "sustained vowel"}
        assert limits.statistic
        assert re.search(r"manual|\d{4}", limits.source)


def test_texts_are_found_by_name_and_a_misspelt_name_gets_suggestions():
    assert catalogue.get("timing.pause_mean_s").higher_en == "longer pauses"
    assert catalogue.get_family("timing").label_zh == "节奏与停顿"
    with pytest.raises(InvalidValueError, match=r"timing\.pause_mean_s"):
        catalogue.get("timing.pause_means")
    with pytest.raises(InvalidValueError, match="feature set"):
        catalogue.names("gemaps")
    with pytest.raises(InvalidValueError, match="voice_quality"):
        catalogue.get_family("voice")


def test_shared_texts_are_all_used_and_families_all_described():
    shared = catalogue._toml("shared")
    used = {caveat.en for name in (*catalogue.names(*DEFAULT_SETS), ALL[-1]) for caveat in catalogue.get(name).caveats}
    assert {caveat["en"] for caveat in shared["caveats"].values()} == used
    cited = {
        source for spec in (*DESCRIBED, catalogue.get(ALL[-1])) for source in (*spec.sources, *(limits.source for limits in spec.reference.values()))
    }
    assert set(shared["sources"].values()) == cited
    assert tuple(entry["name"] for entry in shared["families"]) == catalogue.FAMILIES


def test_the_document_is_up_to_date():
    document = Path(__file__).parents[2] / "docs" / "features.md"
    assert document.read_text("utf-8") == catalogue.document() + "\n", "run: python -m clinical_ser.features.catalogue > docs/features.md"
