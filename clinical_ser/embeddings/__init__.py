"""From a recording to one vector and its frames, by any encoder that says how it hears."""

from clinical_ser.embeddings.encoder import Embedding, Encoder, EncoderSpec, Padding, Pooling, WindowedEncoder, column_names
from clinical_ser.embeddings.pooling import CELL_S, Cells
from clinical_ser.embeddings.registry import find_encoder, list_encoders

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
    "find_encoder",
    "list_encoders",
]
