"""Which models answer, and the crew of workers that has them: one generation, that never changes once it is made.

The one idea: a request or a job takes one generation at its start and keeps it until its answer is recorded, so that no answer is made of two models.
When the registry's champion changes, a new generation takes the place of the old one in one assignment, and the old one ends with its last request.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.workers import Workers
from clinical_ser.errors import BundleError, BundleNotFoundError, ServerSetupError
from clinical_ser.folders import user_folder
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.registry.names import find_model
from clinical_ser.registry.records import is_digest_like, is_name
from clinical_ser.registry.shipped import is_shipped
from clinical_ser.registry.store import Registry

CHAMPION = "champion"
_NEVER_ANSWER = frozenset({"challenger", "shadow"})


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Attributes
    ----------
    source
        Its name or folder in the configuration.
    bundle
        Verified when it was taken up.
    folder
        Where workers load it from: of a model out of the registry the folder under its digest, so that a worker which starts later finds this very
        model, whatever is champion then.
    followed
        The name in the registry whose champion it is; None for a model that stays what it is until the server is started again.
    withdrawn
        The registry says that nothing answers under its name.
    """

    source: str
    bundle: VerifiedBundle
    folder: Path
    followed: str | None = None
    withdrawn: bool = False

    @property
    def id(self) -> str:
        """What clients call it."""
        return self.bundle.manifest.name

    @property
    def digest(self) -> str:
        """Of its bundle: by this the workers know it."""
        return self.bundle.digest

    @cached_property
    def features(self) -> frozenset[str]:
        """Names of what the model is given."""
        return frozenset(self.bundle.manifest.features)

    @property
    def identity(self) -> dict[str, str]:
        """Name, digest and version."""
        return {"name": self.id, "digest": self.digest, "version": self.bundle.manifest.version}


@dataclass(frozen=True)
class Generation:
    """The models that answer together, and their workers. Belongs to the server's loop.

    Attributes
    ----------
    models
        By their ids, the first first.
    workers
        That have loaded these models and no others.
    """

    models: Mapping[str, Served]
    workers: Workers

    @contextmanager
    def taken(self) -> Iterator["Generation"]:
        """Keep it, whatever becomes champion meanwhile."""
        with self.workers.held():
            yield self


def served_models(configuration: ServerConfiguration) -> Mapping[str, Served]:
    """Return the models of a configuration by their ids, the first first.

    Raises
    ------
    BundleError, InvalidValueError, RegistryError
        One is not there, or cannot be trusted.
    ServerSetupError
        Two have one name, or one cannot be served, or is a bundle of a name that was never its champion.
    """
    found: dict[str, Served] = {}
    for source in configuration.models:
        served = _served(source)
        if served.id in found:
            raise ServerSetupError(f"Two of the models have the name {served.id}; clients could not tell them apart.")
        found[served.id] = served
    return found


def _served(source: str) -> Served:
    registry, name = registry_of_site(), followed(source)
    if registry is not None and name is not None:
        if champion := registry.pointers(name).champion:
            return _of_registry(registry, source, champion, name)
        if champions := _champions(registry, name):
            return _withdrawn(registry, source, name, champions)
    if registry is not None and (digest := _one_that_was_champion(registry, source)):
        return _of_registry(registry, source, digest)
    folder = find_model(source)
    return Served(source, servable(folder), folder.absolute())


def _of_registry(registry: Registry, source: str, digest: str, name: str | None = None, *, withdrawn: bool = False) -> Served:
    folder = registry.folder_of(digest)
    return Served(source, servable(folder, expected_digest=digest), folder.absolute(), name, withdrawn=withdrawn)


def _withdrawn(registry: Registry, source: str, name: str, champions: Sequence[str]) -> Served:
    """Return a model under whose name nothing answers until it has a champion again; the last one that is sound says what it was."""
    refused: BundleError | None = None
    for digest in reversed(champions):
        try:
            return _of_registry(registry, source, digest, name, withdrawn=True)
        except BundleError as error:
            # Damage may be why it was withdrawn.
            refused = refused or error
    assert refused is not None
    raise refused


def _one_that_was_champion(registry: Registry, source: str) -> str | None:
    """Return the bundle that a source `name@digest` means; None for a source of another kind.

    Raises
    ------
    ServerSetupError
        It means a bundle that never went through the gate under this name.
    """
    name, at, role = source.partition("@")
    if not at or not is_name(name) or is_shipped(name):
        return None
    if role in _NEVER_ANSWER:
        raise ServerSetupError(f"A {role} answers nobody: {source} cannot be served. Give the name alone, {name}, which follows its champion.")
    if not is_digest_like(role):
        return None
    digest = registry.find(source)
    if digest not in _champions(registry, name):
        raise ServerSetupError(f"Bundle {digest[:12]} was never the champion of {name}, and cannot be served; a bundle of a name that was can be.")
    return digest


def _champions(registry: Registry, name: str) -> list[str]:
    """Return the bundles that were champion of a name, in order."""
    return [champion for entry in registry.history(name) if (champion := entry.pointers.champion)]


def servable(folder: Path, *, expected_digest: str | None = None) -> VerifiedBundle:
    """Return the verified bundle in a folder, if this server can serve it.

    Raises
    ------
    BundleError
        It is not there, or cannot be trusted.
    ServerSetupError
        It compares with recordings that the server does not have.
    """
    bundle = read_bundle(folder, expected_digest=expected_digest)
    if bundle.manifest.uses_baseline:
        name = bundle.manifest.name
        raise ServerSetupError(f"The model {name} compares with earlier recordings, which this server does not keep: use the command line.")
    return bundle


def answers_as(one: VerifiedBundle, other: VerifiedBundle) -> bool:
    """Tell whether two models answer the same question in the same words."""
    return (one.manifest.task.name, one.manifest.task.classes) == (other.manifest.task.name, other.manifest.task.classes)


def followed(source: str) -> str | None:
    """Return the name in the registry that a configured model may follow; none for a folder, a shipped model, or one bundle of a name (`name@…`)."""
    name, _, role = source.partition("@")
    return name if is_name(name) and role in {"", CHAMPION} and not is_shipped(name) else None


def champion_now(registry: Registry, name: str) -> str | None:
    """Return the digest of a name's champion; None where it was withdrawn.

    Raises
    ------
    BundleNotFoundError, RegistryError
        The name has no history, or one that does not fit together.
    """
    head = registry.head(name)
    if head is None:
        # Not said by anyone: a registry that is gone or not mounted is no reason to stop answering.
        raise BundleNotFoundError("The registry has no history of this model any more.")
    return head.pointers.champion


def champion_of(registry: Registry, served: Served, champion: str | None) -> Served:
    """Return a champion as the model in a served one's place.

    Parameters
    ----------
    registry, served
        Where it is, and in whose place.
    champion
        Its digest, from `champion_now`.

    Raises
    ------
    BundleError, RegistryError
        It is not there, or cannot be trusted.
    ServerSetupError
        It cannot be served, or not under this name.
    """
    if champion is None:
        return Served(served.source, served.bundle, served.folder, served.followed, withdrawn=True)
    found = _of_registry(registry, served.source, champion, served.followed)
    bundle = found.bundle
    if bundle.manifest.name != served.id:
        raise ServerSetupError(f"The champion calls itself {bundle.manifest.name}; clients know this model as {served.id}.")
    if not answers_as(bundle, served.bundle):
        raise ServerSetupError(f"The champion answers another question than {served.id} did: its task or its classes are others.")
    return found


def shadow_of(registry: Registry, served: Served) -> Served | None:
    """Return the model that the registry has as the shadow of a served one; None where it has none, or the champion itself.

    Raises
    ------
    BundleError, RegistryError, ServerSetupError
        As for `champion_of`; a shadow may have another name.
    """
    assert served.followed is not None
    shadow = registry.pointers(served.followed).shadow
    if shadow is None or shadow == served.digest:
        return None
    return _of_registry(registry, served.source, shadow)


def registry_of_site() -> Registry | None:
    """Return the site's registry; None where this process has no home for one."""
    return None if user_folder("data") is None else Registry.default()
