"""The steps of rectified flow (arXiv 2209.03003), as diffusers' FlowMatchEulerDiscreteScheduler takes them.

The equation runs in x = (1 - sigma) x_0 + sigma noise, from sigma 1, pure noise, to 0. Euler's method in it is
euler.sample with `denoised` below."""

import numpy as np

from pipeline.diffusion.schedule import STEPS, shifted


def steps(count: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """The (count,) float32 timesteps of a sampling run, falling, 1000 sigma each, and its (count + 1,) float32 sigmas,
    the last 0. Raises ValueError when count is not above 0."""
    if count < 1:
        raise ValueError(f"1 sampling step or more is possible, found {count}")
    # diffusers shifts the end twice: it is the shifted sigma of timestep 1, from which even steps are taken and shifted
    last = np.float64(shifted(np.float32(1 / STEPS), np.float32(shift)))
    sigmas = shifted(np.linspace(1.0, last, count), shift).astype(np.float32)
    return sigmas * np.float32(STEPS), np.append(sigmas, np.float32(0))


def denoised(x: np.ndarray, sigma: float, output: np.ndarray) -> np.ndarray:
    """D(x; sigma), the model's idea of x_0, from its `output` for x, the velocity noise - x_0."""
    return x - sigma * output
