"""JSON with one spelling: what is written has one form only, and what is read must leave no room for two readings.

Digests and signatures are over bytes, so two programs that read the same bytes must see the same values. Plain `json` takes the last of
two equal keys, NaN, 1e999 as infinity, unpaired surrogates and any depth; each of these is refused here (RFC 8259 section 4 and 8.2, RFC 7493).
"""

import json
import math
from collections.abc import Iterator
from typing import NoReturn

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

# Our own files nest 6 deep; xgboost's JSON models 7. Python's parser gives up near 1000.
MAX_DEPTH = 64


class StrictJsonError(ValueError):
    """Bytes that are no JSON of this kind, or a value that has none; whoever knows the file's name turns it into a typed error."""


def canonical_json(value: object) -> bytes:
    r"""Return the one spelling of a JSON value: keys sorted by code point, no spaces, UTF-8, shortest floats, one newline at the end.

    Parameters
    ----------
    value
        Made of dict (text keys), list or tuple, str, int, float, bool and None.

    Raises
    ------
    StrictJsonError
        For NaN, infinity, keys that are not text, unpaired surrogates, nesting deeper than `MAX_DEPTH`.

    Examples
    --------
    >>> canonical_json({"b": 0.1, "a": [True, "é"]}) == '{"a":[true,"é"],"b":0.1}\n'.encode()
    True
    """
    try:
        _check_structure(value)
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        raise StrictJsonError("text holds an unpaired surrogate") from None
    except (ValueError, RecursionError) as error:
        raise StrictJsonError(_first_line(error)) from None


def parse_json(raw: bytes) -> JsonValue:
    """Parse UTF-8 JSON, refusing what two parsers could read differently.

    Raises
    ------
    StrictJsonError
        For anything but one finite, unambiguous value: not UTF-8, a byte-order mark, a key twice, NaN or infinity (1e999 too), unpaired
        surrogates, nesting deeper than `MAX_DEPTH`, an integer of more than 4300 digits.
    """
    try:
        value: JsonValue = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_float=_finite_float, parse_constant=_refuse_constant)
        _check_structure(value)
        # An escape can spell half of a pair, which no UTF-8 can; only then is it worth encoding the whole value to find out.
        if b"\\ud" in raw.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise StrictJsonError("not UTF-8 text") from None
    except UnicodeEncodeError:
        raise StrictJsonError("text holds an unpaired surrogate") from None
    except RecursionError:
        raise StrictJsonError(f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise StrictJsonError(_first_line(error)) from None
    return value


def parse_canonical_object(raw: bytes) -> dict[str, JsonValue]:
    """Parse one JSON object that is spelled exactly as `canonical_json` spells it; StrictJsonError otherwise."""
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise StrictJsonError("not a JSON object")
    if canonical_json(value) != raw:
        raise StrictJsonError("not in canonical form (sorted keys, no spaces, one newline at the end)")
    return value


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise StrictJsonError("an object has the same key twice")
    return value


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJsonError("a number is too large to be finite")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise StrictJsonError(f"{text} is not JSON")


def _check_structure(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _containers_in(parent)]
        if not level:
            return
    raise StrictJsonError(f"nested deeper than {MAX_DEPTH}")


def _containers_in(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise StrictJsonError("an object's keys must be text")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return iter(())
    return (child for child in value if isinstance(child, dict | list | tuple))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
