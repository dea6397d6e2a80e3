"""A picture drawn alone, from the samplers and the guidance themselves: what draw.latents has to give among others."""

import numpy as np

from pipeline import params
from pipeline.sampling import draw, samplers
from pipeline.sampling.picture import Picture


def drawn(
    predict: draw.UNet,
    one: Picture,
    text: draw.Text,
    negative: draw.Text,
    sampler: str,
    diffusion: params.Diffusion,
    rescale: float,
) -> np.ndarray:
    """(4, h, w) float32, as the UNet is trained on them; of `text` and `negative` of one prompt. For samplers that add
    no noise."""
    of_size = one.height, one.width, one.guidance_scale
    denoise = draw.guided(predict, *text, *of_size, diffusion.prediction, negative, rescale)
    noise = draw.noise_of(one.seed, one.number, (4, one.height // 8, one.width // 8))[None]
    begun = samplers.begin(
        sampler, noise, one.steps, diffusion.prediction, diffusion.zero_terminal_snr, diffusion.flow_shift
    )
    return samplers.SAMPLERS[sampler].sample(denoise, *begun, lambda: None)[0]
