"""`clinical-ser model history` and `model diff`: what answered under a name and when, and what differs between two models."""

import json
from typing import Annotated

import numpy as np
import typer
from rich.table import Column, Table

from clinical_ser.cli.console import literal, output, print_json, print_line
from clinical_ser.errors import BundleSchemaError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.card_facts import MAIN_FIGURES
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.trained import TrainedModel
from clinical_ser.registry import Registry
from clinical_ser.registry.names import read_model
from clinical_ser.strict import Strict

MOST_MOVED = 10
_SHOWN = 12

Value = float | int | str | bool | None
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Compared = Annotated[str, typer.Argument(help="Name (with @challenger, @shadow or @DIGEST), digest, or a bundle's folder.", show_default=False)]


class Differs(Strict):
    """One fact that differs; None where a model has none."""

    what: str
    before: Value
    after: Value


class Moved(Strict):
    """A coefficient of a linear head, in calibrated log-odds for one SD of the feature, the SD of the first model's training data in both."""

    feature: str
    margin: str
    """The class it speaks for."""
    before: float
    after: float


class Figures(Strict):
    """A figure that both cards have, out of fold each in its own training cohort."""

    name: str
    before: Figure
    after: Figure


class Difference(Strict):
    """What differs between two models."""

    before: str
    """Digest."""
    after: str
    differs: tuple[Differs, ...]
    features_added: tuple[str, ...]
    features_removed: tuple[str, ...]
    coefficients: tuple[Moved, ...]
    """The most moved ones, most first; none where one of the heads is not linear, or nothing moved."""
    figures: tuple[Figures, ...]


def history(
    name: Annotated[str, typer.Argument(help="Name of a model in the registry.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show each switch of a name: what answered, why, by which plan, and who approved."""
    entries = Registry.default().history(name)
    if as_json:
        print_line(json.dumps([{"digest": entry.digest, **entry.model_dump(mode="json")} for entry in entries], indent=2))
        return
    if not entries:
        output.print(f"{literal(name)} has no history in the registry.")
        return
    for entry in entries:
        # Lines, no table: a digest that is cut at the edge of the terminal is no digest.
        output.print(f"{entry.number}  {entry.time:%Y-%m-%d %H:%M:%SZ}  [bold]{entry.action}[/bold]  by {literal(entry.actor)}")
        held = "  ".join(f"{role} {digest[:_SHOWN]}" for role, digest in entry.pointers.held.items())
        output.print(f"   {held or 'nothing answers'}")
        plan = [f"plan {entry.plan[:_SHOWN]}"] if entry.plan else []
        plan += [f"modification {literal(entry.modification)}"] if entry.modification else []
        plan += [f"approvals {', '.join(approval[:_SHOWN] for approval in entry.approvals)}"] if entry.approvals else []
        for line in (", ".join(plan), literal(entry.reason)):
            if line:
                output.print(f"   {line}")


def diff(a: Compared, b: Compared, as_json: AsJson = False) -> None:
    """Show what differs between two models: what they take in, how they weigh it, where they cut, and how well they do."""
    found = difference(read_model(a), read_model(b))
    if as_json:
        print_json(found, indent=2)
    else:
        _show(found)


def difference(before: VerifiedBundle, after: VerifiedBundle) -> Difference:
    """Compare two verified bundles; BundleSchemaError where one's files do not fit each other.

    A card of another version has no figures and no counts here; all else is compared.
    """
    models, cards = [TrainedModel.from_bundle(bundle) for bundle in (before, after)], [_card(bundle) for bundle in (before, after)]
    old_facts, new_facts = (_facts(bundle, model, card) for bundle, model, card in zip((before, after), models, cards, strict=True))
    names = dict.fromkeys([*old_facts, *new_facts])
    old, new = set(before.manifest.features), set(after.manifest.features)
    return Difference(
        before=before.digest,
        after=after.digest,
        differs=tuple(
            Differs(what=name, before=old_facts.get(name), after=new_facts.get(name)) for name in names if old_facts.get(name) != new_facts.get(name)
        ),
        features_added=tuple(name for name in after.manifest.features if name not in old),
        features_removed=tuple(name for name in before.manifest.features if name not in new),
        coefficients=_moved(*models),
        figures=_figures(*cards),
    )


def _facts(bundle: VerifiedBundle, model: TrainedModel, card: Card | None) -> dict[str, Value]:
    """Return what a person may care about, by name; only what differs is shown."""
    manifest = bundle.manifest
    facts: dict[str, Value] = {
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task.name,
        "classes": ", ".join(manifest.task.classes),
        "stated prevalence": manifest.task.prevalence,
        "head": manifest.head,
        "features": len(manifest.features),
        "simulated speech": manifest.simulated,
        "takes a baseline": manifest.uses_baseline,
        "statement": manifest.statement,
        "training data": manifest.cohort_digest[:_SHOWN],
        "signature": bundle.signature.state.value,
        "signing key": bundle.signature.key_id,
        "calibrator scale": float(model.calibrator.scale_),
    }
    for label, offset in zip(manifest.task.classes[-np.size(model.calibrator.offset_) :], np.atleast_1d(model.calibrator.offset_), strict=True):
        facts[f"calibrator offset, {label}"] = float(offset)
    for label, share in zip(manifest.task.classes, model.class_shares, strict=True):
        facts[f"share in training, {label}"] = share
    if point := manifest.operating_point:
        facts["threshold (calibrated log-odds)"] = point.threshold
        facts["target sensitivity"] = point.target_sensitivity
        facts["sensitivity at the threshold"] = point.sensitivity.value
        facts["specificity at the threshold"] = point.specificity.value
    if isinstance(model.head, LinearHead):
        facts["ridge strength"] = model.head.strength_
    if card:
        facts["subjects learned from"] = card.training.subjects
        facts["recordings learned from"] = card.training.recordings
        facts |= {f"subjects evaluated, {label}": count for label, count in card.internal.flow.subjects_by_class.items()}
    facts |= {f"extractor {name}": version for name, version in sorted(manifest.extractors.items())}
    return facts | {f"trained with {name}": version for name, version in sorted(manifest.software.items())}


def _card(bundle: VerifiedBundle) -> Card | None:
    try:
        return Card.from_json(bundle.files["card.json"])
    except BundleSchemaError:
        return None


def _figures(before: Card | None, after: Card | None) -> tuple[Figures, ...]:
    if before is None or after is None:
        return ()
    return tuple(Figures(name=name, before=figure, after=after.figures[name]) for name, figure in before.figures.items() if name in after.figures)


def _moved(before: TrainedModel, after: TrainedModel) -> tuple[Moved, ...]:
    """Return the coefficients that moved most, of the features that both linear heads have and that vary in the first one's data."""
    if not isinstance(before.head, LinearHead) or not isinstance(after.head, LinearHead) or before.task.classes != after.task.classes:
        return ()
    margins = before.task.classes[-1:] if before.binary else before.task.classes
    sd = dict(zip(before.features, before.preprocessor.scale_, strict=True))
    old, new = _slopes(before), _slopes(after)
    moved = [
        Moved(feature=feature, margin=margin, before=float(sd[feature] * old[feature][place]), after=float(sd[feature] * new[feature][place]))
        for feature in before.features
        if feature in new
        for place, margin in enumerate(margins)
    ]
    # A feature counts once, by the class in which it moved most.
    farthest: dict[str, Moved] = {}
    for one in sorted(moved, key=lambda one: -abs(one.after - one.before)):
        if one.after != one.before:
            farthest.setdefault(one.feature, one)
    return tuple(farthest.values())[:MOST_MOVED]


def _slopes(model: TrainedModel) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return feature -> calibrated log-odds for one unit of it, shape (margins,); a constant feature, which is dropped, has 0."""
    assert isinstance(model.head, LinearHead)
    scale = model.preprocessor.scale_
    per_unit = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    slopes = model.calibrator.scale_ * model.head.coef_.reshape(len(scale), -1) * per_unit[:, None]
    return dict(zip(model.features, slopes, strict=True))


def _show(found: Difference) -> None:
    if found.before == found.after:
        output.print(f"The same model, {found.before[:_SHOWN]}: every byte but the signature.")
    table = _table("what differs", found)
    for one in found.differs:
        table.add_row(literal(one.what), literal(_cell(one.before)), literal(_cell(one.after)))
    if found.differs:
        output.print(table)
    for title, names in (("features added", found.features_added), ("features removed", found.features_removed)):
        if names:
            output.print(f"  {title}: {literal(', '.join(names))}")
    if found.coefficients:
        several = len({moved.margin for moved in found.coefficients}) > 1
        output.print("  log-odds for one SD of the feature, before and after:")
        for moved in found.coefficients:
            name = f"{moved.feature}, {moved.margin}" if several else moved.feature
            output.print(f"    {moved.before:+.3f}  {moved.after:+.3f}  {literal(name)}")
        output.print(f"  [dim]calibrated; the SD is that of the first model's training data; the {MOST_MOVED} that moved most at most[/dim]")
    main = [both for both in found.figures if any(both.name in names for names in MAIN_FIGURES.values())]
    if main:
        table = _table("out of fold, each in its own training cohort", found)
        for both in main:
            # An interval in brackets looks like markup to the console.
            table.add_row(literal(describe(both.name).title), literal(both.before), literal(both.after))
        output.print(table)


def _table(title: str, found: Difference) -> Table:
    return Table(title, Column(found.before[:_SHOWN], justify="right"), Column(found.after[:_SHOWN], justify="right"), box=None, padding=(0, 2, 0, 2))


def _cell(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
