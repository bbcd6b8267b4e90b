"""Watching a model: a frozen reference, batches of counts since, and alarms that say what, since when, how much and how sure.

The one idea: an alarm opens a question and answers none. It never changes a model: what to try first is a new look at the recordings, then
recalibration (intercept, slope, full), then an update, each through the gate.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.evaluation.subgroups import LEAST_NAMED
from clinical_ser.models.bundle import BundleManifest, Sha256
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.monitoring.cells import SHIFTED, STEADY, expected_index, stability_index
from clinical_ser.monitoring.counts import MOST_COUNTED, NAMED, STATUS, Counts
from clinical_ser.monitoring.detectors import BETS, ChannelState, Counted, Crossing, Evidence, generator, limits_of, restored, states_of, watch
from clinical_ser.monitoring.outcomes import OutcomeCrossing, OutcomeState
from clinical_ser.monitoring.seen import Seen
from clinical_ser.strict import Strict

RUN_LENGTH = 10_000
"""Recordings to the first false alarm on average: within 1,000 recordings there is one with a probability of at most 5 %."""
LEAST_RUN_LENGTH, MOST_RUN_LENGTH = 100, 10**9
LEAST_REFERENCE = 50
"""People in a reference: fewer still give exact p-values, and next to no power."""
NEW_NAME_PEOPLE = 5
"""People recorded with a device or codec that the reference does not have, before it is told."""
MOST_A_BATCH = 200_000
"""Recordings in one batch; each is looked at."""
RECENT = 60
"""Batches that are kept to say how large a change is."""
CHECKS = ("speech", "voicing", "snr", "clipping", "bandwidth", "level", "speakers", "samples", "offset", "complete", "codec")
"""Of the gate. Watched whether or not one failed in the reference: that it never did is what makes it news."""
NEW_NAMES = ("device", "codec", "language", "task", "site")

_Whole = Annotated[int, Field(strict=True, ge=0, le=2**52)]
Family = Literal["input", "score", "answer", "gate", "mix", "outcome"]
Statistic = Literal["shiryaev_roberts", "new_name"]
FAMILIES: tuple[Family, ...] = ("input", "score", "answer", "gate", "mix")
"""Each may use the same part of the rate of false alarms, however many channels it has."""

ADVICE: Mapping[Family, str] = {
    "input": "Look at microphones, rooms and instructions. If scores or outcomes moved too: recalibrate (intercept, then slope, then full).",
    "score": "Find out whether the people changed or the recordings. With outcomes: recalibrate (intercept, then slope, then full), then an update.",
    "answer": "Look at what moved beneath it: recordings, scores, or people. Tell whoever relies on the share of people flagged.",
    "gate": "Listen to refused recordings; look at the place, the device and the instructions. No model mends a recording.",
    "mix": "Other people or devices than in the reference: check figures by group, and whether the model is meant for them.",
    "outcome": "Recalibrate first: the intercept, then the slope, then full; each is tested. Then an update, through the gate.",
}


class Reference(Strict):
    """What a model is watched against: a site's run-in, counted and frozen, with the rate of false alarms that is accepted."""

    schema_id: Literal["clinical-ser/monitor-reference/1"] = "clinical-ser/monitor-reference/1"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    """Of the model."""
    version: Annotated[str, Field(min_length=1, max_length=100)]
    statuses: Annotated[tuple[str, ...], Field(max_length=10)]
    """What the model can answer."""
    run_length: Annotated[float, Field(ge=LEAST_RUN_LENGTH, le=MOST_RUN_LENGTH)] = RUN_LENGTH
    new_name_people: Annotated[int, Field(ge=1, le=10_000)] = NEW_NAME_PEOPLE
    last_day: date | None = None
    """Of what it counts; watching starts after it. None where nobody noted days."""
    counts: Counts

    @model_validator(mode="after")
    def _enough(self) -> "Reference":
        if self.counts.usable < LEAST_REFERENCE:
            raise ValueError(f"a reference needs at least {LEAST_REFERENCE} people with a usable recording")
        return self

    @classmethod
    def of(
        cls,
        manifest: BundleManifest,
        counts: Counts,
        *,
        run_length: float = RUN_LENGTH,
        new_name_people: int = NEW_NAME_PEOPLE,
        last_day: date | None = None,
    ) -> "Reference":
        """Freeze counts, up to a last day where that is known, as the reference of a model.

        Raises
        ------
        MonitoringError
            Fewer than `LEAST_REFERENCE` people have a usable recording.
        InvalidValueError
            A run length or a number of people that makes no sense.
        """
        if not LEAST_RUN_LENGTH <= run_length <= MOST_RUN_LENGTH:
            raise InvalidValueError("run length", run_length, f"recordings, from {LEAST_RUN_LENGTH} to {MOST_RUN_LENGTH}")
        if not 1 <= new_name_people <= 10_000:
            raise InvalidValueError("people with a new device", new_name_people, "from 1 to 10000")
        if counts.usable < LEAST_REFERENCE:
            raise MonitoringError(f"A reference needs at least {LEAST_REFERENCE} people with a usable recording; there are {counts.usable}.")
        answers = ("flagged", "not_flagged") if len(manifest.task.classes) == 2 else ("classified",)
        statuses = (*answers, "indeterminate", "not_usable")
        return cls(
            name=manifest.name,
            version=manifest.version,
            statuses=statuses,
            run_length=run_length,
            new_name_people=new_name_people,
            last_day=last_day,
            counts=counts,
        )

    def to_bytes(self) -> bytes:
        """Return the one spelling of it, as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class Recent(Strict):
    """One of the last batches."""

    number: _Whole
    day: date | None
    label: str
    counts: Counts


class State(Strict):
    """Everything the next run goes on from; it belongs to one reference."""

    schema_id: Literal["clinical-ser/monitor-state/1"] = "clinical-ser/monitor-state/1"
    reference: Sha256
    chain: Sha256
    """Digest of all batches so far."""
    batches: _Whole = 0
    recordings: _Whole = 0
    last_day: date | None = None
    seen: Seen = Seen()
    """Tags of the people and recordings that were counted; none is counted twice."""
    channels: dict[str, ChannelState] = Field(default_factory=dict)
    new_names: dict[str, _Whole] = Field(default_factory=dict)
    """Names that the reference does not have, as `kind=name`, to the people recorded with it."""
    told: tuple[str, ...] = ()
    """Those of them that an alarm was raised for."""
    recent: Annotated[tuple[Recent, ...], Field(max_length=RECENT)] = ()
    outcomes: OutcomeState = OutcomeState()

    def to_bytes(self) -> bytes:
        """Return the one spelling of it, as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


class Alarm(Strict):
    """Something has changed, or is new."""

    channel: str
    family: Family
    direction: str
    """`up`, `down`, `wider`, `narrower`, `slope` or `new`."""
    statistic: Statistic
    value: float
    limit: float
    since: date | None
    """The day on which it most likely began; None where recordings carry no date."""
    since_label: str
    """The same batch in words."""
    seen_label: str
    """The batch in which it was noticed."""
    people: int
    """Recordings since it began, as far as they are kept."""
    index: float | None = None
    """Population stability index since then against the reference."""
    index_by_chance: float | None = None
    """What it would come to on average if nothing had changed."""
    run_length: float | None
    """Recordings to the first false alarm on average, at least; None for what is no test but a fact."""
    advice: str

    @property
    def recorded(self) -> "Figures":
        """Statistic, value and limit for a log: evidence in powers of ten, as whole numbers beyond 2^53 have no one spelling in JSON (RFC 8785)."""
        if self.statistic == "new_name":
            return Figures("people", self.value, self.limit)
        return Figures(f"log10 {self.statistic}", math.log10(self.value), math.log10(self.limit))

    @property
    def size(self) -> str:
        """How large the change is, in the usual words for the index."""
        if self.index is None or self.index_by_chance is None:
            return "unknown"
        return "small" if self.index < max(STEADY, self.index_by_chance) else "moderate" if self.index < SHIFTED else "large"


class Figures(NamedTuple):
    """What a log keeps of an alarm."""

    statistic: str
    value: float
    limit: float


@dataclass(frozen=True)
class Channel:
    """A row of cells that is watched."""

    name: str
    family: Family
    width: int


def channels_of(reference: Reference) -> tuple[Channel, ...]:
    """Return what is watched: fixed by the reference, so that nobody chooses after looking."""
    counts = reference.counts
    found = [
        Channel(name, "input" if name.startswith(("feature.", "summary.")) else "score", len(cells)) for name, cells in sorted(counts.cells.items())
    ]
    found += [Channel(f"status.{status}", "answer", 2) for status in reference.statuses]
    found += [Channel(f"check.{check}", "gate", 2) for check in CHECKS]
    # A name of fewer people has no power, and would be somebody's; it is known all the same, and no news.
    for kind in NAMED:
        found += [Channel(f"{kind}={name}", "mix", 2) for name, n in sorted(counts.names.get(kind, {}).items()) if n >= LEAST_NAMED]
    return tuple(found)


def cells_in(counts: Counts, channels: tuple[Channel, ...]) -> Counted:
    """Return counts by channel and cell, shape (channels, widest channel)."""
    found = np.zeros((len(channels), max(channel.width for channel in channels)), np.int64)
    for k, channel in enumerate(channels):
        row = _cells(counts, channel)
        found[k, : len(row)] = row
    return found


def _cells(counts: Counts, channel: Channel) -> tuple[int, ...]:
    if channel.family in {"input", "score"}:
        return counts.cells.get(channel.name, ())
    if channel.family == "gate":
        failed = counts.failed.get(channel.name.removeprefix("check."), 0)
        return counts.recordings - failed, failed
    kind, name = (STATUS, channel.name.removeprefix("status.")) if channel.family == "answer" else channel.name.split("=", 1)
    names = counts.names.get(kind, {})
    return sum(names.values()) - names.get(name, 0), names.get(name, 0)


def weights_of(channels: tuple[Channel, ...]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return each channel's part of the rate of false alarms: families alike, and channels within a family alike."""
    sizes = {family: sum(channel.family == family for channel in channels) for family in FAMILIES}
    return np.array([1 / (len(FAMILIES) * sizes[channel.family]) for channel in channels])


class Watch:
    """The detectors of one reference.

    Parameters
    ----------
    reference
        What is watched against.
    state
        From the last run; None begins anew.

    Raises
    ------
    MonitoringError
        The state is of another reference, or damaged.
    """

    def __init__(self, reference: Reference, state: State | None = None) -> None:
        self.reference = reference
        self.channels = channels_of(reference)
        self.limits = limits_of(weights_of(self.channels), reference.run_length)
        self._before = cells_in(reference.counts, self.channels)
        if state is None:
            state = State(reference=reference.digest, chain=reference.digest)
            self._bag = self._before.copy()
            self._evidence = Evidence.none(len(self.channels), len(BETS))
        else:
            if state.reference != reference.digest:
                raise MonitoringError("The state belongs to another reference; give its own, or begin anew without it.")
            self._bag, self._evidence = (
                self._restored(state) if state.batches else (self._before.copy(), Evidence.none(len(self.channels), len(BETS)))
            )
        if (self._bag > MOST_COUNTED // 2).any():
            raise MonitoringError("The state or the reference counts more recordings than there are people; it is damaged.")
        self._state = state

    def _restored(self, state: State) -> tuple[Counted, Evidence]:
        evidence = restored([channel.name for channel in self.channels], state.channels, len(BETS))
        bag = np.zeros_like(self._before)
        for k, channel in enumerate(self.channels):
            kept = state.channels[channel.name].bag
            if len(kept) != channel.width:
                raise MonitoringError("The state's counts do not fit its reference; begin anew without it.")
            bag[k, : channel.width] = kept
        if (bag < self._before).any():
            raise MonitoringError("The state has seen less than its reference; begin anew without it.")
        return bag, evidence

    @property
    def state(self) -> State:
        """What the next run goes on from."""
        names, widths = [channel.name for channel in self.channels], [channel.width for channel in self.channels]
        return self._state.model_copy(update={"channels": states_of(names, self._evidence, self._bag, widths)})

    def with_outcomes(self, outcomes: OutcomeState) -> None:
        """Keep the state of the outcomes beside that of the counts."""
        self._state = self._state.model_copy(update={"outcomes": outcomes})

    def with_seen(self, seen: Seen) -> None:
        """Keep whom this run has counted."""
        self._state = self._state.model_copy(update={"seen": seen})

    @property
    def last_day(self) -> date | None:
        """The last day that was taken or that belongs to the reference."""
        return max((day for day in (self._state.last_day, self.reference.last_day) if day is not None), default=None)

    def is_new(self, day: date) -> bool:
        """Return whether a day comes after the reference and after the last one that was taken."""
        return self.last_day is None or day > self.last_day

    def take(self, counts: Counts, *, day: date | None, label: str) -> tuple[Alarm, ...]:
        """Let the detectors see one batch.

        Parameters
        ----------
        counts
            Of the batch; of the reference's model.
        day
            When it was recorded; days come in order. None where that is not known.
        label
            What to call it.

        Returns
        -------
        tuple of Alarm
            By evidence over limit, strongest first. A channel that raised one begins again.

        Raises
        ------
        InvalidValueError
            The counts are of another model.
        MonitoringError
            The day was taken before, comes before one that was, or belongs to the reference; or the batch is larger than `MOST_A_BATCH`.
        """
        if counts.model != self.reference.counts.model:
            raise InvalidValueError("counts", "those of another model", "counts of the reference's model")
        if day is not None and not self.is_new(day):
            raise MonitoringError(f"{day} is not after {self.last_day}, the last day that was taken; days are taken once, in order.")
        if counts.recordings > MOST_A_BATCH:
            raise MonitoringError(f"A batch has more than {MOST_A_BATCH:,} recordings; watch shorter periods.")
        number = self._state.batches + 1
        rng, chain = generator(self._state.chain, counts.to_bytes())
        crossings = watch(self._bag, self._evidence, cells_in(counts, self.channels), self.limits, batch=number, rng=rng)
        new_names = {key: self._state.new_names.get(key, 0) + n for key, n in self._unknown(counts)}
        self._state = self._state.model_copy(
            update={
                "chain": chain,
                "batches": number,
                "recordings": self._state.recordings + counts.recordings,
                "last_day": day or self._state.last_day,
                "new_names": self._state.new_names | new_names,
                "recent": (*self._state.recent, Recent(number=number, day=day, label=label, counts=counts))[-RECENT:],
            }
        )
        changed = sorted((self._changed(crossing, label) for crossing in crossings), key=lambda alarm: alarm.limit / alarm.value)
        return (*self._news(day, label), *changed)

    def _unknown(self, counts: Counts) -> Iterator[tuple[str, int]]:
        for kind in NEW_NAMES:
            known = self.reference.counts.names.get(kind)
            if known:
                yield from ((f"{kind}={name}", n) for name, n in counts.names.get(kind, {}).items() if name not in known)

    def _news(self, day: date | None, label: str) -> Iterator[Alarm]:
        least = self.reference.new_name_people
        for key, people in sorted(self._state.new_names.items()):
            if people >= least and key not in self._state.told:
                self._state = self._state.model_copy(update={"told": (*self._state.told, key)})
                first = next((one for one in self._state.recent if key in dict(self._unknown(one.counts))), None)
                yield Alarm(
                    channel=key,
                    family="mix",
                    direction="new",
                    statistic="new_name",
                    value=people,
                    limit=least,
                    since=first.day if first else day,
                    since_label=first.label if first else label,
                    seen_label=label,
                    people=people,
                    run_length=None,
                    advice=ADVICE["mix"],
                )

    def _changed(self, crossing: Crossing, label: str) -> Alarm:
        channel = self.channels[crossing.channel]
        since = [one for one in self._state.recent if one.number >= crossing.begun] or list(self._state.recent[-1:])
        cells = np.sum([cells_in(one.counts, (channel,))[0] for one in since], axis=0)
        before = self._before[crossing.channel, : channel.width]
        people = int(cells.sum())
        first = since[0]
        return Alarm(
            channel=channel.name,
            family=channel.family,
            direction=_direction(BETS[crossing.bet], before, cells[: channel.width]),
            statistic="shiryaev_roberts",
            value=crossing.value,
            limit=float(self.limits[crossing.channel]),
            since=first.day,
            since_label=first.label if first.number == crossing.begun else f"before {first.label}",
            seen_label=label,
            people=people,
            index=float(stability_index(before, cells)),
            index_by_chance=expected_index(channel.width, float(before.sum()), people),
            run_length=self.reference.run_length,
            advice=ADVICE[channel.family],
        )

    def standing(self) -> tuple["Standing", ...]:
        """Return where each channel stands, the nearest to its limit first."""
        recent = self._state.recent
        total = np.sum([cells_in(one.counts, self.channels) for one in recent], axis=0) if recent else np.zeros_like(self._before)
        found = []
        for k, channel in enumerate(self.channels):
            before, after = self._before[k, : channel.width], total[k, : channel.width]
            people = int(after.sum())
            found.append(
                Standing(
                    channel=channel.name,
                    family=channel.family,
                    value=float(self._evidence.value[k]),
                    limit=float(self.limits[k]),
                    people=people,
                    index=float(stability_index(before, after)) if people and before.sum() else None,
                    index_by_chance=expected_index(channel.width, float(before.sum()), people) if people and before.sum() else None,
                )
            )
        return tuple(sorted(found, key=lambda one: (-one.value / one.limit, one.channel)))


def _direction(bet: str, before: Counted, after: Counted) -> str:
    """Return what a bet was on; a share (of a name, a check, an answer) goes up or down, whichever bet gained most."""
    if len(before) > 2:
        return bet
    return "up" if after[1] * before.sum() > before[1] * after.sum() else "down"


class Standing(Strict):
    """A channel between alarms."""

    channel: str
    family: Family
    value: float
    limit: float
    people: int
    """Recordings in the batches that are kept."""
    index: float | None
    index_by_chance: float | None


def outcome_alarm(crossing: OutcomeCrossing, run_length: float) -> Alarm:
    """Return the alarm that a group's calibration has left what is tolerated."""
    return Alarm(
        channel=f"calibration.{crossing.group}",
        family="outcome",
        direction=crossing.direction,
        statistic="shiryaev_roberts",
        value=crossing.value,
        limit=crossing.limit,
        since=crossing.since,
        since_label=crossing.since.isoformat(),
        seen_label=f"after {crossing.people} outcomes",
        people=crossing.people,
        run_length=run_length,
        advice=ADVICE["outcome"],
    )
