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
    ],
    ids=["correlation", "mean", "negative", "features", "refits", "nan"],
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
