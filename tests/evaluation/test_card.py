"""The card: what the run fills, what a person fills, what stays missing, and that neither can be faked."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION, Task, TaskKind
from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.evaluation.card import SIMULATED_STATEMENT, Card, Entry, check_card, make_card, without_curves
from clinical_ser.evaluation.card_facts import TrainingFacts, statements
from clinical_ser.evaluation.card_fields import (
    KEYS,
    LISTS,
    MAX_FILE_BYTES,
    MAX_TEXT,
    QUESTIONS,
    about_template,
    checked_answers,
    item_list,
    label_of,
    read_about,
)
from clinical_ser.evaluation.card_text import card_markdown, plain
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.leaks import LeakFinding
from clinical_ser.evaluation.predictions import of_training, predict
from clinical_ser.models.training import TrainingOptions, train
from tests.tables import table_of

QUICK = EvaluationOptions(replicates=20)
EVERYTHING = {key: f"what a person says of {key.replace('_', ' ')}" for key in KEYS}
WITHOUT_EXTERNAL = {key: text for key, text in EVERYTHING.items() if not key.startswith("external_")} | {
    "external_validation": "unknown: no second cohort could be had yet",
    "external_tester": "not applicable: there is no second cohort",
}


@pytest.fixture(scope="module")
def training():
    return train(table_of(160), DEPRESSION, TrainingOptions(refits=2, split=3))


@pytest.fixture(scope="module")
def facts(training):
    return TrainingFacts.of(training)


@pytest.fixture(scope="module")
def evidence(training):
    return evaluate(of_training(training, name="voice", version="1"), options=QUICK)


@pytest.fixture(scope="module")
def elsewhere(training):
    about = of_training(training, name="voice", version="1").model
    found = evaluate(predict(training.model, table_of(120, seed=7), about), options=QUICK)
    return found.model_copy(update={"leaks": (leak("shared_subjects", "pass"),)})


@pytest.fixture(scope="module")
def card(facts, evidence):
    return make_card(facts, evidence, name="voice", version="1")


def leak(name, verdict="fail"):
    return LeakFinding(name=name, verdict=verdict, statement="One voice is on both sides.")


def test_each_list_has_its_standard_s_items():
    assert len(item_list("hti1").item) == 31
    assert all(item.key.startswith("predictive_") for item in item_list("hti1").item)
    numbers = {item.key.rstrip("abcdefg") for item in item_list("tripod").item}
    assert (len(item_list("tripod").item), numbers) == (52, {str(n) for n in range(1, 28)})
    for block in ("UsefulnessUsabilityEfficacy", "FairnessEquity", "SafetyReliability"):
        assert sum(item.key.startswith(f"KeyMetrics.{block}.") for item in item_list("chai").item) == 6


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_name_only_statements_and_questions_that_there_are(name, facts, evidence):
    say = statements(facts, evidence, (), name="voice", version="1", statement="")
    items = item_list(name).item
    assert len({item.key for item in items}) == len(items)
    assert {item.section for item in items} == set(item_list(name).sections)
    for item in items:
        assert set(item.questions) <= set(KEYS), item.key
        assert item.run or item.questions, item.key
        for statement in item.run:
            say(statement)
        # A required item that the run leaves open has somebody to ask.
        assert not item.required or item.person or item.otherwise or any(say(statement) for statement in item.run), item.key


def test_every_question_fills_something():
    asked = {key for name in LISTS for item in item_list(name).item for key in item.questions}
    assert asked == set(KEYS)
    assert len(set(KEYS)) == len(QUESTIONS)


def test_what_only_a_person_knows_is_missing_and_never_invented(card):
    entry = card.hti1["predictive_details_funding"]
    assert (entry.value, entry.source, entry.lacking) == (None, "missing", ("funding",))
    assert "predictive_details_funding" in card.missing["hti1"]
    assert "18b" in card.missing["tripod"]
    assert "ReleaseInfo.ReleaseDate" in card.missing["chai"]
    assert not check_card(card).complete


def test_validity_is_told_with_interval_and_number_of_people(card, evidence):
    said = card.hti1["predictive_performance_internal_validity"]
    auroc = evidence.figures["auroc"]
    assert said.source == "run"
    assert f"AUROC {auroc.value:.3f} (95 % interval {auroc.low:.3f} to {auroc.high:.3f}), n = 160 subjects" in said.value
    assert f"n = {evidence.figures['sensitivity'].subjects} subjects" in said.value
    assert "NPV at 0.10" in said.value


def test_fairness_is_told_group_by_group_with_the_gap(card, evidence):
    said = card.hti1["predictive_performance_internal_fairness"].value
    female = evidence.group("sex", "female")
    assert f"female ({female.subjects} subjects): AUROC {female.figures['auroc'].value:.3f}" in said
    gap = next(gap for gap in evidence.gaps if gap.figure == "auroc")
    assert f"AUROC {gap.best} over {gap.worst} {gap.difference.value:.3f}" in said


def test_a_group_too_small_says_so_and_gets_no_number(facts, training):
    rare = training.out_of_fold["subject"].isin(["s0000", "s0001", "s0002"])
    grouped = replace(training, out_of_fold=training.out_of_fold.assign(site=np.where(rare, "north", "south")))
    found = evaluate(of_training(grouped, name="voice", version="1"), options=QUICK)
    card = make_card(facts, found, name="voice", version="1")
    assert "fewer than 5 people each (3 subjects): too few people" in card.tripod["23b"].value
    assert "Too few people for figures: fewer than 5 people each (3 subjects)." in card_markdown(card)
    assert card.tripod["6a"].value == "Subjects evaluated, by site: fewer than 5 people each 3, south 157."  # no count of sites that are not named


def test_without_groups_the_card_asks_why_fairness_was_not_examined(facts, evidence):
    card = make_card(facts, evidence.model_copy(update={"groups": (), "gaps": ()}), name="voice", version="1")
    assert card.hti1["predictive_performance_internal_fairness"].lacking == ("fairness_unexamined",)


def test_answers_complete_what_the_run_began(card):
    before = card.hti1["predictive_cautions_risks"]
    after = card.extended(supplied={"risks": "A person may be missed."}).hti1["predictive_cautions_risks"]
    assert (before.source, before.lacking, before.complete) == ("run", ("risks",), False)
    assert (after.source, after.lacking, after.complete) == ("run_and_person", (), True)
    assert after.value == f"{before.value}\n\nA person may be missed."


def test_one_answer_fills_every_list_that_asks_for_it(card):
    filled = card.extended(supplied={"funding": "The Foundation, which had no say."})
    for entry in (
        filled.hti1["predictive_details_funding"],
        filled.chai["TrustIngredients.TransparencyInformation.FundingSource"],
        filled.tripod["18a"],
    ):
        assert (entry.value, entry.source) == ("The Foundation, which had no say.", "person")


def test_several_answers_in_one_item_are_told_apart_and_all_are_needed(card):
    half = card.extended(supplied={"ethics_approval": "Board 7, number 12"}).tripod["17"]
    assert (half.value, half.lacking) == ("Board 7, number 12", ("consent",))
    whole = card.extended(supplied={"ethics_approval": "Board 7, number 12", "consent": "In writing"}).tripod["17"]
    assert whole.value == "Ethical approval: Board 7, number 12\n\nConsent: In writing"


def test_a_card_with_every_answer_is_complete(card):
    filled = card.extended(supplied=WITHOUT_EXTERNAL)
    assert check_card(filled) == check_card(filled).model_copy(update={"complete": True, "questions": (), "leaks": ()})
    assert not any(filled.missing.values())


def test_unknown_with_a_reason_counts_as_filled(card):
    answers = dict.fromkeys(KEYS, "unknown: the study's file was lost in the move")
    assert check_card(card.extended(supplied=answers)).complete


def test_an_item_that_its_list_leaves_open_is_no_blank(card):
    assert card.chai["ReleaseInfo.EHRCompatibility"].value is None
    assert "ReleaseInfo.EHRCompatibility" not in card.missing["chai"]


def test_an_item_that_the_card_does_not_have_is_a_blank(card):
    older = card.model_copy(update={"tripod": {key: entry for key, entry in card.tripod.items() if key != "13"}})
    assert set(older.missing["tripod"]) == {*card.missing["tripod"], "13"}


def test_without_another_cohort_the_external_items_are_missing(card):
    for key in ("data_source", "demographics", "process"):
        assert card.hti1[f"predictive_validation_{key}"].lacking == ("external_validation",)
    assert card.hti1["predictive_performance_external_validity"].value is None


def test_another_cohort_fills_the_external_items_and_asks_for_its_setting(card, elsewhere):
    wider = card.extended(external=[elsewhere])
    auroc = elsewhere.figures["auroc"]
    assert f"AUROC {auroc.value:.3f}" in wider.hti1["predictive_performance_external_validity"].value
    assert wider.hti1["predictive_performance_external_fairness"].complete
    assert (wider.hti1["predictive_validation_tester"].value, wider.hti1["predictive_validation_tester"].lacking) == (None, ("external_tester",))
    assert wider.hti1["predictive_validation_process"].complete
    assert "by sex: female 60, male 60" in wider.tripod["20c"].value
    assert check_card(wider.extended(supplied=EVERYTHING)).complete


def test_the_same_evaluation_counts_once(card, elsewhere):
    assert card.extended(external=[elsewhere, elsewhere]).extended(external=[elsewhere]).external == (without_curves(elsewhere),)


def test_simulated_speech_is_named_wherever_performance_is(facts, evidence, elsewhere):
    def simulated(found):
        return found.model_copy(update={"simulated": True, "model": found.model.model_copy(update={"simulated": True})})

    made = make_card(facts.model_copy(update={"simulated": True}), simulated(evidence), name="voice", version="1", external=[simulated(elsewhere)])
    assert made.statement == SIMULATED_STATEMENT
    for entries in map(made.entries, LISTS):
        for key, entry in entries.items():
            for part in (entry.value or "").split("\n\n"):
                assert "SIMULATED" in part or not any(
                    word in part for word in ("AUROC 0", "Sensitivity 0", "Brier score 0", "Coverage, depressed 0")
                ), key
    text = card_markdown(made)
    for heading in ("## Out of fold, in the training cohort", "## External cohort 1"):
        assert f"{heading}\n\n> The model learned from SIMULATED speech and was evaluated on SIMULATED speech" in text
    assert made.extended(supplied={"funding": "The Foundation"}).statement == SIMULATED_STATEMENT


def test_real_speech_is_not_called_simulated(card):
    assert "SIMULATED" not in card.to_json().decode()


def test_no_attribute_of_a_person_is_claimed_as_input(card):
    said = card.hti1["predictive_development_variables"].value
    for attribute in (
        "Race",
        "ethnicity",
        "language",
        "sexual orientation",
        "gender identity",
        "sex",
        "date of birth",
        "social determinants",
        "health status",
    ):
        assert attribute in said
    assert "are not used as input features" in said
    assert f"{sum(card.training.features.values())} acoustic measurements" in said


def test_the_same_run_gives_the_same_bytes_and_they_read_back(card, facts, evidence):
    again = make_card(facts, evidence, name="voice", version="1")
    assert again.to_json() == card.to_json()
    assert Card.from_json(card.to_json()) == card
    shuffled = dict(reversed(list(WITHOUT_EXTERNAL.items())))
    assert card.extended(supplied=shuffled).to_json() == card.extended(supplied=WITHOUT_EXTERNAL).to_json()


def test_the_card_holds_no_curve_and_nobody_s_name(card, training, evidence):
    content = card.to_json()
    assert card.internal.binary is None
    assert card.figures == evidence.figures
    assert len(content) < 200_000
    assert not any(subject in content.decode() for subject in training.out_of_fold["subject"].unique())


def test_a_failed_leak_guard_blocks_release_unless_accepted(card, facts, evidence):
    def leaking(**accepted):
        found = evidence.model_copy(update={"leaks": (leak("shared_subjects"), leak("same_audio", "warn")), **accepted})
        return make_card(facts, found, name="voice", version="1", supplied=WITHOUT_EXTERNAL)

    assert check_card(leaking()).leaks == ("out of fold: shared_subjects",)
    assert not check_card(leaking()).complete
    assert "Leak guard failed and was not accepted: out of fold: shared\\_subjects" in card_markdown(leaking())
    assert check_card(leaking(accepted_leaks=("shared_subjects",))).complete
    assert "Leak guard shared subjects: fail. One voice is on both sides." in leaking().tripod["26"].value


def test_people_whom_the_model_has_heard_are_no_other_cohort_whoever_accepts_it(card, elsewhere):
    heard = elsewhere.model_copy(update={"leaks": (leak("shared_subjects"),), "accepted_leaks": ("shared_subjects",)})
    assert check_card(card.extended(external=[heard])).leaks == ("external cohort 1: shared_subjects",)
    unseen = elsewhere.model_copy(update={"leaks": (leak("shared_subjects", "not_checked"),)})
    assert check_card(card.extended(external=[unseen])).leaks == ("external cohort 1: shared_subjects",)
    accepted = check_card(card.extended(external=[unseen.model_copy(update={"accepted_leaks": ("shared_subjects",)})]))
    assert (accepted.leaks, accepted.accepted) == ((), ("external cohort 1: shared_subjects",))


@pytest.mark.parametrize("update", [{"name": "another"}, {"version": "2"}], ids=["name", "version"])
def test_evidence_of_another_model_is_refused(card, elsewhere, update):
    foreign = elsewhere.model_copy(update={"model": elsewhere.model.model_copy(update=update)})
    with pytest.raises(InvalidValueError, match="one of voice 1"):
        card.extended(external=[foreign])


def test_out_of_fold_evidence_does_not_pass_for_another_cohort(card, facts, evidence, elsewhere):
    with pytest.raises(InvalidValueError, match="one that is external"):
        card.extended(external=[evidence])
    with pytest.raises(InvalidValueError, match="one that is out_of_fold"):
        make_card(facts, elsewhere, name="voice", version="1")


def test_a_task_of_several_classes_is_told_in_its_own_figures():
    table = table_of(90)
    classes = ("calm", "glad", "sad")
    which = np.argsort(np.argsort(table.frame["truth"])) * len(classes) // len(table.frame)
    labelled = FeatureTable(table.frame.assign(label=np.array(classes)[which]), table.feature_names, table.extractors)
    task = Task(name="mood", kind=TaskKind.MULTICLASS, classes=classes, limits=DEPRESSION.limits)
    done = train(labelled, task, TrainingOptions(refits=2, split=3))
    card = make_card(TrainingFacts.of(done), evaluate(of_training(done, name="mood", version="1"), options=QUICK), name="mood", version="1")
    assert "UAR 0." in card.hti1["predictive_performance_internal_validity"].value
    assert "calm, glad, sad" in card.hti1["predictive_details_output_value"].value
    assert "weighted to count alike" in card.tripod["13"].value
    assert card.chai["KeyMetrics.UsefulnessUsabilityEfficacy.MetricGoal"].lacking == ("performance_goal",)
    assert check_card(card.extended(supplied=WITHOUT_EXTERNAL)).complete
    assert "Recall, calm" in card_markdown(card)


def test_the_template_asks_every_question_and_reads_back_as_nothing(tmp_path):
    template = about_template()
    assert list(tomllib.loads(template)) == list(KEYS)
    assert "# Fills hti1: predictive_details_funding; chai: TrustIngredients.TransparencyInformation.FundingSource; tripod: 18a\nfunding" in template
    (tmp_path / "about.toml").write_text(template, encoding="utf-8")
    assert read_about(tmp_path / "about.toml") == {}


def test_answers_are_read_stripped_and_in_order(tmp_path):
    (tmp_path / "about.toml").write_text('funding = "  Eigenmittel für 声音 "\ndeveloper = """One\n\nTwo"""\n', encoding="utf-8")
    assert list(read_about(tmp_path / "about.toml").items()) == [("developer", "One\n\nTwo"), ("funding", "Eigenmittel für 声音")]


def test_an_unknown_key_is_named_with_those_near_it():
    with pytest.raises(InvalidValueError, match=r"'fundings' for a key of --about, expected one of .*'funding'"):
        checked_answers({"fundings": "The Foundation"})


@pytest.mark.parametrize(
    "text", ["N/A", "n/a", "TBD", "todo", "none", "-", "???", "...", "N/A.", "n.a.", "TBD.", "None.", "(none)", "pending", "Pending...", "to  do!"]
)
def test_a_stand_in_for_an_answer_is_refused_by_key(text):
    with pytest.raises(InvalidValueError, match=r"only stands in .* for funding of --about"):
        checked_answers({"funding": text})


@pytest.mark.parametrize(
    "text",
    [
        "unknown",
        "Unknown:",
        "unknown: no idea",
        "not applicable",
        "not applicable - x",
        "UNKNOWN –   short   ",
        "unknown.",
        "Not applicable.",
        "unknown: ??????????",
        "unknown. n o . . . . . .",
        "(unknown)",
        "not\u3000applicable",
    ],
)
def test_unknown_without_a_reason_is_refused(text):
    with pytest.raises(InvalidValueError, match="without a reason of at least 10 letters and digits"):
        checked_answers({"funding": text})


@pytest.mark.parametrize(
    "text",
    [
        "unknown: the study's file was lost",
        "not applicable - nobody was treated",
        "Not applicable: no cohort was followed",
        "Unknown donors gave it all",
        "WHO",
    ],
)
def test_an_answer_or_a_reason_is_taken(text):
    assert checked_answers({"funding": text}) == {"funding": text}


@pytest.mark.parametrize("given", [7, True, ["The Foundation"], {"name": "The Foundation"}], ids=str)
def test_an_answer_that_is_no_text_is_refused_by_key(given):
    with pytest.raises(InvalidValueError, match="for funding of --about, expected a text"):
        checked_answers({"funding": given})


def test_wide_and_unbroken_spaces_become_plain_ones():
    assert checked_answers({"funding": "\u3000Grant\u00a012\u300034\u2009EUR"}) == {"funding": "Grant 12 34 EUR"}


def test_long_and_unprintable_answers_are_refused_and_not_quoted():
    for text in ("secret " * MAX_TEXT, "secret\x1b[31m", "secret\u202e"):
        with pytest.raises(InvalidValueError) as refused:
            checked_answers({"funding": text})
        assert "secret" not in str(refused.value)
        assert "funding" in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"funding = ", b"\xff\xfe", b"#" * (MAX_FILE_BYTES + 1), b"funding = " + b"[" * 50_000, b"funding = " + b"1" * 5_000],
    ids=["no TOML", "no UTF-8", "too large", "nested", "many digits"],
)
def test_a_file_of_answers_that_cannot_be_used_is_refused_without_its_path(tmp_path, content):
    path = tmp_path / "jane-doe.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidValueError, match="--about") as refused:
        read_about(path)
    assert "jane" not in str(refused.value)
    with pytest.raises(InvalidValueError, match="cannot be read"):
        read_about(tmp_path / "absent.toml")


def test_a_blank_cannot_be_written_into_an_entry():
    for value, source in (("  ", "person"), (None, "person"), ("text", "missing")):
        with pytest.raises(ValueError, match="or is missing"):
            Entry(value=value, source=source)


def test_what_no_run_can_know_waits_for_a_person(card):
    for entries, key, question in (
        (card.tripod, "2", "abstract"),
        (card.tripod, "9a", "predictor_choice"),
        (card.tripod, "12f", "updating"),
        (card.tripod, "24", "updating"),
        (card.chai, "KeyMetrics.SafetyReliability.MetricGoal", "reliability_goal"),
        (card.hti1, "predictive_validation_tester", "external_tester"),
    ):
        assert entries[key].lacking == (question,), key
    for entry in (card.tripod["12f"], card.tripod["24"], card.chai["KeyMetrics.SafetyReliability.MetricGoal"]):
        assert entry.value is None


def test_features_are_counted_with_the_families_left_out_and_no_claim_how_they_were_chosen(facts, evidence):
    options = facts.options.model_copy(update={"without": ("pitch",)})
    part = facts.model_copy(update={"features": {"timing": 10, "voice": 8}, "extractors": {"praat": "1", "timing": "1"}, "options": options})
    said = make_card(part, evidence, name="voice", version="1").tripod["9a"]
    assert said.value == "18 acoustic measurements (timing 10, voice 8) of the sets praat, timing (families left out: pitch)."
    assert (said.source, said.lacking) == ("run", ("predictor_choice",))


def test_nothing_is_claimed_that_was_not_measured_or_is_not_the_package_s(card):
    content = card.to_json().decode()
    for claim in ("Nothing is sent to a third party", "weigh less", "not rewarded", "no evaluation changed the model"):
        assert claim not in content
    assert (
        "What the place that runs it passes on is not known here" in card.chai["TrustIngredients.TransparencyInformation.ThirdPartyInformation"].value
    )
    answered = card.extended(supplied={"third_parties": "The clinic's own server."})
    assert "The clinic's own server." in answered.chai["TrustIngredients.TransparencyInformation.ThirdPartyInformation"].value


def test_a_threshold_that_missed_its_target_is_told_as_what_it_is(facts, evidence):
    def told(shown):
        changed = facts.model_copy(update={"sensitivity_shown": shown})
        return make_card(changed, evidence, name="voice", version="1").tripod["15"].value.split("\n\n")[1]

    assert "the highest score of a positive recording at which the one-sided 95 % lower bound" in told(True)
    assert "NOT" not in told(True)
    assert "at the lowest score of a positive recording" in told(False)
    assert "NOT met" in told(False)
    assert "highest" not in told(False)


def test_a_question_of_another_version_is_shown_by_its_key(card):
    assert (label_of("funding"), label_of("shoe_size")) == ("Funding", "shoe_size")
    raw = json.loads(card.to_json())
    raw["tripod"]["18a"]["lacking"] = ["shoe_size", "<b>x\n"]
    text = card_markdown(Card.from_json(json.dumps(raw).encode()))
    assert "shoe\\_size (shoe\\_size)" in text
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_a_card_of_another_schema_is_refused(card):
    raw = json.loads(card.to_json())
    for changed in ({**raw, "schema_id": "clinical-ser/card/1"}, {**raw, "more": 1}, {key: raw[key] for key in raw if key != "internal"}):
        with pytest.raises(BundleSchemaError, match=r"card\.json"):
            Card.from_json(json.dumps(changed).encode())


def test_markdown_has_every_item_figure_and_blank(card):
    text = card_markdown(card)
    for name in LISTS:
        for item in item_list(name).item:
            assert f"**`{item.key}`**" in text
    assert text.count("> **MISSING**") == sum(map(len, card.missing.values()))
    for figure in card.figures.values():
        if figure.value is not None:
            assert f"| {figure.value:.3f} | {figure.low:.3f} to {figure.high:.3f} |" in text


def test_tables_of_the_markdown_have_as_many_cells_as_columns(card, elsewhere):
    lines = card_markdown(card.extended(external=[elsewhere])).splitlines()
    rows = [line.replace("\\|", "").count("|") for line in lines]
    for i, line in enumerate(lines):
        if line.startswith("| ---"):
            at = i + 1
            while at < len(lines) and lines[at].startswith("|"):
                assert rows[at] == rows[i - 1]
                at += 1


def test_a_person_s_text_is_never_obeyed_as_markup(card):
    text = card_markdown(card.extended(supplied={"funding": "<img src=x> | **bold** [a](b)\n# Head"}))
    assert plain("<img src=x> | **bold** [a](b) # Head") in text
    assert "<img" not in text.replace("\\<img", "")
    assert "\n# Head" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- x", "\\- x"),
        ("+ x", "\\+ x"),
        ("> x", "\\> x"),
        ("  - x", "\\- x"),
        ("---", "\\---"),
        ("===", "\\==="),
        ("1. x", "1\\. x"),
        ("12) x", "12\\) x"),
        ("1.5 years", "1.5 years"),
        ("2-3 years - or more", "2-3 years - or more"),
    ],
)
def test_a_paragraph_never_begins_a_list_a_quotation_or_a_rule(text, shown):
    assert plain(text) == shown


def test_what_does_not_print_never_reaches_a_reader_s_screen(facts, evidence):
    dirty = "north\x1b[31m\u202ewing\x00\nlee\ud800"
    assert plain(dirty) == "north\\\\x1b\\[31m\\\\u202ewing\\\\x00 lee\\\\ud800"
    groups = tuple(group.model_copy(update={"value": f"{group.value}\x1b[2J\u202e"}) for group in evidence.groups)
    found = evidence.model_copy(update={"groups": groups, "warnings": ("Beware\x1b[31m of\u202e this\x07",)})
    text = card_markdown(make_card(facts, found, name="voice", version="1"))
    assert "Beware" in text
    assert all(c.isprintable() or c == "\n" for c in text)
