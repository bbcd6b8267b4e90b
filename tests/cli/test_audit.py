"""`clinical-ser audit` as people type it, with a real model and a real recording."""

import json
import re
import subprocess
import sys
import threading
from datetime import date

import numpy as np
import pytest
import soundfile

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import RECORD
from clinical_ser.audit.exports import __name__ as exports_name
from clinical_ser.audit.witness import open_witness
from clinical_ser.audit.witness_http import listener, witness_app, witness_server
from clinical_ser.errors import AuditTamperedError
from clinical_ser.screening.result import ScreeningResult


@pytest.fixture
def site(run):
    done = run("audit", "init", "--origin", "clinic.example/screening")
    assert done.code == 0, done.err
    return LogConfiguration.load(LogConfiguration.default_path())


@pytest.fixture
def key(site):
    return str(site.load_keys().active[0])


@pytest.fixture
def answered(run, site, bundle, speech_wav, tmp_path):
    done = run("screen", speech_wav, "--model", bundle, "--subject", "MRN-1", "--sex", "female", "--json")
    assert done.code == 0, done.err
    path = tmp_path / "answer.json"
    path.write_text(done.out, encoding="utf-8")
    return path, ScreeningResult.model_validate_json(done.out)


def sizes(site):
    with site.read() as log:
        return log.size


def another(result, folder):
    """Another visit's result."""
    path = folder / "earlier.json"
    path.write_text(result.model_copy(update={"recording": result.recording.model_copy(update={"sha256": "e" * 64})}).model_dump_json())
    return path


def kinds(site):
    with site.read() as log:
        return [record.event.kind for record in log.records()]


def test_a_site_has_one_log(run, site):
    done = run("audit", "init", "--origin", "clinic.example/another")
    assert done.code == 1
    assert "already" in done.err


@pytest.mark.parametrize("command", [["list"], ["verify"], ["checkpoint"], ["keys", "list"], ["export", "--format", "csv", "-o", "x"]])
def test_without_a_log_the_commands_say_how_to_make_one(run, command):
    done = run("audit", *command)
    assert done.code == 1
    assert "audit init" in done.err


def test_what_was_answered_is_listed_verified_and_proved(run, answered, key, tmp_path):
    path, result = answered
    lines = [json.loads(line) for line in run("audit", "list", "--json").out.splitlines()]
    assert [line["leaf"]["kind"] for line in lines] == ["model", "inference"]
    assert lines[1]["payload"]["result"] == result.digest
    shown = run("audit", "verify", path)
    assert shown.code == 0, shown.err
    assert "In order" in shown.out
    assert RECORD + result.digest in shown.out
    assert json.loads(run("audit", "verify", RECORD + result.digest, "--json").out)["records"][0]["index"] == 1
    done = run("audit", "prove", path, "-o", tmp_path / "p.tlog-proof")
    assert done.code == 0, done.err
    assert json.loads(run("audit", "check", tmp_path / "p.tlog-proof", "--key", key, "--json").out)["index"] == 1


def test_a_result_that_was_changed_is_not_in_the_log(run, answered, tmp_path):
    path, result = answered
    other = tmp_path / "other.json"
    other.write_text(result.model_copy(update={"summary": "All is well."}).model_dump_json(), encoding="utf-8")
    assert run("audit", "verify", path).code == 0
    done = run("audit", "verify", other)
    assert done.code == 1
    assert "Not in this log" in done.out
    assert "In the audit log of this site" in run("explain", path).out
    assert "nothing vouches" in run("explain", other).out


def test_a_changed_leaf_or_proof_is_refused(run, answered, key, tmp_path):
    path, _ = answered
    proof = tmp_path / "p.tlog-proof"
    run("audit", "prove", path, "-o", proof)
    leaf = tmp_path / "p.leaf.json"
    leaf.write_bytes(leaf.read_bytes().replace(b'"outcome":"success"', b'"outcome":"refused"'))
    done = run("audit", "check", proof, "--key", key)
    assert done.code == 1
    assert "not record 1" in done.err
    for text in ("", "c2sp.org/tlog-proof@v1\n", "\x00"):
        proof.write_text(text)
        assert run("audit", "check", proof, "--key", key, "--leaf", leaf).code == 1
    assert run("audit", "check", tmp_path / "none", "--key", key).code == 1
    assert run("audit", "check", proof, "--key", "no key").code == 1


@pytest.mark.parametrize("what", ["-5", "99", "clinical-ser:result:" + "0" * 64])
def test_what_is_not_in_the_log_cannot_be_proved(run, answered, tmp_path, what):
    assert run("audit", "prove", "-o", tmp_path / "p", "--", what).code in {1, 2}
    assert not (tmp_path / "p").exists()


def test_reports_and_explanations_are_recorded_before_they_are_written(run, site, answered, tmp_path):
    path, result = answered
    assert run("report", path, "-o", tmp_path / "r.html").code == 0
    assert run("explain", path, "-o", tmp_path / "e.svg").code == 0
    assert run("explain", path).code == 0
    assert run("compare", another(result, tmp_path), path).code == 0
    lines = tmp_path / "many.jsonl"
    lines.write_text(json.dumps({"position": 1, "result": result.model_dump(mode="json")}) + "\n")
    assert run("report", lines, "-o", tmp_path / "many").code == 0
    with site.read() as log:
        done = [(record.payload.action, record.payload.form) for record in log.records(2)]
        # The earlier visit was answered elsewhere.
        assert log.named("MRN-1") == [1, 2, 3, 4, 6, 7]
    assert done == [
        ("exported", "html"),
        ("exported", "svg"),
        ("viewed", "terminal"),
        ("viewed", "terminal"),
        ("viewed", "terminal"),
        ("exported", "pdf"),
    ]


def test_what_cannot_be_recorded_is_neither_shown_nor_written(run, site, bundle, speech_wav, answered, tmp_path, monkeypatch):
    path, result = answered
    monkeypatch.setattr("clinical_ser.audit.answering._WAIT_S", 0.05)
    with site.write():
        for words in (
            ("screen", speech_wav, "--model", bundle, "--report", tmp_path / "x.html"),
            ("screen", speech_wav, "--model", bundle, "--json"),
            ("explain", speech_wav, "--model", bundle, "-o", tmp_path / "x.svg"),
            ("report", path, "-o", tmp_path / "x.pdf"),
            ("compare", another(result, tmp_path), path, "--report", tmp_path / "x.html"),
        ):
            done = run(*words)
            assert done.code == 1, words
            assert "robabilit" not in done.out
            assert "one writer at a time" in done.err + done.out
    assert list(tmp_path.glob("x.*")) == []
    assert sizes(site) == 2


def test_a_record_is_found_however_it_was_copied(run, answered):
    _, result = answered
    record = RECORD + result.digest
    spaced = "\u200b".join(record[at : at + 9] for at in range(0, len(record), 9)) + "\n "
    for typed in (record, spaced, record.upper(), result.digest, result.digest.upper()):
        assert run("audit", "verify", typed).code == 0, typed
        assert run("audit", "list", "--about", typed, "--json").out.count("\n") >= 1
    for typed in (RECORD + "36e4", record[:-1], record + "0"):
        for words in (("verify", typed), ("list", "--about", typed), ("prove", typed, "-o", "x")):
            assert run("audit", *words).code == 2, words


def test_a_review_under_a_mistyped_name_is_refused_and_takes_no_answer_along(run, site, bundle, speech_wav, answered):
    _, result = answered
    done = run("audit", "review", RECORD + result.digest, "--decision", "agreed", "--reason", "r", "--subject", "MRN-TYPO")
    assert done.code == 1
    with site.read() as log:
        assert log.named("MRN-TYPO") == []


def test_an_answer_for_nobody_is_reviewed_for_nobody(run, site, bundle, speech_wav, tmp_path):
    told = ScreeningResult.model_validate_json(run("screen", speech_wav, "--model", bundle, "--json").out)
    words = ("audit", "review", RECORD + told.digest, "--decision", "agreed", "--reason", "r")
    assert run(*words, "--subject", "MRN-118").code == 1
    assert run(*words).code == 0
    assert run("audit", "erase", "--subject", "MRN-118", "--reason", "x", "--yes").code == 1
    assert json.loads(run("audit", "verify", "--json").out)["erased"] == 0


def test_an_answer_that_was_given_twice_is_proved_by_its_index(run, site, bundle, speech_wav, answered, tmp_path):
    path, _ = answered
    run("screen", speech_wav, "--model", bundle, "--subject", "MRN-2", "--sex", "female", "--json")
    done = run("audit", "prove", path, "-o", tmp_path / "p.tlog-proof")
    assert done.code == 2
    assert "1, 2" in done.err
    assert run("audit", "prove", "2", "-o", tmp_path / "p.tlog-proof").code == 0


def test_the_log_s_own_key_is_no_witness(run, answered, key, tmp_path):
    run("audit", "prove", "1", "-o", tmp_path / "p.tlog-proof")
    assert run("audit", "check", tmp_path / "p.tlog-proof", "--key", key + " ", "--witness", key).code == 2
    assert run("audit", "check", tmp_path / "p.tlog-proof", "--key", key + " ").code == 0


def test_nothing_is_published_into_a_folder_of_other_files(run, answered, tmp_path):
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "jane.wav").write_bytes(b"RIFF")
    done = run("audit", "publish", tmp_path / "recordings")
    assert done.code == 1
    assert [path.name for path in (tmp_path / "recordings").iterdir()] == ["jane.wav"]


def test_doctor_looks_whether_the_log_was_put_back(run, site, answered, tmp_path):
    from pathlib import Path

    database = Path(site.database.removeprefix("sqlite:"))
    old = database.read_bytes()
    run("audit", "notice", "MRN-1", "--version", "1")
    assert "audit log" in run("doctor").out
    database.write_bytes(old)
    checks = [json.loads(line) for line in run("doctor", "--json").out.splitlines()]
    [found] = [check for check in checks if check["what"] == "audit log"]
    assert not found["ok"]
    assert "older copy" in found["finding"]


def test_a_subject_is_one_person(run, site, bundle, speech_wav):
    done = run("screen", speech_wav, speech_wav, "--model", bundle, "--subject", "MRN-1")
    assert done.code == 2
    assert "--subject" in done.err


def test_reviews_disclosures_and_notices_are_recorded_with_the_answer_s_person(run, site, answered):
    _, result = answered
    record = RECORD + result.digest
    assert run("audit", "review", record, "--decision", "overridden", "--reason", "r", "--name", "Dr A", "--actor", "dr-a").code == 0
    assert run("audit", "disclose", record, "--recipient", "Court", "--description", "summary", "--purpose", "order", "--use", "HLEGAL").code == 0
    assert run("audit", "notice", "MRN-1", "--version", "2026-08").code == 0
    assert run("audit", "amend", record, "--supersedes", "1", "--reason", "typing error").code == 0
    assert kinds(site)[2:] == ["review", "disclosure", "notice", "report"]
    with site.read() as log:
        assert log.named("MRN-1") == [1, 2, 3, 4, 5]
        assert log.record(2).payload.signature.name == "Dr A"
        assert log.record(2).event.flags == ("risk_signal",)
        assert log.record(5).event.supersedes == 1
    assert "overridden" in run("audit", "list", "--flagged").out


@pytest.mark.parametrize("record", ["MRN-1", "clinical-ser:result:xyz", RECORD + "0" * 64])
def test_what_is_about_no_answer_of_this_log_is_not_recorded(run, site, answered, record):
    done = run("audit", "review", record, "--decision", "agreed", "--reason", "r")
    assert done.code in {1, 2}
    assert "MRN" not in done.err
    assert sizes(site) == 2


def test_amending_names_a_record_of_the_same_answer(run, site, answered):
    _, result = answered
    done = run("audit", "amend", RECORD + result.digest, "--supersedes", "0", "--reason", "r")
    assert done.code == 2
    assert sizes(site) == 2


def test_a_person_is_erased_unless_a_hold_forbids_it(run, site, answered):
    why = ("--reason", "asked", "--yes")
    assert run("audit", "hold", "MRN-1", "--reason", "claim", "--authority", "court").code == 0
    refused = run("audit", "erase", "--subject", "MRN-1", *why)
    assert refused.code == 1
    assert "legal hold" in refused.err
    with site.read() as log:
        assert [log.record(index).event.kind for index in log.named("MRN-1")][-1] == "erasure", "who asks is told what was refused"
    assert run("audit", "release", "MRN-1", "--reason", "settled", "--authority", "court").code == 0
    done = run("audit", "erase", "--subject", "MRN-1", *why)
    assert done.code == 0, done.err
    assert "4 records (1-4)" in done.out
    found = json.loads(run("audit", "verify", "--json").out)
    assert (found["erased"], found["unfinished_erasures"]) == (4, 0)
    again = run("audit", "erase", "--subject", "MRN-1", *why)
    assert again.code == 1
    assert "nothing of this subject" in again.out


def test_erasing_asks_first(run, site, answered, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert run("audit", "erase", "--subject", "MRN-1", "--reason", "asked").code == 1
    assert sizes(site) == 2


def test_holding_nobody_is_refused(run, site):
    done = run("audit", "hold", "MRN-CANARY", "--reason", "claim", "--authority", "court")
    assert done.code == 1
    assert "CANARY" not in done.err


FORMS = {
    "jsonl": [],
    "csv": ["--payloads"],
    "fhir": [],
    "accounting": ["--subject", "MRN-1"],
    "access": ["--subject", "MRN-1"],
    "ai-act": [],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_export_is_made_recorded_and_verified(run, site, answered, key, form, tmp_path):
    _, result = answered
    run("audit", "disclose", RECORD + result.digest, "--recipient", "Court", "--description", "summary", "--purpose", "order", "--use", "HLEGAL")
    done = run("audit", "export", "--format", form, "-o", tmp_path / "out", *FORMS[form])
    assert done.code == 0, done.err
    assert kinds(site)[-1] == "audit_export"
    with site.read() as log:
        recorded = log.record(log.size - 1).payload.digest
    checked = run("audit", "verify-export", tmp_path / "out", "--key", key, "--json")
    assert checked.code == 0, checked.err
    assert json.loads(checked.out)["digest"] == recorded
    assert run("audit", "verify-export", tmp_path / "out", "--key", key, "--with-log").code == 0
    victim = max((path for path in (tmp_path / "out").iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    content = victim.read_bytes()
    victim.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert run("audit", "verify-export", tmp_path / "out", "--key", key).code == 1


def test_looking_at_what_is_held_of_a_person_is_recorded_with_that_person(run, site, answered):
    _, result = answered
    run("audit", "list")
    run("audit", "list", "--about", "MRN-1")
    run("audit", "verify", RECORD + result.digest)
    run("audit", "list", "--about", "nobody")
    with site.read() as log:
        looks = [(record.index, record.payload.form, record.payload.first, record.payload.last) for record in log.records(2)]
        assert log.named("MRN-1") == [1, 3, 4]
    assert looks == [(2, "list", 0, 1), (3, "list", 1, 1), (4, "list", 1, 1)]


def test_an_export_that_cannot_be_recorded_is_not_handed_out(run, site, answered, tmp_path, monkeypatch):
    monkeypatch.setattr("clinical_ser.audit.answering._WAIT_S", 0.05)
    with site.write():
        done = run("audit", "export", "--format", "csv", "-o", tmp_path / "out")
    assert done.code == 1
    assert list(tmp_path.glob("*out*")) == []
    assert list(tmp_path.glob(".*out*")) == []


def test_processing_and_evidence_are_exported(run, site, answered, bundle, key, tmp_path):
    blank = run("audit", "template").out
    assert run("audit", "export", "--format", "processing", "--site", tmp_path / "none.toml", "-o", tmp_path / "ropa").code == 2
    filled = re.sub(r'""', '"filled in"', blank)
    (tmp_path / "site.toml").write_text(filled, encoding="utf-8")
    done = run("audit", "export", "--format", "processing", "--site", tmp_path / "site.toml", "-o", tmp_path / "ropa")
    assert done.code == 0, done.err
    done = run("audit", "export", "--format", "evidence-pack", "--model", bundle, "-o", tmp_path / "pack")
    assert done.code == 0, done.err
    for name in ("ropa", "pack"):
        assert run("audit", "verify-export", tmp_path / name, "--key", key).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "accounting"],
        ["--format", "csv", "--staff"],
        ["--format", "ai-act", "--subject", "MRN-1"],
        ["--format", "csv", "--kind", "unheard_of"],
        ["--format", "evidence-pack"],
        ["--format", "processing"],
        ["--format", "jsonl", "--since", "2999-01-01"],
    ],
)
def test_options_that_a_form_does_not_take_are_refused_and_nothing_is_written(run, site, answered, words, tmp_path):
    done = run("audit", "export", "-o", tmp_path / "out", *words)
    assert done.code in {1, 2}
    assert not (tmp_path / "out").exists()
    assert sizes(site) == 2


def test_days_bound_an_export(run, site, answered, tmp_path):
    today = date.today().isoformat()
    done = run("audit", "export", "--format", "csv", "--since", "2020-01-01", "--until", "2999-01-01", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert run("audit", "export", "--format", "csv", "--until", "2020-01-01", "-o", tmp_path / "none").code == 1
    assert today >= "2020-01-01"


def test_a_published_log_is_verified_by_a_stranger(run, site, answered, key, tmp_path):
    assert run("audit", "publish", tmp_path / "www").code == 0
    home = tmp_path / "stranger"
    done = subprocess.run(
        [sys.executable, "-m", "clinical_ser", "audit", "verify-published", tmp_path / "www", "--key", key, "--json"],
        env={"CLINICAL_SER_HOME": str(home), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == 2
    (tmp_path / "www/tile/entries/000.p/2").write_bytes(b"")
    assert run("audit", "verify-published", tmp_path / "www", "--key", key).code == 1


def test_a_log_that_was_put_back_is_noticed_against_a_kept_checkpoint(run, site, answered, tmp_path):
    from pathlib import Path

    database = Path(site.database.removeprefix("sqlite:"))
    old = database.read_bytes()
    path, _ = answered
    run("report", path, "-o", tmp_path / "r.html")
    assert run("audit", "checkpoint", "-o", tmp_path / "kept").code == 0
    database.write_bytes(old)
    site.pin.unlink()
    assert run("audit", "verify").code == 0
    assert "no checkpoint kept outside" in run("audit", "verify").out
    done = run("audit", "verify", "--checkpoint", tmp_path / "kept")
    assert done.code == 1
    assert "older copy" in done.err


def test_a_rotated_key_s_checkpoints_still_verify(run, site, answered, key, tmp_path):
    path, _ = answered
    run("audit", "checkpoint", "-o", tmp_path / "before")
    run("audit", "prove", path, "-o", tmp_path / "p.tlog-proof")
    assert run("audit", "keys", "rotate").code == 0
    assert kinds(site)[-2:] == ["configuration", "configuration"]
    assert run("audit", "verify", "--checkpoint", tmp_path / "before").code == 0
    assert run("audit", "check", tmp_path / "p.tlog-proof", "--key", key).code == 0
    keys = json.loads(run("audit", "keys", "list", "--json").out)
    assert [each["state"] for each in keys] == ["retired", "active"]
    run("audit", "prove", path, "-o", tmp_path / "q.tlog-proof")
    assert run("audit", "check", tmp_path / "q.tlog-proof", "--key", key).code == 1
    new = next(each["vkey"] for each in keys if each["state"] == "active")
    assert run("audit", "check", tmp_path / "q.tlog-proof", "--key", new).code == 0
    assert run("audit", "keys", "retire", new.split("+")[1]).code == 1


def test_a_witness_cosigns_over_http_and_by_file(run, site, answered, key, tmp_path):
    (tmp_path / "logs.toml").write_text(f'[[log]]\norigin = "clinic.example/screening"\nkeys = ["{key}"]\n')
    made = run("audit", "witness", "init", tmp_path / "witness", "--name", "witness.example/w", "--logs", tmp_path / "logs.toml")
    assert made.code == 0, made.err
    witness_key = made.out.strip().splitlines()[-1]
    witness = open_witness(tmp_path / "witness")
    server = witness_server(witness_app(witness), "127.0.0.1")
    with listener("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            for _ in range(2):
                done = run("audit", "witness", "ask", url, "--key", witness_key)
                assert done.code == 0, done.err
                assert "Cosigned by witness.example/w" in done.out
                run("audit", "notice", "MRN-1", "--version", "1")
        finally:
            server.should_exit = True
            thread.join()
    witness.close()
    assert run("audit", "witness", "request", "--old-size", "3", "-o", tmp_path / "request").code == 0
    cosigned = run("audit", "witness", "cosign", tmp_path / "witness", tmp_path / "request")
    assert cosigned.code == 0, cosigned.err
    (tmp_path / "lines").write_text(cosigned.out, encoding="utf-8")
    assert run("audit", "witness", "add", tmp_path / "lines", "--key", witness_key).code == 0
    run("audit", "checkpoint", "--cosigned", "-o", tmp_path / "kept")
    assert "— witness.example/w" in (tmp_path / "kept").read_text(encoding="utf-8")
    assert run("audit", "verify", "--checkpoint", tmp_path / "kept").code == 0
    for what in (["prove", "1", "-o", tmp_path / "p.tlog-proof"], ["export", "--format", "jsonl", "-o", tmp_path / "out"]):
        assert run("audit", *what, "--cosigned").code == 0
    assert run("audit", "check", tmp_path / "p.tlog-proof", "--key", key, "--witness", witness_key).code == 0
    assert run("audit", "verify-export", tmp_path / "out", "--key", key, "--witness", witness_key).code == 0
    run("audit", "notice", "MRN-1", "--version", "2")
    run("audit", "prove", "1", "-o", tmp_path / "q.tlog-proof")
    assert run("audit", "check", tmp_path / "q.tlog-proof", "--key", key, "--witness", witness_key).code == 1
    (tmp_path / "lines").write_text("— witness.example/w AAAA\n", encoding="utf-8")
    assert run("audit", "witness", "add", tmp_path / "lines", "--key", witness_key).code == 1


def test_a_checkpoint_is_printed_for_paper_and_compared_again(run, site, answered):
    done = run("audit", "checkpoint", "--printed")
    assert done.code == 0
    assert "Root hash" in done.out
    with site.read(sealed=True) as log:
        root, size = log.root.hex(), log.size
    run("audit", "notice", "MRN-1", "--version", "2")
    assert run("audit", "verify", "--printed", root, "--size", size).code == 0
    assert run("audit", "verify", "--printed", root[::-1], "--size", size).code == 1
    assert run("audit", "verify", "--printed", root, "--size", size + 9).code == 1
    assert run("audit", "verify", "--printed", root).code == 2
    assert run("audit", "verify", "--printed", "no hash", "--size", size).code == 1


def test_a_stolen_retired_key_signs_no_longer_tree(run, site, answered):
    thief = site.load_keys().signers
    run("audit", "keys", "rotate")
    with site.read(sealed=True) as log:
        forged = Checkpoint(log.origin, log.size + 1, b"\1" * 32).sign(thief)
        fair = Checkpoint(log.origin, 2, log.root_at(2)).sign(thief)
    Checkpoint.open(fair, site.load_keys().verifiers, site.origin)
    with pytest.raises(AuditTamperedError):
        Checkpoint.open(forged, site.load_keys().verifiers, site.origin)


@pytest.mark.parametrize(
    "words",
    [
        ["review", RECORD + "0" * 64, "--decision", "agreed", "--reason", "r", "--name", ""],
        ["review", RECORD + "0" * 64, "--decision", "agreed", "--reason", "r", "--actor", "x" * 501],
        ["notice", "MRN-1", "--version", ""],
        ["disclose", "--recipient", "x", "--description", "d", "--purpose", "p", "--use", "HLEGAL"],
        ["export", "--format", "csv", "-o", "out", "--recipient", ""],
        ["release", "MRN-1", "--reason", "r", "--authority", "a"],
        ["keys", "retire", "zz"],
        ["list", "--about", ""],
        ["list", "--about", "\ud800"],
        ["hold", "", "--reason", "r", "--authority", "a"],
        ["erase", "--subject", " ", "--reason", "r", "--yes"],
        ["prove", "9" * 5000, "-o", "p"],
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_nothing_is_recorded(run, site, answered, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("audit", *words)
    assert done.code in {1, 2}
    assert "Traceback" not in done.err
    assert sizes(site) == 2
    assert not (tmp_path / "out").exists()


def test_disclosures_are_corrected_and_need_no_answer(run, site, answered, tmp_path, key):
    what = ["--recipient", "Court", "--description", "recording", "--purpose", "order", "--use", "HLEGAL", "--subject", "MRN-1"]
    assert run("audit", "disclose", *what).code == 0
    assert run("audit", "disclose", *what, "--supersedes", "2").code == 0
    assert run("audit", "disclose", *what).code == 0
    assert run("audit", "disclose", *what, "--supersedes", "1").code == 2
    assert run("audit", "disclose", *[word if word != "MRN-1" else "MRN-9" for word in what]).code == 1
    done = run("audit", "export", "--format", "accounting", "--subject", "MRN-1", "--summarise", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "out" / "accounting.json").read_text())
    assert [(row["times"], row["records"]) for row in told["disclosures"]] == [(2, [3, 4])]
    assert told["left_out"]["amended"] == 1
    assert run("audit", "verify-export", tmp_path / "out", "--key", key).code == 0


def test_an_export_about_somebody_unknown_brings_nobody_into_the_log(run, site, answered, tmp_path):
    for number in (1, 2):
        done = run("audit", "export", "--format", "access", "--subject", "MRN-TYPO", "-o", tmp_path / f"out{number}")
        assert done.code == 0, done.err
        assert "no record of this subject" in done.err
    with site.read() as log:
        assert log.named("MRN-TYPO") == []


def test_a_configuration_that_is_a_link_to_nowhere_is_no_absent_log(run, site, bundle, speech_wav, tmp_path):
    place = LogConfiguration.default_path()
    place.rename(tmp_path / "moved.toml")
    place.symlink_to(tmp_path / "unmounted" / "audit.toml")
    assert run("screen", speech_wav, "--model", bundle).code == 1


def test_a_failed_init_can_be_repeated(run, tmp_path):
    wrong = run("audit", "init", "--origin", "x" * 300)
    assert wrong.code == 1
    assert run("audit", "init", "--origin", "clinic.example/a", "--url", "postgresql://127.0.0.1:1/none").code == 1
    assert run("audit", "init", "--origin", "clinic.example/a").code == 0
    assert run("audit", "verify").code == 0


def test_the_sql_of_an_insert_only_role_is_printed(run):
    assert "GRANT SELECT, INSERT" in run("audit", "grants").out


def test_silence_is_recorded_as_a_rejection(run, site, bundle, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(64_000), 16_000)
    assert run("screen", tmp_path / "silence.wav", "--model", bundle).code == 3
    assert kinds(site)[-1] == "quality_rejection"


def test_exports_are_a_room_of_their_own():
    assert exports_name == "clinical_ser.audit.exports"
