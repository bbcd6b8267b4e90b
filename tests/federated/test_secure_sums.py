"""Totals over real nodes: the same as over one table, complete or not at all, and nothing else to be read on the way."""

import hashlib
import json

import numpy as np
import pytest
from scipy.stats import chisquare

from clinical_ser.cohorts.table import read_table
from clinical_ser.errors import FederationError, SiteRefusalError
from federated.fixed_point import decode
from federated.identities import Identity
from federated.secure_sums import SecureSums
from federated.site_table import site_rows
from federated.statistics import Ask, PooledSums
from federated.training import train_across
from federated.wire import Message
from tests.federated.sites import make_consortium
from tests.federated.wires import Wires

FEATURES, FOLDS = 6, 3
NAMES = ("ada", "bell", "curie", "darwin", "euler")

MOMENTS = Ask("moments", {"centre": np.zeros(FEATURES)}, {"folds": FOLDS, "squares": True})
PEOPLE = Ask("cohort", {}, {"folds": FOLDS, "groups": json.dumps({"sex": ["female", "male"]}), "checks": "[]"})


@pytest.fixture
def made(tmp_path):
    return make_consortium(tmp_path)


def sums_of(made, wires, **options):
    return made.sums(wires, **options)


def pooled_of(made):
    return PooledSums({name: rows_of(made, name) for name in made.names})


def rows_of(made, name):
    return site_rows(read_table(made.site(name) / "features.parquet"), made.plan, name.encode(), None)


def same(found, expected, *, within=1e-8):
    assert [set(one) for one in found] == [set(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=within, atol=within, err_msg=name)


@pytest.mark.parametrize("sites", [3, 5])
def test_totals_over_hospitals_are_those_of_one_table(tmp_path, sites):
    made = make_consortium(tmp_path, names=NAMES[:sites])
    found = sums_of(made, Wires(made)).total("first", [MOMENTS, PEOPLE])
    same(found, pooled_of(made).total("first", [MOMENTS, PEOPLE]))
    assert found[1]["recordings"].tolist() == pooled_of(made).total("first", [PEOPLE])[0]["recordings"].tolist()


def test_a_whole_model_trained_over_hospitals_is_that_of_one_table(made):
    across = train_across(sums_of(made, Wires(made)), made.plan.settings)
    pooled = train_across(pooled_of(made), made.plan.settings)
    X = np.random.default_rng(0).normal(size=(20, FEATURES))
    np.testing.assert_allclose(across.model.log_odds(X), pooled.model.log_odds(X), atol=1e-6)
    assert across.model.operating_point.threshold == pytest.approx(pooled.model.operating_point.threshold, abs=1e-9)
    assert np.ptp(across.model.log_odds(X)) > 0.1


def test_no_answer_holds_a_person_a_path_or_a_value(made, tmp_path):
    wires = Wires(made)
    sums_of(made, wires).total("first", [MOMENTS, PEOPLE])
    assert len(wires.received) == 6
    bodies = b"".join(body for _, body, _ in wires.received)
    assert str(tmp_path).encode() not in bodies
    for name in made.names:
        rows = rows_of(made, name)
        for word in {*rows.subjects, *rows.frame["recording"]}:
            assert word.encode() not in bodies
        for value in rows.X.ravel():
            assert value.tobytes() not in bodies
        alone = PooledSums({name: rows}).total("first", [MOMENTS, PEOPLE])
        for one in alone:
            for values in one.values():
                for value in values.ravel():
                    if value != 0:
                        assert np.float64(value).tobytes() not in bodies


def test_an_answer_alone_is_noise_and_so_is_every_sum_but_that_of_all(made):
    wires = Wires(made)
    heads = 11
    arrays = {"beta": np.zeros((heads, FEATURES + 1)), "left_out": np.full(heads, -1.0), "draw": np.full(heads, -1.0)}
    arrays |= {"mean": np.zeros((FOLDS + 1, FEATURES)), "scale": np.ones((FOLDS + 1, FEATURES))}
    histogram = Ask(
        "scores", {name: arrays[name] for name in ("mean", "scale")} | {"beta": np.zeros((FOLDS, FEATURES + 1)), "theta": np.ones((FOLDS, 2))}
    )
    sums_of(made, wires).total("first", [Ask("newton", arrays), histogram])
    words = [Message.from_bytes(body).arrays["words"] for _, body, _ in wires.received[3:]]
    for some in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        rest = np.sum([words[place] for place in some], axis=0, dtype=np.uint64)
        assert chisquare(np.bincount(rest.view(np.uint8), minlength=256)).pvalue > 1e-6
    known = decode(np.sum(words, axis=0, dtype=np.uint64), wide=False)
    assert np.abs(known).max() < 1e6


def test_the_same_question_gets_other_noise_at_every_step(made):
    wires = Wires(made)
    sums = sums_of(made, wires)
    first, second = sums.total("first", [PEOPLE]), sums.total("second", [PEOPLE])
    same(first, second, within=0)
    words = {}
    for name, body, _ in wires.received[3:]:
        words.setdefault(name, []).append(Message.from_bytes(body).arrays["words"])
    for one, other in words.values():
        # Were a mask used twice, the difference would be that of the values: zero here.
        assert not np.intersect1d(one, other).size


def test_a_coordinator_that_died_repeats_no_exchange_and_gets_the_same_numbers(made, tmp_path):
    wires, store = Wires(made), tmp_path / "totals"
    before = sums_of(made, wires, store=store)
    first, second = before.total("first", [MOMENTS]), before.total("second", [PEOPLE])
    wires.calls = 0
    again = sums_of(made, wires, store=store)
    same(again.total("first", [MOMENTS]), first, within=0)
    same(again.total("second", [PEOPLE]), second, within=0)
    assert wires.calls == 1, "keys only"
    assert [(each.step, each.again) for each in again.exchanges] == [("join", False), ("first", True), ("second", True)]
    again.total("third", [PEOPLE])
    assert wires.calls == 2


def test_a_coordinator_that_asks_something_else_after_it_died_is_told_so(made, tmp_path):
    sums_of(made, Wires(made), store=tmp_path / "totals").total("first", [MOMENTS])
    other = Ask("moments", {"centre": np.ones(FEATURES)}, MOMENTS.options)
    with pytest.raises(FederationError, match="another way"):
        sums_of(made, Wires(made), store=tmp_path / "totals").total("first", [other])


def test_every_exchange_is_accounted_for(made):
    told = []
    wires = Wires(made)
    sums = sums_of(made, wires, on_step=lambda step, exchanges: told.append((step, len(exchanges))))
    sums.total("first", [MOMENTS])
    assert told == [("join", 0), ("first", 1)]
    assert [each.step for each in sums.exchanges] == ["join", "first"]
    assert sum(each.sent for each in sums.exchanges) == sum(len(body) for _, body, _ in wires.sent)
    assert sum(each.received for each in sums.exchanges) == sum(len(body) for _, body, _ in wires.received)
    assert len(sums.commitments) == 3
    assert all(len(bytes.fromhex(each)) == hashlib.sha256().digest_size for each in sums.commitments)


def test_whoever_the_plan_does_not_name_cannot_lead_it(made):
    with pytest.raises(FederationError, match="another coordinator"):
        SecureSums(Wires(made), made.plan, Identity.generate())


def test_a_refusal_ends_the_step_by_the_site_s_name_and_reason(made):
    made.set_policy("bell", statistics=["cohort"])
    with pytest.raises(SiteRefusalError) as refused:
        sums_of(made, Wires(made)).total("first", [MOMENTS])
    assert (refused.value.site, refused.value.reason) == ("bell", "statistic_not_allowed")
