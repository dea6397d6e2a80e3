"""A node of a training on a cluster (training/on_nodes.py), in a process of its own there."""

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import ray
import yaml

from pipeline import store
from pipeline.data.part import is_far
from pipeline.params import Device
from pipeline.stage import StageError
from pipeline.training import launch
from pipeline.workers import cluster, parcel

CHUNK = 1 << 26  # bytes that a call gives or takes at most
WEIGHTS, LIVE = Path("outs/train/weights"), Path("outs/train/live")  # in a workspace

Files = dict[str, tuple[int, int]]  # path in a folder -> (size, time in ns)


@ray.remote(max_concurrency=4)
class Node:
    """Starts the ranks of its node, and gives and takes files of theirs."""

    def __init__(self):
        cluster.settle()
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, for processes that compute by themselves
        self._over, self._failure = False, None

    def hello(self) -> tuple[str, int, str]:
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1], store_name()

    def prepare(
        self, sent: parcel.Parcel, name: str, state: parcel.Parcel | None, params: dict, device: Device
    ) -> None:
        """Make the workspace of this node's ranks, and with `state` the training's folder in this store."""
        self._device, self._folder = device, store.root() / "train" / name
        self._workspace = store.root() / "nodes" / f"train-{name}-{device.node_rank}"
        store.remove(self._workspace)
        for place, path in sent.unpack()[0].items():
            target = self._workspace / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
        images = params["data"]["images"]
        if params["train"]["source"] == "pictures" and not is_far(images) and not (self._workspace / images).exists():
            raise StageError(
                f"train.source is pictures, and this node does not see data.images, {images}: give a URL of them "
                "(docs/far-data.md), or a folder of a disk that all nodes have under this path; or set train.source to cache"
            )
        (self._workspace / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        if state is not None:
            store.remove(self._folder)
            self._folder.mkdir(parents=True)
            for entry, path in state.unpack()[0].items():
                for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
                    target = self._folder / entry / file.relative_to(path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    store.link(file, target)
            state.forget()  # the run removes its states itself

    def start(self, script: str) -> None:
        threading.Thread(target=self._train, args=(find_spec(script).origin,), daemon=True).start()

    def _train(self, script: str) -> None:
        try:
            with contextlib.chdir(self._workspace):
                launch.ranks(self._device, [script], Path("logs"))
        except (StageError, OSError) as error:
            self._failure = str(error), isinstance(error, launch.RankKilled)
        finally:
            self._over = True

    def look(self, said: int) -> tuple[bytes, bool, tuple[str, bool] | None, Files, Files]:
        """What the first rank has said since it had said so much, whether this node's ranks have ended, and failed, the
        training's files in the store, and the curves."""
        over, failure, text = self._over, self._failure, b""
        logs = sorted((self._workspace / "logs").rglob("worker_0.log"))
        if logs:
            with open(logs[0], "rb") as file:
                file.seek(said)
                text = file.read(CHUNK)
        return text, over, failure, _listed(self._folder), _listed(self._workspace / LIVE)

    def outs(self) -> Files:
        return _listed(self._workspace / WEIGHTS)

    def read(self, path: str, begin: int, in_workspace: bool = False) -> np.ndarray:
        with open((self._workspace if in_workspace else self._folder) / path, "rb") as file:
            file.seek(begin)
            return np.frombuffer(file.read(CHUNK), np.uint8)

    def write(self, token: str, begin: int, chunk: np.ndarray) -> None:
        with open(self._workspace / token, "ab") as file:
            file.seek(begin)
            file.write(chunk)

    def written(self, token: str, path: str) -> None:
        target = self._folder / path
        with contextlib.suppress(FileNotFoundError):  # the folder goes when the run has failed or its store was deleted
            os.replace(self._workspace / token, target)

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            store.remove(self._folder / path)

    def clear(self, exact_name: str, began_here: bool) -> None:
        """Remove what a finished training has left here: as any of its ranks, and the training itself, but for the store of
        the node where it began."""
        left = list(self._workspace.parent.glob(f"train-{self._folder.name}-*"))
        if not began_here:
            left += [self._folder, store.root() / "trained" / exact_name]
        for path in left:
            store.remove(path)


def store_name() -> str:
    """A name of this process's store that no other has."""
    path = store.root() / "nodes" / "name"
    if not path.exists():
        store.keep(path, lambda temporary: temporary.write_text(uuid.uuid4().hex))
    return path.read_text()


def _listed(folder: Path) -> Files:
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            name, status = path.relative_to(folder).as_posix(), path.stat()
            if path.is_file() and ".tmp-" not in name:
                found[name] = status.st_size, status.st_mtime_ns
    return found
