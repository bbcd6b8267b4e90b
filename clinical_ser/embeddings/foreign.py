"""Libraries that raise whatever they stumble over, with paths and addresses in the text: the one place where everything is caught.

ONNX Runtime's errors have no base in common, hubs raise those of two HTTP libraries, and a damaged model raises from anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from clinical_ser.errors import ClinicalSerError, EncoderError


@contextmanager
def refused_as(message: str) -> Iterator[None]:
    """Turn any error of the block into an EncoderError; `{kind}` in its message becomes the name of the class, and nothing else is told."""
    try:
        yield
    except ClinicalSerError:
        raise
    except Exception as error:  # noqa: BLE001  see above
        raise EncoderError(message.format(kind=type(error).__name__)) from None
