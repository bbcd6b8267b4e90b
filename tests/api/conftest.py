"""One server for all tests of a process that leave it as it was."""

import io
from pathlib import Path

import pytest
import soundfile

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from tests.api.servers import Server, serving
from tests.api.wards import NAME, Ward
from tests.tables import table_of


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundle: Path):
    """A server with one model that answers any usable recording; what it answers means nothing."""
    with serving(tmp_path_factory.mktemp("server"), (str(bundle),)) as running:
        yield running


@pytest.fixture
def client(server: Server):
    """A client that may do everything."""
    return server.client()


@pytest.fixture(scope="session")
def recording(speech_wav: Path) -> bytes:
    """A recording that the gate lets pass."""
    return speech_wav.read_bytes()


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three versions of one model, and a model that calls itself otherwise."""
    training = train(table_of(80), DEPRESSION, TrainingOptions(refits=3))
    folder = tmp_path_factory.mktemp("versions")
    made = []
    for name, version in [(NAME, "1"), (NAME, "2"), (NAME, "3"), ("other", "1")]:
        card, _ = card_of(training, None, name=name, version=version, statement="For tests.", options=EvaluationOptions(replicates=20))
        made.append(folder / f"{name}-{version}")
        save(training, made[-1], name=name, version=version, statement="For tests.", card=card.to_json(), software={"numpy": "0"}, key=None)
    return tuple(made)


@pytest.fixture
def ward(versions: tuple[Path, ...]) -> Ward:
    """A registry in which the first version is champion."""
    made = Ward(versions)
    made.switch("promoted", champion=0)
    return made


@pytest.fixture(scope="session")
def brief(speech_wav: Path) -> bytes:
    """Little more than the gate asks for: half the work, for tests that ask often."""
    samples, rate = soundfile.read(speech_wav, dtype="int16")
    out = io.BytesIO()
    soundfile.write(out, samples[: 18 * rate], rate, format="WAV", subtype="PCM_16")
    return out.getvalue()
