import base64
import hashlib
import json
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinical_ser.audit import events
from clinical_ser.audit.events import Event, canonical
from clinical_ser.audit.exports import json_lines, packet, selection, shown
from clinical_ser.audit.exports.json_lines import RECORDS, Line
from clinical_ser.audit.exports.packet import open_packet, verify_export
from clinical_ser.audit.exports.selection import SELECTION, Said, Selection
from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
from clinical_ser.errors import AuditError, AuditFormatError, AuditTamperedError
from tests.audit.exports.example import CANARY, ERASED, FIRST_SUBJECT, KEYS, RESULT, SECOND_SUBJECT, SIGNER, START, ExampleLog, entries
from tests.audit.exports.forging import change_json, change_lines, reseal
from tests.audit.exports.test_packet import SCHEMAS

LOG = ExampleLog()
PART = Selection(first=2, last=12, payloads=True)
WHOLE = Selection(payloads=True)


def export(folder, chosen=None, log=LOG):
    json_lines.export(log, folder / "export", [SIGNER], chosen, created=START)
    return folder / "export"


def lines_of(folder):
    return [json.loads(line) for line in (folder / RECORDS).read_bytes().splitlines()]


def indices_of(folder):
    return [line["index"] for line in lines_of(folder)]


SELECTIONS = {
    "all": None,
    "all with payloads": WHOLE,
    "a range": PART,
    "from one on": Selection(first=20),
    "one record": Selection(first=9, last=9, payloads=True),
    "some kinds": Selection(kinds=frozenset({"review", "inference"}), payloads=True),
    "a subject": Selection(about=FIRST_SUBJECT, payloads=True),
    "a result": Selection(about=events.RECORD + RESULT),
    "a subject's disclosures": Selection(about=FIRST_SUBJECT, kinds=frozenset({"disclosure"})),
    "nothing": Selection(about="nobody"),
}


@pytest.mark.parametrize("chosen", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("log", [LOG, ExampleLog(sealed=True)], ids=["open", "sealed"])
def test_what_is_exported_verifies_with_the_log_and_without(tmp_path, chosen, log):
    folder = export(tmp_path, chosen, log)
    found = verify_export(folder, KEYS).findings
    assert found.records == len(indices_of(folder)) == len(list((chosen or Selection()).records(log)))
    assert verify_export(folder, KEYS, reader=log).findings.records == found.records


@pytest.mark.parametrize("size", [0, 1, 2])
def test_small_logs(tmp_path, size):
    log = ExampleLog(entries()[:size])
    folder = export(tmp_path, None, log)
    assert verify_export(folder, KEYS).findings.records == size
    assert (folder / RECORDS).read_bytes().count(b"\n") == size


def test_the_selection_is_the_selection(tmp_path):
    assert indices_of(export(tmp_path / "1", PART)) == list(range(2, 13))
    kinds = export(tmp_path / "2", SELECTIONS["some kinds"])
    assert {Event.parse(line["leaf"].encode()).kind for line in lines_of(kinds)} == {"review", "inference"}
    assert indices_of(export(tmp_path / "3", SELECTIONS["a subject"])) == LOG.named(FIRST_SUBJECT)


def test_a_selection_of_what_is_not_there_is_refused(tmp_path):
    for chosen in (Selection(first=5, last=4), Selection(last=LOG.size), Selection(first=-1)):
        with pytest.raises(AuditFormatError, match=r"no records"):
            export(tmp_path, chosen)
    with pytest.raises(ValueError, match="no kind of event"):
        Selection(kinds=frozenset({"gossip"}))
    with pytest.raises(AuditFormatError, match=r"no records"):
        export(tmp_path, Selection(first=0), ExampleLog([]))


def test_a_stranger_recomputes_the_hashes_from_the_text_as_it_is(tmp_path):
    folder = export(tmp_path, PART)
    root, size = open_packet(folder, KEYS).checkpoint.root, LOG.size
    for line in lines_of(folder):
        digest = hashlib.sha256(b"\0" + line["leaf"].encode()).digest()
        assert verify_inclusion(line["index"], size, digest, [base64.b64decode(node) for node in line["proof"]], root)
        if line["payload"] is not None:
            committed = hashlib.sha256(base64.b64decode(line["salt"]) + line["payload"].encode()).hexdigest()
            assert committed == json.loads(line["leaf"])["commitment"]


def test_the_whole_log_needs_no_proofs_and_a_part_has_them(tmp_path):
    assert {line["proof"] for line in lines_of(export(tmp_path / "1", WHOLE))} == {None}
    assert all(line["proof"] for line in lines_of(export(tmp_path / "2", PART)))


def test_an_erased_record_has_its_leaf_and_nothing_else(tmp_path):
    for line in lines_of(export(tmp_path, WHOLE)):
        is_erased = line["index"] in ERASED
        assert line["state"] == ("erased" if is_erased else "open")
        assert (line["payload"] is None) is (line["salt"] is None) is is_erased


def test_without_payloads_there_is_nothing_of_anybody(tmp_path):
    for number, chosen in enumerate((None, Selection(about=FIRST_SUBJECT), Selection(kinds=frozenset({"disclosure"})))):
        folder = export(tmp_path / str(number), chosen)
        assert not any(CANARY.encode() in path.read_bytes() for path in folder.iterdir())


def test_with_payloads_nobody_is_named_as_the_site_names_them(tmp_path):
    folder = export(tmp_path, Selection(about=FIRST_SUBJECT, payloads=True))
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert FIRST_SUBJECT.encode() not in content
    assert SECOND_SUBJECT.encode() not in content
    assert b"account-CANARY" in content


def test_flat_in_memory_means_that_the_reader_is_read_as_a_stream(tmp_path):
    taken = []

    class Watched(ExampleLog):
        def records(self, start=0, stop=None):
            for record in super().records(start, stop):
                taken.append(record.index)
                yield record

    class Watching(packet.PacketFile):
        def write(self, data):
            if bytes(data).startswith(b'{"index":'):
                assert json.loads(bytes(data))["index"] == taken[-1]
            return super().write(data)

    log = Watched()
    log.checkpoint  # noqa: B018  (made from all records, before the export)
    taken.clear()
    original, packet.PacketFile = packet.PacketFile, Watching
    try:
        export(tmp_path, None, log)
    finally:
        packet.PacketFile = original
    assert taken == list(range(log.size))


def dropped(lines):
    return lines[:3] + lines[4:]


def doubled(lines):
    return lines[:4] + lines[3:]


def exchanged(lines):
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


def cut_off(lines):
    return lines[:-1]


def renumbered(lines):
    return [*lines[:3], lines[3].replace(b'{"index":3,', b'{"index":4,').replace(b'{"index":5,', b'{"index":9,'), *lines[4:]]


@pytest.mark.parametrize(
    ("chosen", "change", "match"),
    [
        (WHOLE, dropped, "Record 3 is missing"),
        (PART, dropped, "Record 5 is missing"),
        (WHOLE, doubled, "Record 3 comes after record 3"),
        (PART, doubled, "Record 5 comes after record 5"),
        (WHOLE, exchanged, "Record 3 is missing"),
        (WHOLE, cut_off, "Record 24 is missing"),
        (PART, cut_off, "Record 12 is missing"),
        (WHOLE, renumbered, "Record 3 is missing"),
        (PART, lambda lines: [], "Record 2 is missing"),
        (WHOLE, lambda lines: [*lines, lines[0]], "Record 0 comes after record 24"),
        (PART, lambda lines: [*lines[:2], b"\n", *lines[2:]], "line 3, after record 3, does not fit"),
        (PART, lambda lines: [*lines[:2], lines[2].replace(b":", b": ", 1), *lines[3:]], "line 3, after record 3, is not in canonical"),
        (PART, lambda lines: [*lines[:2], b"\xff" + lines[2], *lines[3:]], "line 3, after record 3, does not fit"),
        (PART, lambda lines: [*lines[:-1], lines[-1][:-1]], "line 11, after record 11, has no end"),
        (PART, lambda lines: [*lines[:-1], lines[-1][:-40] + b"\n"], "line 11, after record 11, does not fit"),
        (PART, lambda lines: [line.replace(b'{"index":', b'{"index":1') for line in lines[:1]], "Record 12 is not in|Record 2 is missing"),
    ],
)
def test_lines_that_were_dropped_moved_or_broken_are_named(tmp_path, chosen, change, match):
    folder = export(tmp_path, chosen)
    change_lines(folder, RECORDS, change)
    with pytest.raises(AuditError, match=match):
        verify_export(folder, KEYS)


def a_leaf(line):
    line["leaf"] = line["leaf"].replace('"success"', '"failed"')


def a_payload(line):
    line["payload"] = line["payload"].replace("CANARY", "canary")


def a_salt(line):
    line["salt"] = base64.b64encode(bytes(32)).decode()


def an_empty_salt(line):
    line["salt"] = ""


def a_proof(line):
    line["proof"][0] = line["proof"][1]


def a_shorter_proof(line):
    line["proof"].pop()


def no_proof(line):
    line["proof"] = None


def no_payload(line):
    line["payload"] = line["salt"] = None


def half_a_payload(line):
    line["salt"] = None


def a_state(line):
    line["state"] = "sealed"


def a_field(line):
    line["more"] = 1


def a_kind(line):
    line["leaf"] = line["leaf"].replace('"kind":"inference"', '"kind":"gossip"')


def a_spelling(line):
    line["leaf"] = line["leaf"].replace('"version":1', '"version": 1')


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (a_leaf, "Record 4 is not in the tree"),
        (a_payload, "Record 4 does not commit"),
        (a_salt, "Record 4 does not commit"),
        (an_empty_salt, "salt of record 4"),
        (a_proof, "Record 4 is not in the tree"),
        (a_shorter_proof, "Record 4 is not in the tree"),
        (no_proof, "Record 4 has a proof"),
        (no_payload, "Record 4 has a payload"),
        (half_a_payload, "Record 4 has a payload"),
        (a_state, "Record 4 has a payload"),
        (a_field, "line 3, after record 3, does not fit"),
        (a_kind, "Record 4: A leaf is of a kind"),
        (a_spelling, "Record 4: A leaf is not in canonical form"),
    ],
)
def test_a_record_that_was_changed_is_named(tmp_path, change, match):
    folder = export(tmp_path, PART)
    change_json(folder, RECORDS, 2, change)
    with pytest.raises(AuditError, match=match):
        verify_export(folder, KEYS)


def test_a_changed_leaf_in_the_whole_log_is_noticed_at_the_root(tmp_path):
    folder = export(tmp_path)
    change_json(folder, RECORDS, 4, a_leaf)
    with pytest.raises(AuditTamperedError, match="do not make up the root"):
        verify_export(folder, KEYS)


def test_a_payload_of_another_kind_is_noticed_though_it_is_committed_to(tmp_path):
    class Mixed(ExampleLog):
        def records(self, start=0, stop=None):
            for record in super().records(start, stop):
                event = record.event.model_copy(update={"kind": "review"}) if record.event.kind == "notice" else record.event
                yield replace(record, event=event, leaf=canonical(event.model_dump(mode="json", by_alias=True)))

    folder = export(tmp_path, WHOLE, Mixed())
    with pytest.raises(AuditTamperedError, match="Record 3 is of another kind than its payload"):
        verify_export(folder, KEYS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_of_a_part_goes_unnoticed_even_when_the_envelope_fits(tmp_path, data):
    folder = tmp_path / "export"
    if not folder.exists():
        export(tmp_path, PART)
    content = (folder / RECORDS).read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    (folder / RECORDS).write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    try:
        reseal(folder)
        with pytest.raises(AuditError):
            verify_export(folder, KEYS)
    finally:
        (folder / RECORDS).write_bytes(content)


def test_a_selection_by_kind_with_a_gap_is_noticed_with_the_log_only(tmp_path):
    folder = export(tmp_path, SELECTIONS["some kinds"])
    change_lines(folder, RECORDS, lambda lines: lines[:1] + lines[2:])
    assert "only the log" in verify_export(folder, KEYS).findings.unchecked[0]
    with pytest.raises(AuditTamperedError, match="Record 6 is missing"):
        verify_export(folder, KEYS, reader=LOG)
    change_lines(folder, RECORDS, lambda lines: lines[:1])
    with pytest.raises(AuditTamperedError, match="Record 6 is missing"):
        verify_export(folder, KEYS, reader=LOG)


def test_a_kind_that_was_not_asked_for_is_noticed(tmp_path):
    folder = export(tmp_path, Selection(kinds=frozenset({"review"})))
    other = export(tmp_path / "other", Selection(kinds=frozenset({"notice"})))
    (folder / RECORDS).write_bytes((other / RECORDS).read_bytes())
    reseal(folder)
    with pytest.raises(AuditTamperedError, match="Record 3 is of a kind that was not asked for"):
        verify_export(folder, KEYS)


@pytest.mark.parametrize(
    "said",
    [
        b"{}\n",
        b"[]\n",
        b'{"kinds":null,"one":false,"payloads":true,"schema":"clinical-ser/audit-selection/1"}',
        b'{"kinds":["gossip"],"one":false,"payloads":true,"schema":"clinical-ser/audit-selection/1"}\n',
        b'{"kinds":["review","notice"],"one":false,"payloads":true,"schema":"clinical-ser/audit-selection/1"}\n',
        b'{"kinds":null,"one":0,"payloads":true,"schema":"clinical-ser/audit-selection/1"}\n',
    ],
)
def test_a_selection_that_does_not_fit_is_refused(tmp_path, said):
    folder = export(tmp_path)
    (folder / SELECTION).write_bytes(said)
    reseal(folder)
    with pytest.raises(AuditFormatError, match=SELECTION):
        verify_export(folder, KEYS)


@pytest.mark.parametrize(
    ("about", "found"),
    [
        (events.RECORD + RESULT, {i for i, one in enumerate(entries()) if events.RECORD + RESULT in one.payload.records()}),
        (events.MODEL + "depression-simulated", {2}),
        (FIRST_SUBJECT, {i for i, one in enumerate(entries()) if one.subject == FIRST_SUBJECT}),
    ],
)
def test_records_of_a_subject_a_result_or_a_model_can_be_asked_for(tmp_path, about, found):
    folder = export(tmp_path, Selection(about=about))
    assert {line["index"] for line in lines_of(folder)} == found
    assert verify_export(folder, KEYS, reader=LOG).findings.records == len(found)


def test_text_beyond_ascii_and_control_characters_are_exact(tmp_path):
    text = 'Ω 診 \u2028 \x7f \x01 " \\ 🩺'
    log = ExampleLog([replace(entries()[0], payload=events.Service(actor=entries()[0].payload.actor, action="started", component="x", detail=text))])
    folder = export(tmp_path, WHOLE, log)
    assert verify_export(folder, KEYS).findings.records == 1
    assert json.loads(lines_of(folder)[0]["payload"])["detail"] == text


def test_the_schemas_that_ship_are_those_of_the_lines_and_the_selection(tmp_path):
    folder = export(tmp_path, PART)
    for model, name, values in (
        (Line, json_lines.SCHEMA, lines_of(folder)),
        (Said, selection.SCHEMA, [json.loads((folder / SELECTION).read_bytes())]),
    ):
        schema = json.loads((SCHEMAS / f"{name.removeprefix('clinical-ser/').replace('/', '-')}.schema.json").read_bytes())
        assert schema == json.loads(shown.json_schema(model, name, None))
        for value in values:
            jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


def test_the_leaf_in_a_line_is_the_leaf_in_the_tree(tmp_path):
    for line, record in zip(lines_of(export(tmp_path)), LOG.records(), strict=True):
        assert leaf_hash(line["leaf"].encode()) == leaf_hash(record.leaf)
