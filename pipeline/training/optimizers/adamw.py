"""AdamW, in kernels that change weights and moments in place. With `ranks` > 1 it keeps the moments of this rank's
slices only (ZeRO-1, arXiv 1910.02054)."""

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import Tensor, nn, ops

from pipeline.models import forms
from pipeline.training.optimizers.common import BiasCorrections, Optimizer, filled
from pipeline.training.optimizers.rounding import Part, assign
from pipeline.training.parameter_buckets import InTurns, buckets


class _CpuKernels(nn.Cell):
    """AdamW as two kernels a parameter: MindSpore's AdamWeightDecay is both, but on a CPU takes five times as long as
    its Adam. Its proximal gradient descent, without the penalties that set it apart, is three times as fast as its
    plain one. Adam's own bias correction is none with powers of 0 given for the betas; lr and epsilon come rescaled."""

    def __init__(self, weight_decay: float, beta1: float, beta2: float, epsilon: float):
        super().__init__(auto_prefix=False)
        self.weight_decay = weight_decay
        self.zero = Tensor(0.0, ms.float32)
        self.beta1, self.beta2, self.epsilon = (Tensor(x, ms.float32) for x in (beta1, beta2, epsilon))
        self.corrections = BiasCorrections(beta1, beta2)
        self.shrink = ops.ApplyProximalGradientDescent()
        self.adam = ops.Adam()

    def construct(self, updates, lr):
        correction1, correction2 = self.corrections(updates)
        root2 = ops.sqrt(correction2)
        return lr * self.weight_decay, lr * root2 / correction1, self.epsilon * root2

    def step(self, scalars, decayed, value, moment1, moment2, gradient):
        decay, lr, epsilon = scalars
        if decayed:
            value = ops.depend(value, self.shrink(value, decay, self.zero, self.zero, value))
        return self.adam(value, moment1, moment2, self.zero, self.zero, lr, self.beta1, self.beta2, epsilon, gradient)


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


class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2) and bias correction.

    `rank` of `ranks` owns a slice of each parameter that `sharded` allows: of those it takes the slice's gradient, and
    the new slices are gathered. `parameters` then has those that are cut first, in the order in which the gradients
    shall come."""

    def __init__(
        self, parameters, decayed, weight_decay: float, beta1: float, beta2: float, epsilon: float,
        factors=None, seed: int = 0, rank: int = 0, ranks: int = 1,
    ):  # fmt: skip
        super().__init__(parameters, decayed, weight_decay, factors, seed, ranks)
        self.decayed = tuple(decay > 0 for decay in self.decay)
        parameters, self.owned = self.parameters, sum(self.cut)
        shapes = [
            (p.shape[0] // ranks, *p.shape[1:]) if cut else p.shape for p, cut in zip(parameters, self.cut, strict=True)
        ]
        self.moment1 = filled(parameters, "moment1", shapes)
        self.moment2 = filled(parameters, "moment2", shapes)
        self.gradients_like = self.moment1
        kernels_of = _CpuKernels if forms.on_cpu() else _NpuKernel
        self.kernels = kernels_of(weight_decay, beta1, beta2, epsilon)
        self.rank = rank
        self.buckets = buckets(parameters[: self.owned], self.cut, rank, ranks) if self.owned else ()
        self.in_turns = InTurns(parameters[self.owned :])
        self.map, self.part = ops.HyperMap(), Part()
        # MindSpore's collectives and slices on a CPU have no bfloat16
        self.wide = forms.on_cpu() and any(p.dtype == ms.bfloat16 for p in parameters)

    def state(self):
        moments = [pair for moments in (self.moment1, self.moment2) for pair in zip(moments, self.cut, strict=True)]
        return [(self.updates, False), *moments]

    def construct(self, gradients, lr, factor=None):
        updates, rates, bits = self.begin(lr)
        scalars = ()
        for rate in rates:
            scalars += (self.kernels(updates, rate),)
        scalars = scalars, bits, factor
        turn = lr
        for bucket in self.buckets:
            start, stop = bucket.start, bucket.stop
            slices = self.map(
                ops.partial(self._slice, scalars, turn), self.groups[start:stop], self.decayed[start:stop],
                self.offsets[start:stop], self.parameters[start:stop], self.moment1[start:stop],
                self.moment2[start:stop], gradients[start:stop],
            )  # fmt: skip
            done = self.map(assign, self.parameters[start:stop], bucket.gather(slices, self.parameters))
            turn = ops.depend(lr, done)
        n = self.owned
        return self.in_turns(
            self._whole, scalars, turn, self.groups[n:], self.decayed[n:], self.offsets[n:], self.parameters[n:],
            self.moment1[n:], self.moment2[n:], gradients[n:],
        )  # fmt: skip

    def _slice(self, scalars, turn, group, decayed, offset, parameter, moment1, moment2, gradient):
        """The new values of this rank's slice, in the parameter's dtype."""
        kernels, bits, _ = scalars
        count = moment1.shape[0]
        first = self.rank * count
        whole = ops.depend(parameter, turn)
        if self.wide:
            whole = ops.cast(whole, ms.float32)
        value = ops.cast(self.part(whole, first, first + count), ms.float32)
        value = ops.depend(value, self.kernels.step(kernels[group], decayed, value, moment1, moment2, gradient))
        if parameter.dtype == ms.bfloat16:
            value = self.rounding(value, bits, offset + self.rank * value.size)
        return ops.cast(value, ms.float32 if self.wide else parameter.dtype)

    def _whole(self, scalars, turn, group, decayed, offset, parameter, moment1, moment2, gradient):
        kernels, bits, factor = scalars
        gradient = self.taken(gradient, turn, factor)
        if parameter.dtype == ms.float32:
            return self.kernels.step(kernels[group], decayed, parameter, moment1, moment2, gradient)
        value = ops.cast(ops.depend(parameter, turn), ms.float32)
        value = ops.depend(value, self.kernels.step(kernels[group], decayed, value, moment1, moment2, gradient))
        return self.write(parameter, value, bits, offset)
