"""What a stage's workers read, on nodes that may share no disk with the one where the stage began.

Files are named by their content. A node that sees the same file at the same place uses it; else it fetches the file
once, whichever of its workers wants it, into its own store. Pictures are read where they are: at their URL, in a folder
that the node sees as well, or one by one by way of the node where the stage began."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import locks, store
from pipeline.cache.format.fingerprint import file_hash
from pipeline.data.part import SourceError, is_far
from pipeline.data.sources import Source
from pipeline.stage import StageError

_CHUNK = 1 << 26  # bytes
_READERS = 16  # requests that the first node answers at once
_LINKS = "folder-"


@dataclass(frozen=True)
class _File:
    digest: str
    size: int
    place: str  # absolute, on the node where the stage began


@dataclass(frozen=True)
class Parcel:
    """It can be pickled, and is unpacked by each worker."""

    files: dict[str, dict[str, _File]]  # name -> path in that folder, or "." for a file -> what it is
    source: Source | None
    first: ray.actor.ActorHandle

    def unpack(self) -> tuple[dict[str, Path], Source | None]:
        """Where the files and folders are on this node, and the data set as it reads it. Raises StageError."""
        found = {name: self._unpacked(inner) for name, inner in self.files.items()}
        if self.source is None or _seen_by_all(self.source) or os.path.exists(self.source.root):
            return found, self.source
        return found, _ByWayOf(self.source, self.first)

    def forget(self) -> None:
        """Remove what was fetched to this node, where it lies; links to it stay what they are."""
        for inner in self.files.values():
            for path in [_links(inner), *map(_fetched_to, inner.values())]:
                store.remove(path)

    def _unpacked(self, inner: dict[str, _File]) -> Path:
        here = {name: self._fetched(file) for name, file in inner.items()}
        if "." in inner:
            return here["."]
        if all(str(here[name]) == file.place for name, file in inner.items()):
            name, file = next(iter(inner.items()))
            return Path(file.place.removesuffix(f"/{name}"))
        folder = _links(inner)
        if not folder.exists():

            def link(temporary: Path) -> None:
                for name, path in here.items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    store.link(path, temporary / name)

            store.keep(folder, link)
        return folder

    def _fetched(self, file: _File) -> Path:
        place, path = Path(file.place), _fetched_to(file)
        with locks.lock(f"file-{file.digest}", "fetches the same file"):
            for known in (place, path):
                with contextlib.suppress(OSError):
                    if known.stat().st_size == file.size and file_hash(known) == file.digest:
                        return known

            def fetch(temporary: Path) -> None:
                with open(temporary, "wb") as out:
                    for begin in range(0, file.size, _CHUNK):
                        out.write(_asked(self.first.chunk.remote(file.digest, begin)))

            store.keep(path, fetch)
            if file_hash(path) != file.digest:
                raise StageError(f"{place} changed while it was sent to this node; run `dvc repro` again")
        return path


@dataclass(frozen=True)
class _ByWayOf:
    """A data set that this node does not see."""

    source: Source
    first: ray.actor.ActorHandle

    @property
    def root(self) -> str:
        return self.source.root

    def read(self, path: str) -> bytes:
        return _asked(self.first.read.remote(path))

    def file(self, path: str) -> str:
        return self.source.file(path)


@contextlib.contextmanager
def sent(paths: dict[str, Path], source: Source | None) -> Iterator[Parcel]:
    """A parcel of these files and folders, and of the data set, which this node hands out until the block ends."""
    files = {name: _files(path) for name, path in paths.items()}
    if source is not None and not _seen_by_all(source):
        source = replace(source, root=os.path.abspath(source.root))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    places = {file.digest: file.place for inner in files.values() for file in inner.values()}
    first = _First.options(scheduling_strategy=here).remote(places, source)
    try:
        yield Parcel(files, source, first)
    finally:
        ray.kill(first)


def _files(path: Path) -> dict[str, _File]:
    inner = {".": path} if not path.is_dir() else {
        file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()
    }  # fmt: skip
    return {name: _File(file_hash(file), file.stat().st_size, os.path.abspath(file)) for name, file in inner.items()}


def _links(inner: dict[str, _File]) -> Path:
    """Where a node puts a folder of these."""
    listing = repr(sorted((name, file.digest) for name, file in inner.items()))
    return _folder() / f"{_LINKS}{hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()}"


def _fetched_to(file: _File) -> Path:
    return _folder() / f"{file.digest}{Path(file.place).suffix}"


def _seen_by_all(source: Source) -> bool:
    return not source.root or is_far(source.root)


def _folder() -> Path:
    return store.root() / "nodes"


def _asked(reference: ray.ObjectRef):
    """What the first node answers. Raises StageError."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (SourceError, OSError)):
            raise StageError(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        raise StageError(f"the node where the stage began does not answer: {error}") from None


@ray.remote(num_cpus=0, max_concurrency=_READERS, max_restarts=-1, max_task_retries=-1)
class _First:
    """On the node where the stage began: reads what the others ask for, of what the stage reads and nothing else."""

    def __init__(self, places: dict[str, str], source: Source | None):
        self._places, self._source = places, source

    def chunk(self, digest: str, begin: int) -> np.ndarray:
        with open(self._places[digest], "rb") as file:
            file.seek(begin)
            return np.frombuffer(file.read(_CHUNK), np.uint8)

    def read(self, path: str) -> bytes:
        return self._source.read(path)
