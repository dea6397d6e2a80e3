"""What make_training.py and the tests of training share: the small UNet, its inputs and settings, by a rule."""

import numpy as np

from tests.golden import rule

UNET = rule.MINI
STEPS, BATCH, LATENT = 5, 3, (8, 8)
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 0.01
MAX_GRAD_NORM, SNR_GAMMA, EMA_DECAY = 1.0, 5.0, 0.9999
SHAPES = ((4, 3), (5,), (4, 2, 3, 3))  # of the optimizers' own test
SAMPLES = 64  # values kept of each parameter


def timesteps(step: int) -> np.ndarray:
    return np.array([(271 * step + 331 * n + 7) % 1000 for n in range(BATCH)])


def inputs(step: int) -> dict[str, np.ndarray]:
    """x_0, noise (b, 4, h, w), context (b, 77, context_dim), pooled (b, 16) float32 and time_ids (b, 6)."""
    return {
        "x_0": rule.normal(f"x_0 {step}", (BATCH, 4, *LATENT)),
        "noise": rule.normal(f"noise {step}", (BATCH, 4, *LATENT)),
        "context": rule.normal(f"context {step}", (BATCH, 77, UNET.context_dim)),
        "pooled": rule.normal(f"pooled {step}", (BATCH, 16)),
        "time_ids": np.array([[64 + n, 80, step, 0, 64, 64] for n in range(BATCH)]),
    }


def picked(values: np.ndarray) -> np.ndarray:
    """SAMPLES values spread over the array, or all of a smaller one."""
    flat = values.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int)]
