"""Three hospitals in one process: what `node demo` shows."""

import numpy as np
import pytest

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import FederationError
from federated.demonstration import demonstrate
from tests.tables import table_of

SITES = ("simulated-a", "simulated-b", "simulated-c")


def table() -> FeatureTable:
    whole = table_of(240, effect=1.0)
    names = whole.feature_names[:8]
    others = [column for column in whole.frame if column not in whole.feature_names]
    site = np.array(SITES)[np.arange(len(whole.frame)) % 3]
    device = np.array(["headset", "tablet", "laptop"])[np.arange(len(whole.frame)) % 3]
    frame = whole.frame[[*others, *names]].assign(site=site, device=device, language="en")
    return FeatureTable(frame, names, whole.extractors)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    steps = []
    return folder, steps, demonstrate(folder, table(), DEPRESSION, on_step=lambda step, done: steps.append((step, len(done))), refits=3)


def test_three_nodes_train_the_model_that_pooling_would_have_given(found):
    _, steps, demonstration = found
    assert [one.name for one in demonstration.hospitals] == list(SITES)
    assert [one.model for one in demonstration.compared] == ["each site's own", "federated", "pooled"]
    assert demonstration.largest_difference < 1e-6
    assert len(demonstration.exchanges) <= 12
    assert [done for _, done in steps] == list(range(len(steps)))


def test_speakers_on_whom_models_are_compared_are_in_no_site_s_table(found):
    _, _, demonstration = found
    heard = sum(one.speakers for one in demonstration.hospitals)
    assert heard == demonstration.trained.cohort.people < 240


def test_every_party_has_a_log_of_its_own_that_verifies(found):
    folder, _, demonstration = found
    for name in SITES:
        assert demonstration.records[name] == len(demonstration.exchanges)
        assert LogConfiguration.load(folder / name / "audit.toml").verify().size == demonstration.records[name]
    assert demonstration.records["coordinator"] > 0


def test_a_folder_that_has_a_run_in_it_is_not_trained_over(found):
    folder, _, _ = found
    with pytest.raises(FederationError, match="another one"):
        demonstrate(folder, table(), DEPRESSION, refits=3)
