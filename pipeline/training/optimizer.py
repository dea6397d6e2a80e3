"""AdamW and Adafactor as cells: their state is float32 whatever the parameters' dtype, one HyperMap over all
parameters.

Both take the gradients (a tuple in the order of the parameters) and the learning rate (a scalar), and change the
parameters in place. With `ranks` > 1 AdamW keeps the moments of this rank's slice only (ZeRO-1, arXiv 1910.02054)."""

from math import log, prod

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from pipeline.models.layers import norm_parameters
from pipeline.training.memory import sharded


def decays(cell: nn.Cell) -> tuple[bool, ...]:
    """Whether weight decay acts on each of the cell's trainable parameters: not on norms (by kind of module) nor
    biases."""
    norms = norm_parameters(cell)
    paths = {id(parameter): path for path, parameter in cell.parameters_and_names()}
    names = [paths[id(parameter)] for parameter in cell.trainable_params()]
    return tuple(name not in norms and name.rsplit(".", 1)[-1] != "bias" for name in names)


def _state(parameters, prefix: str, shapes) -> ParameterTuple:
    return ParameterTuple(
        Parameter(Tensor(np.zeros(shape, np.float32)), name=f"{prefix}.{p.name}", requires_grad=False)
        for p, shape in zip(parameters, shapes, strict=True)
    )


_shrink = ops.ApplyProximalGradientDescent()
_adam = ops.Adam()


def _adamw_fused(lr, beta1, beta2, epsilon, decay, zero, decayed, moment1, moment2, parameter, gradient):
    """Two kernels a parameter: parameter -= decay * parameter, then Adam. MindSpore's AdamWeightDecay is both, but on a
    CPU takes five times as long as its Adam. Its proximal gradient descent, without the penalties that set it apart, is
    three times as fast as its plain one. Adam's own bias correction is none with powers of 0 given for the betas; lr
    and epsilon come rescaled."""
    if decayed:
        _shrink(parameter, decay, zero, zero, parameter)
    return _adam(parameter, moment1, moment2, zero, zero, lr, beta1, beta2, epsilon, gradient)


def _adamw_rows(lr, beta1, beta2, epsilon, decay, moment1, moment2, rows, gradient):
    """The new values, float32, of `rows`; the moments are changed in place."""
    rows = ops.cast(rows, ms.float32)
    m = moment1 * beta1 + gradient * (1.0 - beta1)
    v = moment2 * beta2 + gradient * gradient * (1.0 - beta2)
    new = rows - lr * (m / (ops.sqrt(v) + epsilon) + decay * rows)
    return ops.depend(new, (ops.assign(moment1, m), ops.assign(moment2, v)))


def _adamw(lr, beta1, beta2, epsilon, decay, moment1, moment2, parameter, gradient):
    new = _adamw_rows(lr, beta1, beta2, epsilon, decay, moment1, moment2, parameter, ops.cast(gradient, ms.float32))
    return ops.assign(parameter, ops.cast(new, parameter.dtype))


class AdamW(nn.Cell):
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2) and bias correction.

    `decayed` says for each parameter whether `weight_decay` acts on it. `fused` uses MindSpore's Adam kernel (float32
    parameters only): the same numbers to rounding, faster on a CPU. `rank` of `ranks` owns a slice of each
    parameter that `sharded` allows; the slices are gathered after the update."""

    def __init__(
        self, parameters, decayed, weight_decay: float, beta1: float, beta2: float, epsilon: float,
        fused: bool = False, rank: int = 0, ranks: int = 1,
    ):  # fmt: skip
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.cut = tuple(sharded(p.shape, ranks) for p in parameters)
        shapes = [
            (p.shape[0] // ranks, *p.shape[1:]) if cut else p.shape for p, cut in zip(parameters, self.cut, strict=True)
        ]
        self.moment1 = _state(parameters, "moment1", shapes)
        self.moment2 = _state(parameters, "moment2", shapes)
        self.updates = Parameter(Tensor(0.0, ms.float32), name="updates", requires_grad=False)
        self.weight_decay = weight_decay
        self.decay = tuple(weight_decay if decay else 0.0 for decay in decayed)
        self.decayed = tuple(decay > 0 for decay in self.decay)
        self.zero = Tensor(0.0, ms.float32)
        self.beta1, self.beta2, self.epsilon = (Tensor(x, ms.float32) for x in (beta1, beta2, epsilon))
        self.log_beta1, self.log_beta2 = (Tensor(log(x) if x else -np.inf, ms.float32) for x in (beta1, beta2))
        self.expm1 = ops.Expm1()
        self.map = ops.HyperMap()
        self.ranks, self.rank, self.fused = ranks, rank, fused
        self.all_gather = ops.AllGather() if ranks > 1 else None

    def construct(self, gradients, lr):
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        # 1 - beta^t without the cancellation that float32 would suffer at small t
        correction1 = -self.expm1(updates * self.log_beta1)
        root2 = ops.sqrt(-self.expm1(updates * self.log_beta2))
        decay = lr * self.weight_decay
        lr = lr * root2 / correction1
        epsilon = self.epsilon * root2
        if self.ranks == 1 and self.fused:
            update = ops.partial(_adamw_fused, lr, self.beta1, self.beta2, epsilon, decay, self.zero)
            return self.map(update, self.decayed, self.moment1, self.moment2, self.parameters, gradients)
        decay = self.map(ops.partial(_times, correction1 / root2), self.decay)
        if self.ranks > 1:
            update = ops.partial(self._slice, lr, epsilon)
            return self.map(update, self.cut, decay, self.moment1, self.moment2, self.parameters, gradients)
        update = ops.partial(_adamw, lr, self.beta1, self.beta2, epsilon)
        return self.map(update, decay, self.moment1, self.moment2, self.parameters, gradients)

    def _slice(self, lr, epsilon, cut, decay, moment1, moment2, parameter, gradient):
        if not cut:
            return _adamw(lr, self.beta1, self.beta2, epsilon, decay, moment1, moment2, parameter, gradient)
        count = moment1.shape[0]
        start = self.rank * count
        rows = parameter[start : start + count]
        gradient = ops.cast(gradient[start : start + count], ms.float32)
        new = _adamw_rows(lr, self.beta1, self.beta2, epsilon, decay, moment1, moment2, rows, gradient)
        return ops.assign(parameter, self.all_gather(ops.cast(new, parameter.dtype)))


def _times(factor, number):
    return factor * number


def _adafactor(lr, beta2, decay, rows, columns, parameter, gradient):
    gradient = ops.cast(gradient, ms.float32)
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
    value = ops.cast(parameter, ms.float32)
    new = ops.cast(value - lr * (update + decay * value), parameter.dtype)
    return ops.depend(ops.assign(parameter, new), saved)


class Adafactor(nn.Cell):
    """Adafactor (arXiv 1804.04235) with an external learning rate, no first moment, update clipping at 1 and
    beta2 = 1 - t^-0.8: the second moment of a matrix is kept as one number per row and per column (a convolution's
    kernel counts as columns), so its state is thousands of times smaller than AdamW's."""

    def __init__(self, parameters, decayed, weight_decay: float):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.rows = _state(parameters, "rows", [p.shape[:1] for p in parameters])
        self.columns = _state(
            parameters, "columns", [(prod(p.shape[1:]) if len(p.shape) > 1 else 1,) for p in parameters]
        )
        self.updates = Parameter(Tensor(0.0, ms.float32), name="updates", requires_grad=False)
        self.decay = tuple(weight_decay if decay else 0.0 for decay in decayed)
        self.map = ops.HyperMap()

    def construct(self, gradients, lr):
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        beta2 = 1.0 - ops.exp(-0.8 * ops.log(updates))
        update = ops.partial(_adafactor, lr, beta2)
        return self.map(update, self.decay, self.rows, self.columns, self.parameters, gradients)
