"""emotion2vec and emotion2vec+ as encoders, run by FunASR, which is installed by whoever wants them (`pip install funasr`; 88 packages).

    funasr:emotion2vec_plus_large                 ModelScope's copy (iic/...); #REVISION pins it
    funasr:emotion2vec/emotion2vec_plus_large     the Hugging Face hub's
    funasr:./emotion2vec_plus_base                a folder with config.yaml and model.pt

The one idea: FunASR gives frames, and what becomes of them is decided here as for every encoder. Of its own means and scores nothing is used.

References
----------
Ma Z et al. (2024), emotion2vec: Self-Supervised Pre-Training for Speech Emotion Representation, Findings of ACL, arXiv 2312.15185.
Code: FunASR 1.4, `funasr/models/emotion2vec/model.py`: 16 kHz, each clip standardised where the model's configuration says `normalize`, then run
alone; 50 frames a second.
"""

import contextlib
import hashlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clinical_ser.embeddings.encoder import EncoderSpec, Padding
from clinical_ser.embeddings.foreign import refused_as
from clinical_ser.embeddings.torch_encoder import TorchEncoder, grid_of, one_thread, slug, weights_digest
from clinical_ser.errors import EncoderError, InvalidValueError
from clinical_ser.folders import is_folder

CODE = "funasr/1"
"""Part of every fingerprint: counts up with any change to this file that could move a value."""
MODELS = ("emotion2vec_base", "emotion2vec_base_finetuned", "emotion2vec_plus_seed", "emotion2vec_plus_base", "emotion2vec_plus_large")
LICENCE = "'model-license' by the model's card, which refers to FunASR's MODEL_LICENSE"

_ARGUMENT = re.compile(r"(?P<model>.+?)(?:#(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]{0,63}))?", re.DOTALL)
_HUBS = {"iic": "ms", "emotion2vec": "hf"}
"""By the owner of the models there."""
_CONVOLUTIONS = re.compile(r"[\[\]()0-9,+* ]{1,400}")
_MISSING = re.compile(r"miss key in ckpt: ([^\s,]+)")
_MOVING = ("normalize", "depth", "start_drop_path_rate", "num_heads", "norm_eps", "norm_affine", "layer_norm_first", "mlp_ratio")
_MOVING_AUDIO = (
    "feature_encoder_spec",
    "use_alibi_encoder",
    "alibi_scale",
    "num_alibi_heads",
    "learned_alibi",
    "prenet_layernorm_first",
    "prenet_depth",
)
_EPSILON = 1e-5
"""Of torch's layer_norm."""


class FunasrEncoder(TorchEncoder):
    """An emotion2vec model as FunASR runs it; `module` is the same network, for a graph."""

    def __init__(self, spec: EncoderSpec, model: Any) -> None:
        self._model = model
        used = {name: tensor for name, tensor in model.model.state_dict().items() if ".decoder." not in name and not name.startswith("proj.")}
        settings = hashlib.sha256(repr(_settings_of(model.model.cfg)).encode()).hexdigest()
        super().__init__(spec, Emotion2vecFrames(model.model), CODE, settings, weights_digest(used))

    def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
        """Run FunASR, which takes windows one by one; see `WindowedEncoder.run`."""
        windows = [row[:length] for row, length in zip(samples, lengths.tolist(), strict=True)]
        with one_thread(), _quiet():
            found = self._model.generate(windows, granularity="frame", extract_embedding=True)
        return [np.asarray(one["feats"], np.float32) for one in found]


def _settings_of(config: Any) -> list[tuple[str, str]]:
    """Return what of a model's configuration moves its vectors without moving its weights."""
    audio = getattr(getattr(config, "modalities", None), "audio", None)
    return [(name, repr(getattr(of, name, None))) for of, names in ((config, _MOVING), (audio, _MOVING_AUDIO)) for name in names]


class Emotion2vecFrames(nn.Module):
    """Frames of emotion2vec without FunASR's reading of files, so that a graph can be made of it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.standardises = bool(model.cfg.normalize)
        self.audio = model.modality_encoders["AUDIO"]

    def forward(self, samples: Tensor) -> Tensor:
        """Return frames of shape (windows, frames, dim)."""
        if self.standardises:
            away = samples - samples.mean(1, keepdim=True)
            samples = away / (away.square().mean(1, keepdim=True) + _EPSILON).sqrt()
        kept = self.audio.get_alibi_bias
        # FunASR's own is kept between calls, and a trace would take it for a constant.
        self.audio.get_alibi_bias = _distances
        try:
            frames: Tensor = self.model.extract_features(samples, padding_mask=None)["x"]
        finally:
            self.audio.get_alibi_bias = kept
        return frames


def load(argument: str) -> FunasrEncoder:
    """Return an encoder.

    Parameters
    ----------
    argument
        One of `MODELS`, `OWNER/MODEL`, or a folder; `#REVISION` pins ModelScope's copy.

    Raises
    ------
    EncoderError
        There is no such model, it cannot be fetched, or it is damaged.
    InvalidValueError
        The argument has another form.
    ImportError
        FunASR is not installed.
    """
    settings, source, stem = _settings(argument)
    log = io.StringIO()
    with _quiet(log), one_thread():
        from funasr import AutoModel

        with refused_as("FunASR cannot load this model ({kind}): no connection, no such model, or its files are damaged."):
            model = AutoModel(
                **settings,
                device="cpu",
                ncpu=1,
                disable_update=True,
                disable_pbar=True,
                check_latest=False,
                trust_remote_code=False,
                ignore_init_mismatch=False,
                log_level="ERROR",
            )
    if type(model.model).__name__ != "Emotion2vec":
        raise EncoderError("The model is no emotion2vec, so that it is not known how it hears.")
    # FunASR prints what it does not find, and leaves random numbers there. The decoder served the training alone.
    if "init_param does not exist" in log.getvalue() or any(".decoder." not in name for name in _MISSING.findall(log.getvalue())):
        raise EncoderError("The model's weights are not complete.")
    return FunasrEncoder(_spec(model.model, name=stem, source=source), model)


def _settings(argument: str) -> tuple[dict[str, str], str, str]:
    """Return what FunASR is to load and from where, what to say of that, and what to call it."""
    found = _ARGUMENT.fullmatch(argument)
    if not found or "\0" in argument:
        raise InvalidValueError("the argument of encoder 'funasr'", "a text of another form", f"one of {', '.join(MODELS)}, or a folder")
    folder, revision = Path(found["model"]), found["revision"]
    if is_folder(folder):
        if revision:
            raise InvalidValueError("the revision of encoder 'funasr'", revision, "none, because the model is a folder")
        _check_description(folder)
        return {"model": str(folder), "hub": "ms"}, "a folder of this machine, read with FunASR", slug(folder.name) or "emotion2vec"
    owner, _, name = found["model"].rpartition("/")
    hub = _HUBS.get(owner or "iic")
    if hub is None or name not in MODELS:
        raise InvalidValueError(
            "the model of encoder 'funasr'", "one that is not known here", f"one of {', '.join(MODELS)}, or a folder that is there"
        )
    if revision and hub == "hf":
        raise InvalidValueError("the revision of encoder 'funasr'", revision, "none for the Hugging Face hub, where FunASR takes the newest")
    pinned = {"model_revision": revision} if revision else {}
    where = "ModelScope" if hub == "ms" else "Hugging Face hub"
    source = f"{where}, {owner or 'iic'}/{name}, revision {revision or 'newest'}, by FunASR"
    return {"model": f"{owner or 'iic'}/{name}", "hub": hub} | pinned, source, slug(name)


def _check_description(folder: Path) -> None:
    """Refuse a folder whose description holds more than numbers where FunASR will evaluate it as Python."""
    import yaml  # type: ignore[import-untyped]

    try:
        with (folder / "config.yaml").open("rb") as file:
            about = yaml.safe_load(file.read(1_000_000))
        layers = about["model_conf"]["modalities"]["audio"]["feature_encoder_spec"]
        fits = about["model"] == "Emotion2vec" and isinstance(layers, str) and _CONVOLUTIONS.fullmatch(layers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        fits = False
    if not fits:
        raise EncoderError("config.yaml: not there, or not the description of an emotion2vec model.")
    if not (folder / "model.pt").is_file():
        raise EncoderError("model.pt: not there, so the folder holds no weights.")


def _spec(model: Any, *, name: str, source: str) -> EncoderSpec:
    layers = model.modality_encoders["AUDIO"].feature_enc_layers
    hop, reach = grid_of([kernel for _, kernel, _ in layers], [stride for _, _, stride in layers])
    return EncoderSpec(
        name=name,
        title="emotion2vec",
        frame_dim=model.cfg.embed_dim,
        frame_step_s=hop / 16_000,
        first_frame_s=reach / 2 / 16_000,
        # Standardised over a whole window, so that zeros after its end would change it.
        padding=Padding.EQUAL,
        licence=LICENCE,
        source=source,
    )


def _distances(batch_size: int, time_steps: int, heads: int, dtype: Any, device: Any) -> Tensor:
    """Return ALiBi's bias, minus the distance of two frames times a slope a head, as FunASR has it."""
    from funasr.models.emotion2vec.base import get_alibi

    slopes = -get_alibi(2, heads)[:, 0, 1].to(dtype)
    place = torch.arange(time_steps, device=device)
    away = (place[None] - place[:, None]).abs().to(dtype)
    return (-slopes[:, None, None] * away[None])[None].expand(batch_size, -1, -1, -1)


@contextlib.contextmanager
def _quiet(log: io.StringIO | None = None) -> Iterator[None]:
    """Keep FunASR from printing on stdout, and from setting up the logging of this process."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(log or io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
