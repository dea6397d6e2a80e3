"""All rows of one cache folder, without their payloads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache.format import shards


@dataclass(frozen=True)
class Table:
    """n rows, sorted by name."""

    kind: shards.Kind
    fingerprint: dict
    sums: np.ndarray  # (n,) uint64, checksum of the payloads
    columns: dict[str, np.ndarray]  # `row` and those that were asked for


def read_table(folder: str | Path, kind: shards.Kind, columns: tuple[str, ...]) -> Table:
    """The named columns of every row. Raises shards.ShardError as open_all does."""
    opened = list(open_all(folder, kind))
    joined = {name: np.concatenate([shard.columns[name] for shard in opened]) for name in ("row", *columns)}
    sums = np.concatenate([shard.columns["checksum"][:, 1] for shard in opened])
    return Table(kind, opened[0].fingerprint, sums, joined)


def open_all(folder: str | Path, kind: shards.Kind) -> Iterator[shards.Shard]:
    """Every shard of a folder, in the order of their rows. Raises shards.ShardError for a damaged file, and when the
    folder is not one whole cache of one fingerprint."""
    folder = Path(folder)
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise shards.ShardError(f"{folder} holds no shards; run `dvc repro cache_{kind.name}`")
    expected = [shards.shard_name(index, len(paths)) for index in range(len(paths))]
    if [path.name for path in paths] != expected:
        wrong = sorted(set(expected).symmetric_difference(path.name for path in paths))
        raise shards.ShardError(f"{folder} is not a whole cache: {', '.join(wrong[:5])} missing or too many")
    wanted = None
    for path in paths:
        shard = shards.open_shard(path, kind)
        wanted = shard.fingerprint if wanted is None else wanted
        if shard.fingerprint != wanted:
            differing = sorted(
                key for key in {*wanted, *shard.fingerprint} if wanted.get(key) != shard.fingerprint.get(key)
            )
            raise shards.ShardError(f"{path} was made with another {', '.join(differing)} than {paths[0]}")
        yield shard
