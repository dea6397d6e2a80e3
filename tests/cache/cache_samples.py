"""Small caches with known contents for the cache's tests."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache.format import lookup, shards
from pipeline.cache.format.names import latent_row
from pipeline.data import captions, tables

FINGERPRINT = {"vae": "0" * 32}
TEXT_FINGERPRINT = {"clip_l": "1" * 32, "clip_g": "2" * 32}


def latent(image: bytes, bucket=(64, 64), flip=False, crop=0, channels=8) -> dict:
    """A latent row whose payload follows from its name."""
    row = latent_row(image, flip, crop)
    width, height = bucket[0] // 8, bucket[1] // 8
    values = np.random.default_rng(list(row)).standard_normal((channels, height, width)).astype(np.float16)
    return {
        "row": row,
        "image": image,
        "latent": values.tobytes(),
        "channels": channels,
        "latent_height": height,
        "latent_width": width,
        "original_height": 3 * height,
        "original_width": 5 * width,
        "crop_top": crop,
        "crop_left": 1 + flip,
        "target_height": bucket[1],
        "target_width": bucket[0],
        "flip": int(flip),
        "crop": crop,
    }


def caption(text: str, text_2: str | None = None, tokens=77, width=12, pooled_width=6) -> dict:
    row = captions.name(text, text_2)
    draw = np.random.default_rng(list(row))
    return {
        "row": row,
        "context": draw.standard_normal((tokens, width)).astype(np.float16).tobytes(),
        "tokens": tokens,
        "width": width,
        "pooled": draw.standard_normal(pooled_width).astype(np.float32).tobytes(),
        "pooled_width": pooled_width,
        "caption_tokens": len(text.split()) + 2,
    }


def read_all(path, kind: shards.Kind = shards.LATENTS) -> list[dict]:
    """The rows of a shard."""
    shard = shards.open_shard(path, kind)
    with open(path, "rb") as file:
        return [shards.read_row(shard, index, file.fileno()) for index in range(len(shard))]


def write_cache(folder, kind: shards.Kind, rows: list[dict], fingerprint: dict) -> None:
    """A whole cache folder, as the stages leave it."""
    folder.mkdir(parents=True)
    count = shards.shard_count(len(rows))
    place = shards.shard_of(lookup.as_names([row["row"] for row in rows]), count)
    for index in range(count):
        chosen = [row for row, shard in zip(rows, place, strict=True) if shard == index]
        shards.write(folder / shards.shard_name(index, count), kind, chosen, fingerprint)


def write_samples(path, pairs: list[tuple[bytes, str]], **columns: list) -> None:
    """samples.parquet of (image, caption) pairs: a plain data set's, but for `columns` of tables.SAMPLES."""
    count = len(pairs)
    table = {
        "image": [image for image, _ in pairs],
        "set": [0] * count,
        "caption": [captions.name(text, None) for _, text in pairs],
        "chance": [1.0] * count,
        "repeats": [1.0] * count,
        "loss_weight": [1.0] * count,
        "caption_dropout": [None] * count,
        "class_images": [False] * count,
        "buckets": [None] * count,
    }
    pq.write_table(pa.table(table | columns, schema=tables.SAMPLES), path)


def write_captions(path, pairs: list[tuple[bytes, str]]) -> None:
    """captions.parquet of (image, caption) pairs."""
    table = {
        "image": pa.array([image for image, _ in pairs], pa.binary(16)),
        "caption": pa.array([captions.name(text, None) for _, text in pairs], pa.binary(16)),
        "text": pa.array([text for _, text in pairs]),
        "text_2": pa.array([None] * len(pairs), pa.string()),
    }
    pq.write_table(pa.table(table), path)
