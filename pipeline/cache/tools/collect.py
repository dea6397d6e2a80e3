"""Which files of the store the workspace and the newest states still need, and the removal of the rest."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline import locks, store
from pipeline.cache.building import shelf
from pipeline.cache.format import shards


@dataclass(frozen=True)
class Freed:
    files: int
    bytes: int
    still_linked: int  # bytes among them that DVC's cache or an out also holds, so that the disk does not get them back
    states: int


def collect(outs: dict[str, Path], keep: int, dry: bool = False) -> Freed:
    """Remove all shards and parts but those of `outs` (kind -> folder), of the `keep` newest states of each kind, and
    of states that a running stage works on. Parts stay where a kept state is unfinished. `dry`: remove nothing, say
    what would be."""
    cache = store.root() / "cache"
    needed = set().union(*(_of_out(shards.KINDS[kind], folder) for kind, folder in outs.items()))
    unfinished: set[Path] = set()  # folders
    dropped = 0
    newest: dict[str, int] = {}
    for path in store.newest_first(shelf.states()):
        try:
            state = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        folder = cache / state["kind"] / state["folder"]
        files = {folder / name for name in state["shards"]}
        newest[state["kind"]] = newest.get(state["kind"], 0) + 1
        if newest[state["kind"]] <= keep or locks.held(f"cache-{path.stem}"):
            needed |= files
            if not all(file.exists() for file in files):
                unfinished.add(folder)
        else:
            dropped += 1
            if not dry:
                store.remove(path)
    count = size = linked = 0
    folders = [folder for kind in shards.KINDS for folder in store.found(cache / kind, "*")]
    for path in [path for folder in folders for path in store.found(folder, "[!.]*.parquet")]:
        if path in needed or shelf.is_part(path) and path.parent in unfinished:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if not dry:
            store.remove(path)
        count += 1
        size += status.st_size
        linked += status.st_size if status.st_nlink > 1 else 0
    for folder in folders if not dry else []:
        size += store.sweep(folder)
        with contextlib.suppress(OSError):  # it holds something, or is gone
            folder.rmdir()
    return Freed(count, size, linked, dropped)


def _of_out(kind: shards.Kind, out: Path) -> set[Path]:
    """The store's files that a folder of shards is made of. A damaged shard has none."""
    found = set()
    paths = sorted(out.glob("[!.]*.parquet"))
    for index, path in enumerate(paths):
        try:
            shard = shards.open_shard(path, kind)
        except (FileNotFoundError, shards.ShardError):
            continue
        name = shelf.shard_file(
            kind, shard.fingerprint, shard.columns["row"], shelf.groups_of(shard), index, len(paths)
        )
        found.add(shelf.folder(kind, shard.fingerprint) / name)
    return found
