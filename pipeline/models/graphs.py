"""Graphs of networks that only compute forwards: compiled when inputs of a shape are first met, which is said."""

import hashlib
import json
import logging
import time
from collections.abc import Callable

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import nn

from pipeline import progress, times

log = logging.getLogger(__name__)


def compiled(cell: nn.Cell, name: str) -> Callable:
    """`cell` as a function of tensors. What compiles, how long it took last time and took now is logged, unless it is known
    to be short; no bar counts it."""
    parameters = sum(parameter.size for parameter in cell.get_parameters())
    met = set()

    def compile_for(inputs: tuple[ms.Tensor, ...]) -> None:
        what = f"{name} {'x'.join(map(str, inputs[0].shape))}"
        key = hashlib.blake2b(json.dumps([what, str(inputs[0].dtype), parameters]).encode(), digest_size=16).hexdigest()
        last, begin = times.compilation(key), time.perf_counter()
        said = last is None or last > progress.SHORT_SECONDS
        if said:
            log.info("%s compiles%s", what, "" if last is None else f" ({last:.0f} s last time)")
        cell.compile(*inputs)
        seconds = time.perf_counter() - begin
        if said:
            log.info("%s, done in %.1f s", what, seconds)
        times.note_compilation(key, seconds)

    def call(*inputs: ms.Tensor):
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in met:
            with progress.outside():
                compile_for(inputs)
            met.add(shapes)
        return cell(*inputs)

    return call
