"""Release gates: what a model has to show before it is let out, written down as data before the evaluation is looked at.

A gate that cannot be judged (too few people, a figure that is not defined) is not met: what was not shown is not there.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.evaluating import GAP_FIGURES, GUARDS
from clinical_ser.evaluation.evidence import Evidence, Gap, GateResult
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.subgroups import MINIMUM_OF_A_CLASS
from clinical_ser.strict import Strict

Name = Annotated[str, Field(min_length=1, max_length=80)]
LEAST_REPLICATES = 1000
"""A release does not hang on the luck of a few samples."""
_SEVERITY = ("pass", "not_checked", "warn", "fail")


class Gate(Strict):
    """One requirement: of a figure (overall, or in each group of a column), of a gap between groups, of a leak guard, or of the number of subjects.

    By default the cautious bound counts: the interval's lower one for `at_least`, its upper one for `at_most`.
    """

    name: Name
    figure: str | None = None
    gap: str | None = None
    leak: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    bound: Literal["cautious", "value"] = "cautious"
    by: str | None = None
    """A column: the requirement holds for each of its groups; required for a gap."""
    too_few: Literal["fail", "skip"] = "fail"
    """What a group without enough people is (`figure` with `by`)."""
    verdict: Literal["pass", "warn"] = "pass"
    """The worst verdict of a leak guard that still meets the gate."""
    subjects_at_least: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        subjects = [what for what in (self.figure, self.gap, self.leak, self.subjects_at_least) if what is not None]
        if len(subjects) != 1:
            raise ValueError("a gate has exactly one of figure, gap, leak, subjects_at_least")
        numbers = (self.at_least is not None) + (self.at_most is not None)
        if numbers != (1 if self.figure or self.gap else 0):
            raise ValueError("a gate of a figure or a gap has one of at_least and at_most; others have neither")
        if self.gap and not self.by:
            raise ValueError("a gap is between the groups of a column: say which with by")
        if self.by and not (self.gap or self.figure):
            raise ValueError("only a figure or a gap is looked at by a column")
        return self


class _File(Strict):
    gate: tuple[Gate, ...] = Field(min_length=1)


def read_gates(path: Path) -> tuple[Gate, ...]:
    """Read `gates.toml`: one `[[gate]]` a requirement.

    Raises
    ------
    InvalidValueError
        The file is not there, is not TOML, names an unknown figure, or a gate twice; the message says where.
    """
    try:
        gates = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).gate
    except OSError:
        raise InvalidValueError("--require", "a file that cannot be read", "a .toml file that is there") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise InvalidValueError("--require", "a file that is not TOML", "a TOML file in UTF-8") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in error.errors())
        raise InvalidValueError("--require", "a file that does not define gates", faults) from None
    names = [gate.name for gate in gates]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidValueError("--require", f"gates of one name: {twice}", "a name of its own for each")
    for gate in gates:
        _check_names(gate)
    return gates


def _check_names(gate: Gate) -> None:
    if gate.figure is not None:
        describe(gate.figure)
    gaps = sorted({name for names in GAP_FIGURES.values() for name in names})
    if gate.gap is not None and gate.gap not in gaps:
        raise InvalidValueError("gap", gate.gap, gaps)
    if gate.leak is not None and gate.leak not in GUARDS:
        raise InvalidValueError("leak", gate.leak, GUARDS)


def judge_gates(gates: tuple[Gate, ...], evidence: Evidence) -> tuple[GateResult, ...]:
    """Return one result a gate and, for gates by group, a group.

    Raises
    ------
    InvalidValueError
        The evidence has fewer than `LEAST_REPLICATES` bootstrap samples, so that its bounds decide nothing.
    """
    if gates and evidence.replicates < LEAST_REPLICATES:
        raise InvalidValueError("replicates", evidence.replicates, f"at least {LEAST_REPLICATES} where gates are judged")
    return tuple(result for gate in gates for result in _results(gate, evidence))


def _results(gate: Gate, evidence: Evidence) -> Iterator[GateResult]:
    if gate.leak is not None:
        yield _leak(gate, evidence)
    elif gate.subjects_at_least is not None:
        n = evidence.flow.subjects
        yield GateResult(name=gate.name, met=n >= gate.subjects_at_least, found=f"{n} subjects", wanted=f"at least {gate.subjects_at_least}")
    elif gate.gap is not None:
        gap = next((gap for gap in evidence.gaps if (gap.column, gap.figure) == (gate.by, gate.gap)), None)
        yield _figure(gate, gate.name, gap.difference if gap else None, _gap_words(gap))
    elif gate.by is None:
        yield _figure(gate, gate.name, evidence.figures.get(gate.figure or ""), describe(gate.figure or "").title)
    else:
        yield from _groups(gate, evidence)


def _groups(gate: Gate, evidence: Evidence) -> Iterator[GateResult]:
    groups = [group for group in evidence.groups if group.column == gate.by]
    if not groups:
        yield GateResult(name=gate.name, met=False, found=f"no groups by {gate.by}", wanted=_wanted(gate))
    judged = [group for group in groups if group.enough]
    if groups and not judged and gate.too_few == "skip":
        yield GateResult(name=gate.name, met=False, found=f"no group by {gate.by} with enough people", wanted=_wanted(gate))
    for group in groups:
        name = f"{gate.name} ({group.value})"
        if group.enough:
            yield _figure(gate, name, group.figures.get(gate.figure or ""), describe(gate.figure or "").title)
        elif gate.too_few == "fail":
            few = f"too few people ({group.subjects} subjects; {MINIMUM_OF_A_CLASS} of each class are needed)"
            yield GateResult(name=name, met=False, found=few, wanted=_wanted(gate))


def _figure(gate: Gate, name: str, figure: Figure | None, title: str) -> GateResult:
    value = None if figure is None else _counted_value(gate, figure)
    if figure is None or value is None:
        return GateResult(name=name, met=False, found=f"{title}: not defined", wanted=_wanted(gate))
    met = value >= gate.at_least if gate.at_least is not None else value <= (gate.at_most if gate.at_most is not None else value)
    return GateResult(name=name, met=met, found=f"{title} {figure}", wanted=_wanted(gate))


def _counted_value(gate: Gate, figure: Figure) -> float | None:
    if gate.bound == "value":
        return figure.value
    return figure.low if gate.at_least is not None else figure.high


def _wanted(gate: Gate) -> str:
    bound = "" if gate.bound == "value" else "lower bound " if gate.at_least is not None else "upper bound "
    return f"{bound}at least {gate.at_least:g}" if gate.at_least is not None else f"{bound}at most {gate.at_most:g}"


def _leak(gate: Gate, evidence: Evidence) -> GateResult:
    finding = next((finding for finding in evidence.leaks if finding.name == gate.leak), None)
    verdict = finding.verdict if finding else "not_checked"
    met = _SEVERITY.index(verdict) <= _SEVERITY.index(gate.verdict) and verdict != "not_checked"
    return GateResult(name=gate.name, met=met, found=f"{gate.leak}: {verdict}", wanted=f"{gate.verdict} or better")


def _gap_words(gap: Gap | None) -> str:
    return (
        f"{describe(gap.figure).title} by {gap.column}, {gap.best} over {gap.worst}:" if gap else "no gap (fewer than two groups with enough people)"
    )
