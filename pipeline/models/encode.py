"""The frozen encoders (and the VAE's decoder) as functions from NumPy to NumPy. Each new shape compiles a graph anew,
so callers keep batches to few shapes."""

from collections.abc import Callable
from pathlib import Path

import pipeline.device

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from pipeline.models.clip import ClipG, ClipL
from pipeline.models.config import SDXLConfig
from pipeline.models.graphs import compiled
from pipeline.models.load import set_weights
from pipeline.models.vae import VAEDecoder, VAEEncoder
from pipeline.stage import StageError
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX
from pipeline.weights.tensor import Tensor

_DTYPE = {"float32": ms.float32, "bfloat16": ms.bfloat16}


def _frozen(
    make: Callable[[], nn.Cell], path: Path, part: str, device: pipeline.device.Device, precision: str,
    tensors: dict[str, Tensor] | None = None,
):  # fmt: skip
    """(the cell with its weights as a function of tensors, its dtype)"""
    if precision not in _DTYPE:
        raise StageError(f"precision {precision!r} is not one of {', '.join(_DTYPE)}")
    if precision == "bfloat16" and device.target == "CPU":
        raise StageError("precision bfloat16 needs an Ascend NPU: the CPU has no such kernels; wanted float32")
    with no_init_parameters():
        cell = make()
    set_weights(cell, ckpt.read(path) if tensors is None else tensors, path, PREFIX[part], _DTYPE[precision])
    return compiled(cell.set_train(False), type(cell).__name__), _DTYPE[precision]


def _array(tensor: ms.Tensor) -> np.ndarray:
    return tensor.astype(ms.float32).asnumpy()


def vae_encoder(config: SDXLConfig, ckpt: Path, device: pipeline.device.Device, precision: str):
    """-> function of pixels (b, 3, H, W) float32 in [-1, 1] giving moments (b, 8, H/8, W/8) float32: mean, then log
    variance, both unscaled. Raises StageError when the checkpoint does not fit or the device lacks the precision."""
    cell, dtype = _frozen(lambda: VAEEncoder(config.vae), ckpt, "vae", device, precision)

    def encode(pixels: np.ndarray) -> np.ndarray:
        return _array(cell(ms.Tensor(pixels, dtype)))

    return encode


def vae_decoder(config: SDXLConfig, ckpt: Path, device: pipeline.device.Device, precision: str):
    """-> function of unscaled latents (b, 4, h, w) float32 giving pixels (b, 3, 8h, 8w) float32. Raises like
    vae_encoder."""
    cell, dtype = _frozen(lambda: VAEDecoder(config.vae), ckpt, "vae", device, precision)

    def decode(latents: np.ndarray) -> np.ndarray:
        return _array(cell(ms.Tensor(latents, dtype)))

    return decode


def text_encoder(
    config: SDXLConfig, clip_l: Path, clip_g: Path, device: pipeline.device.Device, precision: str,
    tensors: dict[str, Tensor] | None = None,
):  # fmt: skip
    """-> function of (ids_l, ids_g), each (b, 77) int32 as its own encoder pads them, giving context
    (b, 77, context_dim) float32, CLIP-L's channels first, and pooled (b, projection_dim) float32. tensors: of both, in
    the place of those in the files, by MindSpore's names. Raises like vae_encoder."""
    cell_l, _ = _frozen(lambda: ClipL(config.clip_l), clip_l, "clip_l", device, precision, tensors)
    cell_g, _ = _frozen(lambda: ClipG(config.clip_g), clip_g, "clip_g", device, precision, tensors)
    return _text(cell_l, cell_g)


def text_function(clip_l: ClipL, clip_g: ClipG):
    """-> the function that text_encoder gives, of cells as their weights are when it is called."""
    return _text(compiled(clip_l, "ClipL as trained"), compiled(clip_g, "ClipG as trained"))


def _text(cell_l: Callable, cell_g: Callable):
    def encode(ids_l: np.ndarray, ids_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden_l = cell_l(ms.Tensor(ids_l, ms.int32))
        hidden_g, pooled = cell_g(ms.Tensor(ids_g, ms.int32))
        return np.concatenate((_array(hidden_l), _array(hidden_g)), axis=2), _array(pooled)

    return encode
