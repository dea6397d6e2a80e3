"""The latents' side of the cache: from images.parquet to rows."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cache.building.engine import Job, as_float16
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import shards
from pipeline.cache.format.names import latent_row
from pipeline.data import geometry
from pipeline.data.images import Rejected
from pipeline.data.part import replaced
from pipeline.data.sources import Source
from pipeline.stage import StageError

_ADVICE = (
    "SDXL's original VAE overflows in float16: run it in float32, or use a VAE made for it; "
    "else the picture or the weights are broken"
)


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes rows."""

    store: str  # moments | sample | mean
    crop: str  # center | random
    crops: int
    flip: bool
    interpolation: str
    background: tuple[int, int, int]

    @property
    def fingerprint(self) -> dict:
        """What shapes a row of its own. How many crops there are and whether there are mirrored rows is in the rows'
        names."""
        return {
            "store": self.store,
            "crop": self.crop,
            "interpolation": self.interpolation,
            "background": list(self.background),
        }


@dataclass(frozen=True)
class _Rows:
    """One entry a row, sorted by the rows' names; picture indexes the columns of images.parquet."""

    names: np.ndarray  # (n, 16) uint8
    picture: np.ndarray  # (n,) int32
    flip: np.ndarray  # (n,) bool
    crop: np.ndarray  # (n,) int32


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
    table = pq.read_table(
        images, columns=["image", "path", "width", "height", "bucket_width", "bucket_height", "rejected"]
    )
    table = table.filter(pc.is_null(table["rejected"]))
    contents, first = _distinct(shards.as_names(table["image"]))
    table = table.take(first)
    paths = table["path"]
    size = np.stack([table[name].to_numpy() for name in ("height", "width")], axis=1)
    buckets = np.stack([table[name].to_numpy() for name in ("bucket_height", "bucket_width")], axis=1).astype(np.int32)
    rows = _rows(contents, preparation)
    wanted = Wanted(shards.LATENTS, fingerprint, rows.names, buckets[rows.picture])

    def describe(index: int) -> str:
        return f"picture {paths[int(rows.picture[index])].as_py()}"

    def prepare(index: int) -> tuple[np.ndarray, dict]:
        picture, flip, crop = int(rows.picture[index]), bool(rows.flip[index]), int(rows.crop[index])
        data = source.read(paths[picture].as_py())
        image = contents[picture].tobytes()
        if hashlib.blake2b(data, digest_size=16).digest() != image:
            file = source.file(paths[picture].as_py())
            raise StageError(f"{describe(index)} is not the one that the index read: {replaced(file)}")
        height, width = buckets[picture].tolist()
        # A mirrored picture shows the same part as the picture itself.
        generator = geometry.generator(latent_row(image, False, crop))
        try:
            prepared = geometry.prepare(
                data, (width, height), preparation.crop, preparation.interpolation, preparation.background, generator
            )
        except Rejected as error:
            raise StageError(f"{describe(index)} was accepted by the index and cannot be decoded: {error}") from error
        if list(prepared.original_size) != size[picture].tolist():
            raise StageError(
                f"{describe(index)} is {prepared.original_size}, the index has {size[picture].tolist()}; "
                "run `dvc repro` again"
            )
        if flip:
            prepared = geometry.mirror(prepared)
        numbers = {
            "image": image,
            "original_height": prepared.original_size[0],
            "original_width": prepared.original_size[1],
            "crop_top": prepared.crop_top_left[0],
            "crop_left": prepared.crop_top_left[1],
            "target_height": height,
            "target_width": width,
            "flip": int(flip),
            "crop": crop,
        }
        return as_input(prepared.pixels), numbers

    def finish(index: int, outputs: tuple[np.ndarray, ...]) -> dict:
        moments = outputs[0]
        latent = reduce_moments(moments, preparation.store, rows.names[index].tobytes())
        channels, height, width = latent.shape
        return {
            "latent": as_float16(latent, describe(index), _ADVICE),
            "channels": channels,
            "latent_height": height,
            "latent_width": width,
        }

    def encoder() -> Callable[[np.ndarray], tuple[np.ndarray]]:
        encode = make_encoder()
        return lambda pixels: (encode(pixels),)

    return Job(wanted, prepare, encoder, finish, "image", batch_size, workers)


def as_input(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(127.5) - np.float32(1)


def as_pixels(array: np.ndarray) -> np.ndarray:
    """The inverse of as_input, values outside [-1, 1] cut off."""
    return np.clip(np.rint((array.transpose(1, 2, 0) + 1) * 127.5), 0, 255).astype(np.uint8)


def reduce_moments(moments: np.ndarray, form: str, row: bytes) -> np.ndarray:
    """What is stored of the posterior's moments (8, h, w): themselves, their mean (4, h, w), or one draw (4, h, w)
    seeded by the row's name. The log variance is cut to [-30, 20], as Latent Diffusion does (arXiv 2112.10752, its
    code)."""
    if form == "moments":
        return moments
    mean, log_variance = np.split(moments, 2)
    if form == "mean":
        return mean
    # The crop uses the generator's first numbers; a stream of its own keeps the two draws apart.
    noise = geometry.generator(hashlib.blake2b(b"posterior" + row, digest_size=16).digest())
    return mean + np.exp(np.clip(log_variance, -30, 20) / 2) * noise.standard_normal(mean.shape, dtype=np.float32)


def _distinct(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each name once, sorted, and the position of its first occurrence."""
    order = shards.sort_order(names)  # stable, so the first of equal names comes first
    ordered = names[order]
    first = order[np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(ordered)]]
    return names[first], first


def _rows(contents: np.ndarray, preparation: Preparation) -> _Rows:
    crops = preparation.crops if preparation.crop == "random" else 1
    variants = [(flip, crop) for flip in ((False, True) if preparation.flip else (False,)) for crop in range(crops)]
    names = shards.as_names([latent_row(image.tobytes(), flip, crop) for image in contents for flip, crop in variants])
    order = shards.sort_order(names)
    flips, numbers = (np.tile(np.array(values), len(contents))[order] for values in zip(*variants, strict=True))
    picture = np.repeat(np.arange(len(contents), dtype=np.int32), len(variants))[order]
    return _Rows(names[order], picture, flips.astype(bool), numbers.astype(np.int32))
