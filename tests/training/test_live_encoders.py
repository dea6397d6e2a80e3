"""The cached run's losses on pictures as they are read, with the tiny SDXL's own encoders."""

import contextlib
import logging
from dataclasses import replace

import pipeline.device

import numpy as np

from pipeline import times
from pipeline.models import config
from pipeline.training import build
from stages import cache_latents, cache_text, convert, index
from tests.models.stub_unet import StubUNet
from tests.training.live_samples import write_originals
from tests.training.test_live import fine_tune
from tests.training.training_samples import ROOT, open_stub, params, share_graphs, write_stub


def test_with_the_encoders_themselves(tmp_path, device, graphs, monkeypatch, caplog):
    """The tiny VAE and text encoders, compiled for the cache and for the loop: there once each, but the VAE for each
    bucket, over all epochs and validations, two samples at a time of batches of three."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(times, "compilation", lambda key: None)  # else a short one is not said the second time
    monkeypatch.setenv("PIPELINE_STORE", str(share_graphs(tmp_path / "store", graphs)))
    monkeypatch.setattr(pipeline.device, "setup", lambda *_: device)
    monkeypatch.setattr(build, "UNet", StubUNet)
    monkeypatch.setattr(build, "open_unet", open_stub)
    write_originals(tmp_path, count=7, sizes=((64, 64), (110, 50)))
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    settings = {"train.steps": 5, "train.batch_size": 3, "train.validation_share": 0.3, "train.caption_dropout": 0.3}
    settings |= {"cache_latents.batch_size": 2, "cache_text.batch_size": 2, "train.validation_interval": 4}
    settings |= {"index.max_enlargement": 4.0}
    found = []
    for source in ("cache", "pictures"):
        changes = settings | {"train.source": source}
        with contextlib.chdir(tmp_path):
            for one in (index, convert, cache_latents, cache_text):
                one.main(params(**changes))
        write_stub(tmp_path / "outs/convert/unet.ckpt", config.TINY.unet)
        caplog.clear()
        rows = fine_tune(tmp_path, replace(device, compile_cache=True), tmp_path / source, **changes)
        compiled = sorted(m.removesuffix(" compiles") for m in caplog.messages if m.endswith(" compiles"))
        found.append([value for row in rows for name, value in row.items() if "loss" in name])
    assert len(found[0]) == 5 + 3 * 3
    np.testing.assert_allclose(found[1], found[0], rtol=2e-3)
    encoders = ["ClipG 2x77", "ClipL 2x77", "VAEEncoder 2x3x32x128", "VAEEncoder 2x3x64x64"]
    assert [name for name in compiled if name.startswith(("Clip", "VAE"))] == encoders
