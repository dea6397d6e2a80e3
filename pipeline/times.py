"""How long stages took and how much memory they had, for the report; and how long graphs took to compile.

DVC's outs are functions of their inputs, and times are not: so they stand in the store, under what the stage ran with,
and are found again for every commit and experiment whose dvc.lock says the same."""

import hashlib
import json
import os
import platform
import resource
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import store

_PACKAGES = ("mindspore", "numpy", "dvc")
_RANKS = ("RANK_ID", "OMPI_COMM_WORLD_RANK", "MS_ROLE")
_KEPT = 10  # runs of a stage with the same inputs
_FILES = 1000  # of different inputs


@dataclass(frozen=True)
class Time:
    """One run of a stage to its end."""

    started: float  # seconds since 1970
    seconds: float
    peak_bytes: int  # of its largest process, resident
    machine: str
    versions: dict[str, str]


def inputs(params: dict[str, object], outs: dict[str, str]) -> str:
    """What a stage ran with, as a digest of its keys of params.yaml with their values, and of the outs of other stages
    that it read with their hashes in dvc.lock. Code and data are not in it: of two runs that differ there the newer
    one is the one to show."""
    numbers = {key: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for key, v in params.items()}
    text = json.dumps([numbers, outs], sort_keys=True)  # 1 and 1.0 are one value of params.yaml
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def start() -> float | None:
    """Now, where this process is the stage and not one of the ranks that it starts."""
    return None if any(os.environ.get(name) for name in _RANKS) else time.time()


def note(stage: str, params: dict[str, object], deps: list[str], started: float | None) -> None:
    """Remember that the stage, begun at `started` (of `start`), has now ended. `deps` are its dependencies; those that
    other stages made have their hashes in dvc.lock by now."""
    if started is None:
        return
    made = locked_outs(Path("dvc.lock").read_text(encoding="utf-8")) if Path("dvc.lock").exists() else {}
    run = Time(
        started=started,
        seconds=time.time() - started,
        peak_bytes=_peak(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
    )
    key = inputs(params, {dep: made[dep] for dep in deps if dep in made})
    runs = [*find(stage, key), run][-_KEPT:]
    path = _path(stage, key)
    store.keep(path, lambda file: file.write_text(json.dumps([asdict(one) for one in runs]), encoding="utf-8"))
    store.keep_newest(path.parent, _FILES)


def find(stage: str, key: str) -> list[Time]:
    """The runs of the stage with these `inputs`, the newest last; none where the store does not know of any."""
    try:
        return [Time(**one) for one in json.loads(_path(stage, key).read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def compilation(graph: str) -> float | None:
    """Seconds that the compilation of a graph took last, if the store knows it; `graph` is a digest of all that says
    which one it is."""
    try:
        return float(_path("compile", graph).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def note_compilation(graph: str, seconds: float) -> None:
    path = _path("compile", graph)
    store.keep(path, lambda file: file.write_text(f"{seconds:.1f}", encoding="utf-8"))
    store.keep_newest(path.parent, _FILES)


def locked_outs(lock: str) -> dict[str, str]:
    """Out -> hash, of the text of a dvc.lock."""
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}


def _path(stage: str, key: str) -> Path:
    return store.root() / "times" / f"{stage}-{key}.json"


def _peak() -> int:
    """Bytes that the largest of this process and its children had in memory. Not this process's own ru_maxrss: that
    counts what it was forked from."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(own, children)
