"""`clinical-ser node demo`: three simulated hospitals train one model, on one machine, in one command."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from clinical_ser.cli.cohort import processors, run_extraction
from clinical_ser.cli.console import check_output_folder, literal, output, percent, program, progress
from clinical_ser.cli.model import show_card
from clinical_ser.cli.train import own_key
from clinical_ser.cohorts.simulation import simulate
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import InvalidValueError

if TYPE_CHECKING:
    from federated.demonstration import Demonstration
    from federated.secure_sums import ExchangeRecord

SUBJECTS = 300
SPEECH_S = 27.0
LEAST_SUBJECTS = 120
"""Fewer, and a site's own model cannot be trained to compare with."""
USUAL_EXCHANGES = 12


def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path("demo-federated"),
    subjects: Annotated[int, typer.Option(help="Simulated speakers, over three hospitals.")] = SUBJECTS,
    speech: Annotated[float, typer.Option(help="Seconds of speech in each recording.")] = SPEECH_S,
) -> None:
    """Train across three simulated hospitals with different microphones, languages and prevalences. No real person's voice is in it."""
    from federated.demonstration import demonstrate
    from federated.publishing import publish
    from federated.training import commitment

    if subjects < LEAST_SUBJECTS:
        raise InvalidValueError("--subjects", subjects, f"at least {LEAST_SUBJECTS}, or a hospital has too few for a model of its own")
    check_output_folder(folder)
    started = time.monotonic()
    with progress("Simulating speakers") as report:
        cohort = simulate(subjects, folder / "cohort", speech_s=speech, workers=processors(), progress=report)
    table = run_extraction(cohort.manifest, cache=folder / "cache")
    with progress("Training across hospitals") as report:

        def at(_step: str, exchanges: "Sequence[ExchangeRecord]") -> None:
            report(len(exchanges), max(USUAL_EXCHANGES, len(exchanges) + 1))

        found = demonstrate(folder / "federation", table, DEPRESSION, on_step=at)
    with progress("Evaluating out of fold"):
        published = publish(
            found.trained,
            folder / found.plan.name,
            name=found.plan.name,
            version=found.plan.version,
            sites=len(found.hospitals),
            cohort_digest=commitment(found.commitments),
            key=own_key(),
            workers=processors(),
            replace=True,
        )
    show_card(published.card)
    _show(found)
    output.print(f"\nDone in {time.monotonic() - started:.0f} s. Everything is in {literal(folder)}/:")
    for name, what in (
        ("federation/simulated-a/", "a hospital: its table, node.toml (what it allows), its key, its audit log; so for b and c"),
        ("federation/coordinator/", "the totals that were decoded, and the coordinator's audit log"),
        (f"{found.plan.name}/", "the trained, signed bundle, with its card; it screens like any other"),
    ):
        output.print(f"  {name:<26} {what}")
    output.print(f"A hospital's log: CLINICAL_SER_AUDIT={literal(folder)}/federation/simulated-a/audit.toml {program()} audit list")


def _show(found: "Demonstration") -> None:
    hospitals = Table(title="Hospitals", title_justify="left", box=None, pad_edge=False)
    for column in ("site", "speakers", "prevalence", "microphone", "languages", "audit records, verified"):
        hospitals.add_column(column)
    for one in found.hospitals:
        row = (one.name, str(one.speakers), percent(one.prevalence), one.device, one.languages, str(found.records[one.name]))
        hospitals.add_row(*map(literal, row))
    exchanges = Table(title="Exchanges", title_justify="left", box=None, pad_edge=False)
    for column in ("", "step", "seconds", "kB to sites", "kB from sites"):
        exchanges.add_column(column)
    for i, each in enumerate(found.exchanges, 1):
        exchanges.add_row(str(i), each.step, f"{each.seconds:.2f}", f"{each.sent / 1000:.0f}", f"{each.received / 1000:.0f}")
    compared = Table(title="On held-out speakers, whom no model heard", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "AUROC (95 %)", "worst site", "Brier", "calibration slope"):
        compared.add_column(column)
    for one_model in found.compared:
        area = f"{one_model.auroc:.3f} ({one_model.low:.3f}-{one_model.high:.3f})"
        worst = min(one_model.by_site.values())
        compared.add_row(one_model.model, area, f"{worst:.3f}", f"{one_model.brier:.3f}", f"{one_model.slope:.2f}")
    for table in (hospitals, exchanges, compared):
        output.print()
        output.print(table)
    output.print(f"Between any probability of the federated and the pooled model: {found.largest_difference:.1e} at most.")
