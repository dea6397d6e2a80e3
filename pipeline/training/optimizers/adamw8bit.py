"""AdamW with moments in 8 bits: a quarter of their memory."""

from math import ceil, prod

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, mint, nn, ops

from pipeline.models import forms
from pipeline.training.memory import BLOCK, in_8_bits
from pipeline.training.optimizers.common import BiasCorrections, Optimizer, filled
from pipeline.training.optimizers.rounding import Part
from pipeline.training.parameter_buckets import InTurns


def dynamic_map(signed: bool) -> np.ndarray:
    """(256,) float32, rising: the numbers that 8 bits stand for (arXiv 2110.02861, section 2.2). Seven decades up to 1,
    of which the largest has most numbers: i bits of fraction (one more without a sign) in the decade from 10^(i-7) to
    10^(i-6), means of neighbours of an even division of [0.1, 1]; 0 and 1."""
    numbers = [0.0, 1.0]
    for i in range(7):
        bounds = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=np.float32)
        means = 10.0 ** (i - 6) * ((bounds[:-1] + bounds[1:]) / 2).astype(np.float64)
        numbers += [*means, *-means] if signed else [*means]
    return np.sort(np.array(numbers)).astype(np.float32)


class _Codes(nn.Cell):
    """Blocks of 256 numbers in 8 bits and what they stand for: (blocks, 256) uint8 times (blocks, 1) float32."""

    def __init__(self, signed: bool):
        super().__init__(auto_prefix=False)
        numbers = dynamic_map(signed)
        self.zero = int(np.flatnonzero(numbers == 0)[0])
        self.table = Tensor(numbers.reshape(-1, 1))
        self.bounds = Tensor((numbers[:-1] + numbers[1:]) / 2)
        self.least = Tensor(1e-38, ms.float32)
        self.max = ops.ReduceMax(keep_dims=True)
        # on a CPU, whose broadcast multiplication keeps four times the array
        self.ones = Tensor(np.ones((1, BLOCK), np.float32)) if forms.on_cpu() else None
        self.matmul = ops.MatMul()
        self.search = ops.auto_generate.SearchSorted(ms.int32)

    def numbers(self, codes, largest):
        found = mint.nn.functional.embedding(ops.cast(codes, ms.int32), self.table)
        return found.reshape(codes.shape) * self._wide(largest)

    def _wide(self, x):
        """(blocks, 1) as a factor of (blocks, 256)"""
        return x if self.ones is None else self.matmul(x, self.ones)

    def construct(self, numbers):
        """-> (the nearest codes, the largest magnitude) of each block"""
        largest = self.max(ops.abs(numbers), 1)
        codes = self.search(self.bounds, numbers * self._wide(ops.reciprocal(ops.maximum(largest, self.least))))
        return ops.cast(codes, ms.uint8), largest


def _pick(values, number):
    return values[number]


class AdamW8bit(Optimizer):
    """AdamW (optimizers/adamw.py) whose moments are kept in 8 bits by blocks (arXiv 2110.02861): a byte a number, and a
    float32 for each block of 256. Parameters of less than 4096 numbers have float32 moments."""

    def __init__(
        self, parameters, decayed, weight_decay: float, beta1: float, beta2: float, epsilon: float, factors=None,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__(parameters, decayed, weight_decay, factors, seed)
        # `parameters` keep the network's order, which the gradients' graph has for every optimizer of one rank
        large = [in_8_bits(p.shape) for p in parameters]
        self.order = tuple(sorted(range(len(large)), key=lambda number: not large[number]))
        self.rows = tuple(tuple(values[n] for n in self.order) for values in (self.groups, self.decay, self.offsets))
        self.ordered = ParameterTuple(parameters[n] for n in self.order)
        self.map = ops.HyperMap()
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.corrections = BiasCorrections(beta1, beta2)
        self.part = Part()
        self.divide = ops.RealDiv()  # MindSpore's Div on a CPU keeps four times the array
        self.count = sum(large)
        large, small = self.ordered[: self.count], self.ordered[self.count :]
        blocks = [ceil(prod(p.shape) / BLOCK) for p in large]
        self.signed, self.unsigned = _Codes(signed=True), _Codes(signed=False)
        self.codes1, self.codes2 = (
            filled(large, name, [(n, BLOCK) for n in blocks], ms.uint8, kind.zero)
            for name, kind in (("moment1", self.signed), ("moment2", self.unsigned))
        )
        self.largest1, self.largest2 = (
            filled(large, f"largest_{name}", [(n, 1) for n in blocks]) for name in ("moment1", "moment2")
        )
        self.moment1, self.moment2 = (filled(small, name, [p.shape for p in small]) for name in ("moment1", "moment2"))
        self.in_turns, self.in_turns_small = InTurns(large), InTurns(small)

    def state(self):
        blocks = (*self.codes1, *self.codes2, *self.largest1, *self.largest2)
        return [(p, False) for p in (self.updates, *blocks, *self.moment1, *self.moment2)]

    def construct(self, gradients, lr, factor=None):
        updates, rates, bits = self.begin(lr)
        correction1, correction2 = self.corrections(updates)
        scalars, n = (rates, 1.0 / correction1, 1.0 / ops.sqrt(correction2), bits, factor), self.count
        gradients = self.map(ops.partial(_pick, gradients), self.order)
        groups, decay, offsets = self.rows
        turn = self.in_turns(
            self._in_blocks, scalars, lr, groups[:n], decay[:n], offsets[:n], self.ordered[:n],
            self.codes1, self.codes2, self.largest1, self.largest2, gradients[:n],
        )  # fmt: skip
        return self.in_turns_small(
            self._whole, scalars, turn, groups[n:], decay[n:], offsets[n:], self.ordered[n:],
            self.moment1, self.moment2, gradients[n:],
        )  # fmt: skip

    def _in_blocks(
        self, scalars, turn, group, decay, offset, parameter, codes1, codes2, largest1, largest2, gradient
    ):  # fmt: skip
        count = gradient.size
        flat = self.taken(gradient, turn, scalars[4]).reshape(-1)
        padding = codes1.shape[0] * BLOCK - count
        if padding:
            flat = ops.Concat()((flat, ops.zeros((padding,), ms.float32)))
        gradient = flat.reshape(codes1.shape)
        moment1 = self.signed.numbers(ops.depend(codes1, turn), largest1)
        moment2 = self.unsigned.numbers(ops.depend(codes2, turn), largest2)
        moment1, moment2, change = self._adam(scalars, moment1, moment2, gradient)
        new1, new_largest1 = self.signed(moment1)
        new2, new_largest2 = self.unsigned(moment2)
        saved = (
            ops.assign(codes1, new1), ops.assign(codes2, new2),
            ops.assign(largest1, new_largest1), ops.assign(largest2, new_largest2),
        )  # fmt: skip
        change = change.reshape(-1)
        if padding:
            change = self.part(change, 0, count)
        written = self._write(scalars, turn, group, decay, offset, parameter, change.reshape(parameter.shape))
        return ops.depend(written, saved)

    def _whole(self, scalars, turn, group, decay, offset, parameter, moment1, moment2, gradient):
        gradient = self.taken(gradient, turn, scalars[4])
        new1, new2, change = self._adam(scalars, moment1, moment2, gradient)
        saved = (ops.assign(moment1, new1), ops.assign(moment2, new2))
        return ops.depend(self._write(scalars, turn, group, decay, offset, parameter, change), saved)

    def _adam(self, scalars, moment1, moment2, gradient):
        """-> the new moments, and what the learning rate is multiplied by"""
        _, correction1, root2, _, _ = scalars  # 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
        moment1 = self.beta1 * moment1 + (1.0 - self.beta1) * gradient
        moment2 = self.beta2 * moment2 + (1.0 - self.beta2) * gradient * gradient
        return moment1, moment2, self.divide(moment1 * correction1, ops.sqrt(moment2) * root2 + self.epsilon)

    def _write(self, scalars, turn, group, decay, offset, parameter, change):
        rates, _, _, bits, _ = scalars
        value = ops.cast(ops.depend(parameter, turn), ms.float32)
        if decay > 0:
            change = change + decay * value
        return self.write(parameter, value - rates[group] * change, bits, offset)
