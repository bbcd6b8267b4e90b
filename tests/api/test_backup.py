"""Backup and restore as docs/hospital-it.md says, on a server that runs meanwhile."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.errors import AuditTamperedError
from tests.api.servers import Client, serving


def database_of(folder: Path) -> Path:
    """Where the log of a folder is."""
    return Path(LogConfiguration.load(folder / "audit.toml").database.removeprefix("sqlite:"))


def backed_up(folder: Path, to: Path, meanwhile=lambda: None) -> Path:
    """Copy kept head, database, vault and the other keys, in this order, while others write."""
    to.mkdir()
    keys, place = LogConfiguration.load(folder / "audit.toml").keys, to / database_of(folder).relative_to(folder)
    copied = to / keys.relative_to(folder)
    place.parent.mkdir()
    copied.mkdir(mode=0o700, parents=True)
    if (keys / "kept.checkpoint").exists():
        shutil.copy2(keys / "kept.checkpoint", copied)
    meanwhile()
    copy_of(database_of(folder), place)
    meanwhile()
    copy_of(keys / "vault.sqlite", copied / "vault.sqlite")
    meanwhile()
    for path in keys.iterdir():
        if path.is_file() and not path.name.startswith("vault.sqlite") and path.name != "kept.checkpoint" and path.suffix != ".lock":
            shutil.copy2(path, copied)
    shutil.copy2(folder / "api_keys.json", to)
    (to / "audit.toml").write_text((folder / "audit.toml").read_text().replace(str(folder), str(to)))
    return to


def copy_of(path: Path, to: Path) -> None:
    """Copy a database as sqlite3's .backup does."""
    with sqlite3.connect(path) as live, sqlite3.connect(to) as copy:
        live.backup(copy)
    to.chmod(0o600)


def test_what_was_backed_up_while_the_server_ran_is_served_again(tmp_path, bundle, recording):
    live = tmp_path / "live"
    live.mkdir()
    with serving(live, (str(bundle),)) as server:
        key = server.keys["everything"]
        done = server.client().screen(recording, subject="before").json
        numbers = iter(range(100))

        def meanwhile() -> None:
            server.client().screen(recording, subject=f"meanwhile {next(numbers)}")
            assert server.client().get("/v1/audit/checkpoint").status == 200

        copy = backed_up(live, tmp_path / "restored", meanwhile)
        server.client().screen(recording, subject="after")
    restored = LogConfiguration.load(copy / "audit.toml")
    assert restored.verify().size >= 3
    with serving(copy, (str(bundle),)) as server:
        client = Client(server.port, key)
        assert client.get(done["links"]["self"]).json["result"] == done["result"]
        assert client.screen(recording, subject="before").status == 200
        assert client.screen(recording, subject="later").status == 201
    assert restored.verify().size > 3


def test_a_database_that_is_older_than_the_head_beside_the_keys_is_refused(tmp_path, bundle, recording):
    live = tmp_path / "live"
    live.mkdir()
    with serving(live, (str(bundle),)) as server:
        server.client().screen(recording, subject="before")
        copy = backed_up(live, tmp_path / "old")
        server.client().screen(recording, subject="after")
    for path in live.glob(f"{database_of(live).name}-*"):
        path.unlink()
    shutil.copy2(database_of(copy), database_of(live))
    with pytest.raises(AuditTamperedError), serving(live, (str(bundle),)):
        pass
