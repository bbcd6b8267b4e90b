"""Lines of the log: whole, in order, without anything from outside, and never in the way of the server."""

import io
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.api.failures import describe
from clinical_ser.api.logs import MAX_WAITING_BYTES, Logs, configure_logs
from clinical_ser.audit.checkpoint import parse_decimal
from clinical_ser.errors import AuditFormatError
from tests.api.observed import logging_to

WORDS = ("event", "request_id", "method", "route", "screening", "code", "logger")


class Gathered:
    """Takes lines as a pipe does, and can be told not to."""

    def __init__(self) -> None:
        self.data = b""
        self.at_most = 1 << 30
        self.fails: type[Exception] | None = None

    def __call__(self, lines: bytes) -> int:
        if self.fails is not None:
            raise self.fails
        taken = lines[: self.at_most]
        self.data += taken
        self.at_most -= len(taken)
        return len(taken)

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.data.decode("ascii").splitlines()]


def test_a_line_is_one_json_object_with_the_time_in_utc(tmp_path: Path) -> None:
    before = time.time()
    with logging_to(tmp_path / "log") as (logs, written):
        logs.write("worker.restarted", level="warning", code="crash", count=2)
    (line,) = written.lines()
    stamp = line.pop("time")
    assert stamp.endswith("Z")
    assert before - 1 <= time.mktime(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone <= time.time() + 1
    assert line == {"level": "warning", "event": "worker.restarted", "code": "crash", "count": 2}


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_not_written(level, written: int) -> None:
    gathered = Gathered()
    logs = Logs(gathered, level)
    for each in ("debug", "info", "warning", "error"):
        logs.write("x", level=each)
    assert len(gathered.lines()) == written


HOSTILE = ["two words", "a\nb", 'a"b', "\x1b[31mred", "\x00", "名字", "\ud800", "x" * 121, "", "a\x7f", "\N{LINE SEPARATOR}"]


@pytest.mark.parametrize("field", WORDS)
def test_what_is_no_word_is_withheld(field: str) -> None:
    gathered = Gathered()
    logs = Logs(gathered)
    for text in HOSTILE:
        logs.write(**{"event": "x", field: text})
    assert [line[field] for line in gathered.lines()] == ["(withheld)"] * len(HOSTILE)


@given(st.text(), st.text())
def test_no_text_breaks_a_line(word: str, text: str) -> None:
    gathered = Gathered()
    Logs(gathered).write(word, code=word, text=text)
    assert gathered.data.count(b"\n") == 1
    assert gathered.data.endswith(b"}\n")
    assert set(gathered.data[:-1]) <= set(range(0x20, 0x7F))
    assert len(gathered.lines()) == 1


def test_a_value_of_the_wrong_kind_does_not_stop_the_server() -> None:
    gathered = Gathered()
    Logs(gathered).write("x", count=object(), status=Path("/home/jane"))  # type: ignore[arg-type]
    assert gathered.lines()[0]["count"] == "(withheld)"
    assert b"jane" not in gathered.data


# Exceptions


def test_of_an_exception_types_and_own_places_are_written_and_no_text() -> None:
    gathered = Gathered()
    try:
        try:
            parse_decimal("jane doe", "jane doe")
        except AuditFormatError as error:
            raise RuntimeError("jane doe") from error
    except RuntimeError as error:
        Logs(gathered).write("failed", level="error", error=error)
    (line,) = gathered.lines()
    assert line["errors"] == ["RuntimeError", "AuditFormatError"]
    (place,) = line["places"]
    file, _, number = place.partition(":")
    source = Path(sys.modules[parse_decimal.__module__].__file__ or "").read_text(encoding="utf-8").splitlines()
    assert file == "clinical_ser/audit/checkpoint.py"
    assert "raise AuditFormatError" in source[int(number) - 1]
    assert b"jane" not in gathered.data


def raised_while_handling(outer: BaseException, *, hidden: bool) -> None:
    try:
        parse_decimal("x", "x")
    except AuditFormatError as inner:
        if hidden:
            raise outer from None
        inner.args = ("jane",)
        raise outer  # noqa: B904  # meanwhile, not from


def test_members_of_a_group_and_what_was_handled_meanwhile_are_named() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        raised_while_handling(ExceptionGroup("jane", [ValueError("jane"), OSError("jane")]), hidden=False)
    assert describe(caught.value).types == ("ExceptionGroup", "AuditFormatError", "ValueError", "OSError")


def test_what_was_hidden_on_purpose_stays_hidden() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        raised_while_handling(ValueError("x"), hidden=True)
    assert describe(caught.value).types == ("ValueError",)


def test_a_circle_of_causes_ends_and_a_type_named_by_someone_is_not_told() -> None:
    named = type("Jane Doe", (Exception,), {})()
    other = ValueError()
    named.__cause__, other.__cause__ = other, named
    assert describe(named).types == ("(unnamed)", "ValueError")


def test_a_long_chain_and_a_deep_recursion_are_cut() -> None:
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        parse_decimal("x", "x")

    error: BaseException = ValueError()
    for _ in range(50):
        outer = ValueError()
        outer.__cause__, error = error, outer
    with pytest.raises(AuditFormatError) as caught:
        deep(500)
    assert len(describe(error).types) == 8
    assert len(describe(caught.value).places) == 1


# Readers that stop, disks that fill


def test_lines_that_nobody_takes_at_the_moment_come_later_and_in_order() -> None:
    gathered = Gathered()
    logs = Logs(gathered)
    gathered.at_most = 0
    for number in range(10):
        logs.write("x", count=number)
    assert gathered.data == b""
    gathered.at_most = 1 << 30
    logs.write("x", count=10)
    assert [line["count"] for line in gathered.lines()] == list(range(11))
    assert logs.lost == 0


def test_a_line_that_was_taken_in_part_is_finished_first() -> None:
    gathered = Gathered()
    logs = Logs(gathered)
    gathered.at_most = 20
    logs.write("x", count=0)
    assert len(gathered.data) == 20
    gathered.fails = OSError
    logs.write("x", count=1)
    gathered.fails, gathered.at_most = None, 1 << 30
    logs.write("x", count=2)
    assert [line["count"] for line in gathered.lines()] == [0, 1, 2]


@pytest.mark.parametrize("error", [OSError, ValueError, BrokenPipeError, BlockingIOError])
def test_what_cannot_be_kept_is_counted_and_the_log_says_so_when_it_can(error: type[Exception]) -> None:
    gathered = Gathered()
    logs = Logs(gathered)
    gathered.fails = error
    for number in range(10_000):
        logs.write("x", count=number)
    assert 0 < logs.lost < 10_000
    kept = 10_000 - logs.lost
    gathered.fails = None
    logs.write("next")
    logs.write("last")
    lines = gathered.lines()
    assert [line["count"] for line in lines[:kept]] == list(range(kept))
    assert [(line["event"], line.get("count")) for line in lines[kept:]] == [("log.lost", logs.lost), ("next", None), ("last", None)]
    assert len(gathered.data) <= MAX_WAITING_BYTES + 500


@contextmanager
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w", encoding="ascii") as stream:
            yield reader, stream
    finally:
        os.close(reader)


def test_a_reader_that_stops_does_not_stop_the_server() -> None:
    with pipe() as (reader, stream), configure_logs(stream) as logs:
        began = time.monotonic()
        for number in range(20_000):
            logs.write("x", count=number)
        assert time.monotonic() - began < 20
        assert logs.lost > 0
        os.set_blocking(reader, False)
        data = b""
        for _ in range(1000):
            with suppress(BlockingIOError):
                while True:
                    data += os.read(reader, 1 << 16)
            if b'"last"' in data:
                break
            logs.write("last")
    lines = [json.loads(line) for line in data.decode().splitlines()]
    counts = [line["count"] for line in lines if line["event"] == "x"]
    assert counts == list(range(len(counts)))
    assert len(counts) + logs.lost == 20_000
    assert "log.lost" in {line["event"] for line in lines}


def test_a_reader_that_ended_does_not_stop_the_server() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="ascii") as stream:
        with configure_logs(stream) as logs:
            os.close(reader)
            for _ in range(5000):
                logs.write("x")
        assert logs.lost > 0


def test_a_full_disk_does_not_stop_the_server() -> None:
    with open("/dev/full", "w", encoding="ascii", closefd=True) as stream, configure_logs(stream) as logs:
        for _ in range(5000):
            logs.write("x")
        assert logs.lost > 0
    # Nothing of ours is in the stream's own buffer, so that closing it does not fail either.


def test_a_disk_that_fills_in_the_middle_of_a_line_leaves_no_torn_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "log"
    with path.open("w", encoding="ascii") as stream, configure_logs(stream) as logs:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, hard))
        try:
            for number in range(10):
                logs.write("x", count=number)
            assert path.stat().st_size == 250
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        logs.write("x", count=10)
    assert [json.loads(line)["count"] for line in path.read_text().splitlines()] == list(range(11))


def test_without_standard_error_lines_are_counted_as_lost() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        with configure_logs(stream) as logs:
            for _ in range(5000):
                logs.write("x")
        assert logs.lost > 0


def test_a_stream_without_a_descriptor_gets_the_lines() -> None:
    stream = io.StringIO()
    with configure_logs(stream) as logs:
        logs.write("x", count=3)
    assert json.loads(stream.getvalue())["count"] == 3


def test_the_log_does_not_follow_a_descriptors_number_to_another_file(tmp_path: Path) -> None:
    with ExitStack() as opened, (tmp_path / "log").open("w", encoding="ascii") as stream:
        number = stream.fileno()
        logs = configure_logs(stream)
        stream.close()
        databases = [opened.enter_context((tmp_path / "first").open("w", encoding="ascii"))]
        assert databases[0].fileno() == number
        logs.write("x")
        logs.close()
        # One of them gets the number under which the log's own descriptor was.
        databases += [opened.enter_context((tmp_path / str(each)).open("w", encoding="ascii")) for each in range(20)]
        logs.write("after the end")
        assert [os.fstat(each.fileno()).st_size for each in databases] == [0] * 21
    assert [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()] == ["x"]


def test_closing_writes_what_waits() -> None:
    with pipe() as (reader, stream):
        logs = configure_logs(stream)
        for number in range(900):
            logs.write("x", count=number)
        data = b""

        def read() -> None:
            nonlocal data
            while part := os.read(reader, 1 << 16):
                data += part

        thread = threading.Thread(target=read)
        thread.start()
        logs.close()
        stream.close()
        thread.join(timeout=20)
    assert [json.loads(line)["count"] for line in data.decode().splitlines()] == list(range(900))


# Threads


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as (logs, written):

        def work(thread: int) -> None:
            for number in range(300):
                logs.write("x", code=str(thread), count=number)

        threads = [threading.Thread(target=work, args=(each,)) for each in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = written.lines()
    assert logs.lost == 0
    for each in range(8):
        assert [line["count"] for line in lines if line["code"] == str(each)] == list(range(300))


def test_a_line_written_while_a_line_is_written_comes_after_it() -> None:
    """A finalizer that runs during the write logs from the same thread."""
    gathered = Gathered()

    def take(lines: bytes) -> int:
        if b"outer" in lines and b"inner" not in gathered.data and not seen:
            seen.append(1)
            logs.write("inner")
        return gathered(lines)

    seen: list[int] = []
    logs = Logs(take)
    logs.write("outer")
    assert [line["event"] for line in gathered.lines()] == ["outer", "inner"]
