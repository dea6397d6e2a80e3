"""Pictures of encoded prompts: guided denoising from noise that depends on seed and prompt number alone."""

from collections.abc import Callable

import numpy as np

from pipeline.diffusion import conditioning, schedule
from pipeline.sampling import euler, flow

UNet = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def noise(seed: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """(count, *shape) float32 standard normal numbers; a prompt's are a function of seed and its number alone."""
    keys = [np.array([seed & 0xFFFFFFFFFFFFFFFF, index], np.uint64) for index in range(count)]
    return np.stack([np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32) for key in keys])


def begin(
    noise: np.ndarray, count: int, prediction: str, zero_terminal_snr: bool, flow_shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x at the first of `count` steps, from standard normal `noise` of its shape; the (count,) timesteps and (count + 1,)
    sigmas of the steps. The last four arguments are keys of params.yaml. Raises ValueError when there can't be so many
    steps."""
    if prediction == "flow":
        timesteps, sigmas = flow.steps(count, flow_shift)
        return noise, timesteps, sigmas
    timesteps, sigmas = euler.steps(schedule.alphas_cumprod(zero_terminal_snr), count, zero_terminal_snr)
    return euler.start(noise, sigmas, zero_terminal_snr), timesteps, sigmas


def guided(unet: UNet, context: np.ndarray, pooled: np.ndarray, height: int, width: int, scale: float, prediction: str):
    """D(x; sigma) with classifier-free guidance (arXiv 2207.12598, eq. 6): u + scale * (c - u), where the unconditional
    u has zeros for context and pooled text, as SDXL was trained. All pictures count as uncropped ones of this size.

    context (b, tokens, context_dim), pooled (b, p) → function of x (b, 4, h, w), sigma, timestep. `unet` (x_t,
    timesteps, context, vector) sees unconditional and conditional as one batch of 2 b."""
    context = np.concatenate([np.zeros_like(context), context])
    pooled = np.concatenate([np.zeros_like(pooled), pooled])
    time_ids = np.tile(np.array([height, width, 0, 0, height, width], np.int32), (len(pooled), 1))
    vector = conditioning.vector(pooled, time_ids)

    def denoise(x: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        # the x_t that the UNet was trained on
        x_t = x if prediction == "flow" else x / np.sqrt(sigma**2 + 1)
        output = unet(np.concatenate([x_t, x_t]), np.full(len(vector), timestep, np.float32), context, vector)
        unconditional, conditional = np.split(output, 2)
        output = unconditional + scale * (conditional - unconditional)
        if prediction == "flow":
            return flow.denoised(x, sigma, output)
        return euler.denoised(x, sigma, output, prediction)

    return denoise


def batches(count: int, size: int) -> list[np.ndarray]:
    """Indices 0..count - 1 in batches of equal size, so that one graph serves all; the last repeats its last index."""
    size = min(size, count)
    padded = np.minimum(np.arange(-(-count // size) * size), count - 1)
    return list(padded.reshape(-1, size))


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """(3, H, W) float32 in [-1, 1] → (H, W, 3) uint8."""
    return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
