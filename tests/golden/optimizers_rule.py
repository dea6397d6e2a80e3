"""What make_optimizers.py and the optimizers' tests share: parameters, gradients and settings, by a rule."""

import numpy as np

from tests.golden import rule

SHAPES = ((4, 3), (5,), (4, 2, 3, 3), (70, 61))  # the last has 8-bit moments, in 17 blocks of which one is not full
DECAYED = (True, False, True, True)
FACTORS = (0.5, 1.0, 3.0, 1.0)
RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-2, (0.9, 0.99), 1e-6, 0.1
PRODIGY_RATE = 1.0
STEPS = 40


def values() -> list[np.ndarray]:
    return [rule.normal(f"p {shape}", shape) for shape in SHAPES]


def gradients(step: int, values: list[np.ndarray]) -> list[np.ndarray]:
    """Of half the squared distance to a goal, with noise."""
    return [
        (value - rule.normal(f"goal {shape}", shape) + 0.3 * rule.normal(f"g {step} {shape}", shape)).astype(np.float32)
        for value, shape in zip(values, SHAPES, strict=True)
    ]
