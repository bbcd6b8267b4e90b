"""The versions of what computes and learns, for manifests, results and evidence."""

from importlib.metadata import version as installed_version

SOFTWARE = ("clinical-ser", "opensmile", "praat-parselmouth", "numpy", "scikit-learn", "xgboost-cpu")


def software_versions() -> dict[str, str]:
    """Return the versions of the libraries that a number depends on."""
    return {name: installed_version(name) for name in SOFTWARE}
