"""A registry with small bundles in it, and children of the test's process that die or hurry."""

import os
import signal
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from clinical_ser.models.bundle import read_bundle, write_bundle
from clinical_ser.registry import Record, Registry
from tests.models.bundle_content import FIELDS, PAYLOAD

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def make_bundle(folder: Path, version: str = "1", **changes) -> Path:
    """Write a bundle whose digest differs with its version."""
    write_bundle(folder, FIELDS.model_copy(update={"version": version, **changes}), PAYLOAD)
    return folder


def keep(registry: Registry, tmp_path: Path, version: str = "1", *, parent: str | None = None, name: str | None = None, **changes) -> str:
    """Make a bundle and add it; returns its digest."""
    folder = make_bundle(tmp_path / f"bundle-{name}-{version}", version, **changes)
    change = "updated" if parent else "trained"
    return registry.add(folder, Record.of(read_bundle(folder), change=change, parent=parent, name=name, created=WHEN))


def in_child(work: Callable[[], int]) -> int:
    """Start a child of this process that ends with what `work` returns, 99 for an error; returns its id."""
    with warnings.catch_warnings():  # Python 3.12 warns of threads, of which this child needs none
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step: int, work: Callable[[], object]) -> int:
    """Do the work in a child that is killed before the `step`-th time it makes a folder, syncs, renames, links or removes; 0: it came through."""
    calls = 0

    def counting(call):
        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    def watched() -> int:
        for name in ("mkdir", "fsync", "rename", "replace", "link", "unlink"):
            setattr(os, name, counting(getattr(os, name)))
        work()
        return 0

    return ended(in_child(watched))
