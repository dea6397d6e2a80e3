"""Compiled graphs, one for each shape that a run meets, compiled when it first does, and each kept in the store:
`compile/<key>/<graph>-rank-<r>/`. Another optimizer compiles the update anew, and takes the gradients.

MindSpore's own cache numbers the graphs that a process compiles with the cache on, and gives back by number alone:
another code, constant or shape under the same number is not noticed and computes nonsense. Its folder is read once, so
it cannot be another for each graph. So each process gives it a folder of its own, empty but for the one graph that is
wanted next, under the number that comes next. What MindSpore checks by itself, the time of some source files, is
switched off (MS_DEV_FORCE_USE_COMPILE_CACHE): here the key holds all that a graph depends on. The cache that MindSpore
keeps on Ascend behind kernel selection is switched off too: it was not seen how that names its files. All this holds
for MindSpore 2.10.0; not run on an NPU."""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
from pipeline.device import Device

from mindspore import Tensor, nn

from pipeline import progress, store

log = logging.getLogger(__name__)

_KEPT_KEYS = 16  # two a run; the least recently used are dropped
_next_number = itertools.count()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """MindSpore's folder in this process; it goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="graphs-")
    os.environ |= {"MS_COMPILER_CACHE_PATH": folder.name, "MS_DEV_FORCE_USE_COMPILE_CACHE": "1"}
    return folder


class GraphKeys(NamedTuple):
    """All that a run's graphs depend on, but the shapes of their inputs."""

    network: dict  # of those that compute losses and gradients, and take most of the time
    update: dict  # of those with the optimizer in them


class Compiler:
    """Compiles a run's graphs, or takes them from the store, and says so in the log.

    keys: None: they are not kept. count: how many graphs the run will need. `seconds`: what compilation took by now."""

    def __init__(self, keys: GraphKeys | None, device: Device, count: int):
        self.device, self.count, self.done, self.seconds = device, count, 0, 0.0
        self.folders = keys and GraphKeys(*map(_make_folder, keys))

    @progress.outside()
    def __call__(self, cell: nn.Cell, name: str, *inputs: Tensor, updates: bool = False, together: bool = True) -> None:
        """Compile `cell` for inputs of these shapes, and run nothing.

        updates: whether the optimizer is in it. together: every rank comes here, and all take the graph from the store
        or none does. One that had to compile it alone, because it was killed while it did, would let the others wait in
        its first collective."""
        self.done += 1
        begin = time.perf_counter()
        what = f"graph {self.done} of {self.count}: {name}"
        if self.folders is None:
            log.info("%s, compiles", what)
            cell.compile(*inputs)
        else:
            shapes = [[list(tensor.shape), str(tensor.dtype)] for tensor in inputs]
            code = hashlib.blake2b(json.dumps(shapes).encode(), digest_size=8).hexdigest()
            folder = self.folders.update if updates else self.folders.network
            kept = folder / f"{name.replace(' ', '-')}-{code}-rank-{self.device.rank}"
            self._kept(cell, what, kept, inputs, together)
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        log.info("%s, done in %.1f s", what, seconds)

    def _kept(self, cell: nn.Cell, what: str, kept: Path, inputs: tuple[Tensor, ...], together: bool) -> None:
        begin = time.perf_counter()
        graphs = Path(_folder().name) / f"rank_{self.device.rank}" / "graph_cache"
        graphs.mkdir(parents=True, exist_ok=True)
        role = os.environ.get("MS_ROLE", "")  # of msrun's
        reads = _copy(kept, graphs / f"{role}compile_cache_{next(_next_number)}.mindir")
        if together and not self.device.all_agree(reads):
            reads = False
        if not reads:
            _clear(graphs)
        log.info("%s, %s", what, f"reads {kept}" if reads else "compiles" + _last(kept))
        os.environ.setdefault("RANK_ID", str(self.device.rank))
        os.environ["MS_COMPILER_CACHE_ENABLE"] = "1"
        try:
            cell.compile(*inputs)
        finally:
            os.environ["MS_COMPILER_CACHE_ENABLE"] = "0"
        seconds = time.perf_counter() - begin
        found = list(graphs.glob("*.mindir"))
        if len(found) != 1:
            log.warning("%s: MindSpore has kept %d graphs, wanted 1; it will be compiled anew", what, len(found))
        elif not reads:
            store.keep(kept, lambda path: _write(path, found[0], seconds))
        _clear(graphs)


def _make_folder(key: dict) -> Path:
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = store.make(store.root() / "compile" / name)
    with contextlib.suppress(FileNotFoundError):  # the store was deleted since
        os.utime(folder)
    store.keep_newest(folder.parent, _KEPT_KEYS)
    return folder


def _last(kept: Path) -> str:
    """How long the same graph took under the newest key that has it."""
    for folder in store.newest_first(kept.parent.parent):
        try:
            seconds = json.loads((folder / kept.name / "about.json").read_text())["seconds"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return f" ({seconds:.0f} s last time)"
    return ""


def _write(folder: Path, graph: Path, seconds: float) -> None:
    folder.mkdir()
    shutil.copyfile(graph, folder / "graph.mindir")
    (folder / "about.json").write_text(json.dumps({"seconds": round(seconds, 1), "digest": _digest(graph)}))


def _copy(kept: Path, target: Path) -> bool:
    """Whether the graph in the store was there, and whole, and is at `target` now."""
    try:
        wanted = json.loads((kept / "about.json").read_text())["digest"]
        shutil.copyfile(kept / "graph.mindir", target)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _digest(target) == wanted


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
