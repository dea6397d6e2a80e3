"""train.init_from: a run starts from other weights than the base's. The stage in processes of its own, on the stub."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from pipeline.weights import ckpt
from tests.training.test_resume import ends, start, train, workspace
from tests.training.training_samples import share_graphs

__all__ = ["workspace"]  # a fixture
SETTINGS = ["train.steps=3", "train.validation_interval=3"]


@pytest.fixture(scope="module")
def trained(workspace, graphs, tmp_path_factory):
    """(the weights of a run that was trained from the base, its rows of the log)"""
    root = tmp_path_factory.mktemp("trained")
    train(workspace, share_graphs(root / "store", graphs), *SETTINGS)
    shutil.copy(workspace / "outs/train/weights/unet.ckpt", root / "start.ckpt")
    return root / "start.ckpt", ends(workspace)[1]


def test_a_run_starts_from_other_weights(workspace, graphs, tmp_path, trained):
    """Its first validation loss is the last one of the run that made them."""
    path, rows = trained
    share_graphs(tmp_path, graphs)
    train(workspace, tmp_path, *SETTINGS, f"train.init_from={path}")
    weights, found, _ = ends(workspace)
    losses = [[row["validation/loss"] for row in part if "validation/loss" in row] for part in (rows, found)]
    assert losses[1][0] == losses[0][-1] != losses[0][0]
    # the file's content counts, not its path
    other = tmp_path / "copy.ckpt"
    shutil.copy(path, other)
    run = start(workspace, tmp_path, *SETTINGS, f"train.init_from={other}")
    assert "the same training is done" in run.wait()
    run = start(workspace, tmp_path, *SETTINGS)
    assert "is done" not in run.wait()


def test_weights_that_do_not_fit_are_refused(workspace, tmp_path, trained):
    path, tensors = tmp_path / "cut.ckpt", ckpt.read(trained[0])
    with ckpt.Writer(path) as writer:
        for number, (name, tensor) in enumerate(tensors.items()):
            if number:
                writer.add(name, np.array(tensor.array()))
    said = train(workspace, tmp_path / "store", f"train.init_from={path}", code=1)
    assert f"{path} does not fit" in said and f"{next(iter(tensors))} is missing" in said and "Traceback" not in said


def test_marks_are_honoured_before_mindspore_is_imported(workspace, tmp_path):
    path = tmp_path / "v.safetensors"
    safetensors.numpy.save_file({"v_pred": np.zeros(0, np.float32)}, path)
    said = train(workspace, tmp_path / "store", f"train.init_from={path}", code=1)
    assert f"{path} contradicts params.yaml" in said and "diffusion.prediction to v" in said and "device:" not in said
    said = train(workspace, tmp_path / "store", "train.init_from=nowhere.ckpt", code=1)
    assert "nowhere.ckpt does not exist" in said and "Traceback" not in said
