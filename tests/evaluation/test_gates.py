"""Release gates: read from data, judged by the cautious bound, unmet where nothing was shown."""

import pytest

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.gates import LEAST_REPLICATES, judge_gates, read_gates
from tests.evaluation.made import two_classes


@pytest.fixture(scope="module")
def evidence():
    found = evaluate(two_classes(300, prevalence=0.4, separation=2.0), options=EvaluationOptions(replicates=100))
    return found.model_copy(update={"replicates": LEAST_REPLICATES})


def gates(tmp_path, text):
    path = tmp_path / "gates.toml"
    path.write_text(text, encoding="utf-8")
    return read_gates(path)


def judged(tmp_path, evidence, text):
    return {result.name: result.met for result in judge_gates(gates(tmp_path, text), evidence)}


def test_the_cautious_bound_counts_unless_the_value_is_asked_for(tmp_path, evidence):
    figure = evidence.figures["auroc"]
    between = (figure.low + figure.value) / 2
    text = f'[[gate]]\nname="low"\nfigure="auroc"\nat_least={between}\n[[gate]]\nname="value"\nfigure="auroc"\nat_least={between}\nbound="value"\n'
    assert judged(tmp_path, evidence, text) == {"low": False, "value": True}
    figure = evidence.figures["brier"]
    between = (figure.high + figure.value) / 2
    assert judged(tmp_path, evidence, f'[[gate]]\nname="b"\nfigure="brier"\nat_most={between}\n') == {"b": False}


def test_a_gate_by_group_holds_for_each_group(tmp_path, evidence):
    met = judged(tmp_path, evidence, '[[gate]]\nname="sens"\nfigure="sensitivity"\nat_least=0.01\nby="sex"\n')
    assert met == {"sens (female)": True, "sens (male)": True}
    assert not any(judged(tmp_path, evidence, '[[gate]]\nname="s"\nfigure="sensitivity"\nat_least=1.01\nby="sex"\n').values())


def test_a_group_with_too_few_people_has_shown_nothing(tmp_path, evidence):
    text = '[[gate]]\nname="by age"\nfigure="auroc"\nat_least=0.5\nby="age_band"\n'
    results = judged(tmp_path, evidence, text)
    few = {f"by age ({group.value})" for group in evidence.groups if group.column == "age_band" and not group.enough}
    assert few
    assert not any(results[name] for name in few)
    assert not few & set(judged(tmp_path, evidence, text + 'too_few="skip"\n'))
    nobody = evidence.model_copy(update={"groups": tuple(g.model_copy(update={"enough": False, "figures": {}}) for g in evidence.groups)})
    assert judged(tmp_path, nobody, text + 'too_few="skip"\n') == {"by age": False}, "a gate does not pass because nobody was looked at"


def test_a_few_samples_release_nothing(tmp_path, evidence):
    few = evidence.model_copy(update={"replicates": LEAST_REPLICATES - 1})
    with pytest.raises(InvalidValueError, match="replicates"):
        judged(tmp_path, few, '[[gate]]\nname="a"\nsubjects_at_least=1\n')


def test_gaps_leaks_and_numbers_of_people_can_be_required(tmp_path, evidence):
    text = """
[[gate]]
name = "fair"
gap = "auroc"
by = "sex"
at_most = 0.9
[[gate]]
name = "no leak"
leak = "same_audio"
[[gate]]
name = "people"
subjects_at_least = 300
[[gate]]
name = "more people"
subjects_at_least = 301
"""
    assert judged(tmp_path, evidence, text) == {"fair": True, "no leak": False, "people": True, "more people": False}


def test_a_figure_that_is_not_there_is_not_met(tmp_path, evidence):
    assert judged(tmp_path, evidence, '[[gate]]\nname="emotion"\nfigure="uar"\nat_least=0.1\n') == {"emotion": False}
    assert judged(tmp_path, evidence, '[[gate]]\nname="g"\ngap="auroc"\nby="device"\nat_most=1\n') == {"g": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "gate"),
        ("[[gate]]\nname='a'\n", "exactly one of"),
        ("[[gate]]\nname='a'\nfigure='auroc'\n", "at_least and at_most"),
        ("[[gate]]\nname='a'\nfigure='auroc'\nat_least=0.5\nat_most=0.9\n", "at_least and at_most"),
        ("[[gate]]\nname='a'\ngap='auroc'\nat_most=0.1\n", "which with by"),
        ("[[gate]]\nname='a'\nfigure='auroc'\nat_leats=0.5\n", "at_leats"),
        ("[[gate]]\nname='a'\nfigure='accuracy_'\nat_least=0.5\n", "figure"),
        ("[[gate]]\nname='a'\nsubjects_at_least=1\n[[gate]]\nname='a'\nsubjects_at_least=2\n", "of one name"),
        ("[[gate]]\nname='a'\nfigure='ppv'\nat_least=0.5\n", "figure"),
        ("[[gate]]\nname='a'\nleak='same_adio'\n", "same_audio"),
        ("[[gate]]\nname='a'\ngap='ece_debiased'\nby='sex'\nat_most=0.1\n", "gap"),
        ("[[gate]]\nname='a'\nleak='same_audio'\nby='sex'\n", "looked at by"),
        ("not toml", "not TOML"),
    ],
)
def test_wrong_gates_say_what_is_wrong(tmp_path, text, message):
    with pytest.raises(InvalidValueError, match=message):
        gates(tmp_path, text)


def test_a_missing_file_is_wrong_usage(tmp_path):
    with pytest.raises(InvalidValueError, match="cannot be read"):
        read_gates(tmp_path / "nowhere.toml")
