"""Champion against challenger on frozen holdouts: each requirement of the plan with a verdict, from the summaries of the sites alone.

The one idea: a site's own people decide how well its figures are known, and sites are pooled with weights that were fixed beforehand (their
numbers of people), so a comparison made of summaries is the one that would be made of the rows.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import ValidationError

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.control.figures import DISTANCE_TO_BEST, EPSILON_LEFT, EXPLANATION_FIGURES, direction, title_of
from clinical_ser.control.parts import ChangePlan, Id, Modification, Requirement, Sha256
from clinical_ser.control.plan import Change, require_filled_in
from clinical_ser.control.site_figures import GroupFigures, Members, PairedFigure, SiteFigures, site_figures
from clinical_ser.errors import ChangePlanError
from clinical_ser.evaluation.figure import DUST, Figure
from clinical_ser.evaluation.software import software_versions
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.registry.store import MAX_ATTACHMENT_BYTES
from clinical_ser.strict import Strict

LARGEST_COMPARISON_BYTES = MAX_ATTACHMENT_BYTES
POOLED = "mean of sites, weighted by people"
WORST = "worst of several"
BUDGET, BY_HAND = "the registry's records", "given by hand"
EpsilonFrom = Literal["records", "hand"]
Outcome = Literal["met", "not_met", "cannot_be_judged"]


class Verdict(Strict):
    """Whether one requirement is met somewhere."""

    requirement: str
    """Its id in the plan, or `holdout` for a site that has to be there."""
    where: str
    """`all sites`, `site north`, `worst site (south)`, `sex female`, `worst of sex (male)`."""
    figure: str
    outcome: Outcome
    wanted: str
    judged: Figure | None
    """What was judged: the difference (challenger less champion), or the challenger's own figure."""
    champion: Figure | None = None
    challenger: Figure | None = None
    because: str | None = None
    """Why it cannot be judged."""

    @property
    def met(self) -> bool:
        """Whether it is met; what cannot be judged is not."""
        return self.outcome == "met"


class Comparison(Strict):
    """What two roles sign: the same bundles, tables and plan give the same bytes, so it bears no date."""

    schema_id: Literal["clinical-ser/comparison/1"] = "clinical-ser/comparison/1"
    plan: Sha256
    plan_label: str
    modification: Id
    model: str
    """The name under which the champion answers."""
    task: str
    classes: tuple[str, ...]
    champion: Sha256
    challenger: Sha256
    change: Change | None
    """What was done to the champion, as the registry's record has it; None where it is not in a registry."""
    sites: tuple[SiteFigures, ...]
    pooled: dict[str, PairedFigure]
    epsilon_left: float | None
    epsilon_from: EpsilonFrom | None
    """Where `epsilon_left` comes from: the registry's records, or somebody who typed it in."""
    verdicts: tuple[Verdict, ...]
    met: bool
    simulated: bool
    level: float
    replicates: int
    software: dict[str, str]

    @property
    def digest(self) -> str:
        """Return the sha256 of the comparison's bytes, in hex."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def not_met(self) -> tuple[str, ...]:
        """Return what is not met, with where, for a message."""
        return tuple(f"{one.requirement} ({one.where})" for one in self.verdicts if not one.met)

    def to_json(self) -> bytes:
        """Return canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read a comparison; ChangePlanError for bytes that are not one that this version writes."""
        try:
            if len(raw) > LARGEST_COMPARISON_BYTES:
                raise ChangePlanError("The comparison has many megabytes, so it is none.")
            parse_canonical_object(raw)
            read = cls.model_validate_json(raw)
        except (StrictJsonError, ValidationError):
            raise ChangePlanError("The file is no comparison of this version; `clinical-ser gate` makes one.") from None
        if read.to_json() != raw:
            raise ChangePlanError("The comparison is not spelled as this version writes it; make it again with `clinical-ser gate`.")
        return read


def compare(
    plan: ChangePlan,
    modification: Modification,
    champion: VerifiedBundle,
    challenger: VerifiedBundle,
    holdouts: Mapping[str, FeatureTable],
    *,
    summaries: Sequence[SiteFigures] = (),
    members: Members | None = None,
    epsilon_left: float | None = None,
    epsilon_from: EpsilonFrom = "records",
    change: Change | None = None,
) -> Comparison:
    """Ask both models about every holdout, and judge.

    Parameters
    ----------
    plan, modification
        The plan, and which of its modifications the challenger came from (`check_change`).
    champion, challenger
        The two bundles.
    holdouts
        The frozen tables by site. A site of the plan that is not here is not met.
    summaries
        Of sites whose tables do not lie here.
    members
        Whom the models learned from, where the registry knows.
    epsilon_left
        What is left of the privacy budget after the change; None where nobody says.
    epsilon_from
        Who says so.
    change
        What was done, as the registry has it (`change_of`): part of what is signed.

    Raises
    ------
    ChangePlanError
        The plan is not filled in, or a table is not the one that it froze.
    LeakError
        People of a holdout taught one of the models.
    """
    require_filled_in(plan)
    if champion.digest == challenger.digest:
        raise ChangePlanError("Champion and challenger are the same bundle: there is nothing to compare.")
    sites = [site_figures(plan, site, champion, challenger, table, members=members) for site, table in sorted(holdouts.items())]
    sites += summaries
    return comparison_of(
        plan,
        modification,
        sites,
        champion=champion.digest,
        challenger=challenger.digest,
        epsilon_left=epsilon_left,
        epsilon_from=epsilon_from,
        change=change,
    )


def comparison_of(
    plan: ChangePlan,
    modification: Modification,
    sites: Sequence[SiteFigures],
    *,
    champion: str,
    challenger: str,
    epsilon_left: float | None = None,
    epsilon_from: EpsilonFrom = "records",
    change: Change | None = None,
) -> Comparison:
    """Put the summaries of sites together and judge; for summaries that came from elsewhere too.

    Raises
    ------
    ChangePlanError
        A summary is of another plan, table or pair of models, or a site comes twice.
    """
    for one in sites:
        _check_summary(plan, one, champion, challenger)
    if len({one.site for one in sites}) != len(sites):
        raise ChangePlanError("A site comes twice; each gives one summary.")
    ordered = tuple(sorted(sites, key=lambda one: one.site))
    source = None if epsilon_left is None else epsilon_from
    verdicts = judge(plan, modification, ordered, epsilon_left=epsilon_left, epsilon_from=epsilon_from)
    return Comparison(
        plan=plan.digest,
        plan_label=plan.label,
        modification=modification.id,
        model=plan.plan.model,
        task=plan.plan.task,
        classes=plan.plan.classes,
        champion=champion,
        challenger=challenger,
        change=change,
        sites=ordered,
        pooled=pooled_figures(ordered),
        epsilon_left=epsilon_left,
        epsilon_from=source,
        verdicts=verdicts,
        met=all(one.met for one in verdicts),
        simulated=any(one.simulated for one in ordered),
        level=plan.protocol.level,
        replicates=plan.protocol.replicates,
        software=software_versions(),
    )


_WORDS = frozenset({"wanted", "because", "method", "software", "plan_label"})
"""What is said about figures and what made them: another version words it otherwise, and nothing else may differ."""


def check_derived(plan: ChangePlan, one: Comparison) -> None:
    """Raise ChangePlanError unless all that a comparison says follows from its sites' figures and the plan: nothing of it is taken on trust.

    Numbers may differ by rounding, because another machine may have made them.
    """
    again = comparison_of(
        plan,
        plan.modification_of(one.modification),
        one.sites,
        champion=one.champion,
        challenger=one.challenger,
        epsilon_left=one.epsilon_left,
        epsilon_from=one.epsilon_from or "records",
        change=one.change,
    )
    if wrong := sorted(name for name in Comparison.model_fields if name not in _WORDS and not _alike(getattr(one, name), getattr(again, name))):
        raise ChangePlanError(f"Comparison {one.digest[:12]} is not that of its figures: {', '.join(wrong)} differ; it was changed.")


def _alike(one: object, two: object) -> bool:
    if isinstance(one, Strict) and isinstance(two, Strict):
        return type(one) is type(two) and all(_alike(getattr(one, name), getattr(two, name)) for name in type(one).model_fields if name not in _WORDS)
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(map(_alike, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_alike(one[name], two[name]) for name in one)
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12)
    return one == two


def left_by_records(modification: Modification, change: Change) -> float | None:
    """Return what is left of a modification's privacy budget by what the registry's records say was spent; None where it has no budget."""
    most = modification.limits.epsilon_at_most
    return None if most is None else most - (change.epsilon or 0.0)


def _check_summary(plan: ChangePlan, one: SiteFigures, champion: str, challenger: str) -> None:
    holdout = next((holdout for holdout in plan.holdout if holdout.site == one.site), None)
    if holdout is None:
        raise ChangePlanError(f"The plan has no holdout of {one.site!r}; it has {[each.site for each in plan.holdout]}.")
    if one.plan != plan.digest:
        raise ChangePlanError(f"The summary of {one.site!r} was made under another plan ({one.plan[:12]}, not {plan.digest[:12]}).")
    if (one.champion, one.challenger) != (champion, challenger):
        raise ChangePlanError(f"The summary of {one.site!r} is of other models.")
    if one.table != holdout.sha256:
        raise ChangePlanError(f"The summary of {one.site!r} is of another table than the plan froze.")
    if min(one.subjects_by_class.get(label, 0) for label in plan.plan.classes) < holdout.subjects_of_each_class_at_least:
        raise ChangePlanError(f"The summary of {one.site!r} is of too few people: {holdout.subjects_of_each_class_at_least} of each class at least.")


def judge(
    plan: ChangePlan,
    modification: Modification,
    sites: Sequence[SiteFigures],
    *,
    epsilon_left: float | None,
    epsilon_from: EpsilonFrom = "records",
) -> tuple[Verdict, ...]:
    """Return a verdict for each requirement of a modification and, where it is asked of each, each site or group.

    The cautious bound decides. Of a worst site or group it is the worst of their bounds: each has to meet the requirement, so no bound is moved for
    their number (intersection-union test), and what holds at the plan's level for each holds for the worst of them.

    Parameters
    ----------
    plan, modification
        Whose requirements.
    sites
        Summaries, one a site.
    epsilon_left, epsilon_from
        What is left of the privacy budget, and who says so.

    References
    ----------
    Berger RL, Hsu JC (1996), Bioequivalence trials, intersection-union tests and equivalence confidence sets, Stat Sci 11:283-319.
    Piaggio G et al. (2012), Reporting of noninferiority and equivalence randomized trials: CONSORT 2010 extension, JAMA 308:2594-2604.
    """
    judging = _Judging(plan, tuple(sites), epsilon_left, epsilon_from)
    present = {one.site for one in sites}
    missing = [
        Verdict(
            requirement="holdout",
            where=f"site {one.site}",
            figure="subjects",
            outcome="cannot_be_judged",
            wanted="the frozen holdout",
            judged=None,
            because="the site gave no figures",
        )
        for one in plan.holdout
        if one.site not in present
    ]
    return (*missing, *(verdict for one in plan.requirements_of(modification) for verdict in judging.verdicts(one)))


def pooled_figures(sites: Sequence[SiteFigures]) -> dict[str, PairedFigure]:
    """Return the figures that every site has, as means over sites weighted by people."""
    names = [name for name in sites[0].figures if all(name in one.figures for one in sites)] if sites else []
    people = [one.subjects for one in sites]
    return {name: _pooled_pair([one.figures[name] for one in sites], people) for name in names}


class _Judging:
    """The plan's eye on what the sites gave."""

    def __init__(self, plan: ChangePlan, sites: tuple[SiteFigures, ...], epsilon_left: float | None, epsilon_from: EpsilonFrom) -> None:
        self._plan, self._sites, self._epsilon_left = plan, sites, epsilon_left
        self._budget_method = BUDGET if epsilon_from == "records" else BY_HAND

    def verdicts(self, one: Requirement) -> Iterator[Verdict]:
        """Yield one verdict, or one a site or group."""
        if one.figure == EPSILON_LEFT:
            yield self._budget(one)
        elif not self._sites:
            yield _unknown(one, _where(one), "no site gave figures")
        elif one.scope in {"each_group", "worst_group"}:
            yield from self._of_groups(one)
        elif one.scope == "overall":
            yield self._verdict(one, "all sites", self._overall(one.figure))
        else:
            found = {f"site {site.site}": self._at(one.figure, site) for site in self._sites}
            yield from self._each_or_worst(one, found, worst="worst site")

    def _budget(self, one: Requirement) -> Verdict:
        if self._epsilon_left is None:
            return _unknown(one, "all sites", "nobody said what is left")
        left = self._epsilon_left
        figure = Figure(value=left, low=left, high=left, subjects=0, recordings=0, method=self._budget_method)
        met = one.limit is not None and left >= one.limit
        return Verdict(requirement=one.id, where="all sites", figure=one.figure, outcome=_outcome(met), wanted=wanted(one), judged=figure)

    def _at(self, name: str, site: SiteFigures) -> PairedFigure | None:
        if name in EXPLANATION_FIGURES:
            return _alone(site.explanations[name]) if name in site.explanations else None
        return site.figures.get(name)

    def _overall(self, name: str) -> PairedFigure | None:
        found = [self._at(name, site) for site in self._sites]
        if any(one is None for one in found):
            return None
        return _pooled_pair([one for one in found if one], [site.subjects for site in self._sites])

    def _of_groups(self, one: Requirement) -> Iterator[Verdict]:
        groups: dict[str, list[GroupFigures]] = {}
        for site in self._sites:
            for group in site.groups:
                if group.column == one.by:
                    groups.setdefault(group.value, []).append(group)
        # A group that the plan names and no site has is not met; nobody can say how the model does for them.
        found: dict[str, PairedFigure | None] = {f"{one.by} {value}": None for value in one.values if value not in groups}
        for value, parts in sorted(groups.items()):
            enough = [part for part in parts if part.enough and one.figure in part.figures]
            if not enough and one.too_few == "skip":
                continue
            # A site where the group has too few people is not left out of its mean unless the plan says so.
            judged = enough and (len(enough) == len(parts) or one.too_few == "skip")
            pairs = [part.figures[one.figure] for part in enough]
            found[f"{one.by} {value}"] = _pooled_pair(pairs, [part.subjects for part in enough]) if judged else None
        if not found:
            yield _unknown(one, _where(one), "no group has enough people of each class")
        else:
            yield from self._each_or_worst(one, found, worst=f"worst of {one.by}")

    def _each_or_worst(self, one: Requirement, found: Mapping[str, PairedFigure | None], *, worst: str) -> Iterator[Verdict]:
        if one.scope.startswith("each"):
            yield from (self._verdict(one, where, pair) for where, pair in found.items())
            return
        lacking = sorted(where for where, pair in found.items() if pair is None or _judged(one, pair).value is None)
        if lacking:
            yield _unknown(one, worst, f"not known for {', '.join(lacking)}{': nobody, or too few people at a site' if one.by else ''}")
            return
        known = {where: pair for where, pair in found.items() if pair is not None}
        figures = {where: _judged(one, pair) for where, pair in known.items()}
        side = _side(one)
        name = min(figures, key=lambda where: side * _number(figures[where].value))
        told = known[name]
        judged = _worst(list(figures.values()), side)
        yield self._told(one, f"{worst} ({name.removeprefix('site ').removeprefix(f'{one.by} ')})", told, judged)

    def _verdict(self, one: Requirement, where: str, pair: PairedFigure | None) -> Verdict:
        return _unknown(one, where, _not_known(one)) if pair is None else self._told(one, where, pair, _judged(one, pair))

    def _told(self, one: Requirement, where: str, pair: PairedFigure, judged: Figure) -> Verdict:
        common = {"requirement": one.id, "where": where, "figure": one.figure, "wanted": wanted(one), "judged": judged}
        if one.figure not in EXPLANATION_FIGURES:
            common |= {"champion": pair.champion, "challenger": pair.challenger}
        counted = _counted(one, judged)
        if counted is None:
            because = "the figure is not defined" if judged.value is None else "too few people for an interval"
            return Verdict(**common, outcome="cannot_be_judged", because=because)
        return Verdict(**common, outcome=_outcome(_is_met(one, counted)))


def wanted(one: Requirement) -> str:
    """Return a requirement in words."""
    title = title_of(one.figure)
    distance = one.figure.partition(".")[0] in DISTANCE_TO_BEST
    if one.comparison == "non_inferior":
        if distance:
            return f"{title}: at most {one.margin:g} further from {DISTANCE_TO_BEST[one.figure.partition('.')[0]]:g} than the champion's"
        return f"{title}: at most {one.margin:g} {'below' if direction(one.figure) > 0 else 'above'} the champion's"
    if one.comparison == "no_worse":
        return f"{title}: no worse than the champion's"
    return f"{title}: at {'least' if one.comparison == 'at_least' else 'most'} {one.limit:g}"


def _not_known(one: Requirement) -> str:
    return "nobody of the group, or too few people at a site" if one.by else "the figure is not known there"


def _where(one: Requirement) -> str:
    return {"overall": "all sites", "worst_site": "worst site", "each_site": "each site"}.get(one.scope, f"groups of {one.by}")


def _unknown(one: Requirement, where: str, because: str) -> Verdict:
    return Verdict(requirement=one.id, where=where, figure=one.figure, outcome="cannot_be_judged", wanted=wanted(one), judged=None, because=because)


def _outcome(met: bool) -> Outcome:
    return "met" if met else "not_met"


def _judged(one: Requirement, pair: PairedFigure) -> Figure:
    return pair.difference if one.comparison in {"non_inferior", "no_worse"} else pair.challenger


def _side(one: Requirement) -> int:
    """Return 1 where the low end of what is judged is the cautious one, -1 where the high end is."""
    if one.comparison in {"non_inferior", "no_worse"}:
        return direction(one.figure)
    return 1 if one.comparison == "at_least" else -1


def _counted(one: Requirement, judged: Figure) -> float | None:
    if one.comparison == "no_worse":
        return judged.value
    return judged.low if _side(one) > 0 else judged.high


def _is_met(one: Requirement, counted: float) -> bool:
    if one.comparison == "non_inferior":
        return _side(one) * counted >= -_number(one.margin)
    if one.comparison == "no_worse":
        return _side(one) * counted >= -DUST
    return counted >= _number(one.limit) if one.comparison == "at_least" else counted <= _number(one.limit)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _worst(figures: Sequence[Figure], side: int) -> Figure:
    """Return the worst of several figures, with the worst of their bounds; an end that one of them lacks is not known."""
    choose = min if side > 0 else max

    def end(values: list[float | None]) -> float:
        return choose(math.nan if value is None else value for value in values) if None not in values else math.nan

    return Figure.of(
        end([one.value for one in figures]),
        end([one.low for one in figures]),
        end([one.high for one in figures]),
        subjects=sum(one.subjects for one in figures),
        recordings=sum(one.recordings for one in figures),
        method=WORST,
    )


def _alone(figure: Figure) -> PairedFigure:
    """Put a figure that is about both models together where the challenger's would stand."""
    return PairedFigure(champion=figure, challenger=figure, difference=figure)


def _pooled_pair(pairs: Sequence[PairedFigure], people: Sequence[int]) -> PairedFigure:
    return PairedFigure(
        champion=_pooled([one.champion for one in pairs], people),
        challenger=_pooled([one.challenger for one in pairs], people),
        difference=_pooled([one.difference for one in pairs], people),
    )


def _pooled(figures: Sequence[Figure], people: Sequence[int]) -> Figure:
    """Return the mean weighted by people.

    Sites are independent, so the squared distances from value to bound add, each end by itself (MOVER: Zou GY, Donner A (2008), Construction of
    confidence limits about effect measures, Stat Med 27:1693-1702). So a mean of shares stays a share, and each site's interval keeps its form.
    """
    if len(figures) == 1:
        return figures[0]
    share = np.asarray(people, float) / sum(people)
    value, low, high = (np.array([_number(getattr(one, what)) for one in figures]) for what in ("value", "low", "high"))
    mean = float(share @ value)
    return Figure.of(
        mean,
        mean - float(np.sqrt(((share * (value - low)) ** 2).sum())),
        mean + float(np.sqrt(((share * (high - value)) ** 2).sum())),
        subjects=sum(one.subjects for one in figures),
        recordings=sum(one.recordings for one in figures),
        method=POOLED,
    )
