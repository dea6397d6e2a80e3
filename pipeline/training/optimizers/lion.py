"""Lion: half of AdamW's state, and the same step for every number."""

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import ops

from pipeline.training.optimizers.common import Optimizer, filled


class Lion(Optimizer):
    """Lion (arXiv 2302.06675, algorithm 2): the sign of an average of gradients, with decoupled weight decay. beta1 is
    that of the average whose sign is taken, beta2 that of the one which is kept."""

    def __init__(
        self, parameters, decayed, weight_decay: float, beta1: float, beta2: float, factors=None, seed: int = 0
    ):
        super().__init__(parameters, decayed, weight_decay, factors, seed)
        self.beta1, self.beta2 = beta1, beta2
        self.moment1 = filled(parameters, "moment1", [p.shape for p in parameters])

    def state(self):
        return [(p, False) for p in (self.updates, *self.moment1)]

    def construct(self, gradients, lr, factor=None):
        _, rates, bits = self.begin(lr)
        return self.in_turns(
            self._update, (rates, bits, factor), lr, self.groups, self.decay, self.offsets, self.parameters, self.moment1,
            gradients,
        )  # fmt: skip

    def _update(self, scalars, turn, group, decay, offset, parameter, moment, gradient):
        rates, bits, factor = scalars
        gradient = self.taken(gradient, turn, factor)
        old = ops.depend(moment, turn)
        update = ops.sign(self.beta1 * old + (1.0 - self.beta1) * gradient)
        value = ops.cast(ops.depend(parameter, turn), ms.float32)
        if decay > 0:
            update = update + decay * value
        new = value - rates[group] * update
        saved = ops.assign(moment, self.beta2 * old + (1.0 - self.beta2) * gradient)
        return ops.depend(self.write(parameter, new, bits, offset), saved)
