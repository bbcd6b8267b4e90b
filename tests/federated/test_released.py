"""Runs about models that are there: counts that are those of one table, and a gate that tells each site's figures apart."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clinical_ser.cohorts.table import read_table, write_table
from clinical_ser.control.gate import Comparison
from clinical_ser.control.parts import ChangePlan
from clinical_ser.control.plan import example_plan, read_plan
from clinical_ser.control.site_figures import SiteFigures, site_figures, table_digest
from clinical_ser.errors import ChangePlanError, FederationError, SiteRefusalError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.counts import Counts, counts_of
from clinical_ser.monitoring.watching import CHECKS, Reference, Watch
from federated.continual import update_across
from federated.leading import Coordinator, lead_run
from federated.plan import KINDS, Plan
from federated.protocols import comparison, drift
from federated.publishing import publish
from federated.refusals import RefusedError
from federated.released import compare_across, count_across, reference_of, watch
from federated.site_table import whole_rows
from federated.statistics import Ask, contribution
from federated.training import train_across
from tests.federated.sites import NAMES, Consortium, make_consortium
from tests.federated.test_continual import rows_of, settings_of, sites_of
from tests.federated.test_plan import plan
from tests.tables import table_of

FEATURES = 8
DEVICES = ("handset", "headset")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Champion and challenger as bundles."""
    folder = tmp_path_factory.mktemp("models")
    trained = train_across(sites_of(rows_of(table_of(240, seed=1))), settings_of(table_of(2)))
    updated = update_across(sites_of(rows_of(table_of(200, seed=2))), settings_of(table_of(2)), trained.model, trained.memory)
    digests = {}
    for name, one in (("champion", trained), ("challenger", updated)):
        digests[name] = publish(one, folder / name, name="voice", version="1", sites=3, cohort_digest="c" * 64, key=None, replicates=50).digest
    return folder, digests


@pytest.fixture(scope="module")
def table():
    found = table_of(180, seed=3, rows_each=2)
    devices = np.where(np.arange(360) % 3 == 0, *DEVICES)
    labels = found.frame["label"].where(np.arange(360) % 5 != 0, None)
    return replace(found, frame=found.frame.assign(device=devices, label=labels, age=40))


def consortium(folder: Path, table, models, **changes) -> Consortium:
    bundles, digests = models
    made = make_consortium(folder, table=table, features=FEATURES, parent=digests["champion"], **changes)
    for name in made.names:
        lines = "".join(f'{digest} = "{bundles / what}"\n' for what, digest in digests.items())
        made.set_policy(name, kinds=[made.plan.kind], extra=f"[models]\n{lines}[tables]\ngate = 'features.parquet'\n")
        policy = made.site(name) / "node.toml"
        policy.write_text(policy.read_text().replace("[approved]", 'change_plan = "pccp.toml"\n[approved]', 1))
    return made


@pytest.fixture
def watched(tmp_path, table, models):
    return consortium(
        tmp_path, table, models, kind="monitor", statistics=KINDS["monitor"], groups={"device": DEVICES, "sex": ("female", "male")}, checks=CHECKS
    )


def refused(call, *arguments) -> str:
    with pytest.raises(SiteRefusalError) as error:
        call(*arguments)
    return error.value.reason


def test_counts_over_sites_are_those_of_one_table(watched, table, models):
    counts, outcomes = count_across(watched.sums(), watched.plan)
    bundle = read_bundle(models[0] / "champion")
    alone = counts_of(TrainedModel.from_bundle(bundle), bundle.digest, table)
    assert counts.cells == alone.cells
    assert counts.recordings == alone.recordings == 180
    assert {kind: counts.names[kind] for kind in ("status", "device", "sex")} == {kind: alone.names[kind] for kind in ("status", "device", "sex")}
    assert outcomes.people == sum(n for n, _, _ in outcomes.by_score) == 180
    assert outcomes.ratio == pytest.approx(outcomes.observed / outcomes.expected)
    assert abs(outcomes.z) < 4


def test_detectors_of_one_site_read_counts_over_sites_and_take_a_run_once(watched, models):
    counts, _ = count_across(watched.sums(), watched.plan)
    reference = Reference.of(read_bundle(models[0] / "champion").manifest, reference_of(counts))
    watching = Watch(reference)
    assert watch(watching, counts, "spring") == ()
    moved = counts.model_copy(update={"cells": {name: cells[::-1] if name == "score" else cells for name, cells in counts.cells.items()}})
    alarms = [alarm for n in range(6) for alarm in watch(watching, moved, f"summer-{n}")]
    assert {alarm.channel for alarm in alarms} >= {"score"}
    assert watch(watching, moved, "summer-5") == ()


def test_a_name_that_few_people_have_at_a_site_is_counted_among_the_others(watched):
    path = watched.site("ada") / "features.parquet"
    table = read_table(path)
    few = ["rare" if subject in set(table.subjects[:4]) else "handset" for subject in table.subjects]
    write_table(replace(table, frame=table.frame.assign(device=few)), path)
    plan = Plan.model_validate(watched.plan.model_dump() | {"groups": {"device": ("handset", "rare")}})
    for name in watched.names:
        policy = watched.site(name) / "node.toml"
        policy.write_text(policy.read_text().replace(watched.plan.digest, plan.digest))
    counts, _ = count_across(watched.sums(plan=plan), plan)
    assert "rare" not in counts.names["device"]
    assert counts.names["device"]["other"] >= 2


@pytest.mark.parametrize(("ill", "told"), [(4, 0), (5, 30)])
def test_outcomes_of_fewer_people_of_a_class_than_may_take_part_do_not_leave(table, models, ill, told):
    """One person's outcome came back, and the sums held their probability to the last digit, with the diagnosis."""
    bundle = read_bundle(models[0] / "champion")
    labels = np.full(len(table.frame), None, object)
    firsts = np.sort(np.unique(table.subjects, return_index=True)[1])
    labels[firsts[:30]] = ["depressed"] * ill + ["not_depressed"] * (30 - ill)
    some = replace(table, frame=table.frame.assign(label=labels))
    rows = whole_rows(some, watched_plan(bundle), {bundle.digest: bundle}, site="ada", least=5, least_of_a_class=5)
    outcomes = contribution(rows, drift.ask_about(bundle.digest, {}, ()))["outcomes"]
    assert outcomes.sum(axis=0).tolist() == ([told, ill] if told else [0, 0])
    assert (outcomes == np.round(outcomes)).all(), "numbers of people, and nothing that a score could be read from"


def watched_plan(bundle) -> Plan:
    manifest = bundle.manifest
    return plan(kind="monitor", parent=bundle.digest, statistics=KINDS["monitor"], features=manifest.features, extractors=dict(manifest.extractors))


def test_a_share_of_people_that_stays_the_same_is_no_change_however_long_the_periods_are(models):
    """Of 100 people 15 have the device and are told of, of 20 three have it and are not; watched by shares, most consortia heard an alarm."""
    bundle = read_bundle(models[0] / "champion")
    rng = np.random.default_rng(1)

    def period(people: int) -> Counts:
        names = np.zeros(3)
        for _ in range(10):
            of_one = int(rng.binomial(people, 0.15))
            site = Counts(model=bundle.digest, recordings=people, names={"device": {"headset": of_one, "handset": people - of_one}})
            names += drift._named(site, "device", ("headset", "handset"), 5)
        score = np.bincount(rng.integers(20, size=10 * people), minlength=20).tolist()
        devices = {name: int(n) for name, n in zip(("headset", "handset", "other"), names, strict=True) if n}
        return Counts(model=bundle.digest, recordings=10 * people, cells={"score": score}, names={"device": devices})

    false = 0
    for _ in range(20):
        watching = Watch(Reference.of(bundle.manifest, reference_of(period(100))))
        false += any(watch(watching, period(20), f"week-{week}") for week in range(5))
    # At most 5 % within 1,000 recordings.
    assert false <= 2


def test_a_device_that_no_site_told_of_in_the_reference_is_news(models):
    bundle = read_bundle(models[0] / "champion")

    def counts(**devices: int) -> Counts:
        people = sum(devices.values())
        return Counts(model=bundle.digest, recordings=people, cells={"score": [people, *[0] * 19]}, names={"device": devices})

    watching = Watch(Reference.of(bundle.manifest, reference_of(counts(handset=90, other=10))))
    assert watch(watching, counts(handset=46, headset=4), "spring") == ()
    (alarm,) = watch(watching, counts(handset=44, headset=6), "summer")
    assert (alarm.channel, alarm.statistic, alarm.value) == ("device=headset", "new_name", 10)


@pytest.mark.parametrize("steep", ["head", "map"])
def test_a_model_that_looks_at_the_few_people_in_a_slit_is_not_asked(watched, tmp_path, steep):
    """No question of training may be so steep; a challenger that people installed was."""
    trained = train_across(sites_of(rows_of(table_of(240, seed=1))), settings_of(table_of(2)))
    model = trained.model
    if steep == "head":
        model.head.coef_ = np.append(31.0, model.head.coef_[1:])
    else:
        model.calibrator.scale_ = 1000.0
    made = publish(trained, tmp_path / "steep", name="voice", version="2", sites=3, cohort_digest="c" * 64, key=None, replicates=50)
    asked = Plan.model_validate(watched.plan.model_dump() | {"parent": made.digest})
    watched.set_policy("ada", plan=asked, kinds=["monitor"], extra=f'[models]\n"{made.digest}" = "{tmp_path / "steep"}"\n')
    assert watched.node("ada").rehearse(asked) == "model_too_steep"


def test_nobody_asks_about_a_model_that_the_plan_does_not_name(watched, models):
    other = drift.ask_about(models[1]["challenger"], {}, ())
    assert refused(watched.sums().total, "monitor", [other]) == "asks_beyond_the_plan"
    with_grid = Ask("drift", {"mean": np.zeros(FEATURES)}, dict(drift.ask_about(models[1]["champion"], {}, ()).options))
    assert refused(watched.sums().total, "monitor", [with_grid]) == "asks_beyond_the_plan"


def test_a_model_that_the_site_does_not_have_or_that_was_changed_is_refused(watched, models, tmp_path):
    policy = watched.site("ada") / "node.toml"
    text = policy.read_text()
    policy.write_text(text.replace(models[1]["champion"], "e" * 64))
    assert watched.node("ada").rehearse(watched.plan) == "models_differ"
    policy.write_text(text.replace(str(models[0] / "champion"), str(models[0] / "challenger")))
    assert watched.node("ada").rehearse(watched.plan) == "models_differ"


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def change_plan(folder: Path, tables) -> ChangePlan:
    """Fill the example in, for three sites and few people."""
    text = example_plan()
    start, end = text.index("[[holdout]]"), text.index("# Requirements.")
    holdouts = "".join(f'[[holdout]]\nsite = "{name}"\nsha256 = "{table_digest(one)}"\nsubjects_of_each_class_at_least = 5\n' for name, one in tables)
    text = (text[:start] + holdouts + text[end:]).replace("replicates = 2000", "replicates = 1000")
    (folder / "pccp.toml").write_text(text)
    return read_plan(folder / "pccp.toml")


@pytest.fixture
def gated(tmp_path, models):
    table = table_of(105, seed=3)
    first = consortium(
        tmp_path / "draft", table, models, kind="gate", challenger=models[1]["challenger"], change_plan="d" * 64, statistics=KINDS["gate"]
    )
    tables = [(name, read_table(first.site(name) / "features.parquet")) for name in NAMES]
    wanted = change_plan(tmp_path, tables)
    made = consortium(
        tmp_path / "real", table, models, kind="gate", challenger=models[1]["challenger"], change_plan=wanted.digest, statistics=KINDS["gate"]
    )
    for name in made.names:
        (made.site(name) / "pccp.toml").write_bytes((tmp_path / "pccp.toml").read_bytes())
    return made, wanted


def test_a_gate_judges_figures_that_each_site_would_have_alone(gated, models, tmp_path):
    made, wanted = gated
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "pccp.toml").write_bytes((tmp_path / "pccp.toml").read_bytes())
    (folder / "modification").write_text("update")
    # No key signs anything, and no log is written: a gate makes no model.
    at = Coordinator(folder, tmp_path / "watching", None, made.identity, None)
    assert lead_run(made.plan, made.sums(), at) is None
    found = [SiteFigures.model_validate_json(json.dumps(one)) for one in json.loads((folder / "sites.json").read_bytes())]
    assert [one.site for one in found] == list(NAMES)
    alone = site_figures(
        wanted, "ada", *(read_bundle(models[0] / what) for what in ("champion", "challenger")), read_table(made.site("ada") / "features.parquet")
    )
    assert found[0].figures == alone.figures
    assert found[0].explanations == alone.explanations
    assert all(group.subjects >= 5 for one in found for group in one.groups)
    judged = Comparison.from_json((folder / "comparison.json").read_bytes())
    assert (judged.champion, judged.challenger, judged.plan) == (made.plan.parent, made.plan.challenger, wanted.digest)
    assert {one.site for one in judged.sites} == set(NAMES)
    assert {verdict.where for verdict in judged.verdicts} >= {"all sites"}


def test_a_site_holds_a_gate_to_its_own_change_control_plan(gated):
    made, _ = gated
    path = made.site("ada") / "pccp.toml"
    path.write_text(path.read_text().replace("margin = 0.05", "margin = 0.4"))
    assert refused(compare_across, made.sums(), made.plan) == "change_plan_differs"
    path.unlink()
    assert refused(compare_across, made.sums(), made.plan) == "change_plan_differs"


def test_a_holdout_that_was_changed_since_it_was_frozen_tests_nothing(gated):
    made, _ = gated
    path = made.site("ada") / "features.parquet"
    table = read_table(path)
    write_table(replace(table, frame=table.frame.iloc[:-1]), path)
    node = made.node("ada")
    rows, _ = node._rows(node._policy(), made.plan)
    ask = comparison.ask_about(made.plan.parent, made.plan.challenger, made.plan.site_names)
    with pytest.raises(ChangePlanError, match="not the plan's"):
        contribution(rows, ask)
    with pytest.raises(RefusedError, match="not_computed"):
        node._words(rows, [ask], 3)


def test_a_gate_is_asked_of_all_sites_in_their_order(gated):
    made, _ = gated
    asked = comparison.ask_about(made.plan.parent, made.plan.challenger, made.plan.site_names[::-1])
    assert refused(made.sums().total, "gate", [asked]) == "asks_beyond_the_plan"


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 70_000, bytes(range(256)) * 300])
def test_figures_survive_the_way_through_a_sum(raw):
    words, length = comparison.pack(raw)
    padded = np.append(words, np.zeros(5)) + 1e-10
    assert comparison.unpack(padded, length) == raw


@pytest.mark.parametrize(
    "change", [lambda w, n: (w, n - 1), lambda w, n: (w + 0.4, n), lambda w, n: (w, 0), lambda w, n: (-w, n), lambda w, n: (w[::-1], n)]
)
def test_figures_that_were_damaged_are_refused(change):
    words, length = comparison.pack(b"figures of a site " * 20)
    with pytest.raises(FederationError, match="damaged"):
        comparison.unpack(*change(words, length))


def test_figures_that_unpack_to_too_much_are_refused():
    import zlib

    packed = zlib.compress(bytes(comparison.MOST_BYTES + 1), 9)
    padded = np.frombuffer(packed + bytes(-len(packed) % 3), np.uint8).reshape(-1, 3).astype(float) @ np.array([65536.0, 256.0, 1.0])
    with pytest.raises(FederationError, match="longer than any"):
        comparison.unpack(padded, len(packed))
    with pytest.raises(FederationError, match="too long"):
        comparison.pack(np.random.default_rng(0).bytes(200_000))
