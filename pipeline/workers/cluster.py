"""Workers that are actors on the nodes of a Ray cluster: one for each NPU, or device.workers for each node without.

Ray brings the code, as it is in the project on the node where the stage began, and all that passes between them. It pickles what it passes: who
can reach its ports can run programs (docs/cluster.md)."""

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.params import Device
from pipeline.stage import PROJECT, StageError
from pipeline.workers.share import Away, Began, Done, Gone, Message, Place, Ready, Work, told

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise StageError(
        f"device.cluster is set, and Ray is not installed here ({error}): `make repro RAY=1`, or `pip install -r "
        "requirements-ray.txt`, on each node; or set device.cluster to null"
    ) from None

log = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[None]:
    """This process as a driver of the cluster at `cluster` (params.device.cluster). Raises StageError."""
    runtime = {"py_modules": [str(PROJECT / "pipeline"), str(PROJECT / "stages")], "excludes": ["__pycache__"]}
    try:
        if cluster != "auto":
            _reach(cluster)
        ray.init(cluster, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise StageError(
            f"device.cluster is {cluster}, and no Ray cluster answers there ({error}); start one on this computer, `ray "
            "start --head --node-ip-address=10.0.0.1` with an address of it that the nodes reach, or set device.cluster to "
            "null. Where one runs, it may want the token that it was started with: `export RAY_AUTH_MODE=token`, and its "
            "~/.ray/auth_token here (docs/cluster.md)"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nothing listens, which Ray takes minutes to say."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


@dataclass(frozen=True)
class Node:
    name: str  # its address, or what `ray start --node-name` says
    key: str  # tells apart nodes of one name
    target: str  # "CPU" | "Ascend"
    places: int  # for workers: one for each NPU, or device.workers
    cpus: int

    def share(self, places: int) -> dict:
        """What an actor asks Ray for that has so many of the places, and where it is to be."""
        wanted = (
            {"num_cpus": 0, "resources": {"NPU": places}}
            if self.target == "Ascend"
            else {"num_cpus": max(1, places * self.cpus // self.places)}
        )
        return wanted | {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.key, soft=False)}


def target(device: Device) -> str:
    """What device.target is on this cluster: CPU, or Ascend where a node has the resource NPU. Raises StageError where no
    node has it to give.

    It is asked once, when a stage begins: a cluster that loses its last NPU does not go on with CPUs, whose last bits are
    others."""
    kinds = ["Ascend", "CPU"] if device.target == "auto" else [device.target]
    for kind in kinds:
        if nodes(kind, 1):
            return kind
    raise StageError(
        f"device.target is {device.target}, and no node of the cluster has the resource "
        f"{' or '.join('NPU' if kind == 'Ascend' else kind for kind in kinds)}: start their Ray with "
        "`--resources='{\"NPU\": 8}'` where it does not find the NPUs itself, with --num-cpus above 0 where it gives no "
        "CPUs, or set device.target to auto"
    )


def nodes(target: str, workers: int) -> list[Node]:
    """Those of the cluster that have such a device now, each with so many places where it has no NPUs."""
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        cpus, npus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "NPU"))
        if places := npus if target == "Ascend" else workers * (cpus > 0):
            found.append(Node(node["NodeName"], node["NodeID"], target, places, cpus))
    return found


class Actors:
    """A crew of actors, which each call `make` once."""

    def __init__(self, device: Device, make: Callable[[], Work]):
        self._target, self._workers, self._make = target(device), device.workers, ray.put(make)
        self._nodes: dict[str, Node] = {}

    def places(self) -> list[Place]:
        found = nodes(self._target, self._workers)
        self._nodes = {node.key: node for node in found}
        return [Place(node.name, number, node.key) for node in found for number in range(node.places)]

    def start(self, place: Place) -> "Actor":
        return Actor(place, self._nodes[place.key].share(1), self._make)

    def wait(self, workers: list["Actor"], seconds: float) -> list["Actor"]:
        streams = {worker.stream: worker for worker in workers if worker.stream is not None}
        if not streams:
            return []
        ready, rest = ray.wait(list(streams), num_returns=1, timeout=seconds)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [streams[stream] for stream in ready]


class Actor:
    """One of them, as the process that began the stage sees it."""

    def __init__(self, place: Place, share: dict, make: ray.ObjectRef):
        self.place = place
        self._actor = _Actor.options(**share).remote()
        self.stream = self._actor.begin.options(num_returns="streaming").remote(make)

    def give(self, unit) -> None:
        self.stream = self._actor.work.options(num_returns="streaming").remote(unit)

    def hear(self) -> Message:
        try:
            message = ray.get(next(self.stream))
            if isinstance(message, Done):  # the files follow, and stay there until they are read
                message = Done([Away(name, _reader(next(self.stream))) for name in message.result])
        except (ray.exceptions.RayError, StopIteration) as error:
            raise Gone(str(error).strip() or type(error).__name__) from None
        if isinstance(message, (Done, Ready)):
            self.stream = None
        return message

    def end(self) -> None:
        ray.kill(self._actor)


def _reader(reference: ray.ObjectRef) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            raise Gone(str(error)) from None

    return read


@ray.remote
class _Actor:
    """In a process of a node."""

    def begin(self, make: Callable[[], Work]) -> Iterator[Message]:
        def messages():
            yield Began()
            settle()
            self._work = make()
            yield Ready()

        yield from told(messages())

    def work(self, unit) -> Iterator[Message | np.ndarray]:
        for message in told(self._work(unit)):
            if not isinstance(message, Done):
                yield message
                continue
            yield Done([path.name for path in message.result])
            for path in message.result:
                yield np.fromfile(path, np.uint8)
                path.unlink(missing_ok=True)


def settle() -> None:
    """Of an actor's process: its environment is that of the node's Ray, which somebody has started."""
    for name in ("DEVICE_ID", "RANK_ID"):  # an exported one would send all to one NPU; Ray shows each its own
        os.environ.pop(name, None)
    os.environ.setdefault("PIPELINE_STORE", str(own_store()))


def own_store() -> Path:
    """The store of a node whose Ray was started without PIPELINE_STORE: a folder that nobody else can write to."""
    folder = Path(tempfile.gettempdir()) / f"pipeline-store-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StageError(
            f"{folder} belongs to somebody else; start this node's Ray with PIPELINE_STORE set to a folder of your own"
        )
    return folder
