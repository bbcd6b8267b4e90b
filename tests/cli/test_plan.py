"""`clinical-ser plan` as a user types it."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import clinical_ser.cli
from clinical_ser.cli.plan import Plan, plan
from clinical_ser.cohorts.table import write_table
from clinical_ser.evaluation import planning
from clinical_ser.evaluation.planning import validation_minimum
from clinical_ser.models.sample_size import riley_minimum
from tests.evaluation.test_planning import Spy, emotions
from tests.tables import table_of


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line with this command; returns (exit code, stdout, stderr)."""
    app = typer.Typer()
    app.command()(plan)
    app.command("other")(lambda: None)
    monkeypatch.setattr(clinical_ser.cli, "app", app)

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["clinical-ser", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            clinical_ser.cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return typed


ASSUMED = ("plan", "--prevalence", 0.2, "--auc", 0.75, "--features", 20)


def test_sizes_are_told_by_criterion_in_sentences(run):
    code, out, err = run(*ASSUMED)
    assert code == 0, err
    for n in (riley_minimum(20, 0.2, 0.75).for_optimism, *validation_minimum(0.2, 0.75).by_criterion.values()):
        assert f"{n:,}  so that" in out
    assert "To train the model: 1,322 subjects, 265 of them with the condition" in out
    assert "To evaluate it in new people: 3,550 subjects, 710 of them with the condition" in out


def test_as_json_the_plan_comes_back_whole(run):
    code, out, _ = run(*ASSUMED, "--slope-width", 0.4, "--json")
    made = Plan.model_validate_json(out)
    assert code == 0
    assert made.development == riley_minimum(20, 0.2, 0.75)
    assert made.validation.for_calibration_slope < validation_minimum(0.2, 0.75).for_calibration_slope / 3.9
    assert made.learning_curve is None


def test_several_recordings_are_counted_in_people_and_weighed(run):
    code, out, _ = run(*ASSUMED, "--recordings-each", 5, "--icc", 0.6)
    assert code == 0
    assert "worth 1.47 single ones" in out
    fewer = validation_minimum(0.2, 0.75, recordings_each=5, icc=0.6)
    assert f"{fewer.subjects:,} subjects" in out
    assert f"{5 * fewer.subjects:,} recordings" in out


def test_what_many_recordings_are_worth_is_told_without_false_decimals(run):
    told = [run(*ASSUMED, "--icc", 0, "--recordings-each", n)[1] for n in (5, 10_000)]
    assert "worth 5 single ones" in told[0]
    assert "10,000 recordings of each person" in told[1]
    assert "worth 10,000 single ones" in told[1]


def test_the_page_says_of_a_wider_slope_what_the_command_says(run):
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    out = run(*ASSUMED, "--slope-width", 0.4)[1]
    subjects = re.search(r"To evaluate it in new people: ([\d,]+) subjects", out)[1]
    slope = re.search(r"([\d,]+)  so that the calibration slope", out)[1]
    told = next(paragraph for paragraph in page.split("\n\n") if "--slope-width 0.4" in paragraph)
    assert f"({slope})" in told
    assert f"the study is {subjects} people" in told


def test_a_task_of_several_classes_is_refused_for_a_table_of_two(run, tmp_path):
    write_table(table_of(60), tmp_path / "t.parquet")
    code, _, err = run("plan", tmp_path / "t.parquet", "--task", "emotion", "--sizes", "20,45", "--repeats", 2)
    assert code == 2
    assert "the table's labels name 2" in err


def test_a_table_adds_its_learning_curve_and_fills_in_the_assumptions(run, tmp_path):
    write_table(table_of(60, effect=4.0), tmp_path / "t.parquet")
    code, out, err = run("plan", tmp_path / "t.parquet", "--sizes", "45,20", "--repeats", 2, "--json")
    assert code == 0, err
    made = Plan.model_validate_json(out)
    assert [point.subjects for point in made.learning_curve.points] == [20, 45]
    assert (made.auc, made.prevalence) == (made.learning_curve.points[-1].value, made.learning_curve.prevalence)
    assert made.features == made.development.parameters == made.learning_curve.features
    assert "Learning curve" in err
    assert "s0001" not in out


def test_the_curve_is_shown_with_what_it_would_take(run, tmp_path, monkeypatch):
    table = table_of(60, effect=4.0)
    write_table(table, tmp_path / "t.parquet")
    pause = table.feature_names.index("timing.pause_mean_s")
    monkeypatch.setattr(planning, "train", Spy(table, lambda _call, X: X[:, pause]))
    code, out, err = run("plan", tmp_path / "t.parquet", "--sizes", "15,30,45", "--repeats", 2, "--target-auc", 0.6, "--target-auc", 0.9999)
    assert code == 0, err
    for words in ("AUROC", "extrapolated", "60 subjects in the table", "AUROC 0.6 takes about", "AUROC 0.9999 is not reachable by this curve"):
        assert words in out


def test_several_classes_have_a_curve_and_no_formula(run, tmp_path, monkeypatch):
    table = emotions(25)
    write_table(table, tmp_path / "t.parquet")
    monkeypatch.setattr(planning, "train", Spy(table, lambda _call, X: X[:, :3]))
    code, out, err = run("plan", tmp_path / "t.parquet", "--task", "emotion", "--sizes", "8,12,20", "--repeats", 2)
    assert code == 0, err
    assert "UAR" in out
    assert "for two classes" in out
    assert "To train the model" not in out


def test_where_the_table_shows_chance_no_formula_is_made_up(run, tmp_path, monkeypatch):
    table = table_of(60)
    write_table(table, tmp_path / "t.parquet")
    monkeypatch.setattr(planning, "train", Spy(table, lambda _call, X: np.zeros(len(X))))
    code, out, _ = run("plan", tmp_path / "t.parquet", "--sizes", "45", "--repeats", 2)
    assert code == 0
    assert "no formula holds" in out
    assert "To train the model" not in out
    out = run("plan", tmp_path / "t.parquet", "--sizes", "45", "--repeats", 2, "--auc", 0.8)[1]
    assert "AUC of 0.80" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "--auc", 0.75, "--features", 20), "--prevalence"),
        (("plan", "--prevalence", 0.2, "--features", 20), "--auc"),
        (("plan", "--prevalence", 0.2, "--auc", 0.75), "--features"),
        ((*ASSUMED, "--recordings-each", 5), "icc"),
        ((*ASSUMED, "--target-auc", 0.8), "feature table"),
        ((*ASSUMED, "--slope-width", 2), "--slope-width"),
        (("plan", "--prevalence", 2, "--auc", 0.75, "--features", 20), "prevalence"),
        (("plan", "--prevalence", 0.2, "--auc", 0.75, "--features", 0), "--features"),
        (("plan", "t.parquet", "--sizes", "a few"), "40,80,160"),
        (("plan", "t.parquet", "--sizes", "2,40"), "whole numbers from 5"),
        (("plan", "t.parquet", "--sizes", ""), "40,80,160"),
        (("plan", "t.parquet", "--repeats", 1), "at least 2"),
        (("plan", "t.parquet", "--target-auc", 2), "targets"),
        ((*ASSUMED, "--icc", 0, "--recordings-each", 1_000_000_000), "from 1 to 10,000"),
        (("plan", "t.parquet", "--task", "astrology"), "depression"),
        (("plan", "t.parquet", "--head", "oracle"), "linear"),
    ],
)
def test_wrong_usage_exits_2_before_any_training(run, words, message):
    code, out, err = run(*words)
    assert code == 2
    assert message in out + err


def test_a_missing_table_fails_with_one_line(run, tmp_path):
    code, _, err = run("plan", tmp_path / "nothing.parquet")
    assert code == 1
    assert str(tmp_path) not in err
