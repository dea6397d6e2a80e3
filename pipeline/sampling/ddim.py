"""DDIM (arXiv 2010.02502, eq. 12 with eta 0), with the steps of SDXL and diffusers' end, which is not sigma 0 but the
schedule's smallest noise."""

from collections.abc import Callable

import numpy as np

from pipeline.sampling import euler

# No signal at all has an infinite sigma. From this one on float32 knows no difference.
_LARGEST = 2.0**24


def steps(alphas: np.ndarray, count: int, zero_terminal_snr: bool) -> tuple[np.ndarray, np.ndarray]:
    """The (count,) int32 timesteps of euler.steps, and the (count, 2) float32 sigmas at each step's begin and end.

    A step ends 1000 // count timesteps below its begin, as in diffusers: steps that trail then begin elsewhere than the
    one before ended, where count does not divide 1000. Raises ValueError as euler.steps does."""
    timesteps, _ = euler.steps(alphas, count, zero_terminal_snr)
    ends = np.maximum(timesteps - len(alphas) // count, 0)
    a = alphas[np.stack([timesteps, ends], axis=1)]
    sigmas = np.sqrt((1 - a) / np.maximum(a, _LARGEST**-2))
    return timesteps, np.minimum(sigmas, _LARGEST).astype(np.float32)


def sample(
    denoise: Callable[[np.ndarray, float, float], np.ndarray],
    x_t: np.ndarray,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """x_0 with the schedule's smallest noise (b, 4, h, w) float32, from standard normal noise `x_t`; `sigmas` are those
    of `steps`, `denoise` and `progress` as euler.sample's.

    From step to step goes the paper's x_t = (x_0 + sigma noise) / sqrt(1 + sigma²)."""
    for timestep, (sigma, end) in zip(timesteps, sigmas, strict=True):
        x = x_t * np.sqrt(sigma**2 + 1)
        x_0 = denoise(x, sigma, timestep)
        noise = (x - x_0) / sigma
        x_t = (x_0 + end * noise) / np.sqrt(end**2 + 1)
        progress()
    return x_t
