"""The samplers by their names in `sample.sampler`; each is equal to diffusers' scheduler with SDXL's configuration. With
rectified flow there is Euler's alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.diffusion import schedule
from pipeline.sampling import ddim, dpmpp, euler, flow, unipc


class Sampler(NamedTuple):
    steps: Callable  # (alphas, count, zero_terminal_snr) -> timesteps, sigmas
    start: Callable  # (noise, sigmas, zero_terminal_snr) -> the first x
    sample: Callable  # (denoise, x, timesteps, sigmas, progress) -> x_0
    stochastic: bool = False  # `sample` also takes fresh noise


def _of_the_timestep(noise: np.ndarray, sigmas: np.ndarray, zero_terminal_snr: bool) -> np.ndarray:
    return dpmpp.start(noise, sigmas)


def _as_it_is(noise: np.ndarray, sigmas: np.ndarray, zero_terminal_snr: bool) -> np.ndarray:
    return noise


SAMPLERS = {
    "euler": Sampler(euler.steps, euler.start, euler.sample),
    "euler_ancestral": Sampler(euler.steps, euler.start, euler.ancestral, stochastic=True),
    "dpmpp_2m": Sampler(dpmpp.steps, _of_the_timestep, dpmpp.sample),
    "dpmpp_2m_karras": Sampler(dpmpp.karras_steps, _of_the_timestep, dpmpp.sample),
    "ddim": Sampler(ddim.steps, _as_it_is, ddim.sample),
    "unipc": Sampler(dpmpp.steps, _of_the_timestep, unipc.sample),
}


def begin(
    name: str, noise: np.ndarray, count: int, prediction: str, zero_terminal_snr: bool, flow_shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first x of `count` steps of the sampler, from standard normal `noise` of its shape; and the steps' timesteps
    and sigmas. The last three arguments are keys of params.yaml. Raises ValueError when it can't make so many steps, or
    no flow."""
    if prediction == "flow":
        if name != "euler":
            raise ValueError(f"{name} draws no flow; wanted euler")
        return noise, *flow.steps(count, flow_shift)
    sampler = SAMPLERS[name]
    timesteps, sigmas = sampler.steps(schedule.alphas_cumprod(zero_terminal_snr), count, zero_terminal_snr)
    return sampler.start(noise, sigmas, zero_terminal_snr), timesteps, sigmas


def sample(
    name: str,
    denoise: Callable[[np.ndarray, float, float], np.ndarray],
    x: np.ndarray,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    fresh: Callable[[int], np.ndarray],
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Latents (b, 4, h, w) float32 that the sampler makes of what `begin` gives.

    `denoise(x, sigma, timestep)` is the model's x_0 (draw.guided); `fresh(step)` is standard normal noise of x's shape,
    for samplers that add some; `progress` is called after each step."""
    sampler = SAMPLERS[name]
    more = (fresh,) if sampler.stochastic else ()
    return sampler.sample(denoise, x, timesteps, sigmas, progress, *more)
