"""The loss on held-out pictures over a grid of fixed timesteps and fixed noise, so that it can be compared between runs
and over time: pictures, noise and timesteps depend on the pictures' contents alone, not on seed, step or ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import mindspore as ms
import numpy as np
from mindspore import nn

from pipeline.cache.reader import Reader
from pipeline.diffusion import conditioning, draws, schedule
from pipeline.training.feed import Inputs, latents
from pipeline.training.step import SampleLoss, Settings


@dataclass(frozen=True)
class Grid:
    """At which noise the loss is taken."""

    timesteps: list[int]
    prediction: str
    scaling_factor: float  # from the VAE's latents to the UNet's
    alphas: np.ndarray  # (1000,) alphas_cumprod


def batches(reader: Reader, held_out: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of held-out samples, each of one bucket, (size,) int64 with -1 for padding."""
    found = []
    for bucket in np.unique(reader.buckets[held_out], axis=0):
        members = held_out[(reader.buckets[held_out] == bucket).all(1)]
        members = np.concatenate([members, np.full(-len(members) % size, -1, np.int64)])
        found += list(members.reshape(-1, size))
    return found


class Evaluator:
    """The function of x_t, timesteps, context, vector, target as arrays that gives the (b,) mean squared errors."""

    def __init__(self, unet: nn.Cell):
        self.sample_loss = SampleLoss(unet, Settings())

    def compile(self, example: Inputs) -> None:
        """Compile for inputs of these shapes, and run nothing."""
        self.sample_loss.compile(*map(ms.Tensor, example.arrays()[:5]))

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        return self.sample_loss(*map(ms.Tensor, arrays)).asnumpy()


@contextmanager
def swapped(parameters, others) -> Iterator[None]:
    """In the block the `parameters` have the values of `others`."""
    values = [parameter.asnumpy().copy() for parameter in parameters]
    try:
        for parameter, other in zip(parameters, others, strict=True):
            parameter.set_data(ms.Tensor(other.asnumpy(), parameter.dtype))
        yield
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.set_data(ms.Tensor(value))


def losses(
    sample_loss: Callable, reader: Reader, held_out: np.ndarray, grid: Grid, size: int, rank: int, ranks: int
) -> np.ndarray:
    """(timesteps,) float64: this rank's part of the sum over held-out samples of the mean squared error at each
    timestep.

    `sample_loss` is an evaluator's function. The latents are the means of the cached posteriors."""
    total = np.zeros(len(grid.timesteps))
    for samples in batches(reader, held_out, size)[rank::ranks]:
        real = samples >= 0
        filled = np.where(real, samples, samples[0])
        batch = reader.read(filled, epoch=0, seed=0)
        x_0 = latents(batch, None, grid.scaling_factor)
        context = batch.context.astype(np.float32)
        vector = conditioning.vector(batch.pooled, batch.time_ids)
        keys = np.ascontiguousarray(reader.names[filled][:, :8]).view(np.uint64)[:, 0]
        for place, timestep in enumerate(grid.timesteps):
            noise = draws.normal(0, draws.VALIDATION, timestep, keys, x_0.shape[1:])
            t = np.full(size, timestep, np.int32)
            x_t = schedule.add_noise(x_0, noise, grid.alphas[t])
            target = schedule.target(grid.prediction, x_0, noise, grid.alphas[t])
            total[place] += sample_loss(x_t, t, context, vector, target)[real].astype(np.float64).sum()
    return total
