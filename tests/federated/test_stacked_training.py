"""A site's own bundle: shared coefficients, its own trees, weights and figures of all sites together."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit

from clinical_ser.cohorts.table import read_table
from clinical_ser.errors import BundleSchemaError, BundleTamperedError, FederationError, InvalidValueError, SiteRefusalError
from clinical_ser.evaluation.card import Card
from clinical_ser.explain.effects import Explainer
from clinical_ser.explain.explaining import explain
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.binned import BINS
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.reference import MINIMUM_SUBJECTS
from clinical_ser.models.signing import SigningKey, TrustStore
from clinical_ser.models.stacked_head import StackedHead
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.weights import subject_weights
from federated.at_site import EVERYBODY, Scales
from federated.identities import LOCAL_HEADS, Identity
from federated.node import workspace_of
from federated.plan import LINEAR, LOCAL, Plan
from federated.protocols.local_heads import FOLDER, local_heads_of, stacked
from federated.publishing import publish
from federated.site_table import site_rows
from federated.stacking import Together, make_site_bundle, site_bundle, site_model, stack_across
from federated.statistics import Ask, PooledSums, SiteRows
from federated.training import Trained, linear_head, train_across
from tests.federated.cohorts import FOLDS, cohort_rows, part_of, settings, split
from tests.federated.sites import make_consortium
from tests.federated.test_local_heads import FIT, quick_fit
from tests.federated.wires import Wires

COLUMNS = 12
SITE = "site-0"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoostedHead, "fit", quick_fit)
        yield
    assert BoostedHead.fit is FIT


@pytest.fixture(scope="module")
def rows() -> SiteRows:
    """Rows in which the class also shows where one feature is far from its mean on either side: nothing for a line."""
    whole = cohort_rows(240, effect=0.5)
    chosen = dataclasses.replace(whole, X=whole.X[:, :COLUMNS].copy(), names=whole.names[:COLUMNS])
    spread = np.random.default_rng(5).normal(size=len(whole))
    chosen.X[:, 9] = np.where(whole.target == 1, np.sign(spread) * (1.5 + 0.3 * np.abs(spread)), spread / 2)
    return chosen


@pytest.fixture(scope="module")
def sites(rows, tmp_path_factory) -> dict[str, SiteRows]:
    return {name: dataclasses.replace(site, workspace=tmp_path_factory.mktemp(name)) for name, site in split(rows, 3).items()}


class Watched(PooledSums):
    def __init__(self, tables: dict[str, SiteRows]):
        super().__init__(tables)
        self.asked: list[Ask] = []

    def total(self, step, asks):
        self.asked += asks
        return super().total(step, asks)


@pytest.fixture(scope="module")
def sums(sites) -> Watched:
    return Watched(sites)


@pytest.fixture(scope="module")
def trained(rows, sums) -> Trained:
    return train_across(sums, settings(features=rows.names, refits=3))


@pytest.fixture(scope="module")
def together(sums, trained) -> Together:
    return stack_across(sums, trained)


@pytest.fixture(scope="module")
def model(sites, trained, together) -> TrainedModel:
    return site_model(sites[SITE], trained.model, together)


@pytest.fixture(scope="module")
def bundle(sites, trained, together, tmp_path_factory) -> VerifiedBundle:
    key, folder = SigningKey.generate(), tmp_path_factory.mktemp("models") / "own"
    site_bundle(sites[SITE], trained.model, together, folder, name="own", version="1", sites=3, cohort_digest="0" * 64, key=key, replicates=60)
    return read_bundle(folder, require_trusted=True, trusted=TrustStore(frozenset({key.public})))


def test_a_site_s_bundle_is_verified_read_and_answers_as_it_was_made(sites, bundle, model):
    assert bundle.manifest.head == "stacked"
    read = TrainedModel.from_bundle(bundle)
    assert isinstance(read.head, StackedHead)
    assert read.head.has_trees
    assert all(isinstance(refit.head, StackedHead) for refit in read.refits)
    X = sites[SITE].X[:20]
    np.testing.assert_array_equal(read.log_odds(X), model.log_odds(X))
    answers = [read.answer(x) for x in X]
    assert all(answer.low[1] < answer.probabilities[1] < answer.high[1] for answer in answers)
    terms = read.terms(X)
    np.testing.assert_allclose(terms.constant[0] + terms.families[0].sum(axis=1), read.log_odds(X)[:, None], atol=1e-9)
    explained = explain(Explainer(read), vector_of(sites[SITE].X[0], read), target=read.task.classes[1])
    assert explained.reference.subjects == read.reference.groups[0].subjects
    told = sum(family.log_odds.value for family in explained.families)
    assert explained.log_odds - explained.base_log_odds == pytest.approx(told, abs=1e-3)


def test_refits_without_trees_answer_beside_refits_with_them(sites, model):
    """A bootstrap sample may hold too few people of a class at this site for trees of its own."""
    refit = model.refits[0]
    bare = dataclasses.replace(refit, head=StackedHead(refit.head.shared, None, refit.head.weights_))
    mixed = dataclasses.replace(model, refits=(bare, *model.refits[1:]))
    read = StackedHead.from_dict(bare.head.to_dict())
    X = sites[SITE].X[:5]
    np.testing.assert_allclose(read.margins(model.preprocessor.transform(X)), bare.head.margins(model.preprocessor.transform(X)))
    assert all(answer.low[1] < answer.high[1] for answer in map(mixed.answer, X))
    assert mixed.terms(X).families.shape[0] == 1 + len(model.refits)


def vector_of(x: np.ndarray, model: TrainedModel) -> FeatureVector:
    return FeatureVector(model.features, x, {name: "not measured" for name, value in zip(model.features, x, strict=True) if np.isnan(value)})


def test_the_bundle_says_that_it_must_not_leave_the_hospital(bundle):
    assert "must not leave the hospital" in bundle.manifest.statement
    assert "must not leave the hospital" in Card.from_json(bundle.files["card.json"]).statement


def test_a_stacked_head_under_another_name_is_refused(bundle):
    manifest = bundle.manifest.model_copy(update={"head": "linear"})
    with pytest.raises(BundleSchemaError, match="stacked"):
        TrainedModel.from_bundle(dataclasses.replace(bundle, manifest=manifest))


def test_a_site_answers_with_shared_coefficients_and_its_own_trees(sites, trained, together, model):
    Z = model.preprocessor.transform(sites[SITE].X)
    a, c, b = together.maps.theta[FOLDS]
    assert c > 0.3
    shared, local = trained.model.head.margins(Z), model.head.local.margins(Z)
    np.testing.assert_allclose(model.log_odds(sites[SITE].X), a * shared + c * local + b, atol=1e-9)
    other = site_model(sites["site-1"], trained.model, together)
    assert other.head.local.to_bytes() != model.head.local.to_bytes()
    assert other.head.shared.coef_.tolist() == model.head.shared.coef_.tolist()
    assert other.operating_point == model.operating_point


def out_of_fold(sites: dict[str, SiteRows], together: Together) -> np.ndarray:
    told = Ask("any", together.ask.arrays | {"theta": together.maps.theta[:FOLDS]}, together.ask.options)
    return np.concatenate([stacked(site, told) for site in sites.values()])


def test_sets_and_threshold_are_those_of_all_sites_out_of_fold(sites, together, model):
    log_odds = out_of_fold(sites, together)
    target, subjects = (np.concatenate([getattr(site, name) for site in sites.values()]) for name in ("target", "subjects"))
    p = expit(log_odds)
    pooled = ConformalSets(0.90).fit(np.column_stack([1 - p, p]), target, groups=subjects)
    for ours, exact in zip(model.conformal.thresholds_, pooled.thresholds_, strict=True):
        assert 0 <= ours - exact <= 1 / BINS + 1e-9
    at = expit(model.operating_point.threshold) * BINS
    assert at == pytest.approx(round(at))
    caught = np.array([(log_odds[(subjects == name)] >= model.operating_point.threshold).mean() for name in np.unique(subjects[target == 1])])
    assert model.operating_point.sensitivity.value == pytest.approx(caught.mean(), abs=1e-9)
    assert together.evaluated["everybody"].sum() == len(np.unique(subjects))


def test_trees_of_each_site_make_the_whole_better(trained, together):
    def brier(counts: np.ndarray) -> float:
        middle = (np.arange(BINS) + 0.5) / BINS
        negative, positive = counts.sum(axis=(2, 3, 4))
        return float((negative @ middle**2 + positive @ (1 - middle) ** 2) / counts.sum())

    assert brier(together.evaluated["everybody"]) < 0.9 * brier(trained.everybody)


def test_reference_groups_are_of_this_site_s_people_by_heads_that_never_heard_them(sites, trained, together, model):
    site = sites[SITE]
    first = model.reference.groups[0]
    assert first.subjects == len(np.unique(site.subjects[site.target == 0]))
    assert first.subjects < trained.model.reference.groups[0].subjects
    here = site.target == 0
    heads, scales = local_heads_of(site, together.ask), Scales(site, together.ask)
    weight = subject_weights(site.subjects[here], int(here.sum()))

    def families(fold_of_trees) -> np.ndarray:
        """Return the group's mean by coefficients that never heard a row, and trees of some fold or other."""
        found = np.zeros((len(site), len(model.head.families_)))
        for fold in range(FOLDS):
            tested = site.fold == fold
            shared = linear_head(together.settings, together.judged["beta"][fold], 1.0)
            local, Z = heads.head(fold_of_trees(fold)), scales.design(fold)[tested, :-1]
            found[tested] = np.tensordot(together.maps.weights(fold), [shared.family_margins(Z), local.family_margins(Z)], 1)
        return np.average(found[here], axis=0, weights=weight)

    unheard, heard = families(lambda fold: fold), families(lambda _fold: EVERYBODY)
    mean = np.ravel(model.backgrounds.groups[0].mean)
    assert np.abs(mean - unheard).max() < 0.2 * np.abs(heard - unheard).max()


def test_a_site_with_too_few_people_serves_the_shared_head_without_groups(rows, trained, together):
    few = np.unique(rows.subjects)[:8]
    small = part_of(rows, np.flatnonzero(np.isin(rows.subjects, few)), b"small", first=False)
    assert len(few) < MINIMUM_SUBJECTS
    model = site_model(small, trained.model, together)
    assert not model.head.has_trees
    assert model.reference.groups == ()
    a, _, b = together.maps.theta[FOLDS]
    np.testing.assert_allclose(model.log_odds(rows.X), a * trained.model.head.margins(model.preprocessor.transform(rows.X)) + b, atol=1e-9)


def test_what_sites_are_told_makes_the_same_model_and_holds_none_of_them(sites, trained, together, model):
    raw = together.to_bytes()
    assert not any(site.X[i].tobytes() in raw for site in sites.values() for i in range(20))
    again = Together.from_bytes(raw, trained.settings)
    assert again.to_bytes() == raw
    found = site_model(sites[SITE], trained.model, again)
    assert {name: found.to_files()[name] == content for name, content in model.to_files().items()} == dict.fromkeys(model.to_files(), True)


def test_a_message_of_another_run_is_refused(trained, together):
    with pytest.raises(FederationError, match="weights of local heads"):
        Together.from_bytes(together.to_bytes(), settings(features=trained.settings.features, refits=4))
    broken = dataclasses.replace(together, binned={**together.binned, "mass": together.binned["mass"] * np.nan})
    with pytest.raises(FederationError, match="weights of local heads"):
        Together.from_bytes(broken.to_bytes(), trained.settings)


def test_trees_that_were_grown_for_the_run_are_served_and_not_others(sites, trained, together, model):
    folder = sites[SITE].workspace / FOLDER
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert site_model(sites[SITE], trained.model, together).head.local.to_bytes() == model.head.local.to_bytes()
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_plan_with_local_trees_names_every_statistic_that_is_asked_for(sums, together):
    assert {ask.statistic for ask in sums.asked} == set(LOCAL)
    assert together.exchanges <= 10


def test_trees_are_put_under_coefficients_and_nothing_else(sums, sites, trained, together):
    boosted = dataclasses.replace(trained, settings=dataclasses.replace(trained.settings, head="boosted"))
    with pytest.raises(InvalidValueError, match="linear"):
        stack_across(sums, boosted)
    fewer = dataclasses.replace(trained.model, refits=trained.model.refits[:2])
    with pytest.raises(InvalidValueError, match="linear model of this run"):
        site_model(sites[SITE], fewer, together)


def test_nodes_weigh_their_trees_and_keep_them(tmp_path):
    made = make_consortium(tmp_path, head="linear+local", statistics=LOCAL)
    wires = Wires(made)
    sums = made.sums(wires)
    linear = train_across(sums, made.plan.settings)
    across = stack_across(sums, linear)
    rows = {
        name: site_rows(read_table(made.site(name) / "features.parquet"), made.plan, (made.site(name) / "state" / "secret").read_bytes(), None)
        for name in made.names
    }
    pooled = stack_across(PooledSums(rows), linear)
    np.testing.assert_allclose(across.maps.theta, pooled.maps.theta, atol=1e-6)
    np.testing.assert_allclose(across.evaluated["everybody"], pooled.evaluated["everybody"], atol=1e-6)
    kept = dataclasses.replace(rows["curie"], workspace=workspace_of(made.site("curie"), made.plan))
    grown = list((kept.workspace / FOLDER).iterdir())
    assert grown
    served = site_model(kept, linear.model, Together.from_bytes(across.to_bytes(), made.plan.settings))
    np.testing.assert_allclose(served.log_odds(kept.X), site_model(rows["curie"], linear.model, pooled).log_odds(kept.X), atol=1e-6)
    answers = b"".join(body for _, body, _ in wires.received)
    assert not any(file.read_bytes()[:200] in answers for file in grown)


def test_a_site_makes_its_own_bundle_from_what_the_coordinator_signed_for_the_run(tmp_path):
    made = make_consortium(tmp_path, head="linear+local", statistics=LOCAL)
    sums = made.sums()
    linear = train_across(sums, made.plan.settings)
    across = stack_across(sums, linear)
    shared = tmp_path / "shared"
    digest = publish(linear, shared, name="across", version="1", sites=3, cohort_digest="0" * 64, key=None, replicates=60).digest
    sealed = across.sealed(made.identity, made.plan.digest, digest)
    published = make_site_bundle(made.site("ada"), made.plan, shared, sealed, tmp_path / "own", key=None)
    bundle = read_bundle(tmp_path / "own")
    assert bundle.manifest.head == "stacked"
    assert "must not leave the hospital" in published.card.statement
    assert published.card.head == "stacked"
    for forged in (sealed[:63] + bytes([sealed[63] ^ 1]) + sealed[64:], sealed[:-1], b"", Identity.generate().sign(LOCAL_HEADS, b"") + sealed[64:]):
        with pytest.raises(FederationError, match="not signed"):
            make_site_bundle(made.site("ada"), made.plan, shared, forged, tmp_path / "forged", key=None)
    other = Plan.model_validate(made.plan.model_dump() | {"run": "another"})
    with pytest.raises(FederationError, match="not signed"):
        make_site_bundle(made.site("ada"), other, shared, sealed, tmp_path / "forged", key=None)
    with pytest.raises(BundleTamperedError):
        make_site_bundle(made.site("ada"), made.plan, shared, across.sealed(made.identity, made.plan.digest, "0" * 64), tmp_path / "forged", key=None)
    table = made.site("ada") / "features.parquet"
    table.write_bytes(table.read_bytes() + b"more")
    with pytest.raises(FederationError, match="not the one that this run was about"):
        make_site_bundle(made.site("ada"), made.plan, shared, sealed, tmp_path / "forged", key=None)
    assert not (tmp_path / "forged").exists()


def test_scores_with_local_trees_are_refused_under_a_plan_without_them(tmp_path):
    made = make_consortium(tmp_path, statistics=LINEAR)
    ask = Ask("scores", {"beta": np.zeros((3, 7))}, {"families": "pitch", "seed": 0})
    with pytest.raises(SiteRefusalError, match="statistic not allowed"):
        made.sums().total("scores", [ask])
