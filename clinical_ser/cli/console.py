"""What every command prints with and exits with: results go to stdout, everything else to stderr.

The one idea: text that came from outside (a path, a label, a bundle) is shown as it is, on one line, and never obeyed as markup.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clinical_ser.cohorts.table import RowProblem
from clinical_ser.errors import BundleWriteError, InvalidValueError

FAILED, WRONG_USAGE, NOT_USABLE, INTERRUPTED = 1, 2, 3, 130
"""Exit codes besides 0: failed, wrong usage, a recording that cannot be used, stopped by Ctrl-C (128 + SIGINT, as shells have it)."""

SHOWN_PROBLEMS = 10

output = Console(soft_wrap=True, highlight=False, emoji=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

Report = Callable[[int, int], None]
"""Called with (done, total)."""


def literal(text: object) -> str:
    """Return text for a console: markup is escaped, and so is what does not print (newlines, terminal codes, half characters)."""
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)))


def percent(share: float) -> str:
    """Write a share in whole percents; never a false 0 or 100."""
    return "<1%" if share < 0.01 else ">99%" if share > 0.99 else f"{share:.0%}"


def print_line(text: str) -> None:
    """Print a line to stdout as it is, for programs to read: no markup, no wrapping, no colour."""
    sys.stdout.write(f"{text}\n")


def print_json(model: BaseModel, *, indent: int | None = None) -> None:
    """Print a model as JSON in ASCII, which every terminal and pipe takes."""
    print_line(json.dumps(model.model_dump(mode="json"), indent=indent))


def program() -> str:
    """Return how this program was called, for commands to copy: its name if the shell finds it, else its path."""
    name = "clinical-ser"
    return name if shutil.which(name) else literal(os.path.relpath(sys.argv[0]))


def complain(what: str, why: object) -> None:
    """Print one line on stderr."""
    errors.print(f"[bold]{literal(what)}:[/bold] {literal(why)}")


def report_problems(problems: tuple[RowProblem, ...]) -> None:
    """Print rows with a problem on stderr, the first of them one by one."""
    for problem in problems[:SHOWN_PROBLEMS]:
        complain(f"Row {problem.row}", problem.reason)
    if len(problems) > SHOWN_PROBLEMS:
        complain("And", f"{len(problems) - SHOWN_PROBLEMS} more rows")


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Show a bar on stderr while work reports how far it is; it leaves one line behind on a terminal, nothing in a pipe."""
    columns = (SpinnerColumn(), TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    if not errors.is_terminal:
        errors.print(f"{title} ...")
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def check_output_file(path: Path, option: str = "--output") -> None:
    """Make sure, before the work, that its result can be written; InvalidValueError if not."""
    if os.path.isdir(path):
        raise InvalidValueError(option, "a folder", "the name of a file")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:  # its text holds the path
        raise InvalidValueError(option, f"a file that cannot be written ({error.strerror})", "one in a folder that is there and yours") from None


def check_output_folder(path: Path, option: str = "--output") -> None:
    """Make sure, before the work, that a folder is there or can be made, and written to; InvalidValueError if not."""
    try:
        there = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # its text holds the path
        raise InvalidValueError(
            option, f"a folder that cannot be written ({error.strerror})", "a folder of yours, or the name of a new one"
        ) from None


def check_bundle_folder(folder: Path, *, replace: bool) -> None:
    """Refuse before the training what `save` would refuse after it."""
    check_output_folder(folder)
    if not replace and folder.is_dir() and os.listdir(folder):
        raise BundleWriteError("Something is in the bundle's folder already; choose another place, or replace a bundle with --replace.")
