"""What lies in the store beside the caches' rows: trainings, compiled graphs, and memos of what was read and how long
it took. It says what each is, and which of them may go. Deleting any of it costs time and nothing else."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import locks, store
from pipeline.training import stored
from pipeline.training.key import differences

UNUSED_DAYS = 30  # a memo goes when no stage used it for so long
_SHOWN = 4  # settings in which a training differs
_MEMOS = ("index", "hashes", "thumbnails", "times")
_KEPT = "kept state"  # of a finished training (train.keep_state)
_STATES = ("half-done training", _KEPT)
_FOLDERS = {**dict.fromkeys(_STATES, "train"), "finished training": "trained", "compiled graphs": "compile"}


@dataclass(frozen=True)
class Leftover:
    """One thing of a kind."""

    kind: str
    path: Path
    bytes: int
    linked: int  # bytes among them that DVC's cache or an out also holds, so that the disk does not get them back
    days: float  # since it was last changed or used
    in_use: bool
    note: str


def find() -> list[Leftover]:
    """All of them, kind by kind, the newest first."""
    found = []
    for kind, folder in _FOLDERS.items():
        newest: dict | None = None  # the description of the kind's newest training, with which the others are compared
        for path in store.newest_first(store.root() / folder):
            if kind in _STATES and stored.is_kept(path) != (kind == _KEPT):
                continue
            note = ""
            if folder in ("train", "trained"):
                description = _description(path)
                newest = description if newest is None else newest
                note = _training(path, description, newest)
            lock = f"train-{path.name}" if kind in _STATES else ""
            in_use = any(locks.held(lock.name) for lock in store.found(store.root() / "locks", lock)) if lock else False
            found.append(_leftover(kind, path, in_use, note))
    for folder in _MEMOS:
        found += [_leftover("memo", path, False, "") for path in store.newest_first(store.root() / folder)]
    return found


def spare(found: list[Leftover], keep: int) -> list[Leftover]:
    """Those that may go: trainings and graphs but the `keep` newest of each kind, memos that were not used for
    UNUSED_DAYS; nothing that a process works on."""
    counts: dict[str, int] = {}
    chosen = []
    for item in found:
        counts[item.kind] = counts.get(item.kind, 0) + 1
        old = item.days > UNUSED_DAYS if item.kind == "memo" else counts[item.kind] > keep
        if old and not item.in_use:
            chosen.append(item)
    return chosen


def remove(chosen: list[Leftover]) -> int:
    """Remove them and what killed processes left half-written; -> the bytes of the latter."""
    for item in chosen:
        store.remove(item.path)
    deep = [store.root() / name for name in sorted(set(_FOLDERS.values()))]
    folders = [*deep, *(store.root() / name for name in _MEMOS)]
    folders += [path for folder in deep for path in store.newest_first(folder)]
    freed = sum(store.sweep(folder) for folder in folders)
    locks.drop_unused()
    return freed


def _leftover(kind: str, path: Path, in_use: bool, note: str) -> Leftover:
    total = linked = newest = 0
    for file in [path, *store.found(path, "**/*")]:
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        newest = max(newest, status.st_mtime)
        if file.is_file():
            total += status.st_size
            linked += status.st_size if status.st_nlink > 1 else 0
    newest = path.stat().st_mtime if kind == "finished training" and path.exists() else newest
    return Leftover(kind, path, total, linked, (time.time() - newest) / 86400, in_use, note)


def _description(path: Path) -> dict:
    try:
        return json.loads((path / "run.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _training(path: Path, description: dict, newest: dict | None) -> str:
    """Its step, and how its settings differ from the newest one's of its kind."""
    steps = [stored.step_of(step) for step in store.found(path, "step-*")]
    end = description.get("train", {}).get("steps")
    notes = [f"step {max(steps, default=0)}" + (f" of {end}" if end else "")] if path.parent.name == "train" else []
    if description != newest:
        changed = differences(newest or {}, description)
        more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
        notes += [f"from the newest one: {', '.join(changed[:_SHOWN] + more)}"]
    return "; ".join(notes)
