"""The two consoles and the progress bar that every command uses: results go to stdout, everything else to stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

output = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

NOT_USABLE = 3
"""Exit code when a recording cannot be used; 0 is done, 1 failed, 2 wrong usage."""

Report = Callable[[int, int], None]
"""Called with (done, total)."""


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Show a bar on stderr while work reports how far it is; leaves one line behind on a terminal, nothing in a pipe."""
    columns = (SpinnerColumn(), TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=errors) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def complain(what: str, why: object) -> None:
    """Print one line on stderr."""
    errors.print(f"[bold]{escape(what)}:[/bold] {escape(str(why))}")
