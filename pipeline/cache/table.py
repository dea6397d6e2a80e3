"""All rows of one cache folder: where each lies and what it holds, without its payloads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache import shards


@dataclass(frozen=True)
class Table:
    """n rows, sorted by name. About 100 bytes a row."""

    kind: shards.Kind
    fingerprint: dict
    paths: list[Path]
    file: np.ndarray  # (n,) int32, index into paths
    offsets: dict[str, np.ndarray]  # payload -> (n,) int64
    sums: np.ndarray  # (n,) uint64, checksum of the payloads
    columns: dict[str, np.ndarray]  # those that were asked for; `row` is always there

    def __len__(self) -> int:
        return len(self.file)


def read_table(folder: str | Path, kind: shards.Kind, columns: tuple[str, ...]) -> Table:
    """Open every shard in `folder` and keep the named columns. Raises shards.ShardError for a damaged file, and when the
    folder is not one whole cache of one fingerprint."""
    folder = Path(folder)
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise shards.ShardError(f"{folder} holds no shards; run `dvc repro cache_{kind.name}`")
    expected = [shards.shard_name(index, len(paths)) for index in range(len(paths))]
    if [path.name for path in paths] != expected:
        wrong = sorted(set(expected).symmetric_difference(path.name for path in paths))
        raise shards.ShardError(f"{folder} is not a whole cache: {', '.join(wrong[:5])} missing or too many")
    names = ("row", *columns)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    offsets: dict[str, list[np.ndarray]] = {name: [] for name in kind.payloads}
    sums, counts = [], []
    wanted = None
    for path in paths:
        shard = shards.open_shard(path, kind)
        wanted = shard.fingerprint if wanted is None else wanted
        if shard.fingerprint != wanted:
            differing = sorted(key for key in {*wanted, *shard.fingerprint} if wanted.get(key) != shard.fingerprint.get(key))
            raise shards.ShardError(f"{path} was made with another {', '.join(differing)} than {paths[0]}")
        for name in names:
            parts[name].append(shard.columns[name])
        for name in kind.payloads:
            offsets[name].append(shard.offsets[name])
        sums.append(shard.columns["checksum"][:, 1])
        counts.append(len(shard))
    return Table(
        kind,
        wanted,
        paths,
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        {name: _join(parts) for name, parts in offsets.items()},
        _join(sums),
        {name: _join(parts[name]) for name in names},
    )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate, and let go of the parts: with 10 million rows they would stand twice."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined
