"""Checkpoint to cell: strict, one tensor at a time."""

from pathlib import Path

import pipeline.device  # noqa: F401  (sets the environment of MindSpore before its import)

import mindspore as ms
import numpy as np
from mindspore import nn

from pipeline.models.layers import norm_parameters
from pipeline.stage import StageError
from pipeline.weights import ckpt
from pipeline.weights.tensor import Tensor

_NUMPY = {ms.float32: np.float32, ms.float16: np.float16}
_SHOWN = 20  # problems of one file that an error lists


def load_weights(cell: nn.Cell, path: str | Path, prefix: str, dtype: ms.Type = ms.float32) -> None:
    """Set every parameter of `cell` to the tensor `prefix` + its name of a .ckpt, as `dtype`; norms stay float32.

    What the file has beyond that is left alone: the VAE's file serves encoder and decoder. Make the cell under
    `mindspore.nn.utils.no_init_parameters()` to save the time and memory of values that are replaced here.
    Raises StageError that names every tensor which is missing or has another shape, the cell being as it was then, and
    for one that holds NaN or infinity."""
    set_weights(cell, ckpt.read(path), path, prefix, dtype)


def set_weights(cell: nn.Cell, tensors: dict[str, Tensor], path: str | Path, prefix: str, dtype: ms.Type) -> None:
    """`load_weights` of tensors that were opened already; `path` names them in errors."""
    problems = []
    for name, parameter in cell.parameters_and_names():
        found = tensors.get(prefix + name)
        if found is None:
            problems.append(f"{prefix + name} is missing; wanted shape {tuple(parameter.shape)}")
        elif found.shape != tuple(parameter.shape):
            problems.append(f"{prefix + name} has shape {found.shape}; wanted {tuple(parameter.shape)}")
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = "\n  ".join(problems[:_SHOWN] + more)
        raise StageError(f"{path} does not fit the model's configuration (model.config):\n  {lines}")

    norms = norm_parameters(cell)
    for name, parameter in cell.parameters_and_names():
        wanted = ms.float32 if name in norms else dtype
        if parameter.dtype != wanted:
            parameter.set_dtype(wanted)
        values = _values(tensors[prefix + name])
        if not np.isfinite(values).all():
            raise StageError(f"{path} is damaged; download or make it again: {prefix + name} holds NaN or infinity")
        parameter.set_data(_tensor(values, wanted))


def _values(stored: Tensor) -> np.ndarray:
    values = stored.array()
    return (values.astype(np.uint32) << 16).view(np.float32) if stored.dtype == "bfloat16" else values


def _tensor(values: np.ndarray, dtype: ms.Type) -> ms.Tensor:
    """A MindSpore tensor of `dtype`. At no time are there more copies than the file and this."""
    if dtype == ms.bfloat16:
        return ms.Tensor(values.astype(np.float32, copy=False)).astype(ms.bfloat16)
    # a copy of its own, aligned and writable, which the tensor takes over
    return ms.Tensor.from_numpy(np.array(values, _NUMPY[dtype], order="C"))
