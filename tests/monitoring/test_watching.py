"""A reference, days of counts after it, and alarms that say what changed, since when and how much."""

import json
from datetime import date, timedelta

import numpy as np
import pytest

from clinical_ser.audio.quality import GateLimits, judge
from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.monitoring.counts import Counts, Observation, read_strict
from clinical_ser.monitoring.watching import CHECKS, FAMILIES, Reference, State, Watch, channels_of, weights_of
from tests.tables import GOOD

DAY = date(2030, 1, 1)
SHARES = np.array([1, 2, 4, 7, 10, 10, 7, 4, 2, 1, 0]) / 48
SHIFTED = np.array([0, 1, 1, 3, 5, 9, 10, 9, 6, 4, 0]) / 48


@pytest.fixture(scope="module")
def verified(bundle):
    return read_bundle(bundle)


def drawn(verified, rng, people, *, shares=SHARES, device=("tablet", "phone"), failing=0.03):
    """Counts of people that nobody recorded."""
    seen = []
    for _ in range(people):
        failed = ("snr",) if rng.random() < failing else ()
        answer = str(rng.choice(["flagged", "not_flagged", "indeterminate"]))
        names = {"device": str(rng.choice(device)), "status": "not_usable" if failed else answer}
        cells = {"feature.a": rng.choice(11, p=shares), "feature.b": rng.choice(11, p=SHARES), "score": rng.integers(20)}
        seen.append(Observation({} if failed else {channel: int(cell) for channel, cell in cells.items()}, names, failed))
    return Counts.of(verified.digest, seen)


@pytest.fixture(scope="module")
def reference(verified):
    return Reference.of(verified.manifest, drawn(verified, np.random.default_rng(0), 250))


def days(watching, verified, rng, first, last, **how):
    alarms = []
    for number in range(first, last):
        day = DAY + timedelta(days=number)
        alarms += watching.take(drawn(verified, rng, 10, **how), day=day, label=day.isoformat())
    return alarms


def test_every_check_of_the_gate_that_can_fail_is_watched():
    assert {check.name for check in judge(GOOD, GateLimits()).checks} <= {*CHECKS, "noise_unknown"}


def test_the_parts_of_the_rate_add_up_and_families_have_alike(reference):
    channels = channels_of(reference)
    weights = weights_of(channels)
    assert weights.sum() == pytest.approx(1.0)
    for family in FAMILIES:
        assert sum(weights[[channel.family == family for channel in channels]]) == pytest.approx(1 / len(FAMILIES))


def test_quiet_days_raise_nothing_and_a_feature_that_moved_is_named_dated_and_measured(verified, reference):
    watching, rng = Watch(reference), np.random.default_rng(1)
    assert days(watching, verified, rng, 0, 20) == []
    [alarm, *_] = days(watching, verified, rng, 20, 40, shares=SHIFTED)
    assert (alarm.channel, alarm.family, alarm.direction, alarm.statistic) == ("feature.a", "input", "up", "shiryaev_roberts")
    assert alarm.value >= alarm.limit
    assert abs((alarm.since - DAY).days - 20) <= 8
    assert alarm.size == "large"
    assert alarm.index > 2 * alarm.index_by_chance
    assert alarm.run_length == reference.run_length


def test_a_gate_that_fails_more_often_and_a_mix_that_changes_are_noticed(verified, reference):
    watching = Watch(reference)
    found = {
        (alarm.family, alarm.channel, alarm.direction)
        for alarm in days(watching, verified, np.random.default_rng(2), 0, 25, failing=0.4, device=("phone",))
    }
    assert ("gate", "check.snr", "up") in found
    assert ("answer", "status.not_usable", "up") in found
    assert {("mix", "device=phone", "up"), ("mix", "device=tablet", "down")} <= found


def test_a_device_that_the_reference_lacks_is_told_at_once_and_once(verified, reference):
    watching, rng = Watch(reference), np.random.default_rng(3)
    [alarm, *others] = [one for one in days(watching, verified, rng, 0, 3, device=("tablet", "phone", "headset")) if one.statistic == "new_name"]
    assert others == []
    assert (alarm.channel, alarm.direction, alarm.limit, alarm.run_length) == ("device=headset", "new", 5, None)
    assert alarm.since == DAY


def test_a_watch_that_stops_and_goes_on_finds_what_one_that_never_stopped_does(verified, reference):
    whole = Watch(reference)
    found = days(whole, verified, np.random.default_rng(4), 0, 12, shares=SHIFTED)
    watching, rng, parts = Watch(reference), np.random.default_rng(4), []
    for number in range(12):
        parts += days(watching, verified, rng, number, number + 1, shares=SHIFTED)
        kept = read_strict(State, watching.state.to_bytes(), "The state")
        watching = Watch(read_strict(Reference, reference.to_bytes(), "The reference"), kept)
    assert parts == found
    assert watching.state == whole.state


def test_a_day_is_taken_once_and_only_of_the_references_model(verified, reference):
    watching = Watch(reference)
    counts = drawn(verified, np.random.default_rng(5), 3)
    watching.take(counts, day=DAY, label="first")
    with pytest.raises(MonitoringError, match="in order"):
        watching.take(counts, day=DAY, label="again")
    with pytest.raises(InvalidValueError):
        watching.take(Counts(model="b" * 64, recordings=1), day=DAY + timedelta(days=1), label="other")
    with pytest.raises(MonitoringError, match="shorter periods"):
        watching.take(Counts(model=verified.digest, recordings=2**53), day=DAY + timedelta(days=1), label="huge")


def test_watching_starts_after_the_references_last_day(verified, reference):
    dated = reference.model_copy(update={"last_day": DAY})
    counts = drawn(verified, np.random.default_rng(5), 3)
    watching = Watch(dated)
    with pytest.raises(MonitoringError, match="in order"):
        watching.take(counts, day=DAY, label="of the reference")
    watching.take(counts, day=DAY + timedelta(days=1), label="after it")
    # A state that says less than its reference does not bring it back.
    early = Watch(dated, Watch(dated).state.model_copy(update={"last_day": DAY - timedelta(days=9)}))
    assert not early.is_new(DAY)


def test_a_reference_needs_people_and_a_sensible_rate(verified):
    few = drawn(verified, np.random.default_rng(6), 40)
    with pytest.raises(MonitoringError, match="at least 50"):
        Reference.of(verified.manifest, few)
    enough = few + few
    for wrong in ({"run_length": 1}, {"run_length": float("nan")}, {"new_name_people": 0}):
        with pytest.raises(InvalidValueError):
            Reference.of(verified.manifest, enough, **wrong)


def test_a_state_that_is_not_the_references_is_refused(verified, reference):
    other = Reference.of(verified.manifest, reference.counts, run_length=20_000)
    watching = Watch(reference)
    days(watching, verified, np.random.default_rng(7), 0, 2)
    kept = watching.state
    with pytest.raises(MonitoringError, match="another reference"):
        Watch(other, kept)
    first = next(iter(kept.channels))
    short = kept.channels[first].model_copy(update={"bag": (1, 2, 3)})
    less, more = (kept.channels[first].model_copy(update={"bag": (n,) * len(kept.channels[first].bag)}) for n in (0, 2**53))
    for channels in ({first: kept.channels[first]}, *(kept.channels | {first: wrong} for wrong in (short, less, more))):
        with pytest.raises(MonitoringError):
            Watch(reference, kept.model_copy(update={"channels": channels}))


def test_standing_names_the_nearest_to_an_alarm_first(verified, reference):
    watching = Watch(reference)
    days(watching, verified, np.random.default_rng(8), 0, 2, shares=SHIFTED)
    standing = watching.standing()
    shares = [one.value / one.limit for one in standing]
    assert shares == sorted(shares, reverse=True)
    assert max(shares) < 1
    assert {one.channel: one.index for one in standing}["feature.a"] > 0.5
    assert Watch(reference).standing()[0].index is None


def test_a_state_with_impossible_times_raises_no_other_error_than_an_alarm(verified, reference):
    watching = Watch(reference)
    days(watching, verified, np.random.default_rng(9), 0, 2)
    late = {
        name: one.model_copy(update={"begun": (2**50,) * len(one.begun), "cusum": (2.0,) * len(one.cusum)})
        for name, one in watching.state.channels.items()
    }
    again = Watch(reference, watching.state.model_copy(update={"channels": late}))
    alarms = days(again, verified, np.random.default_rng(10), 2, 30, shares=SHIFTED)
    assert alarms[0].channel == "feature.a"


GROUPS = [f"sex=g{k}" for k in range(40)]
DETECTOR = {"roberts": [0.0] * 9, "cusum": [1.0] * 9, "begun": [0] * 9}


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcomes": {"groups": GROUPS, "channels": dict.fromkeys(GROUPS, DETECTOR)}},
        {"outcomes": {"groups": ["everyone", "everyone"], "channels": {"everyone": DETECTOR}}},
        {"outcomes": {"groups": ["sex=f"], "channels": {"sex=f": DETECTOR}}},
        {"outcomes": {"tolerance": -1.0}},
        {"outcomes": {"people": 2**60}},
        {"batches": 2**60},
        {"new_names": {"device=x": 10**400}},
        {"new_names": {"device=x": -1}},
        {"seen": {"key": None, "tags": ["0" * 24]}},
        {"seen": {"key": "x" * 64}},
        {"seen": {"key": "0" * 64, "tags": ["jane"]}},
        {"last_day": "2030-02-30"},
        {"tables": []},
    ],
)
def test_a_hostile_state_is_refused_by_its_schema(reference, wrong):
    raw = {**json.loads(Watch(reference).state.to_bytes()), **wrong}
    with pytest.raises(MonitoringError) as refused:
        read_strict(State, json.dumps(raw).encode(), "The state")
    assert "jane" not in str(refused.value)
