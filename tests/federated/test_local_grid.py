"""The same totals through Flower's own messages and the app that a site runs, and what Flower says when nothing comes."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clinical_ser.errors import FederationError, SiteRefusalError
from federated.client_app import app
from federated.flower import RECORD, GridChannel, request_in
from federated.local_grid import LocalGrid
from federated.statistics import Ask
from tests.federated.sites import make_consortium
from tests.federated.test_secure_sums import FEATURES, FOLDS, MOMENTS, PEOPLE, pooled_of, same


@pytest.fixture
def made(tmp_path):
    return make_consortium(tmp_path / "sites")


@pytest.fixture
def grid(made):
    return LocalGrid(app, {100 + place: {"folder": str(made.site(name))} for place, name in enumerate(made.names)})


def channel_of(made, grid):
    return GridChannel(grid, {name: 100 + place for place, name in enumerate(made.names)}, poll_s=0.01)


def test_totals_through_flower_s_messages_are_those_of_one_table(made, grid):
    found = made.sums(channel_of(made, grid)).total("first", [MOMENTS, PEOPLE])
    same(found, pooled_of(made).total("first", [MOMENTS, PEOPLE]))
    assert len(grid.received) == 6


def test_what_crosses_flower_names_nobody(made, grid, tmp_path):
    made.sums(channel_of(made, grid)).total("first", [MOMENTS, PEOPLE])
    crossed = b"".join(grid.received)
    assert str(tmp_path).encode() not in crossed
    for subject in set(made.table.frame["subject"]) | set(made.table.frame["recording"]):
        assert subject.encode() not in crossed


@pytest.mark.parametrize("how", ["away", "silent"])
def test_a_node_that_is_not_there_ends_the_step_by_the_site_s_name_and_comes_back(made, grid, tmp_path, how):
    sums = made.sums(channel_of(made, grid), store=tmp_path / "totals")
    sums.total("first", [MOMENTS])
    getattr(grid, how).add(101)
    with pytest.raises(FederationError, match="bell"):
        sums.total("second", [PEOPLE])
    getattr(grid, how).clear()
    again = made.sums(channel_of(made, grid), store=tmp_path / "totals")
    same(again.total("first", [MOMENTS]), pooled_of(made).total("first", [MOMENTS]))
    same(again.total("second", [PEOPLE]), pooled_of(made).total("second", [PEOPLE]))


def test_an_app_that_ends_with_an_error_is_named_at_once(made, grid):
    grid.raising.add(102)
    with pytest.raises(FederationError, match="curie"):
        made.sums(channel_of(made, grid), deadline_s=60).total("first", [MOMENTS])


def test_a_refusal_comes_through_with_its_reason(made, grid):
    made.set_policy("ada", statistics=["cohort"])
    with pytest.raises(SiteRefusalError) as refused:
        made.sums(channel_of(made, grid)).total("first", [MOMENTS])
    assert (refused.value.site, refused.value.reason) == ("ada", "statistic_not_allowed")


def test_large_arrays_cross_bit_for_bit(made, grid):
    centre = np.random.default_rng(0).normal(size=FEATURES) * 10.0 ** np.arange(-150, -150 + 50 * FEATURES, 50)
    centre[-1] = np.nextafter(0, 1)
    ask = Ask("cohort", {"centre": centre, "more": np.zeros((4000, 50))}, {"folds": FOLDS, "groups": json.dumps({}), "checks": "[]"})
    # No such question is answered; but the signature over every bit was verified, and the refusal names the digest that was sent.
    with pytest.raises(SiteRefusalError, match="asks beyond the plan"):
        made.sums(channel_of(made, grid)).total("first", [ask])


@pytest.mark.parametrize(
    "record",
    [{}, {"body": b"x"}, {"body": b"x", "signature": b"y", "more": 1}, {"body": "x", "signature": b"y"}, {"body": b"x", "signature": 3}],
)
def test_a_flower_message_that_is_not_ours_is_refused(grid, record):
    content = RecordDict({RECORD: ConfigRecord(record)})
    with pytest.raises(FederationError, match="not one of ours"):
        request_in(Message(content, dst_node_id=100, message_type="query"))
    (name,) = grid.push_messages([Message(content, dst_node_id=100, message_type="query")])
    (reply,) = grid.pull_messages([name])
    assert reply.has_error()


def test_two_sites_cannot_be_one_node(grid):
    with pytest.raises(FederationError, match="same Flower node"):
        GridChannel(grid, {"ada": 100, "bell": 100})


def test_a_site_without_a_node_is_named(grid):
    with pytest.raises(FederationError, match="curie"):
        GridChannel(grid, {"ada": 100}).exchange({"curie": (b"", b"")}, 1.0)
