"""`clinical-ser evaluate` as a user types it: files, screen and exit codes."""

import json
import stat

import numpy as np
import pytest

from clinical_ser.cohorts.table import read_table, write_table
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.predictions import write_predictions
from tests.evaluation.made import two_classes
from tests.tables import table_of


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "clinic-of-jane-doe.parquet"
    write_table(table_of(60, seed=3), path)
    return path


QUICK = ("--replicates", "30", "--workers", "1")


def test_a_bundle_and_a_table_give_evidence_report_and_card(run, bundle, table, tmp_path):
    folder = tmp_path / "out"
    code, out, err = run("evaluate", bundle, table, "-o", folder, *QUICK)
    assert code == 0, err
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "card.md", "evidence.json", "report.html", "report.pdf"]
    evidence = Evidence.from_json((folder / "evidence.json").read_bytes())
    assert (evidence.origin, evidence.flow.evaluated, evidence.model.name) == ("external", 60, "random")
    assert "AUROC" in out
    card = Card.from_json((folder / "card.json").read_bytes())
    assert len(card.external) == 1
    assert card.hti1["predictive_performance_external_validity"].value
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"jane" not in everything
    assert b"s0001" not in everything
    assert stat.S_IMODE((folder / "evidence.json").stat().st_mode) & 0o077 == 0


def test_people_who_were_trained_on_make_it_fail_by_name(run, bundle, tmp_path):
    write_table(table_of(80), tmp_path / "same.parquet")
    words = ("evaluate", bundle, tmp_path / "same.parquet", "-o", tmp_path / "out", "--training", tmp_path / "same.parquet", *QUICK)
    code, _, err = run(*words)
    assert code == 1
    assert "shared_subjects" in err
    assert (tmp_path / "out" / "report.html").is_file(), "the report says what is wrong"
    accepted = [word for name in ("shared_subjects", "same_audio", "near_identical", "nuisance") for word in ("--accept-leak", name)]
    code, _, err = run(*words, *accepted)
    assert code == 0, err
    assert "shared_subjects" in Evidence.from_json((tmp_path / "out" / "evidence.json").read_bytes()).accepted_leaks


def test_the_training_cohort_is_recognised_without_being_shown_again_and_another_table_is_not_taken_for_it(run, bundle, table, tmp_path):
    write_table(table_of(80), tmp_path / "same.parquet")
    code, _, err = run("evaluate", bundle, tmp_path / "same.parquet", "-o", tmp_path / "out", *QUICK)
    assert code == 1
    assert "no other cohort" in err
    code, _, err = run("evaluate", bundle, table, "-o", tmp_path / "o2", "--training", table, *QUICK)
    assert code == 2
    assert "not trained on" in err


def test_guards_that_could_not_look_are_named(run, bundle, table, tmp_path):
    _, _, err = run("evaluate", bundle, table, "-o", tmp_path / "out", *QUICK)
    assert "Not checked: shared_subjects" in err


def test_labels_that_the_model_does_not_know_stop_the_evaluation(run, bundle, table, tmp_path):
    made = read_table(table)
    made.frame["label"] = made.frame["label"].replace("not_depressed", "healthy")
    write_table(made, table)
    code, _, err = run("evaluate", bundle, table, "-o", tmp_path / "out", *QUICK)
    assert code == 2
    assert "another label" in err


def test_a_gate_that_is_not_met_fails_by_name(run, bundle, table, tmp_path):
    (tmp_path / "gates.toml").write_text(
        '[[gate]]\nname = "miracle"\nfigure = "auroc"\nat_least = 1.0\n[[gate]]\nname = "some"\nsubjects_at_least = 5\n'
    )
    code, out, err = run("evaluate", bundle, table, "-o", tmp_path / "out", "--require", tmp_path / "gates.toml", "--replicates", 1000)
    assert code == 1
    assert "miracle" in err
    assert "Gate some: met" in out
    gates = Evidence.from_json((tmp_path / "out" / "evidence.json").read_bytes()).gates
    assert {gate.name: gate.met for gate in gates} == {"miracle": False, "some": True}


def test_out_of_fold_predictions_are_evaluated_with_the_table_behind_them(run, tmp_path):
    write_table(table_of(60), tmp_path / "t.parquet")
    code, _, err = run("train", tmp_path / "t.parquet", "-o", tmp_path / "m", "--no-sign", "--predictions", tmp_path / "p.parquet")
    assert code == 0, err
    words = ("evaluate", "--predictions", tmp_path / "p.parquet", "--features", tmp_path / "t.parquet", "-o", tmp_path / "out", *QUICK, "--json")
    code, out, err = run(*words)
    evidence = json.loads(out)
    assert evidence["origin"] == "out_of_fold"
    assert {finding["name"]: finding["verdict"] for finding in evidence["leaks"]}["shared_subjects"] == "pass"
    assert not (tmp_path / "out" / "card.json").exists()


def test_scores_of_other_software_are_evaluated(run, tmp_path):
    made = two_classes(120, prevalence=0.4)
    frame = made.frame[["subject", "label", "sex"]].assign(probability=made.probabilities[:, 1])
    frame.to_csv(tmp_path / "s.csv", index=False)
    code, _, err = run("evaluate", "--scores", tmp_path / "s.csv", "--threshold", "0.3", "-o", tmp_path / "out", "--by", "sex", *QUICK)
    assert code == 0, err
    evidence = Evidence.from_json((tmp_path / "out" / "evidence.json").read_bytes())
    assert evidence.figures["sensitivity"].value == pytest.approx(made.frame["above"][made.target == 1].mean())
    assert "deferred" not in evidence.figures
    assert {finding.verdict for finding in evidence.leaks} == {"not_checked"}


def test_another_model_is_compared_on_the_same_table(run, bundle, table, tmp_path):
    code, _, err = run("evaluate", bundle, table, "-o", tmp_path / "out", "--against", bundle, *QUICK)
    assert code == 0, err
    found = [c for c in Evidence.from_json((tmp_path / "out" / "evidence.json").read_bytes()).comparisons if c.kind == "model"]
    assert [comparison.difference.value for comparison in found] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--output"),
        (("-o", "out"), "MODEL and TABLE"),
        (("model", "-o", "out"), "MODEL and TABLE"),
        (("--predictions", "p.parquet", "--scores", "s.csv", "-o", "out"), "MODEL and TABLE"),
        (("--scores", "nowhere.csv", "-o", "out"), "a CSV file that is there"),
        (("--scores", "p.csv", "--comparator", "phq2", "-o", "out"), "phq2>=3"),
        (("--scores", "p.csv", "--replicates", "0", "-o", "out"), "at least 20"),
        (("--scores", "p.csv", "--features", "t.parquet", "-o", "out"), "belongs to --predictions"),
        (("--predictions", "p.parquet", "--threshold", "0.4", "-o", "out"), "belongs to --scores"),
        (("--scores", "p.csv", "--by", "subject", "-o", "out"), "forms groups"),
        (("--scores", "p.csv", "--accept-leak", "everything", "-o", "out"), "shared_subjects"),
        (("--scores", "p.csv", "--learning-curve", "nowhere.json", "-o", "out"), "plan TABLE --json"),
        (("--scores", "p.csv", "--prevalence", "0.2", "-o", "out"), "--stated-prevalence"),
        (("--scores", "p.csv", "--stated-prevalence", "0.3", "--prevalence", "1.5", "-o", "out"), "strictly between"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_would_be_right(run, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = two_classes(40)
    made.frame[["subject", "label"]].assign(probability=made.probabilities[:, 1]).to_csv("p.csv", index=False)
    write_predictions(made, tmp_path / "p.parquet")
    code, out, err = run("evaluate", *words)
    assert code == 2, err
    assert message in " ".join((out + err).split())


@pytest.mark.parametrize("content", ["", "subject\x00", "a,b\n1,2\n", '"unclosed'])
def test_damaged_scores_are_refused_in_one_line(run, content, tmp_path):
    (tmp_path / "s.csv").write_text(content)
    code, _, err = run("evaluate", "--scores", tmp_path / "s.csv", "-o", tmp_path / "out")
    assert code in {1, 2}
    assert "Traceback" not in err
    assert str(tmp_path) not in err


def test_a_table_measured_otherwise_is_refused(run, bundle, table, tmp_path):
    made = read_table(table)
    made.extractors["praat"] = "praat/0"
    write_table(made, table)
    code, _, err = run("evaluate", bundle, table, "-o", tmp_path / "out", *QUICK)
    assert code == 1
    assert "praat" in err


def test_a_table_without_labels_is_refused(run, bundle, table, tmp_path):
    made = read_table(table)
    made.frame["label"] = np.full(60, None, dtype=object)
    write_table(made, table)
    code, _, err = run("evaluate", bundle, table, "-o", tmp_path / "out", *QUICK)
    assert code in {1, 2}
    assert "Traceback" not in err
