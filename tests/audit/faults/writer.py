"""A writer to be killed: appends records to a log from several threads, and says which ones the log has acknowledged.

It talks in lines: `ready`, `open` and `closing` before each step, for which it waits until a line comes on its standard input; `ack INDEX NAME` after
an append returned, `refused ERROR NAME` after one was refused, `recovered` when the database was opened again after an error, and `done` at the end.
Lines leave by writev, which nothing else here uses, so that a fault injected into `write` hits the log's files and not these lines.
"""

import argparse
import contextlib
import ctypes
import os
import resource
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clinical_ser.audit import sqlite
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.log import AuditLog
from clinical_ser.errors import AuditError
from tests.audit.log_maker import append

_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)


def main() -> None:
    """Run as the options say."""
    options = _options()
    # Where the kernel lets a process be traced by its descendants alone (Yama), this one allows its siblings too: strace is one.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
    if options.tidy_every:
        sqlite._TIDY_TRANSACTIONS = options.tidy_every
    _tell_of_recoveries()
    configuration = LogConfiguration.load(options.configuration)
    run = _append_in_bursts if options.burst else _append_all
    run(configuration, options)
    _say("done")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("configuration", type=Path)
    parser.add_argument("--prefix", default="record", help="names begin with it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=int, default=1 << 30, help="of each thread")
    parser.add_argument("--subjects", type=int, default=0)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for another writer")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between a thread's appends")
    parser.add_argument("--retain-every", type=int, default=0, help="the first thread keeps the head after so many of its appends")
    parser.add_argument("--tidy-every", type=int, default=0, help="commits after which the write-ahead log is copied into the file")
    parser.add_argument("--retries", type=int, default=0, help="how often a refused append is tried again, with its name")
    parser.add_argument("--burst", type=int, default=0, help="open the log anew for every so many records")
    parser.add_argument("--clock-offset", type=float, default=0.0, help="seconds by which the wall clock is wrong")
    parser.add_argument("--largest-file", type=int, default=0, help="bytes that a file may have, as where a disk is full")
    parser.add_argument("--lift-after", type=int, default=0, help="refusals after which files may be as large as they like")
    return parser.parse_args()


def _open(configuration: LogConfiguration, options: argparse.Namespace) -> AuditLog:
    offset = timedelta(seconds=options.clock_offset)
    return configuration.write(wait_s=options.wait, clock=lambda: datetime.now(UTC) + offset)


def _tell_of_recoveries() -> None:
    recover = AuditLog._recover

    def told(log: AuditLog, *deadline: float) -> None:
        recover(log, *deadline)
        _say("recovered - -")

    AuditLog._recover = told  # type: ignore[method-assign]


def _append_all(configuration: LogConfiguration, options: argparse.Namespace) -> None:
    _say("ready")
    sys.stdin.readline()
    try:
        log = _open(configuration, options)
    except AuditError as error:
        _say(f"refused {type(error).__name__} open")
        return
    _say("open")
    # Standard input again: what is traced or limited from here on is the appends alone.
    sys.stdin.readline()
    if options.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, resource.RLIM_INFINITY))
    refusals = _Refusals(options.lift_after)
    threads = [threading.Thread(target=_append, args=(log, thread, options, refusals)) for thread in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _say("closing")
    sys.stdin.readline()
    with contextlib.suppress(AuditError):
        log.close()


def _append(log: AuditLog, thread: int, options: argparse.Namespace, refusals: "_Refusals") -> None:
    for number in range(options.records):
        name = f"{options.prefix}/{thread}/{number}"
        for _ in range(1 + options.retries):
            try:
                receipt = append(log, name, options.subjects)
            except AuditError as error:
                _say(f"refused {type(error).__name__} {name}")
                refusals.count()
            else:
                _say(f"ack {receipt.index} {name}")
                break
        if options.retain_every and thread == 0 and number % options.retain_every == options.retain_every - 1:
            try:
                log.retain()
            except AuditError as error:
                _say(f"refused {type(error).__name__} retain")
        if options.pause:
            time.sleep(options.pause)


def _append_in_bursts(configuration: LogConfiguration, options: argparse.Namespace) -> None:
    _say("ready")
    sys.stdin.readline()
    for first in range(0, options.records, options.burst):
        with _open(configuration, options) as log:
            for number in range(first, min(first + options.burst, options.records)):
                name = f"{options.prefix}/0/{number}"
                _say(f"ack {append(log, name, options.subjects).index} {name}")


class _Refusals:
    """Counts, and lifts the limit on the size of files after so many."""

    def __init__(self, lift_after: int) -> None:
        self._lock, self._left = threading.Lock(), lift_after

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _say(line: str) -> None:
    os.writev(1, [f"{line}\n".encode()])


if __name__ == "__main__":
    main()
