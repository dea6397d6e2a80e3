"""Sizes of pictures and buckets, and crops."""

from collections.abc import Iterator
from math import ceil, prod
from typing import TYPE_CHECKING

from pipeline.data.buckets import buckets
from pipeline.models.config import CONFIGS, SDXLConfig

if TYPE_CHECKING:
    from pipeline.params import Index, Params


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    yield from _index(params.index, CONFIGS[params.model.config])
    if params.cache_latents.crops > 1 and params.cache_latents.crop == "center":
        found = params.cache_latents.crops
        yield "cache_latents.crops", f"above 1 needs crop random: a picture has one center; found {found}"


def side_multiple(config: SDXLConfig) -> int:
    """What the sides of a picture must be multiples of: the VAE and then the UNet halve them, and the UNet's skip
    connections have to meet again."""
    return config.vae.factor * 2 ** (len(config.unet.channel_mult) - 1)


def _index(index: "Index", config: SDXLConfig) -> Iterator[tuple[str, str]]:
    multiple = side_multiple(config)
    sizes = []
    if not index.buckets:
        if index.resolution % multiple:
            yield "index.resolution", f"must be a multiple of {multiple}, found {index.resolution}"
        sizes = [(index.resolution, index.resolution)]
    elif index.bucket_step % multiple:
        yield "index.bucket_step", f"must be a multiple of {multiple} (SDXL: 64), found {index.bucket_step}"
    elif index.resolution % index.bucket_step:
        yield (
            "index.bucket_step",
            f"must divide resolution ({index.resolution}; SDXL: 64 and 1024), found {index.bucket_step}",
        )
    else:
        sizes = buckets(index.resolution, index.bucket_step)
    wanted = index.bucket_step if index.buckets else multiple
    for number, side in enumerate(index.further_resolutions):
        if side % wanted or side in (index.resolution, *index.further_resolutions[:number]):
            word = "index.bucket_step, " if index.buckets else ""
            yield (
                f"index.further_resolutions.{number}",
                f"must be a multiple of {word}{wanted} that is neither resolution ({index.resolution}) nor given twice, "
                f"found {side}",
            )
    if index.neighbors and not index.buckets:
        yield "index.neighbors", f"without buckets there is one size alone; must be 0, found {index.neighbors}"
    if index.min_side**2 > index.max_pixels:
        yield (
            "index.min_side",
            f"every picture is rejected: a side of {index.min_side} makes more than max_pixels ({index.max_pixels})",
        )
    elif sizes and index.max_enlargement is not None:
        least = min(prod(max(ceil(side / index.max_enlargement), index.min_side) for side in size) for size in sizes)
        if least > index.max_pixels:
            yield (
                "index.max_pixels",
                f"every picture is rejected: with resolution {index.resolution}, max_enlargement "
                f"{index.max_enlargement:g} and min_side {index.min_side} one needs {least} pixels at least, found "
                f"{index.max_pixels}",
            )
