"""The models that come with the package: their names are taken, whatever anybody keeps beside them."""

from pathlib import Path

from clinical_ser.folders import is_folder

SHIPPED_MODELS = Path(__file__).parents[1] / "models" / "shipped"


def is_shipped(name: str) -> bool:
    """Tell whether a name, already known to be one, is that of a shipped model."""
    return is_folder(SHIPPED_MODELS / name)
