"""A real Ray, on this machine: the same bits as in this process, and a task that dies costs its own row only."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clinical_ser.errors import FeatureError, InvalidValueError
from clinical_ser.features import cluster
from clinical_ser.features.batch import extract_many
from clinical_ser.features.cluster import run_on_ray
from clinical_ser.features.extraction import Source
from clinical_ser.features.workers import Lost
from tests import signals

ray = pytest.importorskip("ray")

JOBS = """
import os, signal

def deadly(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x

def deadly_once(marker):
    if marker and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "jobs_on_ray.py").write_text(JOBS)
    return folder


@pytest.fixture(scope="module")
def address(jobs):
    """A cluster of one node and two processors that stands apart from this process, as a site's does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray")  # not pytest's: the names of Unix sockets end at 107 characters
    arguments = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    head = subprocess.Popen(
        [Path(sys.executable).parent / "ray", *arguments, f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Without a token: whether Ray has one depends on what this user did with Ray before.
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join([str(jobs), *sys.path])},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (Path(folder) / "ray_current_cluster").exists():
        assert head.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    os.killpg(head.pid, signal.SIGKILL)  # head and all that it started, nothing else
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jane_doe")
    sources = []
    for seed in range(3):
        sentence = signals.sentence(phrases=2, syllables=3, f0_hz=120.0 + 20 * seed, seed=seed)
        soundfile.write(folder / f"{seed}.wav", signals.add_noise(sentence.samples, 45), signals.RATE_HZ)
        sources.append(Source(folder / f"{seed}.wav"))
    return [sources[0], Source(folder / "missing.wav"), *sources[1:]]


def described(outcome):
    found = outcome.extraction
    return outcome.index, outcome.reason, found and (found.recording, found.quality, found.features.values.tobytes(), dict(found.features.missing))


def test_a_cluster_of_this_machine_gives_the_same_bits_and_is_gone_afterwards(sources):
    outcomes = [described(outcome) for outcome in extract_many(sources, executor="ray", workers=2)]
    assert outcomes == [described(outcome) for outcome in extract_many(sources)]
    assert not ray.is_initialized()


def test_a_cluster_that_runs_is_joined_and_gives_the_same_bits_through_a_shared_cache(sources, address, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    outcomes = [described(outcome) for outcome in extract_many(sources, executor="ray", ray_address="auto", cache=tmp_path / "cache")]
    here = list(extract_many(sources, cache=tmp_path / "cache"))
    assert outcomes == [described(outcome) for outcome in here]
    assert all(outcome.extraction.cached for outcome in here if outcome.extraction)


def test_a_task_that_ends_its_process_costs_its_own_row_or_is_tried_again(jobs, address, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(jobs))
    import jobs_on_ray

    answers = dict(run_on_ray(jobs_on_ray.deadly, range(5), address=address))
    assert isinstance(answers[2], Lost)
    assert "WorkerCrashedError" in answers[2].reason
    assert {index: answers[index] for index in (0, 1, 3, 4)} == {0: 0, 1: 1, 3: 9, 4: 16}
    marker = str(tmp_path / "died")
    assert dict(run_on_ray(jobs_on_ray.deadly_once, [marker, ""], address=address)) == {0: marker, 1: ""}


def test_an_address_where_nobody_answers_is_an_error_at_once():
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(FeatureError, match="ray start"):
            next(run_on_ray(np.square, [1], address=f"127.0.0.1:{taken.getsockname()[1]}"))
    assert time.monotonic() - began < cluster.KNOCK_S + 5


@pytest.mark.parametrize("address", ["head-node", "host:port", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InvalidValueError, match="HOST:PORT"):
        next(run_on_ray(np.square, [1], address=address))


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeatureError, match=r"clinical-ser\[cluster\]"):
        next(run_on_ray(np.square, [1]))
