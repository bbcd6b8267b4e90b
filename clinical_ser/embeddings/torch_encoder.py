"""An encoder whose network is a torch module: how it is run, told apart by its weights, and kept from taking the machine.

The one idea: the module that answers here is the module that `exporting` turns into a graph, so parity is of one thing with itself.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clinical_ser.embeddings.encoder import EncoderSpec, Padding, WindowedEncoder
from clinical_ser.errors import EncoderError


class TorchEncoder(WindowedEncoder):
    """An encoder around a module in evaluation mode.

    Attributes
    ----------
    module : torch.nn.Module
        Called with samples, float32 (windows, samples), and where padding is masked with lengths, int64 (windows,); returns frames.
    """

    def __init__(self, spec: EncoderSpec, module: nn.Module, *digests: str) -> None:
        self.spec = spec
        self.module = module.eval().requires_grad_(requires_grad=False)
        self.fingerprint = spec.fingerprint_of(*digests)

    def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
        """Run the module; see `WindowedEncoder.run`."""
        given = (samples, lengths) if self.spec.padding is Padding.MASK else (samples,)
        with one_thread(), torch.inference_mode():
            frames: NDArray[np.float32] = self.module(*(torch.from_numpy(part) for part in given)).numpy()
        return list(frames)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, as everything here: how a sum is split over threads decides its last bits. What was set before comes back."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors by name: names in order, shapes, and numbers as little-endian float32.

    Raises
    ------
    EncoderError
        A number among them is not finite.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise EncoderError("The model's weights hold numbers that are not finite, so the file is damaged.")
        digest.update(f"{name}{list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.numpy(), "<f4").data)
    return digest.hexdigest()


def grid_of(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Return how many samples lie between the frames that a row of convolutions gives, and how many samples one frame hears."""
    hop, reach = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        reach += (kernel - 1) * hop
        hop *= stride
    return hop, reach


def slug(text: str) -> str:
    """Return what an encoder may be called, whatever the text holds; empty if that is nothing."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:52].rstrip("-")
