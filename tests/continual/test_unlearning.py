"""A person's part of the sums is taken out exactly, also after updates that forgot some of it."""

from dataclasses import replace

import numpy as np
import pytest

from clinical_ser.continual.linear import Loss, Rows
from clinical_ser.continual.memory import memory_of
from clinical_ser.continual.posterior import Posterior
from clinical_ser.continual.self_training import update_with_unlabelled
from clinical_ser.continual.unlearning import Contributions, Since, forget, model_of
from clinical_ser.continual.updating import UpdateOptions, update
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.training import TrainingOptions, train
from tests.continual.made import DEPRESSION, people, rows_of


@pytest.fixture(scope="module")
def champion():
    table = people(150, 1, prefix="old", rows_each=2)
    model = train(table, DEPRESSION, TrainingOptions(refits=4)).model
    rows = rows_of(model, table)
    memory = memory_of(model, rows)
    tags = [f"{subject[-4:]:0>64}" for subject in rows.subjects]
    return model, memory, rows, Contributions.of(model, memory, rows, tags), tags


def test_contributions_go_to_bytes_and_back_and_add_up_to_the_memory(champion):
    _, memory, _, kept, _ = champion
    again = Contributions.from_bytes(kept.to_bytes())
    assert again.tags == kept.tags
    _, _, hessian = Loss(Rows(again.Z, again.target, again.weight), 2)(memory.heads[0].mode)
    assert np.allclose(hessian, memory.heads[0].precision)
    raw = kept.to_bytes()
    for broken in (b"", raw[:100], raw[: len(raw) // 2]):
        with pytest.raises(TrainingError, match="damaged"):
            Contributions.from_bytes(broken)


def test_taking_a_person_out_leaves_the_sums_of_the_others(champion):
    model, memory, rows, kept, tags = champion
    tag = tags[10]
    left = forget(memory, model, kept.of_people({tag}), ())
    others = np.array([each != tag for each in tags])
    Z = model.preprocessor.transform(rows.X)[others]
    _, gradient, hessian = Loss(Rows(Z, rows.target[others], np.ones(others.sum())), 2)(memory.heads[0].mode)
    expected = Posterior(hessian, hessian @ memory.heads[0].mode - gradient, memory.heads[0].ridge)
    assert np.allclose(left.heads[0].precision, expected.precision)
    assert np.allclose(left.heads[0].information, expected.information, atol=1e-6)
    assert left.people.sum() == pytest.approx(memory.people.sum() - 1)
    assert left.scores.mass.sum() == pytest.approx(memory.scores.mass.sum() - 1)
    # Nearer to the model that never heard them than the one that did.
    never = model.head.settled().fit(Z, np.array(model.task.classes)[rows.target[others]])
    freed, _ = model_of(model, left)
    assert np.abs(freed.head.coef_ - never.coef_).max() < 0.2 * np.abs(model.head.coef_ - never.coef_).max()


def test_people_taken_out_together_or_one_after_the_other_leave_the_same(champion):
    _, memory, _, kept, tags = champion
    model = champion[0]
    together = forget(memory, model, kept.of_people({tags[2], tags[8]}), ())
    first = forget(memory, model, kept.of_people({tags[2]}), ())
    freed, moved = model_of(model, first)
    second = forget(moved, model, kept.of_people({tags[8]}), (Since(1.0, freed, heads_learned=True),))
    assert np.allclose(together.heads[0].mode, second.heads[0].mode, atol=1e-9)
    assert np.allclose(together.calibrator.mode, second.calibrator.mode, atol=1e-9)
    assert together.people.sum() == pytest.approx(second.people.sum())


def test_after_an_update_that_forgot_half_half_of_the_person_is_taken_out(champion):
    model, memory, _, kept, tags = champion
    gone = kept.of_people({tags[4]})
    new = people(60, 2)
    done = update(model, memory, new, UpdateOptions(forgetting=0.5))
    since = (Since(0.5, done.training.model, heads_learned=True),)
    left = forget(done.memory, model, gone, since)
    _, gradient, hessian = Loss(Rows(gone.Z, gone.target, gone.weight), 2)(memory.heads[0].mode)
    assert np.allclose(done.memory.heads[0].precision - left.heads[0].precision, 0.5 * hessian)
    assert np.allclose(done.memory.heads[0].information - left.heads[0].information, 0.5 * (hessian @ memory.heads[0].mode - gradient), atol=1e-6)
    freed, _ = model_of(done.training.model, left)
    assert freed.operating_point is not None
    assert len(freed.refits) == len(model.refits)
    freed.check_fit()


def test_two_published_models_do_not_give_the_person_away_to_whoever_knows_the_seed(champion):
    """Refits drawn from a public seed would give the memory, and with it the row of whoever was taken out."""
    model, memory, _, kept, tags = champion
    left = forget(memory, model, kept.of_people({tags[3]}), ())
    one, _ = model_of(model, left, secret=b"a")
    two, _ = model_of(model, left, secret=b"b")
    again, _ = model_of(model, left, secret=b"a")
    assert np.array_equal(one.refits[0].head.coef_, again.refits[0].head.coef_)
    assert not np.allclose(one.refits[0].head.coef_, two.refits[0].head.coef_)
    assert np.array_equal(one.head.coef_, two.head.coef_)


def test_a_calibration_that_was_all_but_flat_can_be_freed_too(champion):
    model, memory, _, kept, tags = champion
    flat = replace(memory.calibrator, information=memory.calibrator.whole @ np.array([-0.99, 0.0]))
    freed, _ = model_of(model, replace(forget(memory, model, kept.of_people({tags[3]}), ()), calibrator=flat))
    assert min(refit.calibrator.scale_ for refit in freed.refits) > 0
    freed.to_files()


def test_whoever_was_never_in_it_cannot_be_taken_out(champion):
    _, memory, _, kept, tags = champion
    gone = kept.of_people({tags[0]})
    strange = replace(gone, Z=np.full_like(gone.Z, 0.1), weight=1e6 * gone.weight)
    with pytest.raises(TrainingError, match="never in it"):
        forget(memory, champion[0], strange, ())
    assert kept.of_people({"f" * 64}) is None
    assert tags[0] not in kept.without({tags[0]}).tags


def test_recordings_without_labels_are_kept_only_where_they_are_seen_to_help(champion):
    model, memory, *_ = champion
    new, silent = people(60, 3), people(200, 4, prefix="silent")
    silent = replace(silent, frame=silent.frame.drop(columns="label"))
    done, intake = update_with_unlabelled(model, memory, new, silent, 0.5)
    assert intake.offered == 200
    assert intake.used == (intake.gain.low > 0)
    plain = update(model, memory, new)
    assert intake.used or done.memory.to_bytes() == plain.memory.to_bytes()
    same = replace(new, frame=new.frame.drop(columns="label"))
    with pytest.raises(TrainingError, match="No recording without a label"):
        update_with_unlabelled(model, memory, new, same, 0.5)
    for weight in (0.0, 1.5, float("nan")):
        with pytest.raises(InvalidValueError):
            update_with_unlabelled(model, memory, new, silent, weight)
