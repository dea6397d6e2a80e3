"""Is every byte of a shard what was written?

Row checksums cover names, numbers and payloads, a hash covers the footer. What is left (page headers, length prefixes)
is covered by writing the rows again: shards are a function of their rows, so the bytes must be the same."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache.format import shards


def damage(path: Path) -> str | None:
    """What is wrong with a shard, or None. A shard of another pyarrow version is not compared byte for byte."""
    try:
        kind = kind_of(path)
        shard = shards.open_shard(path, kind)
        with open(path, "rb", buffering=0) as file:
            rows = [shards.read_row(shard, index, file.fileno()) for index in range(len(shard))]
    except (shards.ShardError, OSError) as error:
        return str(error)
    if created_by(path) != pa.__version__:
        return None
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "again.parquet"
        shards.write(again, kind, rows, shard.fingerprint)
        if not _same(path, again):
            return f"{path}: its bytes are not those that its rows are written as"
    return None


def kind_of(path: Path) -> shards.Kind:
    """Latents or text. Raises ShardError."""
    with open(path, "rb", buffering=0) as file:
        stored = shards.read_footer(path, file.fileno()).metadata or {}
    name = stored.get(b"kind", b"").decode()
    if name not in shards.KINDS:
        raise shards.ShardError(f"{path}: not a shard of this cache")
    return shards.KINDS[name]


def created_by(path: Path) -> str:
    """The version of pyarrow that wrote a shard."""
    return pq.read_metadata(path).created_by.rpartition(" ")[2]


def distinct(folders: Iterable[Path]) -> Iterator[list[Path]]:
    """All shards and parts in the folders, each file once, with all the names that it has there."""
    names: dict[tuple[int, int], list[Path]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("[!.]*.parquet")):
            status = path.stat()
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    yield from names.values()


def remove(paths: list[Path], dvc_cache: Path) -> list[Path]:
    """Remove a damaged file under all its names, in DVC's cache too, from where DVC would only bring it back. Returns
    them."""
    status = paths[0].stat()
    linked = (
        [path for path in dvc_cache.rglob("*") if path.is_file() and os.path.samestat(path.stat(), status)]
        if dvc_cache.is_dir()
        else []
    )
    for path in [*paths, *linked]:
        path.unlink()
    return [*paths, *linked]


def _same(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with open(a, "rb") as left, open(b, "rb") as right:
        while block := left.read(1 << 24):
            if block != right.read(1 << 24):
                return False
    return True
