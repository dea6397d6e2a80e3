"""How many rows the cache of latents gets, and of what sizes: pictures are encoded mirrored and cropped, at several
resolutions, for neighbouring buckets, and as each set wants it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cache.building.pictures import views_of
from pipeline.cache.format.preparation import Preparation
from pipeline.data.how import loads


@dataclass(frozen=True)
class Counted:
    """What an index makes of its pictures."""

    rows: int  # of latents
    pixels: int  # of all rows together
    buckets: int  # that are filled
    largest: int  # pixels of the largest bucket
    smallest: int  # and of the smallest
    masked: int  # pixels of the rows that have a mask


def count(folder: Path, preparation: Preparation) -> Counted:
    """Of outs/index. preparation: that of params.yaml. Views that are prepared alike share a row, as in the cache. Raises
    OSError, pa.ArrowException, StageError."""
    table = pq.read_table(
        folder / "images.parquet", columns=["image", "bucket_width", "bucket_height", "rejected", "mask", "views"]
    )
    hows = [preparation.of(how) for how in loads((table.schema.metadata or {}).get(b"how"))]
    table = table.filter(pc.is_null(table["rejected"]))
    picture = pc.dictionary_encode(table["image"].combine_chunks()).indices.to_numpy()
    views = views_of(table, picture).astype(np.int64)
    kinds: dict[tuple, int] = {}  # how a row is prepared -> its number
    rows = []
    for number, how in enumerate(hows):
        mine = views[views[:, 1] == number][:, [0, 2, 3]]
        for variant in how.variants:
            kind = kinds.setdefault((json.dumps(how.fingerprint), *variant), len(kinds))
            rows.append(np.column_stack([mine, np.full(len(mine), kind)]))
    found = np.unique(np.concatenate(rows), axis=0)
    areas = found[:, 1] * found[:, 2]
    buckets = len(np.unique(found[:, 1:3], axis=0))
    masked = areas[np.isin(found[:, 0], picture[table["mask"].is_valid().to_numpy()])]
    ends = int(areas.max(initial=0)), int(areas.min(initial=areas.max(initial=0)))
    return Counted(len(found), int(areas.sum()), buckets, *ends, int(masked.sum()))
