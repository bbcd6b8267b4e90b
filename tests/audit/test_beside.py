"""What is written beside the records, in tables of other rooms, in one transaction with them; and what becomes of it when a person is erased."""

import threading
from contextlib import closing

import pytest

from clinical_ser.audit import erasing
from clinical_ser.audit.erasing import erase
from clinical_ser.audit.events import Actor, Role
from clinical_ser.audit.log import Entry
from clinical_ser.errors import AuditConflictError, AuditFormatError, AuditUnavailableError
from tests.audit.log_maker import append, database_file, make_log, payload_of, verify

TABLE = "CREATE TABLE IF NOT EXISTS screenings (id TEXT PRIMARY KEY, subject {blob}, record {integer}, data {blob})"
INSERT = "INSERT INTO screenings VALUES (?, ?, ?, ?)"
WHY = {"reason": "asked", "basis": "GDPR Art. 17(1)", "actor": Actor(id="officer", role=Role.COMPLIANCE)}


@pytest.fixture
def site(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log, log.exclusively() as inside:
        inside.database.create_table(TABLE)
        inside.database.create_table("CREATE INDEX IF NOT EXISTS screenings_subject ON screenings (subject)")
        inside.database.create_table(TABLE)
    return site


def kept(name):
    """Return what keeps a screening of this name, sealed, and says what it was called with."""
    return lambda key, receipts: [(INSERT, [(name, key.id, receipts[-1].index, key.seal(name, b"", b"result of " + name.encode()))])]


def rows(site):
    with closing(site.connect()) as database:
        return [row[0] for row in database.query("SELECT id FROM screenings ORDER BY id")]


def entries(*names, subject="A"):
    return [Entry(payload_of(name), subject) for name in names]


def test_a_row_is_there_exactly_when_its_record_is(site):
    with site.write() as log:
        log.record(entries("one"), also=kept("one"))
        [_, last] = log.record([Entry(payload_of("two"), "B"), *entries("three")], also=kept("three"))
        with pytest.raises(AuditFormatError):
            log.record([], also=kept("none"))
        lookup = log.lookup("a name")
    with closing(site.connect()) as database, closing(site.open_vault()) as vault:
        found = database.query("SELECT subject, record, data FROM screenings WHERE id = 'three'")
        key = vault.find("A")
        assert found == [(key.id, last.index, found[0][2])]
        assert b"".join(key.open("three", found[0][2])) == b"result of three"
        assert vault.lookup("a name") == lookup
    assert rows(site) == ["one", "three"]
    assert verify(site).opened == 3


def test_a_request_that_comes_again_writes_no_second_row(site):
    called = []

    def counted(key, receipts):
        called.append(receipts)
        return kept("one")(key, receipts)

    with site.write() as log:
        first = log.record(entries("one"), idempotency_key="k", also=counted)
        again = log.record(entries("one"), idempotency_key="k", also=counted)
        assert [receipt.index for receipt in again] == [receipt.index for receipt in first]
        with pytest.raises(AuditConflictError):
            log.record(entries("two"), idempotency_key="k", also=counted)
    assert called == [first]


def test_a_row_that_cannot_be_made_refuses_its_own_request_alone(site):
    def full(*_):
        raise AuditConflictError("too many screenings wait")

    with site.write() as log:
        # In one commit, between two others, one of which repeats the key of the one that is refused.
        whose = [("a", "first", kept("a")), ("b", "again", full), ("c", "again", kept("c"))]
        requests = [log._request(entries(name, name + "'"), key, also) for name, key, also in whose]
        with log._alone():
            log._commit(requests)
        assert [type(request.error) for request in requests] == [type(None), AuditConflictError, type(None)]
        assert [[receipt.index for receipt in request.receipts or ()] for request in requests] == [[0, 1], [], [2, 3]]
        assert append(log, "after").index == 4
    assert rows(site) == ["a", "c"]
    assert verify(site).opened == 5


def test_what_the_database_refuses_is_recorded_for_nobody_and_the_log_goes_on(site):
    with site.write() as log:
        log.record(entries("one"), also=kept("one"))
        with pytest.raises(AuditUnavailableError):
            log.record(entries("two"), also=kept("one"))
        assert append(log, "three").index == 1
    assert rows(site) == ["one"]
    verify(site)


def test_a_change_without_a_record_is_durable_and_leaves_the_log_as_it_was(site):
    with site.write() as log:
        log.record(entries("one"), also=kept("one"))
        before = (log.size, log.checkpoint)
        log.change([("UPDATE screenings SET data = ? WHERE id = ?", [(b"new", "one")]), (INSERT, [("two", b"s", 9, b""), ("three", b"s", 9, b"")])])
        log.change([])
        assert (log.size, log.checkpoint) == before
        # What another process sees is what was committed.
        assert rows(site) == ["one", "three", "two"]
        with pytest.raises(AuditUnavailableError):
            log.change([(INSERT, [("four", b"s", 9, b""), ("one", b"s", 9, b"")])])
        assert append(log, "after").index == 1
    assert rows(site) == ["one", "three", "two"]
    assert verify(site).size == 2


def test_changes_and_records_share_commits(site):
    with site.write() as log:
        commits = []
        write = log._write
        log._write = lambda batch: (commits.append((len(batch.leaves), len(batch.beside))), write(batch))

        def work(number):
            for at in range(10):
                name = f"{number}/{at}"
                if number % 2:
                    log.change([(INSERT, [(name, b"s", 0, b"")])])
                else:
                    log.record(entries(name), also=kept(name))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.size == 40
        assert sum(beside for _, beside in commits) == 80
        assert len(commits) < 80
        assert any(leaves and beside > leaves for leaves, beside in commits)
    assert len(rows(site)) == 80
    verify(site)


def test_exclusively_a_row_is_written_with_its_record_too(site):
    with site.write() as log, log.exclusively() as inside:
        [receipt] = inside.record(entries("one"), "key", also=kept("one"))
        assert inside.record(entries("one"), "key", also=kept("one")) == [type(receipt)(receipt.index, receipt.event_id, receipt.time, repeated=True)]
    assert rows(site) == ["one"]


def test_an_erased_person_is_erased_from_other_tables_too(site):
    with site.write() as log:
        for name, subject in (("one", "A"), ("two", "B"), ("three", "A")):
            log.record(entries(name, subject=subject), also=kept(name))
        with closing(site.connect()) as database:
            sealed = [data for (data,) in database.query("SELECT data FROM screenings WHERE id <> 'two'")]
        assert all(data in (database_file(site).read_bytes() + wal(site)) for data in sealed)
        erase(log, "A", **WHY)
        assert rows(site) == ["two"]
        left = database_file(site).read_bytes() + wal(site)
        assert [data in left for data in sealed] == [False, False]
    found = verify(site)
    assert (found.erased, found.opened, found.unfinished) == (2, 2, 0)


def wal(site):
    path = database_file(site).with_name(database_file(site).name + "-wal")
    return path.read_bytes() if path.exists() else b""


def test_an_erasure_that_was_interrupted_before_the_rows_were_deleted_deletes_them_when_asked_again(site, monkeypatch):
    class CutError(RuntimeError):
        pass

    def cut(*_):
        raise CutError

    with site.write() as log:
        log.record(entries("one"), also=kept("one"))
        with monkeypatch.context() as patched:
            patched.setattr(erasing, "_without_digest", cut)
            with pytest.raises(CutError):
                erase(log, "A", **WHY)
        # The key is destroyed; the transaction in which everything else goes was rolled back.
        assert rows(site) == ["one"]
        erase(log, "A", **WHY)
        assert rows(site) == []
    assert verify(site).unfinished == 0


def test_a_log_without_such_a_table_is_erased_from_as_ever(tmp_path):
    site = make_log(tmp_path, records=3, subjects=1)
    with site.write() as log:
        assert len(erase(log, "subject 0", **WHY).records) == 3
        with log.exclusively() as inside:
            assert not inside.database.has_table("screenings")
            assert inside.database.has_table("sealed")
    verify(site)
