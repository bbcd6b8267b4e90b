"""Explanations as a reader gets them: families in order, honest about what is unstable, against a group, in words."""

import numpy as np
import pytest
from pydantic import ValidationError

from clinical_ser.explain import wording
from clinical_ser.explain.effects import Explainer
from clinical_ser.explain.explaining import AVERAGE_RECORDING, explain
from clinical_ser.explain.explanation import COMPLETENESS, Explanation
from clinical_ser.features import catalogue
from clinical_ser.models.reference import Person
from tests.explain.made import EMBEDDING, model_of, three_classes, vector_of, with_embedding
from tests.tables import table_of

PAUSE = "timing.pause_mean_s"


@pytest.fixture(scope="module")
def table():
    return table_of(500, effect=3.0)


@pytest.fixture(scope="module")
def explainer(table):
    return Explainer(model_of(table, refits=12))


def told(explainer, table, row, **changes):
    table = table if not changes else type(table)(table.frame.copy(), table.feature_names, table.extractors)
    for name, value in changes.items():
        table.frame.loc[row, name] = value
    return explain(explainer, vector_of(table, row, explainer.model), target="depressed", person=Person(sex="female"))


def test_families_come_by_size_with_rank_and_agreement(explainer, table):
    explanation = told(explainer, table, 0)
    sizes = [abs(family.probability.value) for family in explanation.families]
    assert sizes == sorted(sizes, reverse=True)
    assert [family.rank for family in explanation.families] == [1, 2, 3, 4, 5]
    assert all(family.probability.low <= family.probability.value <= family.probability.high for family in explanation.families)
    assert all(family.stable == family.probability.stable for family in explanation.families)


def test_a_main_driver_is_named_when_refits_agree_and_not_else(explainer, table):
    driven = told(explainer, table, 0, **{PAUSE: 4.0, "praat.f0_median_hz": 0.0})
    assert driven.main_driver is not None
    assert driven.main_driver.family == "timing"
    assert driven.main_driver.rank_agreement >= 0.8
    unsure = Explainer(model_of(table_of(80, effect=0.0), refits=12))
    assert not [row for row in range(20) if told(unsure, table_of(80, seed=5), row).main_driver]


def test_a_main_driver_cannot_be_claimed_against_the_refits(explainer, table):
    explanation = told(explainer, table, 0)
    said = explanation.model_dump()
    said["families"][-1]["main_driver"] = True
    with pytest.raises(ValidationError, match="main driver"):
        Explanation.model_validate(said)


def test_an_explanation_that_does_not_add_up_is_no_explanation(explainer, table):
    said = told(explainer, table, 0).model_dump()
    for where, what in ((("probability",), "probability"), (("log_odds",), "log-odds")):
        wrong = Explanation.model_validate(said).model_dump()
        wrong[where[0]] += 2 * COMPLETENESS
        with pytest.raises(ValidationError, match=f"miss the {what}"):
            Explanation.model_validate(wrong)


def test_a_value_far_out_is_said_in_words_and_the_cause_is_not(explainer, table):
    explanation = told(explainer, table, 0, **{PAUSE: 9.0})
    family = next(family for family in explanation.families if family.family == "timing")
    feature = next(feature for feature in family.features if feature.name == PAUSE)
    assert feature.percentile == 95
    assert feature.stands_out
    assert feature.sentence.en == "Longer pauses than in at least 95 % of the reference group."
    assert "停顿" in feature.sentence.zh
    assert "95 %" in feature.sentence.zh
    assert "onger" in family.sentence.en
    assert not {"because", "cause", "due", "depress"} & set(family.sentence.en.lower().split())


def test_the_group_is_printed_with_its_size_and_what_was_not_matched(explainer, table):
    explanation = explain(explainer, vector_of(table, 0, explainer.model), target="depressed", person=Person(sex="female", age=40, device="tablet"))
    assert explanation.reference.group == "not depressed, female"
    well = ((table.frame["label"] == "not_depressed") & (table.frame["sex"] == "female")).sum()
    assert explanation.reference.subjects == well
    assert explanation.reference.unmatched == ("age", "device")


def test_without_a_group_it_is_the_average_recording_and_no_percentile():
    table = table_of(24)
    explainer = Explainer(model_of(table, refits=3))
    assert not explainer.model.reference.groups
    explanation = told(explainer, table, 0)
    assert explanation.reference.group == AVERAGE_RECORDING
    assert explanation.reference.subjects is None
    features = [feature for family in explanation.families for feature in family.features]
    assert all(feature.percentile is None and feature.sentence == wording.NO_GROUP for feature in features)


def test_a_feature_without_a_value_is_never_shown(explainer, table):
    explanation = told(explainer, table, 0, **{PAUSE: np.nan})
    assert PAUSE not in {feature.name for family in explanation.families for feature in family.features}


def test_several_classes_are_explained_towards_the_class_asked_for():
    table = three_classes()
    explainer = Explainer(model_of(table, refits=4, emotion=True))
    saddest = int(table.frame[PAUSE].to_numpy().argmax())
    explanation = explain(explainer, vector_of(table, saddest, explainer.model), target="sad")
    assert explanation.scale == "calibrated_centred_logit"
    assert explanation.families[0].family == "timing"
    assert explanation.families[0].probability.value > 0
    for move in explanation.moves:
        assert move.to_status in {"classified", "indeterminate"}
        assert move.to_class in explainer.model.task.classes


@pytest.mark.parametrize(
    ("phrases", "joined"),
    [
        (["longer pauses", "more irregular pauses"], "longer and more irregular pauses"),
        (["longer pauses", "faster speech"], "longer pauses and faster speech"),
        (["longer pauses", "more irregular pauses", "more pauses"], "longer, more irregular and more pauses"),
        (["longer gaps in the voice", "more uniform runs of voice"], "longer gaps in the voice and more uniform runs of voice"),
        (["steadier pitch", "wider range of pitch"], "steadier pitch and wider range of pitch"),
        (["louder"], "louder"),
    ],
)
def test_phrases_that_share_a_noun_name_it_once(phrases, joined):
    assert wording._joined(phrases) == joined


def test_no_pair_of_catalogue_phrases_loses_its_grammar():
    """Joined, two phrases are either both there in full, or adjectives before a noun that both end with."""
    specs = [catalogue.get(name) for name in catalogue.names("egemaps", "praat", "timing")]
    phrases = sorted({phrase for spec in specs for phrase in (spec.higher_en, spec.lower_en)})
    for first in phrases:
        for second in phrases:
            joined = wording._joined([first, second])
            noun = first.rpartition(" ")[2]
            adjectives = joined.removesuffix(f" {noun}").replace(" and ", " ").split()
            whole = joined == f"{first} and {second}"
            assert whole or (second.endswith(f" {noun}") and not {"of", "in", "the"} & set(adjectives)), joined


def test_two_measures_that_disagree_are_not_said_in_one_breath(explainer, table):
    """Median pitch far up and its low end far down: the one with the larger effect is said."""
    explanation = told(explainer, table, 0, **{"praat.f0_median_hz": 9.0, "praat.f0_mean_hz": -9.0, "praat.f0_p95_hz": -9.0})
    sentence = next(family.sentence.en for family in explanation.families if family.family == "pitch")
    assert not ("igher pitch" in sentence and "ower pitch" in sentence)


def test_a_change_from_the_own_baseline_is_said_as_a_change():
    said = wording.feature_sentence(catalogue.get("praat.f0_mean_hz"), 95, relative=True)
    assert said.en.startswith("Against the person's own earlier recordings: higher pitch")
    assert "本人先前的录音" in said.zh


@pytest.mark.parametrize(
    ("percentile", "said"),
    [(50, "As usual"), (75, "As usual"), (76, "at least 75 %"), (90, "at least 90 %"), (95, "at least 95 %"), (5, "Shorter pauses"), (24, "75 %")],
)
def test_a_sentence_says_no_more_than_the_quantiles_know(percentile, said):
    assert said in wording.feature_sentence(catalogue.get(PAUSE), percentile).en


# --- what-if ---------------------------------------------------------------------------------------------------------------------------


def test_the_move_that_is_named_changes_the_status_and_a_little_less_does_not(explainer, table):
    model = explainer.model
    for row in range(12):
        vector = vector_of(table, row, model)
        log_odds = float(model.log_odds(vector.values[None])[0])
        here = str(model.statuses(np.array([log_odds]))[0])
        for move in explain(explainer, vector, target="depressed", person=Person(sex="male")).moves:
            assert move.to_status != here
            assert str(model.statuses(np.array([log_odds + move.log_odds]))[0]) == move.to_status
            assert str(model.statuses(np.array([log_odds + move.log_odds * 0.999 - np.sign(move.log_odds) * 1e-5]))[0]) == here


def test_a_move_is_within_reach_only_if_the_group_shows_it(explainer, table):
    moves = [move for row in range(40) for move in told(explainer, table, row).moves]
    assert any(move.within_reference for move in moves)
    assert any(not move.within_reference for move in moves)
    for move in moves:
        assert move.within_reference == (5 <= move.percentile_then <= 95)
        assert (move.percentile_then > move.percentile_now) == (move.log_odds > 0)


# --- embeddings ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["linear", "xgboost"])
def with_pattern(request):
    table = with_embedding(table_of(240, effect=1.0))
    return Explainer(model_of(table, head=request.param, refits=4)), table


def test_the_embedding_is_one_bar_without_a_name_and_without_dimensions(with_pattern):
    explainer, table = with_pattern
    family = next(f for f in told(explainer, table, 0).families if f.family == "embedding")
    assert family.label_en == "Learned pattern"
    assert family.features == ()
    assert family.sentence == wording.PATTERN
    shown = {feature.name for family in told(explainer, table, 0).families for feature in family.features}
    assert not shown & set(EMBEDDING)


def test_the_model_without_embeddings_answers_beside_and_disagreement_is_said(with_pattern):
    explainer, table = with_pattern
    model = explainer.model
    assert model.interpretable is not None
    assert not [name for name in model.interpretable.features if name.startswith("embedding.")]
    found = [told(explainer, table, row) for row in range(60)]
    for row, explanation in enumerate(found):
        other = explanation.without_embedding
        plain = model.interpretable.answer(table.frame.loc[row, list(model.interpretable.features)].to_numpy(float))
        assert other.probability.value == pytest.approx(plain.probabilities[1])
        mine = str(model.statuses(model.log_odds(vector_of(table, row, model).values[None]))[0])
        assert other.disagrees == (other.status != mine)
    assert any(explanation.without_embedding.disagrees for explanation in found)
    assert not all(explanation.without_embedding.disagrees for explanation in found)


def test_how_much_named_features_tell_of_the_pattern_is_measured_on_people_held_out():
    new, known = (model_of(with_embedding(table_of(300), of_named=share), refits=2).reproduced for share in (0.0, 1.0))
    assert known.r2 > 0.5
    assert new.r2 < 0.35
    assert known.low <= known.r2 <= known.high
    assert known.subjects == 300


def test_a_model_without_embeddings_says_nothing_of_them(explainer, table):
    assert told(explainer, table, 0).without_embedding is None
    assert explainer.model.interpretable is None


def test_a_model_of_an_embedding_alone_has_no_interpretable_twin():
    table = with_embedding(table_of(120))
    names = tuple(name for name in table.feature_names if name in EMBEDDING)
    alone = type(table)(table.frame.drop(columns=[n for n in table.feature_names if n not in EMBEDDING]), names, {"embedding.test": "test encoder"})
    model = model_of(alone, refits=2)
    assert model.interpretable is None
    assert explain(Explainer(model), vector_of(alone, 0, model), target="depressed").families[0].family == "embedding"


@pytest.mark.parametrize("head", ["linear", "xgboost"])
def test_an_embedding_that_adds_nothing_can_be_learned_and_explained(head):
    table = with_embedding(table_of(120))
    frame = table.frame.assign(**dict.fromkeys(EMBEDDING, 1.0))
    still = type(table)(frame, table.feature_names, table.extractors)
    model = model_of(still, head=head, refits=2)
    assert model.reproduced.r2 == 0
    family = next(f for f in explain(Explainer(model), vector_of(still, 0, model), target="depressed").families if f.family == "embedding")
    assert family.probability.value == pytest.approx(0, abs=1e-9)
