"""Speech models of the library transformers as encoders: wav2vec 2.0, HuBERT, WavLM and the encoder of Whisper, up to a chosen layer.

    transformers:./my-model                       a folder, as `save_pretrained` writes it
    transformers:microsoft/wavlm-large@12         the hub, or this machine's copy of it; layer 12, those after it are left out
    transformers:facebook/hubert-base-ls960#COMMIT@6

The one idea: of a model only its description and its safetensors are read. Nothing in either is code, and no pickle is opened or even downloaded.

References
----------
Baevski A et al. (2020), wav2vec 2.0, NeurIPS, arXiv 2006.11477. Hsu W-N et al. (2021), HuBERT, IEEE/ACM TASLP 29:3451-3460, arXiv 2106.07447.
Chen S et al. (2022), WavLM, IEEE JSTSP 16:1505-1518, arXiv 2110.13900. Radford A et al. (2023), Whisper, ICML, arXiv 2212.04356.
"""

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.utils import logging

from clinical_ser.embeddings.encoder import EncoderSpec, Padding
from clinical_ser.embeddings.foreign import refused_as
from clinical_ser.embeddings.mel import dft_kernels, mel_filters
from clinical_ser.embeddings.torch_encoder import TorchEncoder, grid_of, slug, weights_digest
from clinical_ser.embeddings.whisper import FRAME_STEP_S, HOP, N_FFT
from clinical_ser.errors import EncoderError, InvalidValueError
from clinical_ser.folders import is_folder

CODE = "transformers/1"
"""Part of every fingerprint: counts up with any change to this file that could move a value."""
CONFIG_FILE, HEARING_FILE, CARD_FILE = "config.json", "preprocessor_config.json", "README.md"
MAX_JSON_BYTES = 1_000_000

_CLASSES = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel", "whisper": "WhisperModel"}
_ARGUMENT = re.compile(r"(?P<model>.+?)(?:#(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,127}))?(?:@(?P<layer>[0-9]{1,3}))?", re.DOTALL)
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_NOT_THE_NETWORK = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_FILES = [CONFIG_FILE, HEARING_FILE, CARD_FILE, "*.safetensors", "*.safetensors.index.json"]
_CONVERT = (
    "they are never read from a pickle: name a revision with safetensors (NAME#refs/pr/NUMBER, as the hub's converter makes them), or convert a copy "
    "that you trust (docs/encoders.md)"
)


@dataclass(frozen=True)
class Reference:
    """What follows `transformers:`."""

    model: str
    """A folder's path, or a name on the hub."""
    revision: str | None = None
    layer: int | None = None
    """1 is the first; None, the middle."""

    @classmethod
    def of(cls, argument: str) -> "Reference":
        """Read `MODEL[#REVISION][@LAYER]`; InvalidValueError if it has another form."""
        found = _ARGUMENT.fullmatch(argument)
        if not found or "\0" in argument:
            raise InvalidValueError("the argument of encoder 'transformers'", "a text of another form", "FOLDER-OR-HUB-NAME[#REVISION][@LAYER]")
        layer = found["layer"]
        return cls(found["model"], found["revision"], None if layer is None else int(layer))


def load(argument: str, *, offline: bool = False) -> TorchEncoder:
    """Return an encoder from a folder or the hub.

    Parameters
    ----------
    argument
        `FOLDER-OR-HUB-NAME[#REVISION][@LAYER]`. Without a layer the middle one: of wav2vec 2.0, HuBERT, WavLM and Whisper the middle layers tell
        emotions best, the last ones words (Singh A, Gupta A 2023, Decoding Emotions, arXiv 2308.08713).
    offline
        Take nothing but what this machine has; the variable HF_HUB_OFFLINE=1 says the same.

    Raises
    ------
    EncoderError
        There is no such model, or it cannot be had, or is damaged, or of an architecture that is not known here.
    InvalidValueError
        The argument has another form, or the model has no such layer.
    """
    reference = Reference.of(argument)
    folder, source = _folder_of(reference, offline=offline)
    config, hearing = _json_of(folder / CONFIG_FILE), _json_of(folder / HEARING_FILE)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise EncoderError(f"{CONFIG_FILE}: the model is of no architecture that is read here, which are {', '.join(_CLASSES)}.")
    model = _model_of(folder, _CLASSES[kind])
    layers = len(model.encoder.layers)
    layer = (layers + 1) // 2 if reference.layer is None else reference.layer
    if not 1 <= layer <= layers:
        raise InvalidValueError("the layer of encoder 'transformers'", layer, f"1 to {layers}")
    if kind == "wavlm":
        # Said of each call of WavLM's own attention; the mask is turned into the type of the positions' bias, which is what it asks for.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask", UserWarning)
    module = (WhisperFrames if kind == "whisper" else SpeechFrames)(model, layer)
    spec = _spec(kind, model, hearing, name=_name(reference.model, kind, layer), layer=layer, source=source, licence=_licence(folder))
    network = {key: value for key, value in config.items() if key not in _NOT_THE_NETWORK}
    described = hashlib.sha256(json.dumps(network, sort_keys=True).encode()).hexdigest()
    return TorchEncoder(spec, module, CODE, described, weights_digest(module.state_dict()))


class SpeechFrames(nn.Module):
    """Layer `layer` of a wav2vec 2.0, HuBERT or WavLM model: its sum, before any normalisation that the next layer would begin with."""

    def __init__(self, model: Any, layer: int) -> None:
        super().__init__()
        self.features, self.projection, self.encoder = model.feature_extractor, model.feature_projection, model.encoder
        self.encoder.layers = self.encoder.layers[:layer]
        if getattr(model.config, "do_stable_layer_norm", False):
            self.encoder.layer_norm = nn.Identity()  # comes after the last layer there; elsewhere it comes before the first
        if parametrize.is_parametrized(self.encoder.pos_conv_embed.conv):
            parametrize.remove_parametrizations(self.encoder.pos_conv_embed.conv, "weight")
        self.convolutions = tuple(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return frames of shape (windows, frames, dim)."""
        projected = self.projection(self.features(samples).transpose(1, 2))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        valid = None
        if lengths is not None:
            for kernel, stride in self.convolutions:
                lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            valid = torch.arange(hidden.shape[1])[None] < lengths[:, None]
        # The library sets frames of padding to zero, so that the convolution over positions hears what it would past the end of a window alone.
        frames: Tensor = self.encoder(hidden, attention_mask=valid)[0]
        return frames


class WhisperFrames(nn.Module):
    """Layer `layer` of a Whisper model's encoder, of speech as long as it is; it equals `whisper.graph_of`."""

    kernels: Tensor
    filters: Tensor

    def __init__(self, model: Any, layer: int) -> None:
        super().__init__()
        encoder = model.encoder
        self.conv1, self.conv2, self.positions = encoder.conv1, encoder.conv2, encoder.embed_positions
        self.layers = encoder.layers[:layer]
        self.register_buffer("kernels", torch.from_numpy(dft_kernels(N_FFT)[:, None]), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(model.config.num_mel_bins, N_FFT, 16_000)), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Return frames of shape (windows, frames, dim)."""
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(self._log_mel(samples))))).permute(0, 2, 1)
        hidden = hidden + self.positions.weight[: hidden.shape[1]]
        for block in self.layers:
            out = block(hidden, None)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def _log_mel(self, samples: Tensor) -> Tensor:
        padded = functional.pad(samples[:, None], (N_FFT // 2, N_FFT // 2), mode="reflect")
        squares = functional.conv1d(padded, self.kernels, stride=HOP)[..., :-1] ** 2
        bins = N_FFT // 2 + 1
        log = (self.filters @ (squares[:, :bins] + squares[:, bins:])).clamp_min(1e-10).log10()
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def _folder_of(reference: Reference, *, offline: bool) -> tuple[Path, str]:
    """Return where the model's files are, fetched if need be, and what to say of where they come from."""
    folder = Path(reference.model)
    if is_folder(folder):
        if reference.revision:
            raise InvalidValueError("the revision of encoder 'transformers'", reference.revision, "none, because the model is a folder")
        source = "a folder of this machine, read with transformers"
    elif _HUB_NAME.fullmatch(reference.model):
        folder = _fetched(reference, offline=offline)
        source = f"Hugging Face hub, {reference.model}, revision {folder.name}"[:300]
    else:
        raise EncoderError("No model is there: neither a folder nor a name as the hub has them (OWNER/MODEL).")
    if not any(path.suffix == ".safetensors" for path in folder.iterdir()):
        raise EncoderError(f"The model has no weights in the safetensors format; {_CONVERT}.")
    return folder, source


def _fetched(reference: Reference, *, offline: bool) -> Path:
    """Return the folder of the hub's cache that holds a model; what is not asked for, above all pickles, is not fetched."""
    why = f"Model {reference.model!r} cannot be fetched from the hub ({{kind}}): no connection, no such model, or a login is needed."
    if offline or constants.HF_HUB_OFFLINE:
        why = (
            f"Model {reference.model!r} is not in this machine's copy of the hub, and nothing may be fetched (offline). Where there is a connection, "
            "`clinical-ser encoder export` writes a folder that can be carried here."
        )
    with refused_as(why):
        return Path(snapshot_download(reference.model, revision=reference.revision, allow_patterns=_FILES, local_files_only=offline))


def _json_of(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise EncoderError(f"{path.name}: cannot be read ({error.strerror}), so the folder is no model's.") from None
    try:
        found = json.loads(raw) if len(raw) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise EncoderError(f"{path.name}: not a model's description.")
    return found


def _licence(folder: Path) -> str:
    """Return what the model's card says of its licence, in the block at its top."""
    try:
        with (folder / CARD_FILE).open(encoding="utf-8", errors="replace") as file:
            top = file.read(20_000)
    except OSError:
        top = ""
    block = re.match(r"---\s*\n(.*?)\n---", top, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([A-Za-z0-9][A-Za-z0-9 .+-]{0,60})", block[1], re.MULTILINE) if block else None
    return f"{found[1].strip()} (by the model's card)" if found else "not stated"


def _model_of(folder: Path, kind: str) -> Any:
    """Load a model, complete and in float32."""
    with _quiet(), refused_as("The model cannot be loaded ({kind}): its files are damaged, or do not belong together."):
        model, about = getattr(transformers, kind).from_pretrained(
            os.fspath(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    missing = [name for name in about["missing_keys"] if not name.startswith("decoder.") and name != "masked_spec_embed"]
    if missing or about.get("mismatched_keys"):
        # The library would fill them with random numbers.
        raise EncoderError(f"The model's weights are not complete: {len(missing) or len(about['mismatched_keys'])} of its arrays are missing.")
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from printing: what fails raises."""
    log: Any = logging  # its functions are not typed
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _name(model: str, kind: str, layer: int) -> str:
    return f"{slug(Path(model).name) or kind}-layer{layer}"


def _spec(kind: str, model: Any, hearing: Mapping[str, Any], *, name: str, layer: int, source: str, licence: str) -> EncoderSpec:
    config, rate = model.config, hearing.get("sampling_rate", 16_000)
    whisper = kind == "whisper"
    if not isinstance(rate, int) or not 8_000 <= rate <= 48_000 or (whisper and rate != 16_000):
        raise EncoderError(f"{HEARING_FILE}: the model hears at a rate that is not supported here.")
    if whisper:
        timing = {"frame_step_s": FRAME_STEP_S, "first_frame_s": 0.0}
        padding = Padding.EQUAL
    else:
        hop, reach = grid_of(config.conv_kernel, config.conv_stride)
        timing = {"frame_step_s": hop / rate, "first_frame_s": reach / 2 / rate}
        # Group norm takes in the padding; a batch norm before the positional convolution turns the zeros of padding into other numbers.
        sees_padding = config.feat_extract_norm == "group" or getattr(config, "conv_pos_batch_norm", False)
        padding = Padding.EQUAL if sees_padding else Padding.MASK
    return EncoderSpec(
        name=name,
        title=f"{kind}, layer {layer} of {config.num_hidden_layers}",
        frame_dim=config.hidden_size,
        **timing,
        sample_rate_hz=rate,
        padding=padding,
        standardise=not whisper and hearing.get("do_normalize", True) is True,
        licence=licence,
        source=source,
    )
