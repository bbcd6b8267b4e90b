"""Late fusion: the fused margin is the sum of its parts', family by family, and the interpretable part is the model without the embedding."""

import numpy as np
import pytest
from scipy.special import expit

from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.fused_head import FusedHead
from clinical_ser.models.heads import log_loss_total
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.training import TrainingOptions

FAMILIES = ["pitch"] * 3 + ["timing"] * 2 + ["embedding"] * 60
BLOCKS = [""] * 5 + ["embedding.one"] * 40 + ["embedding.two"] * 20


def made(n: int = 300, classes: int = 2, seed: int = 0):
    """Rows in which two named features and one direction of the first embedding tell the class."""
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, len(FAMILIES)))
    direction = rng.normal(size=40) / np.sqrt(40)
    signal = 1.2 * Z[:, 0] - Z[:, 3] + 1.5 * Z[:, 5:45] @ direction
    if classes == 2:
        return Z, np.where(rng.uniform(size=n) < expit(signal - 1), "yes", "no")
    return Z, np.array(["a", "b", "c"])[np.digitize(signal + 0.5 * rng.normal(size=n), [-0.7, 0.7])]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("interpretable", [LinearHead, BoostedHead])
def test_margins_are_an_intercept_plus_a_sum_over_families_and_over_features(classes, interpretable):
    Z, y = made(classes=classes)
    head = FusedHead(FAMILIES, blocks=BLOCKS, interpretable=interpretable).fit(Z, y)
    families = head.family_margins(Z[:50])
    np.testing.assert_allclose(head.intercept_ + families.sum(axis=1), head.margins(Z[:50]), atol=1e-9)
    features = head.feature_margins(Z[:50])
    columns = [np.flatnonzero(np.array(FAMILIES) == family) for family in head.families_]
    np.testing.assert_allclose(np.stack([features[:, c].sum(axis=1) for c in columns], axis=1), families, atol=2e-5)


def test_the_interpretable_part_is_the_head_that_is_fitted_without_embeddings():
    Z, y = made()
    head = FusedHead(FAMILIES, blocks=BLOCKS).fit(Z, y)
    alone = LinearHead(FAMILIES[:5]).fit(np.ascontiguousarray(Z[:, :5]), y)
    np.testing.assert_array_equal(head.parts[0].coef_, alone.coef_)
    np.testing.assert_allclose(head.family_margins(Z)[:, :2], alone.family_margins(Z[:, :5]), atol=1e-12)


def test_the_prior_is_counted_once_however_many_parts_there_are():
    rng = np.random.default_rng(1)
    Z, y = rng.normal(size=(400, len(FAMILIES))), np.where(np.arange(400) % 10 == 0, "yes", "no")
    head = FusedHead(FAMILIES, ["no", "yes"], blocks=BLOCKS).fit(Z, y)
    assert head.intercept_ == pytest.approx(np.log(0.1 / 0.9), abs=0.3)
    balanced = FusedHead(FAMILIES, ["no", "yes"], blocks=BLOCKS, balanced=True).fit(Z, y)
    assert balanced.intercept_ == pytest.approx(np.log(0.1 / 0.9), abs=0.6)


def test_each_block_chooses_its_own_strength():
    Z, y = made(500)
    head = FusedHead(FAMILIES, blocks=BLOCKS).fit(Z, y)
    named, first, second = (part.strength_ for part in head.parts)
    assert named < first
    assert second == max(named, first, second), "an embedding that says nothing is held back most"


def test_learned_weights_are_not_negative_and_leave_out_what_says_nothing():
    Z, y = made(600, seed=3)
    rng = np.random.default_rng(0)
    Z[:, 45:] = rng.normal(size=(600, 20))
    stacked = FusedHead(FAMILIES, blocks=BLOCKS, weighted=True).fit(Z, y)
    assert (stacked.weights_ >= 0).all()
    assert stacked.weights_[0] > 0.5
    new, truth = made(2000, seed=3)
    target = (truth == "yes").astype(int)
    late = FusedHead(FAMILIES, blocks=BLOCKS).fit(Z, y)
    ours, theirs = (log_loss_total(head.margins(new), target, np.ones(2000)) for head in (stacked, late))
    assert ours < 1.1 * theirs


def test_a_settled_head_refits_with_the_same_strengths_and_weights():
    Z, y = made()
    head = FusedHead(FAMILIES, blocks=BLOCKS, weighted=True, interpretable=BoostedHead).fit(Z, y)
    again = head.settled().fit(Z[:200], y[:200])
    assert again.parts[0].rounds_ == head.parts[0].rounds_
    assert [part.strength_ for part in again.parts[1:]] == [part.strength_ for part in head.parts[1:]]
    np.testing.assert_array_equal(again.weights_, head.weights_)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("interpretable", [LinearHead, BoostedHead])
def test_a_head_comes_back_from_its_file_bit_for_bit(classes, interpretable):
    Z, y = made(classes=classes)
    head = FusedHead(FAMILIES, blocks=BLOCKS, interpretable=interpretable).fit(Z, y)
    again = FusedHead.from_dict(head.to_dict())
    np.testing.assert_array_equal(again.margins(Z), head.margins(Z))
    np.testing.assert_array_equal(again.feature_margins(Z), head.feature_margins(Z))
    assert again.has_trees is (interpretable is BoostedHead)
    assert again.to_dict() == head.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["parts"].pop(),
        lambda state: state["parts"].reverse(),
        lambda state: state["column_blocks"].append(""),
        lambda state: state["parts"][0].update(trees="AAAA"),
        lambda state: state["parts"][0].update(linear=None),
        lambda state: state["parts"][0].update(linear=None, trees="not base64!"),
        lambda state: state["parts"][0].update(weight=-1.0),
        lambda state: state["column_families"].__setitem__(0, "loudness"),
        lambda state: state.update(intercept=[0.0, 0.0]),
        lambda state: state["parts"][0]["linear"].update(classes=["no", "maybe"]),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change):
    Z, y = made()
    state = FusedHead(FAMILIES, blocks=BLOCKS).fit(Z, y).to_dict()
    for name in ("column_blocks", "column_families", "parts"):
        state[name] = list(state[name])
    change(state)
    with pytest.raises(BundleSchemaError):
        FusedHead.from_dict(state)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(InvalidValueError, match="concatenated"):
        TrainingOptions(fusion="early")
