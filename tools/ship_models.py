"""Make the models that ship with the package: `python tools/ship_models.py --emodb PATH/TO/emodb-2s --work FOLDER`.

Without `--emodb` the models stay as they are: only how well the simulated one repeats is measured again, and put into its card. Both are
signed with a key that is made here, used once and thrown away; its public half ships beside them. Running it again makes a new key, and other
digests: whoever installed the old ones keeps verifying those with the old release.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest, read_manifest
from clinical_ser.cohorts.simulation import simulate
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION, Task
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.release import card_of
from clinical_ser.evaluation.retest import Retest, measure_retest
from clinical_ser.evaluation.software import software_versions
from clinical_ser.models.bundle import read_bundle, sign_bundle, write_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.training import TrainingOptions, train
from clinical_ser.registry.names import SHIPPED_MODELS
from clinical_ser.screening.rerecording import rerecord, spoken_in
from clinical_ser.screening.screener import Screener

SIMULATED_MODEL, ACTED_MODEL = "depression-simulated", "emotion-emodb"
SIMULATED_SUBJECTS = 600
SIMULATED_SEED = 2026
RETEST_SUBJECTS = 100
RETEST_SEED = 2027
RETEST_SETTING = (
    "simulated: the same speaker, severity, language, site and microphone; another part of the passage; voice, pauses, room, gain and noise drawn "
    "again"
)
"""As `simulate` repeats: each voice parameter is drawn anew around its speaker's, with a quarter of the SD between speakers (`WITHIN_SPEAKER`)."""
VERSION = "1"
RERECORDED = 60
"""Recordings that are recorded again, spread over each cohort."""
EMODB_COVERAGE = 0.80
"""With ten speakers a set that holds the truth 9 times in 10 is nearly always several classes (97 %); at 8 in 10 it is one class for 38 %."""
EMODB_STATEMENT = (
    "Trained on acted emotions of ten German speakers (EmoDB, Burkhardt et al. 2005, CC0-1.0), clips cut to 2 s: expect much less on spontaneous "
    "speech and other languages."
)


def ship(
    name: str,
    table: FeatureTable,
    task: Task,
    options: TrainingOptions,
    statement: str,
    key: SigningKey,
    recordings: Manifest,
    repeated: FeatureTable | None = None,
) -> None:
    """Train, describe, record again, sign and put into the package; `repeated` holds people recorded twice, where there are any."""
    training = train(table, task, options)
    card, _ = card_of(training, table, name=name, version=VERSION, statement=statement)
    folder = SHIPPED_MODELS / name
    shutil.rmtree(folder, ignore_errors=True)
    about = {"name": name, "version": VERSION, "statement": card.statement, "software": software_versions()}
    save(training, folder, card=card.to_json(), key=None, **about)
    found = rerecord(Screener(read_bundle(folder)), spoken_in(recordings, most=RERECORDED))
    card = card.extended(rerecorded=found, retest=None if repeated is None else retest_of(name, repeated))
    digest = save(training, folder, card=card.to_json(), key=key, replace=True, **about)
    main = card.figures.get("auroc") or card.figures["uar"]
    print(name, digest[:12], main)


def retest_of(name: str, repeated: FeatureTable) -> Retest:
    """Measure how well a model of the package repeats."""
    return measure_retest(read_bundle(SHIPPED_MODELS / name), repeated, setting=RETEST_SETTING)


def with_retest(name: str, repeated: FeatureTable, key: SigningKey) -> None:
    """Put the test-retest reliability into the card of a model that is in the package, and change nothing else."""
    bundle = read_bundle(SHIPPED_MODELS / name)
    card = Card.from_json(bundle.files["card.json"]).extended(retest=retest_of(name, repeated))
    digest = write_bundle(SHIPPED_MODELS / name, bundle.manifest, {**bundle.files, "card.json": card.to_json()}, key, replace=True)
    print(name, digest[:12])


def repeated_table(work: Path, workers: int) -> FeatureTable:
    """Simulate people who are recorded twice while nothing changes; other people than those that the model learns from."""
    cohort = simulate(RETEST_SUBJECTS, work / "retest", seed=RETEST_SEED, recordings_per_subject=2, workers=workers)
    return build_table(read_manifest(cohort.manifest), workers=workers, cache=work / "cache")


def ship_all(emodb: Path, work: Path, workers: int, repeated: FeatureTable, key: SigningKey) -> None:
    """Make both models anew."""
    cohort = simulate(SIMULATED_SUBJECTS, work / "cohort", seed=SIMULATED_SEED, workers=workers)
    simulated = read_manifest(cohort.manifest)
    acted = Manifest(get_corpus("emodb").read(emodb).assign(row=lambda rows: np.arange(1, len(rows) + 1)))
    tables = [build_table(one, workers=workers, cache=work / "cache") for one in (simulated, acted)]
    ship(SIMULATED_MODEL, tables[0], DEPRESSION, TrainingOptions(), "", key, simulated, repeated)
    ship(ACTED_MODEL, tables[1], EMOTION, TrainingOptions(split="loso", coverage=EMODB_COVERAGE), EMODB_STATEMENT, key, acted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emodb", type=Path, help="Recordings of EmoDB; without, the models stay and only the retest is measured.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for the simulated cohorts and the feature cache.")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    key = SigningKey.generate()
    repeated = repeated_table(given.work, given.workers)
    if given.emodb:
        ship_all(given.emodb, given.work, given.workers, repeated, key)
    else:
        with_retest(SIMULATED_MODEL, repeated, key)
        sign_bundle(SHIPPED_MODELS / ACTED_MODEL, key)
    trusted = SHIPPED_MODELS / "trusted_keys"
    shutil.rmtree(trusted, ignore_errors=True)
    key.public.save(trusted / f"release-{key.public.key_id}.pub")


if __name__ == "__main__":
    main()
