"""The loss on held-out pictures over a grid of fixed timesteps and fixed noise, so that it can be compared between runs
and over time: pictures, noise and timesteps depend on the pictures' contents alone, not on seed, step or ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
from pipeline.device import Device

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from pipeline import progress
from pipeline.cache.reading.reader import Reader
from pipeline.diffusion import draws, loss, schedule
from pipeline.models import forms
from pipeline.training.compiled import Compiler
from pipeline.training.feed import conditions, latents, size
from pipeline.training.optimizers.rounding import assign
from pipeline.training.step import SampleLoss, Settings, Update


@dataclass(frozen=True)
class Grid:
    """At which noise the loss is taken."""

    timesteps: list[int]
    prediction: str
    alphas: np.ndarray  # (1000,) alphas_cumprod
    scaling_factor: float  # from the VAE's latents to the UNet's
    shift_factor: float = 0.0
    mask_floor: float = 0.0
    flow_shift: float = 1.0

    def at(self, timestep: int) -> float:
        """Where the loss of one of the timesteps is taken: of a flow as far towards the noise as the steps of training
        and sampling are moved."""
        return schedule.shifted(timestep / schedule.STEPS, self.flow_shift) * schedule.STEPS


def batches(reader: Reader, held_out: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of held-out samples, each of one bucket, (size,) int64 with -1 for padding."""
    found = []
    for bucket in np.unique(reader.buckets[held_out], axis=0):
        members = held_out[(reader.buckets[held_out] == bucket).all(1)]
        members = np.concatenate([members, np.full(-len(members) % size, -1, np.int64)])
        found += list(members.reshape(-1, size))
    return found


class Evaluator:
    """The function of x_t, timesteps, context, vector, target, and with masks weight, as arrays that gives the (b,) mean
    squared errors."""

    def __init__(self, unet: nn.Cell, compiler: Compiler):
        self.sample_loss, self.compiler = SampleLoss(unet, Settings()), compiler
        self.compiled = set()  # shapes of latents

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        inputs = tuple(map(ms.Tensor, arrays))
        if inputs[0].shape not in self.compiled:
            # The ranks meet the buckets in other orders here, and there is no collective in it.
            self.compiler(self.sample_loss, f"validation {size(arrays[0])}", *inputs, together=False)
            self.compiled.add(inputs[0].shape)
        return self.sample_loss(*inputs).asnumpy()


def _identity(parameter):
    if parameter.dtype == ms.bfloat16:  # which a CPU's Identity does not know
        return ops.cast(parameter, ms.float32)
    return ops.auto_generate.Identity()(parameter)


def _clone(parameter):
    return ops.auto_generate.Clone()(parameter)


class _Replace(nn.Cell):
    """Gives copies of the `parameters`, which then have the values of `others`."""

    def __init__(self, parameters, others):
        super().__init__(auto_prefix=False)
        self.parameters, self.others = parameters, others
        self.map = ops.HyperMap()
        # each has a kernel on its target only, or copies nothing on the other
        self.copy = _identity if forms.on_cpu() else _clone

    def construct(self):
        copies = self.map(self.copy, self.parameters)
        others = ops.depend(self.others, copies)
        return ops.depend(copies, self.map(assign, self.parameters, others))


class _PutBack(nn.Cell):
    """Gives the `parameters` the values of the inputs."""

    def __init__(self, parameters):
        super().__init__(auto_prefix=False)
        self.parameters = parameters
        self.map = ops.HyperMap()

    def construct(self, *values):
        return ops.depend(0, self.map(assign, self.parameters, values))


class Swap:
    """In a block of `averaged` the parameters have the averages' values. On the device: the weights do not cross over
    to the host and back."""

    def __init__(self, update: Update, compiler: Compiler):
        self.replace, self.put_back = _Replace(update.parameters, update.ema), _PutBack(update.parameters)
        self.compiler, self.compiled = compiler, False

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if not self.compiled:
            self.compiler(self.replace, "average to weights")
        values = self.replace()
        if not self.compiled:
            self.compiler(self.put_back, "weights back", *values)
            self.compiled = True
        try:
            yield
        finally:
            self.put_back(*values)


def validator(
    unet: nn.Cell, update: Update, compiler: Compiler, reader: Reader, held_out: np.ndarray, grid: Grid, size: int,
    device: Device,
) -> Callable[[], dict[str, float]]:  # fmt: skip
    """-> function that gives the present weights' losses over the `held_out` samples, and their averages' loss, by the
    names of their curves. All ranks call it together."""
    evaluate, swap = Evaluator(unet, compiler), Swap(update, compiler) if update.ema is not None else None

    def means() -> np.ndarray:
        sums = losses(evaluate, reader, held_out, grid, size, device.rank, device.world_size)
        return device.all_reduce(sums) / len(held_out)

    def validate() -> dict[str, float]:
        found = means()
        values = {"validation/loss": float(found.mean())}
        values |= {f"validation/loss_t{t}": float(value) for t, value in zip(grid.timesteps, found, strict=True)}
        if swap is not None:
            with swap.averaged():
                values["validation/ema_loss"] = float(means().mean())
        return values

    return validate


def losses(
    sample_loss: Callable, reader: Reader, held_out: np.ndarray, grid: Grid, size: int, rank: int, ranks: int
) -> np.ndarray:
    """(timesteps,) float64: this rank's part of the sum over held-out samples of the mean squared error at each of the
    grid's timesteps, weighted by the masks.

    `sample_loss` is an evaluator's function. The latents are the means of the cached posteriors."""
    total = np.zeros(len(grid.timesteps))
    mine = batches(reader, held_out, size)[rank::ranks]
    bar = progress.Bar(len(mine) * len(grid.timesteps), "batch", "validation", leave=False)
    for samples in mine:
        real = samples >= 0
        filled = np.where(real, samples, samples[0])
        batch = reader.still(filled)
        x_0 = latents(batch, None, grid.scaling_factor, grid.shift_factor)
        context, vector = conditions(batch)
        weights = () if batch.masks is None else (loss.masked(np.ones(size), batch.masks, grid.mask_floor),)
        keys = np.ascontiguousarray(reader.names[filled][:, :8]).view(np.uint64)[:, 0]
        for place, timestep in enumerate(grid.timesteps):
            noise = draws.normal(0, draws.VALIDATION, timestep, keys, x_0.shape[1:])
            t = np.full(size, grid.at(timestep) if grid.prediction == "flow" else timestep)
            mixture = schedule.mixture(grid.prediction, t, grid.alphas)
            x_t = schedule.add_noise(x_0, noise, *mixture)
            target = schedule.target(grid.prediction, x_0, noise, *mixture)
            found = sample_loss(x_t, t.astype(np.float32), context, vector, target, *weights)
            total[place] += found[real].astype(np.float64).sum()
            bar.update()
    bar.close()
    return total
