"""Reference groups: who is in one, who gets which, and nobody who could be worked out from them."""

import numpy as np
import pandas as pd
import pytest

from clinical_ser.errors import BundleSchemaError
from clinical_ser.models.reference import (
    LEVELS,
    MINIMUM_SUBJECTS,
    REFINED_SUBJECTS,
    Conditions,
    Person,
    ReferenceGroup,
    ReferenceGroups,
    cuts,
    summarise,
)


def people(n=400, *, seed=0, **columns):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(n)],
            "sex": rng.choice(["female", "male"], n),
            "age": rng.integers(18, 86, n).astype(float),
            "task": "read speech",
            "device": rng.choice(["tablet", "headset"], n),
        }
    )
    return frame.assign(**columns)


def groups_of(frame):
    found, common = cuts(frame)
    X = np.random.default_rng(1).normal(size=(len(frame), 1))
    return summarise(X, ("timing.pause_mean_s",), frame["subject"].to_numpy(str), found, common, "well"), found


def chosen(frame, **person):
    reference, _ = groups_of(frame)
    place = reference.for_person(Person(**person))
    return None if place is None else reference.groups[place]


def test_a_person_gets_the_group_of_their_sex_and_age():
    group = chosen(people(1500), sex="female", age=53)
    assert group.conditions.sex == "female"
    assert group.conditions.age == (45, 65)
    assert group.name == "well, female, 45 to 65 years, headset" if group.conditions.device else "well, female, 45 to 65 years"


@pytest.mark.parametrize("age", [42.5, 44, 45, 47.5])
def test_a_window_reaches_ten_years_either_way_of_nearly_everyone_it_serves(age):
    low, high = chosen(people(3000), sex="male", age=age).conditions.age
    assert abs((low + high) / 2 - age) <= 2.5
    assert high - low == 20


def test_task_and_device_are_matched_where_they_are_known_and_enough():
    frame = people(1500, task=np.where(np.arange(1500) % 2, "interview", "read speech"))
    group = chosen(frame, sex="female", age=50, task="interview", device="tablet")
    assert (group.conditions.task, group.conditions.device) == ("interview", "tablet")
    assert chosen(frame, sex="female", age=50, task="vowel").conditions.task is None


def test_what_cannot_be_matched_is_said_and_what_everybody_shares_is_matched():
    reference, _ = groups_of(people(200))
    person = Person(sex="female", age=80, task="read speech", device="phone")
    place = reference.for_person(person)
    assert reference.unmatched(person, place) == ("age", "device")
    assert reference.common.task == "read speech"
    assert reference.unmatched(Person(sex="other"), reference.for_person(Person(sex="other"))) == ("sex",)


def test_sex_is_preferred_to_age_and_age_to_device():
    reference = ReferenceGroups(
        groups=tuple(
            ReferenceGroup(name=str(i), conditions=conditions, subjects=60, quantiles={}, mean={}, sd={})
            for i, conditions in enumerate([Conditions(age=(40, 60)), Conditions(sex="male"), Conditions(sex="male", device="tablet")])
        )
    )
    assert reference.for_person(Person(sex="male", age=50)) == 1
    assert reference.for_person(Person(age=50, device="tablet")) == 0
    assert reference.for_person(Person(sex="male", age=50, device="tablet")) == 2
    assert reference.for_person(Person(sex="female")) is None


def test_a_group_is_large_enough_for_its_cut():
    _, found = groups_of(people(260))
    assert found
    for cut in found:
        only_sex = cut.conditions == Conditions(sex=cut.conditions.sex)
        assert cut.subjects >= (MINIMUM_SUBJECTS if only_sex else REFINED_SUBJECTS)


def test_a_cohort_too_small_has_no_group():
    reference, _ = groups_of(people(MINIMUM_SUBJECTS - 1))
    assert reference.groups == ()
    assert reference.for_person(Person(sex="female")) is None


@pytest.mark.parametrize("few", [1, MINIMUM_SUBJECTS - 1])
def test_no_group_differs_from_one_that_holds_it_by_a_few_people(few):
    """All less the women would be the few men: their mean could be worked out, so the women are not published."""
    frame = people(100, sex=np.where(np.arange(100) < few, "male", "female"), age=np.nan, device="tablet")
    _, found = groups_of(frame)
    assert [cut.conditions.words() for cut in found] == [()]


def test_every_pair_of_nested_groups_differs_by_nobody_or_by_enough():
    frame = people(900, seed=4)
    _, found = groups_of(frame)
    assert len(found) > 10
    for large in found:
        for small in found:
            if small is not large and set(small.rows) <= set(large.rows):
                assert len(set(large.rows) - set(small.rows)) >= MINIMUM_SUBJECTS


def test_the_same_people_are_published_once():
    """With one device, a group of that device would be everyone again."""
    _, found = groups_of(people(400, device="tablet"))
    assert not any(cut.conditions.device for cut in found)
    assert len({tuple(cut.rows) for cut in found}) == len(found)


def test_a_subject_counts_once_in_a_group():
    frame = pd.concat([people(30), people(30).iloc[[0] * 500]])
    X = np.concatenate([np.zeros(30), np.full(500, 100.0)])[:, None]
    found, common = cuts(frame)
    reference = summarise(X, ("timing.pause_mean_s",), frame["subject"].to_numpy(str), found, common, "well")
    group = reference.groups[0]
    assert group.subjects == 30
    assert group.mean["timing.pause_mean_s"] == pytest.approx(100 * (500 / 501) / 30, rel=0.01)


def test_only_summaries_are_kept_rounded_and_without_extremes():
    frame = people(400)
    X = np.random.default_rng(2).normal(size=(400, 1)) * 123.456789
    found, common = cuts(frame)
    reference = summarise(X, ("timing.pause_mean_s",), frame["subject"].to_numpy(str), found, common, "well")
    values = {float(value) for value in X.ravel()}
    for group in reference.groups:
        kept = group.quantiles["timing.pause_mean_s"]
        assert len(kept) == len(LEVELS)
        assert not values & {*kept, *group.mean.values(), *group.sd.values()}
        assert max(kept) < X.max()


def test_a_reference_file_of_too_few_is_refused():
    with pytest.raises(BundleSchemaError, match="at least 20"):
        ReferenceGroups.from_dict({"groups": [{"name": "x", "subjects": 3, "quantiles": {}, "mean": {}, "sd": {}}]})


def test_strange_words_in_the_cohort_make_no_group_and_no_error():
    frame = people(120, device=[None, 7, "tablet"] * 40, age=["old"] * 120, sex=[None] * 120)
    _, found = groups_of(frame)
    assert found[0].conditions == Conditions()
