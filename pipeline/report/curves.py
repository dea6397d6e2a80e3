"""The curves of a training, from the lines of its log.jsonl; they are there while it still goes on."""

import json
import math
from dataclasses import dataclass

import numpy as np

from pipeline.report.revision import Revision

LOG = "outs/train/live/log.jsonl"
METRICS = "outs/train/live/metrics.json"
POINTS = 1500  # of a curve on the page; a longer one is shown as the means of equal stretches


@dataclass(frozen=True)
class Curve:
    steps: np.ndarray  # (n,)
    values: np.ndarray  # (n,)

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, value) of the least after a step."""
        after = self.steps > 0
        if not after.any():
            return None
        place = np.flatnonzero(after)[self.values[after].argmin()]
        return int(self.steps[place]), float(self.values[place])


def read(revision: Revision) -> dict[str, Curve] | None:
    """Name, such as train/loss -> its curve; None before there is a log. Raises ValueError on a damaged line, unless it
    is the last, which may be being written."""
    data = revision.read(LOG)
    if data is None:
        return None
    points: dict[str, list[tuple[float, float]]] = {}
    lines = data.decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            step = entry.pop("step")
            for name, value in entry.items():
                if math.isfinite(value) and math.isfinite(step):
                    points.setdefault(str(name), []).append((step, value))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number < len(lines):
                raise ValueError(f"line {number} is not one of a training's log") from None
    return {name: Curve(*np.array(pairs, float).T) for name, pairs in points.items()}


def thin(curve: Curve) -> tuple[Curve, int]:
    """The curve with at most POINTS points, and how many of its own each of them is the mean of."""
    stretch = -(-len(curve.steps) // POINTS)
    if stretch == 1:
        return curve, 1
    starts = np.arange(0, len(curve.steps), stretch)
    counts = np.diff([*starts, len(curve.steps)])
    steps, values = (np.add.reduceat(array, starts) / counts for array in (curve.steps, curve.values))
    return Curve(steps.round(), values), stretch


def smooth(curve: Curve) -> Curve:
    """The running mean over a twentieth of the curve, over what there is of it at the ends."""
    count = len(curve.values)
    half, place = max(1, count // 40), np.arange(count)
    first, end = np.maximum(place - half, 0), np.minimum(place + half + 1, count)
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    return Curve(curve.steps, (sums[end] - sums[first]) / (end - first))


def by_timestep(curves: dict[str, Curve]) -> dict[int, Curve]:
    """Timestep -> its curve of the validation loss."""
    prefix = "validation/loss_t"
    named = {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix)}
    return {int(name): named[name] for name in sorted((n for n in named if n.isdecimal()), key=int)}
