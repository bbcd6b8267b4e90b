"""A small trained model and recordings with speech in them, made once a test process; no user's folders are touched."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from tests import signals
from tests.tables import table_of


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and models of whoever runs the tests are neither read nor written."""
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned depression model learned from numbers alone: it answers any recording, and what it answers means nothing."""
    folder = tmp_path_factory.mktemp("models") / "random"
    training = train(table_of(80), DEPRESSION, TrainingOptions(refits=3))
    card, _ = card_of(training, None, name="random", version="1", statement="For tests.", options=EvaluationOptions(replicates=20))
    save(training, folder, name="random", version="1", statement="For tests.", card=card.to_json(), software={"numpy": "0"}, key=None)
    return folder


@pytest.fixture(scope="session")
def speech_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bit more than 27 s of synthetic speech with pauses, quiet background, in a file whose name must never show up in any output."""
    path = tmp_path_factory.mktemp("recordings") / "jane-doe-1970.wav"
    made = signals.sentence(phrases=18, syllables=6, pauses_s=(0.4, 0.8, 0.6))
    samples = signals.add_noise(made.samples, 45.0, speech_s=made.speech_s)
    soundfile.write(path, np.clip(samples, -1, 1), SAMPLE_RATE_HZ, subtype="PCM_16")
    return path
