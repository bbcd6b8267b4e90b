"""Heads: the right minimum, strength chosen by people held out, margins that are exactly a sum over families, files that lose nothing."""

import json

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from clinical_ser.errors import BundleSchemaError, InvalidValueError, TrainingError
from clinical_ser.models import boosted_head
from clinical_ser.models.boosted_head import GRID, STATE_ATTRIBUTE, BoostedHead
from clinical_ser.models.heads import INNER_FOLDS, TrainingRows, encode_labels, inner_folds, with_margins
from clinical_ser.models.linear_head import DEFAULT_STRENGTH, STRENGTHS, LinearHead

FAMILIES = ["pitch", "timing", "pitch", "loudness", "timing", "pitch"]


def cohort(n=240, classes=2, seed=0, width=6):
    """Return Z and class numbers drawn from a multinomial logistic law."""
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, width))
    logits = Z @ rng.normal(size=(width, classes))
    return Z, np.array([rng.choice(classes, p=p) for p in softmax(logits, axis=1)])


def same_subject_signature(subjects=30, recordings=10, width=20):
    """Return Z that names the subject but not the class, the classes, the subjects."""
    rng = np.random.default_rng(5)
    subject = np.repeat(np.arange(subjects), recordings)
    Z = rng.normal(size=(subjects, width))[subject] + 0.1 * rng.normal(size=(len(subject), width))
    return Z, (np.arange(subjects) % 2)[subject], subject


def make(kind, families, **options):
    fixed = {"linear": {"strength": 3.0}, "xgboost": {"rounds": 25}}[kind]
    return {"linear": LinearHead, "xgboost": BoostedHead}[kind](families, **(fixed | options))


both = pytest.mark.parametrize("kind", ["linear", "xgboost"])
binary_and_several = pytest.mark.parametrize("classes", [2, 4])


class TestLinear:
    @binary_and_several
    @pytest.mark.parametrize("strength", [0.5, 50.0])
    def test_equals_scikit_learn_at_its_tightest(self, classes, strength):
        Z, y = cohort(classes=classes)
        weight = np.random.default_rng(1).uniform(0.2, 3.0, len(y))
        head = LinearHead(FAMILIES, strength=strength).fit(Z, y, sample_weight=weight)
        oracle = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-12, max_iter=500)
        oracle.fit(Z, y, sample_weight=weight / weight.mean())
        expected = oracle.decision_function(Z)
        if classes > 2:
            expected = expected - expected.mean(axis=1, keepdims=True)  # what softmax cannot see
        np.testing.assert_allclose(head.margins(Z), expected, atol=1e-6)

    def test_stands_where_the_documented_objective_is_flat(self):
        Z, y = cohort(classes=3)
        head = LinearHead(FAMILIES, strength=2.0).fit(Z, y)
        residual = head.predict_proba(Z) - np.eye(3)[y]
        np.testing.assert_allclose(Z.T @ residual + 2.0 * head.coef_, 0, atol=1e-6)
        np.testing.assert_allclose(residual.sum(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(head.coef_.sum(axis=1), 0, atol=1e-12)
        assert abs(head.intercept_.sum()) < 1e-12

    def test_more_features_than_recordings_settle(self):
        Z, y = cohort(n=40, width=200)
        head = LinearHead(["embedding"] * 200, strength=1.0).fit(Z, y)
        gradient = Z.T @ (head.predict_proba(Z)[:, 1] - y) + head.coef_
        assert np.abs(gradient).max() < 1e-6

    def test_strength_is_chosen_by_subjects_held_out(self):
        Z, y, subject = same_subject_signature()
        families = ["embedding"] * Z.shape[1]
        shared = LinearHead(families).fit(Z, y)
        apart = LinearHead(families).fit(Z, y, groups=subject)
        # Nothing carries over to a new person; a person on both sides would have been recognised.
        assert apart.strength_ >= 100 * shared.strength_
        assert apart.strength_ in STRENGTHS

    def test_a_weak_ridge_is_chosen_where_the_signal_is_strong(self):
        Z, y = cohort(n=600)
        assert LinearHead(FAMILIES).fit(Z, y, groups=np.repeat(np.arange(200), 3)).strength_ <= 10

    def test_two_subjects_take_the_default_strength(self):
        Z, y = cohort(n=20)
        assert LinearHead(FAMILIES).fit(Z, y, groups=y).strength_ == DEFAULT_STRENGTH


class TestBoosted:
    def test_families_never_interact(self):
        rng = np.random.default_rng(2)
        Z = rng.normal(size=(800, 2))
        y = (Z[:, 0] * Z[:, 1] > 0).astype(int)  # only the two together tell
        fresh = rng.normal(size=(800, 2))
        truth = fresh[:, 0] * fresh[:, 1] > 0
        together = BoostedHead(["pitch", "pitch"], rounds=40).fit(Z, y).margins(fresh)
        apart = BoostedHead(["pitch", "timing"], rounds=40).fit(Z, y).margins(fresh)
        assert roc_auc_score(truth, together) > 0.9
        assert roc_auc_score(truth, apart) < 0.6

    @binary_and_several
    def test_margins_are_xgboost_s_own(self, classes):
        Z, y = cohort(classes=classes)
        head = BoostedHead(FAMILIES, rounds=30).fit(Z, y)
        fresh = cohort(seed=9)[0]
        own = head.booster_.predict(xgboost.DMatrix(np.round(fresh / GRID) * GRID), output_margin=True)
        np.testing.assert_allclose(head.margins(fresh), own, atol=1e-5)

    @binary_and_several
    def test_family_margins_average_0_over_training(self, classes):
        Z, y = cohort(classes=classes)
        head = BoostedHead(FAMILIES, rounds=30).fit(Z, y)
        np.testing.assert_allclose(head.family_margins(Z).mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(head.feature_margins(Z).mean(axis=0), 0, atol=1e-6)

    def test_rounds_are_chosen_by_subjects_held_out(self):
        Z, y, subject = same_subject_signature()
        families = ["embedding"] * Z.shape[1]
        assert BoostedHead(families).fit(Z, y, groups=subject).rounds_ < 10 < BoostedHead(families).fit(Z, y).rounds_

    def test_bytes_do_not_depend_on_the_number_of_threads(self, monkeypatch):
        Z, y = cohort(classes=3)
        alone = BoostedHead(FAMILIES, rounds=20).fit(Z, y).to_bytes()
        monkeypatch.setitem(boosted_head.TREE_PARAMETERS, "nthread", 2)
        assert BoostedHead(FAMILIES, rounds=20).fit(Z, y).to_bytes() == alone

    def test_a_handful_of_recordings_gives_the_prior(self):
        Z, y = cohort(n=12)
        head = BoostedHead(FAMILIES).fit(Z, y)
        np.testing.assert_allclose(head.predict_proba(Z)[:, 1], y.mean(), atol=1e-6)

    def test_a_tree_that_mixes_families_is_refused(self):
        Z, y = cohort()
        mixed = BoostedHead(["pitch"] * 6, rounds=10).fit(Z, y)
        state = json.loads(_with_state(mixed).attr(STATE_ATTRIBUTE)) | {"column_families": FAMILIES, "centre": [[0.0]] * 3}
        booster = mixed.booster_.copy()
        booster.set_attr(**{STATE_ATTRIBUTE: json.dumps(state)})
        with pytest.raises(BundleSchemaError, match="mixes the families"):
            BoostedHead.from_bytes(bytes(booster.save_raw("ubj")))

    def test_bytes_of_something_else_are_refused(self):
        Z, y = cohort()
        foreign = xgboost.train({"nthread": 1}, xgboost.DMatrix(Z, label=y), 2)
        good = BoostedHead(FAMILIES, rounds=3).fit(Z, y).to_bytes()
        for raw in (b"", b"{}", b"not a model", good[: len(good) // 2], bytes(foreign.save_raw("ubj"))):
            with pytest.raises(BundleSchemaError):
                BoostedHead.from_bytes(raw)


def _with_state(head):
    booster = xgboost.Booster()
    booster.load_model(bytearray(head.to_bytes()))
    return booster


@both
@binary_and_several
class TestBoth:
    def test_families_and_intercept_sum_to_the_margin(self, kind, classes):
        Z, y = cohort(classes=classes)
        head = make(kind, FAMILIES).fit(Z, y)
        fresh = cohort(seed=7)[0]
        parts = head.family_margins(fresh)
        assert parts.shape[:2] == (len(fresh), 3)
        assert head.families_ == ("pitch", "timing", "loudness")
        np.testing.assert_allclose(head.intercept_ + parts.sum(axis=1), head.margins(fresh), atol=1e-9)

    def test_features_sum_to_their_family(self, kind, classes):
        Z, y = cohort(classes=classes)
        head = make(kind, FAMILIES).fit(Z, y)
        fresh = cohort(seed=7)[0]
        features, families = head.feature_margins(fresh), head.family_margins(fresh)
        for place, family in enumerate(head.families_):
            columns = [i for i, name in enumerate(FAMILIES) if name == family]
            np.testing.assert_allclose(features[:, columns].sum(axis=1), families[:, place], atol=1e-5)

    def test_a_family_s_margin_sees_no_other_family(self, kind, classes):
        Z, y = cohort(classes=classes)
        head = make(kind, FAMILIES).fit(Z, y)
        changed = Z.copy()
        changed[:, [1, 4]] = 3.0
        before, after = head.family_margins(Z), head.family_margins(changed)
        assert (before[:, [0, 2]] == after[:, [0, 2]]).all()
        assert (before[:, 1] != after[:, 1]).any()

    def test_a_round_trip_changes_no_bit(self, kind, classes):
        Z, y = cohort(classes=classes)
        head = make(kind, FAMILIES, classes=[f"c{k}" for k in range(classes)]).fit(Z, [f"c{k}" for k in y])
        if kind == "linear":
            again = LinearHead.from_dict(json.loads(json.dumps(head.to_dict(), allow_nan=False)))
            assert again.to_dict() == head.to_dict()
        else:
            again = BoostedHead.from_bytes(head.to_bytes())
            assert again.to_bytes() == head.to_bytes()
        assert again.classes_ == head.classes_
        for method in ("margins", "family_margins", "feature_margins"):
            assert (getattr(again, method)(Z) == getattr(head, method)(Z)).all()

    def test_the_same_input_gives_the_same_head(self, kind, classes):
        Z, y = cohort(classes=classes)
        first, second = (make(kind, FAMILIES, seed=4).fit(Z, y).margins(Z) for _ in range(2))
        assert (first == second).all()

    def test_a_settled_head_repeats_what_was_chosen(self, kind, classes):
        Z, y = cohort(classes=classes)
        chosen = {"linear": LinearHead, "xgboost": BoostedHead}[kind](FAMILIES).fit(Z, y)
        again = chosen.settled().fit(Z, y)
        assert (again.margins(Z) == chosen.margins(Z)).all()

    def test_the_given_order_of_classes_is_kept(self, kind, classes):
        Z, y = cohort(classes=classes)
        names = ["not_depressed", "depressed", "anxious", "b"][:classes]
        head = make(kind, FAMILIES, classes=names).fit(Z, np.array(names)[y])
        assert head.classes_ == tuple(names)
        assert (head.predict_proba(Z).argmax(axis=1) == y).mean() > 0.6

    def test_balanced_margins_stay_at_the_training_prevalence(self, kind, classes):
        Z, y = cohort(n=1500, classes=classes)
        keep = (y != 0) | (np.arange(len(y)) % 6 == 0)
        shares = np.bincount(y[keep]) / keep.sum()
        head = make(kind, FAMILIES, balanced=True).fit(Z[keep], y[keep])
        np.testing.assert_allclose(head.predict_proba(Z[keep]).mean(axis=0), shares, atol=0.04)

    def test_bad_input_is_named(self, kind, classes):
        Z, y = cohort(classes=classes)
        head = make(kind, FAMILIES)
        with pytest.raises(InvalidValueError, match="impute"):
            head.fit(np.where(Z > 2, np.nan, Z), y)
        with pytest.raises(InvalidValueError, match="shape"):
            head.fit(Z[:, :3], y)
        with pytest.raises(InvalidValueError, match="one label for each"):
            head.fit(Z, y[:-1])
        with pytest.raises(InvalidValueError, match="one subject for each"):
            head.fit(Z, y, groups=[1, 2])
        with pytest.raises(InvalidValueError, match="positive finite"):
            head.fit(Z, y, sample_weight=np.zeros(len(y)))
        with pytest.raises(TrainingError, match="two classes"):
            head.fit(Z, np.ones(len(y)))
        with pytest.raises(TrainingError, match="surprised"):
            make(kind, FAMILIES, classes=[*range(classes), "surprised"]).fit(Z, y)
        with pytest.raises(InvalidValueError, match="for y"):
            make(kind, FAMILIES, classes=[7, 8]).fit(Z, y)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["pitch", "timing", "loudness", "embedding"]), min_size=1, max_size=8), st.integers(2, 4), st.integers(0, 99))
def test_whatever_the_families_their_margins_sum_to_the_margin(families, classes, seed):
    Z, y = cohort(n=60, classes=classes, seed=seed, width=len(families))
    y[:classes] = np.arange(classes)
    for kind in ("linear", "xgboost"):
        head = make(kind, families).fit(Z, y)
        np.testing.assert_allclose(head.intercept_ + head.family_margins(Z).sum(axis=1), head.margins(Z), atol=1e-9)


@both
@binary_and_several
@pytest.mark.parametrize("rows", [1, 7])
def test_heads_asked_together_say_what_each_says_alone(kind, classes, rows):
    heads = [make(kind, FAMILIES).fit(*cohort(classes=classes, seed=seed)) for seed in range(3)]
    Z = cohort(rows, seed=9)[0]
    together = heads[0].together(heads)
    prepared = heads[0].prepare(Z)
    margins, (families, features) = together.margins_of(prepared), together.parts_of(prepared)
    width = 1 if classes == 2 else classes
    assert (margins.shape, families.shape, features.shape) == ((3, rows, width), (3, rows, 3, width), (3, rows, len(FAMILIES), width))
    for version, head in enumerate(heads):
        np.testing.assert_allclose(margins[version].reshape(head.margins(Z).shape), head.margins(Z), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(families[version], with_margins(head.family_margins(Z)), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(features[version], with_margins(head.feature_margins(Z)), rtol=1e-12, atol=1e-13)


def test_inner_folds_keep_subjects_whole_and_every_class_in_training():
    subject = np.repeat(np.arange(12), 5)
    rows = TrainingRows(np.zeros((60, 1)), (subject % 3).astype(np.int64), np.ones(60), subject, 3)
    folds = inner_folds(rows, seed=0)
    assert 2 <= len(folds) <= INNER_FOLDS
    for train, test in folds:
        assert not set(subject[train]) & set(subject[test])
        assert set(rows.target[train]) == {0, 1, 2}


def test_labels_are_encoded_in_the_order_of_the_classes():
    assert encode_labels(np.array(["b", "a", "b"]), ("b", "a")).tolist() == [0, 1, 0]
    with pytest.raises(InvalidValueError, match="'c'"):
        encode_labels(["c"], ("b", "a"))


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "xgboost"},
        {"coefficients": [[1.0]]},
        {"coefficients": [[1.0, 2.0]] * 2},
        {"intercept": [0.0, 0.0]},
        {"strength": 0},
        {"classes": ["a"]},
    ],
)
def test_a_linear_file_that_does_not_fit_is_refused(fault):
    good = {
        "kind": "linear",
        "column_families": ["pitch", "timing"],
        "classes": ["a", "b"],
        "strength": 1.0,
        "intercept": [0.5],
        "coefficients": [[1.0], [2.0]],
    }
    assert LinearHead.from_dict(good).margins([[1.0, 1.0]]).tolist() == [3.5]
    with pytest.raises(BundleSchemaError, match="LinearHeadState"):
        LinearHead.from_dict(good | fault)


def test_more_features_than_rows_have_the_same_minimum():
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(60, 200))
    y = (Z[:, 0] + rng.normal(size=60) > 0).astype(int)
    head = LinearHead(["pitch"] * 200, strength=5.0).fit(Z, y)
    oracle = LogisticRegression(C=1 / 5.0, tol=1e-10, max_iter=10_000).fit(Z, y)
    np.testing.assert_allclose(head.coef_, oracle.coef_[0], atol=1e-5)
    np.testing.assert_allclose(head.intercept_, oracle.intercept_[0], atol=1e-5)
