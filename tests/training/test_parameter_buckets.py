"""Buckets of parameters: how they are filled, and that turns change no number."""

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from pipeline.training import parameter_buckets
from pipeline.training.parameter_buckets import InTurns, ranges

pytestmark = pytest.mark.usefixtures("device")


def parameters(sizes):
    return [Parameter(Tensor(np.full(size, n, np.float32)), name=f"p{n}") for n, size in enumerate(sizes)]


def test_a_bucket_holds_up_to_its_bytes_and_count_and_one_kind(monkeypatch):
    monkeypatch.setattr(parameter_buckets, "BYTES", 40)
    monkeypatch.setattr(parameter_buckets, "COUNT", 3)
    assert ranges(parameters([5, 5, 1]), (False,) * 3) == ((0, 2), (2, 3))  # 40 bytes, and no more
    assert ranges(parameters([1] * 7), (False,) * 7) == ((0, 3), (3, 6), (6, 7))
    assert ranges(parameters([1, 1, 1]), (True, True, False)) == ((0, 2), (2, 3))
    assert ranges(parameters([1, 99, 1]), (False,) * 3) == ((0, 1), (1, 2), (2, 3))  # one that is too large is alone
    assert ranges([], ()) == ()


def test_sdxls_gradients_are_some_fifty_buffers():
    from types import SimpleNamespace

    from pipeline.planning.run import unet_shapes
    from pipeline.training.memory import sharded

    shapes = sorted(unet_shapes("sdxl-base").values(), key=lambda shape: not sharded(shape, 8))
    cut = [sharded(shape, 8) for shape in shapes]
    found = ranges([SimpleNamespace(shape=shape) for shape in shapes], cut)
    assert found[0][0] == 0 and found[-1][1] == len(shapes) == 1680
    assert all(stop == start for (_, stop), (start, _) in zip(found, found[1:], strict=False))
    gathered = [start for start, _ in found if cut[start]]
    assert sum(cut) == 793 and len(gathered) < 60 and len(found) - len(gathered) < 10
    # each sums its gradients, those that are cut gather their weights; the loss, and of slices the norm
    assert len(found) + len(gathered) + 2 == 93
    # of an optimizer that is whole on each rank
    whole = [SimpleNamespace(shape=shape) for shape in unet_shapes("sdxl-base").values()]
    assert len(ranges(whole, (False,) * 1680)) + 1 == 43


def _grow(factor, turn, values, amount):
    return ops.assign(values, values * factor + ops.depend(amount, turn))


class Growing(nn.Cell):
    def __init__(self, values):
        super().__init__()
        self.values = ParameterTuple(values)
        self.amounts = tuple(Tensor(float(n)) for n in range(len(values)))
        self.in_turns = InTurns(values)

    def construct(self, factor):
        return self.in_turns(_grow, factor, factor, self.values, self.amounts)


def test_every_parameter_has_its_turn(monkeypatch):
    monkeypatch.setattr(parameter_buckets, "COUNT", 2)
    values = parameters([3] * 5)
    assert Growing(values)(Tensor(10.0, ms.float32)).asnumpy() == 10  # the turn's own value
    for n, value in enumerate(values):
        np.testing.assert_array_equal(value.asnumpy(), 11 * n)
