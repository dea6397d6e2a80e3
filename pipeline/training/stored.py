"""What a training's folder in the store holds, `train/<name>/`. Needs no MindSpore.

run.json                        the training's description
step-00000100/                  the state after so many steps, of this run and of longer ones
step-00000100/kept              marks one that a finished run has left for longer ones (train.keep_state)
step-00000950-of-00001000/      one of a run of this length alone: its learning rate falls towards the end
slices-00000100/                the slices of a sharded optimizer's moments that belong to a state
weights-00000100.ckpt           weights that will be outs when the run ends"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline import store

_KEPT = "kept"


@dataclass(frozen=True)
class Reach:
    """How far a run goes: to `end`, and its first `shared` steps are those of any longer run too."""

    shared: int
    end: int


def folder(name: str) -> Path:
    return store.root() / "train" / name


def state_name(step: int, reach: Reach) -> str:
    return f"step-{step:08d}" + (f"-of-{reach.end:08d}" if step > reach.shared else "")


def step_of(path: Path) -> int:
    """Of a state, slices or weights."""
    return int(re.search(r"\d{8}", path.name)[0])


def slices_of(state: Path) -> Path:
    return state.with_name(state.name.replace("step-", "slices-", 1))


def weights(folder: Path, step: int) -> Path:
    return folder / f"weights-{step:08d}.ckpt"


def states(folder: Path, reach: Reach) -> list[Path]:
    """Those that a run of this reach may go on from, oldest first."""
    found = store.found(folder, "step-*")
    return [path for path in found if (step := step_of(path)) <= reach.end and path.name == state_name(step, reach)]


def extensible(folder: Path, reach: Reach) -> Path | None:
    """The newest of them that a longer run may go on from too."""
    found = [path for path in states(folder, reach) if step_of(path) <= reach.shared]
    return found[-1] if found else None


def is_kept(folder: Path) -> bool:
    """Whether the newest state is one that a finished run has left, so that nothing here is half-done."""
    found = sorted(store.found(folder, "step-*"), key=step_of)
    return bool(found) and (found[-1] / _KEPT).exists()


def sweep(folder: Path, until: int | None = None) -> None:
    """Drop slices that belong to no state: dropped ones', and those of a run that was killed while it saved; and weights
    that none wants, up to those of step `until`."""
    kept = store.found(folder, "step-*")
    for old in store.found(folder, "slices-*"):
        if old not in map(slices_of, kept):
            store.remove(old)
    wanted = {step_of(path) for state in kept for path in weights_for(state)}
    for old in store.found(folder, "weights-*"):
        if step_of(old) not in wanted and (until is None or step_of(old) <= until):
            store.remove(old)


def weights_for(state: Path) -> list[Path]:
    """What must be there beside it."""
    with contextlib.suppress(FileNotFoundError):
        steps = json.loads((state / "facts.json").read_text()).get("weights", [])
        return [weights(state.parent, step) for step in steps]
    return []


def clear(folder: Path, reach: Reach, keep_state: bool) -> None:
    """A run is finished: drop its states, but the one that longer runs go on from if that is to stay."""
    stays = extensible(folder, reach) if keep_state else None
    if stays:
        with contextlib.suppress(FileNotFoundError):  # the store was deleted
            (stays / _KEPT).touch()
    for state in states(folder, reach):
        if state != stays:
            store.remove(state)
    sweep(folder)
    if not store.found(folder, "step-*"):
        store.remove(folder)
