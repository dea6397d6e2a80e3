"""What all optimizers are to those who use them."""

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore.common.initializer import initializer

from pipeline.models.layers import norm_parameters
from pipeline.training.parameter_buckets import InTurns


class Optimizer(nn.Cell):
    """A cell that takes the gradients, a tuple in the order of `parameters` and the shapes of `gradients_like`, and the
    learning rate, a scalar, and changes the parameters in place; its state is float32 whatever their dtype.

    `decayed` says for each parameter whether weight decay acts on it, and `factors` what its learning rate is
    multiplied by (None: 1 for all). `cut` says of which parameters this rank updates a slice only: most optimizers
    update whole ones on every rank."""

    def __init__(self, parameters, decayed, weight_decay: float, factors=None, cut=None):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.gradients_like = self.parameters
        self.decay = tuple(weight_decay if decay else 0.0 for decay in decayed)
        factors = (1.0,) * len(self.decay) if factors is None else tuple(map(float, factors))
        self.factors = tuple(sorted(set(factors)))
        self.groups = tuple(self.factors.index(factor) for factor in factors)  # of each parameter
        self.cut = cut or (False,) * len(self.decay)
        if not len(parameters) == len(self.decay) == len(factors) == len(self.cut):
            raise ValueError(f"{len(parameters)} parameters, {len(self.decay)} decays and {len(factors)} factors")
        self.updates = Parameter(Tensor(0.0, ms.float32), name="updates", requires_grad=False)
        self.in_turns = InTurns(parameters)

    def rates(self, lr) -> tuple:
        """The learning rate of each group."""
        found = ()
        for factor in self.factors:
            found += (lr if factor == 1.0 else lr * factor,)
        return found

    def state(self) -> list[tuple[Parameter, bool]]:
        """All that is kept from step to step beside the weights, and of each whether it is this rank's slice."""
        raise NotImplementedError


def zeros(parameters, prefix: str, shapes, dtype: ms.Type = ms.float32) -> ParameterTuple:
    """A part of the state: for each parameter an array of its one of `shapes`."""
    return ParameterTuple(
        Parameter(initializer("zeros", shape, dtype), name=f"{prefix}.{p.name}", requires_grad=False)
        for p, shape in zip(parameters, shapes, strict=True)
    )


def decays(cell: nn.Cell) -> tuple[bool, ...]:
    """Whether weight decay acts on each of the cell's trainable parameters: not on norms (by kind of module) nor
    biases."""
    norms = norm_parameters(cell)
    paths = {id(parameter): path for path, parameter in cell.parameters_and_names()}
    names = [paths[id(parameter)] for parameter in cell.trainable_params()]
    return tuple(name not in norms and name.rsplit(".", 1)[-1] != "bias" for name in names)
