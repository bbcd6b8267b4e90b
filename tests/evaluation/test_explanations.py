"""What a model goes by in a cohort: sums with intervals over subjects, counts in bins, and no row of a person."""

import numpy as np
import pytest

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.card_text import card_markdown
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.explanations import BINS, RELIABILITY, CohortExplanation, Rerecorded, explain_cohort
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.release import card_of
from clinical_ser.explain.effects import Explainer
from clinical_ser.models.reference import Person
from clinical_ser.models.training import TrainingOptions, train
from tests.explain.made import model_of, three_classes, with_embedding
from tests.tables import table_of


@pytest.fixture(scope="module")
def table():
    return table_of(200, effect=3.0)


@pytest.fixture(scope="module")
def explained(table):
    return explain_cohort(model_of(table), table, inside=True, replicates=100)


def test_families_come_by_size_with_intervals_over_subjects(explained):
    sizes = [family.size.value for family in explained.families]
    assert sizes == sorted(sizes, reverse=True)
    assert {explained.families[0].family, explained.families[1].family} == {"timing", "pitch"}
    for family in explained.families:
        assert family.size.low <= family.size.value <= family.size.high
        assert family.size.subjects == 200
    assert sum(family.first.value for family in explained.families) == pytest.approx(1)


def test_a_family_comes_first_where_its_effect_is_largest_whichever_way(table, explained):
    model = model_of(table)
    explainer = Explainer(model)
    groups = [model.reference.for_person(Person(sex=sex)) for sex in table.frame["sex"]]
    effects = explainer.table(table.features, targets=["depressed"] * len(groups), groups=groups)
    first = [model.head.families_[int(np.abs(one.probability[0]).argmax())] for one in effects]
    for family in explained.families:
        assert family.first.value == pytest.approx(np.mean([name == family.family for name in first]))
        assert family.size.value == pytest.approx(np.mean([abs(one.probability[0][one.families.index(family.family)]) for one in effects]))


def test_the_features_that_made_the_labels_come_first(explained):
    assert {feature.name for feature in explained.features[:2]} == {"timing.pause_mean_s", "praat.f0_median_hz"}


def test_every_recording_is_counted_once_a_feature(explained):
    assert len(explained.edges) == BINS + 1
    for feature in explained.features:
        assert {third: len(counts) for third, counts in feature.counts.items()} == dict.fromkeys(("low", "middle", "high"), BINS)
        assert sum(map(sum, feature.counts.values())) == explained.recordings == 200


def test_high_values_lie_on_the_side_that_they_push_to(explained):
    """Long pauses raise the risk in this table: their effects lie right of zero."""
    pause = next(feature for feature in explained.features if feature.name == "timing.pause_mean_s")
    middle = (np.array(explained.edges[:-1]) + np.array(explained.edges[1:])) / 2
    mean = {third: np.average(middle, weights=counts) for third, counts in pause.counts.items()}
    assert mean["low"] < mean["middle"] < mean["high"]


def test_ten_recordings_of_one_person_do_not_make_the_interval_shorter():
    once, often = (explain_cohort(model_of(table_of(60)), table_of(60, rows_each=n, seed=9), inside=False, replicates=200) for n in (1, 10))
    widths = [one.families[0].size.high - one.families[0].size.low for one in (once, often)]
    assert widths[1] > 0.6 * widths[0]


def test_reliability_is_a_share_with_an_interval(explained):
    assert set(explained.reliability) == set(RELIABILITY)
    for figure in explained.reliability.values():
        assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_several_classes_are_explained_towards_what_was_answered():
    table = three_classes()
    explained = explain_cohort(model_of(table, emotion=True, refits=3), table, inside=True, replicates=50)
    assert explained.target is None
    assert explained.recordings == len(table.frame)


def test_dimensions_of_an_embedding_are_not_shown():
    table = with_embedding(table_of(150))
    explained = explain_cohort(model_of(table, refits=3), table, inside=True, replicates=50)
    assert explained.families[0].family == "embedding"
    assert not any(feature.family == "embedding" for feature in explained.features)


def test_nothing_of_a_person_is_in_it(explained, table):
    said = explained.model_dump_json()
    for secret in [*table.frame["subject"][:20], *table.frame["recording"][:20]]:
        assert secret not in said
    for value in table.frame["timing.pause_mean_s"][:50]:
        assert repr(float(value)) not in said


def test_it_travels_in_the_evidence_and_without_pictures_in_the_card(table):
    training = train(table, DEPRESSION, TrainingOptions(refits=3))
    card, evidence = card_of(training, table, name="m", version="1", options=EvaluationOptions(replicates=30))
    assert evidence.explanation.features
    assert evidence.explanation.inside
    assert Evidence.from_json(evidence.model_dump_json().encode()).explanation == evidence.explanation
    assert card.internal.explanation.families == evidence.explanation.families
    assert card.internal.explanation.features == ()
    text = card_markdown(card)
    assert "What the model goes by" in text
    assert "Timing and pauses" in text


def test_rerecording_stands_in_the_card(table):
    training = train(table, DEPRESSION, TrainingOptions(refits=3))
    card, _ = card_of(training, table, name="m", version="1", options=EvaluationOptions(replicates=30))
    figure = Figure(value=0.5, low=0.4, high=0.6, subjects=20, recordings=21, method="cluster bootstrap")
    again = Rerecorded(change="6 dB softer", probability=figure, effect=figure, correlation=figure, same_first=figure, same_status=figure, refused=1)
    extended = card.extended(rerecorded=[again])
    assert Card.from_json(extended.to_json()).rerecorded == (again,)
    assert extended.extended(supplied={}).rerecorded == (again,)
    assert "6 dB softer" in card_markdown(extended)
    assert "recorded a little differently" not in card_markdown(card)
    assert any("6 dB softer was answered differently in 50%" in warning for warning in extended.warnings)
    steady = again.model_copy(update={"same_status": figure.model_copy(update={"value": 0.95, "high": 0.99})})
    assert card.extended(rerecorded=[steady]).warnings == card.warnings


def test_the_same_cohort_gives_the_same_summary(table, explained):
    assert explain_cohort(model_of(table), table, inside=True, replicates=100) == explained
    assert isinstance(explained, CohortExplanation)
