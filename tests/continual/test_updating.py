"""Updates from new people and a memory: as if all data were there, honest out of fold, and told apart from what does not fit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from clinical_ser.cohorts.tasks import get_task
from clinical_ser.continual.memory import Memory, memory_of
from clinical_ser.continual.updating import UpdateOptions, update
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.binned import Binned
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import TrainingOptions, train
from tests.continual.made import DEPRESSION, people, rows_of, thinned


@pytest.fixture(scope="module")
def champion():
    table = people(240, 1, prefix="old")
    model = train(table, DEPRESSION, TrainingOptions(refits=12)).model
    return model, memory_of(model, rows_of(model, table)), table


def test_a_memory_goes_to_bytes_and_back_and_gives_the_models_own_coefficients(champion):
    model, memory, _ = champion
    again = Memory.from_bytes(memory.to_bytes())
    assert again.to_bytes() == memory.to_bytes()
    assert np.allclose(again.heads[0].mode, np.append(model.head.coef_, model.head.intercept_), atol=1e-9)
    assert np.allclose(again.calibrator.mode, [model.calibrator.scale_ - 1, model.calibrator.offset_], atol=1e-9)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"schema":"other"}\n'], ids=["empty", "no fields", "list", "not text", "other"])
def test_what_is_no_memory_is_refused_in_words(raw):
    with pytest.raises(TrainingError, match="memory"):
        Memory.from_bytes(raw)


def test_a_damaged_memory_is_refused(champion):
    raw = champion[1].to_bytes()
    for broken in (raw[: len(raw) // 2], raw.replace(b'"precision":"', b'"precision":"AAAA', 1), raw.replace(b'"people":[', b'"people":[-', 1)):
        with pytest.raises(TrainingError):
            Memory.from_bytes(broken)


def test_an_update_gives_what_training_on_old_and_new_people_gives(champion):
    model, memory, table = champion
    new = people(200, 2)
    updated = update(model, memory, new).training.model
    both = replace(table, frame=pd.concat([table.frame, new.frame], ignore_index=True).assign(row=range(1, 441)))
    rows = rows_of(model, both)
    Z, labels = model.preprocessor.transform(rows.X), np.array(model.task.classes)[rows.target]
    at_once = model.head.settled().fit(Z, labels)
    alone = model.head.settled().fit(model.preprocessor.transform(rows_of(model, new).X), labels[240:])
    distance, of_new_alone = (np.abs(head.coef_ - at_once.coef_).max() for head in (updated.head, alone))
    assert distance < 0.05
    assert distance < of_new_alone / 5


def test_the_same_people_give_the_same_bytes_and_a_bundle_that_screens(champion, tmp_path):
    model, memory, _ = champion
    new = people(60, 3)
    secret = UpdateOptions(secret=b"here alone")
    first, second = update(model, memory, new, secret), update(model, memory, new, secret)
    assert update(model, memory, new).training.model.to_files() != first.training.model.to_files()
    assert first.training.model.to_files() == second.training.model.to_files()
    assert first.memory.to_bytes() == second.memory.to_bytes()
    card, _ = card_of(first.training, new, name="child", version="2", options=EvaluationOptions(replicates=20))
    save(first.training, tmp_path / "b", name="child", version="2", statement=card.statement, card=card.to_json(), software={"numpy": "0"}, key=None)
    read = TrainedModel.from_bundle(read_bundle(tmp_path / "b"))
    x = rows_of(model, new).X[0]
    assert read.answer(x).probabilities.tolist() == first.training.model.answer(x).probabilities.tolist()
    assert any("Updated without its old data" in warning for warning in card.warnings)


def test_a_fold_is_judged_by_a_head_that_heard_nobody_of_it(champion):
    """One person sounds otherwise: heads of other folds hear it, the one that judges the person's own fold does not."""
    model, memory, _ = champion
    new = people(80, 4)
    features = new.frame[list(model.features)].to_numpy(copy=True)
    features[7] += 3.0
    other = replace(new, frame=new.frame.assign(**dict(zip(model.features, features.T, strict=True))))
    one, two = update(model, memory, new), update(model, memory, other)
    fold = one.training.out_of_fold["fold"].to_numpy()
    assert np.array_equal(fold, two.training.out_of_fold["fold"])
    same = (fold == fold[7]) & (np.arange(80) != 7)
    moved = np.abs(one.answers.margins - two.answers.margins)
    assert moved[same].max() == 0
    assert moved[fold != fold[7]].min() > 0


def test_new_prevalence_and_threshold_come_in_by_counting(champion):
    model, memory, _ = champion
    rare = thinned(people(300, 5), "depressed", 0.2)
    kept, forgotten = (update(model, memory, rare, UpdateOptions(forgetting=f)).training.model for f in (1.0, 0.1))
    assert model.class_shares[1] > kept.class_shares[1] > forgotten.class_shares[1]
    x = np.median(rows_of(model, rare).X, axis=0)
    assert forgotten.log_odds(x[None])[0] < kept.log_odds(x[None])[0] < model.log_odds(x[None])[0]


def test_recordings_of_one_person_are_not_people_in_the_doubt_that_is_drawn():
    spreads = []
    for each in (1, 6):
        table = people(120, 31, prefix="old", rows_each=each)
        model = train(table, DEPRESSION, TrainingOptions(refits=2)).model
        known = memory_of(model, rows_of(model, table)).heads[0]
        spreads.append(np.trace(known.scatter) / np.trace(known.precision))
    assert spreads[1] > 2.5 * spreads[0]


def test_many_small_moves_of_counted_scores_are_one_large_one():
    rng = np.random.default_rng(0)
    counted = Binned.of(rng.normal(size=4000), rng.integers(0, 2, 4000), np.arange(4000).astype(str), 2)
    middle = (np.arange(200) + 0.5) / 200
    once, often = counted.moved(1.0, 0.36), counted
    for _ in range(40):
        often = often.moved(1.0, 0.009)
    assert often.mass.sum() == pytest.approx(counted.mass.sum())
    assert np.allclose(often.mass @ middle, once.mass @ middle, rtol=2e-3)


def test_intervals_keep_the_doubt_of_the_old_people(champion):
    model, memory, _ = champion
    few = people(30, 6)
    x = rows_of(model, few).X[:5]

    def width(one):
        low, high = one.probabilities_of(x, "depressed")[:, 1:].T
        return float(np.mean(np.log(high / (1 - high)) - np.log(low / (1 - low))))

    updated = update(model, memory, few).training.model
    assert 0.6 * width(model) < width(updated) < 1.5 * width(model)


def test_a_memory_is_made_of_the_rows_that_the_model_learned_from_alone(champion):
    model, _, table = champion
    rows = rows_of(model, table)
    with pytest.raises(TrainingError, match="not the rows"):
        memory_of(model, replace(rows, X=rows.X * 1.2))


def test_what_does_not_fit_is_refused_by_name(champion):
    model, memory, _ = champion
    new = people(60, 7)
    with pytest.raises(TrainingError, match="Each class needs at least"):
        update(model, memory, people(6, 8))
    with pytest.raises(TrainingError, match="other code"):
        update(model, memory, replace(new, extractors=dict.fromkeys(new.extractors, "another/1")))
    with pytest.raises(TrainingError, match="features that are missing"):
        update(model, memory, replace(new, frame=new.frame.drop(columns=[model.features[0]]), feature_names=new.feature_names[1:]))
    with pytest.raises(TrainingError, match="another model"):
        update(model, replace(memory, features=memory.features[::-1]), new)
    trees = train(people(60, 9), DEPRESSION, TrainingOptions(head="xgboost", refits=2)).model
    with pytest.raises(TrainingError, match="train it again"):
        update(trees, memory, new)
    for options in ({"forgetting": 0.0}, {"folds": 1}, {"seed": -1}):
        with pytest.raises(InvalidValueError):
            UpdateOptions(**options)


def test_several_classes_are_updated_as_if_all_people_were_there():
    def made(count, seed, prefix):
        table = people(count, seed, prefix=prefix)
        X = table.frame[list(table.feature_names)[:3]].to_numpy()
        noisy = X + np.random.default_rng(seed).gumbel(size=X.shape)
        return replace(table, frame=table.frame.assign(label=np.array(["angry", "calm", "sad"])[noisy.argmax(axis=1)]))

    old, new = made(240, 41, "old"), made(150, 42, "new")
    task = get_task("emotion")
    model = train(old, task, TrainingOptions(refits=3)).model
    updated = update(model, memory_of(model, rows_of(model, old)), new)
    both = replace(old, frame=pd.concat([old.frame, new.frame], ignore_index=True).assign(row=range(1, 391)))
    rows = rows_of(model, both)
    at_once = type(model.head)(model.head.column_families, model.task.classes, strength=model.head.strength_, balanced=True)
    at_once.fit(model.preprocessor.transform(rows.X), np.array(model.task.classes)[rows.target])
    Z = model.preprocessor.transform(rows_of(model, new).X)
    heads = (updated.training.model.head, at_once, model.head)
    ours, theirs, before = (head.margins(Z) - head.margins(Z).mean(axis=1, keepdims=True) for head in heads)
    assert np.abs(ours - theirs).max() < np.abs(before - theirs).max() / 3
    updated.training.model.check_fit()
    assert set(updated.training.out_of_fold["status"]) <= {"classified", "indeterminate"}
