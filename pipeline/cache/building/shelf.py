"""Where finished rows lie in the store, and which of them an out needs.

`cache/<kind>/<fingerprint>/` holds shards, named by the rows that they hold, and parts: rows of unfinished shards, so
that a kill costs less than a shard. `cache/states/` holds one small file for each out that was asked for, which gc goes
by."""

import functools
import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import store
from pipeline.cache.format import lookup, shards
from pipeline.stage import StageError, shown

_PART = "part-"


@dataclass(frozen=True)
class Wanted:
    """The rows of one out. rows: (n, 16) uint8, groups: (n, 2) int32, sorted, each pair once; a stored row is used only
    when it is of the wanted group (latents: target height, width; text: 0, 0)."""

    kind: shards.Kind
    fingerprint: dict
    rows: np.ndarray
    groups: np.ndarray
    elsewhere: Path | None = None  # a folder in the place of the store's

    @functools.cached_property
    def count(self) -> int:
        return shards.shard_count(len(self.rows))

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """(count + 1,) int64: shard i holds rows[bounds[i]:bounds[i + 1]]."""
        return np.searchsorted(shards.shard_of(self.rows, self.count), np.arange(self.count + 1))

    @functools.cached_property
    def folder(self) -> Path:
        return self.elsewhere or folder(self.kind, self.fingerprint)

    @functools.cached_property
    def paths(self) -> list[Path]:
        """The store's file for each shard."""
        bounds = self.bounds
        return [
            self.folder / shard_file(self.kind, self.fingerprint, self.rows[a:b], self.groups[a:b], index, self.count)
            for index, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        ]

    @functools.cached_property
    def files(self) -> frozenset[str]:
        """Names of `paths`."""
        return frozenset(path.name for path in self.paths)

    @functools.cached_property
    def key(self) -> str:
        """Names the out: what its bytes follow from."""
        return _key(self.kind, self.fingerprint, self.rows, self.groups)


def folder(kind: shards.Kind, fingerprint: dict) -> Path:
    return store.root() / "cache" / kind.name / shards.fingerprint_digest(fingerprint)


def shard_file(
    kind: shards.Kind, fingerprint: dict, rows: np.ndarray, groups: np.ndarray, index: int, count: int
) -> str:
    """Name in the store of the shard with these rows. Its leading numbers say which names it can hold."""
    return f"{index:05d}-of-{count:05d}-{_key(kind, fingerprint, rows, groups)}.parquet"


def _key(kind: shards.Kind, fingerprint: dict, rows: np.ndarray, groups: np.ndarray) -> str:
    # The version of pyarrow and the words about the columns are here and not in the fingerprint: new ones write the
    # shards anew and encode nothing.
    digest = hashlib.blake2b(digest_size=16)
    texts = shards.canonical(fingerprint), shards.explanation(kind, fingerprint)
    for part in (kind.name, str(shards.FORMAT), pa.__version__, *texts):
        digest.update(struct.pack("<q", len(part)) + part.encode())
    digest.update(np.ascontiguousarray(rows))
    digest.update(np.ascontiguousarray(groups, dtype="<i4"))
    return digest.hexdigest()


def groups_of(shard: shards.Shard) -> np.ndarray:
    """The group of each row of a shard, (n, 2) int32, as Wanted has it."""
    if shard.kind.name == shards.LATENTS.name:
        return np.stack([shard.columns["target_height"], shard.columns["target_width"]], axis=1)
    return np.zeros((len(shard), 2), np.int32)


def is_part(path: Path) -> bool:
    return path.name.startswith(_PART)


class Stored:
    """The store's files of one fingerprint, as they are now."""

    def __init__(self, wanted: Wanted):
        self._count = wanted.count
        self._parts: list[Path] = []
        self._shards: dict[int, dict[int, list[Path]]] = {}  # number of shards -> shard -> files
        for path in store.found(wanted.folder, "[!.]*.parquet"):
            if is_part(path):
                self._parts.append(path)
            else:
                index, _, count = path.name.split("-")[:3]
                self._shards.setdefault(int(count), {}).setdefault(int(index), []).append(path)

    def of(self, index: int) -> list[Path]:
        """Files that may hold rows of the wanted shard `index`: shards whose range of names overlaps its own, and
        parts."""
        found = list(self._parts)
        for count, files in self._shards.items():
            for other in range(index * count // self._count, -(-(index + 1) * count // self._count)):
                found += files.get(other, [])
        return found


def put(path: Path, kind: shards.Kind, rows: list[dict], fingerprint: dict) -> None:
    """Write a shard or a part into the store, whole or not at all. It may become linked to outs, so it is read-only."""

    def write(temporary: Path) -> None:
        shards.write(temporary, kind, rows, fingerprint)
        os.chmod(temporary, 0o444)

    store.keep(path, write)


def put_part(wanted: Wanted, rows: list[dict]) -> Path:
    names = sorted(row["row"] + bytes(str([row.get(name, 0) for name in shards.GROUP]), "ascii") for row in rows)
    path = wanted.folder / f"{_PART}{hashlib.blake2b(b''.join(names), digest_size=16).hexdigest()}.parquet"
    put(path, wanted.kind, rows, wanted.fingerprint)
    return path


def take(wanted: Wanted, name: str, data: np.ndarray) -> None:
    """Put a file that a worker made elsewhere into the store: a shard of `wanted`, or a part."""
    if name not in wanted.files and re.fullmatch(rf"{_PART}[0-9a-f]+\.parquet", name) is None:
        raise StageError(f"a worker sent the file {shown(name)}, which is no shard that was asked for")

    def write(temporary: Path) -> None:
        data.tofile(temporary)
        os.chmod(temporary, 0o444)

    store.keep(wanted.folder / name, write)


def drop_finished_parts(wanted: Wanted) -> None:
    """Remove the parts whose rows all stand in finished shards of `wanted`."""
    bounds, finished = wanted.bounds, np.array([path.exists() for path in wanted.paths])
    for path in store.found(wanted.folder, f"{_PART}*.parquet"):
        try:
            part = shards.open_shard(path, wanted.kind)
            position = lookup.locate_in_group(
                lookup.halves(wanted.rows), wanted.groups, part.columns["row"], groups_of(part)
            )
        except FileNotFoundError:  # the store is being deleted
            continue
        shard = np.searchsorted(bounds, position, side="right") - 1
        if (position >= 0).all() and finished[shard].all():
            path.unlink(missing_ok=True)


def record_state(wanted: Wanted) -> None:
    """Note that this out was asked for now."""
    state = {"kind": wanted.kind.name, "folder": wanted.folder.name, "shards": [path.name for path in wanted.paths]}
    store.keep(states() / f"{wanted.key}.json", lambda temporary: temporary.write_text(json.dumps(state)))


def states() -> Path:
    return store.root() / "cache" / "states"
