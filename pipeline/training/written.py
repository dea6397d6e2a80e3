"""What a run writes of its weights: those in between, which states keep, and in the end all as its outs."""

import functools
import json
from pathlib import Path

import numpy as np

from pipeline import params, store
from pipeline.training import build, key, state, weights
from pipeline.weights import chosen


def keep(states: state.States, trained: build.Trained, train: params.Train, step: int, facts: dict) -> None:
    """The weights as they are after `step`, or their averages where there are some, for the outs."""
    values = _named(trained, trained.update.ema or trained.update.parameters, train, train.save_dtype)
    copies = [(name, np.array(value)) for name, value in values]
    states.keep_weights(step, functools.partial(_write, copies, train, facts, str(step)))


def write(
    out: Path, states: state.States, trained: build.Trained, train: params.Train, saved: tuple[int, ...], facts: dict,
    best: int | None,
) -> None:  # fmt: skip
    """The folder of the weights after the last step, with those that were kept after the steps `saved` and `best`."""
    adapter = train.adapter != "none"
    dtype = train.save_dtype if adapter else "float32"
    with store.out(out) as folder:
        folder.mkdir()
        (folder / key.FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
        for which, values in (("raw", trained.update.parameters), ("ema", trained.update.ema)):
            if values is not None:
                path = folder / chosen.file_name(which, adapter)
                _write(_named(trained, values, train, dtype), train, facts, which, path)
        for step in saved:
            states.put_weights(step, folder / chosen.file_name(step, adapter))
        if best is not None:
            states.put_weights(best, folder / chosen.file_name("best", adapter))


def _named(trained: build.Trained, values, train: params.Train, dtype: str) -> weights.Named:
    """What is trained, with these values, as it is written."""
    parameters = trained.update.parameters
    if train.adapter == "none":
        return weights.named(trained.network, values, parameters, dtype)
    return weights.parts(values, parameters, dtype)


def _write(values: weights.Named, train: params.Train, facts: dict, which: str, path: Path) -> None:
    if train.adapter == "none":
        weights.write(path, values)
    else:
        weights.write_adapter(path, values, train, facts, which)
