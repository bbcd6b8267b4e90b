"""Speech screening: a recording in, an explained and calibrated result out, or an honest "cannot tell". Screening, never diagnosis.

>>> import clinical_ser
>>> result = clinical_ser.screen("visit.m4a", sex="female", age=54)  # doctest: +SKIP
>>> result.status, result.probability  # doctest: +SKIP
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# ONNX Runtime's Linux wheels queue events about the machine for their maker, and send them from processes that live long enough. It looks at this
# when it is loaded; set here, before any room can load it, it holds in worker processes too. Nothing leaves.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from clinical_ser.audio import load
    from clinical_ser.audit.answering import screen
    from clinical_ser.embeddings import encode
    from clinical_ser.features import extract
    from clinical_ser.models.training import train
    from clinical_ser.screening import load_model

__all__ = ["encode", "extract", "load", "load_model", "screen", "train"]

_HOME = {
    "load": "clinical_ser.audio",
    "encode": "clinical_ser.embeddings",
    "extract": "clinical_ser.features",
    "train": "clinical_ser.models.training",
    "load_model": "clinical_ser.screening",
    "screen": "clinical_ser.audit.answering",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: Praat and openSMILE take a second, and `--help` should not.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
