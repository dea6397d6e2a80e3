"""Adafactor: thousands of times less state than AdamW's."""

from math import prod

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import Tensor, ops

from pipeline.training.optimizers.common import Optimizer, filled


class Adafactor(Optimizer):
    """Adafactor (arXiv 1804.04235) with an external learning rate, no first moment, update clipping at 1 and
    beta2 = 1 - t^-0.8: the second moment of a matrix is kept as one number per row and per column (a convolution's
    kernel counts as columns)."""

    def __init__(self, parameters, decayed, weight_decay: float, factors=None, seed: int = 0):
        super().__init__(parameters, decayed, weight_decay, factors, seed)
        self.rows = filled(parameters, "rows", [p.shape[:1] for p in parameters])
        self.columns = filled(
            parameters, "columns", [(prod(p.shape[1:]) if len(p.shape) > 1 else 1,) for p in parameters]
        )

    def state(self):
        return [(p, False) for p in (self.updates, *self.rows, *self.columns)]

    def construct(self, gradients, lr, factor=None):
        updates, rates, bits = self.begin(lr)
        beta2 = 1.0 - ops.exp(-0.8 * ops.log(updates))
        return self.in_turns(
            self._update, (rates, beta2, bits, factor), lr, self.groups, self.decay, self.offsets, self.rows, self.columns,
            self.parameters, gradients,
        )  # fmt: skip

    def _update(self, scalars, turn, group, decay, offset, rows, columns, parameter, gradient):
        rates, beta2, bits, factor = scalars
        gradient = self.taken(gradient, turn, factor)
        squares = gradient * gradient + 1e-30
        if gradient.ndim > 1:
            squares = squares.reshape(gradient.shape[0], -1)
            r = rows * beta2 + squares.mean(1) * (1.0 - beta2)
            c = columns * beta2 + squares.mean(0) * (1.0 - beta2)
            scale = (1.0 / ops.sqrt(r / r.mean())).reshape(-1, 1) * (1.0 / ops.sqrt(c)).reshape(1, -1)
            saved = (ops.assign(rows, r), ops.assign(columns, c))
        else:
            r = rows * beta2 + squares * (1.0 - beta2)
            scale = 1.0 / ops.sqrt(r)
            saved = (ops.assign(rows, r),)
        update = gradient * scale.reshape(gradient.shape)
        update = update / ops.maximum(ops.sqrt((update * update).mean()), Tensor(1.0, ms.float32))
        value = ops.cast(ops.depend(parameter, turn), ms.float32)
        new = value - rates[group] * (update + decay * value)
        return ops.depend(self.write(parameter, new, bits, offset), saved)
