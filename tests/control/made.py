"""A filled-in plan, keys for its roles, and summaries of sites made of numbers alone."""

import base64
from datetime import UTC, datetime

from clinical_ser.control.approval import Approval, RoleKey, approve, sign_plan
from clinical_ser.control.figures import EXPLANATION_FIGURES
from clinical_ser.control.gate import Comparison, comparison_of
from clinical_ser.control.parts import ChangePlan
from clinical_ser.control.plan import Change, example_plan, parse_plan
from clinical_ser.control.site_figures import GroupFigures, PairedFigure, SiteFigures
from clinical_ser.evaluation.figure import Figure

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LEAD, QUALITY = "clinical-lead", "quality-manager"
KEYS = {LEAD: RoleKey.generate(), QUALITY: RoleKey.generate()}
PERSONS = {LEAD: "Ada Roe", QUALITY: "Bo Lind"}
MODEL = "clinic-depression"
EXAMPLE_KEYS = ("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=")


def base64_of(key: RoleKey) -> str:
    return base64.b64encode(key.public.raw).decode()


def filled_in(text: str | None = None, *, digests: tuple[str, str] = ("1" * 64, "2" * 64), keys=KEYS, **replaced: str) -> str:
    """Fill the example in, to hold on any day; `replaced` maps what is left of an equals sign to another value, everywhere."""
    replaced = {"effective": "2000-01-01", "expires": "2999-12-31"} | replaced
    text = text or example_plan()
    for old, key in zip(EXAMPLE_KEYS, keys.values(), strict=True):
        text = text.replace(old, base64_of(key))
    for digest in digests:
        text = text.replace("0" * 64, digest, 1)
    lines = []
    for line in text.splitlines():
        name = line.partition(" = ")[0]
        lines.append(f"{name} = {replaced[name]}" if name in replaced else line)
    return "\n".join(lines) + "\n"


def plan_of(text: str) -> ChangePlan:
    plan, faults = parse_plan(text.encode())
    assert not faults, [str(one) for one in faults]
    return plan


def figure(value: float, half: float = 0.02, people: int = 100) -> Figure:
    return Figure.of(value, value - half, value + half, subjects=people, recordings=people, method="made")


def pair(champion: float, challenger: float, half: float = 0.02) -> PairedFigure:
    return PairedFigure(champion=figure(champion), challenger=figure(challenger), difference=figure(challenger - champion, half))


def site_of(plan: ChangePlan, place: int, champion: str, challenger: str, **changed: PairedFigure) -> SiteFigures:
    """A summary in which the challenger is a little better in everything."""
    holdout = plan.holdout[place]
    figures = {
        "auroc": pair(0.80, 0.81),
        "ece_smooth": pair(0.05, 0.05),
        "calibration_slope": PairedFigure(champion=figure(0.9), challenger=figure(1.0), difference=figure(-0.1)),
        "brier": pair(0.15, 0.14, half=0.01),
        "sensitivity": pair(0.85, 0.86),
        "specificity": pair(0.70, 0.71),
        "deferred": pair(0.20, 0.19),
        "not_usable": pair(0.10, 0.10),
    } | changed
    return SiteFigures(
        site=holdout.site,
        table=holdout.sha256,
        plan=plan.digest,
        champion=champion,
        challenger=challenger,
        subjects_by_class=dict.fromkeys(plan.plan.classes, 50),
        subjects=100,
        recordings=100,
        answered_by_one=0,
        simulated=True,
        members_checked=True,
        prevalence=0.5,
        figures=figures,
        groups=tuple(
            GroupFigures(column="sex", value=value, subjects=50, enough=True, figures={"auroc": pair(0.8, 0.8)}) for value in ("female", "male")
        ),
        explanations=dict.fromkeys(EXPLANATION_FIGURES, figure(0.9)),
    )


def comparison(
    plan: ChangePlan,
    champion: str,
    challenger: str,
    *,
    modification: str = "recalibration",
    change: Change | None = None,
    epsilon: tuple[float, str] | None = (4.0, "hand"),
    **changed: PairedFigure,
) -> Comparison:
    sites = [site_of(plan, 0, champion, challenger, **changed), site_of(plan, 1, champion, challenger)]
    left, whose = epsilon or (None, "records")
    return comparison_of(
        plan,
        plan.modification_of(modification),
        sites,
        champion=champion,
        challenger=challenger,
        epsilon_left=left,
        epsilon_from=whose,
        change=change,
    )


def approvals(plan: ChangePlan, of: Comparison, *, time: datetime = NOW) -> list[Approval]:
    return [approve(plan, of, role=role, name=PERSONS[role], key=key, time=time) for role, key in KEYS.items()]


def signatures(plan: ChangePlan) -> list:
    return [sign_plan(plan, role=role, name=PERSONS[role], key=key, time=NOW) for role, key in KEYS.items()]
