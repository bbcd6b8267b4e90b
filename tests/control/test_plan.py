"""The plan as data: what it covers, what it refuses, and which plans are none."""

import re
from datetime import UTC, date, datetime

import pytest

from clinical_ser.control.plan import Change, check_change, example_plan, left_open, parse_plan, plan_from_json, read_plan, require_filled_in
from clinical_ser.errors import ChangePlanError, OutsidePlanError
from tests.control.made import MODEL, filled_in, plan_of

DAY = date(2026, 12, 1)
DATED = {"effective": "2026-09-01", "expires": "2027-08-31"}
CHANGE = Change(
    kind="updated",
    name=MODEL,
    task="depression",
    parent="a" * 64,
    head="linear",
    features_same=True,
    extractors_same=True,
    subjects={"depressed": 40, "not_depressed": 60},
    sites=2,
    forgetting=0.9,
    epsilon=2.0,
    trigger="alarm:prevalence-7",
)


def faults_of(text):
    return [str(one) for one in parse_plan(text.encode())[1]]


def test_the_example_has_no_fault_and_says_what_is_to_be_filled_in(tmp_path):
    path = tmp_path / "pccp.toml"
    path.write_text(example_plan(), encoding="utf-8")
    plan = read_plan(path)
    assert len(left_open(plan)) == 4
    with pytest.raises(ChangePlanError, match="a key of the example"):
        require_filled_in(plan)
    require_filled_in(plan_of(filled_in()))


def test_the_digest_is_of_the_content_and_not_of_the_file():
    plan = plan_of(filled_in())
    assert plan_of(filled_in() + "\n# a comment\n").digest == plan.digest
    assert plan_of(filled_in(margin="0.06")).digest != plan.digest
    assert plan_from_json(plan.to_json()).digest == plan.digest


def test_a_kept_plan_that_was_changed_is_refused():
    raw = plan_of(filled_in()).to_json()
    for changed in (b"", raw[:-5], raw.replace(b'"margin":0.05', b'"margin":0.9'), raw + b" "):
        with pytest.raises(ChangePlanError):
            plan_from_json(changed)


def test_a_change_inside_the_plan_is_covered_by_name():
    assert check_change(plan_of(filled_in()), CHANGE, on=DAY).id == "update"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kind": "retrained"}, "Kind:"),
        ({"name": "another"}, "Model:"),
        ({"task": "emotion"}, "Task:"),
        ({"parent": None}, "Parent:"),
        ({"head": "xgboost"}, "Head:"),
        ({"features_same": False}, "Features:"),
        ({"extractors_same": False}, "Extractors:"),
        ({"subjects": {"depressed": 29, "not_depressed": 300}}, "29 of 'depressed'"),
        ({"subjects": {"depressed": 40}}, "0 of 'not_depressed'"),
        ({"subjects": {"depressed": 40, "not_depressed": 60, "unsure": 9}}, "Classes:"),
        ({"forgetting": 0.5}, "Forgetting factor:"),
        ({"forgetting": 1.5}, "Forgetting factor:"),
        ({"unlabelled_weight": 0.1}, "unlabelled"),
        ({"epsilon": 9.0}, "Privacy spent: 9"),
        ({"epsilon": None}, "not stated"),
        ({"trigger": "request:somebody"}, "Trigger:"),
    ],
)
def test_what_is_outside_the_plan_is_refused_by_name(changed, named):
    with pytest.raises(OutsidePlanError, match=named) as error:
        check_change(plan_of(filled_in()), CHANGE.model_copy(update=changed), on=DAY)
    assert len(error.value.outside) == 1


def test_everything_that_is_outside_is_named_at_once():
    with pytest.raises(OutsidePlanError) as error:
        check_change(
            plan_of(filled_in(**DATED)), CHANGE.model_copy(update={"head": "fused", "features_same": False, "name": "x"}), on=date(2028, 1, 1)
        )
    assert [text.partition(":")[0] for text in error.value.outside] == ["Model", "Date", "Head", "Features"]


def test_a_plan_holds_between_its_dates_and_for_so_many_changes_a_year():
    plan = plan_of(filled_in(**DATED))
    for day in (date(2026, 8, 31), date(2027, 9, 1)):
        with pytest.raises(OutsidePlanError, match="Date:"):
            check_change(plan, CHANGE, on=day)
    check_change(plan, CHANGE, on=date(2027, 8, 31))
    made = [datetime(2026, month, 1, tzinfo=UTC) for month in (2, 5, 8, 11)]
    with pytest.raises(OutsidePlanError, match="Often: 4"):
        check_change(plan, CHANGE, on=DAY, earlier=made)
    assert check_change(plan, CHANGE, on=date(2027, 2, 1), earlier=made).id == "update"


def test_a_recalibration_is_covered_step_by_step():
    plan = plan_of(filled_in(steps='["intercept"]'))
    recalibrated = CHANGE.model_copy(update={"kind": "recalibrated", "forgetting": None, "epsilon": None})
    assert check_change(plan, recalibrated.model_copy(update={"step": "intercept"}), on=DAY).id == "recalibration"
    for step in ("slope", None):
        with pytest.raises(OutsidePlanError, match="step"):
            check_change(plan, recalibrated.model_copy(update={"step": step}), on=DAY)


def test_a_person_is_taken_out_only_by_a_method_that_the_plan_lets():
    unlearned = CHANGE.model_copy(update={"kind": "unlearned", "forgetting": None, "epsilon": None, "sites": 1, "trigger": "erasure"})
    for method in (None, "subtracted", "retrained"):
        assert check_change(plan_of(filled_in()), unlearned.model_copy(update={"method": method}), on=DAY).id == "unlearning"
    strict = plan_of(filled_in(methods='["subtracted"]'))
    assert check_change(strict, unlearned, on=DAY).id == "unlearning"
    with pytest.raises(OutsidePlanError, match="method 'retrained'"):
        check_change(strict, unlearned.model_copy(update={"method": "retrained"}), on=DAY)


def test_discrimination_is_judged_by_an_interval_or_not_at_all():
    text = re.sub(r'(figure = "auroc"\ncomparison = )"non_inferior"((?:\n[svb].*)*)\nmargin = [0-9.]+', r'\1"no_worse"\2', example_plan())
    assert text.count('"no_worse"') == 3
    assert sum("no requirement is about discrimination" in fault for fault in faults_of(text)) == 3


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('figure = "auroc"', 'figure = "auc"', "known: .*auroc"),
        ('figure = "brier"', 'figure = "uar"', "not known for this task"),
        ("limit = 0.15", "limit = 1.0", "cannot fail"),
        ("margin = 0.05", "margin = 0.5", "cannot fail"),
        ("margin = 0.05", "limit = 0.05", "has a margin and no limit"),
        ("limit = 0.15", "", "has a limit and no margin"),
        ('by = "sex"\nvalues', "values", "come from a column"),
        ("margin = 0.05", "margin = 0.11", "too wide for auroc; 0.1 at most"),
        ("margin = 0.3", "margin = 0.6", "too wide for calibration_slope"),
        (
            'figure = "deferred"\ncomparison = "non_inferior"\nmargin = 0.10',
            'figure = "deferred"\ncomparison = "at_least"\nlimit = 0.1',
            "limited with at_most",
        ),
        (
            'figure = "auroc"\ncomparison = "non_inferior"\nmargin = 0.05',
            'figure = "auroc"\ncomparison = "at_most"\nlimit = 0.9',
            "limited with at_least",
        ),
        (
            'figure = "auroc"\ncomparison = "non_inferior"\nmargin = 0.05',
            'figure = "auroc"\ncomparison = "at_least"\nlimit = 0.5',
            "what chance reaches",
        ),
        ('scope = "worst_site"', 'scope = "worst_site"\nvalues = ["x"]', "each once"),
        ('heads = ["linear"]\nfeatures_fixed', 'heads = ["linear"]\nmethods = ["subtracted"]\nfeatures_fixed', "for kind unlearned"),
        ('scope = "worst_site"', 'scope = "worst_site"\ntoo_few = "skip"', "goes with the scopes"),
        ('scope = "worst_site"', 'scope = "overall"', "looks at each site"),
        ('"worst-site", "worst-sex"]', '"worst-site"]', "groups of people"),
        ('figure = "auroc"', 'figure = "sensitivity"', "about discrimination"),
        ('"explanations", "privacy",', '"explanations",', "'privacy' is asked of no modification"),
        ('mitigated_by = ["calibration",', 'mitigated_by = ["prayer",', "names no requirement"),
        ('"monitor:calibration"]', '"monitor:the moon"]', "names no requirement"),
        ('modifications = ["recalibration", "update", "unlearning"]', 'modifications = ["update"]', "no risk is about modification 'unlearning'"),
        ("expires = 2027-08-31", "expires = 2026-08-31", "is not after"),
        ('triggers = ["erasure"]', 'triggers = ["scheduled"]', "asked for by an erasure"),
        ('steps = ["intercept", "slope", "full"]', "", "which recalibrations"),
        ('site = "south"', 'site = "north"', "'north' is there 2 times"),
        ("PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=", "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "keys of its own"),
        ("PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=", "c2hvcnQ=", "32 bytes"),
        ('comparison = "at_most"', 'comparison = "about"', "requirement.1.comparison"),
        ("replicates = 2000", "replicates = 20", "protocol.replicates"),
        ('[impact]\nwith_and_without = "', '[impact]\nextra = "x"\nwith_and_without = "', "impact.extra: no such field"),
        ('users_told = "', 'told_users = "', "protocol.users_told: it is missing"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_the_place(old, new, named):
    assert old in example_plan()
    assert any(re.search(named, fault) for fault in faults_of(example_plan().replace(old, new)))


def test_a_missing_part_is_named_as_the_guidance_calls_it():
    text = example_plan().partition("# 3. Impact Assessment")[0]
    assert faults_of(text) == ["impact: this part is missing (Impact Assessment)", "risk: this part is missing (Impact Assessment: risks)"]
    one_role = example_plan().replace(example_plan()[example_plan().index('[[role]]\nname = "quality') : example_plan().index("# 3. Impact")], "")
    assert faults_of(one_role) == ["role: two roles sign at least: nobody approves a change alone"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[[[", b"x" * 1_000_001, b"a = " + b"[" * 5000, None])
def test_what_is_no_plan_is_refused_without_its_path(tmp_path, content):
    path = tmp_path / "jane-doe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ChangePlanError) as error:
        read_plan(path)
    assert "jane" not in str(error.value)


def test_a_hostile_field_is_not_repeated():
    fault = faults_of(example_plan().replace("[impact]", '[impact]\n"Jane Doe, ward 7" = "x"'))
    assert len(fault) == 1
    assert not any("Jane" in one for one in fault)
