"""Weights with adapters merged into them, one tensor in memory at a time."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError
from pipeline.weights import layout, provenance
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.file import Adapter
from pipeline.weights.names import part_of, to_mindspore
from pipeline.weights.numeric import cast
from pipeline.weights.source import open_part
from pipeline.weights.tensor import CHUNK, Tensor, size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changed:
    """A tensor with adapters, each with the strength that it is merged with: as weights/tensor.py's Tensor, but computed
    when it is asked for."""

    base: Tensor
    adapters: tuple[tuple[Adapter, float], ...]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return size(self.dtype, self.shape)

    def array(self) -> np.ndarray:
        """The values; the bits of bfloat16 as uint16."""
        whole = file.values(self.base)
        with np.errstate(all="ignore"):  # who reads them looks for NaN and infinity
            for adapter, strength in self.adapters:
                if adapter.rows is None:
                    whole = kinds.changed(whole, adapter.arrays(), adapter.alpha, strength)
                else:
                    first, stop = adapter.rows
                    whole = np.array(whole)
                    whole[first:stop] = kinds.changed(whole[first:stop], adapter.arrays(), adapter.alpha, strength)
        return np.asarray(cast(np.ascontiguousarray(whole).reshape(-1), "float32", self.dtype)).reshape(self.shape)

    def chunks(self) -> Iterator[memoryview]:
        view = memoryview(np.ascontiguousarray(self.array()).reshape(-1).view(np.uint8))
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]


def why_no_numbers(name: str, changed: Changed) -> str:
    """Of a changed tensor that has come out with NaN or infinity, though its base has none."""
    for adapter, _ in changed.adapters:
        for part, values in adapter.arrays().items():
            if not np.isfinite(values).all():
                return f"{name}: {adapter.path} holds NaN or infinity for it, in {part}"
    files = ", ".join(dict.fromkeys(str(adapter.path) for adapter, _ in changed.adapters))
    return f"{name}: too large for {changed.dtype} with {files}; a lower weight, or a base in float32, has room"


def base_unet(path: Path, config: SDXLConfig) -> dict[str, Tensor]:
    return base_part(path, "unet", config)


def base_part(path: Path, part: str, config: SDXLConfig) -> dict[str, Tensor]:
    """By Stability's names a component of a file that train.init_from may be. Raises StageError where it lacks any."""
    found = open_part(path, part, config)
    return {name: found[to_mindspore(name)] for name in layout.shapes(config) if part_of(name) == part}


def adapted_unet(base: Path, adapter: Path, config: SDXLConfig) -> dict[str, Tensor | Changed]:
    """By MindSpore's names the UNet of a file with an adapter's part for it merged into it. Raises StageError."""
    return _adapted(base_unet(base, config), adapter, config)


def adapted_texts(clip_l: Path, clip_g: Path, adapter: Path, config: SDXLConfig) -> dict[str, Tensor | Changed]:
    """By MindSpore's names the text encoders of two files with an adapter's parts for them. Raises StageError."""
    return _adapted(base_part(clip_l, "clip_l", config) | base_part(clip_g, "clip_g", config), adapter, config)


def _adapted(tensors: Mapping[str, Tensor], adapter: Path, config: SDXLConfig) -> dict[str, Tensor | Changed]:
    changed = apply(tensors, [(adapter, 1.0)], config, "float32", others=True)
    return {to_mindspore(name): tensor for name, tensor in changed.items()}


def apply(
    tensors: Mapping[str, Tensor],
    adapters: Sequence[tuple[Path, float]],
    config: SDXLConfig,
    dtype: str | None = None,
    others: bool = False,
) -> dict[str, Tensor | Changed]:
    """`tensors` (Stability's name -> tensor) with the adapters in these files, each with its strength, one after the
    other. Changed tensors are of `dtype`; None: of their own. Raises StageError for a file that is no adapter of this
    configuration, or changes a tensor that is not there, unless `others` says that it may."""
    changes: dict[str, tuple[tuple[Adapter, float], ...]] = {}
    for path, strength in adapters:
        found = file.read(path, config)
        if provenance.intact(path) is False:  # no error: tools that edit tensors may leave the hash as it was
            log.warning("%s: %s", path, provenance.DAMAGED)
        for name, own in found.items():
            if name not in tensors and others:
                continue
            if name not in tensors:
                raise StageError(f"{path} changes {name}, which is not among the weights that it is merged into")
            changes[name] = (*changes.get(name, ()), *((adapter, strength) for adapter in own))
    return {
        name: Changed(tensor, changes[name], dtype or tensor.dtype) if name in changes else tensor
        for name, tensor in tensors.items()
    }
