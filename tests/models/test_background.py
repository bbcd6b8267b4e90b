"""What families add in a reference group: moments that come out as they went in, heard out of fold, and nobody's."""

import numpy as np
import pytest

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import BundleSchemaError
from clinical_ser.models.background import Background, Backgrounds
from clinical_ser.models.rows import select_rows
from clinical_ser.models.training import TrainingOptions, train
from tests.tables import table_of


@pytest.fixture(scope="module")
def model():
    return train(table_of(300), DEPRESSION, TrainingOptions(refits=6)).model


@pytest.fixture(scope="module")
def fresh(model):
    """Healthy people whom the model has not heard, as numbers."""
    rows = select_rows(table_of(3000, seed=77), DEPRESSION, model.features, use_baseline=False, used_as="asked").rows
    return model.head.family_margins(model.preprocessor.transform(rows.X[rows.target == 0]))


def test_draws_have_the_groups_moments(model):
    background = model.background(0)
    drawn = background.draw(4096)
    assert drawn.mean(axis=1) == pytest.approx(background.means, abs=1e-9)
    assert drawn.std(axis=1) == pytest.approx(background.sds, rel=0.02)
    found = np.corrcoef(drawn[0, :, :, 0].T)
    assert found == pytest.approx(np.array(background.correlation), abs=0.05)


def test_draws_are_the_same_every_time(model):
    assert model.background(0).draw().tobytes() == model.background(0).draw().tobytes()


def test_the_group_is_as_new_people_like_it_and_not_as_those_learned_from(model, fresh):
    """A head finds the healthy it learned from healthier than others; the group's mean is that of others."""
    rows = select_rows(table_of(300), DEPRESSION, model.features, use_baseline=False, used_as="asked").rows
    heard = model.head.family_margins(model.preprocessor.transform(rows.X[rows.target == 0]))
    truth = fresh.sum(axis=1).mean()
    ours = model.background(0).means[0].sum()
    assert abs(ours - truth) < 0.5 * abs(heard.sum(axis=1).mean() - truth)


def test_families_spread_and_move_together_as_in_new_people(model, fresh):
    background = model.background(0)
    assert background.sds[0, :, 0] == pytest.approx(fresh.std(axis=0), rel=0.25)
    assert np.array(background.correlation) == pytest.approx(np.corrcoef(fresh.T), abs=0.25)


def test_nothing_in_it_is_a_persons_value(model):
    rows = select_rows(table_of(300), DEPRESSION, model.features, use_baseline=False, used_as="asked").rows
    Z = model.preprocessor.transform(rows.X)
    values = {*Z.ravel().tolist(), *model.head.family_margins(Z).ravel().tolist(), *model.head.feature_margins(Z).ravel().tolist()}
    said = np.concatenate([np.ravel(part) for one in model.backgrounds.groups for part in one.to_dict().values()])
    assert not values & set(said.tolist())


def test_its_size_does_not_grow_with_people():
    sizes = []
    for n in (100, 400):
        model = train(table_of(n), DEPRESSION, TrainingOptions(refits=3)).model
        sizes.append(len(str(model.backgrounds.groups[0].to_dict())))
    assert sizes[1] < 1.1 * sizes[0]


def test_it_goes_to_a_bundle_and_back_bit_for_bit(model):
    back = Backgrounds.from_dict(model.backgrounds.to_dict())
    assert back == model.backgrounds
    assert back.groups[0].draw().tobytes() == model.background(0).draw().tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"correlation": ((1.0,),)},
        {"mean": ((0.0,),)},
        {"sd": tuple((-1.0,) for _ in range(5))},
        {"features": ((0.0,),)},
        {"refit_sd": ()},
        {"mean": ((float("nan"),),) * 5},
        {"correlation": ((0.0,) * 5,) * 5},
        {"correlation": tuple(tuple(1.0 if i == j else 2.0 for j in range(5)) for i in range(5))},
        {"correlation": tuple(tuple(1.0 if i == j else 0.5 * (i < j) for j in range(5)) for i in range(5))},
    ],
    ids=["correlation", "mean", "negative", "features", "refits", "nan", "no diagonal", "beyond 1", "one way"],
)
def test_parts_that_do_not_fit_are_refused(model, change):
    with pytest.raises(BundleSchemaError):
        Background.from_dict(model.backgrounds.groups[0].to_dict() | change)


def test_a_cohort_without_a_group_is_compared_with_its_average_recording():
    table = table_of(36)
    model = train(table, DEPRESSION, TrainingOptions(refits=3, split=3)).model
    assert not model.reference.groups or min(group.subjects for group in model.reference.groups) >= 20
    average = model.background(None)
    assert not average.means.any()
    assert not average.draw().any()


def test_people_who_were_never_tested_are_in_no_group():
    """An official split whose women are all trained on: a group of them would be heard by models that learned from them, or not at all."""
    table = table_of(160)
    women = (table.frame["sex"] == "female").to_numpy()
    order = np.cumsum(~women) % 2
    table.frame["split"] = np.where(women, "train", np.where(order == 0, "dev", "test"))
    model = train(table, DEPRESSION, TrainingOptions(refits=3, split="split")).model
    assert all(group.shared.sex == "male" for group in model.reference.groups)
    well = (table.frame["label"] == "not_depressed").to_numpy() & ~women
    assert model.reference.groups[0].subjects == well.sum()
    assert model.background(0).sds[0].min() > 0


def test_means_are_too_coarse_to_tell_one_person(model):
    """A step of a mean is at least two people's worth of SD over n."""
    background, people = model.backgrounds.groups[0], model.reference.groups[0].subjects
    steps = np.array(background.z_mean) / (2 / people)
    coarse = np.abs(steps[np.abs(steps) > 1e-9]).min()
    assert coarse > 0.45
