"""Finding a model by its name: those that ship with the package first, then the registry's, then those in the user's model folder.

A name is looked up, a path is taken as it is, and the two cannot be confused: a name has no separator and no dot. A shipped name always
means the shipped model, so nothing that is put into a user's folder or the registry can stand in for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import BundleError, BundleNotFoundError, InvalidValueError, RegistryError
from clinical_ser.folders import is_folder, user_folder
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.signing import SignatureState, TrustStore
from clinical_ser.registry.records import ROLES, is_digest_like, is_name
from clinical_ser.registry.shipped import SHIPPED_MODELS
from clinical_ser.registry.store import Registry

__all__ = ["SHIPPED_MODELS", "ModelEntry", "ModelOrigin", "find_model", "list_models", "read_model"]


class ModelOrigin(StrEnum):
    """Where a named model comes from."""

    SHIPPED = "shipped"
    REGISTRY = "registry"
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


_WHOSE = {ModelOrigin.SHIPPED: "shipped", ModelOrigin.REGISTRY: "registry's", ModelOrigin.USER: "user's"}


def find_model(name_or_path: str | Path) -> Path:
    """Return the folder of a model; whether it is a sound bundle is for `read_bundle` to say.

    Parameters
    ----------
    name_or_path
        The name of a shipped, registered or installed model; a registered one's name with `@challenger`, `@shadow` or `@` and the beginning of a
        bundle's digest; or the path of a bundle's folder (`Path`, or text). Names come first: `./name` means the folder.

    Raises
    ------
    InvalidValueError
        No model has this name; the message lists those there are.
    BundleNotFoundError
        It is a path, and no folder is there.
    RegistryTamperedError
        The registry's history of this name does not fit together, or the folder it leads to holds another bundle.
    """
    if isinstance(name_or_path, str) and is_name(name_or_path):
        for folder in _folders_of(name_or_path):
            if is_folder(folder):
                return folder
        if not is_folder(Path(name_or_path)):
            raise InvalidValueError("model", name_or_path, f"one of {_names()}, or the path of a bundle's folder")
    elif isinstance(name_or_path, str) and _is_in_registry(name_or_path):
        return _registered(name_or_path)
    if not str(name_or_path) or not is_folder(Path(name_or_path)):
        raise BundleNotFoundError(f"No folder is at the path given for the model. Give a bundle's folder, or the name of a model: {_names()}.")
    return Path(name_or_path)


def read_model(text: str) -> VerifiedBundle:
    """Read and verify what `find_model` finds, or, for 8 hex digits of a digest or more, that bundle of the registry."""
    if is_digest_like(text) and (registry := _registry()) is not None:
        return registry.bundle(registry.find(text))
    return read_bundle(find_model(text))


def _folders_of(name: str) -> Iterator[Path]:
    """Yield where a model of this name may be, best first; a name that has had a champion in the registry is never one of the user's folder."""
    yield SHIPPED_MODELS / name
    registry = _registry()
    if registry is not None and registry.head(name) is not None:
        if registry.pointers(name).champion:
            yield _registered(name)
        elif _had_champion(registry, name):
            raise InvalidValueError("model", name, "a model that answers: its champion was withdrawn in the registry")
    if own := user_folder("data"):
        yield own / "models" / name


def _is_in_registry(text: str) -> bool:
    """Tell whether a text is a name with a role or digest, rather than a path; a shipped model has no roles."""
    name, at, role = text.partition("@")
    return bool(at) and is_name(name) and (role in ROLES or is_digest_like(role))


def _registered(text: str) -> Path:
    name, _, _ = text.partition("@")
    registry = _registry()
    if registry is None or is_folder(SHIPPED_MODELS / name):
        raise InvalidValueError("model", text, f"one of {_names()}, or the path of a bundle's folder: no bundle in the registry is called so")
    return registry.sound_folder(registry.find(text))


def _registry() -> Registry | None:
    return Registry.default() if user_folder("data") else None


def list_models(*, trusted: TrustStore | None = None) -> tuple[ModelEntry, ...]:
    """Return every named model, shipped ones first, by name. Each is read and verified; a broken one is listed with its reason.

    Parameters
    ----------
    trusted
        Keys to trust; None takes `TrustStore.default()`.
    """
    trusted = TrustStore.default() if trusted is None else trusted
    entries: list[ModelEntry] = []
    for origin, name, found in _candidates():
        if hiding := next((entry.origin for entry in entries if entry.name == name), None):
            rename = "; rename its folder" if origin is ModelOrigin.USER else ""
            entries.append(ModelEntry(name, origin, problem=f"hidden by the {_WHOSE[hiding]} model of the same name{rename}"))
        else:
            entries.append(_entry(origin, name, found, trusted))
    return tuple(entries)


def _entry(origin: ModelOrigin, name: str, found: Path | str, trusted: TrustStore) -> ModelEntry:
    if isinstance(found, str):
        return ModelEntry(name, origin, problem=found)
    try:
        bundle = read_bundle(found, trusted=trusted, expected_digest=found.name if origin is ModelOrigin.REGISTRY else None)
    except BundleError as error:
        return ModelEntry(name, origin, problem=str(error))
    manifest = bundle.manifest
    return ModelEntry(name, origin, manifest.name, manifest.version, bundle.digest, manifest.task, manifest.simulated, bundle.signature.state)


def _candidates() -> Iterator[tuple[ModelOrigin, str, Path | str]]:
    """Yield each named model, best first, with its folder, or with the reason why it has none."""
    yield from ((ModelOrigin.SHIPPED, path.name, path) for path in _model_folders(SHIPPED_MODELS))
    yield from _champions()
    if own := user_folder("data"):
        yield from ((ModelOrigin.USER, path.name, path) for path in _model_folders(own / "models"))


def _champions() -> Iterator[tuple[ModelOrigin, str, Path | str]]:
    registry = _registry()
    if registry is None:
        return
    for name in registry.names():
        try:
            champion = registry.pointers(name).champion
            if champion:
                yield ModelOrigin.REGISTRY, name, registry.folder_of(champion)
            elif _had_champion(registry, name):
                yield ModelOrigin.REGISTRY, name, "its champion was withdrawn; nothing answers under this name"
        except RegistryError as error:
            yield ModelOrigin.REGISTRY, name, str(error)


def _had_champion(registry: Registry, name: str) -> bool:
    return any(entry.pointers.champion for entry in registry.history(name))


def _model_folders(folder: Path) -> Iterator[Path]:
    if is_folder(folder):
        yield from (path for path in _listed(folder) if is_name(path.name) and is_folder(path))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:  # its text holds the path
        raise BundleNotFoundError(f"The folder of installed models cannot be listed: {error.strerror}.") from None


def _names() -> list[str]:
    return sorted({name for _, name, found in _candidates() if isinstance(found, Path)})
