"""Which rows the pictures of images.parquet have, and a row's pixels: the same for the cache, and for training on pictures
as they are read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cache.format import lookup
from pipeline.cache.format.preparation import Preparation
from pipeline.data import focus, geometry, masks
from pipeline.data.how import loads
from pipeline.data.images import Rejected
from pipeline.data.part import replaced
from pipeline.data.sources import Source
from pipeline.stage import StageError


@dataclass(frozen=True)
class Pictures:
    """m accepted pictures, each content once, and their n rows, sorted by the rows' names and buckets."""

    source: Source
    fingerprint: dict  # of the rows
    preparations: list[Preparation]
    images: np.ndarray  # (m, 16) uint8, sorted
    size: np.ndarray  # (m, 2) height and width
    paths: pa.ChunkedArray  # (m,)
    masks: pa.ChunkedArray  # (m,) paths, empty for the alpha channel, null without a mask
    focus: pa.ChunkedArray  # (m,) lists, as images.parquet has them
    names: np.ndarray  # (n, 16) uint8
    picture: np.ndarray  # (n,) int32
    how: np.ndarray  # (n,) int32, of `preparations`
    bucket: np.ndarray  # (n, 2) int32 height and width
    flip: np.ndarray  # (n,) bool
    crop: np.ndarray  # (n,) int32

    def describe(self, row: int) -> str:
        return f"picture {self.paths[int(self.picture[row])].as_py()}"


def open_pictures(images: str | Path, source: Source, fingerprint: dict, preparation: Preparation) -> Pictures:
    """Of all accepted pictures of images.parquet. preparation: that of params.yaml."""
    table = pq.read_table(
        images,
        columns=[
            "image",
            "path",
            "width",
            "height",
            "bucket_width",
            "bucket_height",
            "rejected",
            "mask",
            "focus",
            "views",
        ],
    )
    preparations = [preparation.of(how) for how in loads((table.schema.metadata or {}).get(b"how"))]
    table = table.filter(pc.is_null(table["rejected"]))
    contents, first, picture = _distinct(lookup.as_names(table["image"]))
    rows = _rows(contents, views_of(table, picture), preparations, fingerprint)
    table = table.take(first)
    size = np.stack([table[name].to_numpy() for name in ("height", "width")], axis=1)
    columns = table["path"], table["mask"], table["focus"]
    return Pictures(source, fingerprint, preparations, contents, size, *columns, *rows)


def prepare(
    pictures: Pictures,
    row: int,
    flip: bool | None = None,
    crop: str | None = None,
    generator: np.random.Generator | None = None,
) -> tuple[np.ndarray, dict]:
    """A row's pixels (3, H, W) float32 in [-1, 1], and its numbers. flip, crop, generator: in place of the row's own.

    Raises StageError for a picture that is not the one that the index read."""
    picture = int(pictures.picture[row])
    columns = pictures.paths, pictures.masks, pictures.focus
    path, mask_path, box = (column[picture].as_py() for column in columns)
    try:
        data = pictures.source.read(path)
        mask = pictures.source.read(mask_path) if mask_path else None if mask_path is None else b""
    except FileNotFoundError as error:
        raise StageError(
            f"{pictures.describe(row)} was there when the index read it, and is no more: {error}; put it back, or run "
            "`dvc repro`, which begins anew without it"
        ) from None
    image = pictures.images[picture].tobytes()
    of_mask = masks.OF_ALPHA if mask == b"" else mask and _hash(mask)
    if masks.content(_hash(data), of_mask, focus.key(box)) != image:
        files = " or ".join(replaced(pictures.source.file(name)) for name in (path, mask_path) if name)
        raise StageError(f"{pictures.describe(row)} is not the one that the index read: {files}")
    height, width = pictures.bucket[row].tolist()
    how, number = pictures.preparations[int(pictures.how[row])], int(pictures.crop[row])
    flip = bool(pictures.flip[row]) if flip is None else flip
    # A mirrored picture shows the same part as the picture itself.
    generator = generator or geometry.generator(how.row(image, False, number, pictures.fingerprint))
    try:
        prepared = geometry.prepare(
            data, (width, height), crop or how.crop, how.interpolation, how.background, generator, mask, box
        )
    except Rejected as error:
        raise StageError(
            f"{pictures.describe(row)} was accepted by the index and cannot be decoded: {error}"
        ) from error
    if list(prepared.original_size) != pictures.size[picture].tolist():
        raise StageError(
            f"{pictures.describe(row)} is {prepared.original_size}, the index has {pictures.size[picture].tolist()}; "
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
        "crop": number,
    }
    if prepared.mask is not None:
        numbers["mask"] = prepared.mask.tobytes()
    return as_input(prepared.pixels), numbers


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


def views_of(table: pa.Table, picture: np.ndarray) -> np.ndarray:
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


def _rows(
    contents: np.ndarray, views: np.ndarray, preparations: list[Preparation], fingerprint: dict
) -> tuple[np.ndarray, ...]:
    """(names, picture, how, bucket, flip, crop) of each row once: views that are prepared alike share it."""
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
    return names[first], picture, how, np.ascontiguousarray(table[first, 2:4]), flip.astype(bool), crop
