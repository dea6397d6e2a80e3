"""The loop with a data sink: the same training. MindSpore's own `data_sink` runs, over a stub of the device's queue."""

from types import SimpleNamespace

from pipeline.device import Device

import mindspore
import numpy as np
import pytest

from pipeline.stage import StageError
from pipeline.training import run
from pipeline.training.step import Settings
from tests import stub_npus
from tests.training.test_train import stubbed, workspace  # noqa: F401  (fixtures)
from tests.training.training_samples import params

SETTINGS = {
    "train.steps": 11,
    "train.ema": True,
    "train.validation_share": 0.2,
    "train.validation_interval": 4,
    "train.checkpointing_steps": 3,
    "train.log_interval": 2,
}


@pytest.fixture
def train(stubbed, device):
    """The graphs of a run without a sink are shared; a sink's is compiled each time."""
    return lambda sink_size: stubbed(Device("CPU", sink_size=sink_size, compile_cache=not sink_size), dict(SETTINGS))


@pytest.mark.parametrize("sink_size", [1, 4, 20])
def test_sinks_train_the_same_with_a_shorter_last_one(train, monkeypatch, sink_size):
    wanted = train(0)
    fetched = stub_npus.stub_sink(monkeypatch)
    found = train(sink_size)
    assert fetched == list(range(11))  # the rest of the run, once
    assert all(np.array_equal(found.weights[name], value) for name, value in wanted.weights.items())
    assert all(np.array_equal(found.ema[name], value) for name, value in wanted.ema.items())
    ends = [*range(sink_size, 11, sink_size), 11]
    # states, points and validations fall on the ends of sinks
    assert found.saved == [end for end in ends if end < 11 and end // 3 > (end - sink_size) // 3]
    assert {row["step"] for row in found.rows} <= {0, *ends} and found.rows[-1]["step"] == 11
    losses = {row["step"]: row["validation/loss"] for row in wanted.rows if "validation/loss" in row}
    for row in found.rows:
        if "validation/loss" in row and row["step"] in losses:
            assert row["validation/loss"] == losses[row["step"]]


@pytest.mark.parametrize(("sink_size", "buckets", "refused"), [(4, 2, True), (4, 1, False), (0, 2, False)])
def test_a_sink_of_pictures_of_several_sizes_is_refused(sink_size, buckets, refused):
    """Of those that are trained on: validation has graphs of its own."""
    reader = SimpleNamespace(buckets=np.array([(64, 64), (64, 64), (64, 32), (32, 64)]))
    subset, held_out = np.arange(1, 1 + buckets), np.array([3])
    data, train = SimpleNamespace(reader=reader, subset=subset, held_out=held_out), params().train

    def make():
        return run._compiler("tiny", data, Device("Ascend", sink_size=sink_size), train, Settings(), "float32")

    if refused:
        with pytest.raises(
            StageError, match=r"sink_size is 4 and the pictures have 2 sizes.*Set device\.sink_size to 0"
        ):
            make()
    else:
        # the whole step or its gradients by bucket and its update, and the loss
        assert make().count == (2 if sink_size else buckets + 2)


def test_a_device_that_took_another_number_of_steps_is_found(train, monkeypatch):
    """Were MindSpore's loop to run on the device and in Python as well."""
    stub_npus.stub_sink(monkeypatch)
    data_sink = mindspore.data_sink

    def twice(*args, **kwargs):
        take = data_sink(*args, **kwargs)
        return lambda: (take(), take())[1]

    monkeypatch.setattr(mindspore, "data_sink", twice)
    with pytest.raises(StageError, match="the device took 8 steps and the host counted 4"):
        train(4)
