"""A writer that is killed, again and again, in the middle of group commits."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.log import Entry
from clinical_ser.audit.merkle import verify_consistency
from clinical_ser.errors import AuditConflictError
from tests.audit.faults.driving import FULL, Writer, assert_nothing_twice, check, next_after
from tests.audit.log_maker import append, make_log, payload_of, verify

_KILLS = 200 if FULL else 12
_THREADS = 8


def test_what_was_acknowledged_survives_every_kill(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    configuration = make_log(tmp_path)
    chance = random.Random(20261126)
    acked: dict[str, int] = {}
    settled = unacked_but_durable = 0
    for kill in range(_KILLS):
        prefix = f"run{kill}"
        # Every third run keeps heads and copies the write-ahead log all the time, so that kills hit that too.
        options = ("--retain-every", "2", "--tidy-every", "2") if kill % 3 == 0 else ()
        subjects = (0, 5, 1 << 62)[kill % 3]
        with Writer(tmp_path, ("--prefix", prefix, "--threads", str(_THREADS), "--subjects", str(subjects), *options)) as writer:
            writer.begin()
            assert writer.wait_for("ack", chance.randrange(1, 40)), writer.errors()
            time.sleep(chance.uniform(0, 0.02))
            writer.kill()
        in_doubt = next_after(writer.acks, prefix, _THREADS)
        before = len(acked) + settled
        found = check(configuration, writer.acks, in_doubt=in_doubt, subjects=subjects)
        unacked_but_durable += found.size - before - len(writer.acks)
        acked |= writer.acks
        settled += len(in_doubt)
        with configuration.write() as log:
            log.retain()
    assert verify(configuration).size == len(acked) + settled
    assert_nothing_twice(configuration, acked)
    reader_keys = configuration.load_keys().verifiers
    with configuration.read() as reader:
        heads = [Checkpoint.open(note, reader_keys)[0] for note in reader.kept_checkpoints()]
        assert len(heads) >= _KILLS
        for head in heads:
            assert verify_consistency(head.size, reader.size, head.root, reader.root, reader.consistency(head.size))
    for name, value in {"kills": _KILLS, "acknowledged": len(acked), "unacked_but_durable": unacked_but_durable, "heads": len(heads)}.items():
        record_property(name, value)


def test_a_request_that_is_repeated_after_a_kill_gives_the_same_record(tmp_path: Path) -> None:
    configuration = make_log(tmp_path)
    with Writer(
        tmp_path,
        (
            "--prefix",
            "run",
        ),
    ) as writer:
        writer.begin()
        assert writer.wait_for("ack", 3), writer.errors()
        writer.kill()
    with configuration.write() as log:
        first = append(log, "run/0/0")
        assert (first.index, first.repeated) == (writer.acks["run/0/0"], True)
        assert append(log, "run/0/0") == first
        with pytest.raises(AuditConflictError):
            log.append(payload_of("another"), idempotency_key="run/0/0")
        with pytest.raises(AuditConflictError):
            log.append(payload_of("run/0/0"), idempotency_key="run/0/0", subject="someone")


def test_a_key_that_many_threads_use_at_once_makes_one_record(tmp_path: Path) -> None:
    configuration = make_log(tmp_path)
    rounds, threads = (200 if FULL else 20), 8
    with configuration.write() as log:
        for number in range(rounds):
            start = threading.Barrier(threads)
            receipts = []

            def ask(name: str = f"round {number}", start: threading.Barrier = start, receipts: list = receipts) -> None:
                start.wait()
                receipts.append(append(log, name))

            asking = [threading.Thread(target=ask) for _ in range(threads)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
            assert {receipt.index for receipt in receipts} == {number}
            assert sum(not receipt.repeated for receipt in receipts) == 1
        assert log.size == rounds
    assert_nothing_twice(configuration, {f"round {number}": number for number in range(rounds)})


def test_in_one_commit_a_key_makes_one_record_and_another_content_is_refused(tmp_path: Path) -> None:
    configuration = make_log(tmp_path)
    with configuration.write() as log:
        # Every third asks for something else under the same name; all of them are in one commit.
        requests = [log._request([Entry(payload_of("one" if number % 3 else "two"))], "key") for number in range(9)]
        with log._alone():
            log._commit(requests)
        assert log.size == 1
    refused = {number for number, request in enumerate(requests) if isinstance(request.error, AuditConflictError)}
    # Whichever came first holds the key; all of the other content are refused, and nobody else is.
    assert refused == {1, 2, 4, 5, 7, 8}
    assert {receipt.index for request in requests for receipt in request.receipts or ()} == {0}
    verify(configuration)
