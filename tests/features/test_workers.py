import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from clinical_ser.errors import FeatureError
from clinical_ser.features.workers import THREADS, Lost, run_in_processes

JOBS = """
import os, signal, time

def square(x):
    return x * x

def own_pid(x):
    time.sleep(0.1)
    return os.getpid()

def environment(x):
    return dict(os.environ)

def noisy(x):
    os.write(1, b"native chatter")
    return x

def deadly(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def deadly_once(marker):
    if marker and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker

def faulty(x):
    return x.nothing

def hanging(x):
    time.sleep(60 if x == 1 else 0)
    return x

def slow(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module that the workers can import, as they do a user's."""
    (tmp_path / "jobs_for_workers.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import jobs_for_workers

    yield jobs_for_workers
    del sys.modules["jobs_for_workers"]


def test_every_job_is_answered_once(jobs):
    assert sorted(run_in_processes(jobs.square, list(range(200)), workers=2)) == [(index, index * index) for index in range(200)]


def test_no_job_starts_no_process(jobs):
    assert list(run_in_processes(jobs.square, [], workers=2)) == []


def test_jobs_go_to_as_many_processes_as_asked(jobs):
    pids = {pid for _, pid in run_in_processes(jobs.own_pid, range(8), workers=2)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_workers_have_one_thread_each(jobs):
    ((_, environment),) = run_in_processes(jobs.environment, [0], workers=1)
    assert THREADS.items() <= environment.items()


def test_what_native_code_prints_does_not_mix_with_the_callers_output(jobs, capfd):
    assert list(run_in_processes(jobs.noisy, [7], workers=1)) == [(0, 7)]
    assert capfd.readouterr().out == ""


def test_a_job_that_ends_its_process_is_named_and_no_other_is_touched(jobs):
    answers = dict(run_in_processes(jobs.deadly, range(12), workers=2))
    assert {index for index, answer in answers.items() if isinstance(answer, Lost)} == {3, 5}
    assert "SIGSEGV" in answers[3].reason
    assert "memory" in answers[5].reason
    assert all(answers[index] == index for index in answers.keys() - {3, 5})


def test_a_job_whose_process_was_ended_by_chance_is_tried_again(jobs, tmp_path):
    marker = str(tmp_path / "died")
    assert dict(run_in_processes(jobs.deadly_once, [marker, "", ""], workers=2)) == {0: marker, 1: "", 2: ""}
    assert Path(marker).exists()


def test_a_fault_of_the_program_costs_its_row_and_is_not_hidden(jobs, capfd):
    ((_, answer),) = run_in_processes(jobs.faulty, [1], workers=1)
    assert "exit status 1" in answer.reason
    assert "AttributeError" in capfd.readouterr().err


def test_a_job_that_hangs_is_stopped_in_time_and_the_others_go_on(jobs):
    began = time.monotonic()
    answers = dict(run_in_processes(jobs.hanging, range(4), workers=2, timeout_s=1.0))
    assert time.monotonic() - began < 10
    assert "longer than 1 s" in answers[1].reason
    assert [answers[index] for index in (0, 2, 3)] == [0, 2, 3]


def test_a_worker_that_cannot_start_is_an_error_and_not_a_row(jobs, tmp_path):
    answers = run_in_processes(jobs.square, [1], workers=1)
    (tmp_path / "jobs_for_workers.py").unlink()
    with pytest.raises(FeatureError, match="could not start"):
        next(answers)


def test_stopping_in_the_middle_leaves_no_process(jobs):
    answers = run_in_processes(jobs.own_pid, range(100), workers=2)
    pids = {next(answers)[1] for _ in range(4)}
    answers.close()
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_behind_when_the_caller_is_interrupted_or_killed(jobs, tmp_path, how):
    held = tmp_path / "held"
    held.mkdir()
    script = """
        import sys
        from clinical_ser.features.workers import run_in_processes
        import jobs_for_workers
        list(run_in_processes(jobs_for_workers.slow, [sys.argv[1]] * 4, workers=2))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(held)]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, start_new_session=True) as caller:
        wait_until(lambda: len(list(held.iterdir())) == 2)
        os.killpg(caller.pid, how)  # as a terminal does
        complaints = caller.stderr.read()
    assert complaints.count(b"Traceback") == (1 if how == signal.SIGINT else 0)  # the caller's own
    pids = [int(path.name) for path in held.iterdir()]
    wait_until(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
