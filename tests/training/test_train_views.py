"""Training on pictures with masks, centres of interest, a set of its own, several resolutions and neighbouring buckets: a
killed run ends in the same bits, and ranks train as one does. On the stub of the UNet."""

import re

import numpy as np
import pytest

from pipeline.cache.building import engine, latents
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.reader import Reader
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of, with_usual
from pipeline.training.data import split
from tests.cache.cache_samples import FINGERPRINT, TEXT_FINGERPRINT, caption, write_cache
from tests.data.data_sets import picture, write_folder
from tests.training.test_distributed import assert_close, outcome, port
from tests.training.test_resume import ends, train
from tests.training.training_samples import MADE_WITH, share_graphs, write_stub

COUNT = 16
SETTINGS = [
    "train.steps=7", "train.checkpointing_steps=2", "train.batch_size=4", "train.validation_interval=3",
    "train.caption_dropout=0.2",
]  # fmt: skip
SETS = "sets:\n- {folder: a}\n- {folder: b, flip: true, loss_weight: 0.5, repeats: 2}\n"


def vae(pixels: np.ndarray) -> np.ndarray:
    b, _, height, width = pixels.shape
    blocks = pixels.reshape(b, 3, height // 8, 8, width // 8, 8).mean(axis=(3, 5))
    return np.concatenate([blocks, blocks, blocks[:, :2]], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("views")
    files: dict[str, bytes | str] = {"sets.yaml": SETS}
    for number in range(COUNT):
        name = f"{'ab'[number % 2]}/{number}"
        files |= {f"{name}.png": picture(number, 70 + 30 * (number % 2), 70), f"{name}.txt": f"picture {number}"}
        files |= {f"{name}.mask.png": picture(100 + number, 70 + 30 * (number % 2), 70)} if number % 3 == 0 else {}
        files |= {f"{name}.json": '{"focus": [0.8, 0.3]}'} if number % 4 == 1 else {}
    source = open_source(str(write_folder(root / "data", files)))
    sets = with_usual(find(str(root / "data"), source)[0], (96,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(root / "store"))
        how = {"sets": sets, "others": sizes_of(sets, 32, False), "neighbors": 1}
        index(source, root / "outs/index", [(64, 64), (96, 64)], 16, None, 10**6, 0.0, 1, **how)
        usual = Preparation("moments", "center", 1, False, "lanczos", (255, 255, 255))
        made_with = FINGERPRINT | MADE_WITH["latents"]
        job = latents.make_job(root / "outs/index/images.parquet", source, made_with, usual, lambda: vae, 4, 1)
        engine.build(job, root / "outs/latents")
    texts = [caption(text) for text in ["", *(f"picture {number}" for number in range(COUNT))]]
    write_cache(root / "outs/text", shards.TEXT, texts, TEXT_FINGERPRINT | MADE_WITH["text"])
    (root / "outs/convert").mkdir()
    write_stub(root / "outs/convert/unet.ckpt")
    with Reader(
        root / "outs/latents", root / "outs/text", root / "outs/index/samples.parquet", preparation=usual
    ) as found:
        assert found.masked and found.samples is not None and found.n > 2 * COUNT
        assert found.pictures(np.arange(found.n)) == COUNT
        subset, held_out = split(found.names, 0.2)
        assert 0 < found.pictures(held_out) == COUNT - found.pictures(subset)
    return root


@pytest.fixture(scope="module")
def unbroken(workspace, graphs, tmp_path_factory):
    said = train(workspace, share_graphs(tmp_path_factory.mktemp("unbroken"), graphs), *SETTINGS)
    return ends(workspace), outcome(workspace), said


@pytest.fixture
def store(graphs, tmp_path):
    return share_graphs(tmp_path / "store", graphs)


def test_the_log_counts_pictures_and_not_views(unbroken):
    said = next(line for line in unbroken[2].splitlines() if "pictures to train on" in line)
    pattern = r"(\d+) pictures to train on \((\d+) with all their sets, resolutions and buckets\) and (\d+) held out"
    pictures, views, held_out = map(int, re.search(pattern, said).groups())
    assert pictures + held_out == COUNT and views > 2 * pictures


def test_a_killed_run_ends_in_the_same_bits(workspace, store, unbroken):
    for kill in ("step:1", "step:4"):
        train(workspace, store, f"kill={kill}", *SETTINGS, code=-9)
    assert "goes on after step 4" in train(workspace, store, *SETTINGS)
    assert ends(workspace) == unbroken[0]


def test_two_ranks_train_as_one(workspace, store, unbroken):
    train(workspace, store, *SETTINGS, "train.batch_size=2", "device.workers=2", port())
    assert_close(outcome(workspace), unbroken[1])
