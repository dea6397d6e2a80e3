"""Euler's method for the sampling equation of Karras et al. 2022 (arXiv 2206.00364), with the steps of SDXL, and its
ancestral form, which adds fresh noise at each step.

The equation runs in x = x_0 + sigma * noise, with sigma = sqrt((1 - a_t) / a_t) and a_t of alphas_cumprod."""

from collections.abc import Callable

import numpy as np

# diffusers gives the last timestep of a zero-terminal-SNR schedule this signal in place of none: its sigma is then 4096
# and not infinite.
LEAST_SIGNAL = 2.0**-24


def steps(alphas: np.ndarray, count: int, zero_terminal_snr: bool) -> tuple[np.ndarray, np.ndarray]:
    """The (count,) int32 timesteps of a sampling run, falling, and its (count + 1,) float32 sigmas, the last 0.

    `alphas` (1000,) are alphas_cumprod. SDXL's own steps lead: every 1000 // count-th timestep, plus one. With
    `zero_terminal_snr` they trail, so that the first is the last timestep, pure noise (arXiv 2305.08891, section 3.3).
    Raises ValueError when count is not in 1..999, or 1..1000 for steps that trail."""
    total = len(alphas)
    most = total if zero_terminal_snr else total - 1
    if not 1 <= count <= most:
        raise ValueError(f"1 to {most} sampling steps are possible, found {count}")
    if zero_terminal_snr:
        # diffusers' own formula, to the bit; for 61 and others it gives one more, below the first timestep
        timesteps = np.round(np.arange(total, 0, -total / count)[:count]) - 1
    else:
        timesteps = np.arange(count)[::-1] * (total // count) + 1
    timesteps = timesteps.astype(np.int32)
    a = np.maximum(alphas[timesteps], LEAST_SIGNAL)
    return timesteps, np.append(np.sqrt((1 - a) / a), 0).astype(np.float32)


def start(noise: np.ndarray, sigmas: np.ndarray, zero_terminal_snr: bool) -> np.ndarray:
    """x at sigmas[0] from standard normal `noise`, with the spread that diffusers gives it: for leading steps that of
    noise and picture together, for trailing ones the noise alone."""
    return noise * (sigmas[0] if zero_terminal_snr else np.sqrt(sigmas[0] ** 2 + 1))


def denoised(x: np.ndarray, sigma: float, output: np.ndarray, prediction: str) -> np.ndarray:
    """D(x; sigma), the model's idea of x_0, from its `output` for x / sqrt(sigma² + 1): the noise for "epsilon", the
    velocity for "v" (arXiv 2202.00512, appendix D)."""
    if prediction == "epsilon":
        return x - sigma * output
    return x / (sigma**2 + 1) - sigma / np.sqrt(sigma**2 + 1) * output


def step(x: np.ndarray, x_0: np.ndarray, sigma: float, next_sigma: float) -> np.ndarray:
    """x at `next_sigma` by Euler's method with d = (x - x_0) / sigma (algorithm 1 of the paper), which keeps the share
    r = next_sigma / sigma of x: x + (next_sigma - sigma) d = r x + (1 - r) x_0, and loses nothing at a large sigma."""
    r = float(next_sigma) / float(sigma)
    return r * x + (1 - r) * x_0


def sample(
    denoise: Callable[[np.ndarray, float, float], np.ndarray],
    x: np.ndarray,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """x_0 (b, 4, h, w) float32: algorithm 1 of the paper with Euler steps and sigma(t) = t, from x at sigmas[0].

    `denoise(x, sigma, timestep)` is D(x; sigma); `progress` is called after each step."""
    for timestep, sigma, next_sigma in zip(timesteps, sigmas, sigmas[1:], strict=False):
        d = (x - denoise(x, sigma, timestep)) / sigma  # as diffusers rounds it, and not by `step`
        x = x + (next_sigma - sigma) * d
        progress()
    return x


def ancestral(
    denoise: Callable[[np.ndarray, float, float], np.ndarray],
    x: np.ndarray,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    progress: Callable[[], None],
    fresh: Callable[[int], np.ndarray],
) -> np.ndarray:
    """x_0 as `sample` gives it, by ancestral steps (k-diffusion's `sample_euler_ancestral`): each goes down past the next
    sigma, to sigma_down, and noise of sigma_up leads back up to it, so that sigma_down² + sigma_up² = sigma_next².

    `fresh(step)` is standard normal noise of x's shape."""
    for number, (timestep, sigma, next_sigma) in enumerate(zip(timesteps, sigmas, sigmas[1:], strict=False)):
        sigma_up = np.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2)
        sigma_down = np.sqrt(next_sigma**2 - sigma_up**2)
        x = step(x, denoise(x, sigma, timestep), sigma, sigma_down)
        if next_sigma:
            x = x + sigma_up * fresh(number)
        progress()
    return x
