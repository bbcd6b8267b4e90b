"""Two roles sign one comparison; nothing else counts."""

from datetime import UTC, datetime, timedelta

import pytest

from clinical_ser.control.approval import (
    Approval,
    PlanSignature,
    RoleKey,
    approve,
    check_plan_signatures,
    read_signatures,
    sign_plan,
    signed_roles,
    valid_approvals,
    write_signature,
)
from clinical_ser.control.plan import example_plan, parse_plan
from clinical_ser.errors import ChangePlanError
from clinical_ser.models.signing import SigningKey
from tests.control.made import KEYS, LEAD, NOW, PERSONS, QUALITY, approvals, base64_of, comparison, filled_in, pair, plan_of, signatures

PLAN = plan_of(filled_in())
MADE = comparison(PLAN, "a" * 64, "b" * 64)


def test_both_roles_approve_one_comparison():
    chosen = valid_approvals(PLAN, MADE.digest, approvals(PLAN, MADE))
    assert [one.role for one in chosen] == [LEAD, QUALITY]
    read = [Approval.from_json(one.to_json()) for one in chosen]
    assert [one.sha256 for one in read] == [one.sha256 for one in chosen]


def test_one_role_is_not_enough_and_the_missing_one_is_named():
    with pytest.raises(ChangePlanError, match=r"missing of .'quality-manager'"):
        valid_approvals(PLAN, MADE.digest, approvals(PLAN, MADE)[:1])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"comparison": "c" * 64}, "another comparison"),
        ({"plan": "c" * 64}, "another plan"),
        ({"role": "janitor"}, "no such role"),
        ({"name": "Somebody Else"}, "it was changed"),
        ({"meaning": "I did not look."}, "not the role's"),
        ({"time": datetime(2026, 12, 2, tzinfo=UTC)}, "it was changed"),
        ({"time": datetime(1999, 1, 1, tzinfo=UTC)}, "did not hold"),
        ({"public_key": base64_of(KEYS[LEAD])}, "not the role's"),
        ({"signature": ""}, "it was changed"),
        ({"signature": "%%%"}, "it was changed"),
    ],
)
def test_an_approval_that_was_changed_does_not_count_and_says_why(changed, named):
    lead, quality = approvals(PLAN, MADE)
    with pytest.raises(ChangePlanError, match=named):
        valid_approvals(PLAN, MADE.digest, [lead, quality.model_copy(update=changed)])


def test_one_person_does_not_sign_for_two_roles():
    lead, quality = (
        approve(PLAN, MADE, role=role, name=name, key=KEYS[role], time=NOW) for role, name in ((LEAD, "Ada Roe"), (QUALITY, " ada  ROE"))
    )
    with pytest.raises(ChangePlanError, match="one person"):
        valid_approvals(PLAN, MADE.digest, [lead, quality])


def test_another_spelling_of_a_name_is_the_same_person():
    lead, quality = (
        approve(PLAN, MADE, role=role, name=name, key=KEYS[role], time=NOW) for role, name in ((LEAD, "Ada Roe"), (QUALITY, "\uff21da Roe"))
    )
    assert quality.name == "Ada Roe"
    with pytest.raises(ChangePlanError, match="one person"):
        valid_approvals(PLAN, MADE.digest, [lead, quality])
    other = approve(PLAN, MADE, role=QUALITY, name=PERSONS[QUALITY], key=KEYS[QUALITY], time=NOW)
    assert len(valid_approvals(PLAN, MADE.digest, [lead, quality, other])) == 2


def test_one_person_does_not_sign_a_plan_for_two_roles():
    both = [sign_plan(PLAN, role=role, name="Ada Roe", key=key, time=NOW) for role, key in KEYS.items()]
    with pytest.raises(ChangePlanError, match="one person"):
        check_plan_signatures(PLAN, both, roles_of=PLAN)


def test_a_signature_of_a_time_to_come_does_not_count():
    with pytest.raises(ChangePlanError, match="still to come"):
        valid_approvals(PLAN, MADE.digest, approvals(PLAN, MADE), now=NOW - timedelta(minutes=6))
    assert valid_approvals(PLAN, MADE.digest, approvals(PLAN, MADE), now=NOW - timedelta(minutes=4))


def test_a_role_signs_with_its_own_key_and_only_what_is_met():
    with pytest.raises(ChangePlanError, match="is not one of role"):
        approve(PLAN, MADE, role=LEAD, name=PERSONS[LEAD], key=KEYS[QUALITY])
    with pytest.raises(ChangePlanError, match="has no role"):
        approve(PLAN, MADE, role="janitor", name="Somebody", key=KEYS[LEAD])
    worse = comparison(PLAN, "a" * 64, "b" * 64, auroc=pair(0.8, 0.6))
    with pytest.raises(ChangePlanError, match=r"not met: discrimination \(all sites\); worst-site"):
        approve(PLAN, worse, role=LEAD, name=PERSONS[LEAD], key=KEYS[LEAD])
    with pytest.raises(ChangePlanError, match="another plan"):
        approve(plan_of(filled_in(margin="0.06")), MADE, role=LEAD, name=PERSONS[LEAD], key=KEYS[LEAD])
    for name in ("", "x" * 200, "Ada\nRoe", "Ada\u202eeoR", "Ada\u200bRoe"):
        with pytest.raises(ChangePlanError, match="name"):
            approve(PLAN, MADE, role=LEAD, name=name, key=KEYS[LEAD])


def test_a_plans_signature_is_no_approval_and_a_bundles_none_either():
    one = sign_plan(PLAN, role=LEAD, name=PERSONS[LEAD], key=KEYS[LEAD], time=NOW)
    lead, quality = approvals(PLAN, MADE)
    with pytest.raises(ChangePlanError, match="it was changed"):
        valid_approvals(PLAN, MADE.digest, [lead.model_copy(update={"signature": one.signature}), quality])
    key = RoleKey.generate()
    assert not key.public.fits(b"x" * 64, b"clinical-ser bundle manifest v1\n{}")
    assert "signature" in SigningKey.sign(key, b"{}").decode()
    with pytest.raises(ChangePlanError, match="no signature of this version"):
        Approval.from_json(one.to_json())


def test_the_keys_of_the_example_sign_nothing():
    example, _ = parse_plan(example_plan().encode())
    with pytest.raises(ChangePlanError, match="key of the example"):
        sign_plan(example, role=LEAD, name=PERSONS[LEAD], key=KEYS[LEAD])


def test_signatures_lie_beside_the_plan_and_count_for_this_plan_only(tmp_path):
    path = tmp_path / "pccp [draft].toml"
    path.write_text(filled_in(), encoding="utf-8")
    for one in signatures(PLAN):
        write_signature(path, one)
    assert all(signed_roles(PLAN, read_signatures(path)).values())
    check_plan_signatures(PLAN, read_signatures(path), roles_of=PLAN)
    with pytest.raises(ChangePlanError, match="is there"):
        write_signature(path, signatures(PLAN)[0])
    changed = plan_of(filled_in(margin="0.1"))
    with pytest.raises(ChangePlanError, match="not signed by its own roles"):
        check_plan_signatures(changed, read_signatures(path), roles_of=changed)


def test_a_new_plan_is_followed_only_when_the_roles_of_the_old_one_agree():
    keys = {LEAD: RoleKey.generate(), QUALITY: RoleKey.generate()}
    laxer = plan_of(filled_in(keys=keys, margin="0.1"))
    own = [sign_plan(laxer, role=role, name=PERSONS[role], key=key) for role, key in keys.items()]
    check_plan_signatures(laxer, own, roles_of=laxer)
    with pytest.raises(ChangePlanError, match="the plan that it replaces"):
        check_plan_signatures(laxer, own, roles_of=PLAN)
    agreed = [sign_plan(laxer, role=role, name=PERSONS[role], key=key, handing_over=True) for role, key in KEYS.items()]
    check_plan_signatures(laxer, [*own, *agreed], roles_of=PLAN)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"x" * 70_000, b'{"schema_id":"clinical-ser/approval/1"}\n'])
def test_what_is_no_signature_is_refused(raw):
    for kind in (Approval, PlanSignature):
        with pytest.raises(ChangePlanError):
            kind.from_json(raw)
