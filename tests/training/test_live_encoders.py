"""The cached run's losses on pictures as they are read, with the tiny SDXL's own encoders."""

import contextlib

import pipeline.device

import numpy as np

from pipeline.models import config
from pipeline.training import build
from stages import cache_latents, cache_text, convert, index
from tests.models.stub_unet import StubUNet
from tests.training.live_samples import write_originals
from tests.training.test_live import fine_tune
from tests.training.training_samples import ROOT, open_stub, params, write_stub


def test_with_the_encoders_themselves(tmp_path, device, monkeypatch):
    """The tiny VAE and text encoders, compiled for the cache and for the loop."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(pipeline.device, "setup", lambda *_: device)
    monkeypatch.setattr(build, "UNet", StubUNet)
    monkeypatch.setattr(build, "open_unet", open_stub)
    write_originals(tmp_path, count=6, sizes=((64, 64),))
    (tmp_path / "data/base").symlink_to(ROOT / "data/base")
    settings = {"train.steps": 2, "train.batch_size": 2, "train.validation_share": 0.3, "train.caption_dropout": 0.3}
    settings |= {"cache_latents.batch_size": 2, "cache_text.batch_size": 2}
    found = []
    for source in ("cache", "pictures"):
        changes = settings | {"train.source": source}
        with contextlib.chdir(tmp_path):
            for one in (index, convert, cache_latents, cache_text):
                one.main(params(**changes))
        write_stub(tmp_path / "outs/convert/unet.ckpt", config.TINY.unet)
        rows = fine_tune(tmp_path, device, tmp_path / source, **changes)
        found.append([value for row in rows for name, value in row.items() if "loss" in name])
    assert len(found[0]) == 2 + 2 * 3
    np.testing.assert_allclose(found[1], found[0], rtol=2e-3)
