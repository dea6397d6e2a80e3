"""Where the rows of a cache lie and what they were made with: read from the shards' numbers, without their payloads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache.format import fingerprint, lookup, shards
from pipeline.cache.format.table import open_all
from pipeline.cache.reading.growing import Even, Growing
from pipeline.stage import StageError


class CacheError(StageError, ValueError):
    """The caches do not fit each other or the wanted encoders, or a row is damaged."""


@dataclass(frozen=True)
class Origin:
    """What the rows of a cache must have been made with."""

    encoders: dict[str, str | Path | None]  # component -> its checkpoint, or None for any
    settings: dict  # of the fingerprint


class Rows:
    """Where the rows of one cache lie, and some of their numbers: columns (n,) int32. Memory is what counts here: 10
    million rows must fit."""

    def __init__(
        self,
        kind: shards.Kind,
        folder: Path,
        origin: "Origin",
        names: str,
        columns: tuple[str, ...],
        shape: tuple[str, ...],
    ):
        """names: the column whose halves are kept; shapes: the distinct values of the `shape` columns. Raises
        CacheError, shards.ShardError."""
        self.kind = kind
        self.paths: list[Path] = []
        self.shapes: set[tuple[int, ...]] = set()
        halves = {"high": Growing(np.uint64), "low": Growing(np.uint64)}
        numbers = {name: Growing(np.int32) for name in columns}
        offsets = {name: Growing(np.uint32) for name in kind.payloads}  # a page, and so a column, is below 2 GB
        masks = Even(np.uint32, 0)  # 0: the row has none
        sums = Growing(np.uint64)
        counts = [0]
        for shard in open_all(folder, kind):
            if not self.paths:
                _refuse_foreign(shard, origin)
                self.fingerprint = shard.fingerprint
            self.paths.append(shard.path)
            counts.append(len(shard))
            self.shapes.update(zip(*(shard.columns[name].tolist() for name in shape), strict=True))
            for grown, half in zip(halves.values(), lookup.halves(shard.columns[names]), strict=True):
                grown.append(half)
            for name, grown in numbers.items():
                grown.append(shard.columns[name])
            for name, grown in offsets.items():
                grown.append(shard.offsets[name])
            sums.append(shard.columns["checksum"][:, 1])
            is_masked = shard.columns.get("masked")
            masks.append(np.zeros(len(shard), np.uint32) if is_masked is None else shard.offsets["mask"] * is_masked)
        self.bounds = np.cumsum(counts)  # rows bounds[i] to bounds[i + 1] are in paths[i]
        self.names, self.columns, self.offsets = (
            {k: grown.whole() for k, grown in part.items()} for part in (halves, numbers, offsets)
        )
        self.sums = sums.whole()
        self.masks = masks.whole() if masks.varies else None  # (n,) uint32 offsets alike


def damaged(table: Rows, file: int, row: int) -> CacheError:
    path = table.paths[file]
    try:
        name = shards.open_shard(path, table.kind).columns["row"][row - table.bounds[file]].tobytes().hex()
    except shards.ShardError as error:  # the whole file is
        return CacheError(f"{error}; `python -m pipeline.cache verify` says what to do")
    return CacheError(f"{path}: row {name} is damaged; `python -m pipeline.cache verify` says what to do")


def _refuse_foreign(shard: shards.Shard, origin: Origin) -> None:
    folder, kind = shard.path.parent, shard.kind.name
    for component, path in origin.encoders.items():
        if path is None:
            continue
        found, wanted = shard.fingerprint.get(component, "unknown"), fingerprint.file_hash(path)
        if found != wanted:
            raise CacheError(
                f"{folder} was encoded by another {component} ({found}) than {path} ({wanted}); "
                f"run `dvc repro cache_{kind}`"
            )
    for name, wanted in origin.settings.items():
        found = shard.fingerprint.get(name, "unknown")
        if found != wanted:
            raise CacheError(
                f"{folder} was encoded with {name} {found}, params.yaml says {wanted}; run `dvc repro cache_{kind}`"
            )
