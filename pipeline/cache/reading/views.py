"""Samples with views of their own: which rows of the latents' cache each of them is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cache.format import lookup
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.rows import CacheError, Rows
from pipeline.data.how import loads


@dataclass(frozen=True)
class Views:
    """n views, sorted by sample. View i has one of rows[start[i]:start[i + 1]]."""

    samples: np.ndarray  # (n,) int32
    buckets: np.ndarray  # (n, 2) int32 width and height
    rows: np.ndarray  # int32
    start: np.ndarray  # (n + 1,) int64


def are_in(samples: Path) -> bool:
    """Whether samples.parquet names the samples' buckets: it does so for all or none."""
    with pq.ParquetFile(samples) as file:
        first = next(file.iter_batches(1, columns=["buckets"]), None)
    return first is not None and len(first) > 0 and first["buckets"].null_count == 0


def read(path: Path, table: Rows, preparation: Preparation, fingerprint: dict) -> Views:
    """The views of samples.parquet, whose samples are numbered in their order. table: the latents' rows by their own
    names. Raises CacheError."""
    with pq.ParquetFile(path) as file:
        hows = [preparation.of(how) for how in loads((file.schema_arrow.metadata or {}).get(b"how"))]
        found = file.read(columns=["image", "set", "buckets"])
    images, sets = lookup.as_names(found["image"]), found["set"].to_numpy()
    is_first = np.ones(len(sets), bool)
    is_first[1:] = (images[1:] != images[:-1]).any(axis=1) | (sets[1:] != sets[:-1])
    images, sets = images[is_first], sets[is_first]
    lists = found["buckets"].combine_chunks().filter(is_first)
    samples = np.repeat(np.arange(len(sets), dtype=np.int32), pc.list_value_length(lists).to_numpy() // 2)
    buckets = pc.list_flatten(lists).to_numpy().reshape(-1, 2).astype(np.int32)
    how_of = sets if len(hows) > 1 else np.zeros(len(sets), np.int32)  # of one there is no list
    sizes = np.array([len(how.variants) for how in hows])
    start = np.append(0, np.cumsum(sizes[how_of[samples]]))
    rows = np.full(start[-1], -1, np.int64)
    names = table.names["high"], table.names["low"]
    groups = np.stack([table.columns["target_height"], table.columns["target_width"]], axis=1)
    for number, how in enumerate(hows):
        mine = np.flatnonzero(how_of == number)
        place = np.zeros(len(sets), np.int64)
        place[mine] = np.arange(len(mine))
        views = np.flatnonzero(how_of[samples] == number)
        for variant, (flip, crop) in enumerate(how.variants):
            own = lookup.as_names([how.row(image.tobytes(), flip, crop, fingerprint) for image in images[mine]])
            wanted = own[place[samples[views]]]
            rows[start[views] + variant] = lookup.locate_in_group(names, groups, wanted, buckets[views][:, ::-1])
    if absent := int((rows < 0).sum()):
        raise CacheError(
            f"{table.paths[0].parent} lacks {absent} of the {len(rows)} rows that the samples of {path} want; run "
            "`dvc repro cache_latents`"
        )
    return Views(samples, buckets, rows.astype(np.int32), start)
