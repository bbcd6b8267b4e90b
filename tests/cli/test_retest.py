"""`clinical-ser model retest`: a table of repeated recordings in, a bundle whose card knows the error of measurement out."""

from dataclasses import replace

import pytest

from clinical_ser.cohorts.table import write_table
from clinical_ser.evaluation.card import Card
from clinical_ser.models.bundle import read_bundle
from tests.tables import table_of

SETTING = "a week apart, same device"


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """A table of 40 people with two recordings each, one of whom changed."""
    table = table_of(40, rows_each=2, seed=4)
    frame = table.frame.assign(subject=table.frame["subject"].str.replace("s", "jane-doe-"))
    frame.loc[0, "label"] = "depressed" if frame.loc[1, "label"] == "not_depressed" else "not_depressed"
    path = tmp_path_factory.mktemp("again") / "jane-doe.parquet"
    write_table(replace(table, frame=frame), path)
    return path


def test_score_and_measures_are_shown_and_kept_in_the_card_alone(run, bundle, repeated, tmp_path):
    code, out, err = run("model", "retest", bundle, repeated, "-o", tmp_path / "known", "--setting", SETTING)
    assert code == 0, err
    assert "jane" not in out + err
    for words in (
        "78 recordings of 39 subjects",
        SETTING,
        "1 subjects left out, whose label changed",
        "score",
        "log-odds",
        "Average pause",
        "not signed",
    ):
        assert words in out
    old, new = read_bundle(bundle), read_bundle(tmp_path / "known")
    assert {name for name in new.files if new.files[name] != old.files[name]} == {"card.json"}
    found = Card.from_json(new.files["card.json"]).retest
    assert (found.setting, found.subjects, found.changed) == (SETTING, 39, 1)
    assert f"{found.log_odds.sd_within:.3g} log-odds" in out
    assert SETTING in run("model", "card", tmp_path / "known", "--markdown")[1]


@pytest.mark.parametrize("setting", ["", "x" * 201, "two\nlines"], ids=["empty", "long", "two lines"])
def test_how_it_was_repeated_has_to_be_said(run, bundle, repeated, tmp_path, setting):
    code, _, err = run("model", "retest", bundle, repeated, "-o", tmp_path / "known", "--setting", setting)
    assert code == 2
    assert "--setting" in err
    assert not (tmp_path / "known").exists()


def test_too_few_people_write_nothing(run, bundle, tmp_path):
    write_table(table_of(10, rows_each=2, seed=4), tmp_path / "few.parquet")
    code, _, err = run("model", "retest", bundle, tmp_path / "few.parquet", "-o", tmp_path / "known", "--setting", SETTING)
    assert code == 1
    assert "20 are needed" in err
    assert not (tmp_path / "known").exists()


def test_a_bundle_that_is_there_is_not_replaced(run, bundle, repeated, tmp_path):
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "kept.txt").write_text("kept")
    code, _, err = run("model", "retest", bundle, repeated, "-o", tmp_path / "known", "--setting", SETTING)
    assert code == 1
    assert "already" in err
