"""The gate: verdicts from summaries, and summaries from two real models on frozen tables."""

import numpy as np
import pytest

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.control.gate import Comparison, compare, comparison_of, judge
from clinical_ser.control.site_figures import Members, SiteFigures, paired_shares, site_figures, table_digest
from clinical_ser.errors import ChangePlanError, LeakError
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.intervals import bootstrap, wilson
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.models.training import TrainingOptions, train
from tests.control.made import comparison, figure, filled_in, pair, plan_of, site_of
from tests.tables import table_of

A, B = "a" * 64, "b" * 64
PLAN = plan_of(filled_in())
UPDATE = PLAN.modification_of("update")


def outcomes(found):
    return {one.where: one.outcome for one in found.verdicts if one.requirement != "privacy"}


def sites(**changed):
    return [site_of(PLAN, 0, A, B, **changed), site_of(PLAN, 1, A, B)]


def judged(requirement, given, **more):
    verdicts = judge(PLAN, UPDATE, given, epsilon_left=more.get("epsilon_left", 4.0))
    return next(one for one in verdicts if one.requirement == requirement)


def test_a_challenger_that_is_no_worse_anywhere_meets_every_requirement():
    found = comparison(PLAN, A, B, modification="update")
    assert found.met
    assert {one.requirement for one in found.verdicts} == set(UPDATE.requirements)
    assert Comparison.from_json(found.to_json()).digest == found.digest


@pytest.mark.parametrize(
    ("difference", "half", "outcome"),
    [(0.0, 0.049, "met"), (0.0, 0.051, "not_met"), (-0.03, 0.01, "met"), (-0.045, 0.01, "not_met"), (0.1, 0.16, "not_met")],
)
def test_the_lower_bound_decides_on_non_inferiority(difference, half, outcome):
    both = pair(0.8, 0.8 + difference, half)
    assert judged("discrimination", [site_of(PLAN, place, A, B, auroc=both) for place in (0, 1)][:1]).outcome == outcome


def test_less_is_better_of_deferral_and_the_upper_bound_decides():
    assert judged("deferral", sites(deferred=pair(0.2, 0.45))).outcome == "not_met"
    assert judged("deferral", sites(deferred=pair(0.45, 0.2))).outcome == "met"


def test_a_mean_does_not_hide_the_worst_site():
    given = sites(auroc=pair(0.8, 0.72, half=0.05))
    assert judged("discrimination", given).judged.value == pytest.approx(-0.035)
    worst = judged("worst-site", given)
    assert (worst.where, worst.outcome) == ("worst site (north)", "not_met")
    assert worst.judged.low == pytest.approx(-0.13)


def test_the_worst_bound_counts_even_where_another_site_has_the_worst_value():
    given = [site_of(PLAN, 0, A, B, auroc=pair(0.8, 0.79, half=0.01)), site_of(PLAN, 1, A, B, auroc=pair(0.8, 0.8, half=0.2))]
    worst = judged("worst-site", given)
    assert worst.where == "worst site (north)"
    assert (worst.judged.low, worst.outcome) == (pytest.approx(-0.2), "not_met")


def test_sites_are_pooled_by_people_and_their_errors_add_as_those_of_independent_people():
    less, more = site_of(PLAN, 0, A, B, auroc=pair(0.8, 0.70, half=0.04)), site_of(PLAN, 1, A, B, auroc=pair(0.8, 0.80, half=0.04))
    told = judged("discrimination", [less, more.model_copy(update={"subjects": 300})]).judged
    assert told.value == pytest.approx(-0.025)
    assert told.value - told.low == pytest.approx(0.04 * np.hypot(0.25, 0.75))


def test_the_bound_of_the_worst_of_many_equal_sites_holds_as_often_as_it_says():
    # Eight sites, all with the same true difference of 0: the lower bound of the worst lies above 0 in at most 2.5 %.
    rng = np.random.default_rng(0)
    text = filled_in()
    one = text[text.index('[[holdout]]\nsite = "south"') : text.index("# Requirements. comparison")]
    many = plan_of(text.replace(one, one + "".join(one.replace("south", f"s{i}").replace("2" * 64, str(i) * 64) for i in range(3, 9))))
    above = 0
    for _ in range(200):
        given = [site_of(many, place, A, B, auroc=pair(0.8, 0.8 + rng.normal(0, 0.02), half=1.96 * 0.02)) for place in range(8)]
        worst = next(one for one in judge(many, UPDATE, given, epsilon_left=4.0) if one.requirement == "worst-site")
        above += worst.judged.low > 0
    assert above <= 0.025 * 200 + 5


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ([site_of(PLAN, 0, A, B)], "site south"),
        ([], "all sites"),
        ([site_of(PLAN, place, A, B).model_copy(update={"groups": ()}) for place in (0, 1)], "worst of sex"),
        ([site_of(PLAN, place, A, B).model_copy(update={"figures": {}}) for place in (0, 1)], "worst site"),
    ],
)
def test_what_was_not_shown_is_not_there(given, where):
    found = comparison_of(PLAN, UPDATE, given, champion=A, challenger=B, epsilon_left=4.0)
    assert outcomes(found)[where] == "cannot_be_judged"
    assert not found.met


def test_a_group_with_too_few_people_fails_unless_the_plan_lets_it_be_skipped():
    def given(plan):
        few = [site_of(plan, place, A, B) for place in (0, 1)]
        return [one.model_copy(update={"groups": (one.groups[0], one.groups[1].model_copy(update={"enough": False, "figures": {}}))}) for one in few]

    assert judged("worst-sex", given(PLAN)).outcome == "cannot_be_judged"
    skipping = plan_of(filled_in().replace('by = "sex"', 'by = "sex"\ntoo_few = "skip"'))
    verdicts = judge(skipping, UPDATE, given(skipping), epsilon_left=4.0)
    assert next(one for one in verdicts if one.requirement == "worst-sex").outcome == "met"


def test_a_group_that_is_too_small_at_one_site_is_not_hidden_by_another():
    def given(plan):
        north, south = (site_of(plan, place, A, B) for place in (0, 1))
        return [north, south.model_copy(update={"groups": (south.groups[0], south.groups[1].model_copy(update={"enough": False, "figures": {}}))})]

    assert judged("worst-sex", given(PLAN)).outcome == "cannot_be_judged"
    skipping = plan_of(filled_in().replace('by = "sex"', 'by = "sex"\ntoo_few = "skip"'))
    assert next(one for one in judge(skipping, UPDATE, given(skipping), epsilon_left=4.0) if one.requirement == "worst-sex").outcome == "met"


def test_a_group_that_the_plan_names_and_nobody_has_is_not_met():
    given = [one.model_copy(update={"groups": one.groups[:1]}) for one in sites()]
    found = judged("worst-sex", given)
    assert (found.outcome, "sex male" in found.because) == ("cannot_be_judged", True)


def test_a_budget_that_was_typed_in_is_said_to_be():
    assert judged("privacy", sites()).judged.method == "the registry's records"
    made = comparison(PLAN, A, B, modification="update", epsilon=(4.0, "hand"))
    assert made.epsilon_from == "hand"
    assert next(one for one in made.verdicts if one.requirement == "privacy").judged.method == "given by hand"
    assert comparison(PLAN, A, B, epsilon=None).epsilon_from is None


@pytest.mark.parametrize(
    "changed",
    [
        {"subjects": 99, "recordings": 98},
        {"subjects": 101},
        {"subjects": 49},
        {"subjects_by_class": {}},
        {"groups": [site_of(PLAN, 0, A, B).model_dump()["groups"][0]] * 2},
        {"groups": [site_of(PLAN, 0, A, B).model_dump()["groups"][0] | {"subjects": 101}]},
        {"groups": [site_of(PLAN, 0, A, B).model_dump()["groups"][0] | {"enough": False}]},
    ],
)
def test_a_summary_whose_counts_do_not_fit_is_none(changed):
    good = site_of(PLAN, 0, A, B)
    assert SiteFigures.from_json(good.to_json()) == good
    with pytest.raises(ChangePlanError, match="no site's summary"):
        SiteFigures.from_json(canonical_json(good.model_dump(mode="json") | changed))


@pytest.mark.parametrize("table", [(40, 0, 0, 10), (38, 2, 0, 10), (30, 6, 4, 10), (50, 0, 0, 0), (20, 15, 10, 5)])
def test_a_difference_of_shares_has_newcombes_interval_and_is_no_point_where_all_are_answered_alike(table):
    both, only_first, only_second, neither = table
    n = sum(table)
    answers = np.array([(1, 1)] * both + [(1, 0)] * only_first + [(0, 1)] * only_second + [(0, 0)] * neither, float)
    drawn = bootstrap(lambda weight: weight @ answers / weight.sum(), np.arange(n).astype(str), replicates=4000, seed=0)
    first, second = (Figure.of(p, *wilson(p, n, level=0.95), subjects=n, recordings=n, method="Wilson") for p in answers.mean(axis=0))
    # Method 10 of Newcombe (1998), from the four counts.
    root = np.sqrt(float((both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)))
    product = both * neither - only_first * only_second
    phi = 0.0 if root == 0 else max(product - n / 2, 0) / root if product > 0 else product / root

    def half(mine, theirs):
        return np.sqrt(mine**2 - 2 * phi * mine * theirs + theirs**2)

    less = second.value - first.value
    low = less - half(second.value - second.low, first.high - first.value)
    high = less + half(second.high - second.value, first.value - first.low)
    found = paired_shares(drawn.replicates[:, 0], drawn.replicates[:, 1], first, second, n)
    assert found == pytest.approx((low, high), abs=0.006)
    assert found[0] < less < found[1]


def test_no_budget_said_is_no_budget_shown():
    assert judged("privacy", sites(), epsilon_left=None).outcome == "cannot_be_judged"
    assert judged("privacy", sites(), epsilon_left=0.4).outcome == "not_met"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"plan": "c" * 64}, "another plan"),
        ({"challenger": "c" * 64}, "other models"),
        ({"table": "c" * 64}, "another table"),
        ({"site": "west"}, "no holdout of 'west'"),
        ({"subjects_by_class": {"depressed": 39, "not_depressed": 90}}, "too few people"),
    ],
)
def test_a_summary_of_something_else_is_refused(changed, named):
    with pytest.raises(ChangePlanError, match=named):
        comparison_of(PLAN, UPDATE, [site_of(PLAN, 0, A, B).model_copy(update=changed)], champion=A, challenger=B)
    with pytest.raises(ChangePlanError, match="twice"):
        comparison_of(PLAN, UPDATE, [site_of(PLAN, 0, A, B)] * 2, champion=A, challenger=B)


@pytest.mark.parametrize("raw", [b"", b"{}\n", b"\xff", b'{"met":true}\n', b"[" * 10_000])
def test_what_is_no_comparison_is_refused(raw):
    with pytest.raises(ChangePlanError):
        Comparison.from_json(raw)


def test_a_comparison_with_another_spelling_or_cut_short_is_refused():
    raw = comparison(PLAN, A, B).to_json()
    for changed in (raw[:-20], raw.rstrip(b"\n"), raw.replace(b'"met":true', b'"met": true')):
        with pytest.raises(ChangePlanError):
            Comparison.from_json(changed)


# --- two real models -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A champion that learned from 120 people, and a challenger that learned from 160 others."""
    folder = tmp_path_factory.mktemp("models")
    made = []
    for subjects, seed in ((120, 0), (160, 1)):
        training = train(table_of(subjects, seed=seed), DEPRESSION, TrainingOptions(refits=3))
        card, _ = card_of(training, None, name="m", version=str(seed), options=EvaluationOptions(replicates=20))
        path = folder / str(seed)
        save(training, path, name="m", version=str(seed), statement="For tests.", card=card.to_json(), software={"numpy": "0"}, key=None)
        made.append(read_bundle(path))
    return made


@pytest.fixture(scope="module")
def holdouts():
    return {"north": table_of(110, seed=5), "south": table_of(120, seed=6)}


def quick(holdouts, **replaced):
    plan = plan_of(filled_in(digests=tuple(table_digest(table) for table in holdouts.values()), **replaced))
    # Fewer samples than any plan may ask for: the tests below are not about how wide an interval is.
    return plan.model_copy(update={"protocol": plan.protocol.model_copy(update={"replicates": 40})})


def test_two_models_are_compared_on_the_frozen_holdouts(models, holdouts):
    plan = quick(holdouts)
    found = compare(plan, plan.modification_of("update"), *models, holdouts, epsilon_left=4.0)
    assert {one.requirement for one in found.verdicts} == set(UPDATE.requirements)
    assert not any(one.outcome == "cannot_be_judged" for one in found.verdicts)
    assert not any(one.members_checked for one in found.sites)
    north = found.sites[0]
    assert north.figures["auroc"].difference.value == pytest.approx(north.figures["auroc"].challenger.value - north.figures["auroc"].champion.value)
    assert {(one.column, one.value) for one in north.groups} == {("sex", "female"), ("sex", "male")}
    assert b"s0001" not in found.to_json()


def test_a_summary_from_elsewhere_makes_the_same_comparison(models, holdouts):
    plan = quick(holdouts)
    there = SiteFigures.from_json(site_figures(plan, "south", *models, holdouts["south"]).to_json())
    here = compare(plan, plan.modification_of("update"), *models, {"north": holdouts["north"]}, summaries=[there], epsilon_left=4.0)
    assert here.digest == compare(plan, plan.modification_of("update"), *models, holdouts, epsilon_left=4.0).digest
    for raw in (b"", b"{}\n", there.to_json()[:-9], b"x" * 5_000_001):
        with pytest.raises(ChangePlanError):
            SiteFigures.from_json(raw)


def test_a_model_compared_with_itself_differs_in_nothing(models, holdouts):
    plan = quick(holdouts)
    same = site_figures(plan, "north", models[0], models[0], holdouts["north"])
    assert all(one.difference.value in (0, None) for one in same.figures.values())
    shares = {"sensitivity", "specificity", "deferred", "answered"}
    wide = {name: one.difference.high - one.difference.low for name, one in same.figures.items() if one.difference.low is not None}
    assert all(width < 1e-9 for name, width in wide.items() if describe(name).kind != "share")
    # Nobody is answered otherwise, among so many people.
    assert all(0.001 < wide[name] < 0.2 for name in shares)
    assert same.explanations["explanation_agreement"].value == pytest.approx(1)
    assert same.explanations["same_main_family"].value == 1
    with pytest.raises(ChangePlanError, match="same bundle"):
        compare(plan, plan.modification_of("update"), models[0], models[0], holdouts)


def test_a_table_that_is_not_the_frozen_one_is_refused(models, holdouts):
    plan = quick(holdouts)
    table = holdouts["north"]
    frame = table.frame.copy()
    frame.loc[0, "label"] = "depressed" if frame.loc[0, "label"] == "not_depressed" else "not_depressed"
    for changed in (frame, table.frame.iloc[1:], table.frame.iloc[::-1], table.frame.assign(note="x")):
        other = type(table)(changed.reset_index(drop=True), table.feature_names, table.extractors)
        with pytest.raises(ChangePlanError, match="is not the plan's"):
            site_figures(plan, "north", *models, other)
    again = type(table)(table.frame[sorted(table.frame.columns)].copy(), table.feature_names, dict(table.extractors))
    assert table_digest(again) == table_digest(table)


def test_people_that_taught_a_model_are_no_holdout(models, holdouts):
    plan = quick(holdouts)

    def tag(subject):
        return f"tag of {subject}"

    for model, who in zip(models, ("champion", "challenger"), strict=True):
        members = Members(tag=tag, of={model.digest: frozenset({"tag of s0003", "tag of x"})})
        with pytest.raises(LeakError, match=f"1 of the holdout's people taught the {who}") as error:
            site_figures(plan, "north", *models, holdouts["north"], members=members)
        assert "s0003" not in str(error.value)
    both = {model.digest: frozenset({"tag of x"}) for model in models}
    for incomplete, checked in ((frozenset(), True), (frozenset({models[1].digest}), False)):
        members = Members(tag=tag, of=both, incomplete=incomplete)
        assert site_figures(plan, "north", *models, holdouts["north"], members=members).members_checked is checked
    taught = table_of(120, seed=0)
    with pytest.raises(LeakError, match="very recordings"):
        site_figures(quick({"north": taught, "south": holdouts["south"]}), "north", *models, taught)


def test_too_few_people_and_a_missing_column_are_named(models, holdouts):
    with pytest.raises(ChangePlanError, match="asks for 90 of each class"):
        site_figures(quick(holdouts, subjects_of_each_class_at_least="90"), "north", *models, holdouts["north"])
    table = holdouts["north"]
    blind = type(table)(table.frame.drop(columns="sex"), table.feature_names, table.extractors)
    with pytest.raises(ChangePlanError, match=r"lacks the columns .'sex'"):
        site_figures(quick({"north": blind, "south": holdouts["south"]}), "north", *models, blind)


def test_a_figure_that_is_best_in_the_middle_is_compared_by_its_distance(models, holdouts):
    plan = quick(holdouts)
    slope = site_figures(plan, "north", *models, holdouts["north"]).figures["calibration_slope"]
    assert slope.difference.value == pytest.approx(abs(slope.challenger.value - 1) - abs(slope.champion.value - 1))


def test_an_estimate_never_lies_outside_its_own_interval():
    with pytest.raises(ValueError, match="within its interval"):
        figure(0.5).model_validate(figure(0.5).model_dump() | {"low": 0.6})
