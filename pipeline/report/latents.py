"""Cached latents decoded back to pictures, beside the pictures that they were made from."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache.tools import sheet
from pipeline.data.sources import open_source
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.report import data
from pipeline.report.pictures import Picture, from_pixels
from pipeline.report.revision import Revision

LATENTS = "outs/latents"
VAE = "outs/convert/vae.ckpt"


@dataclass(frozen=True)
class Pair:
    path: str
    caption: str
    about: str  # sizes, crop, PSNR
    original: Picture
    decoded: Picture


def read(revision: Revision, params: Params, count: int) -> list[Pair] | None:
    """`count` rows spread evenly over the cache; None before there is one. Raises StageError, ValueError, OSError."""
    needed = (f"{data.INDEX}/images.parquet", f"{data.INDEX}/captions.parquet", VAE)
    if not any(name.endswith(".parquet") for name in revision.names(LATENTS)) or not all(map(revision.exists, needed)):
        return None
    with revision.folder(LATENTS) as latents, revision.file(needed[0]) as images, revision.file(VAE) as vae:
        source = open_source(params.data.images, image_column=params.data.image_column)
        found = sheet.pairs(latents, images, source, _decoder(params, vae), count)
    texts = data.captions(lambda name: revision.open(f"{data.INDEX}/{name}"), [pair.image for pair in found])
    return [
        Pair(pair.path, texts.get(pair.image, ""), pair.about, from_pixels(pair.original), from_pixels(pair.decoded))
        for pair in found
    ]


def _decoder(params: Params, vae: Path) -> Callable[[np.ndarray], np.ndarray]:
    from pipeline.models.encode import vae_decoder  # takes seconds, and a report without latents needs no MindSpore

    config = CONFIGS[params.model.config]
    return vae_decoder(config, vae, _device(params.device.target), params.cache_latents.precision)


@functools.cache
def _device(target: str):
    """MindSpore can be set up but once in a process."""
    from pipeline import device

    return device.setup(target)
