"""Calibration is watched with outcomes that come late and in part, and the tolerated shift raises no alarm."""

import os
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.monitoring.counts import read_strict
from clinical_ser.monitoring.outcomes import EVERYONE, OutcomeState, OutcomeWatch, outcome_gains, read_outcomes
from clinical_ser.monitoring.seen import Memory

START = date(2030, 1, 1)
AS_OF = START + timedelta(days=400)


def outcomes(n=600, *, shift=0.0, seed=0, verified=np.ones_like, per_day=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(-0.6, 1.2, n)
    y = rng.random(n) < expit(x + shift)
    back = rng.random(n) < verified(expit(x))
    days = [START + timedelta(days=k // per_day) for k in range(n)]
    # Illness is confirmed early, health late.
    returned = [day + timedelta(days=5 if ill else 60) for day, ill in zip(days, y, strict=True)]
    return pd.DataFrame(
        {
            "screened_at": [day.isoformat() for day in days],
            "probability": expit(x),
            "outcome": [str(int(ill)) if known else "" for ill, known in zip(y, back, strict=True)],
            "outcome_at": [day.isoformat() if known else "" for day, known in zip(returned, back, strict=True)],
            "sex": np.where(rng.random(n) < 0.5, "female", "male"),
        }
    )


def written(tmp_path, frame, name="outcomes.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return read_outcomes(tmp_path / name)


@pytest.mark.parametrize("truth", [-0.2, 0.0, 0.2])
def test_no_bet_gains_while_the_shift_is_tolerated(truth):
    for x in (-4.0, -0.5, 0.0, 2.0):
        p = expit(x + truth)
        mean = p * outcome_gains(x, 1.0, centre=-0.5, tolerance=0.2) + (1 - p) * outcome_gains(x, 0.0, centre=-0.5, tolerance=0.2)
        assert (mean <= 1 + 1e-12).all()


def test_good_calibration_raises_no_alarm_although_the_ill_come_back_first(tmp_path):
    rows = written(tmp_path, outcomes())
    watching = OutcomeWatch(run_length=10_000, maturity_days=90)
    assert watching.take(rows, AS_OF) == []
    returned, (everyone, *groups) = watching.calibration(rows, AS_OF)
    assert (returned.mature, returned.known, returned.missing_share) == (600, 600, 0.0)
    assert everyone.name == EVERYONE
    assert everyone.ratio.low < 1 < everyone.ratio.high
    assert [group.name for group in groups] == ["sex=female", "sex=male"]
    assert sum(group.people for group in groups) == 600
    assert all(group.auroc.low > 0.5 for group in groups)


def test_too_low_probabilities_are_noticed_with_the_direction_and_the_time(tmp_path):
    frame = pd.concat([outcomes(300), outcomes(500, shift=1.2, seed=1)], ignore_index=True)
    frame["screened_at"] = [(START + timedelta(days=k // 3)).isoformat() for k in range(800)]
    frame["outcome_at"] = [(START + timedelta(days=k // 3 + 20)).isoformat() for k in range(800)]
    crossings = OutcomeWatch(run_length=10_000).take(written(tmp_path, frame), AS_OF)
    first = next(crossing for crossing in crossings if crossing.group == EVERYONE)
    assert first.direction == "up"
    assert first.people < 450
    assert abs((first.since - START).days - 100) < 20


def test_verification_that_depends_on_the_score_leaves_the_ratio_and_the_detector_alone(tmp_path):
    frame = outcomes(900, verified=lambda p: np.where(p > 0.35, 0.9, 0.2), per_day=4)
    rows = written(tmp_path, frame)
    watching = OutcomeWatch(run_length=10_000)
    assert watching.take(rows, AS_OF) == []
    returned, (everyone, *_) = watching.calibration(rows, AS_OF)
    low, _, high = returned.missing_by_score
    assert low > 0.7
    assert high < 0.2
    assert everyone.ratio.low < 1 < everyone.ratio.high
    # Weighted, the AUROC of those who came back is that of everyone.
    [whole, *_] = OutcomeWatch(run_length=10_000).calibration(written(tmp_path, outcomes(900, per_day=4), "all.csv"), AS_OF)[1]
    assert everyone.auroc.value == pytest.approx(whole.auroc.value, abs=0.06)


def test_outcomes_enter_when_they_are_mature_and_once(tmp_path):
    rows = written(tmp_path, outcomes(shift=1.0))
    early = START + timedelta(days=100)
    once = OutcomeWatch(run_length=10_000)
    whole = once.take(rows, AS_OF)
    first = OutcomeWatch(run_length=10_000)
    parts = first.take(rows, early)
    assert first.state.people == sum(1 for day in rows.frame["day"] if day + timedelta(days=90) <= early)
    kept = read_strict(OutcomeState, first.state.model_dump_json().encode(), "The state")
    second = OutcomeWatch(run_length=10_000, state=kept)
    assert parts + second.take(rows, AS_OF) == whole
    assert whole
    assert second.take(rows, AS_OF) == []
    assert second.state.people == 600
    with pytest.raises(MonitoringError, match="tolerance"):
        OutcomeWatch(run_length=10_000, tolerance=0.3, state=kept)


def test_a_person_is_taken_once_over_months_of_files(tmp_path):
    frame = outcomes(60).assign(subject=[f"s{k}" for k in range(60)])
    first, memory = OutcomeWatch(run_length=10_000), Memory()
    first.take(written(tmp_path, frame), START + timedelta(days=110), memory)
    assert first.state.people == 60
    later = (START + timedelta(days=150)).isoformat()
    again = frame.assign(screened_at=later, outcome_at=later, outcome="1", subject=[f"s{k}" for k in range(30, 90)])
    second, kept = OutcomeWatch(run_length=10_000, state=first.state), Memory(memory.seen)
    second.take(written(tmp_path, again), AS_OF, kept)
    assert second.state.people == 90
    assert len(kept.seen.tags) == 90
    assert not any("s1" in tag for tag in kept.seen.tags)


@pytest.mark.parametrize("day", ["9999-12-31", "0001-01-01", "9999-12-31T23:59:59-12:00", "1899-12-31"])
def test_days_that_no_calendar_can_add_to_are_a_problem_of_their_row(tmp_path, day):
    frame = outcomes(3)
    frame.loc[1, "screened_at"] = day
    rows = written(tmp_path, frame)
    assert [problem.row for problem in rows.problems] == [2]
    assert OutcomeWatch(run_length=100).take(rows, AS_OF) == []


def test_cells_that_parquet_has_and_csv_has_not_are_read_or_reported(tmp_path):
    days = [datetime(2030, 1, 1, 23, tzinfo=timezone(-timedelta(hours=5))), None, datetime(2030, 1, 1, tzinfo=UTC)]
    frame = pd.DataFrame({"screened_at": days, "log_odds": [0.1, 0.2, 0.3], "outcome": pd.array([1, 0, None], "Int64"), "outcome_at": days})
    frame.assign(other=[[1], [2], [3]]).to_parquet(tmp_path / "o.parquet")
    rows = read_outcomes(tmp_path / "o.parquet")
    assert [(problem.row, problem.reason) for problem in rows.problems] == [(2, "screened_at is missing")]
    assert rows.frame["day"].tolist() == [date(2030, 1, 1), date(2030, 1, 2)]
    assert rows.frame["outcome"].isna().tolist() == [True, False]


def test_what_comes_back_after_the_window_is_counted_and_not_used(tmp_path):
    rows = written(tmp_path, outcomes())
    returned, _ = OutcomeWatch(run_length=10_000, maturity_days=30).calibration(rows, AS_OF)
    assert returned.late > 0
    assert returned.late + returned.known == returned.mature


def test_rows_that_cannot_be_used_are_reported_by_number_and_repetitions_left_out(tmp_path):
    frame = outcomes(12)[["screened_at", "probability", "outcome", "outcome_at"]].astype(object)
    frame["subject"] = [f"s{k // 2}" for k in range(12)]
    frame.loc[0, "screened_at"] = "jane"
    frame.loc[1, "probability"] = "1.5"
    frame.loc[2, "outcome"] = "yes"
    frame.loc[3, "outcome_at"] = "2020-01-01"
    frame.loc[4, "probability"] = "nan"
    rows = written(tmp_path, frame)
    assert [problem.row for problem in rows.problems] == [1, 2, 3, 4, 5]
    assert not any("jane" in problem.reason or "yes" in problem.reason for problem in rows.problems)
    assert (len(rows.frame), rows.repeated) == (4, 3)


def test_parquet_and_semicolons_are_read_alike(tmp_path):
    frame = outcomes(20)
    frame.to_parquet(tmp_path / "o.parquet")
    frame.to_csv(tmp_path / "o.csv", sep=";", index=False)
    (of_csv, of_parquet) = (read_outcomes(tmp_path / name).frame for name in ("o.csv", "o.parquet"))
    pd.testing.assert_frame_equal(of_csv, of_parquet)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  \n",
        b"screened_at,probability,outcome,outcome_at\n",
        b"screened_at,probability,outcome\n2030-01-01,0.5,1\n",
        b"screened_at,probability,log_odds,outcome,outcome_at\n2030-01-01,0.5,0,1,2030-02-01\n",
        b'screened_at,probability,outcome,outcome_at\n"2030-01-01,0.5,1,2030-02-01\n',
        b"screened_at,probability,outcome,outcome_at\n2030-01-01,0.5,1\n",
        b"screened_at,screened_at,probability,outcome,outcome_at\n1,1,1,1,1\n",
        b"\xff\xfe\x00",
        b"PAR1 cut short",
        b"screened_at,probability,outcome,outcome_at\njane,jane,jane,jane\n",
        b"a\x00b",
    ],
)
def test_a_file_that_is_no_outcomes_is_refused_without_being_quoted(tmp_path, raw):
    (tmp_path / "jane.csv").write_bytes(raw)
    with pytest.raises(MonitoringError) as refused:
        read_outcomes(tmp_path / "jane.csv")
    assert "jane" not in str(refused.value)


def test_a_file_of_another_size_than_outcomes_have_is_not_read(tmp_path):
    (tmp_path / "huge.csv").touch()
    os.truncate(tmp_path / "huge.csv", 300 * 2**20)
    with pytest.raises(MonitoringError, match="larger than 256 MiB"):
        read_outcomes(tmp_path / "huge.csv")
    with pytest.raises(MonitoringError, match="cannot be read"):
        read_outcomes(tmp_path)


def test_a_window_or_a_tolerance_without_sense_is_refused():
    for wrong in ({"tolerance": -0.1}, {"tolerance": float("nan")}, {"maturity_days": -1}):
        with pytest.raises(InvalidValueError):
            OutcomeWatch(run_length=100, **wrong)


def test_nothing_mature_is_no_error(tmp_path):
    rows = written(tmp_path, outcomes(5))
    watching = OutcomeWatch(run_length=100)
    assert watching.take(rows, START) == []
    returned, (everyone, *_) = watching.calibration(rows, START)
    assert (returned.mature, returned.missing_share, everyone.people, everyone.ratio.value, everyone.auroc) == (0, None, 0, None, None)
