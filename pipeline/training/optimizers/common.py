"""What all optimizers are to those who use them."""

from math import inf, log

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import Constant, initializer

from pipeline.models.layers import norm_parameters
from pipeline.training.memory import sharded
from pipeline.training.optimizers.rounding import Rounding, assign, offsets
from pipeline.training.parameter_buckets import InTurns
from pipeline.weights.adapters.kinds import MAGNITUDE


class Optimizer(nn.Cell):
    """A cell that takes the gradients, a tuple in the order of `parameters` and the shapes of `gradients_like`, the
    learning rate, a scalar, and what the gradients are to be multiplied by, a scalar or None, and changes the parameters
    in place; its state does not depend on their dtype.

    `decayed` says for each parameter whether weight decay acts on it, and `factors` what its learning rate is
    multiplied by (None: 1 for all). `seed` is that of the rounding of bfloat16 parameters. With `ranks` > 1 this rank
    has a slice of each parameter that `sharded` allows (`cut`), and `parameters` has those first."""

    found: Parameter | None = None  # what the learning rate is multiplied by, where the optimizer finds that itself

    def __init__(self, parameters, decayed, weight_decay: float, factors=None, seed: int = 0, ranks: int = 1):
        super().__init__(auto_prefix=False)
        factors = (1.0,) * len(parameters) if factors is None else tuple(map(float, factors))
        rows = zip(parameters, decayed, factors, offsets(len(parameters)), strict=True)
        rows = sorted(rows, key=lambda row: not sharded(row[0].shape, ranks))
        parameters, decayed, factors, self.offsets = zip(*rows, strict=True)
        self.parameters = ParameterTuple(parameters)
        self.gradients_like = self.parameters
        self.cut = tuple(sharded(p.shape, ranks) for p in parameters)
        self.decay = tuple(weight_decay if decay else 0.0 for decay in decayed)
        self.factors = tuple(sorted(set(factors)))
        self.groups = tuple(self.factors.index(factor) for factor in factors)  # of each parameter
        self.updates = Parameter(Tensor(0.0, ms.float32), name="updates", requires_grad=False)
        self.in_turns = InTurns(self.parameters)
        halves = [p for p in parameters if p.dtype == ms.bfloat16]
        self.rounding = Rounding(halves, seed) if halves else None

    def begin(self, lr):
        """Counts this update. -> its number from 1, the learning rate of each group, the random bits of its rounding"""
        updates = self.updates + 1.0
        ops.assign(self.updates, updates)
        rates = ()
        for factor in self.factors:
            rates += (lr if factor == 1.0 else lr * factor,)
        return updates, rates, 0 if self.rounding is None else self.rounding.bits(updates)

    def taken(self, gradient, turn, factor):
        """In float32 and multiplied when it is its turn: those of all parameters would be in memory at once."""
        gradient = ops.cast(ops.depend(gradient, turn), ms.float32)
        return gradient if factor is None else gradient * factor

    def write(self, parameter, value, bits, offset):
        """parameter := value, which is float32."""
        if parameter.dtype == ms.bfloat16:
            value = self.rounding(value, bits, offset)
        return assign(parameter, value)

    def state(self) -> list[tuple[Parameter, bool]]:
        """All that is kept from step to step beside the weights, and of each whether it is this rank's slice."""
        raise NotImplementedError


class BiasCorrections(nn.Cell):
    """The number of updates t -> (1 - beta1^t, 1 - beta2^t), without the cancellation that float32 would suffer at small
    t."""

    def __init__(self, beta1: float, beta2: float):
        super().__init__(auto_prefix=False)
        self.logs = tuple(Tensor(log(beta) if beta else -inf, ms.float32) for beta in (beta1, beta2))
        self.expm1 = ops.Expm1()

    def construct(self, updates):
        return -self.expm1(updates * self.logs[0]), -self.expm1(updates * self.logs[1])


def filled(parameters, prefix: str, shapes, dtype: ms.Type = ms.float32, value: int = 0) -> ParameterTuple:
    """A part of the state: for each parameter an array of its one of `shapes`."""
    return ParameterTuple(
        Parameter(initializer(Constant(value), shape, dtype), name=f"{prefix}.{p.name}", requires_grad=False)
        for p, shape in zip(parameters, shapes, strict=True)
    )


def decays(cell: nn.Cell) -> tuple[bool, ...]:
    """Whether weight decay acts on each of the cell's trainable parameters: not on norms (by kind of module), biases, nor
    DoRA's magnitudes, which are gains as a norm's."""
    norms = norm_parameters(cell)
    paths = {id(parameter): path for path, parameter in cell.parameters_and_names()}
    names = [paths[id(parameter)] for parameter in cell.trainable_params()]
    gains = [parameter.name.endswith(MAGNITUDE) for parameter in cell.trainable_params()]
    return tuple(
        name not in norms and not name.endswith("bias") and not gain for name, gain in zip(names, gains, strict=True)
    )
