"""A killed run goes on and ends in the same bits; a changed one starts anew."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_samples import ROOT, write_stub, write_workspace

TIMES = ("train/images_per_second", "train/step_seconds", "train/data_wait_seconds")
SETTINGS = [
    "train.steps=9",
    "train.ema=true",
    "train.log_interval=2",
    "train.validation_interval=4",
    "train.checkpointing_steps=3",
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("resume"), buckets=((64, 64), (64, 32)))
    write_stub(root / "outs/convert/unet.ckpt")
    return root


def train(workspace, store, *arguments, code=0):
    """The stage in a process of its own, on the stub, after its outs were removed as DVC does; returns what it says."""
    shutil.rmtree(workspace / "outs/train", ignore_errors=True)
    run = subprocess.run(
        [sys.executable, "-m", "tests.training_samples", "stub", *arguments],
        cwd=workspace, env=environment(store), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stderr[-2000:]
    return run.stderr


def environment(store):
    return {**os.environ, "PIPELINE_STORE": str(store), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}


def ends(workspace: Path):
    """The weights' bytes, and the curves without what a clock says."""
    outs = workspace / "outs/train"
    rows = [json.loads(line) for line in (outs / "live/log.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    curves = {
        path.relative_to(outs).as_posix(): path.read_bytes()
        for path in (outs / "live/plots").rglob("*.tsv")
        if not any(name.split("/")[1] == path.stem for name in TIMES)
    }
    return {path.name: path.read_bytes() for path in (outs / "weights").iterdir()}, rows, curves


@pytest.fixture(scope="module")
def unbroken(workspace, tmp_path_factory):
    train(workspace, tmp_path_factory.mktemp("unbroken"), *SETTINGS)
    return ends(workspace)


# before the first state, between states, at one, in the middle of writing the second, after the last step
@pytest.mark.parametrize("kills", [["step:1"], ["step:4", "step:7"], ["save:1"], ["outs"]], ids="-".join)
def test_a_killed_run_ends_in_the_same_bits(workspace, tmp_path, unbroken, kills):
    for kill in kills:
        train(workspace, tmp_path, f"kill={kill}", *SETTINGS, code=-9)
        assert not (workspace / "outs/train/weights").exists() or kill == "outs"
    train(workspace, tmp_path, *SETTINGS)
    assert ends(workspace) == unbroken
    assert not list((tmp_path / "train").glob("*"))  # its room is free again


def test_every_kind_of_state_is_resumed(workspace, tmp_path):
    """The loss scale, Adafactor's rows and columns, micro-batches."""
    settings = [
        *SETTINGS, "train.precision=float16", "train.loss_scale=1.0e+12", "train.optimizer=adafactor",
        "train.batch_size=2", "train.gradient_accumulation_steps=2",
    ]  # fmt: skip
    train(workspace, tmp_path / "whole", *settings)
    wanted = ends(workspace)
    assert wanted[1][-2]["train/overflows"] > 0
    train(workspace, tmp_path / "killed", "kill=step:5", *settings, code=-9)
    assert "goes on after step 3" in train(workspace, tmp_path / "killed", *settings)
    assert ends(workspace) == wanted


def test_a_changed_setting_starts_anew_and_says_so(workspace, tmp_path):
    train(workspace, tmp_path, "kill=step:5", *SETTINGS, code=-9)
    said = train(workspace, tmp_path, "train.learning_rate=0.002", *SETTINGS)
    assert "starts anew" in said and "train.learning_rate 0.001 -> 0.002" in said and "goes on" not in said
    # the first is still there to go on with
    assert "goes on after step 3" in train(workspace, tmp_path, *SETTINGS)


def test_a_changed_input_starts_anew(workspace, tmp_path):
    train(workspace, tmp_path, "kill=step:5", *SETTINGS, code=-9)
    base = workspace / "outs/convert/unet.ckpt"
    before = base.read_bytes()
    try:
        base.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert "goes on" not in train(workspace, tmp_path, *SETTINGS)
    finally:
        base.write_bytes(before)


def test_how_often_states_are_kept_does_not_matter_for_going_on(workspace, tmp_path, unbroken):
    train(workspace, tmp_path, "kill=step:5", *SETTINGS, code=-9)
    other = [*SETTINGS[:-1], "train.checkpointing_steps=2", "train.checkpoints_total_limit=3"]
    assert "goes on after step 3" in train(workspace, tmp_path, *other)
    assert ends(workspace) == unbroken
