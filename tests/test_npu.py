"""Which NPU a process takes, before MindSpore is asked; and that every process that a stage starts has its own."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import hardware, npu
from pipeline.stage import PROJECT, StageError
from pipeline.training import launch
from tests import stub_npus
from tests.training.training_samples import params


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "DEVICE_ID", "RANK_ID", "RANK_SIZE", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """-> function that lets this process find so many NPUs."""
    return lambda count: stub_npus.show(monkeypatch, tmp_path / "dev", count)


def test_the_files_of_npus_are_counted_and_no_others(machine):
    machine(12)  # and davinci_manager
    assert [Path(name).name for name in npu.files()] == [f"davinci{number}" for number in range(12)]
    assert npu.count() == 12


@pytest.mark.parametrize(
    ("chosen", "count"),
    # from CANN's page on the variable: read up to what is no number, or no NPU
    [("", 8), ("1", 1), ("1,2,3", 3), ("1, 2,3", 1), ("1,3,8", 2), ("1,2,-1,3", 2), ("9", 0), ("-1", 0), ("0,,1", 1)],
)
def test_ascend_rt_visible_devices_is_read_as_cann_does(machine, monkeypatch, chosen, count):
    machine(8)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", chosen)
    assert npu.count() == count


@pytest.mark.parametrize(
    ("wish", "npus", "found"),
    [("auto", 0, "CPU"), ("auto", 1, "Ascend"), ("CPU", 8, "CPU"), ("CPU", 0, "CPU"), ("Ascend", 8, "Ascend")],
)
def test_which_device(machine, wish, npus, found):
    machine(npus)
    assert npu.target(wish) == found == launch.target(params(**{"device.target": wish}).device)


def test_an_npu_is_wished_and_none_is_there(machine):
    machine(0)
    with pytest.raises(StageError, match=r"device\.target: Ascend, but .* no NPU: there is no .*davinci0.*auto or CPU"):
        npu.target("Ascend")


@pytest.mark.parametrize("wish", ["auto", "Ascend"])
def test_hidden_npus_are_no_silent_cpu(machine, monkeypatch, wish):
    machine(8)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "8")
    with pytest.raises(StageError, match=r"8 NPUs .*davinci7\), of which ASCEND_RT_VISIBLE_DEVICES=8 shows 0"):
        npu.target(wish)
    assert npu.target("CPU") == "CPU"


def test_more_workers_than_npus_are_refused_before_they_are_started(machine, monkeypatch):
    machine(8)
    assert npu.target("auto", 8) == "Ascend" and npu.target("CPU", 16) == "CPU"
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
    settings = params(**{"device.target": "auto", "device.workers": 8})
    with pytest.raises(StageError, match=r"device\.workers: 8, but .*=0,1,2,3 shows 4; wanted at most 4"):
        launch.command(settings.device, [], Path("logs"))
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")  # started by others, who decide how many run here
    assert launch.target(settings.device) == "Ascend"
    hardware.check(settings, "device", "train")


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 0),
        ({"DEVICE_ID": "3"}, 3),
        ({"DEVICE_ID": "3", "RANK_ID": "1"}, 3),
        ({"RANK_ID": "11"}, 3),  # of the second computer
        ({"RANK_ID": "3", "ASCEND_RT_VISIBLE_DEVICES": "4,5"}, 1),
    ],
)
def test_the_npu_of_a_process(machine, monkeypatch, environment, number):
    machine(8)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert npu.own() == number


@pytest.mark.parametrize("text", ["8", "-1", "x", ""])
def test_an_npu_that_is_not_there_is_named(machine, monkeypatch, text):
    machine(8)
    monkeypatch.setenv("DEVICE_ID", text)
    with pytest.raises(StageError, match=f"DEVICE_ID is {text}, but this machine has 8 NPUs .*wanted 0 to 7"):
        npu.own()


def test_a_rank_that_is_no_number_is_named(machine, monkeypatch):
    machine(8)
    monkeypatch.setenv("RANK_ID", "first")
    with pytest.raises(StageError, match="RANK_ID is first"):
        npu.own()


def start(folder: Path, stage: str, npus: int, workers: int, **environment: str) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"STAGE": stage, "NPUS": str(npus), "WORKERS": str(workers), "MASTER": master}
    return subprocess.run(
        [sys.executable, "-m", "tests.stub_npus"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(PROJECT)} | settings | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["cache", "train"])
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_an_exported_device_id_does_not_send_all_processes_to_one_npu(tmp_path, stage, workers):
    done = start(tmp_path, stage, 8, workers, DEVICE_ID="1", ASCEND_RT_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["npu"] for rank in range(workers)]
    assert found == list(range(workers))


def test_one_process_keeps_the_npu_that_was_exported(tmp_path):
    assert start(tmp_path, "cache", 8, 1, DEVICE_ID="5", RANK_ID="0").returncode == 0
    assert json.loads((tmp_path / "rank-0.json").read_text()) == {"npu": 5}


def test_a_cache_process_without_an_npu_of_its_own_is_quoted(tmp_path):
    done = start(tmp_path, "cache", 2, 3)
    assert done.returncode and "DEVICE_ID is 2" in done.stderr


@pytest.mark.parametrize(("npus", "binds"), [(0, False), (2, True)])
def test_ranks_are_bound_to_cores_where_there_are_npus(machine, tmp_path, npus, binds):
    machine(npus)
    line = launch.command(params(**{"device.target": "auto", "device.workers": 2}).device, ["train.py"], tmp_path)
    assert ("--bind_core=True" in line) == binds and line[-1] == "train.py"


def pins(name: str) -> dict[str, str]:
    """The packages of a requirements file, and what follows each name."""
    found = {}
    for line in (PROJECT / name).read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9_.-]+)(.*)", line):
            if not line.startswith("-"):
                found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


def test_all_that_cann_wants_of_python_is_pinned_once():
    base, cann = pins("requirements.txt"), pins("requirements-npu.txt")
    assert set(pins("requirements-npu.in")) <= {*base, *cann}
    assert not set(base) & set(cann) and all(version.startswith("==") for version in cann.values())
