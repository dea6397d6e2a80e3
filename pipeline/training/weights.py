"""The trained weights as files."""

from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import numpy as np
from mindspore import nn

from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX


def write(path: Path, unet: nn.Cell, values, parameters) -> None:
    """`values` as float32 under the checkpoint's names of `parameters`, in the UNet's order."""
    found = dict(zip((parameter.name for parameter in parameters), values, strict=True))
    with ckpt.Writer(path) as writer:
        for parameter in unet.trainable_params():
            value = found[parameter.name].asnumpy()
            writer.add(PREFIX["unet"] + parameter.name, value.astype(np.float32, copy=False))
