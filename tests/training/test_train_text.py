"""Text encoders that are trained with the UNet: what a run changes and writes, and that it goes on from a state."""

import contextlib
from dataclasses import replace

import pipeline.device

import numpy as np
import pytest

from pipeline.models import config, encode
from pipeline.training import build, key, preview
from pipeline.weights import ckpt, provenance
from pipeline.weights.chosen import unused_parameters
from pipeline.weights.names import PREFIX, part_of
from stages import cache_latents, cache_text, convert, index
from tests.models.stub_unet import StubUNet
from tests.training.live_samples import encode_pixels, write_originals
from tests.training.test_live import fine_tune
from tests.training.training_samples import ROOT, open_stub, params, share_graphs, write_stub

SETTINGS = {"train.source": "pictures", "train.text_encoders": "clip_l", "train.text_encoder_learning_rate": 1e-4,
            "train.steps": 4, "train.batch_size": 2, "train.validation_share": 0.3, "train.caption_dropout": 0.3,
            "train.ema": True, "train.save_interval": 2, "train.keep_state": True, "train.weight_decay": 0.5,
            "train.checkpointing_steps": 100}  # fmt: skip


@pytest.fixture(scope="module", params=["pictures", "cache"])
def runs(request, device, graphs, tmp_path_factory):
    """The outs of a run of four steps, and of one of two that went on; and its folder. On pictures, or on cached latents
    and captions."""
    settings = SETTINGS | {"train.source": request.param}
    root = write_originals(tmp_path_factory.mktemp("text"), count=6, sizes=((64, 64),))
    (root / "data/base").symlink_to(ROOT / "data/base")
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(share_graphs(root / "store", graphs)))
        patch.setattr(build, "UNet", StubUNet)
        patch.setattr(build, "open_unet", open_stub)
        for module in (build, encode):
            patch.setattr(module, "vae_encoder", lambda *_: encode_pixels)
        patch.setattr(pipeline.device, "setup", lambda *_: device)
        patch.setattr(preview, "painter", lambda *given: lambda path: drawn.append((given[5], given[7]())))
        with contextlib.chdir(root):
            for stage in (index, convert, cache_latents, cache_text):
                stage.main(params(**settings))
        write_stub(root / "outs/convert/unet.ckpt", config.TINY.unet)
        kept = replace(device, compile_cache=True)
        rows = fine_tune(root, kept, root / "whole", **settings | {"train.sample_interval": 2})
        patch.setenv("PIPELINE_STORE", str(share_graphs(root / "other", graphs)))
        fine_tune(root, kept, root / "parts", **settings | {"train.steps": 2})
        fine_tune(root, kept, root / "parts", **settings)
    LOSSES[request.param] = [value for row in rows for name, value in row.items() if "loss" in name]
    assert (root / "outs/latents/not-cached.json").exists() == (request.param == "pictures")
    return root, rows, drawn


LOSSES: dict[str, list[float]] = {}  # of the runs by now


def test_the_losses_on_cached_latents_are_those_on_pictures(runs):
    """To the rounding of the cache's float16."""
    for losses in LOSSES.values():
        assert len(losses) == 4 + 3 * 4
        np.testing.assert_allclose(losses, LOSSES["pictures"], rtol=2e-3)


def read(path):
    return {name: np.array(tensor.array(), np.float32) for name, tensor in ckpt.read(path).items()}


def test_the_encoder_that_is_trained_is_written_with_the_unet(runs):
    root, rows, _ = runs
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()
    base = read(root / "outs/convert/clip_l.ckpt")
    unused = tuple(PREFIX["clip_l"] + name for name in unused_parameters("clip_l", config.TINY))
    for file in ("unet.ckpt", "unet_ema.ckpt", "step-00000002.ckpt"):
        found = read(root / "whole/weights" / file)
        own = {name: value for name, value in found.items() if part_of(name) == "clip_l"}
        assert {part_of(name) for name in found} == {"unet", "clip_l"} and own.keys() == base.keys()
        for name, value in own.items():
            # neither a gradient nor decay changes what SDXL does not use
            assert np.array_equal(value, base[name]) == name.startswith(unused), name


def test_its_learning_rate_is_its_own(runs):
    """AdamW's first steps are about the rate each, and no step is larger than a few of them."""
    root, _, _ = runs
    base, found = read(root / "outs/convert/clip_l.ckpt"), read(root / "whole/weights/unet.ckpt")
    name = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
    assert 1e-5 < np.abs(found[name] - base[name]).max() < 4 * 1.5e-4
    unet = read(root / "outs/convert/unet.ckpt")
    name = "model.diffusion_model.conv.bias"
    assert np.abs(found[name] - unet[name]).max() > 1e-3


def test_a_run_that_goes_on_ends_in_the_same_bits(runs):
    root, _, _ = runs
    for path in (root / "whole/weights").glob("*.ckpt"):
        assert path.read_bytes() == (root / "parts/weights" / path.name).read_bytes(), path.name


def test_pictures_are_drawn_with_the_encoders_as_they_are(runs):
    _, _, drawn = runs
    (at_first, one), (_, later) = drawn[:2]
    assert np.array_equal(one[1][0], 0 * one[1][0])  # the negative text
    before, then, now = at_first[0], one[0][0], later[0][0]
    assert before.shape == then.shape == now.shape
    assert (before != then).any() and (then != now).any()
    np.testing.assert_array_equal(before[..., 64:], now[..., 64:])  # bigG is not trained


def test_the_model_says_so(runs):
    root, _, _ = runs
    run = provenance.read(root / "whole/weights" / key.FACTS, "train")
    keys = provenance.metadata(run, ORIGIN, "tiny", 64, "raw", "float16")
    assert keys["ss_text_encoder_lr"] == "0.0001" and keys["ss_unet_lr"] == "0.001"
    assert all(isinstance(value, str) for value in keys.values())


ORIGIN = {name: {"name": "b.safetensors", "file": True, "sha256": "5"} for name in ("base", "vae")}
