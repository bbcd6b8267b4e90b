"""`clinical-ser demo`: the whole main path on simulated speakers, in a few minutes, from nothing."""

import time
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.audit.answering import Recorder, operator
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.tiles import publish_tiles
from clinical_ser.cli.cohort import processors, run_extraction
from clinical_ser.cli.console import check_output_folder, complain, literal, output, percent, program, progress, report_problems
from clinical_ser.cli.evidence import write_report
from clinical_ser.cli.model import show_card
from clinical_ser.cli.reporting import ENDINGS, Reporter, write
from clinical_ser.cli.screen import show
from clinical_ser.cli.train import own_key, publish
from clinical_ser.cohorts.simulation import SimulatedCohort, SimulatedVisit, simulate, simulate_visits
from clinical_ser.cohorts.table import write_table
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.embeddings.installing import install
from clinical_ser.errors import EncoderError
from clinical_ser.features.extraction import DEFAULT_SETS, ENCODER
from clinical_ser.models.training import train
from clinical_ser.screening.screener import Screener

SUBJECTS = 120
SPEECH_S = 27.0
MODEL = "demo-depression"
ENCODER_NAME = "ge2e"


def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
    subjects: Annotated[int, typer.Option(help="Simulated speakers.")] = SUBJECTS,
    speech: Annotated[float, typer.Option(help="Seconds of speech in each recording.")] = SPEECH_S,
) -> None:
    """Simulate a cohort, train a calibrated model on it, and screen three new recordings. No real person's voice is in it."""
    check_output_folder(folder)
    reporter = Reporter.find(None)
    started = time.monotonic()
    sets = (*DEFAULT_SETS, *_encoder())
    cohort = _cohort(folder / "cohort", subjects, speech)
    table = run_extraction(cohort.manifest, sets=sets, cache=folder / "cache")
    report_problems(table.problems)
    write_table(table, folder / "features.parquet")
    with progress("Training, subjects kept apart") as report:
        training = train(table, DEPRESSION, progress=report)
    with progress("Evaluating out of fold"):
        published = publish(training, table, folder / MODEL, name=MODEL, version="1", key=own_key(), replace=True, workers=processors())
        write_report(published.evidence, folder / "evaluation")
    show_card(published.card)
    output.print(f"  Best reachable AUROC in this simulated world: {cohort.best_reachable_auc:.3f} (who knew each speaker's true voice parameters)")
    audit = _audit(folder / "audit")
    first = _screen_three(folder, cohort, reporter, audit)
    found = audit.verify()
    with audit.read(sealed=True) as log:
        publish_tiles(log, folder / "audit" / "published")
    output.print(f"\n[bold]Audit log[/bold]  {found.size} records, each payload and the whole tree verified against the signed head.")
    output.print(f"\nDone in {time.monotonic() - started:.0f} s. Everything is in {literal(folder)}/:")
    for name, what in (
        ("cohort/manifest.csv", "who was recorded (simulated)"),
        ("cohort/truth.json", "how they were made"),
        ("features.parquet", "one row a recording"),
        (f"{MODEL}/", "the trained, signed bundle"),
        ("evaluation/", "what a reviewer asks for: report.html, report.pdf, evidence.json"),
        ("visits/", "three new recordings, their results (.json), and the clinician's report on each (.html, .pdf)"),
        ("audit/", "what was answered, in a log that a stranger can verify; audit/published is what a stranger gets"),
    ):
        output.print(f"  {name:<22} {what}")
    about = f"--sex {first.sex.value} --age {first.age} --model {literal(folder / MODEL)}"
    output.print(f"The log: CLINICAL_SER_AUDIT={literal(folder)}/audit/audit.toml {program()} audit list")
    output.print(f"A report again: {program()} report {literal(folder)}/visits/{first.name}.json -o report.pdf")
    output.print(f"Try: {program()} explain {literal(folder)}/visits/{first.name}.flac {about} -o explained.pdf")


def _encoder() -> tuple[str, ...]:
    """Install the demo's encoder; where its weights cannot be had, the demo goes on with named features alone."""
    try:
        with progress(f"Installing encoder {ENCODER_NAME}"):
            return (f"{ENCODER}{install(ENCODER_NAME)}",)
    except EncoderError as error:
        complain("No encoder, so the demo's model has named features only", error)
        return ()


def _cohort(folder: Path, subjects: int, speech_s: float) -> SimulatedCohort:
    with progress("Simulating speakers") as report:
        return simulate(subjects, folder, speech_s=speech_s, workers=processors(), progress=report)


def _audit(folder: Path) -> LogConfiguration:
    """Return the demo's own log, made if it is the first time; the site's has nothing to do with it."""
    place = folder / "audit.toml"
    if not place.exists():
        LogConfiguration("demo.example/screening", f"sqlite:{(folder / 'log.sqlite').absolute()}", folder.absolute() / "keys").create(place)
    return LogConfiguration.load(place)


def _screen_three(folder: Path, cohort: SimulatedCohort, reporter: Reporter, audit: LogConfiguration) -> SimulatedVisit:
    """Screen new recordings, and return the first visit."""
    screener = Screener.load(folder / MODEL)
    visits = simulate_visits(folder / "visits", design=cohort.design)
    for visit in visits:
        result = screener.screen(visit.path, sex=visit.sex.value, age=visit.age, timeline=True)
        Recorder(audit, operator(), f"simulated speaker {visit.name}").answer(result)
        write(result.model_dump_json(indent=2).encode(), folder / "visits" / f"{visit.name}.json")
        for ending in ENDINGS:
            write(reporter.report(result, ending), folder / "visits" / f"{visit.name}{ending}")
        show(
            result,
            f"New recording '{visit.name}' (a simulated speaker; true score {visit.score}, true probability {percent(visit.true_probability)})",
        )
    return visits[0]
