"""The trained weights as files: the UNet's and the text encoders' as a checkpoint, adapters as kohya writes them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import numpy as np
from mindspore import nn

from pipeline import params
from pipeline.models.with_text import part_of
from pipeline.stage import StageError
from pipeline.weights import ckpt, provenance
from pipeline.weights.adapters import file, kinds
from pipeline.weights.names import PREFIX

Named = Iterable[tuple[str, np.ndarray]]  # as in the file


def named(network: nn.Cell, values, parameters, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """All of the UNet, and of the text encoders that are trained with it, as `dtype` ("float32" or "float16") with the
    checkpoint's names, in the network's order: `values` for the `parameters` that are trained, and the others, which are
    frozen, as they are. Raises StageError for a value that float16 cannot hold."""
    found = dict(zip((parameter.name for parameter in parameters), values, strict=True))
    parts = {part_of(name) for name in found} | {"unet"}
    for parameter in network.get_parameters():
        if (part := part_of(parameter.name)) not in parts:
            continue
        name = PREFIX[part] + parameter.name
        yield name, _array(name, found.get(parameter.name, parameter), dtype)


def parts(values, parameters, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Those of the adapters, of the UNet's and the text encoders', whose `parameters` have these `values`, as `named` gives
    whole ones."""
    for parameter, value in zip(parameters, values, strict=True):
        module, part = kinds.apart(parameter.name)
        yield f"{file.layer_name(module, part_of(parameter.name))}.{part}", _array(parameter.name, value, dtype)


def write(path: Path, values: Named) -> None:
    with ckpt.Writer(path) as writer:
        for name, value in values:
            writer.add(name, value)


def write_adapter(path: Path, values: Named, train: params.Train, run: dict, which: str) -> None:
    """`run`: what key.FACTS says of them; `which` of the run's weights they are, such as "raw" or "300"."""
    values = dict(values)
    layers: dict[str, set[str]] = {}
    for name in values:
        layer, part = kinds.apart(name)
        layers.setdefault(layer, set()).add(part)
    # 1 is a lokr's scale that has no rank
    alphas = {layer: train.rank * kinds.scale(own, train.rank, train.alpha) for layer, own in layers.items()}
    file.write(path, values, alphas, provenance.adapter_metadata(run, which, train.save_dtype))


def _array(name: str, value, dtype: str) -> np.ndarray:
    value = value.asnumpy().astype(np.float32, copy=False)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if np.isinf(half).any() and not np.isinf(value).any():
            raise StageError(f"{name}: a value of {np.abs(value).max():g} is too large for train.save_dtype float16; "
                             "set it to float32")  # fmt: skip
        value = half
    return value
