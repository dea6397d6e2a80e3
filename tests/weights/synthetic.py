"""Random checkpoints in Stability's layout for any configuration: values scaled like an initialisation, and a function
of (seed, name, shape) alone, so that every test can make a tensor again by its name."""

import hashlib
import math
from pathlib import Path

import numpy as np

from pipeline.models.config import SDXLConfig
from pipeline.weights import layout, safetensors
from pipeline.weights.names import to_mindspore
from pipeline.weights.numeric import cast
from pipeline.weights.tensor import NUMPY


def values(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 values of one tensor by its Stability name: norms near 1, biases near 0, 1/sqrt(inputs) elsewhere."""
    if name.endswith("logit_scale"):
        return np.float32(math.log(100)).reshape(shape)
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    noise = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(shape, np.float32)
    if to_mindspore(name).endswith(".gamma"):
        return 1 + noise / 10
    if len(shape) == 1:
        return noise / 50
    if "embedding" in name:
        return noise / 50
    return noise / math.sqrt(math.prod(shape[1:]))


def bits(name: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """`values` rounded to float32, float16 or bfloat16 (the latter as uint16)."""
    return np.frombuffer(cast(values(name, shape, seed), "float32", dtype), NUMPY[dtype]).reshape(shape)


def write_checkpoint(path: Path, config: SDXLConfig, seed: int = 0, dtype: str = "float16") -> Path:
    """Write a whole random checkpoint as Stability's single safetensors file."""
    shapes = layout.shapes(config)
    with safetensors.Writer(path, {name: (dtype, shape) for name, shape in shapes.items()}) as writer:
        for name, shape in shapes.items():
            writer.add(name, bits(name, shape, dtype, seed), dtype)
    return path
