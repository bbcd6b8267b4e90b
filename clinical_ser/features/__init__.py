"""What a voice measures: named features of one recording, or of many, each with its unit and meaning in the catalogue.

Names are loaded when they are first used: a worker process, or a reader of the catalogue, does not wait for openSMILE and Praat.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clinical_ser.features.batch import Executor, Outcome, Progress, extract_many
    from clinical_ser.features.cache import FeatureCache
    from clinical_ser.features.extraction import (
        DEFAULT_SETS,
        FEATURE_SETS,
        Extraction,
        Source,
        apply_gate,
        extract,
        extract_file,
        feature_names,
        fingerprints,
        select,
    )
    from clinical_ser.features.vector import FeatureVector

__all__ = [
    "DEFAULT_SETS",
    "FEATURE_SETS",
    "Executor",
    "Extraction",
    "FeatureCache",
    "FeatureVector",
    "Outcome",
    "Progress",
    "Source",
    "apply_gate",
    "extract",
    "extract_file",
    "extract_many",
    "feature_names",
    "fingerprints",
    "select",
]

_MODULES = {"Executor": "batch", "Outcome": "batch", "Progress": "batch", "extract_many": "batch", "FeatureCache": "cache", "FeatureVector": "vector"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'extraction')}"), name)
