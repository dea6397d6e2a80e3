"""From steps to results: one graph launch a step, or on Ascend by data sink, where the host only looks in every few steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pipeline.device
import mindspore as ms
import numpy as np
from mindspore import nn

from pipeline.stage import StageError
from pipeline.training import feed
from pipeline.training.step import Accumulate, Boundary, SampleLoss, Settings, TrainStep, Update

Rates = Callable[[int], tuple[float, float]]  # of a step's number: its learning rate and EMA decay


@dataclass(frozen=True)
class Result:
    """Of one step, or of the last step of a sink."""

    done: int  # steps done by now
    steps: int  # of which this many since the last result
    samples: np.ndarray  # (global_batch,) sample indices of the step, -1 for padding
    loss: float
    norm: float  # of the gradients, before clipping
    finite: bool  # whether the gradients were, and so were applied
    learning_rate: float
    waited: float  # seconds for data


def results(unet: nn.Cell, update: Update, settings: Settings, steps: feed.Steps, rates: Rates, sink_size: int) -> Iterator[Result]:
    """Take all `steps`; `sink_size` of them between two results, 0 for no sink."""
    sample_loss = SampleLoss(unet, settings)
    if sink_size:
        return _sunk(TrainStep(sample_loss, update), update, steps, rates, sink_size)
    if settings.gradient_accumulation_steps == 1:
        whole = TrainStep(sample_loss, update)
        return _one_by_one(lambda micro_batches, *scalars: whole(*map(ms.Tensor, micro_batches[0].arrays()), *scalars), steps, rates)
    accumulate = Accumulate(sample_loss, update)
    boundary = Boundary(accumulate, update)

    def take(micro_batches, *scalars):
        for micro_batch in micro_batches:
            accumulate(*map(ms.Tensor, micro_batch.arrays()))
        return boundary(*scalars)

    return _one_by_one(take, steps, rates)


def _one_by_one(take: Callable, steps: feed.Steps, rates: Rates) -> Iterator[Result]:
    asked = time.perf_counter()
    for step in feed.ahead(steps):
        waited = time.perf_counter() - asked
        rate, decay = rates(step.number)
        outputs = take(step.micro_batches, ms.Tensor(rate, ms.float32), ms.Tensor(decay, ms.float32))
        yield Result(step.number + 1, 1, step.samples, *(output.asnumpy().item() for output in outputs), rate, waited)
        asked = time.perf_counter()


class _Columns:
    """Steps as a data set of MindSpore: (x_t, timesteps, context, vector, target, weight, learning rate, EMA decay)."""

    NAMES = ["x_t", "timesteps", "context", "vector", "target", "weight", "learning_rate", "ema_decay"]

    def __init__(self, steps: feed.Steps, rates: Rates):
        self.steps, self.rates = steps, rates

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        step = self.steps[int(index)]
        return *step.micro_batches[0].arrays(), *(np.array(value, np.float32) for value in self.rates(step.number))


def _sunk(whole: TrainStep, update: Update, steps: feed.Steps, rates: Rates, sink_size: int) -> Iterator[Result]:
    columns = _Columns(steps, rates)
    take = pipeline.device.sink(whole, columns, _Columns.NAMES)
    done = steps.first
    while done < steps.end:
        count = min(sink_size, steps.end - done)  # the remainder of the run is a shorter sink
        for _ in range(count):
            outputs = take()
        done += count
        values = [output.asnumpy().item() for output in outputs]
        taken = int(update.taken.asnumpy())
        if taken != done:
            raise StageError(f"the device took {taken} steps and the host counted {done}: set device.sink_size to 0")
        samples = steps.samples(done - 1)
        yield Result(done, count, samples, *values, rates(done - 1)[0], 0.0)
