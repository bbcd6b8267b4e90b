"""Which statistics this installation computes: sites with other code add up numbers of one shape and two meanings."""

import hashlib
from functools import cache
from pathlib import Path

import clinical_ser

ALSO = ("cohorts", "control", "evaluation", "explain", "models", "monitoring")
"""Rooms of clinical_ser whose code statistics run on rows, beside this package's own."""


@cache
def code_digest() -> str:
    """Return what stands for the code that computes statistics here: sha256 over the sources of this package and of `ALSO`."""
    own, other = Path(__file__).parent, Path(clinical_ser.__file__).parent
    told = hashlib.sha256()
    for root, folders in ((own, (own,)), (other.parent, tuple(other / room for room in ALSO))):
        for folder in folders:
            for path in sorted(folder.rglob("*.py")):
                told.update(path.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()
