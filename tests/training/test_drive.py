"""When the host reads a step's results, on stubs of the graphs: late, seldom, and never beyond where it looks."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.stage import StageError
from pipeline.training import drive
from pipeline.training.feed import Inputs, Step
from pipeline.training.step import Settings


class Device:
    """Stands for the graphs; notes in `events` what was launched and what was read."""

    def __init__(self, first=0, counted_twice=False):
        self.events, self.taken, self.each = [], first, 2 if counted_twice else 1
        self.compiler = SimpleNamespace(seconds=0.0)

    def compile(self, example):
        pass

    def end(self, outcome, decay):
        return outcome

    def take(self, micro_batches, rate, decay):
        self.taken += self.each
        number, taken = self.taken, self.taken
        self.events.append(f"launch {number}")

        def asnumpy():
            self.events.append(f"read {number}")
            return np.array([number / 8, 2 * number, 1, 1, 0, taken], np.float32)

        return SimpleNamespace(asnumpy=asnumpy)


class Steps(list):
    def __init__(self, first, end):
        super().__init__(Step(number, np.array([number, -1]), [None]) for number in range(first, end))
        self.first, self.end = first, end

    def begin(self, index):
        return lambda: self[index]

    def samples(self, number):
        return self[number - self.first].samples


def taken(first, end, log_interval, looks, sink_size=0, monkeypatch=None, device=None):
    device = device or Device(first)
    device.whole = None
    if sink_size:
        monkeypatch.setattr(drive.pipeline.device, "sink", lambda *_: lambda: device.take([], 0, 0))
    results = []
    for result in drive.results(
        device, Steps(first, end), lambda number: (number / 2, 0.0), sink_size, log_interval,
        lambda launch: any(drive.passed(interval, launch) for interval in looks),
    ):  # fmt: skip
        device.events.append(f"result {result.done}")
        results.append(result)
    return device.events, results


def test_a_result_is_read_when_the_next_step_is_launched():
    events, results = taken(0, 3, 1, [])
    assert events == [
        "launch 1", "launch 2", "read 1", "result 1", "launch 3", "read 2", "read 3", "result 2", "result 3",
    ]  # fmt: skip
    assert [r.outcome.loss for r in results] == [1 / 8, 2 / 8, 3 / 8]
    assert [r.learning_rate for r in results] == [0, 0.5, 1]
    assert [r.samples[0] for r in results] == [0, 1, 2]
    assert all(r.seconds > 0 and r.steps == 1 for r in results)


def inputs(bucket: int) -> Inputs:
    x = np.zeros((1, 4, 2, 2 + 2 * bucket), np.float32)
    return Inputs(x, *np.zeros((3, 1), np.float32), x, np.zeros(1, np.float32))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_buckets_and_micro_batches_are_launched_without_a_look(monkeypatch, accumulation):
    """The real driver of the graphs over cells that note what is asked of them: each shape is compiled once, and within a
    step and before the next one's launch nothing is read, neither of a micro-batch."""
    events = []

    def cell(name, result):
        def call(*given):
            events.append(f"{name} {given[0].shape[-1] // 2}" if name == "gradients" else name)
            return result()

        return lambda *made: call

    def unread():
        return SimpleNamespace(asnumpy=lambda: pytest.fail("a micro-batch was read"))

    taken = iter(range(1, 10))

    def outcome():
        number = next(taken)

        def asnumpy():
            events.append(f"read {number}")
            return np.array([0, 0, 1, 1, 0, number], np.float32)

        return SimpleNamespace(asnumpy=asnumpy)

    gradients, update = ("Accumulate", "Boundary") if accumulation > 1 else ("Gradients", "Apply")
    monkeypatch.setattr(drive, gradients, cell("gradients", unread if accumulation > 1 else lambda: [unread()] * 3))
    monkeypatch.setattr(drive, update, cell("update", outcome))
    monkeypatch.setattr(drive, "Average", cell("average", unread))
    monkeypatch.setattr(drive, "SampleLoss", lambda *made: None)

    class Compiler:
        seconds = 0.0

        def __call__(self, cell, name, *given, **settings):
            events.append(f"compiles {name}")

    settings = Settings(gradient_accumulation_steps=accumulation)
    graphs = drive.Graphs(None, SimpleNamespace(d=None, ema=()), settings, Compiler(), sinks=False)
    steps = Steps(0, 3)
    steps[:] = [
        Step(step.number, step.samples, [inputs((step.number + n) % 2) for n in range(accumulation)]) for step in steps
    ]
    assert len(list(drive.results(graphs, steps, lambda number: (0.0, 0.0), 0, 1, lambda launch: False))) == 3
    step = ["gradients 1", "update", "average"]
    if accumulation == 1:
        first = ["compiles gradients 16x16", step[0], "compiles update", "compiles average", *step[1:]]
        second = ["compiles gradients 32x16", "gradients 2", *step[1:]]
        third = step
    else:
        first = ["compiles gradients 16x16", step[0], "compiles gradients 32x16", "gradients 2"]
        first += ["compiles update", "compiles average", *step[1:]]
        second, third = ["gradients 2", *step], ["gradients 1", "gradients 2", *step[1:]]
    assert events == [*first, *second, "read 1", *third, "read 2", "read 3"]


def test_what_is_not_logged_waits_for_what_is():
    events, _ = taken(0, 7, 3, [])
    assert events[:8] == ["launch 1", "launch 2", "launch 3", "launch 4", "read 1", "read 2", "read 3", "result 1"]
    assert [event for event in events if event.startswith("result")] == [f"result {n}" for n in range(1, 8)]


@pytest.mark.parametrize(("first", "log_interval"), [(0, 1), (0, 10), (3, 4)])
def test_nothing_is_launched_before_the_host_has_looked(first, log_interval):
    events, _ = taken(first, 12, log_interval, [4, 5])
    for looked in (4, 5, 8, 10, 12):
        place = events.index(f"result {looked}")
        launched = [int(event.split()[1]) for event in events[:place] if event.startswith("launch")]
        assert not launched or max(launched) == looked


def test_the_numbers_do_not_depend_on_when_they_are_read():
    wanted = [(r.done, r.outcome, r.learning_rate) for r in taken(0, 12, 1, [1])[1]]
    for log_interval, looks in ((1, []), (5, []), (5, [3]), (100, [7, 2])):
        assert [(r.done, r.outcome, r.learning_rate) for r in taken(0, 12, log_interval, looks)[1]] == wanted


def test_sinks_are_read_late_too_and_counted(monkeypatch):
    events, results = taken(0, 10, 1, [], 4, monkeypatch)
    assert [(r.done, r.steps) for r in results] == [(4, 4), (8, 4), (10, 2)]
    assert events.index("read 4") > events.index("launch 8")
    with pytest.raises(StageError, match="the device took 8 steps and the host counted 4"):
        taken(0, 10, 1, [], 4, monkeypatch, Device(counted_twice=True))


@pytest.mark.parametrize("sink_size", [0, 4])
def test_the_last_result_until_a_step(monkeypatch, sink_size):
    _, results = taken(0, 10, 1, [], sink_size, monkeypatch)
    found = {step: [r.done for r in results if drive.last_until(step, r, sink_size, 10)] for step in (3, 4, 5, 10)}
    assert found == ({3: [], 4: [4], 5: [4], 10: [10]} if sink_size else {3: [3], 4: [4], 5: [5], 10: [10]})
