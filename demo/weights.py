"""Where the tiny SDXL's networks start, and the file that they end in.

The text encoders stay as they start: random, which keeps different words apart, with sinusoids for positions, so that
the UNet can tell the colour of a shape from the colour of a background by its place in the caption."""

import hashlib
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.models.config import TINY
from pipeline.weights import layout, names, safetensors

TOKEN, POSITION = 0.5, 0.5  # standard deviation of the embeddings
# generative-models starts these at zero, so that each residual branch begins as nothing
ZERO = ("out_layers.3.weight", "proj_out.weight", "diffusion_model.out.2.weight")


def initial(part: str) -> dict[str, np.ndarray]:
    """Float32 weights of a component (a key of names.PREFIX) by Stability's names; each a function of its name."""
    shapes = layout.shapes(TINY)
    return {name: _initial(name, shape) for name, shape in shapes.items() if name.startswith(names.PREFIX[part])}


def _initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = names.to_mindspore(name).rpartition(".")[2]
    if leaf == "gamma":
        return np.ones(shape, np.float32)
    if leaf in ("beta", "bias", "in_proj_bias") or name.endswith(ZERO):
        return np.zeros(shape, np.float32)
    if leaf == "logit_scale":
        return np.array(np.log(100), np.float32)
    if "position" in name:
        return POSITION * np.sqrt(2).astype(np.float32) * _sinusoids(*shape)
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    values = np.random.Generator(np.random.Philox(key)).standard_normal(shape, np.float32)
    if "token_embedding" in name:
        return TOKEN * values
    inputs = shape[0] if leaf == "text_projection" else int(np.prod(shape[1:]))
    gain = 0.6 if name.startswith(names.PREFIX["unet"]) else 1.0
    return gain / np.sqrt(inputs, dtype=np.float32) * values


def _sinusoids(tokens: int, width: int) -> np.ndarray:
    """(tokens, width) float32, arXiv 1706.03762, 3.5."""
    angles = np.arange(tokens)[:, None] / 10000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def save(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write a whole checkpoint as float16 in Stability's single-file layout. Raises ValueError when tensors are
    missing, unknown, mis-shaped, or too large for float16."""
    shapes = layout.shapes(TINY)
    found = {name: value.shape for name, value in weights.items()}
    if found != shapes:
        different = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        raise ValueError(f"{len(different)} tensors are not those of the layout, first {different[:3]}")
    with store.atomic(path) as temporary:
        with safetensors.Writer(temporary, {name: ("float16", shape) for name, shape in shapes.items()}) as writer:
            for name in shapes:
                values = weights[name].astype(np.float16)
                if not np.isfinite(values).all():
                    raise ValueError(f"{name} has values that float16 cannot hold")
                writer.add(name, values)


def load(path: Path) -> dict[str, np.ndarray]:
    """Float32 arrays of a safetensors file."""
    return {name: tensor.array().astype(np.float32) for name, tensor in safetensors.read(path).items()}
