"""The device's boundary to MindSpore: calls against its own signatures, and on stubs of what only an NPU has."""

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pipeline.device
import mindspore as ms
import pytest

from pipeline.device import Device
from pipeline.stage import PROJECT


@pytest.fixture
def calls(monkeypatch):
    """Every call to MindSpore that sets an NPU up, in order; nothing is really set."""
    found = []

    def record(name):
        return lambda *args, **kwargs: found.append((name, args, kwargs))

    for name in ("set_device", "set_context", "set_deterministic"):
        monkeypatch.setattr(ms, name, record(name))
    monkeypatch.setattr(ms.runtime, "set_memory", record("set_memory"))
    for name in ("precision_mode", "conv_allow_hf32", "matmul_allow_hf32"):
        monkeypatch.setattr(ms.device_context.ascend.op_precision, name, record(name))
    return found


REAL = {
    "set_device": ms.set_device,
    "set_memory": ms.runtime.set_memory,
    "precision_mode": ms.device_context.ascend.op_precision.precision_mode,
    "conv_allow_hf32": ms.device_context.ascend.op_precision.conv_allow_hf32,
    "matmul_allow_hf32": ms.device_context.ascend.op_precision.matmul_allow_hf32,
    "set_deterministic": ms.set_deterministic,
    "set_context": ms.set_context,
}


def test_an_npu_is_set_up_with_calls_that_mindspore_has(calls):
    device = pipeline.device.setup("Ascend", jit_level="O1", max_device_memory="59GB", sink_size=10)
    assert device == Device("Ascend", 0, 1, "auto", 10, "O1") and device.ascend
    for name, args, kwargs in calls:
        inspect.signature(REAL[name]).bind(*args, **kwargs)
    assert calls == [
        ("set_device", ("Ascend", 0), {}),
        ("set_memory", (), {"max_size": "59GB"}),
        ("precision_mode", ("must_keep_origin_dtype",), {}),
        ("conv_allow_hf32", (False,), {}),
        ("matmul_allow_hf32", (False,), {}),
        ("set_context", (), {"mode": ms.GRAPH_MODE, "jit_config": {"jit_level": "O1"}}),
        ("set_deterministic", (True,), {}),
    ]


def test_a_memory_limit_is_in_the_form_that_mindspore_takes():
    assert "GB" in inspect.signature(ms.runtime.set_memory).parameters["max_size"].default


@pytest.mark.parametrize(
    ("environment", "joins", "wanted"),
    [
        ({"DEVICE_ID": "3", "MS_ROLE": "MS_WORKER"}, True, ("Ascend",)),
        ({"DEVICE_ID": "3"}, True, ("Ascend", 3)),
        # ranks that fill a cache together join no group, and must not meet on one NPU
        ({"DEVICE_ID": "3", "MS_ROLE": "MS_WORKER", "RANK_ID": "3"}, False, ("Ascend", 3)),
        ({"RANK_ID": "11"}, False, ("Ascend", 3)),
        ({}, False, ("Ascend", 0)),
    ],
)
def test_only_a_joining_process_of_msrun_leaves_the_npu_to_mindspore(calls, monkeypatch, environment, joins, wanted):
    for name in ("DEVICE_ID", "MS_ROLE", "RANK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ms.device_context.ascend, "device_count", lambda: 8)
    monkeypatch.setattr(pipeline.device, "_join", lambda: (0, 1))
    pipeline.device.setup("Ascend", distributed=joins)
    assert calls[0][1] == wanted


def test_a_cpu_is_given_no_call_of_an_npu(calls):
    assert pipeline.device.setup("CPU", jit_level="O1") == Device("CPU")
    assert [name for name, _, _ in calls] == ["set_device", "set_context", "set_deterministic"]
    assert calls[1][2]["jit_config"] == {"jit_level": "O0"}


@pytest.mark.parametrize(
    ("target", "wish", "precision", "kind"),
    [
        ("CPU", "auto", "float32", "tiled"),
        ("Ascend", "auto", "float32", "tiled"),
        ("Ascend", "auto", "bfloat16", "flash"),
        ("Ascend", "auto", "float16", "flash"),
        ("Ascend", "plain", "float16", "plain"),
        ("Ascend", "flash_padded", "float16", "flash_padded"),
    ],
)
def test_which_attention(target, wish, precision, kind):
    assert Device(target, attention=wish).attention_kind(precision) == kind


def test_the_scheduler_joins_and_ends(calls, monkeypatch):
    joined = []
    monkeypatch.setattr(pipeline.device.communication, "init", lambda: joined.append(True))
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with pytest.raises(SystemExit) as end:
        pipeline.device.setup("CPU", distributed=True)
    assert joined and end.value.code == 0


def test_a_rank_joins_for_data_parallel_training(calls, monkeypatch):
    said = {}
    monkeypatch.setattr(
        pipeline.device,
        "communication",
        SimpleNamespace(init=lambda: None, get_rank=lambda: 3, get_group_size=lambda: 8),
    )
    monkeypatch.setattr(ms, "set_auto_parallel_context", lambda **kwargs: said.update(kwargs))
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    device = pipeline.device.setup("CPU", distributed=True)
    assert (device.rank, device.world_size) == (3, 8)
    assert said == {"parallel_mode": "data_parallel", "gradients_mean": True}


def test_lazy_inline_is_for_ascend_only(monkeypatch):
    class Block(ms.nn.Cell):
        @pipeline.device.lazy_inline
        def __init__(self, width):
            super().__init__()
            self.width = width

    assert not hasattr(Block(3), "cell_init_args")
    monkeypatch.setattr(ms, "get_context", lambda key: "Ascend")
    assert "Block" in Block(3).cell_init_args  # what marks a cell as shared


def test_the_sink_is_asked_for_as_mindspore_has_it(monkeypatch):
    asked = {}

    def data_sink(*args, **kwargs):
        asked.update(inspect.signature(real).bind(*args, **kwargs).arguments)

    real = ms.data_sink
    monkeypatch.setattr(ms, "data_sink", data_sink)
    rows = [(np.full((2, 3), n, np.float32), np.array(n, np.float32)) for n in range(5)]
    step = object()
    pipeline.device.sink(step, rows, ["x", "rate"])
    # one step per call of it; a jit_config would loop on the device as well
    assert asked["fn"] is step and asked["sink_size"] == 1 and asked["jit_config"] is None
    assert [(t.shape, t.dtype) for t in asked["input_signature"]] == [((2, 3), ms.float32), ((), ms.float32)]
    dataset = asked["dataset"]
    assert dataset.get_dataset_size() == 5
    for n, (x, rate) in enumerate(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)):
        assert (x == n).all() and rate == n and rate.shape == ()


def test_a_cpu_has_no_data_sink(device):
    with pytest.raises(ValueError, match="ascend"):
        pipeline.device.sink(lambda x: x, [(np.zeros(1, np.float32),)], ["x"])


def test_the_environment_is_set_before_mindspore_is_imported():
    script = "import pipeline.device, os; print(os.environ['ONEDNN_MAX_CPU_ISA'], os.environ['OMP_WAIT_POLICY'])"
    clean = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY")}
    found = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["AVX2", "passive"]
    source = inspect.getsource(pipeline.device)
    assert source.index("ONEDNN_MAX_CPU_ISA") < source.index("import mindspore")


def test_the_train_stage_alone_lets_onednn_use_avx512():
    script = """
import os, sys
from types import ModuleType
run = ModuleType("run")
run.fine_tune = lambda *arguments: print(os.environ["ONEDNN_MAX_CPU_ISA"])
sys.modules["pipeline.training.run"] = run
from pipeline.params import load
from stages import train
train.open_data = train.count_steps = lambda *arguments: None
train.key.training = lambda *arguments: train.key.Training({}, {})
train.finished.take = lambda *arguments: False
train.main(load())
"""
    clean = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    found = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, cwd=PROJECT)
    assert found.stdout.split() == ["DEFAULT"], found.stderr
