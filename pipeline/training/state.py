"""A half-done run's state in the store: `train/<key>/step-00000100/`, whole or absent.

The key is a digest of everything that shapes the run, so a run goes on from its own state only. `step-*/state.ckpt` has
weights, EMA, moments, loss scale by name; with a sharded optimizer each rank's moments are in `slices-*/` beside it.
Both are read on any number of ranks."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import numpy as np
from mindspore import Parameter, Tensor

from pipeline import store
from pipeline.cache import shards
from pipeline.cache.table import read_table
from pipeline.stage import PROJECT
from pipeline.weights import ckpt

CODE = ("device.py", "training", "diffusion", "models", "cache")


def cache_digest(folder: Path, kind: shards.Kind) -> str:
    """Of the rows' names, fingerprint and checksums, which stand for the payloads."""
    table = read_table(folder, kind, ())
    digest = hashlib.blake2b(json.dumps(table.fingerprint, sort_keys=True).encode(), digest_size=16)
    digest.update(table.columns["row"].tobytes())
    digest.update(table.sums.tobytes())
    return digest.hexdigest()


def code_digest() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in CODE:
        path = PROJECT / "pipeline" / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.relative_to(PROJECT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def differences(old: dict, new: dict, path: str = "") -> list[str]:
    """Where two trees of plain values differ: "train.learning_rate 0.0005 -> 0.0001"."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key} {a} -> {b}")
    return found


@dataclass(frozen=True)
class Slot:
    """A parameter in a state: `parts` > 1 when this rank keeps slice `part` of the first axis only."""

    parameter: Parameter
    part: int = 0
    parts: int = 1


class States:
    """The states of one key, oldest first."""

    def __init__(self, description: dict):
        self.description = description
        self.name = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.folder = store.root() / "train" / self.name

    def open(self) -> list[str]:
        """Make the folder and clear what a killed run left half-written. Returns, for each other half-done run in the
        store, its folder and where it differs from this one. Only rank 0 calls it, with the lock held."""
        others = []
        for other in sorted((store.root() / "train").glob("*/run.json")):
            if other.parent != self.folder:
                found = differences(json.loads(other.read_text()), self.description)
                others.append(f"{other.parent}: {', '.join(found[:5])}")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".tmp-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._drop_slices()
        with store.atomic(self.folder / "run.json") as path:
            path.write_text(json.dumps(self.description, indent=1, sort_keys=True))
        return others

    def steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def newest(self) -> Path | None:
        return self.steps()[-1] if self.steps() else None

    def save(
        self,
        step: int,
        slots: Iterable[Slot],
        facts: dict,
        live: Path,
        keep: int,
        rank: int,
        barrier: Callable[[], None],
    ) -> None:
        """Write the state after `step` steps, then drop all but the newest `keep`. All ranks call it; `facts` are plain
        values and `live` a folder, both given back by the one who resumes."""
        slots = list(slots)
        mine = [slot for slot in slots if slot.parts > 1]
        slices = self.folder / f"slices-{step:08d}"
        if mine:
            with store.atomic(slices / f"{rank}-of-{mine[0].parts}.ckpt") as path:
                _write(path, mine)
        barrier()
        if rank == 0:
            with store.atomic(self.folder / f"step-{step:08d}") as path:
                path.mkdir()
                _write(path / "state.ckpt", [slot for slot in slots if slot.parts == 1])
                shutil.copytree(live, path / "live")
                (path / "facts.json").write_text(json.dumps({**facts, "step": step}))
            for old in self.steps()[:-keep]:
                shutil.rmtree(old)
            self._drop_slices()
        barrier()

    def _drop_slices(self) -> None:
        """Slices without a finished state: dropped ones, and those of a run that was killed while it saved."""
        kept = {path.name.removeprefix("step-") for path in self.steps()}
        for old in self.folder.glob("slices-*"):
            if old.name.removeprefix("slices-") not in kept:
                shutil.rmtree(old)

    def load(self, path: Path, slots: Iterable[Slot]) -> dict:
        """Set every slot's parameter from the state at `path`; returns its facts."""
        whole = ckpt.read(path / "state.ckpt")
        slices = sorted(
            (self.folder / path.name.replace("step-", "slices-")).glob("*.ckpt"),
            key=lambda file: int(file.name.split("-")[0]),
        )
        parts = [ckpt.read(file) for file in slices]
        for slot in slots:
            name = slot.parameter.name
            stored = [whole[name]] if name in whole else [part[name] for part in parts]
            values = np.concatenate([tensor.array() for tensor in stored]) if len(stored) > 1 else stored[0].array()
            if slot.parts > 1:
                values = np.split(values, slot.parts)[slot.part]
            slot.parameter.set_data(Tensor(np.array(values).reshape(slot.parameter.shape), slot.parameter.dtype))
        return json.loads((path / "facts.json").read_text())

    def clear(self) -> None:
        """The run is finished: free its room."""
        shutil.rmtree(self.folder)


def _write(path: Path, slots: list[Slot]) -> None:
    with ckpt.Writer(path) as writer:
        for slot in slots:
            writer.add(slot.parameter.name, slot.parameter.asnumpy())
