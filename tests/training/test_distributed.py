"""Several ranks under msrun on the CPU, on the stub of the UNet: the same training as with one."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pipeline.device

import numpy as np
import pytest
from PIL import Image

from pipeline.training import launch, run
from pipeline.training.optimizers.prodigy import FIRST
from pipeline.training.stored import Reach
from pipeline.weights import ckpt, safetensors
from stages import train as stage
from tests.golden.compare import training
from tests.golden.make_aclnn import ACLNN
from tests.training import rank_updates
from tests.training.npu_update import held
from tests.training.test_resume import FEW_GRAPHS, PREVIEWS, ends, environment, train
from tests.training.training_samples import ROOT, params, share_graphs, write_stub, write_workspace

# 5 steps of 8 samples; the pictures of two buckets do not fill the last batches
SETTINGS = [
    "train.steps=5",
    "train.ema=true",
    "train.validation_interval=2",
    "diffusion.prediction=flow",
    "train.multires_noise_iterations=3",
    "train.input_perturbation=0.1",
    'train.groups=[{pattern: "time*", freeze: true}, {pattern: "*.bias", learning_rate: 0.5}]',
    "train.save_interval=2",
    "train.keep_best=true",
]
# graphs less for each rank: what is validated and kept as the best comes to the ranks as it does without an adapter
NOT_VALIDATED = ["train.validation_share=0.0", "train.keep_best=false"]
# splits of the same batch, by several tests: each is compiled once
TWO_SHARDED = [
    *("device.workers=2", "train.batch_size=2", "train.gradient_accumulation_steps=2", "train.shard_optimizer=true"),
]
FOUR_SHARDED = ["device.workers=4", "train.batch_size=2", "train.shard_optimizer=true"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return with_cache(tmp_path_factory.mktemp("ranks"))


def with_cache(root):
    write_workspace(root, count=30, buckets=((64, 64), (64, 32)), vae=b"vae")
    write_stub(root / "outs/convert/unet.ckpt")
    return root


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"device.master=127.0.0.1:{free.getsockname()[1]}"


def weights(workspace) -> dict[str, np.ndarray]:
    folder = workspace / "outs/train/weights"
    return {
        f"{path.name} {name}": np.array(tensor.array())
        for path in sorted(folder.iterdir())
        for name, tensor in ({".ckpt": ckpt, ".safetensors": safetensors}[path.suffix].read(path).items()
                             if path.suffix != ".json" else ())
    }  # fmt: skip


def outcome(workspace):
    """(weights and EMA, loss by step, validation loss by step)"""
    _, rows, _ = ends(workspace)
    return weights(workspace), *(
        [row[name] for row in rows if name in row] for name in ("train/loss", "validation/loss", "validation/ema_loss")
    )


def pictures(workspace) -> dict[str, np.ndarray]:
    """Those that were drawn on the way."""
    folder = workspace / "outs/train/live/pictures"
    return {path.name: np.array(Image.open(path)).astype(int) for path in sorted(folder.iterdir())}


def assert_close(found, wanted):
    assert found[0].keys() == wanted[0].keys()
    for name, value in wanted[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-4, atol=2e-6, err_msg=name)
    for curve, other in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(curve, other, rtol=1e-5)


@pytest.fixture(scope="module")
def alone(workspace, graphs, tmp_path_factory):
    store = share_graphs(tmp_path_factory.mktemp("alone"), graphs)
    train(workspace, store, *SETTINGS, *PREVIEWS, "train.batch_size=8")
    return *outcome(workspace), pictures(workspace)


@pytest.fixture
def store(graphs, tmp_path):
    return share_graphs(tmp_path / "store", graphs)


@pytest.mark.parametrize(
    "arguments",
    [
        ["device.workers=2", "train.batch_size=4", *PREVIEWS],
        TWO_SHARDED,
        FOUR_SHARDED,
    ],
    ids=["2 ranks", "2 ranks, accumulation, sharded", "4 ranks, sharded"],
)
def test_ranks_train_as_one_with_the_whole_batch(workspace, store, alone, arguments):
    """And draw the same pictures, which change no weights."""
    *wanted, drawn = alone
    train(workspace, store, *SETTINGS, *arguments, port())
    assert_close(outcome(workspace), wanted)
    found = pictures(workspace)
    assert list(found) == [f"step-{step:08d}.png" for step in (2, 4, 5) if PREVIEWS[0] in arguments]
    for name, picture in found.items():
        np.testing.assert_allclose(picture, drawn[name], atol=2, err_msg=name)


def test_ranks_round_bfloat16_weights_as_one_does(workspace, tmp_path):
    """Most weights are the same: the random bits are (test_optimizers.py), but each rank rounds the gradients of its part of
    the batch to bfloat16. With other bits half of the weights would part in each of the five steps."""
    half = [*SETTINGS, *FEW_GRAPHS, "train.weights_dtype=bfloat16"]
    train(workspace, tmp_path / "one", *half, "train.batch_size=8")
    wanted = weights(workspace)
    two = ["device.workers=2", "train.batch_size=4", "train.shard_optimizer=true", port()]
    train(workspace, tmp_path / "two", *half, *two)
    found = weights(workspace)
    assert wanted.keys() == found.keys()
    same = [np.isclose(found[name], value, rtol=1e-4, atol=2e-6).ravel() for name, value in wanted.items()]
    assert np.concatenate(same).mean() > 0.7
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2**-5, atol=1e-3, err_msg=name)


def test_two_ranks_update_as_one_by_every_optimizer(device, tmp_path):
    """To the bit alike, and as one with the whole batch but for what a sum in another order does to a sign or a code of
    8 bits."""
    two = params(**{"device.workers": 2, "device.master": port().split("=")[1]}).device
    launch.start(two, [rank_updates.__file__, str(tmp_path)], tmp_path)
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    wanted = rank_updates.run(0, 1)
    assert first.keys() == second.keys() == wanted.keys() and wanted["d"] > 100 * FIRST
    for name, value in wanted.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        moved = value - (0 if name == "d" else rank_updates.values()[int(name[-1])])
        most = 0.05 if name.startswith("lion") else 0.01
        assert np.linalg.norm(first[name] - value) < most * np.linalg.norm(moved), name


def test_all_ranks_stop_early_at_the_same_step(workspace, store):
    """One that went on would wait in a collective for ever."""
    settings = ["train.steps=9", "train.learning_rate=0.5", "train.validation_interval=1", "train.patience=1"]
    said = train(workspace, store, *SETTINGS, *settings, "device.workers=2", "train.batch_size=4", port())
    stopped = int(re.search(r"stops after step (\d): 1 validations brought nothing better", said)[1])
    assert stopped < 9 and max(row["step"] for row in ends(workspace)[1]) == stopped
    for rank in range(2):
        assert f"stops after step {stopped}:" in (workspace / f"outs/train-logs/worker_{rank}.log").read_text()


def test_a_sharded_state_of_two_ranks_goes_on_on_one_and_on_four(workspace, store, tmp_path, alone):
    train(workspace, store, "kill=step:3", *SETTINGS, *TWO_SHARDED, "train.checkpointing_steps=3", port(), code=1)
    (slices,) = store.glob("train/*/slices-*")
    whole, parts = (
        ckpt.read(next(store.glob("train/*/step-*")) / "state.ckpt"),
        [ckpt.read(file) for file in sorted(slices.iterdir())],
    )
    # each rank keeps half of the moments of what divides, and all ranks the few numbers of the rest; of what is frozen none
    assert not any("time." in name for name in [*whole, *parts[0]])
    assert len(parts) == 2 and all(part["moment1.conv.weight"].shape == (2, 4, 3, 3) for part in parts)
    assert not set(parts[0]) & set(whole) and {"moment1.conv.bias", "moment1.out.0.gamma"} <= set(whole)
    shutil.copytree(store, tmp_path / "copy", symlinks=True)
    for copy, arguments in (
        (store, ["train.batch_size=8"]),
        (tmp_path / "copy", [*FOUR_SHARDED, port()]),
    ):
        assert "goes on after step 3" in train(workspace, copy, *SETTINGS, *arguments)
        assert_close(outcome(workspace), alone[:-1])


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw8bit", 1e-3), ("prodigy", 1.0)])
def test_a_run_of_two_goes_on_on_one_by_other_optimizers(workspace, store, optimizer, rate):
    """Killed on the way; as an unbroken one of one, but for what a sum in another order does to a code of 8 bits."""
    own = [*SETTINGS, *FEW_GRAPHS, f"train.optimizer={optimizer}", f"train.learning_rate={rate}"]
    own += ["train.checkpointing_steps=3", "train.save_interval=0"]
    train(workspace, store, *own, "train.batch_size=8")
    wanted, losses, *_ = outcome(workspace)
    train(workspace, store, "kill=step:3", *own, "device.workers=2", "train.batch_size=4", port(), code=1)
    assert "goes on after step 3" in train(workspace, store, *own, "train.batch_size=8")
    found, other, *_ = outcome(workspace)
    np.testing.assert_allclose(other, losses, rtol=1e-4)
    base = ckpt.read(workspace / "outs/convert/unet.ckpt")
    assert found.keys() == wanted.keys() and len(wanted) == len(base)
    for name, value in wanted.items():
        moved = np.linalg.norm(value - np.array(base[name.split(" ")[1]].array()))
        assert np.linalg.norm(found[name] - value) <= 0.02 * moved, name
        assert bool(moved) is ("time." not in name), name


def test_a_longer_run_goes_on_from_two_ranks_on_four(workspace, store, alone):
    """From the state that a finished run of two has left, whose moments are in slices."""
    train(workspace, store, *SETTINGS, "train.steps=3", "train.keep_state=true", *TWO_SHARDED, port())
    assert len(list(store.glob("train/*/slices-00000003/*"))) == 2
    assert "goes on after step 3" in train(workspace, store, *SETTINGS, *FOUR_SHARDED, port())
    assert_close(outcome(workspace), alone[:-1])


def test_an_adapter_is_trained_by_any_number_of_ranks(workspace, store):
    """By two that share the optimizer's state and are killed, and then by four; as by one with the whole batch."""
    adapter = [*SETTINGS, "train.adapter=dora", "train.groups=[]", "train.checkpointing_steps=3", *NOT_VALIDATED]
    train(workspace, store, *adapter, "train.batch_size=8")
    wanted = outcome(workspace)
    assert any("dora_scale" in name for name in wanted[0]) and any("adapter_ema" in name for name in wanted[0])
    sharded = [*adapter, "train.batch_size=2", "train.shard_optimizer=true"]
    two = ["train.gradient_accumulation_steps=2", "device.workers=2", port()]
    train(workspace, store, "kill=step:3", *sharded, *two, code=1)
    assert "goes on after step 3" in train(workspace, store, *sharded, "device.workers=4", port())
    assert_close(outcome(workspace), wanted)


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    """What tests/training/npu_update.py found as two ranks."""
    folder = tmp_path_factory.mktemp("update")
    device = params(**{"device.workers": 2, "device.master": port().split("=")[1]}).device
    launch.start(device, [str(ROOT / "tests/training/npu_update.py")], folder)
    return held((folder / "worker_0.log").read_text())


def test_the_collectives_of_a_step_are_few(updated):
    """Of 8 parameters, 4 of which are cut, in two buckets and one of the rest; and one collective each for the loss
    and for the norm. On an NPU the gradients of slices come by ReduceScatter, which a CPU lacks. Where nothing is cut
    the parameters are in two buckets."""
    found = updated
    assert found["missing"] == "ReduceScatter"
    collectives = ("AllReduce", "ReduceScatter", "AllGather")
    assert [found["CPU"].get(kind, 0) for kind in collectives] == [5, 0, 2]
    assert [found["NPU"].get(kind, 0) for kind in collectives] == [3, 2, 2]
    assert [found["whole"].get(kind, 0) for kind in collectives] == [3, 0, 0]
    assert [found[form].get("SliceExt", 0) for form in ("NPU", "whole")] == [4, 0]
    assert found["NPU"]["AdamW"] == found["CPU"]["Adam"] == found["whole"]["AdamW"] == 8


def test_all_of_two_npus_update_but_the_collectives_has_aclnn_kernels(updated):
    aclnn = {line.split()[0] for line in ACLNN.read_text().splitlines()[1:]}
    collectives = {"AllReduce", "ReduceScatter", "AllGather"}
    for form, copies in (("NPU", 5), ("whole", 1)):  # of the count, and of the weights that are cut
        found = {kind: count for kind, count in updated[form].items() if kind not in aclnn | collectives}
        assert found == {"Assign": copies, "AssignAdd": 1, "TensorToScalar": 1}, form


@pytest.mark.parametrize(("dtype", "close"), [("Float32", {"rtol": 2e-5, "atol": 2e-6}), ("Float16", {"atol": 4e-3})])
def test_two_npus_sharded_update_gives_pytorchs_numbers(updated, dtype, close):
    """By AdamW's documented formula on this rank's slices, whose gradients come by a ReduceScatter, and AllGather."""
    found = updated["given"][dtype]
    np.testing.assert_allclose(found["norms"], training()["adamw_norms"], rtol=1e-6 if dtype == "Float32" else 2e-3)
    for index, value in enumerate(found["values"]):
        np.testing.assert_allclose(value, training()[f"adamw_{index}"], **close)


def test_a_failing_rank_ends_the_stage_with_its_message(workspace, tmp_path):
    base = workspace / "outs/convert/unet.ckpt"
    before = base.read_bytes()
    try:
        base.write_bytes(before[: len(before) // 2])
        said = train(workspace, tmp_path, "device.workers=2", port(), code=1)
    finally:
        base.write_bytes(before)
    assert str(base.relative_to(workspace)) in said and "outs/train-logs" in said and "Traceback" not in said
    # nobody waited until the scheduler missed the ranks (MS_NODE_TIMEOUT), which msrun tells by a traceback
    assert "Distributed job exited" not in (workspace / "outs/train-logs/msrun.log").read_text()


def test_a_fault_of_the_data_is_found_before_ranks_are_started(workspace, tmp_path):
    shutil.rmtree(workspace / "outs/train-logs", ignore_errors=True)
    said = train(workspace, tmp_path, "train.validation_share=0.999", "device.workers=2", port(), code=1)
    assert "leaves none to train on" in said and not (workspace / "outs/train-logs").exists()


def test_a_rank_with_other_params_stops_all_and_is_named(workspace, tmp_path):
    """As on a node whose params.yaml was not edited along: rank 1 alone has another rate and saves at other steps."""
    others = ["1:train.learning_rate=0.0005", "1:train.checkpointing_steps=3"]
    said = train(workspace, tmp_path, *SETTINGS, "device.workers=2", port(), *others, code=1)
    assert "differ from rank 0" in said and "Traceback" not in said
    assert "train.checkpointing_steps 2 -> 3, train.learning_rate 0.001 -> 0.0005\n" in said
    for rank in range(2):  # each says it
        log = (workspace / f"outs/train-logs/worker_{rank}.log").read_text()
        assert "  rank 1 on " in log and "the same params.yaml" in log
    assert not (tmp_path / "train").exists() and not (workspace / "outs/train/weights").exists()


def test_the_stage_accepts_being_started_by_msrun(workspace, store, tmp_path, alone):
    """As from outside: MS_ROLE is set, and the stage does not start msrun again."""
    shutil.rmtree(workspace / "outs/train", ignore_errors=True)
    device = params(**{"device.workers": 2, "device.master": port().split("=")[1]}).device
    line = launch.command(
        device,
        [str(ROOT / "tests/training/training_samples.py"), "stub", *SETTINGS, "train.batch_size=4", "device.workers=2"],
        tmp_path / "logs",
    )
    env = environment(store)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    subprocess.run(line, cwd=workspace, env=env, capture_output=True, check=True)
    assert_close((weights(workspace),), alone[:1])


def test_nodes_that_share_the_folder_keep_their_logs(monkeypatch, tmp_path):
    def write(device, script, logs):
        return ["sh", "-c", f"echo node {device.node_rank} > {logs}/worker_{device.node_rank}.log"]

    monkeypatch.setattr(launch, "command", write)
    monkeypatch.setattr(launch, "check_master", lambda device: None)
    for node in (0, 1):
        settings = {"device.nodes": 2, "device.node_rank": node, "device.master": "10.0.0.1:8118"}
        launch.start(params(**settings).device, [], tmp_path)
    assert [path.read_text() for path in sorted(tmp_path.rglob("worker_*.log"))] == ["node 0\n", "node 1\n"]


@pytest.mark.parametrize("mark", ["MS_ROLE", "OMPI_COMM_WORLD_SIZE", "RANK_TABLE_FILE"])
def test_a_rank_of_msrun_mpirun_or_a_rank_table_joins_and_starts_no_others(monkeypatch, mark):
    """mpirun and rank tables need an NPU; so the device's side of joining is a stub here."""
    joined = []
    monkeypatch.setenv(mark, "2")
    monkeypatch.setattr(launch, "start", lambda *_: pytest.fail("started ranks of its own"))
    monkeypatch.setattr(pipeline.device, "setup", lambda **settings: joined.append(settings["distributed"]))
    monkeypatch.setattr(run, "fine_tune", lambda *_: None)
    monkeypatch.setattr(stage, "open_data", lambda *_: None)
    monkeypatch.setattr(stage, "count_steps", lambda *_: (1, 1))
    monkeypatch.setattr(stage.key, "training", lambda *_: stage.key.Training({}, {}, Reach(1, 1)))
    stage.main(params(**{"device.workers": 2}))
    assert joined == [True]
