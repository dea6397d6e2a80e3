"""Latents of encoded prompts: guided denoising from noise that depends on seed and prompt number alone."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline import params
from pipeline.diffusion import conditioning
from pipeline.models.config import SDXLConfig
from pipeline.sampling import euler, flow, samplers
from pipeline.sampling.picture import Picture

UNet = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Text = tuple[np.ndarray, np.ndarray]  # context (b, tokens, context_dim) and pooled (b, p)


def noise(seed: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """(count, *shape) float32 standard normal numbers; a prompt's are a function of seed and its number alone."""
    return np.stack([noise_of(seed, number, shape) for number in range(count)])


def noise_of(seed: int, number: int, shape: tuple[int, ...], step: int = -1) -> np.ndarray:
    """`shape` float32 standard normal numbers, a function of (seed, number of the prompt, step): those that a picture
    begins with, or those that a sampler adds in a step from 0 on."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, number], np.uint64)
    counter = np.array([0, 0, step + 1, 0], np.uint64)  # the lowest word counts the numbers drawn
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(shape, np.float32)


def latents(
    unet: UNet,
    pictures: Sequence[Picture],
    text: Text,
    negative: Text,
    config: SDXLConfig,
    sampler: str,
    diffusion: params.Diffusion,
    rescale: float,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """(b, 4, h, w) float32, as the UNet is trained on them, of pictures of one size and number of steps. `text` and
    `negative` are what prompts.encode gives of them; `progress` is called after each step."""
    one = pictures[0]
    shape = (config.unet.latent_channels, one.height // config.vae.factor, one.width // config.vae.factor)

    def fresh(step: int) -> np.ndarray:
        return np.stack([noise_of(picture.seed, picture.number, shape, step) for picture in pictures])

    scales = np.array([picture.guidance_scale for picture in pictures])
    denoise = guided(unet, *text, one.height, one.width, scales, diffusion.prediction, negative, rescale)
    x, timesteps, sigmas = samplers.begin(
        sampler, fresh(-1), one.steps, diffusion.prediction, diffusion.zero_terminal_snr, diffusion.flow_shift
    )
    return samplers.sample(sampler, denoise, x, timesteps, sigmas, fresh, progress)


def guided(
    unet: UNet,
    context: np.ndarray,
    pooled: np.ndarray,
    height: int,
    width: int,
    scale: float | np.ndarray,
    prediction: str,
    negative: Text | None = None,
    rescale: float = 0.0,
):
    """D(x; sigma) with classifier-free guidance (arXiv 2207.12598, eq. 6): u + scale * (c - u), where the unconditional
    u has the `negative` context and pooled text, or zeros for both, as SDXL was trained. All pictures count as uncropped
    ones of this size.

    context (b, tokens, context_dim), pooled (b, p), scale of all or (b,) → function of x (b, 4, h, w), sigma, timestep.
    `unet` (x_t, timesteps, context, vector) sees unconditional and conditional as one batch of 2 b. `rescale`: see
    `rescaled`."""
    if negative is None:
        negative = np.zeros_like(context), np.zeros_like(pooled)
    context = np.concatenate([negative[0], context])
    pooled = np.concatenate([negative[1], pooled])
    time_ids = np.tile(np.array([height, width, 0, 0, height, width], np.int32), (len(pooled), 1))
    vector = conditioning.vector(pooled, time_ids)
    scale = np.asarray(scale, np.float32).reshape(-1, 1, 1, 1)

    def denoise(x: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        # the x_t that the UNet was trained on
        x_t = x if prediction == "flow" else x / np.sqrt(sigma**2 + 1)
        output = unet(np.concatenate([x_t, x_t]), np.full(len(vector), timestep, np.float32), context, vector)
        unconditional, conditional = np.split(output, 2)
        output = unconditional + scale * (conditional - unconditional)
        if rescale:
            output = rescaled(output, conditional, rescale)
        if prediction == "flow":
            return flow.denoised(x, sigma, output)
        return euler.denoised(x, sigma, output, prediction)

    return denoise


def rescaled(output: np.ndarray, conditional: np.ndarray, share: float) -> np.ndarray:
    """Guidance raises the spread of what the UNet says, which a schedule without terminal signal shows as too much
    light. Give each picture's `output` (b, c, h, w) the spread of its `conditional`, and keep `1 - share` of it as it
    was (arXiv 2305.08891, eq. 14 to 16)."""
    axes = (1, 2, 3)
    spread = conditional.std(axes, keepdims=True) / output.std(axes, keepdims=True)
    return share * (output * spread) + (1 - share) * output


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """(3, H, W) float32 in [-1, 1] → (H, W, 3) uint8."""
    return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
