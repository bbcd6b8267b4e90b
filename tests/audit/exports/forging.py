"""Exports that someone with the log's key has changed: the envelope fits again, so only a format's own verifier can notice."""

import hashlib
import json
from pathlib import Path

from clinical_ser.audit.exports.packet import MANIFEST, NOTE, Manifest, _note_text
from clinical_ser.audit.notes import sign_note
from tests.audit.exports.example import SIGNER


def reseal(folder: Path, **changes: object) -> None:
    """Make manifest and signature anew over the files that are there."""
    told = json.loads((folder / MANIFEST).read_bytes())
    for name in list(told["files"]):
        content = (folder / name).read_bytes()
        told["files"][name] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = Manifest.model_validate_json(json.dumps(told | changes))
    (folder / MANIFEST).write_bytes(manifest.canonical())
    (folder / NOTE).write_text(sign_note(_note_text(manifest, manifest.canonical()), [SIGNER]))


def change_lines(folder: Path, name: str, change) -> None:
    """Give the lines of a file to a function that returns others, and make the envelope fit."""
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join(change(lines)))
    reseal(folder)


def change_json(folder: Path, name: str, number: int, change) -> None:
    """Change one line's JSON in place, and make the envelope fit."""

    def changed(lines):
        value = json.loads(lines[number])
        change(value)
        lines[number] = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        return lines

    change_lines(folder, name, changed)
