"""The train stage with text encoders that are trained on cached latents, whole or by adapters, with a stub of the UNet and
small encoders: kills, ranks, micro-batches, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest

from pipeline.models import with_text
from pipeline.weights import ckpt, safetensors
from pipeline.weights.names import part_of
from tests.training.live_samples import run_stages, write_originals
from tests.training.test_distributed import TWO_SHARDED, assert_close, outcome, port
from tests.training.test_live import patched
from tests.training.test_resume import ends, train
from tests.training.training_samples import share_graphs

CHANGES = {"train.text_encoders": "both", "index.max_enlargement": 4.0}
SETTINGS = ["train.text_encoders=both", "train.text_encoder_learning_rate=0.0001", "train.steps=5",
            "index.max_enlargement=4.0", "train.ema=true", "train.validation_interval=2", "train.save_interval=2",
            "train.keep_best=true", "train.caption_dropout=0.3", "train.batch_size=8", "train.weight_decay=0.1"]  # fmt: skip
HOW = {"whole": [], "adapters": ["train.adapter=lora", "train.rank=2"]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return with_captions(tmp_path_factory.mktemp("texts"))


def with_captions(root):
    """A workspace whose captions are encoded while training."""
    write_originals(root, count=24, sizes=((64, 64),))
    (root / "outs/convert/sources.json").write_text(json.dumps({name: SOURCE for name in ("base", "vae")}))
    with patched(root / "store"):
        run_stages(root, **CHANGES)
    return root


SOURCE = {"name": "base.safetensors", "file": True, "sha256": "b" * 64}


@pytest.fixture(scope="module", params=HOW)
def settings(request):
    return [*SETTINGS, *HOW[request.param]]


@pytest.fixture
def store(graphs, tmp_path):
    return share_graphs(tmp_path / "store", graphs)


@pytest.fixture(scope="module")
def unbroken(workspace, settings, graphs, tmp_path_factory):
    train(workspace, share_graphs(tmp_path_factory.mktemp("unbroken"), graphs), *settings)
    return ends(workspace), outcome(workspace)


def test_all_that_is_trained_is_written_and_has_moved(workspace, settings, unbroken):
    weights, _, validation, _ = unbroken[1]
    if "train.adapter=lora" in settings:
        names = {name for name in weights if name.startswith("adapter.safetensors ")}
        layers = {name.split()[1].split(".")[0] for name in names}
        assert {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "lora_te2_text_model_encoder_layers_1_self_attn_v_proj",
        } < layers
        assert sum(layer.startswith("lora_te1_") for layer in layers) == 6  # the last block is not used
        assert sum(layer.startswith("lora_te2_") for layer in layers) == 12
        for name in names:
            if "lora_up" in name:  # from zero, by about the rate in each of five steps
                largest, rate = np.abs(weights[name]).max(), 1e-3 if "lora_unet_" in name else 1e-4
                assert rate < largest < 6 * rate, name
        keys = safetensors.metadata(workspace / "outs/train/weights/adapter.safetensors")
        assert keys["ss_text_encoder_lr"] == "0.0001" and keys["ss_unet_lr"] == "0.001"
    else:
        base = {
            name: np.array(tensor.array())
            for part in ("clip_l", "clip_g")
            for name, tensor in ckpt.read(workspace / f"outs/convert/{part}.ckpt").items()
        }
        own = {
            name.removeprefix("unet.ckpt "): value for name, value in weights.items() if name.startswith("unet.ckpt ")
        }
        assert {part_of(name) for name in own} == {"unet", "clip_l", "clip_g"}
        still = [name for name, value in base.items() if np.array_equal(own[name], value)]
        assert all(re.search(r"layers\.1\.|embedders\.0.*final_layer_norm|logit_scale", name) for name in still), still
    assert len(validation) == 4


def test_a_killed_run_ends_in_the_same_bits(workspace, settings, store, unbroken):
    for kill in ("step:1", "step:3", "save:2", "outs"):
        train(workspace, store, f"kill={kill}", *settings, code=-9)
    train(workspace, store, *settings)
    assert ends(workspace) == unbroken[0]


def test_ranks_and_micro_batches_train_as_one_with_the_whole_batch(workspace, settings, store, unbroken):
    """Two that share the optimizer's state are killed, and one goes on."""
    train(workspace, store, "kill=step:3", *settings, *TWO_SHARDED, port(), code=1)
    (slices,) = store.glob("train/*/slices-*")
    cut = {with_text.part_of(name.removeprefix("moment1.")) for name in ckpt.read(next(slices.iterdir()))}
    assert cut == {"unet", "clip_l", "clip_g"}
    assert "goes on after step 2" in train(workspace, store, *settings)
    assert_close(without_key_biases(outcome(workspace)), without_key_biases(unbroken[1]))


def test_one_encoder_alone_is_trained(workspace, store):
    """bigG; CLIP-L alone: test_train_text.py."""
    few_graphs = ["train.ema=false", "train.validation_share=0.0", "train.keep_best=false", "train.steps=2"]
    train(workspace, store, *SETTINGS, *few_graphs, "train.text_encoders=clip_g")
    found, base = (
        ckpt.read(workspace / "outs/train/weights/unet.ckpt"),
        ckpt.read(workspace / "outs/convert/clip_g.ckpt"),
    )
    assert {part_of(name) for name in found} == {"unet", "clip_g"}
    moved = {name: np.abs(found[name].array() - tensor.array()).max() for name, tensor in base.items()}
    still = {name for name, by in moved.items() if not by}
    assert all(name.endswith("logit_scale") for name in still), still
    assert 5e-5 < max(moved.values()) < 4e-4  # by about its rate in each step


def without_key_biases(found):
    """Attention does not depend on them: their gradients are rounding alone, of which AdamW makes whole steps."""
    weights = {}
    for name, value in found[0].items():
        if name.endswith("in_proj_bias"):
            value = np.delete(value.reshape(3, -1), 1, axis=0)
        if not name.endswith("k_proj.bias"):
            weights[name] = value
    return weights, *found[1:]


@pytest.fixture(scope="module")
def taught(workspace, graphs, tmp_path_factory):
    """(the weights of a run that trained whole encoders, its last validation loss)"""
    root = tmp_path_factory.mktemp("taught")
    train(workspace, share_graphs(root / "store", graphs), *SETTINGS, "train.steps=2")
    shutil.copy(workspace / "outs/train/weights/unet.ckpt", root / "start.ckpt")
    return root / "start.ckpt", outcome(workspace)[2][-1]


def test_a_run_starts_from_encoders_that_were_trained(workspace, settings, store, taught):
    """Its first validation loss is the last one of the run that made them; with adapters, which change nothing yet, too."""
    path, loss = taught
    said = train(workspace, store, *settings, f"train.init_from={path}")
    assert outcome(workspace)[2][0] == pytest.approx(loss, rel=1e-6)
    assert "goes on" not in said


def test_encoders_that_would_be_lost_are_refused_before_mindspore(workspace, store, taught):
    for trained in ("none", "clip_l"):
        said = train(
            workspace, store, *SETTINGS, f"train.text_encoders={trained}", f"train.init_from={taught[0]}", code=1
        )
        assert "wanted train.text_encoders both" in said and "Traceback" not in said and "device:" not in said, said[
            -2000:
        ]


def test_a_cache_of_captions_is_refused_where_they_are_not_trained(workspace, store):
    said = train(workspace, store, *SETTINGS, "train.text_encoders=none", code=1)
    assert "outs/text holds no shards; run `dvc repro cache_text`" in said and "Traceback" not in said, said[-2000:]
