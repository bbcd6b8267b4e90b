"""What node.toml does not say is not allowed, and a fault in it is named without its content."""

import pytest

from clinical_ser.errors import FederationError
from federated.policy import MOST_BYTES, Policy

KEY = "ab" * 32


def read(tmp_path, text):
    (tmp_path / "node.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return Policy.read(tmp_path / "node.toml")


def test_the_least_that_can_be_written_allows_nothing(tmp_path):
    policy = read(tmp_path, 'name = "ada"\ntable = "features.parquet"\n')
    assert policy.coordinator is None
    assert policy.approved_builds == policy.approved.plans == policy.release.statistics == policy.release.sets == policy.told.command == ()
    assert (policy.release.minimum_sites, policy.privacy.epsilon) == (3, 0.0)


def test_what_is_written_is_read(tmp_path):
    text = f"""
name = "ada"
coordinator = "{KEY}"
table = "/data/features.parquet"
[approved]
plans = ["{KEY}"]
builds = ["{KEY}"]
[release]
statistics = ["cohort", "moments"]
minimum_sites = 4
minimum_subjects = 30
minimum_subjects_of_a_class = 10
sets = [["ada", "bell", "curie"]]
[privacy]
epsilon = 3
required = true
[told]
command = ["/usr/bin/logger", "-t", "federated"]
"""
    policy = read(tmp_path, text)
    assert policy.approved_builds == policy.approved.plans == (KEY,)
    assert policy.release.sets == (("ada", "bell", "curie"),)
    assert (policy.release.minimum_sites, policy.privacy.epsilon, policy.privacy.required) == (4, 3.0, True)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("surprise = 1", "surprise"),
        ('coordinator = "secret"', "coordinator"),
        ('[release]\nstatistic = ["cohort"]', "release.statistic"),
        ("[release]\nminimum_sites = 2", "release.minimum_sites"),
        ("[release]\nminimum_subjects = 0", "release.minimum_subjects"),
        ("[privacy]\nepsilon = -1", "privacy.epsilon"),
        ("[privacy]\nepsilon = inf", "privacy.epsilon"),
        ("[privacy]\nepsilon = nan", "privacy.epsilon"),
        ("[privacy]\ndelta = 1", "privacy.delta"),
        ('[approved]\nplans = "all"', "approved.plans"),
        ('[approved]\nplans = ["*"]', "approved.plans"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, line, names):
    with pytest.raises(FederationError) as refused:
        read(tmp_path, f'name = "ada"\ntable = "features.parquet"\n{line}\n')
    assert names in str(refused.value)
    assert "nothing is allowed" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text", [b"", b"name =", b"\xff\xfe", b'name = "ada"\nname = "ada"\n', b"#" * (MOST_BYTES + 10)], ids=["empty", "half", "bytes", "twice", "long"]
)
def test_a_file_that_is_no_policy_is_refused(tmp_path, text):
    with pytest.raises(FederationError, match="nothing is allowed"):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_refused_without_its_path(tmp_path):
    with pytest.raises(FederationError, match="nothing is allowed") as refused:
        Policy.read(tmp_path / "node.toml")
    assert str(tmp_path) not in str(refused.value)
