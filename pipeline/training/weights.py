"""The trained weights as files."""

from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import numpy as np
from mindspore import nn

from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX


def write(path: Path, unet: nn.Cell, values, parameters) -> None:
    """All of the UNet as float32 under the checkpoint's names, in the UNet's order: `values` for the `parameters` that
    are trained, and the others, which are frozen, as they are."""
    found = dict(zip((parameter.name for parameter in parameters), values, strict=True))
    with ckpt.Writer(path) as writer:
        for parameter in unet.get_parameters():
            value = found.get(parameter.name, parameter).asnumpy()
            writer.add(PREFIX["unet"] + parameter.name, value.astype(np.float32, copy=False))
