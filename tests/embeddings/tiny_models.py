"""Models of the true architectures, tiny and random, saved as `save_pretrained` does; and speech to run them on."""

import warnings
from pathlib import Path

import numpy as np

from clinical_ser import audio
from tests import signals

LAYERS = 3
_SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 8,
}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_WHISPER = {
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 32,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
KINDS = {
    "wav2vec2-group": ("Wav2Vec2", {}),
    "wav2vec2-layer": ("Wav2Vec2", _STABLE),
    "hubert-group": ("Hubert", {}),
    "hubert-layer": ("Hubert", _STABLE),
    "wavlm-group": ("WavLM", {}),
    "wavlm-layer": ("WavLM", _STABLE),
    "whisper": ("Whisper", None),
}
MASKED = [kind for kind in KINDS if kind.endswith("-layer")]


def model_of(kind: str):
    """Return a model of a kind; the same numbers every time."""
    import torch
    import transformers

    family, more = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**(_WHISPER if more is None else _SPEECH | more))
    torch.manual_seed(0)
    return getattr(transformers, f"{family}Model")(config).eval()


def save(kind: str, folder: Path) -> Path:
    """Save a model of a kind with what says how it hears; return the folder."""
    import transformers

    extractor = transformers.WhisperFeatureExtractor if kind == "whisper" else transformers.Wav2Vec2FeatureExtractor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_of(kind).save_pretrained(folder)
        extractor().save_pretrained(folder)
    return folder


def speech(seconds: float = 13.0) -> audio.Recording:
    """Return synthetic speech."""
    made = signals.sentence(phrases=12, syllables=6, pauses_s=(0.4, 0.8, 0.6)).samples
    assert len(made) >= seconds * audio.SAMPLE_RATE_HZ
    return audio.from_samples(np.clip(made[: round(seconds * audio.SAMPLE_RATE_HZ)], -1, 1), audio.SAMPLE_RATE_HZ)


def clips() -> list[audio.Recording]:
    """Return recordings of many lengths: shorter than a window and longer, with and without samples left over after the last whole frame."""
    whole = speech().samples
    return [
        audio.from_samples(whole[start:stop], audio.SAMPLE_RATE_HZ) for start, stop in ((0, 70_000), (9_000, 89_203), (5_000, 27_777), (0, 208_000))
    ]


def everywhere(recordings: list[audio.Recording]) -> list:
    """Return masks of speech that hold all of each recording."""
    return [np.ones(len(recording.samples) // 160 + 1, np.bool_) for recording in recordings]
