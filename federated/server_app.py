"""The Flower app at the coordinator: leads one attempt at a run, from wherever the last one ended.

The one idea: it owns nothing. Plan, decoded totals and status lie in the run's folder; this process may die at any line and the next attempt
gives the same model.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clinical_ser.errors import ClinicalSerError, FederationError
from federated.consortium import FOLDER_VARIABLE, WATCHING, Consortium, Exchange, alone
from federated.flower import GridChannel
from federated.identities import Identity
from federated.leading import Coordinator, lead_run
from federated.plan import read_plan
from federated.secure_sums import DEADLINE_S, ExchangeRecord, SecureSums

DEADLINE_VARIABLE = "CLINICAL_SER_DEADLINE_S"

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Lead the run that the run's configuration names."""
    consortium = Consortium(Path(os.environ[FOLDER_VARIABLE]))
    lead(consortium, str(context.run_config["run"]), grid)


def lead(consortium: Consortium, run: str, grid: Grid) -> None:
    """Lead an attempt at a run, and keep its status.

    Parameters
    ----------
    consortium
        Whose run it is.
    run
        Its name.
    grid
        The way to the sites.

    Raises
    ------
    FederationError
        A site refused, or one did not come back in time; the status says so too.
    """
    folder = consortium.run_folder(run)
    # Whoever asks for the status holds the lock for a moment, too.
    with alone(folder, wait_s=5.0) as free:
        if not free or consortium.status(run).state == "finished":
            raise FederationError("Another process leads this run, or it has finished.")
        _lead(consortium, run, grid)


def _lead(consortium: Consortium, run: str, grid: Grid) -> None:
    folder = consortium.run_folder(run)
    with _Kept(consortium, run) as kept:
        plan = read_plan(folder / "plan.json")
        nodes, identity = consortium.nodes(), Identity.load(consortium.folder / "identity.pem")
        channel = GridChannel(grid, {name: nodes[name] for name in plan.site_names})
        sums = SecureSums(
            channel,
            plan,
            identity,
            store=folder / "totals",
            audit=consortium.audit,
            deadline_s=float(os.environ.get(DEADLINE_VARIABLE, DEADLINE_S)),
            on_step=kept.at,
            on_wait=kept.without,
        )
        at = Coordinator(folder, consortium.folder / WATCHING, consortium.identity, identity, consortium.audit)
        kept.finished(lead_run(plan, sums, at), sums.exchanges)


class _Kept:
    """The run's status on the disk, while it is being led; what ends it is written down, whatever it is."""

    def __init__(self, consortium: Consortium, run: str):
        self._consortium = consortium
        before = consortium.status(run)
        self._status = before.model_copy(
            update={"state": "running", "attempt": before.attempt + 1, "process": os.getpid(), "error": None, "exchanges": ()}
        )

    def __enter__(self) -> Self:
        self._write()
        return self

    def at(self, step: str, exchanges: Sequence[ExchangeRecord]) -> None:
        """Note which step is asked for."""
        self._write(step=step, exchanges=_told(exchanges), missing=())

    def without(self, sites: Sequence[str]) -> None:
        """Note which sites have not answered."""
        self._write(missing=tuple(sites))

    def finished(self, bundle: str | None, exchanges: Sequence[ExchangeRecord]) -> None:
        """Note what came out."""
        self._write(state="finished", bundle=bundle, exchanges=_told(exchanges), process=None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            # A path may stand in the text of what nobody raised on purpose.
            said = str(error) if isinstance(error, ClinicalSerError) else f"An error that nobody expected ({type(error).__name__})."
            with suppress(OSError):
                self._write(state="failed", error=said, process=None)

    def _write(self, **changes: Any) -> None:
        self._status = self._status.model_copy(update={**changes, "updated": datetime.now(UTC)})
        self._consortium.write_status(self._status)


def _told(exchanges: Sequence[ExchangeRecord]) -> tuple[Exchange, ...]:
    return tuple(Exchange(step=each.step, seconds=each.seconds, sent=each.sent, received=each.received, again=each.again) for each in exchanges)
