"""The doctor's command: what it says of all, and that a run can start only where nothing is bad."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from pipeline.doctor import __main__ as doctor
from pipeline.doctor import machine
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, look
from pipeline.stage import StageError
from tests import project
from tests.training.training_samples import ROOT


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    project.copy_project(folder)
    (folder / "data/images").symlink_to(ROOT / "data/images")
    (folder / "data/base").symlink_to(ROOT / "data/base")
    return folder


def start(folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PIPELINE_STORE"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor", *arguments], cwd=folder,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def listed(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_demo_can_start_and_nothing_is_written(clone):
    before = listed(clone)
    done = start(clone, "--no-training")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "The run can start: `dvc repro`"
    assert "GB are free and training takes" in done.stdout  # of this computer, where auto finds no NPU
    names = ["Python", "packages", "settings", "device", "memory", "disk", "links", "weights", "tokenizer", "data"]
    assert [line[6:].split()[0] for line in lines[:-1]] == [*names, "captions", "training"]
    assert listed(clone) == before


def test_a_broken_one_cannot_start(clone, tmp_path):
    folder = shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("base: data/base/tiny", "base: data/base/other"))
    done = start(folder, "--no-training", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["can_start"] and "Traceback" not in done.stderr
    assert [one["name"] for one in found["findings"] if one["state"] == BAD] == ["weights"]
    (folder / "params.yaml").write_text(text.replace("batch_size: 16", "batch_size: many"))
    done = start(folder)
    assert done.returncode == 1 and "BAD   settings" in done.stdout and "train.batch_size" in done.stdout
    assert "-     weights    not looked at before params.yaml is right" in done.stdout
    assert done.stdout.splitlines()[-1] == "The run cannot start: settings"


@pytest.mark.parametrize("good", [True, False])
def test_the_run_can_start_only_where_the_two_steps_are_trained(clone, monkeypatch, capsys, good):
    def rehearse(found):
        if not good:
            raise StageError("step 0: the loss is nan")
        return 1.0

    monkeypatch.chdir(clone)
    monkeypatch.delenv("PIPELINE_STORE", raising=False)
    monkeypatch.setattr(doctor, "rehearse", rehearse)
    monkeypatch.setattr(machine, "device", lambda found: [doctor.Finding("device", GOOD, "CPU")])
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == (0 if good else 1)
    line, last = ("ok    training   2 steps", "The run can start") if good else (
        "BAD   training   step 0: the loss is nan", "The run cannot start: training",
    )  # fmt: skip
    assert lines[-2].startswith(line) and lines[-1].startswith(last), lines


def test_a_device_that_is_bad_is_not_trained_on(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(machine, "device", lambda found: [doctor.Finding("device", BAD, "no NPU")])
    monkeypatch.setattr(doctor, "rehearse", None)  # not called
    with pytest.raises(SystemExit):
        doctor.main([])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "-     training   not tried before the device is right",
        "The run cannot start: device",
    ]


def test_settings_that_few_want_are_looked_at(tmp_path, monkeypatch):
    text = (ROOT / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    assert [(one.state, one.name) for one in look("settings", doctor._settings)] == [(GOOD, "settings")]
    doubtful = re.sub(r"\b(steps: )600\b", r"\g<1>60000", text)
    doubtful = re.sub(r"\b(learning_rate: )1\.0e-3", r"\g<1>1.0e-7", doubtful)
    (tmp_path / "params.yaml").write_text(doubtful)
    assert doubtful != text
    found = look("settings", doctor._settings)
    assert {one.state for one in found} == {DOUBTFUL} and any("train.learning_rate" in one.found for one in found)


def test_a_doctor_that_falls_ill_says_where():
    def check():
        raise KeyError("x")

    assert str(look("weights", check)[0]) == "BAD   weights    could not be looked at: KeyError: 'x'"
