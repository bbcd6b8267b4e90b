"""Many processes that want to write to one log at once."""

import random
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from clinical_ser.errors import AuditBusyError
from tests.audit.faults.driving import FULL, Writer, assert_nothing_twice
from tests.audit.log_maker import append, make_log, verify

_PROCESSES = 8
_ROUNDS = 20 if FULL else 1
_RECORDS = 1000 if FULL else 5


def test_one_of_many_gets_the_log_and_the_others_are_told(tmp_path: Path) -> None:
    make_log(tmp_path)
    for number in range(_ROUNDS):
        with ExitStack() as stack:
            writers = [
                stack.enter_context(Writer(tmp_path, ("--prefix", f"round{number}-{process}", "--records", "1"))) for process in range(_PROCESSES)
            ]
            for writer in writers:
                assert writer.wait_for("ready"), writer.errors()
            for writer in writers:
                writer.go()
            opened = [writer for writer in writers if writer.wait_for("open")]
            assert len(opened) == 1
            assert all(writer.refusals == [("AuditBusyError", "open")] for writer in writers if writer not in opened)
            opened[0].go()
            assert opened[0].end() == 0
            assert list(opened[0].acks.values()) == [number]


def test_the_log_is_free_when_its_writer_was_killed(tmp_path: Path) -> None:
    configuration = make_log(tmp_path)
    with Writer(tmp_path, ()) as writer:
        writer.begin()
        assert writer.wait_for("ack"), writer.errors()
        with pytest.raises(AuditBusyError):
            configuration.write(wait_s=0)
        writer.kill()
        configuration.write(wait_s=0).close()


def test_processes_that_take_turns_leave_no_gap_and_nothing_twice(tmp_path: Path) -> None:
    configuration = make_log(tmp_path)
    chance = random.Random(8)
    with ExitStack() as stack:
        writers = []
        for process in range(_PROCESSES):
            # The first two open the log for every record; the others for some more, each for its own number of them.
            burst = 1 if process < 2 else chance.randrange(2, 40 if FULL else 4)
            options = ("--prefix", f"process{process}", "--records", str(_RECORDS), "--burst", str(burst), "--wait", "600", "--subjects", "50")
            writers.append(stack.enter_context(Writer(tmp_path, options)))
        for writer in writers:
            assert writer.wait_for("ready"), writer.errors()
        for writer in writers:
            writer.go()
        readers = [threading.Thread(target=writer.wait_for, args=("done",)) for writer in writers]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert [writer.end() for writer in writers] == [0] * _PROCESSES, [writer.errors() for writer in writers]
        acked = {name: index for writer in writers for name, index in writer.acks.items()}
    assert sorted(acked.values()) == list(range(_PROCESSES * _RECORDS))
    assert verify(configuration).size == _PROCESSES * _RECORDS
    assert_nothing_twice(configuration, acked)


def test_a_process_that_reads_does_not_hinder_the_writer(tmp_path: Path) -> None:
    configuration = make_log(tmp_path, records=5)
    with configuration.read() as reader, Writer(tmp_path, ("--records", "20", "--tidy-every", "3")) as writer:
        writer.begin()
        assert writer.end() == 0
        assert (len(writer.acks), writer.refusals) == (20, [])
        # The reader stands where it stood.
        assert reader.size == len(list(reader.records())) == 5
    with configuration.write() as log:
        assert append(log, "record 0").index == 0
        assert log.size == 25
