"""Finding a model by its name: those that ship with the package first, then those in the user's model folder.

A name is looked up, a path is taken as it is, and the two cannot be confused: a name has no separator and no dot. A shipped name always
means the shipped model, so nothing that is put into a user's folder can stand in for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import BundleError, BundleNotFoundError, InvalidValueError
from clinical_ser.folders import is_folder, user_folder
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.signing import SignatureState, TrustStore

SHIPPED_MODELS = Path(__file__).parents[1] / "models" / "shipped"
# The form of names in `ManifestFields`, less the folder of keys that lies beside the shipped models.
_NAME = re.compile(r"(?!trusted_keys$)[a-z0-9][a-z0-9_-]{0,63}")


class ModelOrigin(StrEnum):
    """Where a named model comes from."""

    SHIPPED = "shipped"
    USER = "user"


@dataclass(frozen=True)
class ModelEntry:
    """One named model; what is only known of a bundle that verifies is None where it does not, and `problem` says why."""

    name: str
    """What `find_model` finds it by."""
    origin: ModelOrigin
    model: str | None = None
    """The name in its manifest, which results carry; a folder `depression-2` may hold the second version of `depression`."""
    version: str | None = None
    digest: str | None = None
    task: Task | None = None
    simulated: bool | None = None
    signature: SignatureState | None = None
    problem: str | None = None


def find_model(name_or_path: str | Path) -> Path:
    """Return the folder of a model; whether it is a sound bundle is for `read_bundle` to say.

    Parameters
    ----------
    name_or_path
        The name of a shipped or installed model, or the path of a bundle's folder (`Path`, or text). Names come first: `./name` means the folder.

    Raises
    ------
    InvalidValueError
        No model has this name; the message lists those there are.
    BundleNotFoundError
        It is a path, and no folder is there.
    """
    if isinstance(name_or_path, str) and _NAME.fullmatch(name_or_path):
        for _, folder in _model_folders():
            if is_folder(folder / name_or_path):
                return folder / name_or_path
        if not is_folder(Path(name_or_path)):
            raise InvalidValueError("model", name_or_path, f"one of {_names()}, or the path of a bundle's folder")
    if not str(name_or_path) or not is_folder(Path(name_or_path)):
        raise BundleNotFoundError(f"No folder is at the path given for the model. Give a bundle's folder, or the name of a model: {_names()}.")
    return Path(name_or_path)


def list_models(*, trusted: TrustStore | None = None) -> tuple[ModelEntry, ...]:
    """Return every named model, shipped ones first, by name. Each is read and verified; a broken one is listed with its reason.

    Parameters
    ----------
    trusted
        Keys to trust; None takes `TrustStore.default()`.
    """
    trusted = TrustStore.default() if trusted is None else trusted
    entries: list[ModelEntry] = []
    for origin, path in _candidates():
        if any(entry.name == path.name for entry in entries):
            entries.append(ModelEntry(path.name, origin, problem="hidden by the shipped model of the same name; rename its folder"))
        else:
            entries.append(_entry(origin, path, trusted))
    return tuple(entries)


def _entry(origin: ModelOrigin, path: Path, trusted: TrustStore) -> ModelEntry:
    try:
        bundle = read_bundle(path, trusted=trusted)
    except BundleError as error:
        return ModelEntry(path.name, origin, problem=str(error))
    manifest = bundle.manifest
    return ModelEntry(path.name, origin, manifest.name, manifest.version, bundle.digest, manifest.task, manifest.simulated, bundle.signature.state)


def _model_folders() -> Iterator[tuple[ModelOrigin, Path]]:
    yield ModelOrigin.SHIPPED, SHIPPED_MODELS
    if own := user_folder("data"):
        yield ModelOrigin.USER, own / "models"


def _candidates() -> Iterator[tuple[ModelOrigin, Path]]:
    for origin, folder in _model_folders():
        if is_folder(folder):
            yield from ((origin, path) for path in _listed(folder) if _NAME.fullmatch(path.name) and is_folder(path))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:  # its text holds the path
        raise BundleNotFoundError(f"The folder of installed models cannot be listed: {error.strerror}.") from None


def _names() -> list[str]:
    return sorted({path.name for _, path in _candidates()})
