"""Weights that are merged or drawn must be kept."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import Params, Train


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    yield from _merged(params.merge.weights, params.train, params.device.sink_size)
    yield from _drawn(params.sample.saved_steps, params.train, params.device.sink_size)


def _merged(chosen: str | int, train: "Train", sink_size: int) -> Iterator[tuple[str, str]]:
    if chosen == "ema" and not train.ema:
        yield "merge.weights", "ema needs train.ema true, or no average is kept; wanted raw"
    if chosen == "best" and not train.keep_best:
        yield "merge.weights", "best needs train.keep_best true, or they are not kept; wanted raw"
    if not isinstance(chosen, int):
        return
    if not train.save_interval:
        yield "merge.weights", f"a step needs train.save_interval above 0, or none is kept; wanted raw, found {chosen}"
    elif fault := _unkept(chosen, train, sink_size):
        yield "merge.weights", fault


def _drawn(steps: list[int] | str, train: "Train", sink_size: int) -> Iterator[tuple[str, str]]:
    key = "sample.saved_steps"
    if steps and not train.save_interval:
        yield key, f"needs train.save_interval, or none are saved; wanted [], found {steps}"
    elif steps != "all" and len(set(steps)) < len(steps):
        yield key, f"wanted each once, found {steps[:20]}"
    elif steps != "all" and (fault := next(filter(None, (_unkept(step, train, sink_size) for step in steps)), None)):
        yield key, fault


def _unkept(step: int, train: "Train", sink_size: int) -> str | None:
    """Why no weights of this step will be kept, or None."""
    if train.steps is not None and step > train.steps:
        return f"must not be above train.steps ({train.steps}), found {step}"
    if sink_size:  # a sink ends beside the interval's multiples
        return None
    if step % train.save_interval:
        return f"must be a multiple of train.save_interval ({train.save_interval}), found {step}"
    if train.save_limit is not None and train.steps is not None and not train.patience:
        oldest = (train.steps // train.save_interval - train.save_limit + 1) * train.save_interval
        if step < oldest:
            return f"train.save_limit {train.save_limit} keeps the steps from {oldest} on, found {step}"
    return None
