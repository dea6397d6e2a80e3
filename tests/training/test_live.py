"""Training on pictures as they are read gives what training on the cache gives, and crops of its own at each epoch."""

import contextlib
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.building import pictures
from pipeline.cache.building.pictures import as_input
from pipeline.cache.format.preparation import usual
from pipeline.cache.reading.live import LiveReader
from pipeline.cache.reading.plan import epoch_plan
from pipeline.cache.reading.texts import CaptionReader
from pipeline.models import config
from pipeline.stage import StageError
from pipeline.training import build, data, key, run
from stages import train as stage
from tests.models.stub_unet import StubUNet
from tests.training.live_samples import encode_ids, encode_pixels, picture, run_stages, stub_encoders, write_originals
from tests.training.training_samples import CONFIG, UNET, open_stub, params

LIVE = {"train.source": "pictures"}
SETS = [
    {"name": "mirrored", "folder": "a", "flip": True, "repeats": 2, "background": [0, 0, 0]},
    {"name": "large", "folder": "b", "resolution": [64, 96], "caption_dropout": 0.5},
]
# What else is set for both.
PREPARATIONS = {
    "plain": {"train.previews": ["a green star", "a red circle 3"]},
    "mirrored": {"cache_latents.flip": True},
    "one draw": {"cache_latents.store": "sample"},
    "mean, long captions": {"cache_latents.store": "mean", "cache_text.chunks": 2},
    "sets": {},
    "resolutions": {"index.further_resolutions": [96], "index.neighbors": 1},
    "weights of words": {
        "cache_text.emphasis": "a1111",
        "cache_text.chunks": 2,
        "train.previews": ["a [green] star", "a red circle 3"],
    },
}


@contextlib.contextmanager
def patched(store: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(store))
        patch.setitem(config.CONFIGS, "tiny", CONFIG)
        stub_encoders(patch)
        yield patch


@pytest.fixture(autouse=True)
def _stubbed(tmp_path):
    with patched(tmp_path / "store"):
        yield


def given(p) -> tuple:
    """The originals and captions that the stage reads itself."""
    originals = stage._originals(p) if p.train.source == "pictures" else None
    return originals, stage._captions(p) if p.train.reads_captions else None


def open_reader(root: Path, **changes):
    """As the stage does it; with the encoders."""
    p = params(**changes)
    with contextlib.chdir(root):
        opened = data.open_data(
            stage.PATHS, stage.made_with(p), p.train, usual(p.cache_latents), *given(p), p.cache_text.emphasis
        )
    if p.train.source == "pictures":
        opened.reader.encode_pixels, opened.reader.texts.encode_ids = encode_pixels, encode_ids
    return opened


def both(root: Path, **changes):
    """The outs of the stages with a cache, and without; data are opened before they are replaced."""
    run_stages(root, **changes)
    cached = open_reader(root, **changes)
    shutil.move(root / "outs/latents", root / "outs/cached")
    shutil.move(root / "outs/text", root / "outs/cached-text")
    for rows, old in ((cached.reader._latents, "cached"), (cached.reader._text, "cached-text")):
        rows.paths = [root / "outs" / old / path.name for path in rows.paths]
    run_stages(root, **changes | LIVE)
    return cached, open_reader(root, **changes | LIVE)


@pytest.mark.parametrize("name", PREPARATIONS)
def test_batches_are_those_of_the_cache(tmp_path, name, monkeypatch):
    words = {"star": "(star:1.4)"} if name == "weights of words" else {}
    write_originals(tmp_path, sets=SETS if name == "sets" else None, **words)
    cached, live = both(tmp_path, **PREPARATIONS[name])
    monkeypatch.chdir(tmp_path)
    assert isinstance(live.reader, LiveReader)
    for part in ("names", "buckets", "repeats", "loss_weights", "caption_dropout", "class_images", "samples"):
        np.testing.assert_array_equal(getattr(cached.reader, part), getattr(live.reader, part))
    np.testing.assert_array_equal(cached.subset, live.subset)
    np.testing.assert_array_equal(cached.held_out, live.held_out)
    assert cached.reader.masked and live.reader.masked
    seen = set()
    for epoch in range(3):
        reader = live.reader
        plan = epoch_plan(reader.buckets, reader.repeats, live.subset, 5, epoch, 4, reader.samples)
        for samples in plan:
            dropped = samples % 3 == 0
            wanted, found = (one.reader.read(samples, epoch, 5, dropped) for one in (cached, live))
            same(wanted, found)
            seen.add(found.latents.tobytes())
    for name, texts in PREPARATIONS[name].items():
        if name == "train.previews":
            for wanted, found in zip(*(one.reader.read_texts(texts) for one in (cached, live)), strict=True):
                np.testing.assert_allclose(found, wanted.astype(np.float32), rtol=1e-3, atol=1e-4)
    assert len(seen) > len(plan)  # flips, views or the order differ between epochs


def test_cached_latents_with_captions_for_encoders_that_are_trained(tmp_path, monkeypatch):
    """The latents and numbers are the cached run's bit for bit, and the ids those of the captions that it draws."""
    write_originals(tmp_path, sets=SETS)
    run_stages(tmp_path)
    cached, taught = open_reader(tmp_path), {"train.text_encoders": "clip_l"}
    text = tmp_path / "outs/text"
    shutil.move(text, tmp_path / "outs/cached-text")
    cached.reader._text.paths = [tmp_path / "outs/cached-text" / path.name for path in cached.reader._text.paths]
    run_stages(tmp_path, **taught)
    assert [path.name for path in text.iterdir()] == ["not-cached.json"]
    assert list((tmp_path / "outs/latents").glob("*.parquet"))
    monkeypatch.chdir(tmp_path)
    found = open_reader(tmp_path, **taught)
    assert type(found.reader) is CaptionReader and not found.reader.encodes
    for part in ("names", "buckets", "repeats", "loss_weights", "caption_dropout", "class_images", "samples"):
        np.testing.assert_array_equal(getattr(cached.reader, part), getattr(found.reader, part))
    np.testing.assert_array_equal(cached.held_out, found.held_out)
    reader = found.reader
    reader.texts.encode_ids = encode_ids
    for samples in epoch_plan(reader.buckets, reader.repeats, found.subset, 5, 1, 4, reader.samples):
        for dropped in (None, samples % 3 == 0):
            wanted, batch = (one.reader.read(samples, 1, 5, dropped) for one in (cached, found))
            for name in ("latents", "time_ids", "images", "masks"):
                np.testing.assert_array_equal(getattr(batch, name), getattr(wanted, name))
            assert batch.context is None and batch.pooled is None and batch.ids.dtype == np.int32
            context, pooled = encode_ids(batch.ids[:, 0, 0], batch.ids[:, 1, 0])
            np.testing.assert_allclose(context, wanted.context.astype(np.float32), rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(pooled, wanted.pooled)
    for wanted, texts in zip(*(one.reader.still_texts(found.held_out[:1]) for one in (cached, found)), strict=True):
        np.testing.assert_allclose(texts, wanted.astype(np.float32), rtol=1e-3, atol=1e-4)
    assert reader.read_texts(["a green star", "a heart"])[0].shape == (2, 77, UNET.context_dim)
    reader.close()


def test_captions_of_other_settings_are_refused(tmp_path):
    """outs/text of a cache, of the base's captions as they were, and of another length."""
    write_originals(tmp_path, count=6)
    run_stages(tmp_path)
    taught = {"train.text_encoders": "both"}
    with pytest.raises(
        StageError, match="outs/text was not made for a training that encodes captions itself; run `dvc repro"
    ):
        open_reader(tmp_path, **taught)
    run_stages(tmp_path, **taught)
    with pytest.raises(StageError, match=r"not-cached\.json is of chunks 1 -> 2; run `dvc repro cache_text`"):
        open_reader(tmp_path, **taught | {"cache_text.chunks": 2})
    with pytest.raises(StageError, match="outs/text holds no shards; run `dvc repro cache_text`"):
        open_reader(tmp_path)


def same(wanted, found):
    np.testing.assert_array_equal(found.time_ids, wanted.time_ids)
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(found.masks, wanted.masks)
    for name in ("latents", "context", "pooled"):
        values, cached = getattr(found, name), getattr(wanted, name).astype(np.float32)
        assert values.dtype == np.float32 and values.shape == cached.shape
        np.testing.assert_allclose(values, cached, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def random_crops(tmp_path_factory):
    root = write_originals(tmp_path_factory.mktemp("random"), count=8, sizes=SIZES_OF_RANDOM)
    with patched(root / "store"):
        run_stages(root, **RANDOM)
    return root


SIZES_OF_RANDOM = (100, 64), (64, 96)
RANDOM = LIVE | {"cache_latents.crop": "random", "cache_latents.flip": True, "index.buckets": False,
                 "train.validation_share": 0.3}  # fmt: skip


def test_each_epoch_has_crops_of_its_own(random_crops, monkeypatch):
    monkeypatch.chdir(random_crops)
    reader = open_reader(random_crops, **RANDOM).reader
    samples = np.arange(4)
    first = reader.read(samples, 0, 5)
    crops = {tuple(reader.read(samples, epoch, 5).time_ids[0, 2:4]) for epoch in range(12)}
    assert len(crops) > 4
    assert all(0 <= top <= 32 and 0 <= left <= 36 for top, left in crops)
    # of the number in the plan, so a sample's second time in an epoch is another; and of the seed
    again, seeded = reader.read(samples + reader.n, 0, 5), reader.read(samples, 0, 6)
    assert (again.time_ids != first.time_ids).any() and (seeded.time_ids != first.time_ids).any()
    # what was read before does not matter, nor what is read beside it
    late = open_reader(random_crops, **RANDOM).reader
    np.testing.assert_array_equal(late.read(samples[::-1], 0, 5).latents[::-1], first.latents)


def test_a_crop_is_the_part_that_its_numbers_name(random_crops, monkeypatch):
    """Of the picture or of the mirrored one, and over some epochs each sample is both."""
    monkeypatch.chdir(random_crops)
    reader = open_reader(random_crops, **RANDOM).reader
    samples, seen = np.arange(reader.n), set()
    originals = [picture(number, SIZES_OF_RANDOM[number % 2]) for number in range(8)]
    whole = {True: [np.array(one)[:, ::-1] for one in originals], False: list(map(np.array, originals))}
    for epoch in range(8):
        batch = reader.read(samples, epoch, 5)
        for sample, moments, (height, width, top, left, *_) in zip(samples, batch.latents, batch.time_ids, strict=True):
            fits = [
                (sample, number, mirrored)
                for mirrored, pixels in whole.items()
                for number, one in enumerate(pixels)
                if one.shape[:2] == (height, width)
                and np.allclose(
                    encode_pixels(as_input(one[top : top + 64, left : left + 64])[None])[0], moments, atol=1e-4
                )
            ]
            assert len(fits) == 1, (epoch, sample, fits)
            seen.update(fits)
    assert len(seen) == 2 * len(samples) and len({number for _, number, _ in seen}) == len(samples)


def test_pictures_are_prepared_by_workers_before_they_are_asked_for(random_crops, monkeypatch):
    """As many at once as there are workers."""
    monkeypatch.chdir(random_crops)
    reader = open_reader(random_crops, **RANDOM | {"cache_latents.workers": 3}).reader
    wanted = reader.read(np.arange(8), 0, 5)
    threads, at_once, go = set(), threading.Barrier(3), threading.Event()
    prepare = pictures.prepare

    def waiting(*given, **options):
        if not go.is_set():
            threads.add(threading.current_thread().name)
            at_once.wait(20)
            go.wait(20)
        return prepare(*given, **options)

    monkeypatch.setattr(pictures, "prepare", waiting)
    finish = reader.begin(np.arange(8), 0, 5)
    deadline = time.monotonic() + 20
    while len(threads) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(threads) == 3 and all(name.startswith("prepare") for name in threads)
    go.set()
    np.testing.assert_array_equal(finish().latents, wanted.latents)


def test_what_is_validated_on_is_the_middle_each_time(random_crops, monkeypatch):
    monkeypatch.chdir(random_crops)
    opened = open_reader(random_crops, **RANDOM)
    reader, held_out = opened.reader, opened.held_out
    found = reader.still(held_out)
    again = open_reader(random_crops, **RANDOM).reader.still(held_out)
    assert len(held_out) and np.array_equal(found.latents, again.latents)
    free = np.maximum(np.round(64 * found.time_ids[:, :2] / found.time_ids[:, :2].min(1, keepdims=True)) - 64, 0)
    np.testing.assert_array_equal(found.time_ids[:, 2:4], free // 2)


def fine_tune(root: Path, device, out: Path, **changes):
    p = params(**changes)
    with contextlib.chdir(root):
        paths = data.Paths(**vars(stage.PATHS) | {"out": out})
        opened = data.open_data(
            paths, stage.made_with(p), p.train, usual(p.cache_latents), *given(p), p.cache_text.emphasis
        )
        end, _ = data.count_steps(opened, p.train, 1)
        training = key.training(paths, "tiny", {"target": device.target}, p.diffusion, p.train, 1, end)
        run.fine_tune(training, opened, paths, "tiny", device, p.diffusion, p.train)
    return [json.loads(line) for line in (out / "live/log.jsonl").read_text().splitlines()]


def test_the_losses_are_those_of_the_cached_run(tmp_path, device, monkeypatch):
    """With all that may be drawn, micro-batches and averages."""
    monkeypatch.setattr(build, "UNet", StubUNet)
    monkeypatch.setattr(build, "open_unet", open_stub)
    write_originals(tmp_path)
    settings = {"train.ema": True, "train.gradient_accumulation_steps": 2, "train.batch_size": 2,
                "train.caption_dropout": 0.3, "train.caption_dropout_with": "empty"}  # fmt: skip
    settings |= {"index.buckets": False, "train.validation_share": 0.25}
    found = []
    for source in ("cache", "pictures"):
        run_stages(tmp_path, **settings | {"train.source": source})
        found.append(fine_tune(tmp_path, device, tmp_path / source, **settings | {"train.source": source}))
    cached, live = ([{k: v for k, v in row.items() if "loss" in k} for row in rows] for rows in found)
    assert [row.keys() for row in cached] == [row.keys() for row in live]
    assert sum("train/loss" in row for row in live) == 6
    for one, other in zip(cached, live, strict=True):
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=2e-3)


def test_encoders_of_the_loop_have_the_precision_of_the_caches(tmp_path, device, monkeypatch):
    """Of pictures, of captions, and of what is frozen beside an encoder that is trained. No CPU computes in this one."""
    settings = LIVE | {"device.target": "Ascend"}
    settings |= {"cache_latents.precision": "bfloat16", "cache_text.precision": "bfloat16"}
    write_originals(tmp_path, count=6)
    run_stages(tmp_path, **settings)
    reader = open_reader(tmp_path, **settings).reader
    assert (reader.precision, reader.texts.precision) == ("bfloat16", "bfloat16")

    def trained(config, device, diffusion, train, paths, precision):
        raise StageError(f"asked for {precision}")

    monkeypatch.setattr(build, "trained", trained)
    with pytest.raises(StageError, match="asked for bfloat16"):
        fine_tune(tmp_path, device, tmp_path / "out", **settings)
