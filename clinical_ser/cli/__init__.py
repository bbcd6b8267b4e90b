"""The command line: `clinical-ser COMMAND`. One file a command group; each file only reads its options and calls the package.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 recording not usable, 130 stopped by Ctrl-C; named in `console.py`.
"""

import io
import sys

from clinical_ser.cli.app import app
from clinical_ser.cli.console import FAILED, WRONG_USAGE, complain
from clinical_ser.errors import ClinicalSerError, InvalidValueError


def main() -> None:
    """Run the command line; an error raised on purpose, or by the system, becomes one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal's encoding lacks is written as an escape, as Python does for stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="clinical-ser")
    except InvalidValueError as error:
        complain("Wrong usage", error)
        sys.exit(WRONG_USAGE)
    except ClinicalSerError as error:
        complain("Failed", error)
        sys.exit(FAILED)
    except OSError as error:  # its text holds the path
        complain("Failed", f"The system refused to read or write a file: {error.strerror or type(error).__name__}.")
        sys.exit(FAILED)
