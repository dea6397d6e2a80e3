"""The device's boundary to MindSpore: calls against its own signatures, and on stubs of what only an NPU has."""

import inspect
import os
import subprocess
import sys

import pipeline.device
from pipeline.device import Device

import mindspore as ms
import numpy as np
import pytest

from pipeline.stage import PROJECT, StageError
from tests import stub_npus


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """A machine of 8 NPUs; the calls to MindSpore that set one up, in order."""
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "DEVICE_ID", "RANK_ID", "RANK_SIZE", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)
    stub_npus.show(monkeypatch, tmp_path / "dev", 8)
    return stub_npus.stub_mindspore(monkeypatch)


def test_an_npu_is_set_up_with_calls_that_mindspore_has(calls):
    device = pipeline.device.setup(
        "Ascend",
        jit_level="O0",
        deterministic="auto",
        kernel_launch_group=[2, 8],
        max_device_memory="59GB",
        memory_optimize_level="O1",
        sink_size=10,
    )
    assert device == Device("Ascend", 0, 1, "auto", 10, "O0", deterministic=False) and device.ascend
    assert calls == [
        ("set_device", "Ascend", 0),
        ("set_memory", 59.0, 1),
        ("set_kernel_launch_group", 2, 8),
        ("precision_mode", "must_keep_origin_dtype"),
        ("conv_allow_hf32", False),
        ("matmul_allow_hf32", False),
        ("set_context", ms.GRAPH_MODE, {"jit_level": "O0"}),
        ("set_deterministic", False),
    ]


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [
        ({}, None),
        ({"max_device_memory": "59GB"}, (59.0, 0)),
        ({"memory_optimize_level": "O1"}, (1024.0, 1)),  # 1024GB: as much as there is
    ],
)
def test_memory_is_set_once_and_only_where_it_is_not_mindspores_own(calls, memory, wanted):
    pipeline.device.setup("Ascend", **memory)
    assert [call[1:] for call in calls if call[0] == "set_memory"] == ([wanted] if wanted else [])


@pytest.mark.parametrize("target", ["CPU", "Ascend"])
@pytest.mark.parametrize("wish", ["auto", True, False])
def test_kernels_are_deterministic_on_a_cpu_and_on_an_npu_when_wished(calls, target, wish):
    wanted = target == "CPU" if wish == "auto" else wish
    assert pipeline.device.setup(target, deterministic=wish).deterministic == wanted
    assert ("set_deterministic", wanted) in calls


def test_caches_and_pictures_are_deterministic_on_every_device(calls):
    assert pipeline.device.setup("auto").deterministic and ("set_deterministic", True) in calls


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("launcher", ["msrun", "mpirun or a rank table"])
def test_every_rank_chooses_its_npu_and_waits_long_enough_before_it_joins(calls, monkeypatch, ranks, launcher):
    for rank in range(ranks):
        environment = {"RANK_ID": rank, "RANK_SIZE": ranks, "DEVICE_ID": rank}
        for name, value in (environment | ({"MS_ROLE": "MS_WORKER"} if launcher == "msrun" else {})).items():
            monkeypatch.setenv(name, str(value))
        device = pipeline.device.setup("auto", distributed=True, deterministic="auto", memory_optimize_level="O1")
        assert (device.target, device.rank, device.world_size) == ("Ascend", rank, ranks)
        assert calls == [
            # under msrun `init` chooses
            ("set_device", "Ascend") if launcher == "msrun" else ("set_device", "Ascend", rank),
            ("set_memory", 1024.0, 1),
            ("precision_mode", "must_keep_origin_dtype"),
            ("conv_allow_hf32", False),
            ("matmul_allow_hf32", False),
            ("set_context", ms.GRAPH_MODE, {"jit_level": "O0"}),
            ("set_deterministic", False),  # its documentation: before `init`, for the collectives
            ("init", "7200", "7200"),
            ("set_auto_parallel_context", "data_parallel", True),
        ]
        calls.clear()  # each is a process of its own


def test_a_cache_process_under_msrun_takes_its_own_npu(calls, monkeypatch):
    """It joins no group, so nothing chooses for it."""
    for name, value in {"DEVICE_ID": "3", "MS_ROLE": "MS_WORKER", "RANK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    pipeline.device.setup("Ascend")
    assert calls[0] == ("set_device", "Ascend", 3)


REASON = "Load dynamic library: libmindspore_{}.so failed. libge_runner.so: cannot open shared object file"


@pytest.mark.parametrize(
    ("available", "reason"), [(False, REASON.format("ascend")), (False, ""), (True, REASON.format("ops_ascend"))]
)
@pytest.mark.parametrize("wish", ["auto", "Ascend"])
def test_an_npu_without_mindspores_plug_in_is_an_error_with_its_reason(calls, monkeypatch, available, reason, wish):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(ms.device_context.ascend, "is_available", lambda: available)
    monkeypatch.setattr(pipeline.device.MSContext.get_instance(), "load_plugin_error", lambda: reason)
    with pytest.raises(StageError) as error:
        pipeline.device.setup(wish)
    said = str(error.value)
    assert (reason or "MindSpore gives no reason") in said and "CANN is not sourced" in said
    assert "davinci0" in said and not calls
    assert pipeline.device.setup("CPU").target == "CPU"


def test_the_reason_of_this_machines_mindspore_is_read(monkeypatch, tmp_path):
    """MindSpore as it is, whose plug-in finds no CANN here."""
    stub_npus.show(monkeypatch, tmp_path, 1)
    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend/latest")
    with pytest.raises(StageError, match=r"(?s)libmindspore_ascend\.so.* failed.*ASCEND_HOME_PATH is /usr/local"):
        pipeline.device.setup("auto")


@pytest.mark.parametrize(("text", "missing"), [("import decorator_of_cann", "decorator_of_cann"), ("", None)])
def test_a_package_that_cann_needs_is_named(calls, monkeypatch, tmp_path, text, missing):
    (tmp_path / "te.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "te", raising=False)
    if missing is None:
        assert pipeline.device.setup("auto").ascend
    else:
        with pytest.raises(StageError, match=f"needs the Python package {missing}, .*requirements-npu.txt"):
            pipeline.device.setup("auto")
    sys.modules.pop("te", None)


def test_a_cpu_is_given_no_call_of_an_npu(calls):
    assert pipeline.device.setup("CPU") == Device("CPU")
    assert [call[0] for call in calls] == ["set_device", "set_context", "set_deterministic"]


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


@pytest.mark.parametrize("target", ["CPU", "Ascend"])
def test_the_scheduler_joins_and_ends(calls, monkeypatch, target):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with pytest.raises(SystemExit) as end:
        pipeline.device.setup(target, distributed=True)
    assert calls[-1][0] == "init" and end.value.code == 0


ROWS = [(np.full((2, 3), n, np.float32), np.array(n, np.float32), np.array([n, n], np.int32)) for n in range(5)]


def test_the_sink_passes_mindspores_own_checks_and_gives_the_rows_as_they_are(device, monkeypatch):
    taken = stub_npus.stub_sink(monkeypatch)
    take = pipeline.device.sink(lambda *row: row, ROWS, ["x", "rate", "timesteps"])
    for n in (0, 1, 2, 3, 4, 0):  # it wraps in silence
        row = [tensor.asnumpy() for tensor in take()]
        for value, wanted in zip(row, ROWS[n], strict=True):
            assert value.shape == wanted.shape and value.dtype == wanted.dtype and (value == wanted).all()
    assert taken == [0, 1, 2, 3, 4, 0]  # one step per call of it


def test_what_a_cpu_lacks_of_the_sink_is_its_kernel(device, monkeypatch):
    stub_npus.stub_sink(monkeypatch, kernel=False)
    take = pipeline.device.sink(lambda *row: row, ROWS, ["x", "rate", "timesteps"])
    with pytest.raises(RuntimeError, match=r"Unsupported op \[GetNext\]"):
        take()


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ((ROWS[0][0].astype(np.float16), *ROWS[0][1:]), "must be the same as network's input.*Float16"),
        ((ROWS[0][0][0], *ROWS[0][1:]), "input dims"),
    ],
)
def test_a_step_that_takes_other_inputs_is_refused(device, monkeypatch, row, error):
    """MindSpore's own check of what the step is compiled for against what the data set gives."""
    stub_npus.stub_sink(monkeypatch)
    tensor = ms.Tensor
    monkeypatch.setattr(ms, "Tensor", lambda value: tensor(row[0]) if value is ROWS[0][0] else tensor(value))
    with pytest.raises((TypeError, ValueError), match=error):
        pipeline.device.sink(lambda *row: row, ROWS, ["x", "rate", "timesteps"])


def test_a_cpu_has_no_data_sink(device):
    with pytest.raises(ValueError, match="ascend"):
        pipeline.device.sink(lambda x: x, [(np.zeros(1, np.float32),)], ["x"])


def environment(found: str, names: list[str], **given: str) -> list[str]:
    """What `names` are after the package was imported on a machine with the device file `found`, or none."""
    script = f"""
import os, pathlib, sys
from pipeline import npu
npu.FOLDER = pathlib.Path({found!r})
import pipeline.device
print(*(os.environ.get(name) for name in {names}))
"""
    clean = {key: value for key, value in os.environ.items() if key not in names} | given
    run = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_the_environment_is_set_before_mindspore_is_imported(tmp_path):
    names = ["ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY", *stub_npus.HCCL, "MS_NODE_TIMEOUT", "GLOG_v"]
    # MindSpore's import would make 600 of the first timeout
    assert environment(str(tmp_path), names) == ["AVX2", "passive", "7200", "7200", "60", "3"]
    (tmp_path / "davinci0").touch()
    found = environment(str(tmp_path), names, HCCL_EXEC_TIMEOUT="90")
    assert found == ["AVX2", "passive", "7200", "90", "60", "None"]  # nothing is hidden where there is an NPU
    source = inspect.getsource(pipeline.device)
    assert source.index("HCCL_CONNECT_TIMEOUT") < source.index("import mindspore")


def test_no_file_imports_mindspore_before_its_environment_is_set():
    late = []
    for folder in ("pipeline", "stages", "benchmarks", "tests"):
        for file in (PROJECT / folder).rglob("*.py"):
            words = [line.split()[1] for line in file.read_text(encoding="utf-8").splitlines()
                     if line.startswith(("import ", "from "))]  # fmt: skip
            is_mindspore = [word.partition(".")[0] == "mindspore" for word in words]
            if "pipeline.device" in words and any(is_mindspore[: words.index("pipeline.device")]):
                late.append(file)
    assert not late


def test_the_train_stage_alone_lets_onednn_use_avx512():
    script = """
import os, sys
from types import ModuleType
run = ModuleType("run")
run.fine_tune = lambda *arguments: print(os.environ["ONEDNN_MAX_CPU_ISA"])
sys.modules["pipeline.training.run"] = run
from pipeline.params import load
from stages import train
train.open_data, train.count_steps = lambda *arguments: None, lambda *arguments: (4, 1)
train.key.training = lambda *arguments: train.key.Training({}, {}, None)
train.finished.take = lambda *arguments: False
train.main(load())
"""
    clean = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    found = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, cwd=PROJECT)
    assert found.stdout.split() == ["DEFAULT"], found.stderr
