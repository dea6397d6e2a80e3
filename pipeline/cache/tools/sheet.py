"""A contact sheet: cached latents decoded back to pictures, beside the pictures that they were made from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cache.building.pictures import as_pixels
from pipeline.cache.format import shards, stand_in
from pipeline.data import geometry
from pipeline.data.sources import Source
from pipeline.stage import StageError

_GAP = 4  # pixels
_COLUMNS = 4  # pairs in a line


@dataclass(frozen=True)
class Pair:
    """A row of the cache."""

    path: str  # of the picture in the data set
    image: bytes  # hash of its file
    original: np.ndarray  # (H, W, 3) uint8, prepared as it was for the encoder
    decoded: np.ndarray  # the same size
    about: str  # sizes, crop and how near they are, PSNR in dB


def contact_sheet(
    latents: Path, images: Path, source: Source, decode: Callable[[np.ndarray], np.ndarray], count: int
) -> tuple[Image.Image, list[str]]:
    """The `pairs` in one picture, each original with the decoded latent to its right, and a line of text for each."""
    found = pairs(latents, images, source, decode, count)
    sheet = _grid([np.concatenate([pair.original, pair.decoded], axis=1) for pair in found])
    return sheet, [f"{pair.path}: {pair.about}" for pair in found]


def pairs(
    latents: Path, images: Path, source: Source, decode: Callable[[np.ndarray], np.ndarray], count: int
) -> list[Pair]:
    """`count` rows spread evenly over the cache.

    decode: latents (1, 4, h, w) float32, unscaled, to pixels (1, 3, H, W) float32 in [-1, 1]."""
    table = pq.read_table(images, columns=["image", "path"])
    paths = dict(zip(table["image"].to_pylist(), table["path"].to_pylist(), strict=True))
    found = []
    for row, fingerprint in _spread(latents, count):
        path = paths.get(row["image"])
        if path is None:
            raise ValueError(f"{images} lacks the picture {row['image'].hex()} of {latents}; run `dvc repro`")
        original = _prepared(source.read(path), row, fingerprint)
        values = np.frombuffer(row["latent"], "<f2").reshape(row["channels"], row["latent_height"], row["latent_width"])
        decoded = as_pixels(decode(values[None, :4].astype(np.float32))[0])
        about = (
            f"{row['original_width']}x{row['original_height']}, "
            f"crop at left {row['crop_left']}, top {row['crop_top']}, "
            f"bucket {row['target_width']}x{row['target_height']}{', mirrored' if row['flip'] else ''}: "
            f"{_psnr(original, decoded):.1f} dB"
        )
        found.append(Pair(path, row["image"], original, decoded, about))
    return found


def _spread(latents: Path, count: int) -> list[tuple[dict, dict]]:
    paths = sorted(latents.glob("*.parquet"))
    if stand_in.is_in(latents):
        raise StageError(f"{latents} holds no shards: train.source is pictures, and none are cached")
    if not paths:
        raise StageError(f"{latents} holds no shards; run `dvc repro cache_latents`")
    opened = [shards.open_shard(path, shards.LATENTS) for path in paths]
    ends = np.cumsum([len(shard) for shard in opened])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).round().astype(int))
    rows = []
    for position in chosen:
        shard = opened[int(np.searchsorted(ends, position, side="right"))]
        with open(shard.path, "rb", buffering=0) as file:
            index = int(position - (ends[opened.index(shard)] - len(shard)))
            rows.append((shards.read_row(shard, index, file.fileno()), shard.fingerprint))
    return rows


def _prepared(data: bytes, row: dict, fingerprint: dict) -> np.ndarray:
    bucket = (row["target_width"], row["target_height"])
    left = row["crop_left"]
    if row["flip"]:
        resized = geometry.cover(row["original_height"], row["original_width"], bucket)[1]
        left = resized - row["target_width"] - left
    how = fingerprint["interpolation"], tuple(fingerprint["background"])  # a set's own background is not known here
    prepared = geometry.prepare(data, bucket, (row["crop_top"], left), *how)
    return geometry.mirror(prepared).pixels if row["flip"] else prepared.pixels


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def _grid(pairs: list[np.ndarray]) -> Image.Image:
    width = max(pair.shape[1] for pair in pairs) + _GAP
    height = max(pair.shape[0] for pair in pairs) + _GAP
    columns = min(_COLUMNS, len(pairs))
    sheet = np.full((-(-len(pairs) // columns) * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    for number, pair in enumerate(pairs):
        top, left = number // columns * height + _GAP, number % columns * width + _GAP
        sheet[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
    return Image.fromarray(sheet)
