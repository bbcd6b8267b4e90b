"""Finding an encoder by what a user calls it: an installed one by name, a folder by path, a back end with what it is to load.

- `ge2e`: an encoder that was installed;
- `./my-encoder`: a folder with encoder.json and model.onnx;
- `transformers:PATH-OR-NAME@LAYER`: a back end (an entry point of the group `clinical_ser.encoders`) and its argument.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from clinical_ser.embeddings.encoder import Encoder, EncoderSpec
from clinical_ser.embeddings.onnx import SPEC_FILE, read_about, read_encoder
from clinical_ser.errors import EncoderError, InvalidValueError
from clinical_ser.folders import user_folder

ENTRY_POINT_GROUP = "clinical_ser.encoders"
Factory = Callable[[str], Encoder]
"""Called with what follows the colon, which may be empty."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class EncoderEntry:
    """An installed encoder; `problem` says why it cannot be used."""

    name: str
    spec: EncoderSpec | None = None
    fingerprint: str | None = None
    quantized: str = "none"
    problem: str | None = None


def find_encoder(reference: str) -> Encoder:
    """Return an encoder, verified and warm.

    Parameters
    ----------
    reference
        The name of an installed encoder, the path of a folder (with a separator in it), or `BACKEND` or `BACKEND:ARGUMENT`.

    Raises
    ------
    EncoderError
        It is there and cannot be used.
    InvalidValueError
        There is none of that name.
    """
    backend, _, argument = reference.partition(":")
    if backend in _offered():
        return _made_by(backend, argument)
    if _NAME.fullmatch(reference):
        folder = encoder_folder(reference)
        if folder is not None and folder.is_dir():
            return read_encoder(folder)
        known = [entry.name for entry in list_encoders()]
        raise InvalidValueError(
            "encoder",
            reference,
            f"one that is installed ({', '.join(known) or 'none is; `clinical-ser encoder install ge2e` installs one'}), a back end "
            f"({', '.join(list_backends())}), or the path of an encoder's folder (with a slash in it: ./{reference})",
        )
    if "/" not in reference:
        raise InvalidValueError(
            "encoder", "a text of another form", f"a name, a folder's path, or BACKEND:ARGUMENT ({', '.join(sorted(_offered()))})"
        )
    return read_encoder(Path(reference))


def folder_of(reference: str) -> Path | None:
    """Return the folder that a name or path means, for what `find_encoder` reads from one; None where the process has no home."""
    return Path(reference) if "/" in reference else encoder_folder(reference)


def list_encoders() -> tuple[EncoderEntry, ...]:
    """Return the installed encoders by name, without loading their graphs."""
    folder = _encoders_folder()
    try:
        there = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
    except OSError as error:
        raise EncoderError(f"The folder of installed encoders cannot be listed: {error.strerror}.") from None
    return tuple(_entry(path) for path in there if _NAME.fullmatch(path.name) and path.is_dir())


def list_backends() -> tuple[str, ...]:
    """Return the names of all back ends, sorted; none is loaded for it."""
    return tuple(sorted(_offered()))


def encoder_folder(name: str) -> Path | None:
    """Return where an encoder of this name is installed, or would be; None where the process has no home."""
    folder = _encoders_folder()
    return None if folder is None else folder / name


def _encoders_folder() -> Path | None:
    own = user_folder("data")
    return None if own is None else own / "encoders"


def _entry(path: Path) -> EncoderEntry:
    try:
        about = read_about(path)
    except EncoderError as error:
        return EncoderEntry(path.name, problem=str(error))
    if about.spec.name != path.name:
        return EncoderEntry(path.name, problem=f"{SPEC_FILE}: the encoder's name is {about.spec.name!r}; rename its folder")
    return EncoderEntry(path.name, about.spec, about.fingerprint, about.quantized)


@lru_cache(maxsize=2)  # a large model takes gigabytes, and seconds to load
def _made_by(backend: str, argument: str) -> Encoder:
    point = _offered()[backend]
    try:
        made = point.load()(argument)
    except ImportError as error:
        raise EncoderError(f"Back end {point.name!r} needs the package {error.name!r}, which is not installed.") from None
    if not isinstance(made, Encoder):
        raise EncoderError(f"Back end {point.name!r} gave a {type(made).__name__}, which is no encoder.")
    return made


@cache  # looking through all installed packages takes milliseconds
def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
