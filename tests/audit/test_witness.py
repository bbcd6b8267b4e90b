"""A witness cosigns what grew from what it cosigned before, whoever asks, however often, and whatever dies meanwhile."""

import base64
import contextlib
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinical_ser.audit import witness as witness_module
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.cosignatures import Ed25519Cosigner, MlDsa44Cosigner, timestamp_of
from clinical_ser.audit.merkle import EMPTY_ROOT, leaf_hash, node_hash
from clinical_ser.audit.notes import Ed25519Signer, NoteSignature, NoteSigner, VerifierKey, open_note, parse_note
from clinical_ser.audit.witness import (
    MAX_EVIDENCE,
    MAX_REQUEST_BYTES,
    CosignedTree,
    EvidenceKind,
    Witness,
    WitnessRefusalError,
    WitnessRequest,
    cosign_file,
    load_logs,
)
from clinical_ser.errors import AuditFormatError, AuditSetupError, AuditUnavailableError, WitnessError

ORIGIN = "log.example/ward-7"
LOG_SEED = b"\x01" * 32
WITNESS_SEED = b"\x02" * 32
TIMES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ed25519(seed: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed)


class GrowingLog:
    """A log of numbered records; with `forked_at`, another history from that record on. Its proofs are RFC 6962's recursion, word for word."""

    def __init__(self, *, origin: str = ORIGIN, forked_at: int | None = None, signer: NoteSigner | None = None) -> None:
        self.origin = origin
        self.forked_at = forked_at
        self.signer: NoteSigner = signer or Ed25519Signer(origin, ed25519(LOG_SEED))

    @cached_property
    def keys(self) -> tuple[VerifierKey, ...]:
        return (self.signer.key,)

    def _leaves(self, size: int) -> list[bytes]:
        forked_at = size if self.forked_at is None else self.forked_at
        return [leaf_hash(f"{'record' if index < forked_at else 'forged'} {index}".encode()) for index in range(size)]

    def checkpoint(self, size: int, *extensions: str) -> Checkpoint:
        return Checkpoint(self.origin, size, tree_hash(self._leaves(size)), extensions)

    def note(self, size: int, *extensions: str) -> str:
        return self.checkpoint(size, *extensions).sign([self.signer])

    def proof(self, old: int, size: int) -> list[bytes]:
        return consistency(old, self._leaves(size), whole=True) if 0 < old < size else []

    def request(self, old: int, size: int) -> bytes:
        return WitnessRequest(old, tuple(self.proof(old, size)), self.note(size)).encode()


def tree_hash(leaves: list[bytes]) -> bytes:
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(tree_hash(leaves[:split]), tree_hash(leaves[split:]))


def consistency(old: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    """Return SUBPROOF of RFC 6962 section 2.1.2."""
    if old == len(leaves):
        return [] if whole else [tree_hash(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= split:
        return [*consistency(old, leaves[:split], whole=whole), tree_hash(leaves[split:])]
    return [*consistency(old - split, leaves[split:], whole=False), tree_hash(leaves[:split])]


LOG = GrowingLog()
FORK = GrowingLog(forked_at=2)
COSIGNER = Ed25519Cosigner(Ed25519Signer("witness.example/w1", ed25519(WITNESS_SEED)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "witness.sqlite"


@pytest.fixture
def witness(path: Path) -> Iterator[Witness]:
    with Witness.create(path, {ORIGIN: LOG.keys}, [COSIGNER]) as made:
        yield made


def reopened(path: Path, *cosigners: NoteSigner) -> Witness:
    return Witness.open(path, {ORIGIN: LOG.keys}, cosigners or (COSIGNER,))


def refused(witness: Witness, body: bytes) -> WitnessRefusalError:
    with pytest.raises(WitnessRefusalError) as caught:
        witness.add_checkpoint(body)
    return caught.value


def cosignatures(note: str, lines: str, *keys: VerifierKey) -> list[NoteSignature]:
    text, _ = parse_note(note)
    return [signature for _, signature in open_note(f"{text}\n{lines}", keys or (COSIGNER.key,)).verified]


# What is cosigned


def test_the_first_checkpoint_is_cosigned_and_the_cosignature_fits(witness: Witness) -> None:
    lines = witness.add_checkpoint(LOG.request(0, 5))
    assert lines.startswith("— witness.example/w1 ")
    assert lines.count("\n") == 1
    assert len(cosignatures(LOG.note(5), lines)) == 1
    assert witness.latest(ORIGIN) == CosignedTree(5, LOG.checkpoint(5).root, LOG.note(5))


@TIMES
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5).map(sorted))
def test_a_growing_log_is_followed_from_any_size_to_any_other(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    with Witness.create(tmp_path_factory.mktemp("w") / "w", {ORIGIN: LOG.keys}, [COSIGNER]) as witness:
        for old, size in zip([0, *sizes], sizes, strict=False):
            assert cosignatures(LOG.note(size), witness.add_checkpoint(LOG.request(old, size)))
            assert witness.latest(ORIGIN).size == size


def test_every_key_of_the_witness_cosigns_also_post_quantum_ones(path: Path) -> None:
    post_quantum = MlDsa44Cosigner("witness.example/w1", MLDSA44PrivateKey.generate(), clock=lambda: 1234)
    with Witness.create(path, {ORIGIN: LOG.keys}, [COSIGNER, post_quantum]) as witness:
        found = cosignatures(LOG.note(3), witness.add_checkpoint(LOG.request(0, 3)), COSIGNER.key, post_quantum.key)
    assert [signature.key_id for signature in found] == [COSIGNER.key.key_id, post_quantum.key.key_id]
    assert timestamp_of(found[1].signature) == 1234


def test_a_log_may_sign_post_quantum(path: Path) -> None:
    log = GrowingLog(signer=MlDsa44Cosigner(ORIGIN, MLDSA44PrivateKey.generate()))
    with Witness.create(path, {ORIGIN: log.keys}, [COSIGNER]) as witness:
        assert cosignatures(log.note(3), witness.add_checkpoint(log.request(0, 3)))
        # ML-DSA-44 leaves extension lines out, so anyone could have added this one, and the witness' Ed25519 key would sign it.
        unsigned_line = Checkpoint(ORIGIN, 3, log.checkpoint(3).root, ("added by someone",)).text + "\n" + log.note(3).split("\n\n")[1]
        assert refused(witness, WitnessRequest(3, (), unsigned_line).encode()).status == HTTPStatus.FORBIDDEN


def test_the_same_size_may_be_cosigned_again_for_a_newer_time(path: Path) -> None:
    now = iter([100, 200])
    cosigner = Ed25519Cosigner(Ed25519Signer("witness.example/w1", ed25519(WITNESS_SEED)), clock=lambda: next(now))
    with Witness.create(path, {ORIGIN: LOG.keys}, [cosigner]) as witness:
        answers = [witness.add_checkpoint(LOG.request(old, 5)) for old in (0, 5)]
    assert [timestamp_of(signature.signature) for lines in answers for signature in cosignatures(LOG.note(5), lines)] == [100, 200]


def test_an_empty_log_is_cosigned_and_may_grow(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 0))
    witness.add_checkpoint(LOG.request(0, 1))
    assert witness.latest(ORIGIN).size == 1


def test_logs_are_apart(path: Path) -> None:
    other = GrowingLog(origin="other.example/log")
    with Witness.create(path, {ORIGIN: LOG.keys, other.origin: other.keys}, [COSIGNER]) as witness:
        witness.add_checkpoint(LOG.request(0, 9))
        witness.add_checkpoint(other.request(0, 2))
        assert (witness.latest(ORIGIN).size, witness.latest(other.origin).size) == (9, 2)


def test_signatures_of_unknown_keys_are_ignored_and_sixteen_signatures_are_read(witness: Witness) -> None:
    others = [Ed25519Signer(f"someone.example/{number}", ed25519(bytes([number]) * 32)) for number in range(3, 19)]
    witness.add_checkpoint(WitnessRequest(0, (), LOG.checkpoint(3).sign([LOG.signer, *others[:15]])).encode())
    assert witness.latest(ORIGIN).note == LOG.note(3), "strangers' signatures are not kept"
    too_many = WitnessRequest(3, (), LOG.checkpoint(3).sign([LOG.signer, *others])).encode()
    assert refused(witness, too_many).status == HTTPStatus.BAD_REQUEST


def test_a_request_comes_as_a_file_too(witness: Witness, tmp_path: Path) -> None:
    file = tmp_path / "request"
    file.write_bytes(LOG.request(0, 5))
    assert cosignatures(LOG.note(5), cosign_file(witness, file))
    file.write_bytes(b"x" * (MAX_REQUEST_BYTES + 1))
    with pytest.raises(WitnessRefusalError, match="not read"):
        cosign_file(witness, file)
    with pytest.raises(AuditFormatError, match="cannot be read"):
        cosign_file(witness, tmp_path)


# What is refused (tlog-witness, add-checkpoint)


def test_an_unknown_log_is_not_found(witness: Witness) -> None:
    assert refused(witness, GrowingLog(origin="other.example/log").request(0, 5)).status == HTTPStatus.NOT_FOUND


def test_a_checkpoint_that_its_log_did_not_sign_is_forbidden(witness: Witness) -> None:
    stranger = GrowingLog(signer=Ed25519Signer(ORIGIN, ed25519(b"\x09" * 32)))
    assert refused(witness, stranger.request(0, 5)).status == HTTPStatus.FORBIDDEN
    moved = LOG.checkpoint(6).text + "\n" + LOG.note(5).split("\n\n")[1]
    assert refused(witness, WitnessRequest(0, (), moved).encode()).status == HTTPStatus.FORBIDDEN
    assert witness.evidence() == ()


def test_an_old_size_above_the_checkpoints_is_a_bad_request(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 6))
    assert refused(witness, WitnessRequest(6, (), LOG.note(5)).encode()).status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(("old", "size"), [(0, 5), (3, 5), (4, 6), (0, 3), (6, 8)])
def test_another_old_size_is_a_conflict_that_names_the_right_one(witness: Witness, old: int, size: int) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    refusal = refused(witness, LOG.request(old, size))
    assert (refusal.status, refusal.size) == (HTTPStatus.CONFLICT, 5)


def test_before_anything_was_cosigned_the_right_old_size_is_zero(witness: Witness) -> None:
    refusal = refused(witness, LOG.request(3, 5))
    assert (refusal.status, refusal.size) == (HTTPStatus.CONFLICT, 0)


def test_the_same_request_again_is_a_conflict(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    assert refused(witness, LOG.request(0, 5)).size == 5


def test_a_fork_of_the_same_size_is_a_conflict_without_a_size_to_try_again(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    refusal = refused(witness, FORK.request(5, 5))
    assert (refusal.status, refusal.size) == (HTTPStatus.CONFLICT, None)
    assert witness.latest(ORIGIN).root == LOG.checkpoint(5).root


def _requests_with_a_wrong_proof() -> dict[str, bytes]:
    right = LOG.proof(5, 9)
    proofs = {
        "missing": right[:-1],
        "none": [],
        "one more": [*right, right[0]],
        "turned": right[::-1],
        "changed": [bytes(32), *right[1:]],
        "another size's": LOG.proof(4, 9),
        "63 lines": [bytes(32)] * 63,
    }
    return {name: WitnessRequest(5, tuple(proof), LOG.note(9)).encode() for name, proof in proofs.items()} | {"a fork's": FORK.request(5, 9)}


@pytest.mark.parametrize("what", _requests_with_a_wrong_proof())
def test_a_proof_that_does_not_fit_is_unprocessable(witness: Witness, what: str) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    assert refused(witness, _requests_with_a_wrong_proof()[what]).status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert witness.latest(ORIGIN).size == 5


@pytest.mark.parametrize("old", [0, 5])
def test_a_proof_where_there_is_nothing_to_prove_is_unprocessable(witness: Witness, old: int) -> None:
    if old:
        witness.add_checkpoint(LOG.request(0, old))
    assert refused(witness, WitnessRequest(old, (bytes(32),), LOG.note(5)).encode()).status == HTTPStatus.UNPROCESSABLE_ENTITY


NOTE = LOG.note(5)
HASH = base64.b64encode(bytes(32)).decode()
MALFORMED = {
    "empty": b"",
    "a newline": b"\n",
    "no old size": f"\n\n{NOTE}".encode(),
    "no empty line": f"old 0\n{NOTE}".encode(),
    "no checkpoint": b"old 0\n\n",
    "no signatures": f"old 0\n\n{LOG.checkpoint(5).text}".encode(),
    "no last newline": f"old 0\n\n{NOTE[:-1]}".encode(),
    "old size missing": f"old \n\n{NOTE}".encode(),
    "old size with a leading zero": f"old 00\n\n{NOTE}".encode(),
    "old size negative": f"old -1\n\n{NOTE}".encode(),
    "old size with a sign": f"old +0\n\n{NOTE}".encode(),
    "old size in other digits": f"old ٠\n\n{NOTE}".encode(),
    "old size with two spaces": f"old  0\n\n{NOTE}".encode(),
    "old size with a space after": f"old 0 \n\n{NOTE}".encode(),
    "old size of 2**63": f"old {2**63}\n\n{NOTE}".encode(),
    "old size of many digits": f"old {'9' * 5000}\n\n{NOTE}".encode(),
    "another word": f"OLD 0\n\n{NOTE}".encode(),
    "CRLF": f"old 0\r\n\r\n{NOTE}".encode(),
    "64 proof lines": f"old 0\n{f'{HASH}{chr(10)}' * 64}\n{NOTE}".encode(),
    "a short hash": f"old 0\n{base64.b64encode(bytes(31)).decode()}\n\n{NOTE}".encode(),
    "a hash in hex": f"old 0\n{bytes(32).hex()}\n\n{NOTE}".encode(),
    "a second spelling of base64": f"old 0\n{HASH[:-2]}B=\n\n{NOTE}".encode(),
    "not UTF-8": f"old 0\n\n{NOTE}".encode().replace(b"ward", b"w\xffrd"),
    "a NUL": f"old 0\n\n{NOTE}".encode().replace(b"ward", b"w\0rd"),
    "a tree of 2**63": f"old 0\n\n{NOTE}".encode().replace(b"\n5\n", f"\n{2**63}\n".encode()),
    "a tree with a leading zero": f"old 0\n\n{NOTE}".encode().replace(b"\n5\n", b"\n05\n"),
    "a root of 31 bytes": f"old 0\n\n{ORIGIN}\n5\n{base64.b64encode(bytes(31)).decode()}\n\n{NOTE.splitlines()[-1]}\n".encode(),
    "an empty tree with another root": f"old 0\n\n{ORIGIN}\n0\n{HASH}\n\n{NOTE.splitlines()[-1]}\n".encode(),
    "huge": b"old 0\n\n" + b"a" * MAX_REQUEST_BYTES,
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_not_spelled_as_specified_is_a_bad_request(witness: Witness, what: str) -> None:
    assert refused(witness, MALFORMED[what]).status == HTTPStatus.BAD_REQUEST


def test_a_request_cut_short_anywhere_is_refused(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    whole = LOG.request(5, 9)
    assert {refused(witness, whole[:length]).status for length in range(len(whole))} == {HTTPStatus.BAD_REQUEST}
    witness.add_checkpoint(whole)


@TIMES
@given(data=st.data())
def test_an_altered_request_is_refused_or_is_the_same_checkpoint(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    body = bytearray(LOG.request(0, 5))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), min_size=1, max_size=3)):
        body[place] = value
    with Witness.create(tmp_path_factory.mktemp("w") / "w", {ORIGIN: LOG.keys}, [COSIGNER]) as witness, contextlib.suppress(WitnessRefusalError):
        witness.add_checkpoint(bytes(body))
        assert witness.latest(ORIGIN).root == LOG.checkpoint(5).root


@TIMES
@given(body=st.binary(max_size=300))
def test_any_bytes_are_a_bad_request(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    with Witness.create(tmp_path_factory.mktemp("w") / "w", {ORIGIN: LOG.keys}, [COSIGNER]) as witness:
        assert refused(witness, body).status == HTTPStatus.BAD_REQUEST


@given(old=st.integers(0, 2**63 - 1), proof=st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_a_request_reads_back_as_it_was_written(old: int, proof: list[bytes]) -> None:
    request = WitnessRequest(old, tuple(proof), NOTE)
    assert WitnessRequest.parse(request.encode()) == request


def test_no_refusal_repeats_what_was_sent(witness: Witness) -> None:
    log = GrowingLog(origin="canary.example", signer=Ed25519Signer("canary.example", ed25519(b"\x07" * 32)))
    requests = [log.request(0, 5), b"old canary\n\n" + log.note(1).encode(), b"canary", log.request(0, 5).replace(b"\n5\n", b"\ncanary\n")]
    assert not any("canary" in str(refused(witness, body)) for body in requests)


# Evidence


def test_a_fork_is_kept_as_two_notes_that_the_log_signed(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    refused(witness, FORK.request(5, 5))
    witness.add_checkpoint(LOG.request(5, 6))
    (evidence,) = witness.evidence()
    assert (evidence.kind, evidence.origin, evidence.size) == (EvidenceKind.FORK, ORIGIN, 5)
    shown, _ = Checkpoint.open(evidence.note, LOG.keys, ORIGIN)
    known, _ = Checkpoint.open(evidence.known_note or "", LOG.keys, ORIGIN)
    assert (shown.size, shown.root) == (evidence.size, evidence.root)
    assert shown.size == known.size
    assert shown.root != known.root


def test_a_fork_is_noticed_even_when_the_old_size_is_wrong(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    assert refused(witness, FORK.request(0, 5)).size == 5
    assert [evidence.kind for evidence in witness.evidence()] == [EvidenceKind.FORK]


def test_a_proof_that_did_not_fit_is_kept_as_less_than_proof(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    refused(witness, FORK.request(5, 9))
    assert [(evidence.kind, evidence.size) for evidence in witness.evidence()] == [(EvidenceKind.UNPROVEN, 9)]


def test_honest_mistakes_are_no_evidence(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    for body in (LOG.request(0, 5), LOG.request(0, 3), LOG.request(3, 8), WitnessRequest(5, (), LOG.note(4)).encode()):
        refused(witness, body)
    assert witness.evidence() == ()


def test_evidence_is_bounded_and_the_first_stays(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 1))
    for size in [2, 2, *range(3, MAX_EVIDENCE + 5)]:
        refused(witness, WitnessRequest(1, (bytes(32),) * 60, LOG.note(size)).encode())
    assert [evidence.size for evidence in witness.evidence()] == list(range(2, MAX_EVIDENCE + 2))


# The memory


def test_the_memory_outlives_the_process_and_only_its_owner_reads_it(path: Path, witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    witness.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with reopened(path) as again:
        assert refused(again, LOG.request(0, 9)).size == 5
        again.add_checkpoint(LOG.request(5, 9))


def test_a_memory_that_is_not_there_is_never_made_by_opening(path: Path) -> None:
    with pytest.raises(AuditSetupError, match="cannot be opened"):
        reopened(path)
    assert not path.exists()


def test_a_memory_is_never_made_twice(path: Path, witness: Witness) -> None:
    with pytest.raises(AuditSetupError, match="already"):
        Witness.create(path, {ORIGIN: LOG.keys}, [COSIGNER])
    with pytest.raises(AuditSetupError, match="cannot be made"):
        Witness.create(path / "below", {ORIGIN: LOG.keys}, [COSIGNER])


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look at" * 100])
def test_another_file_is_not_a_memory(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(AuditSetupError):
        reopened(path)


def test_another_database_is_not_a_memory(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE cosigned (origin, size, root, note)")
    with pytest.raises(AuditSetupError, match="not a witness' memory"):
        reopened(path)


def test_the_database_itself_refuses_to_go_back(path: Path, witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in ("UPDATE cosigned SET size = 4", f"UPDATE cosigned SET root = x'{'00' * 32}'", "DELETE FROM cosigned"):
            with pytest.raises(sqlite3.IntegrityError, match="cosigned tree"):
                database.execute(statement)


def test_while_another_holds_the_memory_nothing_is_cosigned(path: Path, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_module, "_BUSY_TIMEOUT_S", 0.05)
    with reopened(path) as waiting, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditUnavailableError, match="locked"):
            waiting.add_checkpoint(LOG.request(0, 5))
        holder.execute("ROLLBACK")
        waiting.add_checkpoint(LOG.request(0, 5))


def test_on_a_full_disk_nothing_is_cosigned_and_the_old_state_stays(witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 5))
    (pages,) = witness._database.execute("PRAGMA page_count").fetchone()
    witness._database.execute(f"PRAGMA max_page_count = {pages}")
    long_note = LOG.note(9, *["x" * 1000] * 40)
    with pytest.raises(AuditUnavailableError, match="full"):
        witness.add_checkpoint(WitnessRequest(5, tuple(LOG.proof(5, 9)), long_note).encode())
    assert witness.latest(ORIGIN).size == 5
    witness.add_checkpoint(LOG.request(5, 9))


def test_a_closed_witness_cosigns_nothing(witness: Witness) -> None:
    witness.close()
    with pytest.raises(AuditUnavailableError):
        witness.add_checkpoint(LOG.request(0, 5))


class WatchedCosigner:
    """Cosigns, and calls back at that moment."""

    key = COSIGNER.key

    def __init__(self, while_signing) -> None:
        self._while_signing = while_signing

    def sign(self, text: bytes) -> bytes:
        self._while_signing()
        return COSIGNER.sign(text)


def test_signing_and_remembering_are_one_transaction(path: Path) -> None:
    def another_writes() -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

    with Witness.create(path, {ORIGIN: LOG.keys}, [WatchedCosigner(another_writes)]) as witness, pytest.raises(AuditUnavailableError, match="locked"):
        witness.add_checkpoint(LOG.request(0, 5))


def test_when_signing_fails_nothing_is_remembered(path: Path) -> None:
    def fail() -> None:
        raise AuditUnavailableError("the device is gone")

    with Witness.create(path, {ORIGIN: LOG.keys}, [WatchedCosigner(fail)]) as witness:
        with pytest.raises(AuditUnavailableError, match="device"):
            witness.add_checkpoint(LOG.request(0, 5))
        assert witness.latest(ORIGIN) == CosignedTree()


# Racing and dying


def _answer(witness: Witness, body: bytes) -> HTTPStatus:
    try:
        witness.add_checkpoint(body)
    except WitnessRefusalError as refusal:
        return refusal.status
    return HTTPStatus.OK


@pytest.mark.parametrize("shared", [True, False])
def test_of_racing_threads_one_wins(path: Path, witness: Witness, shared: bool) -> None:
    threads = 8
    start = threading.Barrier(threads)

    def race(number: int) -> HTTPStatus:
        with contextlib.nullcontext(witness) if shared else reopened(path) as mine:
            start.wait()
            return _answer(mine, (LOG if number % 2 else FORK).request(0, 3 + number // 2))

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(race, range(threads)))
    assert sorted(answers) == [HTTPStatus.OK, *[HTTPStatus.CONFLICT] * (threads - 1)]


HEAD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from tests.audit.test_witness import COSIGNER, FORK, LOG, ORIGIN, WatchedCosigner, _answer, reopened
    path = Path(sys.argv[1])
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    """
)


def in_process(path: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HEAD + textwrap.dedent(code), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_racing_processes_one_wins_each_step_and_no_fork_gets_in(path: Path, witness: Witness) -> None:
    code = """
    log = (LOG, FORK)[{number} % 2]
    requests = [log.request(max(size - 1, 0), size) for size in range(2, 30)]
    requests[0] = log.request(0, 2)
    print("ready", flush=True)
    sys.stdin.readline()
    with reopened(path) as mine:
        for size, body in enumerate(requests, 2):
            if _answer(mine, body) == 200:
                print(log.checkpoint(size).root.hex(), size)
    """
    racers = [in_process(path, code.format(number=number)) for number in range(3)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 3
    outputs = [racer.communicate("go\n", timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    won = sorted(int(line.split()[1]) for output in outputs for line in output.splitlines())
    assert won == sorted(set(won)), "two racers got a cosignature for the same step"
    roots = {int(size): root for output in outputs for root, size in map(str.split, output.splitlines())}
    # FORK parts from LOG at record 2: size 2 is common, and whoever took the next step decided for all.
    assert any(all(log.checkpoint(size).root.hex() == root for size, root in roots.items()) for log in (LOG, FORK))
    assert witness.latest(ORIGIN).size == max(won)


def _killed(path: Path, code: str) -> None:
    with in_process(path, code) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_killed_before_it_is_on_disk_nothing_was_cosigned(path: Path, witness: Witness) -> None:
    witness.add_checkpoint(LOG.request(0, 3))
    _killed(path, "reopened(path, WatchedCosigner(die)).add_checkpoint(LOG.request(3, 5))")
    with reopened(path) as again:
        assert again.latest(ORIGIN).size == 3
        again.add_checkpoint(LOG.request(3, 4))


def test_killed_between_disk_and_reply_the_witness_never_goes_back(path: Path, witness: Witness) -> None:
    _killed(path, "mine = reopened(path); mine.add_checkpoint(LOG.request(0, 5)); die()")
    with reopened(path) as again:
        assert refused(again, LOG.request(0, 4)).size == 5, "a smaller tree"
        assert refused(again, FORK.request(5, 5)).status == HTTPStatus.CONFLICT
        assert refused(again, FORK.request(5, 9)).status == HTTPStatus.UNPROCESSABLE_ENTITY
        assert cosignatures(LOG.note(9), again.add_checkpoint(LOG.request(5, 9)))


def test_killed_at_any_moment_it_remembers_all_that_it_told(path: Path, witness: Witness) -> None:
    code = """
    with reopened(path) as mine:
        size = mine.latest(ORIGIN).size
        while True:
            mine.add_checkpoint(LOG.request(size, size + 1))
            size += 1
            print(size, flush=True)
    """
    for answers_before_death in (1, 3, 7):
        with in_process(path, code) as process:
            told = [int(process.stdout.readline()) for _ in range(answers_before_death)]
            process.kill()
            told += [int(line) for line in process.stdout.read().splitlines()]
        with reopened(path) as again:
            assert again.latest(ORIGIN).size in {told[-1], told[-1] + 1}


@TIMES
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.one_of(st.none(), st.integers(0, 12))), max_size=12))
def test_whatever_is_asked_all_cosigned_trees_are_of_one_history(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int | None]]
) -> None:
    """Two histories ask in any order, with the right old size (None) or any other; what is cosigned is always one growing tree."""
    cosigned: list[tuple[int, bytes]] = []
    with Witness.create(tmp_path_factory.mktemp("w") / "w", {ORIGIN: LOG.keys}, [COSIGNER]) as witness:
        for forged, size, asked in steps:
            log = FORK if forged else LOG
            known = witness.latest(ORIGIN).size
            old = known if asked is None else asked
            with contextlib.suppress(WitnessRefusalError):
                witness.add_checkpoint(log.request(old, size))
                cosigned.append((size, log.checkpoint(size).root))
                assert old == known
    assert [size for size, _ in cosigned] == sorted(size for size, _ in cosigned)
    assert any(all(log.checkpoint(size).root == root for size, root in cosigned) for log in (LOG, FORK))


# Setting up


def test_logs_are_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "logs.toml"
    file.write_text(f'[[log]]\norigin = "{ORIGIN}"\nkeys = ["{LOG.signer.key}"]\n', encoding="utf-8")
    assert load_logs(file) == {ORIGIN: LOG.keys}


_ENTRY = f'[[log]]\norigin = "{ORIGIN}"\nkeys = ["{LOG.signer.key}"]\n'
_BAD_LOGS = {
    "": r"\[\[log\]\]",
    "[[log": "TOML",
    _ENTRY + _ENTRY: "twice",
    _ENTRY + "note = 1\n": r"log\.0\.note",
    "unknown = 1\n" + _ENTRY: "see unknown",
    f'[[log]]\norigin = "{ORIGIN}"\nkeys = []\n': r"log\.0\.keys",
    f'[[log]]\norigin = "{ORIGIN}"\nkeys = ["canary"]\n': "a key that is none",
    f'[[log]]\norigin = ""\nkeys = ["{LOG.signer.key}"]\n': r"log\.0\.origin",
    "#" * 1_100_000: "too long",
}


@pytest.mark.parametrize("content", _BAD_LOGS)
def test_a_file_of_logs_that_does_not_fit_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "logs.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(AuditSetupError, match=_BAD_LOGS[content]) as caught:
        load_logs(file)
    assert "canary" not in str(caught.value)


def test_a_file_of_logs_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditSetupError, match="cannot be read"):
        load_logs(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(AuditSetupError, match="TOML"):
        load_logs(tmp_path / "latin.toml")


def test_a_witness_needs_keys_that_can_do_their_part(path: Path, witness: Witness) -> None:
    with pytest.raises(AuditSetupError, match="at least one key"):
        Witness.open(path, {ORIGIN: ()}, [COSIGNER])
    with pytest.raises(AuditSetupError, match="at least one key"):
        Witness.open(path, {ORIGIN: LOG.keys}, [])
    with pytest.raises(AuditSetupError, match="type 4 or 6"):
        Witness.open(path, {ORIGIN: LOG.keys}, [LOG.signer])
    with pytest.raises(AuditSetupError, match="is its origin"):
        Witness.open(path, {"other.example": LOG.keys}, [COSIGNER])
    with pytest.raises(AuditSetupError, match="twice"):
        Witness.open(path, {ORIGIN: LOG.keys * 2}, [COSIGNER])
    with pytest.raises(AuditSetupError, match="255"):
        Witness.open(path, {"x" * 256: LOG.keys}, [COSIGNER])
    with pytest.raises(AuditSetupError, match="type 4 or 6"):
        Witness.create(path.with_name("new"), {ORIGIN: LOG.keys}, [LOG.signer])
    assert not path.with_name("new").exists()


def test_a_refusal_is_an_error_of_the_audit_trail() -> None:
    assert issubclass(WitnessRefusalError, WitnessError)
