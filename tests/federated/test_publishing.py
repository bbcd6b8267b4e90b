"""A model trained across sites is a bundle like any other, with a card like any other."""

import numpy as np
import pytest

from clinical_ser.evaluation.card import Card
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.signing import SigningKey, TrustStore
from clinical_ser.models.trained import TrainedModel
from federated.publishing import publish
from federated.statistics import PooledSums
from federated.training import commitment, train_across
from tests.federated.cohorts import cohort_rows, settings, split


@pytest.fixture(scope="module")
def rows():
    return cohort_rows()


@pytest.fixture(scope="module")
def trained(rows):
    return train_across(PooledSums(split(rows, 3)), settings())


def test_the_bundle_is_verified_read_and_answers_as_it_was_trained(rows, trained, tmp_path):
    key = SigningKey.generate()
    digest = commitment(["a" * 64, "b" * 64, "c" * 64])
    published = publish(trained, tmp_path / "m", name="across", version="1", sites=3, cohort_digest=digest, key=key, replicates=60)
    bundle = read_bundle(tmp_path / "m", require_trusted=True, trusted=TrustStore(frozenset({key.public})))
    assert bundle.manifest.cohort_digest == digest
    model = TrainedModel.from_bundle(bundle)
    answer = model.answer(rows.X[0])
    assert answer.log_odds == pytest.approx(trained.model.answer(rows.X[0]).log_odds, abs=1e-12)
    assert answer.low[1] < answer.probabilities[1] < answer.high[1]
    card = Card.from_json(bundle.files["card.json"])
    assert "Trained across 3 sites" in card.statement
    figures = card.figures
    assert {"auroc", "sensitivity", "calibration_slope", "brier", "deferred", "not_usable"} <= set(figures)
    assert figures["auroc"].low < figures["auroc"].value < figures["auroc"].high
    assert figures["auroc"].subjects == len(np.unique(rows.subjects))
    assert published.card.internal.flow.given == trained.cohort.flow["given"]


def test_groups_that_are_large_enough_have_figures_and_the_others_only_a_size(trained, tmp_path):
    published = publish(trained, tmp_path / "m", name="across", version="1", sites=3, cohort_digest="0" * 64, key=None, replicates=60)
    groups = {(group.column, group.value): group for group in published.evidence.groups}
    assert groups["sex", "female"].enough
    assert "auroc" in groups["sex", "female"].figures
    small = [group for group in groups.values() if not group.enough]
    assert small
    assert all(not group.figures and group.positives is None for group in small)
    assert {gap.column for gap in published.evidence.gaps} >= {"sex"}


def test_no_file_of_the_bundle_holds_a_subject_or_a_recording(rows, trained, tmp_path):
    publish(trained, tmp_path / "m", name="across", version="1", sites=3, cohort_digest="0" * 64, key=None, replicates=60)
    content = b"".join(path.read_bytes() for path in sorted((tmp_path / "m").iterdir()))
    assert not any(name.encode() in content for name in rows.subjects[:50])
    assert not any(name.encode() in content for name in rows.frame["recording"][:50])
