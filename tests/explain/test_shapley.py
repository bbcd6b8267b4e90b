"""Shapley values against the definition: every order in which players can come, one by one."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from clinical_ser.explain.shapley import MOST_PLAYERS, centred, coalitions, probability_values, shapley_matrix, sums_of_others


def by_orders(players, value):
    """The mean, over all orders, of what a player changes on arrival."""
    found = np.zeros(players)
    orders = list(permutations(range(players)))
    for order in orders:
        here = frozenset()
        for player in order:
            found[player] += value(here | {player}) - value(here)
            here |= {player}
    return found / len(orders)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_the_matrix_gives_what_all_orders_give(players, seed):
    values = np.random.default_rng(seed).normal(size=2**players)
    table = {frozenset(np.flatnonzero(row).tolist()): value for row, value in zip(coalitions(players), values, strict=True)}
    assert shapley_matrix(players) @ values == pytest.approx(by_orders(players, table.__getitem__), abs=1e-12)


@pytest.mark.parametrize("players", [1, 2, 6, MOST_PLAYERS])
def test_values_add_up_and_a_player_who_changes_nothing_gets_nothing(players):
    members = coalitions(players)
    value = np.sin(members[:, :-1].sum(axis=1)) if players > 1 else np.zeros(2)
    shares = shapley_matrix(players) @ value
    assert shares.sum() == pytest.approx(value[-1] - value[0], abs=1e-9)
    assert shares[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("players", [0, MOST_PLAYERS + 1])
def test_too_many_players_are_refused(players):
    with pytest.raises(ValueError, match="players"):
        coalitions(players)


@pytest.mark.parametrize("classes", [1, 4])
def test_the_probability_of_every_coalition_is_that_of_a_brute_force_mixture(classes):
    """For each coalition: give each member of the group this recording's families of it, ask the model, take the mean."""
    rng = np.random.default_rng(1)
    constant, own, group = rng.normal(size=(1, classes)), rng.normal(size=(1, 3, classes)), rng.normal(size=(1, 50, 3, classes))
    found = probability_values(constant, own, sums_of_others(group), 2)[0]
    for here, value in zip(coalitions(3), found, strict=True):
        asked = [constant[0] + np.where(here[:, None], own[0], member).sum(axis=0) for member in group[0]]
        answers = [expit(logits[0]) if classes == 1 else softmax(logits)[2] for logits in asked]
        assert value == pytest.approx(np.mean(answers), abs=1e-12)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize(("group_size", "own_size"), [(1, 1), (400, 1), (1, 400), (400, 400)])
def test_margins_of_any_size_give_the_probability_that_their_sums_give(classes, group_size, own_size):
    """exp(1000) leaves float64, and so may a product of exponentials whose sum of exponents does not."""
    rng = np.random.default_rng(2)
    constant, own, group = (
        rng.normal(size=(1, classes)),
        own_size * rng.normal(size=(1, 4, classes)),
        group_size * rng.normal(size=(1, 40, 4, classes)),
    )
    others = sums_of_others(group)
    assert others.as_factors == (group_size == 1)
    found = probability_values(constant, own, others, classes - 1)[0]
    for here, value in zip(coalitions(4), found, strict=True):
        logits = constant[0] + np.where(here[None, :, None], own[0], group[0]).sum(axis=1)
        answers = expit(logits[:, 0]) if classes == 1 else softmax(logits, axis=1)[:, -1]
        assert value == pytest.approx(answers.mean(), rel=1e-11, abs=1e-290)


def test_some_versions_of_a_group_are_asked_as_all_are():
    rng = np.random.default_rng(3)
    constant, own, group = rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 20, 2, 2))
    others = sums_of_others(group)
    every = probability_values(constant, own, others, 1)
    assert probability_values(constant[:2], own[:2], others[:2], 1) == pytest.approx(every[:2])
    assert probability_values(constant[:0], own[:0], others[:0], 1).shape == (0, 4)


def test_what_softmax_cannot_see_is_not_explained():
    logits = np.array([[1.0, 2.0, 3.0]])
    assert centred(logits, 1) == pytest.approx(centred(logits + 7.0, 1))
    assert centred(np.array([[5.0]]), 0) == pytest.approx([5.0])
