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
from pipeline.training.compiled import Compiler
from pipeline.training.step import (
    Accumulate,
    Apply,
    Average,
    Boundary,
    Gradients,
    Outcome,
    SampleLoss,
    Settings,
    TrainStep,
    Update,
)

Rates = Callable[[int], tuple[float, float]]  # of a step's number: its learning rate and EMA decay


@dataclass(frozen=True)
class Result:
    """Of one step, or of the last step of a sink."""

    done: int  # steps done by now
    steps: int  # of which this many since the last result
    samples: np.ndarray  # (global_batch,) sample indices of the step, -1 for padding
    outcome: Outcome
    learning_rate: float
    waited: float  # seconds for data
    seconds: float  # of each step, the mean over those whose results came together; without compilation


@dataclass(frozen=True)
class Launch:
    """A step, or the last of a sink, that the device may not have finished."""

    done: int
    steps: int
    samples: np.ndarray
    outcome: ms.Tensor
    learning_rate: float
    waited: float


class Graphs:
    """The graphs of a step: one of the gradients for each bucket, compiled when it is first met, and one of the update;
    with micro-batches that of the gradients adds them up. A data sink has a single one for the whole step."""

    def __init__(self, unet: nn.Cell, update: Update, settings: Settings, compiler: Compiler, sinks: bool):
        sample_loss = SampleLoss(unet, settings)
        self.accumulates = settings.gradient_accumulation_steps > 1
        self.compiler = compiler
        self.compiled = set()  # shapes of latents
        self.whole = TrainStep(sample_loss, update) if sinks else None
        self.gradients = (Accumulate if self.accumulates else Gradients)(sample_loss, update)
        self.update = Boundary(self.gradients, update) if self.accumulates else Apply(update)
        self.outcome_size = len(Outcome._fields) - (update.d is None)
        self.average = Average(update) if update.ema is not None else None

    def compile(self, example: feed.Inputs) -> None:
        """Compile a data sink's graphs, and run nothing."""
        scalar = ms.Tensor(0.0, ms.float32)
        self.compiler(
            self.whole, f"step {feed.size(example.x_t)}", *map(ms.Tensor, example.arrays()), scalar, updates=True
        )
        if self.average:
            self._compile_average(scalar)

    def _compile_average(self, scalar: ms.Tensor) -> None:
        self.compiler(self.average, "average", ms.Tensor(np.zeros(self.outcome_size, np.float32)), scalar, updates=True)

    def take(self, micro_batches: list[feed.Inputs], rate: float, decay: float) -> ms.Tensor:
        """One step: launches it, and gives its Outcome, which an NPU has yet to compute."""
        for micro_batch in micro_batches:
            inputs = tuple(map(ms.Tensor, micro_batch.arrays()))
            if inputs[0].shape not in self.compiled:
                self.compiler(self.gradients, f"gradients {feed.size(micro_batch.x_t)}", *inputs)
                self.compiled.add(inputs[0].shape)
            found = self.gradients(*inputs)
        inputs = (ms.Tensor(rate, ms.float32), *(() if self.accumulates else found))
        if "update" not in self.compiled:
            self.compiler(self.update, "update", *inputs, updates=True)
            if self.average:
                self._compile_average(inputs[0])
            self.compiled.add("update")
        return self.end(self.update(*inputs), decay)

    def end(self, outcome: ms.Tensor, decay: float) -> ms.Tensor:
        """What follows each step, also one of a data sink; gives its outcome back."""
        if self.average:
            self.average(outcome, ms.Tensor(decay, ms.float32))
        return outcome


def passed(interval: int, result: Result | Launch) -> bool:
    """Whether a multiple of `interval` (0: there is none) lies in the steps of this result (a sink may hold several)."""
    return interval > 0 and result.done // interval > (result.done - result.steps) // interval


def last_until(step: int, result: Result | Launch, sink_size: int, end: int) -> bool:
    """Whether this is the last result that is not after `step`, of a run of `end` steps."""
    following = min(result.done + max(sink_size, 1), end)
    return result.done <= step and (step < following or result.done == end)


def results(
    graphs: Graphs, steps: feed.Steps, rates: Rates, sink_size: int, log_interval: int,
    looks: Callable[[Launch], bool],
) -> Iterator[Result]:  # fmt: skip
    """Take all `steps`; `sink_size` of them between two results, 0 for no sink. The results come in order.

    They are read when the next step is launched already, so that the device does not wait for the host, and only at
    multiples of `log_interval`, those in between together with it: each enters a mean, and must be a number. Where `looks` says so of a launch, and at the end,
    nothing is launched before the last result was taken: then the host may look at weights and state."""
    launches = _sinks(graphs, steps, rates, sink_size) if sink_size else _one_by_one(graphs, steps, rates)
    waiting, begin, compiled = [], time.perf_counter(), graphs.compiler.seconds
    for launch in launches:
        waiting.append(launch)
        look = launch.done == steps.end or looks(launch)
        logged = [place for place, old in enumerate(waiting[:-1]) if passed(log_interval, old)]
        ready = len(waiting) if look else logged[-1] + 1 if logged else 0
        if ready:
            found = [Outcome(*map(float, old.outcome.asnumpy())) for old in waiting[:ready]]
            last, taken = waiting[ready - 1].done, int(found[-1].taken)
            if sink_size and taken != last:
                raise StageError(
                    f"the device took {taken} steps and the host counted {last}: set device.sink_size to 0"
                )
            count = sum(old.steps for old in waiting[:ready])
            seconds = (time.perf_counter() - begin - (graphs.compiler.seconds - compiled)) / count
            for old, outcome in zip(waiting, found, strict=False):
                yield Result(old.done, old.steps, old.samples, outcome, old.learning_rate, old.waited, seconds)
            waiting, begin, compiled = waiting[ready:], time.perf_counter(), graphs.compiler.seconds


def _one_by_one(graphs: Graphs, steps: feed.Steps, rates: Rates) -> Iterator[Launch]:
    asked = time.perf_counter()
    for finish in feed.ahead(map(steps.begin, range(len(steps)))):
        step = finish()
        waited = time.perf_counter() - asked
        rate, decay = rates(step.number)
        outcome = graphs.take(step.micro_batches, rate, decay)
        yield Launch(step.number + 1, 1, step.samples, outcome, rate, waited)
        asked = time.perf_counter()


class _Columns:
    """Steps as a data set of MindSpore: (x_t, timesteps, context, vector, target, weight, learning rate)."""

    NAMES = ["x_t", "timesteps", "context", "vector", "target", "weight", "learning_rate"]

    def __init__(self, steps: feed.Steps, rates: Rates):
        self.steps, self.rates = steps, rates

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        step = self.steps[int(index)]
        return *step.micro_batches[0].arrays(), np.array(self.rates(step.number)[0], np.float32)


def _sinks(graphs: Graphs, steps: feed.Steps, rates: Rates, sink_size: int) -> Iterator[Launch]:
    graphs.compile(steps[0].micro_batches[0])
    take = pipeline.device.sink(graphs.whole, _Columns(steps, rates), _Columns.NAMES)
    done = steps.first
    while done < steps.end:
        count = min(sink_size, steps.end - done)  # the remainder of the run is a shorter sink
        for number in range(done, done + count):
            outcome = graphs.end(take(), rates(number)[1])
        done += count
        yield Launch(done, count, steps.samples(done - 1), outcome, rates(done - 1)[0], 0.0)
