"""A wall clock that goes back or jumps: the sequence stays, and each record that may mislead says so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Flag
from tests.audit.faults.driving import Writer
from tests.audit.log_maker import append, make_log, names_of, verify

_SECOND = timedelta(seconds=1)


class _Clocks:
    """A wall clock and a monotonic one, which go on together unless the wall clock is set."""

    def __init__(self, at: datetime = datetime(2026, 11, 26, 12, tzinfo=UTC)) -> None:
        self.wall, self.monotonic_ns = at, 10**9

    def go_on(self, seconds: float = 1.0, *, set_by: timedelta = timedelta()) -> None:
        self.wall += timedelta(seconds=seconds) + set_by
        self.monotonic_ns += int(seconds * 10**9)


def _flagged(configuration: LogConfiguration) -> list[bool]:
    with configuration.read() as reader:
        return [Flag.CLOCK_ANOMALY in record.event.flags for record in reader.records()]


@pytest.fixture
def configuration(tmp_path: Path) -> LogConfiguration:
    return make_log(tmp_path)


def _append(configuration: LogConfiguration, clocks: _Clocks, steps: list[tuple[float, timedelta]], prefix: str = "record") -> None:
    """Append a record after each step of (seconds that pass, by how much the wall clock is set)."""
    with configuration.write(clock=lambda: clocks.wall, monotonic_ns=lambda: clocks.monotonic_ns) as log:
        for name, (seconds, set_by) in zip(names_of(len(steps), prefix), steps, strict=True):
            clocks.go_on(seconds, set_by=set_by)
            append(log, name)


def test_a_steady_clock_is_not_flagged(configuration: LogConfiguration) -> None:
    _append(configuration, _Clocks(), [(0, timedelta()), (0.001, timedelta()), (86_400, timedelta())])
    assert _flagged(configuration) == [False] * 3


def test_records_are_flagged_until_time_is_past_the_latest_seen(configuration: LogConfiguration) -> None:
    on = timedelta()
    _append(configuration, _Clocks(), [(1, on), (1, -timedelta(hours=1)), (1, on), (3595, on), (1, on), (1, on), (1, on)])
    # 0 s, -3599 s, -3598 s, -3 s, -2 s, -1 s, 0 s after the first: only the last one is not before it.
    assert _flagged(configuration) == [False, True, True, True, True, True, False]
    found = verify(configuration)
    assert (found.anomalies, found.clock_anomalies) == (5, [1, 2, 3, 4, 5])


def test_the_order_is_the_logs_whatever_the_clock_says(configuration: LogConfiguration) -> None:
    _append(configuration, _Clocks(), [(1, timedelta(hours=-number)) for number in range(5)])
    with configuration.read() as reader:
        records = list(reader.records())
    assert [record.index for record in records] == list(range(5))
    assert [record.event.time for record in records] == sorted((record.event.time for record in records), reverse=True)
    assert [record.event.monotonic_ns for record in records] == sorted(record.event.monotonic_ns for record in records)


def test_a_jump_ahead_is_flagged_once(configuration: LogConfiguration) -> None:
    _append(configuration, _Clocks(), [(1, timedelta()), (1, timedelta(hours=1)), (1, timedelta()), (1, timedelta())])
    assert _flagged(configuration) == [False, True, False, False]


@pytest.mark.parametrize("way", [1, -1])
def test_a_clock_that_runs_otherwise_than_the_monotonic_one_is_flagged(configuration: LogConfiguration, way: int) -> None:
    # Ten seconds pass and the wall clock says 12, or 8: neither goes back, and both are wrong. One that is slewed by less is let be.
    _append(configuration, _Clocks(), [(1, timedelta()), (10, 2 * way * _SECOND), (10, 0.9 * way * _SECOND)])
    assert _flagged(configuration) == [False, True, False]


def test_a_clock_that_was_set_back_between_two_runs_is_flagged(configuration: LogConfiguration) -> None:
    clocks = _Clocks()
    _append(configuration, clocks, [(1, timedelta()), (1, timedelta())], "before")
    # Another boot: the monotonic clock begins anew, which says nothing about the wall clock.
    clocks.monotonic_ns = 0
    _append(configuration, clocks, [(1, timedelta(hours=-1)), (1, timedelta())], "after")
    _append(configuration, _Clocks(clocks.wall + timedelta(hours=2)), [(1, timedelta())], "later")
    assert _flagged(configuration) == [False, False, True, True, False]


def test_the_latest_time_is_remembered_beyond_the_newest_records(configuration: LogConfiguration) -> None:
    """A regression of a guess: a log that looks at its last tiles alone forgets a time that lies further back."""
    clocks = _Clocks()
    _append(
        configuration,
        clocks,
        [(1, timedelta()), (1, timedelta(days=365)), *[(1, timedelta(days=-365) if not n else timedelta()) for n in range(600)]],
    )
    _append(configuration, clocks, [(1, timedelta())], "after")
    assert _flagged(configuration)[-1]


def test_a_process_whose_clock_is_an_hour_slow_is_flagged(tmp_path: Path, configuration: LogConfiguration) -> None:
    for prefix, offset in (("right", "0"), ("slow", "-3600"), ("right again", "0")):
        with Writer(tmp_path, ("--prefix", prefix, "--records", "3", "--clock-offset", offset)) as writer:
            writer.begin()
            assert writer.end() == 0
            assert len(writer.acks) == 3
    assert _flagged(configuration) == [False] * 3 + [True] * 3 + [False] * 3
    assert verify(configuration).clock_anomalies == [3, 4, 5]
