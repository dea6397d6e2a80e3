"""One optimizer step as graphs: loss, gradients, all-reduce, clipping, update, EMA and loss scale.

The graphs are pure functions of their inputs and of the training state; every random number comes in as an input:
    x_t (b, 4, h, w) float32, timesteps (b,) float32, context (b, tokens, context_dim), vector (b, vector_dim),
    target (b, 4, h, w) float32, weight (b,) or, of each latent pixel, (b, 1, h, w) float32
    -> loss, the mean over all of weight * loss."""

from dataclasses import dataclass
from math import log
from typing import NamedTuple

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from pipeline.models import forms
from pipeline.training.parameter_buckets import InTurns, buckets

GROWTH_STEPS = 2000  # steps without an overflow after which the loss scale doubles (torch's GradScaler has the same)


@dataclass(frozen=True)
class Settings:
    """What of params.yaml shapes the graphs."""

    loss_type: str = "l2"
    huber_c: float = 0.1
    huber_schedule: str = "constant"
    huber_thresholds: tuple[float, ...] | None = None  # schedule "snr": c of each timestep (diffusion/loss.py)
    max_grad_norm: float = 0.0  # 0: no clipping
    gradient_accumulation_steps: int = 1
    loss_scale: float | None = None  # the first loss scale; None: gradients are not scaled, overflows not looked for
    rank: int = 0
    ranks: int = 1


class SampleLoss(nn.Cell):
    """(b,) float32: each sample's mean weighted squared error, or pseudo-Huber loss 2c (sqrt(d² + c²) - c) (arXiv
    2403.16728). By the schedule "exponential" c falls from 1 to `huber_c` as the timestep goes from 0 to 1000."""

    def __init__(self, unet: nn.Cell, settings: Settings):
        super().__init__(auto_prefix=False)
        self.unet = unet
        self.huber_c = settings.huber_c
        self.huber = settings.loss_type == "huber"
        self.exponential = settings.huber_schedule == "exponential"
        self.log_c = log(settings.huber_c) / 1000
        table = settings.huber_thresholds
        self.thresholds = None if table is None else Tensor(table, ms.float32)

    def construct(self, x_t, timesteps, context, vector, target, weight=None):
        difference = (self.unet(x_t, timesteps, context, vector).astype(ms.float32) - target).reshape(
            target.shape[0], -1
        )
        squares = difference * difference
        if self.huber:
            c = self.huber_c
            if self.exponential:
                c = ops.exp(timesteps.reshape(-1, 1) * self.log_c)
            elif self.thresholds is not None:
                c = ops.gather_elements(self.thresholds, 0, timesteps.astype(ms.int32)).reshape(-1, 1)
            # Of a power, other than of Sqrt, an NPU has the gradient by aclnn.
            squares = 2.0 * c * ((squares + c * c) ** 0.5 - c)
        if weight is None:
            return squares.mean(1)
        if weight.ndim == 1:
            return squares.mean(1) * weight
        return (squares.reshape(target.shape) * weight).reshape(target.shape[0], -1).mean(1)


class _ScaledLoss(nn.Cell):
    def __init__(self, sample_loss: SampleLoss):
        super().__init__(auto_prefix=False)
        self.sample_loss = sample_loss

    def construct(self, x_t, timesteps, context, vector, target, weight, scale):
        return self.sample_loss(x_t, timesteps, context, vector, target, weight).mean() * scale


def _square_sum(turn, x):
    x = ops.cast(ops.depend(x, turn), ms.float32)
    return (x * x).sum()


def _after(turn, x):
    return ops.depend(x, turn)


def _add(total, x):
    return ops.assign_add(total, ops.cast(x, ms.float32))


def _zero(_, turn, total):
    return ops.assign(total, ops.zeros_like(ops.depend(total, turn)))


def _average(weight, turn, average, parameter):
    parameter = ops.cast(ops.depend(parameter, turn), ms.float32)
    return ops.assign(average, average + weight * (parameter - average))


def _scalar(x):
    return ops.cast(x, ms.float32).reshape(1)


class Outcome(NamedTuple):
    """What a step gives, float32 in one tensor: copied to the host at once."""

    loss: float  # averaged over micro-batches and ranks
    norm: float  # of the gradients, before clipping
    finite: float  # 1 or 0: whether the gradients were, and so were applied
    loss_scale: float  # of the next step
    overflows: float  # steps that were not applied
    taken: float  # steps by now, counted on the device: with a data sink the host does not look at every one
    d: float | None = None  # what Prodigy multiplies the next learning rate by; other optimizers have none


class _Reduce(nn.Cell):
    """Sums the gradients over the ranks, in one buffer a bucket, the last ones first, as the backward pass has them."""

    def __init__(self, optimizer: nn.Cell, rank: int, ranks: int):
        super().__init__(auto_prefix=False)
        self.likes = optimizer.gradients_like
        self.buckets = buckets(optimizer.parameters, optimizer.cut, rank, ranks)
        self.backwards = nn.CellList(list(self.buckets)[::-1])
        self.cut = any(optimizer.cut)
        self.all_reduce = ops.AllReduce()

    def construct(self, gradients, turn):
        """-> the buffers (n,), last bucket first, and the sum of the squares of what they hold on all ranks"""
        flats, mine, everyones, now = (), 0.0, 0.0, turn
        for bucket in self.backwards:
            flat = bucket.reduce(gradients, now)
            squares = _square_sum(turn, flat)
            now = ops.depend(turn, squares)
            flats += (flat,)
            if bucket.cut:
                mine = mine + squares
            else:
                everyones = everyones + squares
        if self.cut:
            everyones = everyones + self.all_reduce(mine.reshape(1)).reshape(())
        return flats, everyones

    def parts(self, flats, factor):
        """The gradients times `factor`, as the optimizer wants them."""
        gradients, place = (), len(self.buckets) - 1
        for bucket in self.buckets:
            gradients += bucket.parts(flats[place] * factor, self.likes)
            place -= 1
        return gradients


class Update(nn.Cell):
    """Gradients of the scaled loss (summed over micro-batches) -> new weights and loss scale.

    The order matters with several ranks: sum over ranks in float32, check, unscale and clip, update. So all ranks see
    the same norm, and agree on whether to skip. `ema` are float32 averages, one for each parameter, or None."""

    def __init__(self, optimizer: nn.Cell, ema: ParameterTuple | None, settings: Settings):
        super().__init__(auto_prefix=False)
        self.optimizer, self.ema, self.d = optimizer, ema, optimizer.found
        self.parameters = optimizer.parameters
        self.max_grad_norm = settings.max_grad_norm
        self.accumulation = settings.gradient_accumulation_steps
        self.scaled = settings.loss_scale is not None
        self.loss_scale = Parameter(
            Tensor(settings.loss_scale or 1.0, ms.float32), name="loss_scale", requires_grad=False
        )
        self.good_steps = Parameter(Tensor(0.0, ms.float32), name="good_steps", requires_grad=False)
        self.one = Tensor(1.0, ms.float32)
        self.taken = Parameter(Tensor(0.0, ms.float32), name="taken", requires_grad=False)
        self.overflows = Parameter(Tensor(0.0, ms.float32), name="overflows", requires_grad=False)
        self.map = ops.HyperMap()
        self.in_turns = InTurns(self.parameters)
        self.sum_of_squares = forms.chosen().SumOfSquares()
        self.ranks = settings.ranks
        if self.ranks > 1:
            self.reduce = _Reduce(optimizer, settings.rank, self.ranks)
            self.all_reduce = ops.AllReduce()
        self.multiplies = self.scaled or self.accumulation > 1 or self.max_grad_norm > 0

    def construct(self, loss, gradients, lr):
        """-> (6,) float32, an Outcome; (7,) with d"""
        return self.apply(*self.reduced(loss, gradients), lr)

    def reduced(self, loss, gradients):
        """-> the sum of the losses over the ranks, that of the gradients as _Reduce keeps it, and its sum of squares"""
        if self.ranks > 1:
            return self.all_reduce(loss.reshape(1)).reshape(()), *self.reduce(gradients, loss)
        return loss, gradients, self._squares(gradients, loss)

    def apply(self, loss, gradients, squares, lr):
        """`reduced`'s results -> what `construct` gives"""
        factor = 1.0 / (self.loss_scale * self.accumulation * self.ranks)
        loss = loss * factor
        norm = ops.sqrt(squares) * factor
        finite = ops.isfinite(norm)
        if self.max_grad_norm > 0:
            # torch.nn.utils.clip_grad_norm_ has the same 1e-6
            factor = factor * ops.minimum(self.max_grad_norm / (norm + 1e-6), self.one)
        if self.ranks > 1:  # a kernel a bucket
            gradients = self.reduce.parts(gradients, factor)
        if self.ranks > 1 or not self.multiplies:
            factor = None
        if not self.scaled:
            self.optimizer(gradients, lr, factor)
        else:
            if finite:  # a branch of the graph: the host waits for this number
                self.optimizer(gradients, lr, factor)
            self._rescale(finite)
        taken = ops.assign_add(self.taken, self.one)
        found = (loss, norm, finite, self.loss_scale, self.overflows, taken)
        if self.d is not None:
            found += (self.d,)
        return ops.Concat()(self.map(_scalar, found))

    def _squares(self, gradients, turn):
        total, now = 0.0, turn
        for start, stop in self.in_turns.ranges:
            total = total + self.sum_of_squares(self.map(ops.partial(_after, now), gradients[start:stop]))
            now = ops.depend(turn, total)
        return total

    def _rescale(self, finite):
        """An overflow halves the loss scale (not below 1); GROWTH_STEPS steps in a row without one double it."""
        good = ops.select(finite, self.good_steps + 1.0, ops.zeros_like(self.good_steps))
        grow = good >= GROWTH_STEPS
        ops.assign_add(self.overflows, ops.select(finite, ops.zeros_like(self.one), self.one))
        scale = ops.select(finite, self.loss_scale, ops.maximum(self.loss_scale * 0.5, Tensor(1.0, ms.float32)))
        ops.assign(self.loss_scale, ops.select(grow, scale * 2.0, scale))
        ops.assign(self.good_steps, ops.select(grow, ops.zeros_like(good), good))


class _Graph(nn.Cell):
    """A cell that is called step after step. MindSpore 2.10.0 tells each cell in it the graph's phase again at every
    call, some 10 ms for a thousand cells."""

    @property
    def compile_phase(self):
        return self._compile_phase

    @compile_phase.setter
    def compile_phase(self, value):
        if value != self._compile_phase:
            nn.Cell.compile_phase.fset(self, value)


class TrainStep(_Graph):
    """A step of one micro-batch, in a single graph."""

    def __init__(self, sample_loss: SampleLoss, update: Update):
        super().__init__(auto_prefix=False)
        self.update = update
        # As a child, so that the UNet's parameters are this cell's: of others a graph from the compile cache has
        # copies.
        self.scaled_loss = _ScaledLoss(sample_loss)
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, update.parameters)

    def construct(self, x_t, timesteps, context, vector, target, weight, lr):
        loss, gradients = self.value_and_grad(x_t, timesteps, context, vector, target, weight, self.update.loss_scale)
        return self.update(loss, gradients, lr)


class Gradients(_Graph):
    """The first part of TrainStep, which depends on the bucket: loss and gradients of a micro-batch, summed over the
    ranks while the backward pass goes on. Its results are for Apply."""

    def __init__(self, sample_loss: SampleLoss, update: Update):
        super().__init__(auto_prefix=False)
        self.update = update
        self.scaled_loss = _ScaledLoss(sample_loss)  # as a child, as in TrainStep
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, update.parameters)

    def construct(self, x_t, timesteps, context, vector, target, weight):
        loss, gradients = self.value_and_grad(x_t, timesteps, context, vector, target, weight, self.update.loss_scale)
        loss, gradients, squares = self.update.reduced(loss, gradients)
        return loss, squares, *gradients


class Apply(_Graph):
    """The second part of TrainStep, which is the same for all buckets."""

    def __init__(self, update: Update):
        super().__init__(auto_prefix=False)
        self.update = update

    def construct(self, lr, loss, squares, *gradients):
        return self.update.apply(loss, gradients, squares, lr)


class Accumulate(_Graph):
    """Adds one micro-batch's gradients and loss to float32 totals."""

    def __init__(self, sample_loss: SampleLoss, update: Update):
        super().__init__(auto_prefix=False)
        self.loss_scale = update.loss_scale
        self.scaled_loss = _ScaledLoss(sample_loss)  # as a child, as in TrainStep
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, update.parameters)
        self.totals = ParameterTuple(
            Parameter(ops.zeros(p.shape, ms.float32), name=f"total.{p.name}", requires_grad=False)
            for p in update.parameters
        )
        self.loss = Parameter(Tensor(0.0, ms.float32), name="total_loss", requires_grad=False)
        self.map = ops.HyperMap()

    def construct(self, x_t, timesteps, context, vector, target, weight):
        loss, gradients = self.value_and_grad(x_t, timesteps, context, vector, target, weight, self.loss_scale)
        self.map(_add, self.totals, gradients)
        return ops.assign_add(self.loss, loss)


class Boundary(_Graph):
    """The step after the last micro-batch: updates with the totals, and sets them to zero."""

    def __init__(self, accumulate: Accumulate, update: Update):
        super().__init__(auto_prefix=False)
        self.update, self.totals, self.loss = update, accumulate.totals, accumulate.loss
        self.in_turns = InTurns(update.parameters)

    def construct(self, lr):
        result = self.update(self.loss, self.totals, lr)
        zeroed = (self.in_turns(_zero, (), lr, self.totals), ops.assign(self.loss, ops.zeros_like(self.loss)))
        return ops.depend(result, zeroed)


class Average(_Graph):
    """Moves the averages towards the new weights, after a step that was applied.

    A graph of its own: in one with the step MindSpore 2.10.0 copies every parameter twice, 20 GB at full size, because
    weights are read on both sides of their update."""

    def __init__(self, update: Update):
        super().__init__(auto_prefix=False)
        self.averages, self.parameters = update.ema, update.parameters
        self.in_turns = InTurns(update.parameters)
        self.finite = Outcome._fields.index("finite")

    def construct(self, outcome, ema_decay):
        weight = (1.0 - ema_decay) * outcome[self.finite]
        return self.in_turns(_average, weight, weight, self.averages, self.parameters)


def average_of(parameters) -> ParameterTuple:
    """EMA weights that start as float32 copies of `parameters`."""

    def copy(parameter):
        if parameter.dtype == ms.float32:
            return parameter.value().copy()
        return ops.cast(parameter, ms.float32)

    return ParameterTuple(Parameter(copy(p), name=f"ema.{p.name}", requires_grad=False) for p in parameters)
