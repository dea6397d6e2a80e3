"""AdamW and Adafactor as cells: their state is float32 whatever the parameters' dtype.

Both take the gradients (a tuple in the order of `parameters`, in the shapes of `gradients_like`) and the learning rate
(a scalar), and change the parameters in place. With `ranks` > 1 AdamW keeps the moments of this rank's slices only
(ZeRO-1, arXiv 1910.02054)."""

from math import log, prod

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from pipeline.models import forms
from pipeline.models.layers import norm_parameters
from pipeline.training.parameter_buckets import InTurns, buckets
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
        Parameter(initializer("zeros", shape, ms.float32), name=f"{prefix}.{p.name}", requires_grad=False)
        for p, shape in zip(parameters, shapes, strict=True)
    )


class _CpuKernels(nn.Cell):
    """AdamW as two kernels a parameter: MindSpore's AdamWeightDecay is both, but on a CPU takes five times as long as
    its Adam. Its proximal gradient descent, without the penalties that set it apart, is three times as fast as its
    plain one. Adam's own bias correction is none with powers of 0 given for the betas; lr and epsilon come rescaled."""

    def __init__(self, weight_decay: float, beta1: float, beta2: float, epsilon: float):
        super().__init__(auto_prefix=False)
        self.weight_decay = weight_decay
        self.zero = Tensor(0.0, ms.float32)
        self.beta1, self.beta2, self.epsilon = (Tensor(x, ms.float32) for x in (beta1, beta2, epsilon))
        self.log_beta1, self.log_beta2 = (Tensor(log(x) if x else -np.inf, ms.float32) for x in (beta1, beta2))
        self.expm1 = ops.Expm1()
        self.shrink = ops.ApplyProximalGradientDescent()
        self.adam = ops.Adam()

    def construct(self, updates, lr):
        # 1 - beta^t without the cancellation that float32 would suffer at small t
        correction1 = -self.expm1(updates * self.log_beta1)
        root2 = ops.sqrt(-self.expm1(updates * self.log_beta2))
        return lr * self.weight_decay, lr * root2 / correction1, self.epsilon * root2

    def step(self, scalars, decayed, value, moment1, moment2, gradient):
        decay, lr, epsilon = scalars
        if decayed:
            value = ops.depend(value, self.shrink(value, decay, self.zero, self.zero, value))
        return self.adam(
            value, moment1, moment2, self.zero, self.zero, lr, self.beta1, self.beta2, epsilon, gradient
        )


class _NpuKernel(nn.Cell):
    """AdamW as CANN's fused kernel, aclnnApplyAdamWV2, which is deterministic. Not run on an NPU. It takes the number
    of updates before this one and adds 1 itself, numbers that are not tensors, and weights and moments of one dtype."""

    def __init__(self, weight_decay: float, beta1: float, beta2: float, epsilon: float):
        super().__init__(auto_prefix=False)
        self.weight_decay, self.beta1, self.beta2, self.epsilon = weight_decay, beta1, beta2, epsilon
        self.adamw = ops.auto_generate.AdamW()

    def construct(self, updates, lr):
        before = ops.cast(updates - 1.0, ms.int64).reshape(1)
        return before, float(lr)

    def step(self, scalars, decayed, value, moment1, moment2, gradient):
        before, lr = scalars
        decay = self.weight_decay if decayed else 0.0
        # the fourth is the second moment's maximum, which amsgrad = False leaves alone
        return self.adamw(
            value, moment1, moment2, moment2, gradient, before, lr, self.beta1, self.beta2, decay, self.epsilon,
            False, False,
        )  # fmt: skip


class AdamW(nn.Cell):
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2) and bias correction, in kernels that change
    weights and float32 moments in place.

    `decayed` says for each parameter whether `weight_decay` acts on it. `rank` of `ranks` owns a slice of each
    parameter that `sharded` allows: of those it takes the slice's gradient, and the new slices are gathered.
    `parameters` then has those that are cut first, in the order in which the gradients shall come."""

    def __init__(
        self, parameters, decayed, weight_decay: float, beta1: float, beta2: float, epsilon: float,
        rank: int = 0, ranks: int = 1,
    ):  # fmt: skip
        super().__init__(auto_prefix=False)
        pairs = sorted(zip(parameters, decayed, strict=True), key=lambda pair: not sharded(pair[0].shape, ranks))
        parameters, decayed = zip(*pairs, strict=True)
        self.parameters = ParameterTuple(parameters)
        self.decayed = tuple(decay and weight_decay > 0 for decay in decayed)
        self.cut = tuple(sharded(p.shape, ranks) for p in parameters)
        shapes = [
            (p.shape[0] // ranks, *p.shape[1:]) if cut else p.shape for p, cut in zip(parameters, self.cut, strict=True)
        ]
        self.moment1 = _state(parameters, "moment1", shapes)
        self.moment2 = _state(parameters, "moment2", shapes)
        self.gradients_like = self.moment1
        self.updates = Parameter(Tensor(0.0, ms.float32), name="updates", requires_grad=False)
        kernels_of = _CpuKernels if forms.on_cpu() else _NpuKernel
        self.kernels = kernels_of(weight_decay, beta1, beta2, epsilon)
        self.rank = rank
        self.owned = sum(self.cut)
        self.buckets = buckets(parameters[: self.owned], self.cut, rank, ranks) if self.owned else ()
        self.in_turns = InTurns(parameters[self.owned :])
        self.map = ops.HyperMap()

    def construct(self, gradients, lr):
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        scalars = self.kernels(updates, lr)
        turn = lr
        for bucket in self.buckets:
            start, stop = bucket.start, bucket.stop
            slices = self.map(
                ops.partial(self._slice, scalars, turn), self.decayed[start:stop], self.parameters[start:stop],
                self.moment1[start:stop], self.moment2[start:stop], gradients[start:stop],
            )  # fmt: skip
            done = self.map(ops.assign, self.parameters[start:stop], bucket.gather(slices, self.parameters))
            turn = ops.depend(lr, done)
        n = self.owned
        return self.in_turns(
            self._whole, scalars, turn, self.decayed[n:], self.parameters[n:], self.moment1[n:], self.moment2[n:],
            gradients[n:],
        )  # fmt: skip

    def _slice(self, scalars, turn, decayed, parameter, moment1, moment2, gradient):
        """The new values of this rank's slice, in the parameter's dtype."""
        count = moment1.shape[0]
        first = self.rank * count
        value = ops.cast(ops.depend(parameter, turn)[first : first + count], ms.float32)
        value = ops.depend(value, self.kernels.step(scalars, decayed, value, moment1, moment2, gradient))
        return ops.cast(value, parameter.dtype)

    def _whole(self, scalars, turn, decayed, parameter, moment1, moment2, gradient):
        gradient = ops.cast(gradient, ms.float32)
        if parameter.dtype == ms.float32:
            return self.kernels.step(scalars, decayed, parameter, moment1, moment2, gradient)
        value = ops.cast(ops.depend(parameter, turn), ms.float32)
        value = ops.depend(value, self.kernels.step(scalars, decayed, value, moment1, moment2, gradient))
        return ops.assign(parameter, ops.cast(value, parameter.dtype))


def _adafactor(scalars, turn, decay, rows, columns, parameter, gradient):
    lr, beta2 = scalars
    gradient = ops.cast(ops.depend(gradient, turn), ms.float32)
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
        self.cut = (False,) * len(self.decay)
        self.gradients_like = self.parameters
        self.in_turns = InTurns(parameters)

    def construct(self, gradients, lr):
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        beta2 = 1.0 - ops.exp(-0.8 * ops.log(updates))
        return self.in_turns(
            _adafactor, (lr, beta2), lr, self.decay, self.rows, self.columns, self.parameters, gradients
        )
