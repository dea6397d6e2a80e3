"""Prodigy: AdamW that finds its learning rate."""

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from pipeline.training.memory import PRODIGY_SLICE
from pipeline.training.optimizers.common import BiasCorrections, Optimizer, filled
from pipeline.training.optimizers.rounding import Part

FIRST = 1e-6  # of d


class Prodigy(Optimizer):
    """Prodigy (arXiv 2306.06101, algorithm 4) as its authors advise it for diffusion models: with Adam's bias
    correction, and without the learning rate in the denominator of d's estimate (prodigyopt's safeguard_warmup);
    decoupled weight decay. `d`, which the learning rate is multiplied by, is a lower bound of the distance to the
    solution.

    Distances from the first weights are summed over every PRODIGY_SLICE-th number of a parameter, so that the two arrays
    which that takes are small. d comes from gradients that are the same on all ranks. `factors` scale a parameter's
    steps, and leave d alone."""

    def __init__(
        self, parameters, decayed, weight_decay: float, beta1: float, beta2: float, epsilon: float, factors=None,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__(parameters, decayed, weight_decay, factors, seed)
        self.beta1, self.beta2, self.beta3, self.epsilon = beta1, beta2, beta2**0.5, epsilon
        shapes = [p.shape for p in parameters]
        self.moment1, self.moment2 = filled(parameters, "moment1", shapes), filled(parameters, "moment2", shapes)
        self.first = ParameterTuple(
            Parameter(
                Tensor(p.asnumpy().reshape(-1)[::PRODIGY_SLICE].astype(np.float32)),
                name=f"first.{p.name}",
                requires_grad=False,
            )
            for p in parameters
        )
        self.sums = filled(parameters, "sum", [p.shape for p in self.first])  # of gradients
        self.d = Parameter(Tensor(FIRST, ms.float32), name="d", requires_grad=False)
        self.numerator = Parameter(Tensor(0.0, ms.float32), name="d_numerator", requires_grad=False)
        self.corrections = BiasCorrections(beta1, beta2)
        self.least, self.nothing = Tensor(1e-38, ms.float32), Tensor(np.zeros(2, np.float32))
        self.divide = ops.RealDiv()  # MindSpore's Div on a CPU keeps four times the array
        self.part, self.map = Part(), ops.HyperMap()

    @property
    def found(self) -> Parameter:
        return self.d

    def state(self):
        arrays = (*self.moment1, *self.moment2, *self.first, *self.sums)
        return [(p, False) for p in (self.updates, self.d, self.numerator, *arrays)]

    def construct(self, gradients, lr, factor=None):
        updates, rates, bits = self.begin(lr)
        correction1, correction2 = self.corrections(updates)
        d = self.d + 0.0
        step = d * ops.sqrt(correction2) / correction1
        steps = ()
        for rate in rates:
            steps += (step * rate,)
        totals, now = self.nothing, lr
        for start, stop in self.in_turns.ranges:
            found = self.map(
                ops.partial(self._update, (steps, d, bits, factor), now), self.groups[start:stop], self.decay[start:stop],
                self.offsets[start:stop], self.parameters[start:stop], self.first[start:stop], self.sums[start:stop],
                self.moment1[start:stop], self.moment2[start:stop], gradients[start:stop],
            )  # fmt: skip
            totals = totals + ops.Concat()(found).sum(0)
            now = ops.depend(lr, totals)
        numerator = self.beta3 * self.numerator + d / FIRST * step * lr * totals[0]
        # where all gradients were 0 there is no estimate
        estimate = ops.select(totals[1] > 0, numerator / ops.maximum(totals[1], self.least), d)
        saved = ops.assign(self.numerator, numerator), ops.assign(self.d, ops.maximum(d, estimate))
        return ops.depend(lr, saved)

    def _update(
        self, scalars, turn, group, decay, offset, parameter, first, sums, moment1, moment2, gradient
    ):  # fmt: skip
        """-> (1, 2): this parameter's part of d's numerator and denominator"""
        steps, d, bits, factor = scalars
        gradient = self.taken(gradient, turn, factor)
        value = ops.cast(ops.depend(parameter, turn), ms.float32)
        some = self.part(gradient.reshape(-1), 0, gradient.size, PRODIGY_SLICE)
        product = (some * (first - self.part(value.reshape(-1), 0, value.size, PRODIGY_SLICE))).sum()
        new_sums = self.beta3 * sums + d / FIRST * d * some
        new1 = self.beta1 * ops.depend(moment1, turn) + (1.0 - self.beta1) * d * gradient
        new2 = self.beta2 * ops.depend(moment2, turn) + (1.0 - self.beta2) * d * d * gradient * gradient
        change = self.divide(new1, ops.sqrt(new2) + d * self.epsilon)
        if decay > 0:
            change = change + decay * value
        saved = (
            ops.assign(sums, new_sums), ops.assign(moment1, new1), ops.assign(moment2, new2),
            self.write(parameter, value - steps[group] * change, bits, offset),
        )  # fmt: skip
        parts = ops.Concat()((product.reshape(1), ops.abs(new_sums).sum().reshape(1))).reshape(1, 2)
        return ops.depend(parts, saved)
