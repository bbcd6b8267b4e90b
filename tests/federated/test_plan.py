"""A plan is its bytes, and what is no sound plan is refused by naming the field."""

import json
from datetime import datetime

import pytest
from pydantic import ValidationError

from clinical_ser.cohorts.tasks import EMOTION, get_task
from clinical_ser.errors import FederationError
from clinical_ser.features.extraction import fingerprints
from clinical_ser.models.strict_json import canonical_json
from federated.plan import MOST_BYTES, Participant, Plan, read_plan
from tests.federated.sites import NOW
from tests.tables import SETS

KEYS = [f"{number:064x}" for number in range(1, 6)]
SITES = tuple(Participant(name=f"site-{number}", identity=KEYS[number]) for number in range(3))


def plan(**changes):
    given = {
        "run": "spring",
        "name": "across",
        "version": "1.2",
        "task": get_task("depression"),
        "features": ("praat.f0_median_hz", "timing.pause_mean_s"),
        "extractors": fingerprints(SETS),
        "sites": SITES,
        "coordinator": KEYS[4],
        "created": NOW,
    }
    return Plan(**(given | changes))


def test_a_plan_comes_back_from_its_bytes_with_the_same_digest(tmp_path):
    (tmp_path / "plan.json").write_bytes(plan().to_bytes())
    found = read_plan(tmp_path / "plan.json")
    assert found == plan()
    assert found.digest == plan().digest


def test_the_digest_moves_with_every_field():
    changes = {
        "run": "summer",
        "name": "other",
        "version": "1.3",
        "features": ("praat.f0_median_hz",),
        "head": "boosted",
        "folds": 4,
        "fold_column": "fold",
        "strengths": (1.0,),
        "refits": 39,
        "coverage": 0.8,
        "seed": 1,
        "groups": {"sex": ("female", "male")},
        "checks": ("snr",),
        "statistics": ("cohort",),
        "coordinator": KEYS[3],
        "sites": (*SITES, Participant(name="site-9", identity=KEYS[3])),
        "minimum_sites": 3,
    }
    digests = {plan(**{name: value}).digest for name, value in changes.items()}
    # `minimum_sites` of 3 is what a plan says anyway.
    assert len(digests | {plan().digest}) == len(changes)


def test_what_is_trained_is_what_the_plan_says():
    settings = plan(folds=3, refits=7, seed=5, coverage=0.8).settings
    assert (settings.folds, settings.refits, settings.seed, settings.coverage) == (3, 7, 5, 0.8)
    assert settings.features == plan().features
    assert settings.extractors == plan().extractors


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sites": SITES[:2]}, "at least 3 sites"),
        ({"minimum_sites": 2}, "minimum_sites"),
        ({"minimum_sites": 4}, "at least 4 sites"),
        ({"sites": (*SITES, Participant(name="site-2", identity=KEYS[3]))}, "once"),
        ({"sites": (*SITES, Participant(name="site-3", identity=KEYS[0]))}, "once"),
        ({"sites": SITES[::-1]}, "order"),
        ({"features": ("a.b", "a.b")}, "each feature once"),
        ({"features": ()}, "features"),
        ({"task": EMOTION}, "two classes"),
        ({"created": datetime(2026, 1, 1)}, "time zone"),
        ({"folds": 1}, "folds"),
        ({"strengths": (0.0,)}, "strengths"),
        ({"strengths": (float("nan"),)}, "strengths"),
        ({"coordinator": "ab"}, "coordinator"),
        ({"run": "../run"}, "run"),
        ({"run": "Run"}, "run"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_plan_that_is_not_sound_cannot_be_made(changes, says):
    with pytest.raises(ValidationError, match=says):
        plan(**changes)


def test_a_plan_in_another_spelling_is_refused(tmp_path):
    raw = plan().to_bytes()
    loose = json.dumps(json.loads(raw)).encode()
    without_a_default = canonical_json({name: value for name, value in json.loads(raw).items() if name != "seed"})
    for other in (loose, without_a_default, raw + b"\n", raw[:-1], b"", b"[]\n", b"\xff"):
        with pytest.raises(FederationError, match="plan"):
            Plan.from_bytes(other)


def test_a_field_that_does_not_fit_is_named_and_its_value_is_not_quoted():
    raw = plan().to_bytes().replace(b'"folds":5', b'"folds":"secret"')
    with pytest.raises(FederationError, match="folds") as refused:
        Plan.from_bytes(raw)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_too_long_or_not_there_is_refused(tmp_path):
    with pytest.raises(FederationError, match="cannot be read"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b" " * (MOST_BYTES + 1))
    with pytest.raises(FederationError, match="too long"):
        read_plan(tmp_path / "plan.json")
