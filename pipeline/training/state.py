"""A run's states in the store, each whole or absent (training/stored.py says where), and the weights in between.

Their folder is named by all that shapes the run, so a run goes on from its own states only, and from those of shorter
and longer ones where a step does not depend on how many follow. `step-*/state.ckpt` has weights, EMA, moments, loss
scale by name; with a sharded optimizer each rank's moments are in `slices-*/` beside it. Both are read on any number of
ranks. When the store is deleted a run loses the states that it would go on from, no more. What is written is written
beside the training, from a copy in the host's memory."""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
from pipeline.device import Device

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from pipeline import store
from pipeline.stage import StageError
from pipeline.training import stored
from pipeline.training.key import differences
from pipeline.training.stored import Reach
from pipeline.weights import ckpt

log = logging.getLogger(__name__)

SLICES_SECONDS = 1800.0  # how long rank 0 waits for the other ranks' slices of a state


@dataclass(frozen=True)
class Slot:
    """A parameter in a state: `parts` > 1 when this rank keeps slice `part` of the first axis only."""

    parameter: Parameter
    part: int = 0
    parts: int = 1


class States:
    """The states of the trainings of one name that a run of this `reach` may go on from, oldest first."""

    def __init__(self, name: str, description: dict, reach: Reach):
        self.description, self.reach = description, reach
        self._state: _Background | None = None  # what is being written
        self._weights: _Background | None = None
        self._kept: dict[int, int] = {}  # step -> an open file of its weights, which outlives the store
        self._failed = threading.Event()
        self.folder = stored.folder(name)

    def open(self) -> list[str]:
        """Clear what a killed run left half-written. Returns, for each other training with states in the store, its
        folder and where it differs from this one. Only rank 0 calls it, with the lock held."""
        others = []
        for other in store.found(store.root() / "train", "*/run.json"):
            if other.parent != self.folder and store.found(other.parent, "step-*"):
                with contextlib.suppress(FileNotFoundError):
                    found = differences(json.loads(other.read_text()), self.description)
                    others.append(f"{other.parent}: {', '.join(found[:5])}")
        store.sweep(self.folder, seconds=0)
        stored.sweep(self.folder)
        self._describe()
        return others

    def _describe(self) -> None:
        text = json.dumps(self.description, indent=1, sort_keys=True)
        store.keep(self.folder / "run.json", lambda path: path.write_text(text))

    def steps(self) -> list[Path]:
        return stored.states(self.folder, self.reach)

    def newest(self) -> Path | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def save(
        self,
        step: int,
        slots: Iterable[Slot],
        facts: dict,
        live: Path,
        keep: int,
        rank: int,
        barrier: Callable[[], None],
        extensible: bool = False,
    ) -> None:
        """Take a copy of the state after `step` steps, and write it while the training goes on; then drop all but the
        newest `keep`, and with `extensible` the one that longer runs may go on from. Waits for the state before it.
        All ranks call it; `facts` are plain values and `live` a folder, both given back by the one who resumes. Their
        "weights" are the steps whose weights (`keep_weights`) must be there then.

        Raises what the state before it could not be written for, as `wait` does."""
        if self._state is not None:
            self.wait()
        begin = time.monotonic()
        slots = list(slots)
        whole, mine = (
            [(slot.parameter.name, np.array(slot.parameter.asnumpy())) for slot in slots if (slot.parts > 1) == cut]
            for cut in (False, True)
        )
        parts = max(slot.parts for slot in slots)
        text = json.dumps({**facts, "step": step, "parts": parts})
        curves = {path.relative_to(live): path.read_bytes() for path in live.rglob("*") if path.is_file()}
        path = self.folder / stored.state_name(step, self.reach)
        slices, before = stored.slices_of(path), self._weights

        def write(path: Path) -> None:
            path.mkdir()
            _write(path / "state.ckpt", whole)
            for name, content in curves.items():
                (path / "live" / name).parent.mkdir(parents=True, exist_ok=True)
                (path / "live" / name).write_bytes(content)
            (path / "facts.json").write_text(text)

        stack = contextlib.ExitStack()
        there = stack.enter_context(store.watched(slices)) if mine and rank == 0 else None

        def work() -> None:
            with stack:
                if before is not None:
                    before.result()
                if mine:
                    store.keep(slices / f"{rank}-of-{parts}.ckpt", lambda path: _write(path, mine))
                if rank:
                    return
                if mine and not self._wait_for([slices / f"{part}-of-{parts}.ckpt" for part in range(parts)], there):
                    log.warning("the state of step %d is not kept: %s went, or the run failed", step, slices)
                    return
                store.keep(path, write)
                stays = stored.extensible(self.folder, self.reach) if extensible else None
                for old in self.steps()[:-keep]:
                    if old != stays:
                        store.remove(old)
                stored.sweep(self.folder, until=step)
                if not (self.folder / "run.json").exists():
                    self._describe()
                log.info("the state of step %d is written, %.1f s after it", step, time.monotonic() - begin)

        barrier()  # so rank 0 sees when what the others write is deleted
        self._state = _Background(work)

    def keep_weights(self, step: int, write: Callable[[Path], None]) -> None:
        """`write` the weights of a step that become outs when the run ends to a path, while the training goes on. Waits
        for what is still being written. Only rank 0 calls it."""
        self.wait()

        def write_and_hold(path: Path) -> None:
            write(path)
            self._hold(step, path)

        self._weights = _Background(lambda: store.keep(stored.weights(self.folder, step), write_and_hold))

    def put_weights(self, step: int, target: Path) -> None:
        """Make `target` those of a step; what is being written must have been waited for."""
        try:
            path = stored.weights(self.folder, step)
            if store.same(self._kept[step], path):
                return store.link(path, target)
        except FileNotFoundError:
            pass
        with open(os.dup(self._kept[step]), "rb") as source, open(target, "xb") as copy:  # the store was deleted
            source.seek(0)
            shutil.copyfileobj(source, copy)

    def _hold(self, step: int, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        if step in self._kept:
            os.close(self._kept[step])
        self._kept[step] = handle

    def wait(self) -> None:
        """Until all is written. Raises what it could not be written for."""
        writing, self._weights, self._state = (self._weights, self._state), None, None
        for one in writing:
            if one is not None:
                one.result()

    def finish(self) -> None:
        """After a run that failed: let the state that is being written be written, without waiting for other ranks,
        which may be gone. Raises nothing, for the run's own error is what to say."""
        self._failed.set()
        try:
            self.wait()
        except (OSError, StageError) as error:
            log.warning("the last state is not kept: %s", error)

    def _wait_for(self, slices: list[Path], there: Callable[[], bool]) -> bool:
        """Until all ranks have written theirs; False when their folder is no more `there`, or the run failed. Raises
        StageError when one does not write."""
        end = time.monotonic() + SLICES_SECONDS
        while missing := [path for path in slices if not path.exists()]:
            if not there() or self._failed.is_set():
                return False
            if time.monotonic() > end:
                raise StageError(
                    f"{missing[0]} is not there, {SLICES_SECONDS:.0f} s after this rank wrote its own: all nodes need "
                    "one store, on a disk that they share (PIPELINE_STORE)"
                )
            time.sleep(0.05)
        return True

    def resume(self, slots: Iterable[Slot], live: Path, device: Device) -> dict | None:
        """Set every slot's parameter from the newest state, and put its curves into `live`; returns its facts. Without
        a state: of step 0, and the slots stay as they are. All ranks call it, and go on from the same state.

        None: the state went while it was read, and the slots may hold anything; make them anew and call again. Raises
        StageError when a rank does not see rank 0's states."""
        newest = self.newest()
        name = device.gather(newest.name if newest else "")[0]
        if not name:
            return {"step": 0}
        path = self.folder / name
        try:
            facts = self._load(path, slots, live if device.rank == 0 else None)
        except FileNotFoundError as error:
            log.warning("the state in %s is not whole (%s); it is not used", path, error)
            facts = None
        whole = [rank == "whole" for rank in device.gather("whole" if facts else "")]
        if all(whole):
            log.info("goes on after step %d from %s", facts["step"], path)
            return facts
        if device.gather("there" if whole[0] and path.exists() else "")[0]:
            blind = ", ".join(str(rank) for rank, loaded in enumerate(whole) if not loaded)
            raise StageError(
                f"rank {blind} does not see the state that rank 0 has in {path}. All nodes need one store, on a disk "
                "that they share (PIPELINE_STORE)"
            )
        if device.rank == 0:
            store.remove(path)
        device.barrier()
        return None

    def _load(self, path: Path, slots: Iterable[Slot], live: Path | None) -> dict:
        """Raises FileNotFoundError when a part of the state is not there."""
        facts = json.loads((path / "facts.json").read_text())
        if live is not None:
            for step in facts.get("weights", []):
                self._hold(step, stored.weights(self.folder, step))
            store.remove(live)
            live.parent.mkdir(parents=True, exist_ok=True)
            store.copy_folder(path / "live", live)
        whole = ckpt.read(path / "state.ckpt")
        slices = stored.slices_of(path)
        count = facts["parts"] if facts["parts"] > 1 else 0
        parts = [ckpt.read(slices / f"{part}-of-{count}.ckpt") for part in range(count)]
        for slot in slots:
            name = slot.parameter.name
            cuts = [whole[name]] if name in whole else [part[name] for part in parts]
            values = np.concatenate([tensor.array() for tensor in cuts]) if len(cuts) > 1 else cuts[0].array()
            if slot.parts > 1:
                values = np.split(values, slot.parts)[slot.part]
            parameter = slot.parameter
            parameter.set_data(_tensor(np.array(values), parameter))
        return facts

    def clear(self, keep_state: bool = False) -> None:
        """The run is finished: free its room, but for the state that longer runs go on from if that is to stay."""
        stored.clear(self.folder, self.reach, keep_state)
        while self._kept:
            os.close(self._kept.popitem()[1])


class _Background(threading.Thread):
    """Runs `work` beside the training; a daemon, so that no process stays for it."""

    def __init__(self, work: Callable[[], None]):
        super().__init__(name="state", daemon=True)
        self.work, self.error = work, None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001  (handed to the one who waits)
            self.error = error

    def result(self) -> None:
        """Wait for it. Raises what it raised."""
        self.join()
        if self.error is not None:
            raise self.error


def _write(path: Path, values: list[tuple[str, np.ndarray]]) -> None:
    with ckpt.Writer(path) as writer:
        for name, value in values:
            writer.add(name, *_bits(value))


def _bits(value: np.ndarray) -> tuple[np.ndarray, str]:
    """What a checkpoint can hold, and as which dtype: bfloat16 as its bits, pairs of bytes as float16."""
    if value.dtype == np.uint8:
        return value.view(np.float16), "float16"
    if value.dtype.name == "bfloat16":
        return value.view(np.uint16), "bfloat16"
    return value, value.dtype.name


def _tensor(bits: np.ndarray, parameter: Parameter) -> Tensor:
    """The parameter's value, of which `_bits` gave these."""
    if parameter.dtype == ms.uint8:
        bits = bits.view(np.uint8)
    if parameter.dtype == ms.bfloat16:
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    return Tensor(bits.reshape(parameter.shape), parameter.dtype)
