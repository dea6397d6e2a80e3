"""The train stage on pictures, with a stub of the UNet and encoders in NumPy: kills, ranks, and what it refuses."""

import re
import shutil

import pytest

from pipeline.cache.format.fingerprint import file_hash
from pipeline.weights import provenance
from tests.training.live_samples import picture, run_stages, write_originals
from tests.training.test_distributed import TWO_SHARDED, assert_close, outcome, port
from tests.training.test_live import patched
from tests.training.test_resume import ends, train
from tests.training.training_samples import share_graphs

SETTINGS = ["train.source=pictures", "cache_latents.crop=random", "cache_latents.flip=true", "train.steps=5",
            "index.max_enlargement=4.0", "train.ema=true", "train.validation_interval=2", "train.save_interval=2",
            "train.caption_dropout=0.3", "train.caption_dropout_with=empty", "train.batch_size=8"]  # fmt: skip
CHANGES = {"train.source": "pictures", "cache_latents.crop": "random", "cache_latents.flip": True}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return with_pictures(tmp_path_factory.mktemp("live"))


def with_pictures(root):
    """A workspace whose pictures are encoded while training."""
    write_originals(root, count=24)
    with patched(root / "store"):
        run_stages(root, **CHANGES)
    return root


@pytest.fixture
def store(graphs, tmp_path):
    return share_graphs(tmp_path / "store", graphs)


@pytest.fixture(scope="module")
def unbroken(workspace, graphs, tmp_path_factory):
    train(workspace, share_graphs(tmp_path_factory.mktemp("unbroken"), graphs), *SETTINGS)
    return ends(workspace), outcome(workspace)


def test_a_killed_run_ends_in_the_same_bits(workspace, store, unbroken):
    """Killed between states, while it writes one and weights in between, and after its last step."""
    for kill in ("step:1", "save:1", "step:3", "save:2", "outs"):
        train(workspace, store, f"kill={kill}", *SETTINGS, code=-9)
    assert "goes on after step 4" in train(workspace, store, *SETTINGS)
    assert ends(workspace) == unbroken[0]


def test_ranks_and_micro_batches_train_as_one_with_the_whole_batch(workspace, store, unbroken):
    """Two that share the optimizer's state are killed, and go on; as others would: test_distributed.py."""
    train(workspace, store, "kill=step:3", *SETTINGS, *TWO_SHARDED, port(), code=1)
    assert list(store.glob("train/*/slices-*"))
    assert "goes on after step 2" in train(workspace, store, *SETTINGS, *TWO_SHARDED, port())
    assert_close(outcome(workspace), unbroken[1])


def test_a_finished_training_is_known_by_its_pictures_and_not_by_where_they_lie(workspace, store, unbroken):
    train(workspace, store, *SETTINGS)
    moved = workspace / "data/moved"
    shutil.copytree(workspace / "data/images", moved)
    try:
        shutil.rmtree(workspace / "outs/train")
        assert "the same training is done" in start_again(workspace, store, f"data.images={moved}")
    finally:
        shutil.rmtree(moved)


def start_again(workspace, store, *arguments) -> str:
    from tests.training.test_resume import start

    run = start(workspace, store, *SETTINGS, *arguments)
    said = run.wait()
    assert run.returncode == 0, said[-2000:]
    return said


def test_the_model_says_what_it_was_trained_on(workspace, store, unbroken):
    """In text, as a file's metadata has it."""
    train(workspace, store, *SETTINGS)
    facts = provenance.read(workspace / "outs/train/weights/run.json", "train")
    own = provenance.of_training(facts)
    assert all(isinstance(value, str) for value in own.values()) and '"source": "pictures"' in own["params"]
    assert "pillow" in own["versions"] and own["latents"] == file_hash(workspace / "outs/latents/not-cached.json")


def test_a_picture_that_was_changed_since_the_index_stops_the_run(workspace, store):
    path = workspace / "data/images/a/2.png"
    before = path.read_bytes()
    try:
        picture(99, (70, 64)).save(path)
        said = train(workspace, store, *SETTINGS, code=1)
        assert re.search(r"picture a/2\.png is not the one that the index read", said), said[-2000:]
    finally:
        path.write_bytes(before)


def test_a_picture_that_is_gone_since_the_index_stops_the_run(workspace, store):
    path = workspace / "data/images/a/2.png"
    before = path.read_bytes()
    try:
        path.unlink()
        said = train(workspace, store, *SETTINGS, code=1)
    finally:
        path.write_bytes(before)
    assert re.search(r"picture a/2\.png was there when the index read it, .* put it back", said), said[-2000:]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cache_latents.interpolation=bicubic", r"not-cached\.json is of interpolation lanczos -> bicubic"),
        ("cache_text.chunks=2", r"text/not-cached\.json is of chunks 1 -> 2; run `dvc repro cache_text`"),
        ("train.source=cache", r"outs/latents holds no shards; run `dvc repro cache_latents`"),
    ],
)
def test_outs_of_other_settings_are_refused(workspace, store, setting, said):
    found = train(workspace, store, *SETTINGS, setting, code=1)
    assert re.search(said, found) and "Traceback" not in found, found[-2000:]
