"""`clinical-ser audit`: set the log up, look into it, prove, verify, export.

The one idea: what verifies needs keys and files only; a stranger runs it on another machine, without the site's log or its secrets.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import MODEL, PAYLOADS, RECORD, AuditExport, Event, Inference, Purpose, QualityRejection
from clinical_ser.audit.exports.packet import Verified as VerifiedExport
from clinical_ser.audit.exports.packet import verify_export
from clinical_ser.audit.exports.period import first_moment, last_moment, range_of
from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
from clinical_ser.audit.notes import VerifierKey, parse_note
from clinical_ser.audit.paper import matches_printed, printed_checkpoint
from clinical_ser.audit.proof_file import ProofFile
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import Record
from clinical_ser.audit.tiles import publish_tiles, verify_tiles
from clinical_ser.audit.verifying import VerifiedLog
from clinical_ser.audit.witness import COSIGNATURE_TYPES
from clinical_ser.cli import audit_acts, audit_trust
from clinical_ser.cli.console import check_output_file, complain, literal, output, print_line, program, progress
from clinical_ser.cli.results import read_result
from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import AuditFormatError, AuditSetupError, AuditTamperedError, InvalidValueError
from clinical_ser.folders import user_folder

app = typer.Typer(help="The audit trail: set up, look, verify, prove, export, erase.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
Key = Annotated[
    list[str], typer.Option("--key", help="A verifier key of the log (`audit keys list` shows it), got from its owner by another way; repeatable.")
]
Since = typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="From this day on, UTC.")
Until = typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Up to the end of this day, UTC.")
Witness = Annotated[list[str] | None, typer.Option("--witness", help="A witness's verifier key: fail unless it cosigned (repeatable).")]
Cosigned = Annotated[bool, typer.Option("--cosigned", help="As of the newest checkpoint that a witness cosigned, and not as of now.")]
MAX_FILE_BYTES = 1 << 20
MAX_DIGITS = 18


@app.command()
def init(
    origin: Annotated[str, typer.Option(help="The log's name, for good: a URL without https://, as hospital.example/screening.")],
    url: Annotated[str | None, typer.Option(help="postgresql://… to keep records there; a SQLite file of this user otherwise.")] = None,
    database: Annotated[Path | None, typer.Option(help="The SQLite file, if it is to lie elsewhere.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The folder of keys and vault, if it is to lie elsewhere.")] = None,
    key_source: Annotated[
        str, typer.Option(help="Where the signing key is: file, env:VARIABLE, or exec:PROGRAM (docs/compliance.md).", metavar="SOURCE")
    ] = "file",
    ml_dsa: Annotated[bool, typer.Option("--ml-dsa", help="Sign with ML-DSA-44 (post-quantum) too.")] = False,
) -> None:
    """Set up the site's log. From then on every answer is recorded, or not given."""
    if url is not None and database is not None:
        raise InvalidValueError("--database", "given with --url", "one of the two")
    config, data = user_folder("config"), user_folder("data")
    if config is None or data is None:
        raise AuditSetupError("This process has no home folder; set CLINICAL_SER_HOME.")
    where = url or f"sqlite:{(database or data / 'audit' / 'log.sqlite').absolute()}"
    configuration = LogConfiguration(origin, where, (keys or config / "keys" / "audit").absolute())
    place = LogConfiguration.default_path()
    configuration.create(place, key_source=key_source, ml_dsa=ml_dsa)
    output.print(f"The log {literal(origin)} is set up: {literal(place)}. Its verifier key, to give to whoever shall verify:")
    for key in configuration.load_keys().active:
        print_line(str(key))
    output.print(f"Back up the keys ({literal(configuration.keys)}) apart from the log: without its vault nobody can read the records.")
    output.print("Have checkpoints witnessed or printed (docs/compliance.md): only against what is kept elsewhere does a rewritten log show.")


@app.command("list")
def list_records(
    about: Annotated[
        str | None,
        typer.Option(help="A subject, as your site names the person; a result (clinical-ser:result:…); or a model (clinical-ser:model:…)."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help=f"Only this kind (repeatable): {', '.join(sorted(PAYLOADS))}.")] = None,
    flagged: Annotated[bool, typer.Option("--flagged", help="Only those with a flag: a risk signal, a clock that went wrong.")] = False,
    last: Annotated[int, typer.Option(min=1, help="So many, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show records, the newest last."""
    if unknown := sorted(set(kind or ()) - set(PAYLOADS)):
        raise InvalidValueError("--kind", unknown[0], f"one of {', '.join(sorted(PAYLOADS))}")
    with LogConfiguration.required().read() as log:
        chosen: list[Record] = []
        for record in _newest(log, about):
            if (not kind or record.event.kind in kind) and (not flagged or record.event.flags):
                chosen.append(record)
            if len(chosen) == last:
                break
    _record_look(chosen, about)
    if as_json:
        for record in reversed(chosen):
            print_line(json.dumps(as_object(record)))
    else:
        _show_records(chosen[::-1])


def _newest(log: DatabaseReader, about: str | None) -> Iterable[Record]:
    indices: Iterable[int] = range(log.size - 1, -1, -1) if about is None else reversed(_found(log, about))
    return (log.record(index) for index in indices)


def _found(log: DatabaseReader, about: str) -> list[int]:
    about = audit_acts.as_record(about) or about
    return log.about(about) if about.startswith((RECORD, MODEL)) else log.named(about)


@app.command()
def verify(
    what: Annotated[
        str | None, typer.Argument(help="A result (.json), or the record printed on a report (clinical-ser:result:…): also say what is known of it.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that was kept elsewhere (repeatable): only against one does a log show that was put back.")
    ] = None,
    printed: Annotated[str | None, typer.Option(help="A root hash, typed in from a printed checkpoint; with --size.")] = None,
    size: Annotated[int | None, typer.Option(min=0, help="How many records the printed checkpoint has.")] = None,
    tree: Annotated[bool, typer.Option("--tree", help="The tree alone, without opening payloads: seconds for a million records.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify the whole log: signature, tree, every payload; believing only the keys and checkpoints beside it."""
    configuration = LogConfiguration.required()
    record = None if what is None else _record_named(what)
    if (printed is None) != (size is None):
        raise InvalidValueError("--printed", "given without --size, or the other way round", "both, as they stand on the page")
    retained = [read_text(path) for path in checkpoint or ()]
    with progress("Verifying") as report:
        found = configuration.verify(retained=retained, tree_only=tree, report=report)
    if printed is not None and size is not None:
        _check_printed(configuration, printed, size)
        if not as_json:
            output.print(f"[green]The first {size} records are those of the printed page.[/green]")
    records = []
    if record is not None:
        with configuration.read() as log:
            records = [log.record(index) for index in log.about(record)]
        _record_look(records, record)
    if as_json:
        print_line(json.dumps({**_as_dict(found), "records": [as_object(each) for each in records]}))
    else:
        _show_verified(found)
        if record is not None:
            _show_known(record, records)
    if record is not None and not records:
        raise typer.Exit(1)


@app.command()
def prove(
    what: Annotated[str, typer.Argument(help="The index of a record; or a result (.json, clinical-ser:result:…), for the answer that was given.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The proof (.tlog-proof); the leaf goes beside it (.leaf.json).")],
    cosigned: Cosigned = False,
) -> None:
    """Write a proof, which anyone can check without the log, that a record is in it."""
    check_output_file(out)
    leaf_file = out.with_suffix(".leaf.json")
    with LogConfiguration.required().read(cosigned=cosigned) as log:
        index = int(what) if what.isascii() and what.isdecimal() and len(what) < MAX_DIGITS else _first_answer(log, _record_named(what))
        if not 0 <= index < log.size:
            raise InvalidValueError("WHAT", what, f"a record from 0 to {log.size - 1}")
        record = log.record(index)
        proof = ProofFile(index, tuple(log.inclusion(index)), log.checkpoint)
    for path, content in ((out, proof.text.encode()), (leaf_file, record.leaf)):
        with replaced(path) as draft:
            draft.write_bytes(content)
    output.print(
        f"Written: {literal(out)} and {literal(leaf_file)}, of record {index}. To check them: {program()} audit check {literal(out)} --key KEY"
    )


@app.command()
def check(
    proof: Annotated[Path, typer.Argument(help="A proof (.tlog-proof) of `audit prove`.")],
    key: Key,
    witness: Witness = None,
    leaf: Annotated[Path | None, typer.Option(help="The record's leaf; the file beside the proof otherwise.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a proof: that this leaf is in the log that the key's holder signed. Needs no log."""
    content = read_bytes(leaf or proof.with_suffix(".leaf.json"))
    file = ProofFile.parse(read_bytes(proof))
    checkpoint, note = Checkpoint.open(file.checkpoint, parse_keys(key))
    witnesses = check_witnesses(file.checkpoint, witness)
    if not verify_inclusion(file.index, checkpoint.size, leaf_hash(content), file.path, checkpoint.root):
        raise AuditTamperedError(f"The leaf is not record {file.index} of the log that was signed.")
    signed = [*(f"{each.name}+{each.key_id:08x}" for each, _ in note.verified), *witnesses]
    if as_json:
        print_line(json.dumps({"index": file.index, "origin": checkpoint.origin, "size": checkpoint.size, "signed_by": signed}))
    else:
        output.print(
            f"[green]In order.[/green] The leaf is record {file.index} of {literal(checkpoint.origin)}, which had {checkpoint.size} records."
        )
        event = Event.parse(content)
        output.print(f"  It says: {event.kind}, {event.outcome}, {event.time[:19].replace('T', ' ')} UTC. Signed by {literal(', '.join(signed))}")


@app.command("checkpoint")
def write_checkpoint(
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; the terminal otherwise.")] = None,
    printed: Annotated[bool, typer.Option("--printed", help="As a page to print, sign and file.")] = False,
    cosigned: Cosigned = False,
) -> None:
    """Keep the log's signed head, with the witnesses' signatures it has, and write it out: to be filed elsewhere."""
    configuration = LogConfiguration.required()
    if not cosigned:
        with configuration.write() as log:
            log.retain()
    with configuration.read(sealed=True, cosigned=cosigned) as reader:
        note = reader.checkpoint
    text = printed_checkpoint(note) if printed else note
    if out is None:
        print_line(text.removesuffix("\n"))
        return
    check_output_file(out)
    with replaced(out) as draft:
        draft.write_text(text, encoding="utf-8")


@app.command()
def publish(folder: Annotated[Path, typer.Argument(help="A folder for a web server; brought up to date if it was published to before.")]) -> None:
    """Publish leaves, tree and checkpoint as static files (c2sp.org/tlog-tiles). Leaves hold nothing of a person."""
    with LogConfiguration.required().read(sealed=True) as log:
        written = publish_tiles(log, folder)
        output.print(f"{written} files written: {log.size} records of {literal(log.origin)}.")


@app.command("verify-published")
def verify_published(
    folder: Annotated[Path, typer.Argument(help="What `audit publish` wrote, or a copy fetched from its web server.")],
    key: Key,
    as_json: AsJson = False,
) -> None:
    """Verify a published log from its first leaf to its signed checkpoint. Needs nothing of the site but its key."""
    checkpoint = verify_tiles(folder, parse_keys(key))
    if as_json:
        print_line(json.dumps({"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}))
    else:
        output.print(f"[green]In order.[/green] {checkpoint.size} records of {literal(checkpoint.origin)}; all fit the signed checkpoint.")


class ExportForm(StrEnum):
    """The forms of `audit export`."""

    JSONL = "jsonl"
    CSV = "csv"
    FHIR = "fhir"
    ACCOUNTING = "accounting"
    ACCESS = "access"
    PROCESSING = "processing"
    AI_ACT = "ai-act"
    EVIDENCE_PACK = "evidence-pack"


@app.command()
def export(
    form: Annotated[ExportForm, typer.Option("--format", help="What is asked for; docs/compliance.md says which serves whom.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    subject: Annotated[
        str | None, typer.Option(help="Whom it is about (accounting, access; else only this person's records), as your site names the person.")
    ] = None,
    since: Annotated[datetime | None, Since] = None,
    until: Annotated[datetime | None, Until] = None,
    kind: Annotated[list[str] | None, typer.Option(help="jsonl, csv, fhir: only this kind of event (repeatable).")] = None,
    payloads: Annotated[bool, typer.Option("--payloads", help="jsonl, csv, fhir: with what is held of persons; ai-act: of the system.")] = False,
    result: Annotated[list[Path] | None, typer.Option(help="access: a result (.json) to include (repeatable).")] = None,
    model: Annotated[list[str] | None, typer.Option(help="access, evidence-pack: a model whose card is included.")] = None,
    evidence: Annotated[Path | None, typer.Option(help="evidence-pack: the evidence.json of an evaluation.")] = None,
    site: Annotated[Path | None, typer.Option(help="processing: what the site says of itself (.toml); access: the same, for contacts.")] = None,
    staff: Annotated[bool, typer.Option("--staff", help="accounting, access: with the names of staff, which are left out otherwise.")] = False,
    summarise: Annotated[
        bool,
        typer.Option("--summarise", help="accounting: one row a recipient and purpose (45 CFR 164.528(b)(3))."),
    ] = False,
    recipient: Annotated[str | None, typer.Option(help="Who gets it; it is recorded.")] = None,
    cosigned: Cosigned = False,
) -> None:
    """Export from the log into a signed folder that anyone with the key can verify. That it was exported is recorded."""
    from clinical_ser.cli.audit_exports import Wanted, export_from

    wanted = Wanted(
        form=form.value,
        subject=subject,
        since=since and first_moment(since.date()),
        until=until and last_moment(until.date()),
        kinds=frozenset(kind) if kind else None,
        payloads=payloads,
        results=tuple(result or ()),
        models=tuple(model or ()),
        evidence=evidence,
        site=site,
        staff=staff,
        summarise=summarise,
    )
    configuration = LogConfiguration.required()
    if wanted.since and wanted.until and wanted.since > wanted.until:
        raise InvalidValueError("--until", "before --since", "a later day")
    if os.path.lexists(out):
        raise InvalidValueError("--output", "something that is there", "the name of a new folder")
    draft = out.with_name(f".{out.name}.unrecorded")
    shutil.rmtree(draft, ignore_errors=True)
    recorder = Recorder.find()
    about = {"actor": recorder.actor, "form": form.value, "recipient": recipient}
    audit_acts.made(AuditExport, **about, first=None, last=None, digest=None)
    try:
        with configuration.read(cosigned=cosigned) as log:
            digest = export_from(log, configuration.load_keys().signers, wanted, draft)
            known = subject is not None and bool(log.named(subject))
        first, last = range_of(draft)
        payload = audit_acts.made(AuditExport, **about, first=first, last=last, digest=digest)
        # Nobody who is not in the log comes into it by being asked for.
        receipt = recorder.record(payload, subject=subject if known else None, purpose=Purpose.COMPLIANCE)
        draft.rename(out)
    finally:
        # What the log does not know of is not handed out.
        shutil.rmtree(draft, ignore_errors=True)
    if subject is not None and not known:
        complain("Note", "the log has no record of this subject; is the name spelled as it was when it was recorded?")
    index = receipt.index if receipt else "?"
    output.print(f"Written: {literal(out)}. Recorded as {index}. To verify it: {program()} audit verify-export {literal(out)} --key KEY")


@app.command()
def grants() -> None:
    """Print the SQL for a PostgreSQL role that can add records and cannot change them (docs/compliance.md)."""
    from clinical_ser.audit.postgres import GRANTS

    print_line(GRANTS.removesuffix("\n"))


@app.command()
def template() -> None:
    """Print what a site has to say of itself for its record of processing (GDPR Art. 30), to be filled in; see `export --format processing`."""
    from clinical_ser.audit.exports.processing import processing_template

    print_line(processing_template().removesuffix("\n"))


@app.command("verify-export")
def verify_exported(
    folder: Annotated[Path, typer.Argument(help="What `audit export` wrote.")],
    key: Key,
    witness: Witness = None,
    with_log: Annotated[bool, typer.Option("--with-log", help="Also look things up in the log that is here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify an export: signed by the log, complete, and each record proved."""
    if with_log:
        with LogConfiguration.required().read() as log:
            found = verify_export(folder, parse_keys(key), reader=log)
    else:
        found = verify_export(folder, parse_keys(key))
    check_witnesses(read_text(folder / "checkpoint"), witness)
    if as_json:
        findings = {"records": found.findings.records, "checked": found.findings.checked, "unchecked": found.findings.unchecked}
        print_line(json.dumps({"form": found.manifest.form.name, "origin": found.manifest.origin, "digest": found.digest, **findings}))
    else:
        _show_export(found)


for command in audit_acts.COMMANDS:
    app.command()(command)
app.add_typer(audit_trust.keys_app, name="keys")
app.add_typer(audit_trust.witness_commands, name="witness")
app.command()(audit_trust.anchor)


# --- Shown and read -----------------------------------------------------------------------------------------------------------------------


def check_witnesses(note: str, keys: Sequence[str] | None) -> list[str]:
    """Return which witnesses cosigned a checkpoint; AuditTamperedError where one that was named did not."""
    text, signatures = parse_note(note)
    for key in parse_keys(keys or ()):
        if key.algorithm not in COSIGNATURE_TYPES:
            raise InvalidValueError("--witness", "a key that is no witness's (the log's own?)", "what `audit witness init` printed to its owner")
        if not any(each.name == key.name and each.key_id == key.key_id and key.fits(text.encode(), each.signature) for each in signatures):
            raise AuditTamperedError(f"The witness {key.name} did not cosign this checkpoint.")
    return [str(key).rpartition("+")[0] for key in parse_keys(keys or ())]


def _check_printed(configuration: LogConfiguration, typed: str, size: int) -> None:
    with configuration.read(sealed=True) as log:
        if size > log.size:
            raise AuditTamperedError(f"The page counts {size} records, the log {log.size}: it was put back to an older copy, or its end was cut off.")
        if not matches_printed(typed, Checkpoint(log.origin, size, log.root_at(size))):
            raise AuditTamperedError(f"The first {size} records are not those of the printed page.")


def parse_keys(texts: Sequence[str]) -> list[VerifierKey]:
    """Return verifier keys, each once; AuditFormatError for what is none."""
    return list(dict.fromkeys(VerifierKey.parse("".join(text.split())) for text in texts))


def read_bytes(path: Path) -> bytes:
    """Return the content of a small file; AuditFormatError where it cannot be read, or is a large one."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AuditFormatError(f"A file that was named cannot be read: {error.strerror}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise AuditFormatError("A file that was named is too long to be a checkpoint, a proof or a leaf.")
    return content


def read_text(path: Path) -> str:
    """Return the text of a small file; AuditFormatError where it is none."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise AuditFormatError("A file that was named is not text in UTF-8.") from None


def as_object(record: Record) -> dict[str, object]:
    """Return a record for JSON: the leaf, and the payload where it is open."""
    payload = record.payload.model_dump(mode="json") if record.payload else None
    return {"index": record.index, "state": record.state, "leaf": json.loads(record.leaf), "payload": payload}


def _record_named(what: str) -> str:
    """Return the record of a result that is named, or that a file holds."""
    if record := audit_acts.as_record(what):
        return record
    result = read_result(Path(what))
    if result is None:
        raise InvalidValueError("WHAT", "a file that is no result", f"a result (.json) of `screen --json`, or a record ({RECORD}…)")
    return RECORD + result.digest


def _record_look(records: Sequence[Record], about: str | None) -> None:
    """Record, before it is shown, that someone looked at what the log holds of persons."""
    about = about and (audit_acts.as_record(about) or about)
    if not any(record.state == "open" for record in records):
        return
    recorder = Recorder.find()
    payload = AuditExport(actor=recorder.actor, form="list", first=min(r.index for r in records), last=max(r.index for r in records), digest=None)
    if about is None or about.startswith(MODEL):
        recorder.record(payload, purpose=Purpose.COMPLIANCE)
    elif about.startswith(RECORD):
        recorder.record(payload, like=next(record.index for record in records if record.state == "open"), purpose=Purpose.COMPLIANCE)
    else:
        recorder.record(payload, subject=about, purpose=Purpose.COMPLIANCE)


def _first_answer(log: DatabaseReader, record: str) -> int:
    indices = [index for index in log.about(record) if log.record(index).event.kind in {Inference.kind, QualityRejection.kind}]
    if len(indices) > 1:
        listed = ", ".join(map(str, indices))
        raise InvalidValueError("WHAT", "an answer that was given several times", f"the index of one of its records: {listed}")
    if not indices:
        raise AuditSetupError("The log has no record of this result: it was given elsewhere, or was erased.")
    return indices[0]


def _show_records(records: Sequence[Record]) -> None:
    if records:
        output.print(f"[bold]{'record':>8}  {'time (UTC)':<19}  {'kind':<17}  {'outcome':<7}  what[/bold]")
    for record in records:
        event = record.event
        flags = f"  [yellow]{', '.join(event.flags)}[/yellow]" if event.flags else ""
        output.print(
            f"{record.index:>8}  {event.time[:19].replace('T', ' ')}  {event.kind:<17}  {event.outcome:<7}  {literal(_in_words(record))}{flags}"
        )
    if not records:
        output.print("No such records.")


def _in_words(record: Record) -> str:
    if record.payload is None:
        return {"erased": "erased", "sealed": "sealed"}[record.state]
    values = record.payload.model_dump(mode="json")
    told = ("action", "status", "decision", "name", "setting", "form", "model_name", "what", "recipient", "erased", "reason")
    words = [str(values[name]) for name in told if values.get(name)]
    return " · ".join([*words, f"by {record.payload.actor.id}"])


def _as_dict(found: VerifiedLog) -> dict[str, object]:
    return {
        "origin": found.origin,
        "size": found.size,
        "root": found.root.hex(),
        "signed_by": found.signed_by,
        "checkpoints": found.checkpoints,
        "head_beside_the_keys": found.pinned,
        "opened": found.opened,
        "sealed": found.sealed,
        "erased": found.erased,
        "unfinished_erasures": found.unfinished,
        "unscrubbed": found.unscrubbed,
        "clock_anomalies": found.anomalies,
        "kinds": dict(found.kinds),
    }


def _show_verified(found: VerifiedLog) -> None:
    output.print(
        f"[green]In order.[/green] {found.size} records of {literal(found.origin)} fit the head signed by {literal(', '.join(found.signed_by))}."
    )
    if found.kinds:
        output.print(f"  {found.opened} payloads fit what their records commit to; {found.erased} were erased.")
        output.print(f"  {', '.join(f'{count} {kind}' for kind, count in sorted(found.kinds.items()))}")
    brought = f"{found.checkpoints} brought along" if found.checkpoints else "none brought along (--checkpoint)"
    if found.pinned or found.checkpoints:
        output.print(f"  Checkpoints that it was held against: {'the head beside the keys, and ' if found.pinned else ''}{brought}.")
    else:
        output.print("  [yellow]![/yellow] Held against no checkpoint kept outside of the log: one put back to an older copy would look the same.")
    if found.anomalies:
        first = ", ".join(map(str, found.clock_anomalies))
        output.print(f"  [yellow]![/yellow] The clock went wrong at {found.anomalies} records (first {first}); their order is that of the log.")
    if found.unscrubbed:
        output.print("  [yellow]![/yellow] What an erasure deleted is not overwritten yet: it was interrupted, and the next one finishes it.")
    if found.unfinished:
        output.print(f"  [yellow]![/yellow] {found.unfinished} payloads were to be erased and are still there: ask for the erasure again.")


def _show_known(record: str, records: Sequence[Record]) -> None:
    if not records:
        output.print(f"[red]Not in this log:[/red] {literal(record)}. It was given elsewhere, was erased, or is not what was answered.")
        return
    output.print(f"What the log knows of {literal(record)}:")
    _show_records(records)


def _show_export(found: VerifiedExport) -> None:
    form, origin = literal(found.manifest.form.name), literal(found.manifest.origin)
    output.print(f"[green]In order.[/green] An export ({form}) of {origin}, {found.findings.records} records.")
    for line in found.findings.checked:
        output.print(f"  checked: {literal(line)}")
    for line in found.findings.unchecked:
        output.print(f"  [yellow]not checked:[/yellow] {literal(line)}")
