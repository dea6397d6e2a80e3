"""The doctor on machines that are broken in one way each: Python, packages, devices, memory."""

import platform
import subprocess

import pytest

from pipeline.doctor import machine
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, look
from pipeline.planning import device
from pipeline.planning.run import from_params
from tests import stub_npus
from tests.doctor.doctor_samples import only, sdxl
from tests.training.training_samples import params


def test_python_and_packages_of_this_environment_are_right():
    assert machine.python().state == machine.packages().state == GOOD


def test_another_python_is_named(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    found = machine.python()
    assert found.state == BAD and "3.9.1; wanted >=3.11" in str(found) and "make repro" in found.do


def test_packages_of_other_versions_are_named(monkeypatch):
    real = machine._version
    other = {"mindspore": "2.5.0", "pillow": None}
    monkeypatch.setattr(machine, "_version", lambda name: other[name] if name in other else real(name))
    found = machine.packages()
    assert found.state == BAD and "mindspore 2.5.0 (wanted 2.10.0)" in found.found
    assert "pillow missing (wanted" in found.found and "pip install -r requirements.txt" in found.do


def test_where_there_are_npus_canns_packages_count(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 1)
    monkeypatch.setattr(machine, "_version", lambda name: None)
    assert machine.packages().do.endswith("-r requirements.txt -r requirements-npu.txt`")


def ended(code: int, out: str = "", err: str = ""):
    return lambda *args, **kwargs: subprocess.CompletedProcess(args, code, out, err)


def test_npus_that_mindspore_uses(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 8)
    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend")
    monkeypatch.setattr(machine.subprocess, "run", ended(0, "MindSpore 2.10.0\n"))
    found = only(machine.device(sdxl()))
    assert found.state == GOOD
    assert found.found == "Ascend: 8 NPUs for 8 processes; CANN: /usr/local/Ascend; MindSpore 2.10.0"


@pytest.mark.parametrize(
    ("npus", "said"),
    [(0, "this machine shows no NPU"), (4, "device.workers: 8, but this machine has 4 NPUs")],
)
def test_npus_that_are_too_few(monkeypatch, tmp_path, npus, said):
    stub_npus.show(monkeypatch, tmp_path, npus)
    found = only(look("device", machine.device, sdxl()))
    assert found.state == BAD and said in found.found


def test_npus_that_mindspore_cannot_use_are_told_in_its_words(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 8)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    error = 'Traceback (most recent call last):\n  File "x"\npipeline.stage.StageError: this machine has an NPU\n'
    monkeypatch.setattr(machine.subprocess, "run", ended(1, "", f"[WARNING] x\n{error}libascendcl.so: not found\n"))
    found = only(machine.device(sdxl()))
    assert found.state == BAD and "CANN: not sourced" in found.found and "Traceback" not in str(found)
    assert "this machine has an NPU libascendcl.so: not found" in str(found)


def test_a_mindspore_that_hangs(monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired(args, 1)

    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert "did not start within" in only(machine.device(params())).found


def test_what_an_npu_alone_can_do_is_missing_on_a_cpu(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 0)
    found = only(look("device", machine.device, sdxl(device__target="auto", sample__precision="bfloat16")))
    assert found.state == BAD and "sample.precision: bfloat16 needs an Ascend NPU" in found.found


def test_sdxl_on_a_cpu_is_looked_at(monkeypatch):
    monkeypatch.setattr(machine.subprocess, "run", ended(0, "MindSpore 2.10.0\n"))
    states = [finding.state for finding in machine.device(sdxl("sdxl-1x910b", device__target="CPU"))]
    assert states == [GOOD, DOUBTFUL]


@pytest.mark.parametrize(("batch", "checkpointing", "state"), [(4, True, GOOD), (32, False, BAD)])
def test_memory_of_npus_by_the_planner(batch, checkpointing, state):
    found = sdxl(train__batch_size=batch, train__gradient_checkpointing=checkpointing)
    finding = machine.memory(found, from_params(found, 1000))
    assert finding.state == state and "GB of each NPU" in finding.found
    assert state == GOOD or all(way in finding.do for way in device.ways_to_fit(from_params(found, 1000)))


def test_memory_of_a_cpu(monkeypatch):
    found = params()
    assert machine.memory(found, from_params(found, 100)).state == GOOD
    monkeypatch.setattr(machine, "_free_memory", lambda: 10_000_000)
    finding = machine.memory(found, from_params(found, 100))
    assert finding.state == BAD and "0.0 GB are free" in finding.found and "train.batch_size" in finding.do
    assert finding.wanted.endswith(" GB more")
