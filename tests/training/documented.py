"""In place of what an NPU's update has and a CPU lacks: its AdamW, by CANN's documentation, ReduceScatter, and slices."""

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from pipeline.training.step import Update


def documented(before, value, m, v, gradient, lr=1e-2, decay=0.1, beta1=0.9, beta2=0.99, epsilon=1e-6):
    """aclnnApplyAdamWV2 by its documentation: CANN 8.5's page, and the step that its kernel adds
    (gitcode.com/cann/ops-nn, optim/apply_adam_w_v2). -> value, m, v"""
    t = before + 1
    m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
    update = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return value - lr * update - lr * decay * value, m, v


class Documented(nn.Cell):
    """In place of ops.auto_generate.AdamW: the same arguments, changed in place."""

    def construct(self, value, m, v, max_v, gradient, before, lr, beta1, beta2, decay, epsilon, amsgrad, maximize):
        if before.dtype != ms.int64 or isinstance(lr, Tensor):
            raise TypeError("the count must be int64, and the rate no tensor")
        if (value.dtype, m.dtype, v.dtype, gradient.dtype) != (ms.float32, ms.float32, ms.float32, ms.float32):
            raise TypeError("weights, moments and gradient must be of one dtype")
        t = ops.cast(before, ms.float32) + 1.0
        new_m = beta1 * m + (1.0 - beta1) * gradient
        new_v = beta2 * v + (1.0 - beta2) * gradient * gradient
        corrected = ops.sqrt(new_v / (1.0 - ops.pow(Tensor(beta2), t)))
        update = new_m / (1.0 - ops.pow(Tensor(beta1), t)) / (corrected + epsilon)
        new = value - lr * update - lr * decay * value
        copy = ops.auto_generate.InplaceCopy()  # `value` may be no parameter
        return copy(value, new), copy(m, new_m), copy(v, new_v)


class _ReduceScatter(nn.Cell):
    """(ranks, n) -> (1, n), its rank's row of the sum over the ranks"""

    def __init__(self, rank: int):
        super().__init__(auto_prefix=False)
        self.rank = rank
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)[self.rank : self.rank + 1]


def _rows(x, start: int, stop: int, step: int):
    return x[start:stop:step]


def runs(update: Update) -> Update:
    """The `update`, made in an NPU's form, with these kernels."""
    update.optimizer.kernels.adamw = Documented()
    for bucket in update.reduce.buckets if update.ranks > 1 else ():
        if bucket.scatters:
            bucket.reduce_scatter = _ReduceScatter(bucket.rank)
    update.optimizer.part.of = _rows
    return update
