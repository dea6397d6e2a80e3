"""How new values are written into weights: float16 to the nearest, bfloat16 by stochastic rounding (arXiv 2010.06192), up
or down with chances by which it is right on average. A bfloat16 has 8 bits, so to the nearest most updates, a thousandth
of a weight and less, would change nothing.

The random bits are a function of (seed, update, parameter, element), so a resumed run and any number of ranks round
alike."""

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pipeline.models import forms
from pipeline.training.memory import KEYS, rounding_numbers

_NEXT = 2.0**-8 * (1 + 2.0**-7)  # of a bfloat16 added to it: more than half the way to the next one, and no further

_TURNS = 2.0**10 * 1.618  # so many that the fraction of a square depends on all bits that a float32 has


def assign(parameter, value):
    """parameter := value, to the nearest in its dtype."""
    value = ops.cast(value, parameter.dtype)
    if parameter.dtype == ms.bfloat16:  # of which a CPU's Assign has none
        return ops.auto_generate.InplaceCopy()(parameter, value)
    return ops.assign(parameter, value)


def offsets(count: int) -> list[int]:
    """Where each of `count` parameters begins in the table of random numbers: no two of a model at one place."""
    return [number * 40503 % KEYS for number in range(count)]


class Rounding(nn.Cell):
    """float32 -> bfloat16 of the same shape: v + d ulp(v) to the nearest, with d uniform in [-1/2, 1/2].

    d is the fraction of a large square of a number: one of a table, drawn once from `seed`, xor a key that each update
    has. So hardly two elements, and hardly two updates, round alike. It takes kernels that an NPU has; MindSpore's own
    generators carry a state, and integers that overflow, as hashes have, may not be counted on there."""

    def __init__(self, parameters, seed: int):
        super().__init__(auto_prefix=False)
        draw = np.random.Generator(np.random.Philox(key=np.array([seed, 2**32], np.uint64)))
        sizes = {"rounding_table": rounding_numbers([p.shape for p in parameters]), "rounding_keys": KEYS}
        # no constants: another seed needs no other graph
        self.table, self.keys = (
            Parameter(Tensor(draw.integers(-(2**31), 2**31, size, np.int32)), name=name, requires_grad=False)
            for name, size in sizes.items()
        )
        self.part, self.gather = Part(), ops.GatherD()
        # each has a kernel on its target only, or none of CANN's newer ones
        self.xor = ops.BitwiseXor() if forms.on_cpu() else ops.auto_generate.BitwiseXorTensor()

    def bits(self, updates):
        """The table of the update of this number."""
        fast = ops.cast(updates % float(KEYS), ms.int32).reshape(1)
        slow = ops.cast(updates / float(KEYS), ms.int32).reshape(1)
        key = self.xor(self.gather(self.keys, 0, fast), self.gather(self.keys, 0, KEYS - 1 - slow))
        return self.xor(self.table, key)

    def construct(self, value, bits, first: int):
        """`first`: where in `bits` those for `value` begin."""
        bits = ops.depend(bits, value)  # else all weights would have theirs at once
        x = ops.cast(self.part(bits, first, first + value.size), ms.float32) * 2.0**-32
        turns = (x + 1.2345) * x * _TURNS
        d = (turns - ops.round(turns)).reshape(value.shape)
        near = ops.cast(ops.cast(value, ms.bfloat16), ms.float32)
        next_one = near + ops.sign(value - near) * (ops.abs(near) * _NEXT)
        ulp = ops.cast(ops.cast(next_one, ms.bfloat16), ms.float32) - near  # either sign will do
        return ops.cast(value + d * ulp, ms.bfloat16)


def _indexed(x, start: int, stop: int, step: int):
    return x[start:stop:step]


def _sliced(x, start: int, stop: int, step: int):
    return ops.auto_generate.SliceExt()(x, 0, start, stop, step)


class Part(nn.Cell):
    """x[start:stop:step], by a kernel that the target has."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.of = _indexed if forms.on_cpu() else _sliced

    def construct(self, x, start: int, stop: int, step: int = 1):
        return self.of(x, start, stop, step)
