"""`clinical-ser cache`: what a cache folder of `extract` holds, and how to be rid of it."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.cli.cohort import CacheDays
from clinical_ser.cli.console import output, print_json
from clinical_ser.features.cache import DEFAULT_MAX_AGE, CacheState, erase, inspect

app = typer.Typer(help="Look at the cache of `extract --cache`, or clear it.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The folder given to `extract --cache`.", show_default=False)]


@app.command()
def info(
    folder: Folder,
    cache_days: CacheDays = DEFAULT_MAX_AGE.days,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show how much a cache holds and how old it is. Nothing is opened, changed or deleted."""
    state = inspect(folder, max_age=timedelta(days=cache_days))
    if as_json:
        print_json(state, indent=2)
    else:
        _show(state)


def _show(state: CacheState) -> None:
    output.print(f"{state.entries} entries, {state.size_bytes:,} bytes, encrypted.")
    if state.oldest:
        output.print(f"Oldest: {state.oldest:%Y-%m-%d %H:%M} UTC. Kept for {state.days_kept:g} days; {state.expired} are past that.")
    if state.clear_text:
        output.print(f"{state.clear_text} entries of an older version in clear text: `extract --cache` deletes them, and so does `cache clear`.")
    if state.entries and not state.key_is_here:
        output.print("This user's configuration folder does not hold a key that opens it; without that key only `cache clear` is left.")


@app.command()
def clear(folder: Folder) -> None:
    """Destroy the key of a cache and delete its entries. What an SSD or a backup of the folder still holds can then not be read."""
    erased = erase(folder)
    output.print(f"{erased} entries deleted, and the key that they were sealed with.")
