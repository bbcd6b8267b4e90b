"""What the tests of the exports that are about a clause share: a log with times of one's own, and a forger who has the log's key.

The one idea: a format's verifier has to see what the envelope cannot, so what is forged here is signed like the real thing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from clinical_ser.audit.events import Event, Flag, canonical
from clinical_ser.audit.exports.packet import CHECKPOINT, Packet, PacketWriter, open_packet
from clinical_ser.audit.records import Record
from tests.audit.exports.example import KEYS, ORIGIN, SIGNER, ExampleLog

CREATED = datetime(2026, 11, 1, 12, tzinfo=UTC)
REQUESTED = datetime(2026, 10, 1, 12, tzinfo=UTC)


@dataclass
class TimedLog(ExampleLog):
    """An example log whose records have the times, flags and runs given, by index."""

    times: dict[int, datetime] = field(default_factory=dict)
    flags: dict[int, tuple[Flag, ...]] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)

    def records(self, start=0, stop=None):
        for record in super().records(start, stop):
            yield self._changed(record)

    def _changed(self, record):
        moment = self.times.get(record.index, record.event.moment).astimezone(UTC)
        changes = {
            "time": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "flags": self.flags.get(record.index, record.event.flags),
            "run": self.runs.get(record.index, record.event.run),
        }
        leaf = canonical(record.event.model_copy(update=changes).model_dump(mode="json", by_alias=True))
        return Record(record.index, leaf, Event.parse(leaf), record.payload, record.salt, record.state)


def opened(folder: Path) -> Packet:
    return open_packet(folder, KEYS, ORIGIN)


def everything(folder: Path) -> bytes:
    """All bytes of an export, names of files included."""
    return b"\n".join(path.name.encode() + b"\n" + path.read_bytes() for path in sorted(folder.iterdir()))


def forged(folder: Path, target: Path, reader: ExampleLog, **changes: Callable[[bytes], bytes] | bytes | None) -> Packet:
    """Sign an export again with files changed (a function or new content), dropped (None) or added; a name's dots and dashes are underscores here."""
    was = opened(folder)
    manifest = was.manifest
    wanted = {name: name for name in manifest.files}
    spelled = {name.replace(".", "_").replace("-", "_"): name for name in wanted}
    with PacketWriter(
        target, form=manifest.form.name, reader=reader, signers=[SIGNER], first=manifest.first, last=manifest.last, not_claimed=manifest.not_claimed
    ) as writer:
        for name, entry in manifest.files.items():
            change = changes.pop(name.replace(".", "_").replace("-", "_"), lambda content: content)
            if change is not None and name != CHECKPOINT:
                content = was.read(name)
                writer.add(name, change if isinstance(change, bytes) else change(content), entry.media_type, entry.schema_id)
        assert not set(changes) & set(spelled)
        for name, content in changes.items():
            writer.add(name, content, "text/plain")
    return opened(target)


def with_document(**changes) -> Callable[[bytes], bytes]:
    """Change fields of a document, in its own spelling."""

    def change(content: bytes) -> bytes:
        document = {**json.loads(content), **changes}
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"

    return change


def without_line(number: int) -> Callable[[bytes], bytes]:
    return lambda content: b"".join(line for i, line in enumerate(content.splitlines(keepends=True)) if i != number)


def with_line(number: int, **changes) -> Callable[[bytes], bytes]:
    """Change fields of a line of records.jsonl; a function gets the value that is there."""

    def change(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        line = json.loads(lines[number])
        line |= {name: value(line[name]) if callable(value) else value for name, value in changes.items()}
        lines[number] = canonical(line) + b"\n"
        return b"".join(lines)

    return change
