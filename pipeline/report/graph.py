"""The stages of dvc.yaml with what dvc.lock, the outs and the noted times say of them, and their graph."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx
import psutil
from ruamel.yaml import YAML

from pipeline import recorded, times
from pipeline.report.revision import Revision

WIDTH, HEIGHT, GAP, LEVEL = 124, 34, 16, 62  # of a box of the drawing, between boxes and from level to level


@dataclass(frozen=True)
class Out:
    path: str
    hash: str
    bytes: int
    files: int | None  # of a folder


@dataclass(frozen=True)
class Stage:
    name: str
    about: str
    needs: list[str]  # the stages whose outs it reads
    state: str  # done | stale | absent | running
    why: str  # of a stage that is not done
    outs: list[Out]
    times: list[times.Time]  # of runs with what it ran with, the newest last

    @property
    def time(self) -> times.Time | None:
        return self.times[-1] if self.times else None


@dataclass(frozen=True)
class Drawing:
    """Of the graph without the edges that others imply, from top to bottom."""

    width: int
    height: int
    boxes: list[tuple[Stage, int, int]] = field(default_factory=list)  # with the left and the top of each
    edges: list[str] = field(default_factory=list)  # SVG paths


def read(revision: Revision, params: dict[str, object]) -> list[Stage]:
    """In the order in which they run. `params`: those of the revision, which stages may have run without. Raises what a
    damaged dvc.yaml or dvc.lock ends in."""
    text = revision.read("dvc.yaml")
    if text is None:
        raise FileNotFoundError("dvc.yaml is not there")
    listed = YAML(typ="safe").load(text)["stages"]
    lock = revision.lock()
    makers = {_path(out): name for name, stage in listed.items() for out in _outs(stage)}
    hashes = {out["path"]: out.get("md5") for stage in lock.values() for out in stage.get("outs", [])}
    written = _being_written() if revision.commit is None else set()
    found = []
    for name in listed:
        entry = lock.get(name, {})
        deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", []) if dep["path"] in makers}
        values = _leaves(entry.get("params", {}).get("params.yaml", {}))
        outs = [Out(o["path"], o.get("md5", ""), o.get("size", 0), o.get("nfiles")) for o in entry.get("outs", [])]
        state, why = "done", ""
        edited = [key for key, value in values.items() if params.get(key) != value]
        older = [path for path, digest in deps.items() if hashes.get(path) != digest]
        gone = [o.path for o in outs if revision.commit is None and not Path(o.path).exists()]
        if written & {str(Path(_path(out)).absolute()) for out in _outs(listed[name])}:
            state, why = "running", "runs now"
        elif not entry:
            state, why = "absent", "not run"
        elif gone:
            state, why = "absent", f"gone: {', '.join(gone)}"
        elif edited:
            state, why = "stale", f"params.yaml differs by now: {', '.join(edited)}"
        elif older:
            state, why = "stale", f"made with an earlier {', '.join(older)}"
        key = times.inputs(values, {path: digest for path, digest in deps.items() if digest})
        needs = sorted({makers[dep] for dep in map(_path, listed[name].get("deps", [])) if dep in makers})
        about = str(listed[name].get("desc", ""))
        found.append(Stage(name, about, needs, state, why, outs, times.find(name, key) if entry else []))
    order = list(nx.topological_sort(_graph(found)))
    return sorted(found, key=lambda stage: order.index(stage.name))


def _being_written() -> set[str]:
    """The outs that stages make which `dvc repro` or `dvc exp run` runs now, as DVC's locks name them."""
    try:
        found = json.loads(Path(".dvc/tmp/rwlock").read_text(encoding="utf-8"))["write"]
        return {path for path, holder in found.items() if psutil.pid_exists(holder["pid"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or it is being written
        return set()


def draw(stages: list[Stage]) -> Drawing:
    graph = nx.transitive_reduction(_graph(stages))
    named = {stage.name: stage for stage in stages}
    levels = list(nx.topological_generations(graph))
    width = max(map(len, levels)) * (WIDTH + GAP) - GAP
    places = {}
    for depth, level in enumerate(levels):
        start = (width - len(level) * (WIDTH + GAP) + GAP) / 2
        for number, name in enumerate(sorted(level, key=list(named).index)):
            places[name] = round(start + number * (WIDTH + GAP)), depth * LEVEL
    edges = []
    for a, b in graph.edges:
        (x, top), (to, bottom) = places[a], places[b]
        x, to, top, middle = x + WIDTH // 2, to + WIDTH // 2, top + HEIGHT, (top + HEIGHT + bottom) / 2
        edges.append(f"M{x},{top} C{x},{middle:.0f} {to},{middle:.0f} {to},{bottom}")
    boxes = [(named[name], x, y) for name, (x, y) in places.items()]
    return Drawing(width, (len(levels) - 1) * LEVEL + HEIGHT, boxes, edges)


def _graph(stages: list[Stage]) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(stage.name for stage in stages)
    graph.add_edges_from((need, stage.name) for stage in stages for need in stage.needs)
    return graph


def _outs(stage: dict) -> list:
    return [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]


def _path(entry: str | dict) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def _leaves(params: dict) -> dict[str, object]:
    return {name: value for key, section in params.items() for name, value in recorded.leaves(key, section)}
