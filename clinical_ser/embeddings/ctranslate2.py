"""The weights in a `model.bin` of CTranslate2, the runtime of faster-whisper: names and arrays one after the other (its binary version 6).

Reference: OpenNMT CTranslate2, docs/conversion and python/ctranslate2/specs/model_spec.py (MIT).
"""

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import EncoderError

_VERSION = 6
_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read(content: bytes) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a `model.bin` by name; EncoderError if it is another version, or cut short."""
    try:
        return _read(content)
    except (struct.error, ValueError, KeyError, UnicodeDecodeError):
        raise EncoderError("The file is not a CTranslate2 model of binary version 6.") from None


def _read(content: bytes) -> dict[str, NDArray[np.generic]]:
    place = 0

    def take(form: str) -> tuple[int, ...]:
        nonlocal place
        values = struct.unpack_from(form, content, place)
        place += struct.calcsize(form)
        return values

    def text() -> str:
        nonlocal place
        (length,) = take("<H")
        place += length
        return content[place - length : place - 1].decode()  # a zero ends it

    if take("<I")[0] != _VERSION:
        raise ValueError("version")
    text()  # the kind of model
    _revision, count = take("<II")
    arrays: dict[str, NDArray[np.generic]] = {}
    for _ in range(count):
        name = text()
        (rank,) = take("<B")
        shape = take(f"<{rank}I")
        dtype, size = take("<BI")
        arrays[name] = np.frombuffer(content[place : place + size], _DTYPES[dtype]).reshape(shape)
        place += size
    return arrays


def whisper_encoder(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Return the encoder's weights by transformers' names, and the number of its attention heads."""
    own = {name.removeprefix("encoder/"): array for name, array in arrays.items() if name.startswith("encoder/")}

    def of(name: str) -> NDArray[np.float32]:
        return own[name].astype(np.float32)

    weights = {"embed_positions.weight": of("position_encodings/encodings")}
    for convolution in ("conv1", "conv2"):
        weights |= {f"{convolution}.{part}": of(f"{convolution}/{part}") for part in ("weight", "bias")}
    layers = 1 + max(int(name.split("/")[0].removeprefix("layer_")) for name in own if name.startswith("layer_") and name[6].isdigit())
    for i in range(layers):
        ours, theirs = f"layers.{i}.", f"layer_{i}/"
        for part, dense in {"self_attn.out_proj": "self_attention/linear_1", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1"}.items():
            weights |= {f"{ours}{part}.{kind}": of(f"{theirs}{dense}/{kind}") for kind in ("weight", "bias")}
        for kind in ("weight", "bias"):  # the three projections lie in one matrix
            for projection, rows in zip("qkv", np.split(of(f"{theirs}self_attention/linear_0/{kind}"), 3), strict=True):
                weights[f"{ours}self_attn.{projection}_proj.{kind}"] = rows
        for part, norm in {"self_attn_layer_norm": "self_attention/layer_norm", "final_layer_norm": "ffn/layer_norm"}.items():
            weights |= {f"{ours}{part}.weight": of(f"{theirs}{norm}/gamma"), f"{ours}{part}.bias": of(f"{theirs}{norm}/beta")}
    return weights, int(own["num_heads"])
