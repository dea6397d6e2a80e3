"""The latents' side of the cache: from images.parquet to rows."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cache.building.engine import Job, as_float16
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import lookup, shards
from pipeline.cache.format.preparation import Preparation
from pipeline.data import geometry, masks
from pipeline.data.how import loads
from pipeline.data.images import Rejected
from pipeline.data.part import replaced
from pipeline.data.sources import Source
from pipeline.stage import StageError

_ADVICE = (
    "SDXL's original VAE overflows in float16: run it in float32, or use a VAE made for it; "
    "else the picture or the weights are broken"
)


@dataclass(frozen=True)
class _Rows:
    """One entry a row, sorted by the rows' names and buckets; picture indexes the columns of images.parquet."""

    names: np.ndarray  # (n, 16) uint8
    picture: np.ndarray  # (n,) int32
    how: np.ndarray  # (n,) int32
    bucket: np.ndarray  # (n, 2) int32 height and width
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
        images,
        columns=["image", "path", "width", "height", "bucket_width", "bucket_height", "rejected", "mask", "views"],
    )
    preparations = [preparation.of(how) for how in loads((table.schema.metadata or {}).get(b"how"))]
    table = table.filter(pc.is_null(table["rejected"]))
    contents, first, picture = _distinct(lookup.as_names(table["image"]))
    rows = _rows(contents, _views(table, picture), preparations, fingerprint)
    table = table.take(first)
    paths, mask_paths = table["path"], table["mask"]
    size = np.stack([table[name].to_numpy() for name in ("height", "width")], axis=1)
    wanted = Wanted(shards.LATENTS, fingerprint, rows.names, rows.bucket)

    def describe(index: int) -> str:
        return f"picture {paths[int(rows.picture[index])].as_py()}"

    def prepare(index: int) -> tuple[np.ndarray, dict]:
        picture, flip, crop = int(rows.picture[index]), bool(rows.flip[index]), int(rows.crop[index])
        path, mask_path = paths[picture].as_py(), mask_paths[picture].as_py()
        data = source.read(path)
        mask = source.read(mask_path) if mask_path else None if mask_path is None else b""
        image = contents[picture].tobytes()
        if masks.content(_hash(data), masks.OF_ALPHA if mask == b"" else mask and _hash(mask)) != image:
            files = " or ".join(replaced(source.file(name)) for name in (path, mask_path) if name)
            raise StageError(f"{describe(index)} is not the one that the index read: {files}")
        height, width = rows.bucket[index].tolist()
        how = preparations[int(rows.how[index])]
        # A mirrored picture shows the same part as the picture itself.
        generator = geometry.generator(how.row(image, False, crop, fingerprint))
        try:
            prepared = geometry.prepare(
                data, (width, height), how.crop, how.interpolation, how.background, generator, mask
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
        if prepared.mask is not None:
            numbers["mask"] = prepared.mask.tobytes()
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


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


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


def _distinct(names: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each name once, sorted; the position of its first occurrence; and which of them each of `names` is."""
    order = lookup.sort_order(names)  # stable, so the first of equal names comes first
    ordered = names[order]
    is_first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(ordered)]
    number = np.empty(len(names), np.int32)
    number[order] = np.cumsum(is_first) - 1
    first = order[is_first]
    return names[first], first, number


def _views(table: pa.Table, picture: np.ndarray) -> np.ndarray:
    """(v, 4) int32, distinct and sorted: picture, how, and height and width of the bucket. table: images.parquet's rows,
    `picture` (n,) of each."""
    lists = table["views"].combine_chunks()
    plain = lists.is_null().to_numpy(zero_copy_only=False)
    buckets = [table[name].to_numpy()[plain] for name in ("bucket_height", "bucket_width")]
    own = np.column_stack([picture[plain], np.zeros_like(picture[plain]), *buckets])
    if not plain.all():
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy() // 3
        how, width, height = pc.list_flatten(lists).to_numpy().reshape(-1, 3).T
        own = np.concatenate([own, np.column_stack([np.repeat(picture, counts), how, height, width])])
    return np.unique(own, axis=0).astype(np.int32)


def _rows(contents: np.ndarray, views: np.ndarray, preparations: list[Preparation], fingerprint: dict) -> _Rows:
    """Each row once: views that are prepared alike share it."""
    images = [image.tobytes() for image in contents]
    names, columns = [], []
    for number, how in enumerate(preparations):
        mine = views[views[:, 1] == number]
        for flip, crop in how.variants:
            names += [how.row(images[picture], flip, crop, fingerprint) for picture in mine[:, 0]]
            columns.append(np.column_stack([mine, np.full((len(mine), 2), (flip, crop), np.int32)]))
    names, table = lookup.as_names(names), np.concatenate(columns)
    high, low = lookup.halves(names)
    order = np.lexsort((table[:, 3], table[:, 2], low, high))
    names, table = names[order], table[order]
    first = np.ones(len(names), bool)
    first[1:] = (names[1:] != names[:-1]).any(axis=1) | (table[1:, 2:4] != table[:-1, 2:4]).any(axis=1)
    picture, how, _, _, flip, crop = table[first].T
    return _Rows(names[first], picture, how, np.ascontiguousarray(table[first, 2:4]), flip.astype(bool), crop)
