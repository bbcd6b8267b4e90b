"""`clinical-ser monitor` as a user types it."""

import dataclasses
import json
import os
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import DriftAlarm
from clinical_ser.cohorts.table import FeatureTable, write_table
from clinical_ser.errors import MonitoringError
from clinical_ser.file_lock import FileLock
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.counts import Counts, counts_of
from clinical_ser.monitoring.journal import Journal
from clinical_ser.registry import Pointers, Record, Registry
from clinical_ser.registry.names import find_model
from tests.tables import GOOD, table_of

DAY = date(2030, 1, 1)


def with_columns(table, **columns):
    return FeatureTable(table.frame.assign(**columns), table.feature_names, table.extractors)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A run-in, as much again, and as much again through another microphone."""
    folder = tmp_path_factory.mktemp("tables")
    made = {name: with_columns(table_of(150, seed=seed), device="tablet") for name, seed in (("run-in", 11), ("same", 12), ("moved", 13))}
    moved = made["moved"].frame
    names = list(made["moved"].feature_names)
    made["moved"] = FeatureTable(
        moved.assign(**{name: moved[name] + 1.5 for name in names[:20]}, device="jane-phone"), made["moved"].feature_names, made["moved"].extractors
    )
    for name, table in made.items():
        write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture
def reference(run, bundle, tables, tmp_path):
    code, out, err = run("monitor", "reference", bundle, tables / "run-in.parquet", "-o", tmp_path / "reference.json")
    assert code == 0, err
    assert "150 people" in out
    return tmp_path / "reference.json"


def test_recordings_like_the_reference_end_with_0_and_changed_ones_with_4(run, bundle, tables, reference):
    code, out, err = run("monitor", "watch", bundle, "--reference", reference, "--table", tables / "same.parquet")
    assert (code, err) == (0, "")
    assert "No alarm" in out
    code, out, _ = run("monitor", "watch", bundle, "--reference", reference, "--table", tables / "moved.parquet")
    assert code == 4
    for words in ("device=jane-phone", "10,000 recordings", "recalibrate", "changes nothing", "large"):
        assert words in " ".join(out.split())


def test_json_has_every_alarm_with_effect_limit_and_rate(run, bundle, tables, reference):
    code, out, _ = run("monitor", "watch", bundle, "--reference", reference, "--table", tables / "moved.parquet", "--json")
    found = json.loads(out)
    assert code == 4
    assert (found["recordings"], found["batches"], found["false_alarm"]) == (150, 6, 0.05)
    moved = [alarm for alarm in found["alarms"] if alarm["channel"].startswith("feature.") and alarm["direction"] == "up"]
    assert len(moved) >= 10
    assert all(alarm["value"] >= alarm["limit"] and alarm["index"] > 0.25 for alarm in moved)


def test_a_journal_is_watched_day_by_day_and_goes_on_from_its_state(run, bundle, tables, reference, tmp_path):
    days_in(Journal(tmp_path / "journal"), bundle, 12)
    words = ("monitor", "watch", bundle, "--reference", reference, "--journal", tmp_path / "journal", "--state", tmp_path / "state.json")
    assert run(*words, "--until", "2030-01-05").code == 0
    code, out, err = run(*words, "--until", "2030-01-31")
    assert code == 0
    assert "70 recordings in 7 batches" in out
    assert "taken before" in err
    # The first of January 2030 was a Tuesday: by the 12th one week is over.
    code, out, _ = run(*words[:-2], "--weeks", "--until", "2030-01-12")
    assert "60 recordings in 1 batches" in out
    code, out, _ = run("monitor", "status", tmp_path / "state.json", "--reference", reference)
    assert code == 0
    assert "120 recordings in 12 batches, the last of 2030-01-12" in out
    code, out, _ = run("monitor", "status", tmp_path / "state.json", "--reference", reference, "--json")
    assert len(json.loads(out)["channels"]) > 50
    code, out, _ = run("monitor", "reference", bundle, "--journal", tmp_path / "journal", "--to", "2030-01-08", "-o", tmp_path / "of-journal.json")
    assert code == 0
    assert "80 people" in out


def test_a_journal_that_is_not_there_or_holds_nothing_is_no_quiet_year(run, bundle, reference, tmp_path):
    missing = run("monitor", "watch", bundle, "--reference", reference, "--journal", tmp_path / "mistyped")
    assert missing.code == 2
    assert "mistyped" not in missing.err
    (tmp_path / "empty").mkdir()
    nothing = run("monitor", "watch", bundle, "--reference", reference, "--journal", tmp_path / "empty")
    assert nothing.code == 0
    assert "Nothing counted" in nothing.err


def test_a_table_without_dates_is_not_taken_twice(run, bundle, tables, reference, tmp_path):
    words = ("monitor", "watch", bundle, "--reference", reference, "--table", tables / "same.parquet", "--state", tmp_path / "state.json")
    assert run(*words).code == 0
    before = (tmp_path / "state.json").read_bytes()
    code, _, err = run(*words)
    assert code == 1
    assert "watched before" in " ".join(err.split())
    assert (tmp_path / "state.json").read_bytes() == before
    # Nor is it with one more row: that one is taken alone.
    grown, more = table_of(150, seed=12), table_of(151, seed=14)
    frame = pd.concat([more.frame.iloc[150:], grown.frame], ignore_index=True).assign(device="tablet")
    write_table(FeatureTable(frame, grown.feature_names, grown.extractors), tmp_path / "grown.parquet")
    code, out, err = run(*words[:6], tmp_path / "grown.parquet", *words[7:])
    assert code == 0
    assert "1 recordings in 1 batches" in out
    assert "counted before" in " ".join(err.split())
    kept = tmp_path / "state.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert b"s0001" not in kept.read_bytes()


def days_in(journal, bundle, days):
    verified = read_bundle(bundle)
    model = TrainedModel.from_bundle(verified)
    for number in range(days):
        table = with_columns(table_of(10, seed=100 + number), device="tablet")
        journal.add(DAY + timedelta(days=number), counts_of(model, verified.digest, table))


def test_watching_a_journal_starts_after_its_reference_and_takes_no_day_twice_by_weeks(run, bundle, tmp_path):
    # The first of January 2030 was a Tuesday; the 13th is a Sunday.
    days_in(Journal(tmp_path / "journal"), bundle, 13)
    of_journal = tmp_path / "of-journal.json"
    code, out, err = run("monitor", "reference", bundle, "--journal", tmp_path / "journal", "--to", "2030-01-08", "-o", of_journal)
    assert code == 0, err
    assert "starts after 2030-01-08" in out
    words = ("monitor", "watch", bundle, "--reference", of_journal, "--journal", tmp_path / "journal")
    kept = ("--state", tmp_path / "state.json")
    assert "50 recordings in 5 batches" in run(*words, "--until", "2030-01-13").out
    assert "50 recordings in 1 batches" in run(*words, "--weeks", "--until", "2030-01-13").out
    assert "20 recordings in 2 batches" in run(*words, *kept, "--until", "2030-01-10").out
    assert "30 recordings in 1 batches" in run(*words, *kept, "--weeks", "--until", "2030-01-13").out
    assert json.loads((tmp_path / "state.json").read_bytes())["recordings"] == 50


def test_watching_a_table_starts_after_the_day_that_its_reference_ends_with(run, bundle, tmp_path):
    table = table_of(80, seed=15)
    write_table(with_columns(table, recorded_at=[f"2030-01-{1 + k // 4:02d}" for k in range(80)]), tmp_path / "dated.parquet")
    write_table(table, tmp_path / "undated.parquet")
    made = ("-o", tmp_path / "r.json")
    for words in (("dated.parquet", "--to", "2030-01-31"), ("undated.parquet", "--from", "2030-01-01")):
        assert run("monitor", "reference", bundle, tmp_path / words[0], *words[1:], *made).code == 2
    assert "rows have no date" in run("monitor", "reference", bundle, tmp_path / "undated.parquet", *made).out
    for words, recordings in ((("dated.parquet",), 0), (("undated.parquet", "--to", "2030-01-15"), 20)):
        assert run("monitor", "reference", bundle, tmp_path / words[0], *words[1:], *made).code == 0
        code, out, _ = run("monitor", "watch", bundle, "--reference", tmp_path / "r.json", "--table", tmp_path / "dated.parquet", "--json")
        assert (code, json.loads(out)["recordings"]) == (0, recordings)


def test_two_at_work_on_one_state_would_lose_evidence_and_the_second_is_refused(run, bundle, tables, reference, tmp_path):
    words = ("monitor", "watch", bundle, "--reference", reference, "--table", tables / "same.parquet", "--state", tmp_path / "state.json")
    lock = FileLock(tmp_path / ".state.json.lock", "state", MonitoringError)
    assert lock.take()
    code, _, err = run(*words)
    assert code == 1
    assert "Another `monitor watch`" in err
    assert not (tmp_path / "state.json").exists()
    lock.release()
    assert run(*words).code == 0


def test_the_agreement_of_a_shadow_is_shown_from_the_journal(run, bundle, reference, tmp_path):
    champion, shadow = read_bundle(bundle).digest, read_bundle(find_model("depression-simulated")).digest
    pairs = {"flagged > flagged": 30, "flagged > indeterminate": 10, "not_flagged > not_flagged": 60}
    journal = Journal(tmp_path / "journal")
    journal.add(DAY, Counts(model=shadow, recordings=100, names={f"beside.{champion[:12]}.status": pairs}))
    journal.add(DAY, Counts(model=shadow, recordings=50, names={"beside.000000000000.status": {"flagged > flagged": 50}}))
    words = ("monitor", "watch", bundle, "--reference", reference, "--shadow", "depression-simulated", "--until", "2030-01-31")
    code, out, _ = run(*words, "--journal", tmp_path / "journal")
    assert code == 0
    told = " ".join(out.split())
    assert "alike: 90 of 100 recordings, 90% (83% to 94%)" in told
    assert "Where the model says flagged, alike: 30 of 40 recordings" in told
    assert "30 flagged, 10 indeterminate" in told
    assert run(*words, "--table", tmp_path / "t.parquet").code == 2
    journal.add(DAY, Counts(model=shadow, recordings=1, names={f"beside.{champion[:12]}.status": {"jane": 1}}))
    code, _, err = run(*words, "--journal", tmp_path / "journal")
    assert code == 1
    assert "no pair of answers" in err
    assert "jane" not in err


def outcomes(path, shift):
    rng = np.random.default_rng(3)
    x = rng.normal(size=400)
    days = [DAY + timedelta(days=k // 4) for k in range(400)]
    frame = pd.DataFrame({"screened_at": days, "log_odds": x, "outcome": (rng.random(400) < expit(x + shift)).astype(int), "outcome_at": days})
    frame.loc[:39, "outcome"] = np.nan
    frame.to_csv(path, index=False)
    return path


def test_outcomes_are_compared_with_what_was_stated(run, bundle, reference, tmp_path):
    words = ("monitor", "watch", bundle, "--reference", reference, "--as-of", "2031-01-01", "--outcomes")
    code, out, _ = run(*words, outcomes(tmp_path / "fine.csv", 0.0))
    assert code == 0
    assert "10% without an outcome" in " ".join(out.split())
    code, out, _ = run(*words, outcomes(tmp_path / "low.csv", 1.3))
    assert code == 4
    assert "calibration.everyone" in out
    assert "Recalibrate first: the intercept" in out


def test_an_alarm_is_recorded_in_the_audit_log_and_in_the_history_of_the_models_names(run, bundle, tables, reference):
    assert run("audit", "init", "--origin", "clinic.example/log").code == 0
    registry = Registry.default()
    digest = registry.add(bundle, Record.of(read_bundle(bundle), change="imported", name="screening"))
    registry.switch("screening", expected=None, action="opened", pointers=Pointers(champion=digest), actor="a person")
    done = run("monitor", "watch", bundle, "--reference", reference, "--table", tables / "moved.parquet")
    assert done.code == 4
    assert f"--trigger alarm:{registry.head('screening').digest[:12]}" in done.out
    with LogConfiguration.find().read() as reader:
        recorded = [payload for record in reader.records(0, reader.size) if isinstance(payload := record.payload, DriftAlarm)]
    # One a family, and one for what is new: fifty features that one microphone moved are one case.
    assert 2 <= len(recorded) <= 6
    assert any("more of its family" in payload.what for payload in recorded)
    head = registry.head("screening")
    assert (head.action, head.pointers.champion, head.bundle) == ("alarm", digest, digest)
    assert "device=jane-phone new" in head.reason


def test_what_cannot_be_read_is_said_without_a_path(run, bundle, tables, reference, tmp_path):
    wrong = tmp_path / "jane.json"
    table = tables / "same.parquet"
    for content in (b"", b"{}", b"[1", reference.read_bytes()[:-20], reference.read_bytes().replace(b'"run_length":', b'"run":')):
        wrong.write_bytes(content)
        for words in (("--reference", wrong), ("--reference", reference, "--state", wrong)):
            code, _, err = run("monitor", "watch", bundle, "--table", table, *words)
            assert code == 1
            assert "jane" not in err
    os.truncate(wrong, 65 * 2**20)
    code, _, err = run("monitor", "watch", bundle, "--table", table, "--reference", wrong)
    assert code == 1
    assert "larger than 64 MiB" in err
    code, _, err = run("monitor", "watch", bundle, "--table", table, "--reference", tmp_path / "none.json")
    assert code == 1
    assert "cannot be read" in err
    code, _, err = run("monitor", "watch", "depression-simulated", "--table", table, "--reference", reference)
    assert code == 1
    assert "another model" in err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--table", "t.parquet", "--journal", "j"),
        ("--outcomes", "o.csv", "--as-of", "soon"),
        ("--outcomes", "o.csv", "--tolerance", "-1"),
        ("--journal", "j", "--until", "31.1.2030"),
        ("--table", "t.parquet", "--batch", "0"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(run, bundle, tables, reference, words):
    words = [tables / "same.parquet" if word == "t.parquet" else word for word in words]
    assert run("monitor", "watch", bundle, "--reference", reference, *words).code == 2


def test_too_few_people_make_no_reference(run, bundle, tmp_path):
    write_table(table_of(60, seed=1, quality=[dataclasses.replace(GOOD, speech_s=1.0)] * 20 + [GOOD] * 40), tmp_path / "few.parquet")
    code, _, err = run("monitor", "reference", bundle, tmp_path / "few.parquet", "-o", tmp_path / "reference.json")
    assert code == 1
    assert "at least 50" in err
    assert not (tmp_path / "reference.json").exists()
