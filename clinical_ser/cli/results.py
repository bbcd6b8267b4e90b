"""Results that were written to files: told apart from recordings by their first byte, and refused whole if anything in them does not fit."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from clinical_ser.audit.answering import Recorder
from clinical_ser.errors import AudioNotFoundError, InvalidValueError
from clinical_ser.screening.result import SCHEMA, ScreeningResult

UNVOUCHED = (
    "[yellow]![/yellow] Read from a file, which nothing vouches for: a result is not signed, and what it says of its model's signature is its own "
    "word."
)
LARGEST_RESULT_BYTES = 64 * 1024**2
"""Two hours of tracks are some 20 MB."""


def read_result(source: Path) -> ScreeningResult | None:
    """Return the result that a file holds; None where it is no JSON, and so a recording. Recordings do not begin with a brace.

    Raises
    ------
    AudioNotFoundError
        No file can be read there.
    InvalidValueError
        JSON that is no result of this version.
    """
    try:
        with source.open("rb") as file:
            if not file.read(64).lstrip().startswith(b"{"):
                return None
            file.seek(0)
            content = file.read(LARGEST_RESULT_BYTES + 1)
    except OSError:  # its text holds the path; what the recording's reader says does not
        raise AudioNotFoundError("No readable file is at the path given; give a recording, or a result of `screen --json`.") from None
    if len(content) > LARGEST_RESULT_BYTES:
        raise InvalidValueError("SOURCE", "a result of many megabytes", "one of `screen --json` or `explain --json`")
    return parsed(content, "SOURCE", "a recording, or one result of `screen --json` or `explain --json`")


def vouched(recorder: Recorder, results: Sequence[ScreeningResult]) -> str:
    """Say whether the site's audit log has answers that were read from files, bit for bit as they are."""
    found = [recorder.find_answer(result) for result in results]
    if not recorder.is_on or not all(index is not None for index in found):
        return UNVOUCHED
    return f"In the audit log of this site, as it was answered: record {', '.join(map(str, found))}."


def parsed(content: bytes, what: str, expected: str) -> ScreeningResult:
    """Return the result that JSON holds; InvalidValueError, which names it `what`, says what it seems to be instead."""
    try:
        return ScreeningResult.model_validate_json(content)
    except ValidationError:
        raise InvalidValueError(what, _what_it_is(content), expected) from None


def _what_it_is(content: bytes) -> str:
    """Say what JSON that is no result seems to be."""
    try:
        first = json.loads(content.split(b"\n", 1)[0] if b'"position"' in content[:64] else content)
    except (ValueError, RecursionError):
        return "JSON that ends early or is damaged"
    if "result" in first:
        return "a line of several results (take what stands under `result` in one of them)"
    if str(first.get("schema_id", "")).startswith("clinical-ser/result/") and first["schema_id"] != SCHEMA:
        return "a result of another version (screen the recording again)"
    return "JSON that is no result, or whose numbers contradict each other"
