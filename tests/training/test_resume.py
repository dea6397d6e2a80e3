"""A killed run goes on and ends in the same bits; a changed one starts anew."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.training.optimizers.prodigy import FIRST
from tests.training import forked
from tests.training.training_samples import ROOT, share_graphs, write_stub, write_workspace

TIMES = ("train/images_per_second", "train/step_seconds", "train/data_wait_seconds")
SETTINGS = [
    "train.steps=9",
    "train.ema=true",
    "train.log_interval=2",
    "train.validation_interval=4",
    "train.checkpointing_steps=3",
    # what is drawn, and a part that has no state
    "diffusion.prediction=flow",
    "train.timestep_distribution=logit_normal",
    "train.multires_noise_iterations=3",
    "train.input_perturbation=0.1",
    'train.groups=[{pattern: "*.bias", freeze: true}]',
    "train.lr_scheduler=wsd",
    "train.save_interval=2",
    "train.save_limit=3",
    "train.keep_best=true",
]


FEW_GRAPHS = ["train.ema=false", "train.validation_share=0.0", "train.keep_best=false"]
PREVIEWS = [
    "train.sample_interval=2",
    "train.previews=[picture 1, {prompt: picture 2, negative_prompt: picture 3, width: 96, steps: 2}]",
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("resume"), buckets=((64, 64), (64, 32)), vae=b"vae")
    write_stub(root / "outs/convert/unet.ckpt")
    return root


def train(workspace, store, *arguments, code=0):
    """The stage in a process of its own, on the stub, after its outs were removed as DVC does; returns what it says. It
    finds no finished training."""
    shutil.rmtree(Path(store) / "trained", ignore_errors=True)
    run = start(workspace, store, *arguments)
    said = run.wait()
    assert run.returncode == code, said[-2000:]
    return said


def start(workspace, store, *arguments) -> forked.Run:
    shutil.rmtree(workspace / "outs/train", ignore_errors=True)
    return forked.Run(workspace, environment(store), arguments)


def environment(store):
    return {**os.environ, "PIPELINE_STORE": str(store), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}


def ends(workspace: Path):
    """The weights' bytes, and the curves and pictures without what a clock says."""
    outs = workspace / "outs/train"
    rows = [json.loads(line) for line in (outs / "live/log.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    curves = {
        path.relative_to(outs).as_posix(): path.read_bytes()
        for path in (outs / "live/plots").rglob("*.tsv")
        if not any(name.split("/")[1] == path.stem for name in TIMES)
    }
    curves |= {path.relative_to(outs).as_posix(): path.read_bytes() for path in (outs / "live/pictures").iterdir()}
    return {path.name: path.read_bytes() for path in (outs / "weights").iterdir()}, rows, curves


@pytest.fixture(scope="module")
def unbroken(workspace, graphs, tmp_path_factory):
    train(workspace, share_graphs(tmp_path_factory.mktemp("unbroken"), graphs), *SETTINGS)
    return ends(workspace)


@pytest.fixture
def store(graphs, tmp_path):
    return share_graphs(tmp_path / "store", graphs)


# before the first state, between states, in the middle of writing the first, of writing weights in between, after the
# last step
KILLS = [["step:1"], ["step:4", "step:7"], ["save:1"], ["save:3", "save:4"], ["outs"]]


@pytest.mark.parametrize("kills", KILLS, ids="-".join)
def test_a_killed_run_ends_in_the_same_bits(workspace, store, unbroken, kills):
    for kill in kills:
        train(workspace, store, f"kill={kill}", *SETTINGS, code=-9)
        assert not (workspace / "outs/train/weights").exists() or kill == "outs"
    train(workspace, store, *SETTINGS)
    assert ends(workspace) == unbroken
    assert not list((store / "train").glob("*"))  # its room is free again


@pytest.mark.parametrize(
    ("optimizer", "dtype", "further"),
    [
        ("adafactor", "float32", FEW_GRAPHS),
        ("adamw8bit", "bfloat16", []),
        ("prodigy", "bfloat16", [*FEW_GRAPHS, *PREVIEWS, "train.learning_rate=100.0"]),
    ],
    ids=["adafactor", "adamw8bit", "prodigy"],
)
def test_every_kind_of_state_is_resumed(workspace, graphs, tmp_path, optimizer, dtype, further):
    """The loss scale, Adafactor's rows and columns, micro-batches; codes of 8 bits, and weights that are rounded by
    random numbers; Prodigy's d. And the pictures that were drawn before the kill."""
    settings = [
        *SETTINGS, "train.precision=float16", "train.loss_scale=65536.0", f"train.optimizer={optimizer}",
        f"train.weights_dtype={dtype}", "train.batch_size=2", "train.gradient_accumulation_steps=2", *further,
    ]  # fmt: skip
    whole, killed = (share_graphs(tmp_path / name, graphs) for name in ("whole", "killed"))
    train(workspace, whole, *settings)
    wanted = ends(workspace)
    losses = [row for row in wanted[1] if "train/loss" in row]
    # there are updates before the state and after it, and overflows
    assert losses[0]["train/overflows"] < 2 and 0 < losses[-1]["train/overflows"] < 6
    assert optimizer != "prodigy" or 100 * FIRST < losses[1]["train/prodigy_d"] < losses[-1]["train/prodigy_d"]
    pictures = [f"live/pictures/step-{step:08d}.png" for step in (2, 4, 6, 8, 9) if PREVIEWS[0] in further]
    assert sorted(name for name in wanted[2] if name.endswith(".png")) == pictures
    train(workspace, killed, "kill=step:5", *settings, code=-9)
    assert "goes on after step 3" in train(workspace, killed, *settings)
    assert ends(workspace) == wanted


def test_a_killed_training_of_an_adapter_ends_in_the_same_bits(workspace, graphs, tmp_path):
    """Killed between states, while it writes an adapter in between, and after its last step; by Lion."""
    settings = [
        *SETTINGS, "train.adapter=dora", "train.optimizer=lion", "train.batch_size=2",
        "train.gradient_accumulation_steps=2", 'train.groups=[{pattern: "out.*", learning_rate: 0.5}]',
    ]  # fmt: skip
    whole, killed = (share_graphs(tmp_path / name, graphs) for name in ("whole", "killed"))
    train(workspace, whole, *settings)
    wanted = ends(workspace)
    names = {"adapter.safetensors", "adapter_ema.safetensors", "adapter_best.safetensors", "run.json"}
    assert names < wanted[0].keys() and not [name for name in wanted[0] if name.endswith(".ckpt")]
    for kill in ("step:4", "save:2", "outs"):
        train(workspace, killed, f"kill={kill}", *settings, code=-9)
    assert "goes on after step" in train(workspace, killed, *settings)
    assert ends(workspace) == wanted


def test_a_changed_setting_starts_anew_and_says_so(workspace, store):
    train(workspace, store, "kill=step:5", *SETTINGS, code=-9)
    said = train(workspace, store, "train.learning_rate=0.002", *SETTINGS)
    assert "starts anew" in said and "train.learning_rate 0.001 -> 0.002" in said and "goes on" not in said
    # the first is still there to go on with
    assert "goes on after step 3" in train(workspace, store, *SETTINGS)


def test_a_changed_input_starts_anew(workspace, store):
    train(workspace, store, "kill=step:5", *SETTINGS, code=-9)
    base = workspace / "outs/convert/unet.ckpt"
    before = base.read_bytes()
    try:
        base.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert "goes on" not in train(workspace, store, *SETTINGS)
    finally:
        base.write_bytes(before)


def test_how_often_states_are_kept_does_not_matter_for_going_on(workspace, store, unbroken):
    train(workspace, store, "kill=step:5", *SETTINGS, code=-9)
    other = [*SETTINGS, "train.checkpointing_steps=2", "train.checkpoints_total_limit=3"]
    assert "goes on after step 3" in train(workspace, store, *other)
    assert ends(workspace) == unbroken


def copy_of(workspace: Path, folder: Path) -> Path:
    """Another clone, whose earlier stages have the same outs."""
    shutil.copytree(workspace / "outs", folder / "outs", ignore=shutil.ignore_patterns("train", "train-logs"))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dies", [False, True])
def test_a_second_run_of_the_same_waits_and_takes_what_the_first_made(workspace, tmp_path, unbroken, dies):
    """As a second task of the queue with another sampling does. When the first dies, the second goes on."""
    second = copy_of(workspace, tmp_path / "second")
    store = tmp_path / "store"  # without graphs, so that the first takes long enough to be waited for
    first = start(workspace, store, *(["kill=step:5"] if dies else []), *SETTINGS)
    while not list(store.glob("locks/train-*")):
        assert first.poll() is None
        time.sleep(0.02)
    waiting = start(second, store, *SETTINGS)
    said = waiting.wait()
    assert f"waits for PID {first.pid}" in said and "which trains the same in" in said, said
    assert f"goes on: PID {first.pid}" in said
    first.wait()
    assert (first.returncode, waiting.returncode) == (-9 if dies else 0, 0)
    if dies:
        assert "goes on after step 3" in said
    else:
        assert "the same training is done" in said and "device: CPU" not in said  # MindSpore was not imported
        assert files(second / "outs/train") == files(workspace / "outs/train")  # the clock's values too
    assert ends(second) == unbroken
    weights = next((second / "outs/train/weights").iterdir())
    assert weights.stat().st_nlink == 2 + (not dies)  # the second's out, the store, the first's out


def test_another_split_of_the_batch_takes_no_finished_outs(workspace, store):
    train(workspace, store, *SETTINGS)
    run = start(workspace, store, *SETTINGS, "train.batch_size=2", "train.gradient_accumulation_steps=2")
    assert "is done" not in run.wait() and run.returncode == 0
