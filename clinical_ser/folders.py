"""Where this user's keys, models and settings live. A leaf: every room may ask, and nothing is made or read here."""

import os
from pathlib import Path

HOME_VARIABLE = "CLINICAL_SER_HOME"
_APPLICATION = "clinical-ser"
_XDG_FOLDERS = {"config": ("XDG_CONFIG_HOME", ".config"), "data": ("XDG_DATA_HOME", ".local/share")}


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; what cannot be a path (too long, a NUL byte) is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def user_folder(kind: str) -> Path | None:
    """Return this user's folder of a kind, which need not exist.

    `CLINICAL_SER_HOME` when it is set; else what the XDG Base Directory Specification 0.8 says (a relative path in its variables is ignored).

    Parameters
    ----------
    kind
        `config` (keys) or `data` (models).

    Returns
    -------
    Path or None
        None where the process has no home, as under an arbitrary user id in a container.
    """
    if own := os.environ.get(HOME_VARIABLE):
        return Path(own)
    variable, default = _XDG_FOLDERS[kind]
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / default
        except RuntimeError:
            return None
    return base / _APPLICATION
