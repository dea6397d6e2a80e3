"""A training on the nodes of a Ray cluster (device.cluster): on each an actor starts its ranks with msrun, which makes
MindSpore's own cluster of them. No disk need be shared.

The global batch is that of device.nodes x device.workers ranks, whatever nodes there are, for it shapes the training:
where fewer are left, each rank does more of it. When a node dies all ranks end, and those that are left go on from the
last state, as a killed run of one computer does. What the ranks read comes to a node once (workers/parcel.py); states
and the outs come to the store of the node where the stage began, which is the only one that outlives the run."""

import contextlib
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import ray

from pipeline import store
from pipeline.params import Device, Params, Train
from pipeline.stage import StageError
from pipeline.training import finished, launch, stored
from pipeline.training.data import PICTURES
from pipeline.training.key import Training
from pipeline.training.layout import Layout, layout, split
from pipeline.training.node import CHUNK, LIVE, WEIGHTS, Files, Node, store_name
from pipeline.workers import cluster, parcel

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 300.0  # how long a node may take to answer, and to start the actor
_MOURN_SECONDS = 120.0  # how long after a rank's failure a node may be found dead: its peers are sooner seen to fail
_TELL_SECONDS = 60.0
_ATTEMPTS = 4  # that may end one after another without a newer state


def train(
    params: Params, files: dict[str, Path], out: Path, script: str, key: Callable[[Train, int], Training]
) -> None:
    """Train on the cluster that this process is connected to, and make `out`. params: those of this run, whose target is
    that of the nodes. files: what the ranks read, by its place in a workspace. script: the module that each rank runs.
    key(train, ranks): the training when its batch is split so. Raises StageError."""
    training = key(params.train, params.device.nodes * params.device.workers)
    folder, attempts, newest = stored.folder(training.name), 0, None
    with parcel.sent(files, None) as sent:
        while True:
            states = _kept(folder, training)
            attempts, newest = (attempts if states == newest else 0), states
            try:
                with _gathered(params.device) as nodes, parcel.sent(states, None) as state:
                    how = layout(params.device, params.train, [node.places for node in nodes])
                    exact = key(split(params, how).train, how.ranks)
                    run = _Run(nodes[: how.nodes], folder, states, out)
                    _end(nodes[how.nodes :])
                    log.info(
                        "%d ranks on %s, each with batches of %d x %d",
                        how.ranks, ", ".join(node.name for node in run.nodes), how.batch_size, how.accumulation,
                    )  # fmt: skip
                    run.start(sent, state, split(params, how), how, script)
                    run.to_its_end(exact)
                stored.clear(folder, exact.reach, params.train.keep_state)
                return
            except _Lost as lost:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise StageError(
                        f"{_ATTEMPTS} times in turn a node was lost before a new state was there, the last time: {lost}. "
                        "What is done is kept: run again, or save states more often (train.checkpointing_steps)"
                    ) from None
                log.warning("%s: goes on from the last state with the nodes that are left", lost)


class _Lost(Exception):
    """A node, or a rank that was killed."""


def _kept(folder: Path, training: Training) -> dict[str, Path]:
    """What of the store's folder the run goes on from, by its name there."""
    states = stored.states(folder, training.reach)[-1:]
    if (extensible := stored.extensible(folder, training.reach)) and extensible not in states:
        states.insert(0, extensible)
    found = {path for state in states for path in (state, stored.slices_of(state), *stored.weights_for(state))}
    return {path.name: path for path in sorted(found) if path.exists()}


@dataclass
class _Here:
    """A node, as the one that began the stage sees it."""

    name: str
    places: int
    actor: ray.actor.ActorHandle
    address: str = ""
    port: int = 0  # a free one
    store: str = ""  # which, for nodes may share one
    files: Files = field(default_factory=dict)  # of the training in its store


@contextlib.contextmanager
def _gathered(device: Device) -> Iterator[list[_Here]]:
    """The nodes that answer, device.min_nodes at least: those with most places first, and of these the one where the stage
    began. They end with the block."""
    asked, told = [], time.monotonic()
    try:
        while True:
            asked = _asked(device)
            answered = _answers(asked, device)
            if len(answered) >= device.min_nodes:
                yield sorted(answered, key=lambda node: (-node.places, asked.index(node)))
                return
            _end(asked)
            if time.monotonic() >= told:
                told = time.monotonic() + _TELL_SECONDS
                log.warning("waits for nodes: %d answer, device.min_nodes is %d", len(answered), device.min_nodes)
            time.sleep(5 * _LOOK_SECONDS)
    finally:
        _end(asked)


def _asked(device: Device) -> list[_Here]:
    """An actor on each node."""
    here, found = ray.get_runtime_context().get_node_id(), []
    for node in sorted(cluster.nodes(device.target, device.workers), key=lambda node: (node.key != here, node.name)):
        places = min(node.places, device.workers)
        found.append(_Here(node.name, places, Node.options(**node.share(places)).remote()))
    return found


def _answers(asked: list[_Here], device: Device) -> list[_Here]:
    """Those whose actor has started: of those that are as large as wanted as many as are wanted, else all that come."""
    waiting, answered = {node.actor.hello.remote(): node for node in asked}, []
    until = time.monotonic() + _ANSWER_SECONDS
    while waiting and sum(node.places == device.workers for node in answered) < device.nodes:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            log.warning("not used, as they start no process: %s", ", ".join(node.name for node in waiting.values()))
            break
        node = waiting.pop(ready[0])
        with contextlib.suppress(ray.exceptions.RayError):  # it has died just now
            node.address, node.port, node.store = ray.get(ready[0])
            answered.append(node)
    _end(waiting.values())
    return answered


def _end(nodes: Iterable[_Here]) -> None:
    for node in nodes:
        ray.kill(node.actor)


class _Run:
    """One attempt, on these nodes; `states` is what it goes on from in the training's `folder` of this store."""

    def __init__(self, nodes: list[_Here], folder: Path, states: dict[str, Path], out: Path):
        self.nodes, self.states, self.folder, self.out = nodes, states, folder, out
        self.own = store_name()
        self.given = set(map(stored.step_of, states.values()))
        self.carried = set(states)  # names in the training's folder that the first node's has had as well
        self.live: Files = {}
        self.said, self.script = 0, ""

    def start(self, sent: parcel.Parcel, state: parcel.Parcel, params: Params, how: Layout, script: str) -> None:
        """Start the ranks, when all nodes have what they read."""
        first, stores, preparing = self.nodes[0], {self.own}, []
        address = first.address if how.nodes > 1 else "127.0.0.1"
        for rank, node in enumerate(self.nodes):
            device = params.device.model_copy(
                update={"nodes": how.nodes, "node_rank": rank, "master": f"{address}:{first.port}"}
            )
            placed = None if node.store in stores else state
            stores.add(node.store)
            preparing.append(node.actor.prepare.remote(sent, self.folder.name, placed, params.model_dump(), device))
        for node, prepared in zip(self.nodes, preparing, strict=True):
            self._answer(node, prepared, None)  # caches may take hours
        self.script = find_spec(script).origin
        for node in self.nodes:
            self._ask(node, node.actor.start, script)

    def to_its_end(self, exact: Training) -> None:
        """Wait until all ranks have ended, and make the outs. Raises _Lost, and StageError where a rank failed."""
        ended = set()
        while len(ended) < len(self.nodes):
            time.sleep(_LOOK_SECONDS)
            ended = self._look()
        self._bring(exact)

    def _look(self) -> set[str]:
        """Carry what is new. Returns the nodes whose ranks have ended. Raises _Lost, and StageError where a rank failed."""
        failed, ended = [], set()
        for node in self.nodes:
            text, over, failure, node.files, live = self._ask(node, node.actor.look, self.said)
            if node is self.nodes[0]:
                self.said += len(text)
                sys.stderr.buffer.write(text)
                sys.stderr.flush()
                self._mirror(node, live)
            if failure:
                failed.append((node, *failure))
            if over:
                ended.add(node.actor._actor_id)
        self._carry()
        if failed:
            self._blame(*failed[0])
        return ended

    def _blame(self, node: _Here, reason: str, killed: bool) -> None:
        """Raises what a rank's failure comes from."""
        until = time.monotonic() + _MOURN_SECONDS
        # what the stage itself says, it says of no node's death
        while not killed and not launch.says_why(reason, self.script) and time.monotonic() < until:
            for other in self.nodes:
                killed |= bool((self._ask(other, other.actor.look, self.said)[2] or ("", False))[1])
            time.sleep(_LOOK_SECONDS)
        if killed:
            raise _Lost(f"{node.name}: a rank was killed")
        raise StageError(f"{node.name}: {reason}")

    def _ask(self, node: _Here, method, *arguments):
        return self._answer(node, method.remote(*arguments), _ANSWER_SECONDS)

    def _answer(self, node: _Here, answer: ray.ObjectRef, seconds: float | None):
        try:
            return ray.get(answer, timeout=seconds)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (StageError, OSError)):
                raise StageError(f"{node.name}: {error.cause}") from None
            raise
        except ray.exceptions.RayError as error:  # GetTimeoutError too
            raise _Lost(f"{node.name} is lost ({str(error).strip().splitlines()[0] or type(error).__name__})") from None

    def _carry(self) -> None:
        """Slices of sharded states to the first rank's store, and whole states from there to this one."""
        first, *others = self.nodes
        for node in others:
            if node.store == first.store:
                continue
            new = [path for path in node.files if path.startswith("slices-") and _step(path) not in self.given]
            for path in sorted(new):
                if path not in first.files:
                    self._send(node, first, path)
            self._ask(node, node.actor.remove, new)
        if first.store != self.own:
            self._keep(first)

    def _send(self, node: _Here, first: _Here, path: str) -> None:
        size, token = node.files[path][0], uuid.uuid4().hex
        for begin in range(0, size, CHUNK):
            # its bytes go from one node to the other, not by way of this one
            chunk = node.actor.read.remote(path, begin)
            self._ask(first, first.actor.write, token, begin, chunk)
        self._ask(first, first.actor.written, token, path)

    def _keep(self, first: _Here) -> None:
        names = {path.split("/")[0] for path in first.files}
        states = {name for name in names if name.startswith("step-")}
        of_states = {stored.slices_of(Path(name)).name for name in states}
        for name in sorted(names - self.carried, key=lambda name: (name.startswith("step-"), name)):
            if name.startswith("weights-") or name in of_states or name in states or name == "run.json":
                self._fetch(first, name)
        gone = self.carried - names
        if states - self.states.keys():  # one of this attempt is there
            for name in gone:
                store.remove(self.folder / name)
            self.carried -= gone

    def _fetch(self, first: _Here, name: str) -> None:
        """A file, or a folder of files, of the training; those of slices have all been there when their state was."""
        parts = {path: stamp for path, stamp in first.files.items() if path.split("/")[0] == name}

        def write(temporary: Path) -> None:
            for path, (size, _) in parts.items():
                inner = temporary / path.removeprefix(name).lstrip("/") if path != name else temporary
                inner.parent.mkdir(parents=True, exist_ok=True)
                self._copy(first, inner, size, path)

        try:
            store.keep(self.folder / name, write)
        except StageError as error:  # it was swept meanwhile, as a newer one is there
            log.warning("not brought from there: %s", error)
            return
        self.carried.add(name)

    def _copy(self, first: _Here, target: Path, size: int, path: str, in_workspace: bool = False) -> None:
        with open(target, "wb") as file:
            for begin in range(0, size, CHUNK):
                file.write(self._ask(first, first.actor.read, path, begin, in_workspace))

    def _mirror(self, first: _Here, live: Files) -> None:
        """The curves, as they grow."""
        for path, stamp in live.items():
            if self.live.get(path) != stamp:
                with contextlib.suppress(StageError):  # it is being replaced: the next look brings it
                    with store.atomic(self.out / "live" / path) as temporary:
                        self._copy(first, temporary, stamp[0], str(LIVE / path), True)
                    self.live[path] = stamp
        for path in self.live.keys() - live.keys():
            store.remove(self.out / "live" / path)
            del self.live[path]

    def _bring(self, exact: Training) -> None:
        """The outs; nothing else stays on a node."""
        first = self.nodes[0]
        if first.store != self.own:
            self._fetch_outs(first, exact)
        elif not finished.take(exact, self.out):
            raise StageError("the store was deleted while the training ended: run again")
        for node in self.nodes:
            self._ask(node, node.actor.clear, exact.exact_name, node.store == self.own)

    def _fetch_outs(self, first: _Here, exact: Training) -> None:
        with store.out(self.out / "weights") as folder:
            folder.mkdir()
            for path, (size, _) in self._ask(first, first.actor.outs).items():
                self._copy(first, folder / path, size, str(WEIGHTS / path), True)
        (self.out / "live" / PICTURES).mkdir(parents=True, exist_ok=True)  # as files alone were carried
        finished.keep(exact, self.out)


def _step(path: str) -> int:
    return stored.step_of(Path(path.split("/")[0]))
