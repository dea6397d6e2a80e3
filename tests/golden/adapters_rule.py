"""Layers, adapters and inputs of the golden values of adapters, by a rule that needs NumPy alone."""

import numpy as np

from pipeline.models.config import UNetConfig
from pipeline.weights.adapters import kinds
from tests.golden import rule

RANK, ALPHA, FACTOR = 4, 2.0, -1
LAYERS = {"linear": (64, 96), "conv": (32, 48, 3, 3)}  # shapes of weights; lokr's second part is low-rank in one alone
# The smallest that has every kind of layer of SDXL's; of heads, widths and levels no two are the same
UNET = UNetConfig(
    16, (1, 2), (0, 1), context_dim=24, vector_dim=40 + 6 * 256, head_dim=16, num_res_blocks=1, norm_groups=8
)
INPUTS = {"linear": (2, 5, 96), "conv": (2, 48, 6, 4)}


def weight(layer: str) -> np.ndarray:
    return rule.weight(f"adapters.{layer}.weight", LAYERS[layer])


def bias(layer: str) -> np.ndarray:
    return rule.weight(f"adapters.{layer}.bias", LAYERS[layer][:1])


def x(layer: str) -> np.ndarray:
    return rule.normal(f"adapters.{layer}.x", INPUTS[layer])


def direction(layer: str, shape: tuple[int, ...]) -> np.ndarray:
    """The scalar whose gradients are kept is the output's product with this."""
    return rule.normal(f"adapters.{layer}.direction", shape)


def parts(kind: str, layer: str) -> dict[str, np.ndarray]:
    return parts_of(kind, layer, weight(layer))


def parts_of(kind: str, layer: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """As after some training: no part is zero, and magnitudes are not the weight's."""
    found = {}
    for part, shape in kinds.shapes(kind, weight.shape, RANK, FACTOR).items():
        value = rule.normal(f"adapters.{kind}.{layer}.{part}", shape)
        if part == kinds.MAGNITUDE:
            found[part] = kinds.norms(weight).reshape(shape) * (1 + np.float32(0.1) * value)
        else:
            found[part] = np.float32(0.3) * value
    return found
