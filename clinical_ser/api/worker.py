"""The process that decodes, gates and screens for the server: `python -m clinical_ser.api.worker FD`.

The one idea: strangers' bytes are decoded here and nowhere else, in a process that has no keys, no log and no more memory than it was given; if it
dies of them, the server starts another.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

import numpy as np

from clinical_ser.api.cells import Cells
from clinical_ser.api.frames import Done, Work, encode, receive
from clinical_ser.audio import load
from clinical_ser.audio.loading import from_samples
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.errors import AudioError, AudioTooLongError, ClinicalSerError, InvalidValueError, ServerSetupError
from clinical_ser.features.vector import FeatureVector
from clinical_ser.monitoring.counts import Grid
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.screening.screener import Screener

MEMORY = "memory"
MAX_BODY_BYTES = 2 * 1024**3
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_WARM_S = 12.0
"""Longer than any gate asks for, so that every stage is warm."""


@dataclass(frozen=True)
class Setup:
    """What the server tells a worker once.

    Attributes
    ----------
    models
        The folders of the models by the digests that the server has recorded as answering; work names the digest.
    encoders
        As in the configuration.
    memory_mib
        Of address space; 0 for no limit.
    niceness
        By how much to stand back for other processes.
    """

    models: Mapping[str, str]
    encoders: tuple[str, ...]
    memory_mib: int
    niceness: int = 0


def serve(connection: socket.socket, setup: Setup) -> None:
    """Load the models, then answer until the server hangs up."""
    models = {digest: _Model(Screener.load(Path(folder), encoders=setup.encoders)) for digest, folder in setup.models.items()}
    for digest, model in models.items():
        if model.screener.digest != digest:
            raise ServerSetupError("The model's files were replaced while it was served; restart the server.")
    _warm([model.screener for model in models.values()])
    _answer(connection, Done(kind="ready"))
    while (frame := receive(connection, MAX_BODY_BYTES)) is not None:
        head, body = frame
        started = time.perf_counter()
        work = Work.model_validate(head)
        done, answer = _worked(models[work.model], work, body)
        _answer(connection, done.model_copy(update={"seconds": time.perf_counter() - started}), answer)
        if done.code == MEMORY:
            # What was half done when memory ran out is nothing to go on from.
            return
        # A voice is not kept until the next one comes.
        del frame, body, answer


class _Model:
    """A model, and the cells in which its recordings are counted."""

    def __init__(self, screener: Screener) -> None:
        self.screener = screener

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.screener.model)

    def cells(self, entered: Sequence[FeatureVector], result: ScreeningResult, codec: str) -> bytes:
        """Return the cells of a recording: of what the model was given, if it was given anything, and of what it said."""
        values = entered[0].values if entered else None
        return Cells.of(self.grid, values, result, codec).model_dump_json().encode()


def _worked(model: _Model, work: Work, body: bytearray) -> tuple[Done, bytes]:
    screener = model.screener
    entered: list[FeatureVector] = []
    options = dict(work.options)
    start, end = options.pop("start", None), options.pop("end", None)
    try:
        recording = load(bytes(body), start=start, end=end, max_duration_s=work.decoded_s)
        if work.longest_s is not None and recording.duration_s > work.longest_s:
            return Done(kind="longer"), b""
        if work.kind == "quality":
            return Done(kind="quality"), screener.quality(recording).model_dump_json().encode()
        if day := options.pop("recorded_on", None):
            options["recorded_on"] = date.fromisoformat(day)
        result = screener.screen(recording, entered=entered.append, **options)
        answer = result.model_dump_json().encode()
        cells = model.cells(entered, result, recording.source.codec) if work.counted else None
    except (ClinicalSerError, MemoryError) as error:
        return _refused(error), b""
    return (Done(kind="result"), answer) if cells is None else (Done(kind="result", result_bytes=len(answer)), answer + cells)


def _refused(error: ClinicalSerError | MemoryError) -> Done:
    """Say why there is no result, without what was given: it may be a name in the wrong field."""
    if isinstance(error, InvalidValueError):
        code, detail = "bad-value", f"{error.rule}."
    elif isinstance(error, AudioTooLongError):
        code, detail = "too-long", str(error)
    elif isinstance(error, AudioError):
        code, detail = "not-audio", str(error)
    elif isinstance(error, MemoryError):
        code, detail = MEMORY, "The recording needs more memory than this server gives to one."
    else:
        code, detail = "failed", f"The recording could not be measured ({type(error).__name__})."
    return Done(kind="refused", code=code, detail=detail)


def _answer(connection: socket.socket, done: Done, body: bytes = b"") -> None:
    connection.sendall(encode(done, len(body)) + body)


def _warm(screeners: Sequence[Screener]) -> None:
    """Let every library load and every cache fill before the first recording: voiced pulses with pauses, which a gate lets pass or refuses."""
    time_s = np.arange(int(_WARM_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pulses = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 2.5 * time_s), 0, None) * (np.sin(2 * np.pi * 0.3 * time_s) > -0.7)
    noise = np.random.default_rng(0).normal(size=len(time_s)) * 1e-4
    recording = from_samples(0.1 * pulses * envelope + noise, SAMPLE_RATE_HZ)
    for screener in screeners:
        for _ in range(2):
            with suppress(ClinicalSerError):
                screener.screen(recording)


def _confine(setup: Setup) -> None:
    """Give up what a decoder that was taken over would want: memory without end, core dumps with a voice in them, other programs' rights."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if setup.memory_mib:
        bytes_allowed = setup.memory_mib << 20
        resource.setrlimit(resource.RLIMIT_AS, (bytes_allowed, bytes_allowed))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _keep_quiet() -> None:
    """Let decoders' own words, which may quote a file's tags, go nowhere; of an exception of ours tell the type and where, never what it says."""
    told = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)

    def tell(kind: type[BaseException], _: BaseException, trace: TracebackType | None) -> None:
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in extract_tb(trace)]
        line = json.dumps({"level": "error", "event": "worker-failed", "exception": kind.__name__, "frames": frames[-5:]})
        with suppress(OSError):
            os.write(told, line.encode() + b"\n")

    sys.excepthook = tell


def _end_with(life: int) -> None:
    """End the process when the server does, however busy it is: the pipe's other end closes with whoever held it."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(life, 1):
                pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="life").start()


def main(arguments: list[str]) -> None:
    """Run a worker on inherited descriptors: the connection's, and that of a pipe which closes when the server ends."""
    # Ctrl-C in a terminal goes to the whole group; the server tells its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(arguments[0]))
    _end_with(int(arguments[1]))
    _keep_quiet()
    told: dict[str, Any] = json.loads(arguments[2])
    setup = Setup(told["models"], tuple(told["encoders"]), told["memory_mib"], told["niceness"])
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(setup.niceness)
    _confine(setup)
    try:
        serve(connection, setup)
    except (BrokenPipeError, ConnectionResetError):
        return
    except ClinicalSerError as error:
        _answer(connection, Done(kind="refused", code="setup", detail=str(error)))


if __name__ == "__main__":
    main(sys.argv[1:])
