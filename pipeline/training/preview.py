"""Pictures drawn while training: the first held-out captions of the cache, always from the same noise."""

from collections.abc import Callable
from pathlib import Path

import pipeline.device
import mindspore as ms
import numpy as np
from mindspore import nn
from PIL import Image

from pipeline import params, store
from pipeline.cache.reader import Reader
from pipeline.models.config import SDXLConfig
from pipeline.models.encode import vae_decoder
from pipeline.models.graphs import compiled
from pipeline.sampling import draw, euler, samplers

COUNT = 4
STEPS, GUIDANCE = 20, 5.0


def painter(
    unet: nn.Cell, config: SDXLConfig, vae: Path, device: pipeline.device.Device, reader: Reader, samples: np.ndarray,
    diffusion: params.Diffusion, scaling_factor: float,
) -> Callable[[Path], None]:  # fmt: skip
    """-> function of a path that draws the captions of up to COUNT of the `samples` with the UNet's present weights,
    side by side, and writes them as a PNG. All in the bucket of the first; the VAE's decoder is loaded at the first
    call."""
    chosen = samples[(reader.buckets[samples] == reader.buckets[samples[0]]).all(1)][:COUNT]
    width, height = (int(side) for side in reader.buckets[chosen[0]])
    batch = reader.read(chosen, epoch=0, seed=0)
    context, pooled = batch.context.astype(np.float32), batch.pooled.astype(np.float32)
    shape = (config.unet.latent_channels, height // config.vae.factor, width // config.vae.factor)
    start, timesteps, sigmas = samplers.begin(
        "euler", draw.noise(0, len(chosen), shape), STEPS, diffusion.prediction, diffusion.zero_terminal_snr,
        diffusion.flow_shift,
    )  # fmt: skip
    decoders, run = [], compiled(unet, "UNet for pictures")

    def predict(*arrays: np.ndarray) -> np.ndarray:
        return run(*map(ms.Tensor, arrays)).asnumpy()

    def paint(path: Path) -> None:
        if not decoders:
            decoders.append(vae_decoder(config, vae, device, "float32"))
        unet.set_train(False)
        denoise = draw.guided(predict, context, pooled, height, width, GUIDANCE, diffusion.prediction)
        latents = euler.sample(denoise, start, timesteps, sigmas) / scaling_factor + diffusion.shift_factor
        unet.set_train()
        pictures = [draw.to_picture(decoders[0](one[None])[0]) for one in latents.astype(np.float32)]
        with store.atomic(path) as temporary:
            Image.fromarray(np.concatenate(pictures, axis=1)).save(temporary, format="PNG")

    return paint
