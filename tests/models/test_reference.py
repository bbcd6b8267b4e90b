"""Reference groups: who is in one, who gets which, and nobody who could be worked out from them."""

import numpy as np
import pandas as pd
import pytest

from clinical_ser.errors import BundleSchemaError
from clinical_ser.models.reference import (
    LEVELS,
    MINIMUM_SUBJECTS,
    MOST_GROUPS,
    MOST_SUMMARIES,
    REFINED_SUBJECTS,
    Conditions,
    Person,
    ReferenceGroup,
    ReferenceGroups,
    cuts,
    summarise,
)
from clinical_ser.models.rounding import coarse


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
    found = cuts(frame, 1)
    X = np.random.default_rng(1).normal(size=(len(frame), 1))
    return summarise(X, ("timing.pause_mean_s",), frame["subject"].to_numpy(str), found, "well"), found


def chosen(frame, **person):
    reference, _ = groups_of(frame)
    place = reference.for_person(Person(**person))
    return None if place is None else reference.groups[place]


def test_a_person_gets_the_group_of_their_sex_and_age():
    group = chosen(people(1500, device="tablet"), sex="female", age=53)
    assert group.conditions == Conditions(sex="female", age=(45, 65))
    assert group.name == "well, female, 45 to 65 years"


@pytest.mark.parametrize("age", [42.5, 44, 45, 47.5])
def test_a_window_reaches_ten_years_either_way_of_nearly_everyone_it_serves(age):
    low, high = chosen(people(3000), sex="male", age=age).conditions.age
    assert abs((low + high) / 2 - age) <= 2.5
    assert high - low == 20


def test_task_and_device_are_matched_where_they_are_known_and_enough():
    frame = people(1500, task=np.where(np.arange(1500) % 2, "interview", "read speech"), age=np.nan)
    group = chosen(frame, sex="female", task="interview", device="tablet")
    assert (group.conditions.task, group.conditions.device) == ("interview", "tablet")
    assert chosen(frame, sex="female", task="vowel").conditions.task is None


def test_what_cannot_be_matched_is_said_and_what_everybody_shares_is_matched():
    reference, _ = groups_of(people(200))
    person = Person(sex="female", age=80, task="read speech", device="phone")
    place = reference.for_person(person)
    assert reference.unmatched(person, place) == ("age", "device")
    assert reference.groups[place].shared.task == "read speech"
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


def test_the_few_of_neither_sex_cannot_be_worked_out():
    """All less the women less the men would be one person of sex `other`: one of the two is not published."""
    frame = people(147, sex=["other"] + ["female", "male"] * 73, age=np.nan, device="tablet")
    _, found = groups_of(frame)
    assert sum(cut.conditions.sex is not None for cut in found) == 1


def test_the_few_of_one_age_cannot_be_worked_out():
    """Two windows that met in one year would give away who is of that age; and the few beyond the last window are not left over either."""
    frame = people(400, sex="female", device="tablet", age=np.r_[np.full(200, 25.0), [30.0], np.full(194, 35.0), np.full(5, 88.0)])
    _, found = groups_of(frame)
    rows = [set(cut.rows.tolist()) for cut in found]
    assert not any(len(a - b) in range(1, MINIMUM_SUBJECTS) and b < a for a in rows for b in rows)
    assert not any(a | b != c and len(c - a - b) < MINIMUM_SUBJECTS and not a & b and a | b < c for a in rows for b in rows for c in rows)


@pytest.mark.parametrize("seed", range(3))
def test_no_combination_of_published_groups_is_a_few_people(seed):
    """Random combinations: of up to three groups never a few people come out, and of more never one."""
    frame = people(300, seed=seed, sex=np.random.default_rng(seed).choice(["female", "male", "other"], 300, p=[0.5, 0.47, 0.03]))
    _, found = groups_of(frame)
    members = np.array([np.isin(np.arange(len(frame)), cut.rows) for cut in found]).astype(int)
    rng = np.random.default_rng(seed)
    for _ in range(4000):
        chosen = rng.choice(len(members), size=min(rng.integers(2, 7), len(members)), replace=False)
        left = np.count_nonzero(rng.choice([-1, 1], len(chosen)) @ members[chosen])
        assert not 0 < left < (MINIMUM_SUBJECTS if len(chosen) <= 3 else 2)


def test_every_pair_of_nested_groups_differs_by_enough():
    frame = people(900, seed=4)
    _, found = groups_of(frame)
    assert len(found) > 10
    for large in found:
        for small in found:
            if small is not large and set(small.rows) <= set(large.rows):
                assert len(set(large.rows) - set(small.rows)) >= MINIMUM_SUBJECTS


def test_the_same_people_are_published_once_and_said_to_be_alike():
    """With one device, a group of that device would be everyone again; a person recorded with it is matched all the same."""
    reference, found = groups_of(people(400, device="tablet", sex="female"))
    assert not any(cut.conditions.device or cut.conditions.sex for cut in found)
    assert len({tuple(cut.rows) for cut in found}) == len(found)
    person = Person(sex="female", device="tablet")
    assert reference.unmatched(person, reference.for_person(person)) == ()
    assert reference.unmatched(Person(sex="male"), 0) == ("sex",)


def test_many_features_make_fewer_groups():
    frame = people(3000)
    few, many = cuts(frame, 100), cuts(frame, 6373)
    assert len(few) == MOST_GROUPS
    assert len(many) <= MOST_SUMMARIES / 6373
    assert [cut.conditions for cut in many] == [cut.conditions for cut in few[: len(many)]]


def test_numbers_name_devices_as_text_does_and_a_long_text_names_nothing():
    frame = people(400, device=np.tile([1.0, 2.0], 200), task="x" * 3000)
    _, found = groups_of(frame)
    assert {cut.conditions.device for cut in found} >= {"1.0", "2.0"}
    assert all(cut.shared.task is None for cut in found)


def test_one_persons_value_does_not_come_out_of_two_means():
    """Where groups overlap in part, all that rounding leaves of one person is noise of the size of people's spread."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(300):
        values = rng.normal(size=101)
        with_them, without = (float(coarse(part.mean(), part.std(), len(part))) for part in (values, values[1:]))
        errors.append(101 * with_them - 100 * without - values[0])
    assert np.std(errors) > 1.0


def test_a_subject_counts_once_in_a_group():
    frame = pd.concat([people(30), people(30).iloc[[0] * 500]])
    X = np.concatenate([np.zeros(30), np.full(500, 100.0)])[:, None]
    found = cuts(frame, 1)
    reference = summarise(X, ("timing.pause_mean_s",), frame["subject"].to_numpy(str), found, "well")
    group = reference.groups[0]
    assert group.subjects == 30
    assert group.mean["timing.pause_mean_s"] == pytest.approx(100 * (500 / 501) / 30, abs=1)  # and not 94: means are coarse


def test_only_summaries_are_kept_rounded_and_without_extremes():
    frame = people(400)
    X = np.random.default_rng(2).normal(size=(400, 1)) * 123.456789
    found = cuts(frame, 1)
    reference = summarise(X, ("timing.pause_mean_s",), frame["subject"].to_numpy(str), found, "well")
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
