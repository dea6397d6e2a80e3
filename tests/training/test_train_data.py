"""What the data alone show to be wrong with a run: found before MindSpore is imported."""

import hashlib
import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.cache.format import shards
from pipeline.cache.format.fingerprint import file_hash
from pipeline.stage import StageError
from pipeline.training import data
from stages import train as stage
from tests.cache.cache_samples import read_all, write_cache, write_captions, write_samples
from tests.test_params import ROOT, with_changes
from tests.training.training_samples import MADE_WITH, images, params, write_workspace

ENCODERS = ("vae", "clip_l", "clip_g")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("data"), count=20)


@pytest.fixture
def paths(workspace, tmp_path, monkeypatch):
    """The caches, and no encoders yet."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    outs = {name: workspace / path for name, path in vars(stage.PATHS).items()}
    return data.Paths(**outs | {name: tmp_path / f"{name}.ckpt" for name in ENCODERS})


def open_data(paths, made_with=MADE_WITH, **changes):
    found = data.open_data(paths, made_with, params(**changes).train)
    found.reader.close()
    return found


def test_the_settings_that_are_compared_are_those_of_params_yaml():
    assert stage.made_with(params()) == MADE_WITH


def test_encoders_that_are_not_here_are_not_compared_and_that_is_said(paths, caplog):
    caplog.set_level(logging.INFO)
    assert len(open_data(paths).subset)
    assert "not compared with the caches, as they are not here" in caplog.text and str(paths.clip_g) in caplog.text


@pytest.mark.parametrize(("name", "kind"), [("vae", "latents"), ("clip_l", "text"), ("clip_g", "text")])
def test_caches_of_other_encoders_are_refused(paths, name, kind):
    getattr(paths, name).write_bytes(b"another")
    with pytest.raises(StageError, match=rf"another {name} .*{name}\.ckpt.*dvc repro cache_{kind}"):
        open_data(paths)


def test_caches_of_the_encoders_that_are_here_are_taken(paths, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ENCODERS:
        getattr(paths, name).write_bytes(name.encode())
    found = {name: file_hash(getattr(paths, name)) for name in ENCODERS}
    assert found["vae"] == hashlib.blake2b(b"vae", digest_size=16).hexdigest()
    for kind, folder in ((shards.LATENTS, paths.latents), (shards.TEXT, paths.text)):
        rows = [row for path in sorted(folder.glob("*.parquet")) for row in read_all(path, kind)]
        write_cache(tmp_path / kind.name, kind, rows, MADE_WITH[kind.name] | found)
    open_data(replace(paths, latents=tmp_path / "latents", text=tmp_path / "text"))
    assert "not compared" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("latents", "precision", "bfloat16"),
        ("latents", "background", [0, 0, 0]),
        ("latents", "store", "mean"),
        ("text", "chunks", 2),
        ("text", "config", "sdxl-base"),
    ],
)
def test_caches_of_other_settings_are_refused(paths, kind, key, value):
    other = MADE_WITH | {kind: MADE_WITH[kind] | {key: value}}
    with pytest.raises(StageError, match=rf"{kind} was encoded with {key} .*yaml says .*dvc repro cache_{kind}"):
        open_data(paths, other)


def test_a_share_that_leaves_nothing_is_refused(paths):
    with pytest.raises(StageError, match="20 pictures and train.validation_share 0.999 leaves none to train on"):
        open_data(paths, **{"train.validation_share": 0.999})


def test_warm_up_against_epochs(paths):
    """20 pictures in batches of 4: 5 steps an epoch."""
    epochs = {"train.steps": None, "train.epochs": 2, "train.validation_share": 0.0, "train.lr_scheduler": "cosine"}
    found = open_data(paths, **epochs)
    for warm_up, changes in ((10, {}), (11, {"train.lr_scheduler": "constant"})):
        train = params(**epochs | {"train.lr_warmup_steps": warm_up} | changes).train
        assert data.count_steps(found, train, ranks=1) == (10, 5)
    said = r"train\.lr_warmup_steps: must not be above steps \(10\), found 11.*train\.epochs 2 of 5 steps"
    with pytest.raises(StageError, match=said):
        data.count_steps(found, params(**epochs | {"train.lr_warmup_steps": 11}).train, ranks=1)
    with pytest.raises(StageError, match=r"steps \(4\), found 5"):  # two ranks see twice as many a step: 3, then 2 of 2
        two = params(**epochs | {"train.lr_warmup_steps": 5, "train.batch_size": 5}).train
        data.count_steps(found, two, ranks=2)


def test_steps_that_no_name_of_a_state_holds_are_refused(paths):
    train = params(**{"train.steps": None, "train.epochs": 99_999_999}).train
    with pytest.raises(StageError, match="wanted at most 99999999"):
        data.count_steps(open_data(paths), train, ranks=1)


def run(folder, name):
    """The stage, with a MindSpore that cannot be imported."""
    for link in ("pipeline", "stages"):
        (folder / link).symlink_to(ROOT / link)
    (folder / "mindspore.py").write_text("raise SystemExit('MindSpore was imported')")
    found = subprocess.run([sys.executable, "-m", f"stages.{name}"], cwd=folder, capture_output=True, text=True)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    return found.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "another vae"),
        ({"cache_text.chunks": 2}, "text was encoded with chunks 1, params.yaml says 2"),
        ({"train.steps": None, "train.epochs": 1}, "train.lr_warmup_steps: must not be above steps (2), found 30"),
        ({"train.sample_interval": 5}, "train.sample_interval is above 0 and outs/convert/vae.ckpt does not exist"),
        ({"device.workers": 2, "train.validation_share": 0.999}, "leaves none to train on"),
    ],
)
def test_train_says_so_before_mindspore_is_imported(workspace, tmp_path, monkeypatch, changes, said):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    (tmp_path / "outs/convert").mkdir(parents=True)
    for name in ("latents", "text", "index"):
        (tmp_path / "outs" / name).symlink_to(workspace / "outs" / name)
    if not changes:
        (tmp_path / "outs/convert/vae.ckpt").write_bytes(b"another")
    with_changes(tmp_path, {"device.target": "CPU"} | changes)
    found = run(tmp_path, "train")
    assert said in found and "MindSpore was imported" not in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cache_text.precision": "bfloat16"}, "cache_text.precision: bfloat16 needs an Ascend NPU"),
        (
            {"model.config": "sdxl-base", "train.learning_rate": 1e-5, "index.resolution": 1024}
            | {"sample.width": 1024, "sample.height": 1024},
            "vocab.json has 1024 tokens and the text encoders of model.config sdxl-base know",
        ),
    ],
)
def test_a_cache_stage_says_so_before_mindspore_is_imported(tmp_path, monkeypatch, changes, said):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    (tmp_path / "outs/convert").mkdir(parents=True)
    (tmp_path / "outs/index").mkdir()
    for name in ("clip_l", "clip_g"):
        (tmp_path / f"outs/convert/{name}.ckpt").write_bytes(b"")
    (tmp_path / "data").symlink_to(ROOT / "data")
    write_captions(tmp_path / "outs/index/captions.parquet", [(b"x" * 16, "a caption")])
    with_changes(tmp_path, changes)
    assert said in run(tmp_path, "cache_text")


def test_what_is_held_out_is_validated_once_and_no_class_picture_is(tmp_path, paths):
    """With a share of almost all: each picture's copy in another set and the class pictures stay out."""
    names = images(20)
    plain = [(image, f"picture {n}") for n, image in enumerate(names)]
    samples = tmp_path / "samples.parquet"
    is_class = [False] * 17 + [True] * 3 + [False] * 5
    write_samples(samples, plain + plain[:5], set=[0] * 20 + [1] * 5, class_images=is_class)
    found = open_data(replace(paths, samples=samples), **{"train.validation_share": 0.9})
    held_out = [found.reader.names[sample].tobytes() for sample in found.held_out]
    trained = {found.reader.names[sample].tobytes() for sample in found.subset}
    assert len(held_out) == len(set(held_out)) and not trained & set(held_out)
    assert not set(held_out) & set(names[17:]) and set(names) - trained - set(held_out) <= set(names[17:])


def test_samples_that_no_epoch_has(tmp_path, paths):
    samples = tmp_path / "samples.parquet"
    plain = [(image, f"picture {n}") for n, image in enumerate(images(20))]
    write_samples(samples, plain, repeats=[0] * 10 + [1] * 10)
    found = open_data(replace(paths, samples=samples), **{"train.validation_share": 0.0})
    assert {found.reader.names[sample].tobytes() for sample in found.subset} == set(images(20)[10:])
    write_samples(samples, plain, repeats=[0.01] * 20)
    with pytest.raises(StageError, match=r"an epoch has 0\.2 samples: .*samples.parquet says how often"):
        open_data(replace(paths, samples=samples), **{"train.validation_share": 0.0})
