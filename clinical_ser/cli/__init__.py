"""The command line: `clinical-ser COMMAND`. One file a command group; each file only reads its options and calls the package.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 recording not usable.
"""

import sys

from clinical_ser.cli.app import app
from clinical_ser.cli.console import complain, errors
from clinical_ser.errors import ClinicalSerError, InvalidValueError

FAILED, WRONG_USAGE = 1, 2


def main() -> None:
    """Run the command line; an error raised on purpose becomes one line on stderr and an exit code."""
    try:
        app(prog_name="clinical-ser")
    except InvalidValueError as error:
        complain("Wrong usage", error)
        sys.exit(WRONG_USAGE)
    except ClinicalSerError as error:
        complain("Failed", error)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        errors.print("Interrupted. What was finished is kept; the same command goes on from there.")
        sys.exit(130)
