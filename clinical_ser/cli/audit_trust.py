"""What makes the log believable to others: its keys, witnesses who cosign its checkpoints, and time stamps."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.audit.answering import operator
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.cosignatures import timestamp_of
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.audit.keys import LogKeys
from clinical_ser.audit.notes import VerifierKey
from clinical_ser.audit.witness import LOGS_FILE, MEMORY_FILE, Witness, WitnessRequest, cosign_file, cosigners_of, load_logs, open_witness
from clinical_ser.audit.witness_http import request_cosignatures, serve, witness_app
from clinical_ser.cli.console import check_output_file, literal, output, print_line
from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import AuditSetupError, InvalidValueError

keys_app = typer.Typer(help="The log's signing keys.", no_args_is_help=True)
witness_commands = typer.Typer(help="Have the log's checkpoints cosigned, or cosign those of others.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
Source = Annotated[str | None, typer.Option(metavar="SOURCE", help="file, env:VARIABLE, or exec:PROGRAM; as before otherwise.")]
_KEY_ID = re.compile("[0-9a-f]{8}")


# --- Keys ---------------------------------------------------------------------------------------------------------------------------------


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show the verifier keys, those of retired ones too: old checkpoints still verify with them."""
    keys = LogConfiguration.required().load_keys()
    if as_json:
        print_line(json.dumps([record.model_dump(mode="json") for record in keys.records]))
        return
    for record in keys.records:
        output.print(
            f"{record.state}, since {literal(record.created)}"
            + (f" until {literal(record.retired)}, believed up to {record.last_size} records" if record.retired else "")
        )
        print_line(f"  {record.key}")


@keys_app.command()
def rotate(source: Source = None) -> None:
    """Make a new signing key and destroy the old one's private half. What the old one signed still verifies."""
    configuration = LogConfiguration.required()
    _change_keys(configuration, lambda keys, size: keys.rotate(source, last_size=size))
    output.print("Rotated. What the old key signed still verifies; it is believed about no larger log. The new verifier keys, to give to")
    output.print("whoever verifies, by a way they trust, and to every witness (logs.toml):")
    for key in configuration.load_keys().active:
        print_line(str(key))


@keys_app.command()
def retire(key_id: Annotated[str, typer.Argument(help="Eight hex digits, as in the verifier key.")]) -> None:
    """Retire a signing key without a successor, where there are several."""
    if not _KEY_ID.fullmatch(key_id):
        raise InvalidValueError("KEY_ID", "none", "the eight hex digits in the middle of a verifier key (`audit keys list`)")
    _change_keys(LogConfiguration.required(), lambda keys, size: keys.retire(int(key_id, 16), last_size=size))
    output.print("Retired. What it signed still verifies.")


def _active(keys: LogKeys) -> str:
    return " ".join(str(key) for key in keys.active)


def _change_keys(configuration: LogConfiguration, change: Callable[[LogKeys, int], object]) -> None:
    """Change the keys while nobody else signs with them: what is about to be done is recorded before, and what was done after, with the new keys."""
    old, who = _active(configuration.load_keys()), operator()
    with configuration.write() as log:
        log.append(Configuration(actor=who, setting="signing keys are about to change", old=old, new=None), purpose=Purpose.OPERATIONS)
        log.retain()
        change(configuration.load_keys(), log.size)
    new = _active(configuration.load_keys())
    with configuration.write() as log:
        log.append(Configuration(actor=who, setting="signing keys", old=old, new=new), purpose=Purpose.OPERATIONS)


# --- Witnesses ----------------------------------------------------------------------------------------------------------------------------


@witness_commands.command()
def ask(
    url: Annotated[str, typer.Argument(help="Where the witness is asked: https://…, or http:// on this machine.")],
    key: Annotated[list[str], typer.Option("--key", help="The witness's verifier key (repeatable).")],
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 10.0,
) -> None:
    """Have a witness cosign the log's head; the cosignature is kept, and goes into what is made with --cosigned."""
    witnesses = [VerifierKey.parse(text) for text in key]
    configuration = LogConfiguration.required()
    with configuration.write() as log:
        note = log.retain()
    with configuration.read(sealed=True) as reader:
        # What was recorded since does not matter: the proof is about the checkpoint that was sent.
        found = request_cosignatures(url, note, witnesses, consistency=lambda old: reader.consistency(old, _size(note)), timeout_s=timeout)
    with configuration.write() as log:
        log.add_cosignature("".join(signature.line for signature in found), witnesses)
    for signature in found:
        moment = datetime.fromtimestamp(timestamp_of(signature.signature), UTC)
        output.print(f"Cosigned by {literal(signature.name)} at {moment:%Y-%m-%d %H:%M:%S} UTC: {_size(note)} records.")


@witness_commands.command("request")
def write_request(
    out: Annotated[Path, typer.Option("--output", "-o", help="The request, to be carried to a witness that is not on the network.")],
    old_size: Annotated[int, typer.Option(min=0, help="The size that this witness cosigned last.")] = 0,
) -> None:
    """Write what a witness is asked, to a file."""
    check_output_file(out)
    configuration = LogConfiguration.required()
    with configuration.write() as log:
        note = log.retain()
    with configuration.read(sealed=True) as reader:
        proof = tuple(reader.consistency(old_size, _size(note)))
    with replaced(out) as draft:
        draft.write_bytes(WitnessRequest(old_size, proof, note).encode())


@witness_commands.command("init")
def init_witness(
    folder: Annotated[Path, typer.Argument(help="A new folder for the witness's key and memory.")],
    name: Annotated[str, typer.Option(help="The witness's name: a URL without https://.")],
    logs: Annotated[Path, typer.Option(help="The logs to witness (.toml), each a table log with origin and keys (docs/compliance.md).")],
    key_source: Annotated[str, typer.Option(metavar="SOURCE", help="file, env:VARIABLE, or exec:PROGRAM.")] = "file",
) -> None:
    """Make a witness: a key of its own, and a memory of what it cosigned. Do it on another machine than the log's."""
    known = load_logs(logs)
    keys = LogKeys.create(folder, name, source=key_source)
    Witness.create(folder / MEMORY_FILE, known, cosigners_of(keys)).close()
    with replaced(folder / LOGS_FILE) as draft:
        draft.write_bytes(logs.read_bytes())
    output.print("The witness is made. Its verifier key, for the logs' owners:")
    for signer in cosigners_of(keys):
        print_line(str(signer.key))


@witness_commands.command()
def cosign(
    folder: Annotated[Path, typer.Argument(help="The witness's folder.")],
    request: Annotated[Path, typer.Argument(help="What `audit witness request` wrote.")],
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; the terminal otherwise.")] = None,
) -> None:
    """Cosign a request that came as a file; the cosignature is to be carried back. It is given once: a lost one needs a new request."""
    if out is not None:
        check_output_file(out)
    witness = open_witness(folder)
    try:
        lines = cosign_file(witness, request)
    finally:
        witness.close()
    if out is None:
        print_line(lines.removesuffix("\n"))
        return
    with replaced(out) as draft:
        draft.write_text(lines, encoding="utf-8")


@witness_commands.command("add")
def add_cosignature(
    lines: Annotated[Path, typer.Argument(help="The cosignature that a witness gave, as a file.")],
    key: Annotated[list[str], typer.Option("--key", help="The witness's verifier key (repeatable).")],
) -> None:
    """Keep a cosignature that was carried back, if it fits one of the checkpoints that were kept."""
    from clinical_ser.cli.audit import parse_keys, read_text

    configuration = LogConfiguration.required()
    with configuration.write() as log:
        size = log.add_cosignature(read_text(lines), parse_keys(key))
    output.print(f"Kept, for the checkpoint of {size} records.")


@witness_commands.command("serve")
def serve_witness(
    folder: Annotated[Path, typer.Argument(help="The witness's folder.")],
    host: Annotated[str, typer.Option(help="Another than this machine's own needs --certificate and --private-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 8470,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain (.pem).")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its private key (.pem).")] = None,
) -> None:
    """Answer add-checkpoint requests over HTTP (c2sp.org/tlog-witness) until stopped."""
    witness = open_witness(folder)
    output.print(f"Listening on {'https' if certificate else 'http'}://{literal(host)}:{port}. A change of {LOGS_FILE} counts with the next request.")
    try:
        serve(witness_app(witness), host, port, certificate=certificate, key=private_key)
    finally:
        witness.close()


# --- Time stamps --------------------------------------------------------------------------------------------------------------------------


def anchor(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that `audit checkpoint -o` wrote.")],
    roots: Annotated[Path, typer.Option(help="Root certificates (.pem) of the time stamping authority.")],
    url: Annotated[str | None, typer.Option(help="The authority (RFC 3161) to ask; without it the stamp beside the checkpoint is verified.")] = None,
) -> None:
    """Have a checkpoint time-stamped, which dates it by somebody else's clock; or verify the stamp that it has."""
    from clinical_ser.cli.audit import read_bytes

    try:
        from clinical_ser.audit.anchor import load_roots, request_timestamp, save_timestamp, timestamp_path, verify_timestamp
    except ModuleNotFoundError:
        raise AuditSetupError("Time stamps need a library that is not installed: pip install 'clinical-ser[anchor]'.") from None

    note, trusted = read_bytes(checkpoint), load_roots(roots)
    if url is not None:
        save_timestamp(request_timestamp(url, note, trusted), checkpoint)
    stamp = verify_timestamp(note, read_bytes(timestamp_path(checkpoint)), trusted)
    output.print(f"[green]In order.[/green] The checkpoint existed at {stamp.time:%Y-%m-%d %H:%M:%S} UTC (serial {stamp.serial}).")


def _size(note: str) -> int:
    return Checkpoint.parse(note[: note.rindex("\n\n") + 1]).size
