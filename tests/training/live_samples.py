"""Pictures with captions to train on without a cache, and encoders in NumPy in the place of SDXL's."""

import contextlib
import json
from pathlib import Path

import pipeline.device

import numpy as np
import pytest
from PIL import Image

from stages import cache_latents, cache_text, index
from tests.training.training_samples import ROOT, UNET, params, write_encoders, write_stub

SIZES = ((70, 64), (64, 72), (110, 50), (66, 66))  # of three buckets


def encode_pixels(pixels: np.ndarray) -> np.ndarray:
    """Moments that show the pixels: each block's mean, then log variances of its channels."""
    b, _, height, width = pixels.shape
    blocks = pixels.reshape(b, 3, height // 8, 8, width // 8, 8)
    means, spread = blocks.mean(axis=(3, 5)), blocks.std(axis=(3, 5))
    return np.concatenate([means, means[:, :1], spread - 2, spread[:, :1] - 2], axis=1).astype(np.float32)


def decode_latents(latents: np.ndarray) -> np.ndarray:
    return np.tanh(latents[:, :3]).repeat(8, 2).repeat(8, 3)


def encode_ids(ids_l: np.ndarray, ids_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    table = np.random.default_rng(0).standard_normal((1024, UNET.context_dim)).astype(np.float32)
    return table[ids_l] + table[ids_g] / 4, table[ids_g][:, :, :6].mean(axis=1)


def stub_encoders(patch) -> None:
    """For the cache stages and for training; `patch`: pytest's monkeypatch."""
    from pipeline.models import encode
    from pipeline.training import build

    for module in (encode, build):
        patch.setattr(module, "vae_encoder", lambda *_: encode_pixels)
        patch.setattr(module, "text_encoder", lambda *_: encode_ids)


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth, so that neighbouring crops are alike and far ones are not."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_originals(
    root: Path, count: int = 18, sizes=SIZES, sets: list[dict] | None = None, star: str = "star"
) -> Path:
    """data/images, the tokenizer, small text encoders, and a checkpoint that stands for the VAE's; half of the pictures have
    two captions, and every fifth a mask. star: how that word is written in all but the second captions."""
    folder = root / "data/images"
    (root / "outs/convert").mkdir(parents=True)
    for number in range(count):
        place = folder / f"{'ab'[number % 2]}/{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        size = sizes[number % len(sizes)]
        picture(number, size).save(place)
        captions = [f"a {star} number {number}", f"a red circle {number}"]
        place.with_suffix(".txt").write_text("\n".join(captions[: 1 + number % 2]))
        if number % 5 == 0:
            picture(number + 1000, size).convert("L").save(place.with_suffix(".mask.png"))
    if sets:
        (folder / "sets.yaml").write_text(json.dumps({"sets": sets}))
    (root / "data/tokenizer").symlink_to(ROOT / "data/tokenizer")
    (root / "outs/convert/vae.ckpt").write_bytes(b"vae")
    write_encoders(root / "outs/convert")
    write_stub(root / "outs/convert/unet.ckpt")
    return root


def run_stages(root: Path, **changes) -> None:
    """index and both cache stages in `root`; with encoders in NumPy, which want no device."""
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        stub_encoders(patch)
        patch.setattr(pipeline.device, "setup", lambda *_: None)
        for stage in (index, cache_latents, cache_text):
            stage.main(params(**{"index.max_enlargement": 4.0} | changes))
