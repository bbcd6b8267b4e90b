"""Tables as docs/benchmarks.md shows them."""

from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]], *, header: bool = True) -> str:
    """Format rows with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"] if header else []
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)
