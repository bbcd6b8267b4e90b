"""Tables as docs/benchmarks.md shows them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def markdown(rows: Sequence[Mapping[str, object]], *, header: bool = True) -> str:
    """Format rows with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"] if header else []
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def publish(found: Mapping[str, Sequence[Mapping[str, object]]], path: Path | None) -> None:
    """Print titled tables, and write them as JSON where that is asked for."""
    for title, rows in found.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    if path:
        path.write_text(json.dumps(found, indent=2))
