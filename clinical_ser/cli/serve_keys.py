"""`clinical-ser serve keys`: API keys, given out, looked at, replaced and taken back.

The one idea: a key is shown once, alone on stdout, and is nowhere else. The audit trail knows of it before it is good, and of its end afterwards.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.api.access import Scope, named_in
from clinical_ser.api.api_keys import ApiKey, NewKey, add_key, read_keys, revoke_key, rotate_key
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.audit.answering import operator
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Configuration, Purpose, Role
from clinical_ser.cli.console import complain, literal, output, print_line
from clinical_ser.errors import AuditBusyError, ServerSetupError

app = typer.Typer(help="API keys, for machines and for people without an identity provider.", no_args_is_help=True)

_MAX_DAYS = 5 * 365
# A server that runs lends the log between two commits; another command has it for a moment.
_WAIT_S = 2.0

File = Annotated[Path | None, typer.Option("--file", help="The file of the keys; otherwise where server.toml says, or beside it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
KeyId = Annotated[str, typer.Argument(help="The eight characters between the key's underscores (`serve keys list`).", metavar="ID")]
Days = Annotated[int, typer.Option(min=1, max=_MAX_DAYS, help="For how many days the new key is good.")]


@app.command()
def add(
    client: Annotated[str, typer.Argument(help="Whose key it is: an account or a program, as the audit trail shall name it.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do (repeatable).")],
    role: Annotated[Role, typer.Option(help="In what role it acts.")] = Role.SERVICE,
    name: Annotated[str | None, typer.Option(help="A person's printed name, shown with reviews.")] = None,
    tenant: Annotated[str, typer.Option(help="The site that it belongs to, where the installation has several.")] = "",
    days: Days = 365,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make a client's key and print it, this once."""
    made = add_key(
        _place(file, tenant=tenant),
        client=client,
        role=role,
        scopes=frozenset(scope),
        tenant=tenant,
        name=name,
        lifetime=timedelta(days=days),
        announce=lambda key: _record("API key is added", None, _told(key)),
    )
    _hand_out(made, as_json=as_json)


@app.command("list")
def list_keys(file: File = None, as_json: AsJson = False) -> None:
    """Show whose keys there are, and until when they are good."""
    now = datetime.now(UTC)
    keys = read_keys(_place(file))
    if as_json:
        print_line(json.dumps([_shown(key, now) for key in keys]))
        return
    for key in keys:
        output.print(f"{key.id}  {key.state(now)}, {key.created} to {key.revoked or key.expires}  {literal(_whose(key))}")


@app.command()
def rotate(
    key_id: KeyId,
    days: Days = 365,
    overlap_days: Annotated[int, typer.Option(min=0, max=90, help="For how many days the old key goes on beside the new one.")] = 7,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make the successor of a key and print it, this once; the old one goes on for a while."""
    made = rotate_key(
        _place(file),
        key_id,
        overlap=timedelta(days=overlap_days),
        lifetime=timedelta(days=days),
        announce=lambda key: _record("API key is rotated", f"id {key_id}, good for {overlap_days} more days at most", _told(key)),
    )
    _hand_out(made, as_json=as_json)


@app.command()
def revoke(key_id: KeyId, file: File = None, as_json: AsJson = False) -> None:
    """End a key at once: the running server refuses it with its next request."""
    # First of all, and the record after: a log that cannot be written to must not keep a stolen key alive.
    ended = revoke_key(_place(file), key_id)
    if as_json:
        print_line(json.dumps(_shown(ended, datetime.now(UTC))))
    else:
        output.print(f"Revoked: {ended.id} ({literal(_whose(ended))}).")
    try:
        _record("API key was revoked", _told(ended), None)
    except AuditBusyError:
        complain(
            "Not recorded", "the key is revoked, and another process kept the audit log from recording it; see `audit list`, and say so there later."
        )


def _place(file: Path | None, *, tenant: str | None = None) -> Path:
    """Return where the keys are; ServerSetupError for a tenant that the installation does not have, whose keys the server would refuse."""
    if file is not None and tenant is None:
        return file
    configuration = ServerConfiguration.find()
    if tenant is not None and tenant not in (configuration.tenants or ("",)):
        known = ", ".join(configuration.tenants)
        raise ServerSetupError(f"The tenant has to be one of {known}." if known else "This installation has one site: leave --tenant out.")
    return file or configuration.keys_file


def _record(setting: str, old: str | None, new: str | None) -> None:
    """Record a change in the site's log, if it has one; AuditBusyError where another process keeps it."""
    configuration = LogConfiguration.find()
    if configuration is None:
        return
    with configuration.write(wait_s=_WAIT_S) as log:
        log.append(Configuration(actor=operator(), setting=setting, old=old, new=new), purpose=Purpose.OPERATIONS)


def _told(key: ApiKey) -> str:
    """Return a key in words, for the trail."""
    return f"id {key.id}, client {_whose(key)}, from {key.created} to {key.expires}"


def _whose(key: ApiKey) -> str:
    return f"{named_in(key.tenant, key.client)} as {key.role}: {' '.join(key.scopes)}"


def _shown(key: ApiKey, now: datetime) -> dict[str, object]:
    return {"state": key.state(now), **key.model_dump(mode="json", exclude={"sha256"})}


def _hand_out(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        print_line(json.dumps({"key": made.text, **_shown(made.record, datetime.now(UTC))}))
    else:
        print_line(made.text)
    complain("Keep it", "this is the only time the key is shown. Whoever has it can do what it may; do not put it on a command line or into a URL.")
    complain("Its id", f"{made.record.id}, good until {made.record.expires}.")
