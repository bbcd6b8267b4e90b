"""A bundle that each site makes for itself: the shared linear head with trees of the site's own recordings under it.

The one idea: what weighs the trees is learned by all sites together and may be told to all; the trees are put under it at home, and stay there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.evaluation.release import REPLICATES
from clinical_ser.models.background import BackgroundLearner
from clinical_ser.models.binned import BINS
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.reference import Cut, cuts, summarise
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.trained import Refit, TrainedModel
from federated.at_site import Scales, times_drawn
from federated.identities import LOCAL_HEADS, Identity, require
from federated.node import POLICY, own_rows
from federated.plan import Plan
from federated.policy import Policy
from federated.protocols import cohort, evaluation, scores
from federated.protocols.local_heads import Stacks, local_heads_of, stack, stacked_head
from federated.publishing import Published, publish
from federated.statistics import Arrays, Ask, Scalar, SiteRows, Sums
from federated.training import Cohort, Counted, Settings, Trained, groups_shown, linear_head
from federated.wire import Message

STATEMENT = (
    "Trees that this hospital's own recordings grew stand under the head that all sites share: the file holds values of these recordings and must "
    "not leave the hospital. Its figures are those of all sites together, each with trees of its own."
)
LOCAL_WEIGHTS = "local-heads.weights"
"""The coordinator's file, beside the model of a run: a signature, then a message."""
SIGNATURE_BYTES, DIGEST_BYTES = 64, 32
ABOUT = {"about": "weights of local heads/1"}
OF_MAPS, OF_COHORT = "maps.", "cohort."
JUDGED, BINNED = ("mean", "scale", "beta"), ("mass", "spread")


@dataclass(frozen=True, eq=False)
class Together:
    """What sites learned together about trees of their own; sums over all of them, and what follows from these."""

    settings: Settings
    judged: Mapping[str, NDArray[Any]]
    """`mean`, `scale` and the shared heads of the folds, `beta`; as `Trained.judged`."""
    maps: Stacks
    """Without each fold, of everybody, and one a bootstrap sample."""
    binned: Arrays
    """Totals of `scores.Scores`."""
    evaluated: Arrays
    """Totals of `evaluation.Evaluation`."""
    cohort: Cohort
    exchanges: int = 0

    @cached_property
    def ask(self) -> Ask:
        """What names the preprocessors, families and seed of local heads."""
        return self.maps.ask(self.judged["mean"], self.judged["scale"], self.judged["beta"], self.settings.families, seed=self.settings.seed)

    def to_bytes(self) -> bytes:
        """Return all this as a message to the sites; who sends it signs it."""
        maps = {
            "theta": self.maps.theta,
            "hessian": self.maps.hessian,
            "left_out": self.maps.left_out,
            "draw": self.maps.draw,
            "decrement": self.maps.decrement,
        }
        arrays = {**self.judged, **_named(OF_MAPS, maps), **_named(OF_COHORT, self.cohort.totals), **self.binned, **self.evaluated}
        return Message(ABOUT, arrays).to_bytes()

    def sealed(self, identity: Identity, plan: str, bundle: str) -> bytes:
        """Return the same, signed by the coordinator for the run of this plan and for the bundle (their digests): what sites are sent."""
        raw = bytes.fromhex(bundle) + self.to_bytes()
        return identity.sign(LOCAL_HEADS, bytes.fromhex(plan) + raw) + raw

    @classmethod
    def opened(cls, sealed: bytes, plan: Plan) -> "tuple[Together, str]":
        """Inverse of `sealed`, with the bundle's digest; FederationError unless the plan's coordinator signed it for this plan."""
        signature, raw = sealed[:SIGNATURE_BYTES], sealed[SIGNATURE_BYTES:]
        require(plan.coordinator, LOCAL_HEADS, bytes.fromhex(plan.digest) + raw, signature, "The file of weights")
        return cls.from_bytes(raw[DIGEST_BYTES:], plan.settings), raw[:DIGEST_BYTES].hex()

    @classmethod
    def from_bytes(cls, raw: bytes, settings: Settings) -> "Together":
        """Read what `to_bytes` wrote, once its signature is found in order.

        Raises
        ------
        FederationError
            It is something else, or does not fit the settings of the run.
        """
        message = Message.from_bytes(raw)
        arrays = dict(message.arrays)
        found = {name: values.shape for name, values in arrays.items()}
        finite = all(np.isfinite(values).all() for values in arrays.values())
        if message.header != ABOUT or not finite or not _shapes(settings).items() <= found.items():
            raise FederationError("These are not the weights of local heads of this run.")
        maps, people = _taken(OF_MAPS, arrays), _taken(OF_COHORT, arrays)
        stacks = Stacks(maps["theta"], *(np.round(maps[name]).astype(np.int64) for name in ("left_out", "draw")))
        stacks.hessian, stacks.decrement = maps["hessian"], maps["decrement"]
        judged, binned = ({name: arrays.pop(name) for name in names} for names in (JUDGED, BINNED))
        return cls(settings, judged, stacks, binned, arrays, Cohort.of(people, settings))


def _shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return what has to be in a message, and how large."""
    folds, count, size = settings.folds, settings.folds + 1 + settings.refits, len(settings.features)
    maps = {"theta": (count, 3), "hessian": (count, 3, 3), "left_out": (count,), "draw": (count,), "decrement": (count,)}
    judged = {"mean": (folds + 1, size), "scale": (folds + 1, size), "beta": (folds, size + 1)}
    people: dict[str, tuple[int, ...]] = {
        "recordings": (folds, 2),
        "weight": (folds, 2),
        "people": (folds,),
        "subjects": (2,),
        "flow": (len(cohort.FLOW),),
        "refused": (2,),
        "gate": (len(settings.checks),),
        "simulated": (1,),
        **{f"group.{column}": (len(values), 3) for column, values in settings.groups.items()},
    }
    figures = {"mass": (folds, 2, BINS), "spread": (folds, 2, 7), "everybody": evaluation.CELLS}
    return {
        **judged,
        **figures,
        **{OF_MAPS + name: shape for name, shape in maps.items()},
        **{OF_COHORT + name: shape for name, shape in people.items()},
    }


def _named(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {prefix + name: values for name, values in arrays.items()}


def _taken(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): arrays.pop(name) for name in sorted(arrays) if name.startswith(prefix)}


def stack_across(sums: Sums, trained: Trained) -> Together:
    """Weigh the trees of all sites under a linear model that they have trained, and evaluate the whole.

    An exchange a Newton step of the weights (seven or so), and two more.

    Parameters
    ----------
    sums
        Those of the run, so that everybody's draws are the same.
    trained
        By `train_across`, with a linear head.

    Raises
    ------
    InvalidValueError
        The model's head is another.
    TrainingError
        The weights do not come to rest.
    FederationError
        See `Sums.total`.
    """
    settings, judged = trained.settings, trained.judged
    if settings.head != "linear":
        raise InvalidValueError("head", settings.head, "linear: trees of a site stand under coefficients")
    counted = Counted(sums)
    maps = stack(counted, judged["mean"], judged["scale"], judged["beta"], settings.families, seed=settings.seed, draws=range(settings.refits))
    folds = range(settings.folds)
    told = {**judged, "theta": maps.theta[: len(folds)]}
    options: dict[str, Scalar] = {"families": ",".join(settings.families), "seed": settings.seed}
    (binned,) = counted.total("scores", [Ask(scores.Scores.name, told, options)])
    without = [scores.binned(binned, without=fold) for fold in folds]
    thresholds = np.array([one.operating_point(settings.task.target_sensitivity).threshold for one in without])
    limits = np.array([evaluation.thresholds_of(one.conformal(settings.coverage)) for one in without])
    groups = json.dumps({column: list(values) for column, values in trained.shown.items()})
    asked = Ask(evaluation.Evaluation.name, {**told, "threshold": thresholds, "limits": limits}, {**options, "groups": groups})
    (evaluated,) = counted.total("evaluate", [asked])
    return Together(settings, judged, maps, binned, evaluated, trained.cohort, counted.done)


def site_model(rows: SiteRows, shared: TrainedModel, together: Together) -> TrainedModel:
    """Return the model that one site serves, made at the site.

    Calibrator, prediction sets and threshold are those that all sites learned together. Reference groups, and what families add in them, are of
    this site's rows alone, because its trees are; a site with too few people has none, and explains itself from the average recording.

    Parameters
    ----------
    rows
        The site's, as in the run: same table, same secret. With a workspace, trees that were grown for the run are read from there.
    shared
        The linear model of the run, as its bundle holds it.
    together
        What all sites learned.

    Raises
    ------
    InvalidValueError
        The shared model is another than the one that the weights were learned for.
    """
    settings, maps = together.settings, together.maps
    if not isinstance(shared.head, LinearHead) or shared.features != rows.names or len(shared.refits) != settings.refits:
        raise InvalidValueError("the shared model", f"a {shared.head.kind} head with {len(shared.refits)} refits", "the linear model of this run")
    heads = local_heads_of(rows, together.ask)
    linear = [shared.head, *(refit.head for refit in shared.refits)]
    own, *again = (stacked_head(heads, head, maps, settings.folds + i) for i, head in enumerate(linear) if isinstance(head, LinearHead))
    groups, background = _groups(rows)
    scales = Scales(rows, together.ask)
    for fold in range(settings.folds):
        tested = np.flatnonzero(rows.fold == fold)
        if len(tested):
            of_fold = linear_head(settings, together.judged["beta"][fold], shared.head.strength_)
            background.hear(tested, stacked_head(heads, of_fold, maps, fold), scales.design(fold)[tested, :-1])
    drawn = [(head, times_drawn(rows, i)) for i, head in enumerate(again)]
    healthy = rows.target == 0
    whole = scores.binned(together.binned)
    model = replace(
        shared,
        head=own,
        calibrator=maps.platt(settings.folds),
        conformal=whole.conformal(settings.coverage),
        operating_point=whole.operating_point(settings.task.target_sensitivity),
        refits=tuple(Refit(head, maps.platt(settings.folds + 1 + i), shared.class_shares) for i, head in enumerate(again)),
        reference=summarise(rows.X[healthy], rows.names, rows.subjects[healthy], groups, settings.task.classes[0].replace("_", " ")),
        backgrounds=background.summarise(own, shared.preprocessor.transform(rows.X), drawn),
    )
    model.check_fit()
    return model


def site_bundle(
    rows: SiteRows,
    shared: TrainedModel,
    together: Together,
    folder: Path,
    *,
    name: str,
    version: str,
    sites: int,
    cohort_digest: str,
    key: SigningKey | None,
    replicates: int = REPLICATES,
    replace: bool = False,
) -> Published:
    """Write the bundle that one site serves; its statement says that it must not leave.

    Parameters
    ----------
    rows, shared, together
        See `site_model`.
    folder
        Of the bundle, at the site.
    name, version, sites, cohort_digest
        Of the run, as in `publishing.publish`.
    key
        The site's own; None leaves the bundle unsigned.
    replicates, replace
        As in `publishing.publish`.
    """
    trained = Trained(
        model=site_model(rows, shared, together),
        settings=together.settings,
        cohort=together.cohort,
        standard_errors=np.empty(0),
        everybody=together.evaluated["everybody"],
        groups={name.removeprefix("group."): values for name, values in together.evaluated.items() if name != "everybody"},
        shown=groups_shown(together.cohort, together.settings),
        exchanges=together.exchanges,
        at_rest=float(together.maps.decrement.max()),
        judged=together.judged,
    )
    return publish(
        trained,
        folder,
        name=name,
        version=version,
        sites=sites,
        cohort_digest=cohort_digest,
        key=key,
        statement=STATEMENT,
        replicates=replicates,
        replace=replace,
    )


def make_site_bundle(
    node: Path, plan: Plan, shared: Path, sealed: bytes, folder: Path, *, key: SigningKey | None, replace: bool = False
) -> Published:
    """Make a site's own bundle in its node's folder, from what the coordinator sent back after a run.

    Parameters
    ----------
    node
        The node's folder: its table, its secret and its trees.
    plan
        Of the run.
    shared
        Folder of the bundle that all sites share.
    sealed
        The coordinator's file of weights (`LOCAL_WEIGHTS`).
    folder, key, replace
        As in `site_bundle`.

    Raises
    ------
    FederationError
        The weights are not signed for this plan, the run has no local heads, or the site's table is not what the plan is about.
    """
    if plan.head != "linear+local":
        raise FederationError("This plan has no trees at the sites.")
    policy = Policy.read(node / POLICY)
    together, digest = Together.opened(sealed, plan)
    bundle = read_bundle(shared, expected_digest=digest)
    rows = own_rows(node, policy, plan)
    return site_bundle(
        rows,
        TrainedModel.from_bundle(bundle),
        together,
        folder,
        name=plan.name,
        version=plan.version,
        sites=len(plan.sites),
        cohort_digest=bundle.manifest.cohort_digest,
        key=key,
        replace=replace,
    )


def _groups(rows: SiteRows) -> tuple[list[Cut], BackgroundLearner]:
    """Return the site's reference groups, within its negative rows and within all."""
    healthy = np.flatnonzero(rows.target == 0)
    found = cuts(rows.frame.iloc[healthy].assign(subject=rows.subjects[healthy]), len(rows.names))
    return found, BackgroundLearner([replace(cut, rows=healthy[cut.rows]) for cut in found], rows.subjects)
