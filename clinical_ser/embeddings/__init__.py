"""From a recording to one vector and its frames, by any encoder that says how it hears."""

from pathlib import Path

from clinical_ser.audio.loading import load
from clinical_ser.audio.recording import Recording
from clinical_ser.embeddings.encoder import Embedding, Encoder, EncoderSpec, Padding, Pooling, WindowedEncoder, column_names
from clinical_ser.embeddings.pooling import CELL_S, Cells
from clinical_ser.embeddings.registry import find_encoder, list_encoders


def encode(recording: Recording | Path | str, encoder: str = "ge2e", *, frames: bool = False) -> Embedding:
    """Encode one recording.

    Parameters
    ----------
    recording
        From `clinical_ser.load`, or a file's path.
    encoder
        What `find_encoder` takes: an installed encoder's name, a folder's path, or `BACKEND:ARGUMENT`.
    frames
        Also return the vectors of frames.

    Raises
    ------
    AudioError
        The file cannot be decoded.
    EmbeddingError
        The recording is too short, or no speech was found in it.
    EncoderError, InvalidValueError
        As `find_encoder` raises.
    """
    return find_encoder(encoder).encode([recording if isinstance(recording, Recording) else load(recording)], frames=frames)[0]


__all__ = [
    "CELL_S",
    "Cells",
    "Embedding",
    "Encoder",
    "EncoderSpec",
    "Padding",
    "Pooling",
    "WindowedEncoder",
    "column_names",
    "encode",
    "find_encoder",
    "list_encoders",
]
