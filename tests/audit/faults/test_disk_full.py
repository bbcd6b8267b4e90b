"""A disk that fills up: nothing is acknowledged that is not on it, and the same writer goes on when there is space again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clinical_ser.audit.log import AuditLog
from clinical_ser.errors import AuditUnavailableError
from tests.audit.faults.driving import FULL, Writer, assert_nothing_twice, check
from tests.audit.log_maker import EACH_ITS_OWN, append, make_log

_ROUNDS = 20 if FULL else 3
_DISK_BYTES = _ROUNDS << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of some megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", folder], capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("no file system can be mounted here (it takes root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(disk: Path, but: int = 0) -> Path:
    """Take all space of the disk but so many bytes; deleting the file gives it back."""
    ballast = disk / "ballast"
    with ballast.open("ab") as file:
        while (left := shutil.disk_usage(disk).free - but) > 0:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), left)
            except OSError:
                break
    return ballast


def _append_until_refused(log: AuditLog, prefix: str, subjects: int) -> tuple[dict[str, int], str]:
    """Return what was acknowledged, and the name that was refused first."""
    acked: dict[str, int] = {}
    for number in range(10_000):
        name = f"{prefix}/0/{number}"
        try:
            acked[name] = append(log, name, subjects).index
        except AuditUnavailableError:
            return acked, name
    raise AssertionError("the disk did not fill up")


@pytest.mark.parametrize("on_the_disk", ["the log", "the vault"])
def test_a_writer_goes_on_when_there_is_space_again(tmp_path: Path, disk: Path, on_the_disk: str) -> None:
    folder, database = (tmp_path / "site", disk / "audit.sqlite") if on_the_disk == "the log" else (disk / "site", tmp_path / "audit.sqlite")
    configuration = make_log(folder, database=database)
    acked: dict[str, int] = {}
    log = configuration.write()
    for turn in range(_ROUNDS):
        ballast = _fill(disk, but=60_000 + 37_000 * (turn % 5))
        before = log.size
        made, refused = _append_until_refused(log, f"turn{turn}", EACH_ITS_OWN)
        # Full means full: asked again the answer is the same, and the log has not grown by what was refused.
        for _ in range(3):
            with pytest.raises(AuditUnavailableError):
                append(log, refused, EACH_ITS_OWN)
        assert log.size == before + len(made)
        ballast.unlink()
        acked |= made | {refused: append(log, refused, EACH_ITS_OWN).index}
        # What the log holds at this moment, while its writer goes on.
        with configuration.read() as reader:
            assert reader.size == len(acked)
    log.close()
    assert sorted(acked.values()) == list(range(len(acked)))
    check(configuration, acked, subjects=EACH_ITS_OWN)
    assert_nothing_twice(configuration, acked)


def test_a_writer_that_is_killed_on_a_full_disk_leaves_what_it_acknowledged(tmp_path: Path, disk: Path) -> None:
    configuration = make_log(tmp_path / "site", database=disk / "audit.sqlite")
    with Writer(tmp_path / "site", ("--prefix", "run", "--threads", "4")) as writer:
        writer.open()
        ballast = _fill(disk, but=200_000)
        writer.go()
        assert writer.wait_for("refused", 8), writer.errors()
        writer.kill()
    assert writer.acks
    assert {error for error, _ in writer.refusals} == {"AuditUnavailableError"}
    ballast.unlink()
    check(configuration, writer.acks)
    assert_nothing_twice(configuration, writer.acks)


@pytest.mark.parametrize("largest_file", [100_000, 150_000, 400_000])
def test_files_that_may_not_grow_are_like_a_full_disk(tmp_path: Path, largest_file: int) -> None:
    """The way that needs no root: a limit on the size of files, lifted after some refusals."""
    configuration = make_log(tmp_path)
    records = 100
    options = ("--prefix", "run", "--records", str(records), "--largest-file", str(largest_file), "--lift-after", "20", "--retries", "30")
    with Writer(tmp_path, (*options, "--subjects", str(EACH_ITS_OWN), "--tidy-every", "20")) as writer:
        writer.begin()
        assert writer.end() == 0, writer.errors()
    assert {error for error, name in writer.refusals if name != "retain"} == {"AuditUnavailableError"}
    assert len(writer.acks) == records
    check(configuration, writer.acks, subjects=EACH_ITS_OWN)
    assert_nothing_twice(configuration, writer.acks)
