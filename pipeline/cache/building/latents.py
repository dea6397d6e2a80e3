"""The latents' side of the cache: from images.parquet to rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.cache.building import pictures
from pipeline.cache.building.engine import Job, as_float16
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.data.sources import Source

_ADVICE = (
    "SDXL's original VAE overflows in float16: run it in float32, or use a VAE made for it; "
    "else the picture or the weights are broken"
)


def make_job(
    images: str | Path,
    source: Source,
    fingerprint: dict,
    preparation: Preparation,
    make_encoder: Callable[[], Callable[[np.ndarray], np.ndarray]],
    batch_size: int,
    workers: int,
) -> Job:
    """The job that encodes every accepted picture of images.parquet.

    make_encoder() gives a function of pixels (b, 3, H, W) float32 in [-1, 1] to moments (b, 8, h, w) float32."""
    found = pictures.open_pictures(images, source, fingerprint, preparation)
    wanted = Wanted(shards.LATENTS, fingerprint, found.names, found.bucket)

    def prepare(index: int) -> tuple[np.ndarray, dict]:
        return pictures.prepare(found, index)

    def finish(index: int, outputs: tuple[np.ndarray, ...]) -> dict:
        moments = outputs[0]
        latent = pictures.reduce_moments(moments, preparation.store, found.names[index].tobytes())
        channels, height, width = latent.shape
        return {
            "latent": as_float16(latent, found.describe(index), _ADVICE),
            "channels": channels,
            "latent_height": height,
            "latent_width": width,
        }

    def encoder() -> Callable[[np.ndarray], tuple[np.ndarray]]:
        encode = make_encoder()
        return lambda pixels: (encode(pixels),)

    return Job(wanted, prepare, encoder, finish, "image", batch_size, workers)
