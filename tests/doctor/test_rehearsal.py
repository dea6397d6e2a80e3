"""The doctor's two steps of training: that they are those of the settings, what they do not try, and how they fail."""

import subprocess

import pytest

from pipeline import params as schema
from pipeline import preset
from pipeline.doctor import __main__ as doctor
from pipeline.doctor import rehearsal
from pipeline.doctor.finding import GOOD
from pipeline.stage import StageError
from tests.training.training_samples import params


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.mark.parametrize(("workers", "said"), [(1, "1 process took"), (2, "2 processes took")])
def test_two_steps_are_trained_and_leave_nothing(here, workers, said):
    before = sorted(path.name for path in here.iterdir())
    found = doctor._train(params(**{"device.workers": workers}))
    assert found.state == GOOD and f"2 steps of a very small SDXL in {said}" in found.found
    assert sorted(path.name for path in here.iterdir()) == before


def test_the_small_network_has_no_groups_and_its_two_steps_no_decay():
    """Names of sdxl-base's parameters need not be its, nor two steps as many as the rate's decay has."""
    tree = schema.parse(preset.write("sdxl-1x910b", None).text, "preset")
    groups = [{"pattern": "*.transformer_blocks.9.*", "freeze": True}]
    tree["train"] |= {"lr_scheduler": "wsd", "lr_decay_steps": 50, "groups": groups}
    whole = schema.check(tree, "preset")
    small = rehearsal._settings(whole)
    assert small.train.groups == [] and small.train.lr_scheduler == "wsd"


def test_what_a_run_keeps_and_draws_is_left_out_of_the_rehearsal():
    """It has no validation and no encoded previews, and other parameters than the file to start from."""
    keeps = {"train.keep_best": True, "train.patience": 2, "merge.weights": "best", "train.save_interval": 5}
    keeps |= {"train.previews": ["a star"], "train.keep_state": True, "train.lr_scheduler": "constant"}
    small = rehearsal._settings(params(**keeps, **{"train.init_from": "data/start.ckpt"}))
    assert (small.train.keep_best, small.train.patience, small.merge.weights, small.train.previews) == (
        False,
        0,
        "raw",
        [],
    )
    assert (small.train.save_interval, small.train.keep_state, small.train.init_from) == (
        0,
        False,
        "outs/convert/unet.ckpt",
    )


@pytest.mark.parametrize("name", preset.PRESETS)
def test_the_steps_are_those_of_the_settings(name):
    """But for their size."""
    whole = schema.check(schema.parse(preset.write(name, None).text, name), name)
    small = rehearsal._settings(whole)
    assert (small.model.config, small.train.steps, small.device.nodes) == ("tiny", 2, 1)
    other = rehearsal_changes()
    for section in ("device", "diffusion", "train"):
        for key, value in getattr(whole, section).model_dump().items():
            if f"{section}.{key}" not in other:
                assert getattr(small, section).model_dump()[key] == value, f"{section}.{key}"
    assert small.train.batch_size == 2 and small.train.gradient_accumulation_steps == min(
        whole.train.gradient_accumulation_steps, 2
    )


def rehearsal_changes() -> set[str]:
    """What the two steps have of their own: their size and length, and what is kept and drawn beside them."""
    size = {"train.batch_size", "train.gradient_accumulation_steps", "train.groups", "train.adapter_targets"}
    length = {f"train.{key}" for key in ("steps", "epochs", "lr_warmup_steps", "lr_decay_steps", "patience")}
    inputs = {"train.source", "train.text_encoders", "train.init_from", "train.validation_share"}
    kept = {
        f"train.{key}" for key in ("save_interval", "keep_best", "keep_state", "checkpointing_steps", "tensorboard")
    }
    drawn = {"train.sample_interval", "train.previews", "train.log_interval"}
    place = {f"device.{key}" for key in ("nodes", "node_rank", "master", "compile_cache")}
    return size | length | inputs | kept | drawn | place


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"train.source": "pictures"}, "; not tried: pictures in the loop"),
        ({"train.text_encoders": "both"}, "; not tried: text encoders"),
        (
            {"train.source": "pictures", "train.text_encoders": "clip_l"},
            "; not tried: pictures in the loop, text encoders",
        ),
        ({"device.nodes": 2, "device.master": "10.0.0.1:8118"}, "; not tried: other nodes"),
    ],
)
def test_what_the_two_steps_do_not_try_is_said(monkeypatch, changes, said):
    monkeypatch.setattr(doctor, "rehearse", lambda found: 1.0)
    assert doctor._train(params(**changes)).found.partition("took 1 s")[2] == said


@pytest.mark.parametrize(
    ("code", "err", "said"),
    [
        (1, "log\nrehearsal.py: step 0: the loss is nan\nlower train.learning_rate\n", "step 0: the loss is nan lower"),
        (1, "Traceback (most recent call last):\n  File x\nRuntimeError: no memory\n", "RuntimeError: no memory"),
        (-9, "", "it ended with code -9 and no word"),
        (0, "", "it ended with code 0 and no word"),
    ],
)
def test_steps_that_fail(monkeypatch, code, err, said):
    monkeypatch.setattr(
        rehearsal.subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, code, "", err)
    )
    with pytest.raises(StageError, match=said):
        rehearsal.rehearse(params())
