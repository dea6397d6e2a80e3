"""The UNet as a function from NumPy to NumPy, whose weights can be changed for another checkpoint's."""

import logging
from collections.abc import Callable
from pathlib import Path

import pipeline.device

import mindspore as ms
import numpy as np
from mindspore.nn.utils import no_init_parameters

from pipeline.models.config import UNetConfig
from pipeline.models.graphs import compiled
from pipeline.models.load import set_weights
from pipeline.models.unet import UNet
from pipeline.stage import StageError
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX
from pipeline.weights.tensor import Tensor

log = logging.getLogger(__name__)

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


def make(config: UNetConfig, device: pipeline.device.Device, precision: str) -> tuple[Callable, Callable]:
    """(load, predict): `load(ckpt)` sets the weights, without compiling anew, `load(path, tensors)` to those opened
    already, which `path` names in errors; `predict(x_t, timesteps, context,
    vector)` gives the UNet's output (b, 4, h, w) float32. Weights and computation have this precision.

    Raises StageError when the device lacks the precision; `load` when the checkpoint does not fit."""
    if precision == "bfloat16" and not device.ascend:
        raise StageError(
            "sample.precision bfloat16 needs an Ascend NPU: the CPU has no such kernels; wanted float32 or float16"
        )
    attention = "flash" if device.ascend and precision != "float32" else "tiled"
    log.info("attention: %s", attention)
    dtype = DTYPES[precision]
    with no_init_parameters():
        cell = UNet(config, attention, dtype).set_train(False)
    run = compiled(cell, "UNet")

    def load(path: str | Path, tensors: dict[str, Tensor] | None = None) -> None:
        set_weights(cell, ckpt.read(path) if tensors is None else tensors, path, PREFIX["unet"], dtype)

    def predict(x_t: np.ndarray, timesteps: np.ndarray, context: np.ndarray, vector: np.ndarray) -> np.ndarray:
        inputs = (ms.Tensor(x_t), ms.Tensor(timesteps), ms.Tensor(context), ms.Tensor(vector))
        return run(*inputs).asnumpy()

    return load, predict
