"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), with the steps of SDXL or with those of Karras et al. 2022 (arXiv
2206.00364, eq. 5), in the x = x_0 + sigma * noise of euler.py: the paper's x_t is x / sqrt(1 + sigma²) and its lambda is
-log(sigma)."""

from collections.abc import Callable

import numpy as np

from pipeline.sampling import euler

_RHO = 7.0


def steps(alphas: np.ndarray, count: int, zero_terminal_snr: bool) -> tuple[np.ndarray, np.ndarray]:
    """As euler.steps, but steps that lead are every 1000 // (count + 1)-th, of which the lowest is left out.

    Raises ValueError when count is not in 1..998, or 1..1000 for steps that trail."""
    if zero_terminal_snr:
        return euler.steps(alphas, count, True)
    total = len(alphas)
    if not 1 <= count <= total - 2:
        raise ValueError(f"1 to {total - 2} sampling steps are possible, found {count}")
    timesteps = (np.arange(1, count + 1)[::-1] * (total // (count + 1)) + 1).astype(np.int32)
    return timesteps, np.append(_sigmas(alphas[timesteps]), 0).astype(np.float32)


def karras_steps(alphas: np.ndarray, count: int, zero_terminal_snr: bool) -> tuple[np.ndarray, np.ndarray]:
    """As `steps`, from the schedule's largest sigma to its smallest, evenly in sigma^(1/7). The UNet is given the nearest
    timestep of each sigma; some may be the same.

    Raises ValueError when count is not in 1..1000."""
    if not 1 <= count <= len(alphas):
        raise ValueError(f"1 to {len(alphas)} sampling steps are possible, found {count}")
    every = _sigmas(alphas)
    ramp = np.linspace(0, 1, count)
    lowest, highest = every[0] ** (1 / _RHO), every[-1] ** (1 / _RHO)
    sigmas = (highest + ramp * (lowest - highest)) ** _RHO
    timesteps = np.interp(np.log(sigmas), np.log(every), np.arange(len(every))).round().astype(np.int32)
    return timesteps, np.append(sigmas, 0).astype(np.float32)


def _sigmas(alphas: np.ndarray) -> np.ndarray:
    a = np.maximum(alphas, euler.LEAST_SIGNAL)
    return np.sqrt((1 - a) / a)


def start(noise: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """x at sigmas[0] from standard normal `noise`, which is the x_t of the first timestep."""
    return noise * np.sqrt(sigmas[0] ** 2 + 1)


def towards(x: np.ndarray, denoised: np.ndarray, before: np.ndarray | None, sigmas: np.ndarray) -> np.ndarray:
    """x at sigmas[2] from x at sigmas[1], where the model sees `denoised`, and `before` at sigmas[0] (None: there is no
    step before; a step of first order then, as is the last one, to sigma 0)."""
    last, sigma, following = (float(value) for value in sigmas)
    if before is None or not following:
        d = denoised
    else:
        r = np.log(last / sigma) / np.log(sigma / following)
        d = denoised + (denoised - before) / (2 * r)
    return euler.step(x, d, sigma, following)


def sample(
    denoise: Callable[[np.ndarray, float, float], np.ndarray],
    x: np.ndarray,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """x_0 (b, 4, h, w) float32 from x at sigmas[0]; arguments as euler.sample's."""
    before = None
    for step, timestep in enumerate(timesteps):
        denoised = denoise(x, sigmas[step], timestep)
        x = towards(x, denoised, before, sigmas[[max(step - 1, 0), step, step + 1]])
        before = denoised
        progress()
    return x
