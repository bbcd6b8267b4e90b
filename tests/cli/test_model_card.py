"""`clinical-ser model card`: show, check, fill, extend; the exit code is what a release script reads."""

import json
import tomllib

import pytest

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.card import Card, make_card
from clinical_ser.evaluation.card_facts import TrainingFacts
from clinical_ser.evaluation.card_fields import KEYS
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.leaks import LeakFinding
from clinical_ser.evaluation.predictions import of_training, predict
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from tests.tables import table_of

QUICK = EvaluationOptions(replicates=20)
ANSWERS = "".join(f'{key} = "what a person says of {key}"\n' for key in KEYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an unsigned bundle `voice`, and `elsewhere.json`, an evaluation of it in another cohort."""
    place = tmp_path_factory.mktemp("carded")
    training = train(table_of(80), DEPRESSION, TrainingOptions(refits=2, split=3))
    predictions = of_training(training, name="voice", version="1")
    card = make_card(TrainingFacts.of(training), evaluate(predictions, options=QUICK), name="voice", version="1")
    save(training, place / "voice", name="voice", version="1", statement="", card=card.to_json(), software={"numpy": "0"}, key=None)
    about = predictions.model.model_copy(update={"learned": read_bundle(place / "voice").learned_digest})
    elsewhere = evaluate(predict(training.model, table_of(60, seed=7), about), options=QUICK)
    apart = LeakFinding(name="shared_subjects", verdict="pass", statement="No subject is in both.")
    elsewhere = elsewhere.model_copy(update={"leaks": (apart,)})
    (place / "elsewhere.json").write_text(elsewhere.model_dump_json(), encoding="utf-8")
    return place


@pytest.fixture
def about(tmp_path):
    (tmp_path / "about.toml").write_text(ANSWERS, encoding="utf-8")
    return tmp_path / "about.toml"


def test_the_card_is_shown_in_short_and_says_that_it_is_not_ready(run, folder):
    code, out, err = run("model", "card", folder / "voice")
    assert code == 0, err
    assert "AUROC" in out
    assert "Flagged, depressed" in out
    assert "Not ready for release: blank items" in out
    assert len(out.splitlines()) < 40


def test_the_card_as_json_is_the_card_in_the_bundle(run, folder):
    code, out, _ = run("model", "card", folder / "voice", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(read_bundle(folder / "voice").files["card.json"])


def test_the_card_as_markdown_is_whole(run, folder):
    code, out, _ = run("model", "card", folder / "voice", "--markdown")
    assert code == 0
    assert out.startswith("# voice 1\n")
    assert "**`predictive_updates_correction`**" in out
    assert "**`27c`**" in out


def test_a_card_with_blanks_is_refused_by_name(run, folder):
    code, out, _ = run("model", "card", folder / "voice", "--check")
    assert code == 1
    for words in ("hti1 predictive_details_funding: blank", "chai ReleaseInfo.ReleaseDate: blank", "tripod 17: blank", "funding (Funding)"):
        assert words in out
    assert "predictive_performance_internal_validity" not in out


def test_a_card_with_every_answer_passes(run, folder, about):
    code, out, err = run("model", "card", folder / "voice", "--check", "--about", about)
    assert (code, err) == (0, "")
    assert "The card is complete" in out


def test_one_blank_is_enough_to_fail(run, folder, about):
    about.write_text(ANSWERS.replace('"what a person says of funding"', '""'), encoding="utf-8")
    code, out, _ = run("model", "card", folder / "voice", "--check", "--about", about)
    assert code == 1
    assert [line.strip() for line in out.splitlines() if line.endswith(": blank")] == [
        "hti1 predictive_details_funding: blank",
        "chai TrustIngredients.TransparencyInformation.FundingSource: blank",
        "tripod 18a: blank",
    ]


def test_the_check_as_json_names_the_blanks(run, folder):
    code, out, _ = run("model", "card", folder / "voice", "--check", "--json")
    found = json.loads(out)
    assert (code, found["complete"]) == (1, False)
    assert "predictive_details_funding" in found["missing"]["hti1"]
    assert "funding" in found["questions"]


def test_an_evaluation_elsewhere_is_added_and_asks_who_ran_it(run, folder, about):
    about.write_text(ANSWERS.replace('external_tester = "what a person says of external_tester"\n', ""), encoding="utf-8")
    code, out, _ = run("model", "card", folder / "voice", "--check", "--about", about, "--evidence", folder / "elsewhere.json")
    assert code == 1
    assert "hti1 predictive_validation_tester: blank" in out
    assert "predictive_validation_process" not in out


def test_the_filled_card_is_written_with_an_unchanged_model(run, folder, about, tmp_path):
    command = ("model", "card", folder / "voice", "--about", about, "--evidence", folder / "elsewhere.json", "-o", tmp_path / "filled")
    code, out, err = run(*command)
    assert code == 0, err
    assert "not signed" in out
    old, new = read_bundle(folder / "voice"), read_bundle(tmp_path / "filled")
    assert {name for name in new.files if new.files[name] != old.files[name]} == {"card.json"}
    assert Card.from_json(new.files["card.json"]).supplied["funding"] == "what a person says of funding"
    assert run("model", "card", tmp_path / "filled", "--check")[0] == 0
    code, _, err = run(*command)
    assert code == 1
    assert "in the way" in err or "already" in err


def test_the_template_is_printed_without_a_model(run):
    code, out, _ = run("model", "card", "--template")
    assert code == 0
    assert list(tomllib.loads(out)) == list(KEYS)


@pytest.mark.parametrize(
    ("words", "named"),
    [((), "MODEL"), (("voice", "--markdown", "--json"), "--markdown"), (("voice", "--markdown", "--check"), "--markdown")],
    ids=["no model", "two forms", "check as Markdown"],
)
def test_options_that_do_not_go_together_are_wrong_usage(run, words, named):
    code, _, err = run("model", "card", *words)
    assert code == 2
    assert named in err


def test_answers_that_cannot_be_used_are_named_by_key_and_never_by_path(run, folder, tmp_path):
    (tmp_path / "jane-doe.toml").write_text('funding = "N/A"\n', encoding="utf-8")
    code, out, err = run("model", "card", folder / "voice", "--about", tmp_path / "jane-doe.toml")
    assert code == 2
    assert "funding" in err
    assert "jane" not in out + err


def test_answers_nested_without_end_are_wrong_usage(run, folder, tmp_path):
    (tmp_path / "about.toml").write_text("funding = " + "[" * 50_000, encoding="utf-8")
    code, _, err = run("model", "card", folder / "voice", "--about", tmp_path / "about.toml")
    assert code == 2
    assert "not TOML" in err


def test_a_file_that_is_no_evidence_fails(run, folder, about):
    code, _, err = run("model", "card", folder / "voice", "--evidence", about)
    assert code == 1
    assert "evidence.json" in err
