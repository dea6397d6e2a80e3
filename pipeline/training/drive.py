"""From steps to results: one graph launch a step, or on Ascend by data sink, where the host only looks in every few
steps."""

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


class Graphs:
    """The graphs of a step: a single one, or with micro-batches one for each of them and one at their end."""

    def __init__(self, unet: nn.Cell, update: Update, settings: Settings):
        sample_loss = SampleLoss(unet, settings)
        self.update = update
        self.whole = self.accumulate = self.boundary = None
        if settings.gradient_accumulation_steps == 1:
            self.whole = TrainStep(sample_loss, update)
        else:
            self.accumulate = Accumulate(sample_loss, update)
            self.boundary = Boundary(self.accumulate, update)

    def compile(self, example: feed.Inputs) -> None:
        """Compile for inputs of these shapes, and run nothing."""
        inputs, scalars = map(ms.Tensor, example.arrays()), [ms.Tensor(0.0, ms.float32)] * 2
        if self.whole:
            self.whole.compile(*inputs, *scalars)
        else:
            self.accumulate.compile(*inputs)
            self.boundary.compile(*scalars)

    def take(self, micro_batches: list[feed.Inputs], rate: float, decay: float) -> tuple[float, float, bool]:
        """One step: loss, gradient norm, whether the gradients were finite."""
        scalars = ms.Tensor(rate, ms.float32), ms.Tensor(decay, ms.float32)
        if self.whole:
            outputs = self.whole(*map(ms.Tensor, micro_batches[0].arrays()), *scalars)
        else:
            for micro_batch in micro_batches:
                self.accumulate(*map(ms.Tensor, micro_batch.arrays()))
            outputs = self.boundary(*scalars)
        return tuple(output.asnumpy().item() for output in outputs)


def results(graphs: Graphs, steps: feed.Steps, rates: Rates, sink_size: int) -> Iterator[Result]:
    """Take all `steps`; `sink_size` of them between two results, 0 for no sink."""
    return _sunk(graphs, steps, rates, sink_size) if sink_size else _one_by_one(graphs, steps, rates)


def _one_by_one(graphs: Graphs, steps: feed.Steps, rates: Rates) -> Iterator[Result]:
    asked = time.perf_counter()
    for step in feed.ahead(steps):
        waited = time.perf_counter() - asked
        rate, decay = rates(step.number)
        yield Result(step.number + 1, 1, step.samples, *graphs.take(step.micro_batches, rate, decay), rate, waited)
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


def _sunk(graphs: Graphs, steps: feed.Steps, rates: Rates, sink_size: int) -> Iterator[Result]:
    take = pipeline.device.sink(graphs.whole, _Columns(steps, rates), _Columns.NAMES)
    done = steps.first
    while done < steps.end:
        count = min(sink_size, steps.end - done)  # the remainder of the run is a shorter sink
        for _ in range(count):
            outputs = take()
        done += count
        values = [output.asnumpy().item() for output in outputs]
        taken = int(graphs.update.taken.asnumpy())
        if taken != done:
            raise StageError(f"the device took {taken} steps and the host counted {done}: set device.sink_size to 0")
        samples = steps.samples(done - 1)
        yield Result(done, count, samples, *values, rates(done - 1)[0], 0.0)
