"""The trained weights as files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import numpy as np
from mindspore import nn

from pipeline.stage import StageError
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX


def named(unet: nn.Cell, values, parameters, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """All of the UNet as `dtype` ("float32" or "float16") with the checkpoint's names, in the UNet's order: `values` for
    the `parameters` that are trained, and the others, which are frozen, as they are. Raises StageError for a value that
    float16 cannot hold."""
    found = dict(zip((parameter.name for parameter in parameters), values, strict=True))
    for parameter in unet.get_parameters():
        value = found.get(parameter.name, parameter).asnumpy().astype(np.float32, copy=False)
        name = PREFIX["unet"] + parameter.name
        if dtype == "float16":
            with np.errstate(over="ignore"):
                half = value.astype(np.float16)
            if np.isinf(half).any() and not np.isinf(value).any():
                raise StageError(f"{name}: a value of {np.abs(value).max():g} is too large for train.save_dtype float16; "
                                 "set it to float32")  # fmt: skip
            value = half
        yield name, value


def write(path: Path, values: Iterable[tuple[str, np.ndarray]]) -> None:
    with ckpt.Writer(path) as writer:
        for name, value in values:
            writer.add(name, value)
