"""Sets that prepare pictures in ways of their own, from the index to the batches of training."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.building import engine, latents
from pipeline.cache.building.pictures import as_input
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.plan import Epochs, epoch_plan
from pipeline.cache.reading.reader import Reader
from pipeline.data import geometry, memo
from pipeline.data.buckets import buckets
from pipeline.data.how import How
from pipeline.data.index import index
from pipeline.data.sets import SetsError
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of, with_usual
from pipeline.stage import StageError
from tests.cache.cache_samples import TEXT_FINGERPRINT, caption, write_cache
from tests.data.data_sets import name, picture, rows, write_folder

P = [picture(number, 130 + number, 100) for number in range(8)]
USUAL = Preparation("moments", "center", 1, False, "area", (255, 255, 255))


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def vae(pixels: np.ndarray) -> np.ndarray:
    b, _, height, width = pixels.shape
    blocks = pixels.reshape(b, 3, height // 8, 8, width // 8, 8).mean(axis=(3, 5))
    return np.concatenate([blocks, blocks, blocks[:, :2]], axis=1).astype(np.float32)


def run(data: Path, out: Path, usual=USUAL, further=(), neighbors=0) -> int:
    """index and cache_latents; how many rows were encoded. The text cache has all captions."""
    source = open_source(str(data))
    sets, _ = find(str(data), source)
    sets = with_usual(sets, further)
    how = {"sets": sets, "others": sizes_of(sets, 32, True), "neighbors": neighbors}
    index(source, out / "index", buckets(64, 32), 16, 2.0, 10**6, 1.0, 1, **how)
    job = latents.make_job(out / "index/images.parquet", source, usual.fingerprint, usual, lambda: vae, 3, 2)
    report = engine.build(job, out / "latents")
    if not (out / "text").exists():
        write_cache(out / "text", shards.TEXT, [caption("")], TEXT_FINGERPRINT)
    return report.encoded


def open_reader(out: Path, usual=USUAL) -> Reader:
    return Reader(out / "latents", out / "text", out / "index/samples.parquet", preparation=usual)


def folder(tmp_path: Path, sets: list[dict], files: dict | None = None) -> Path:
    files = files or {"a/0.png": P[0], "a/1.png": P[1], "b/2.png": P[2], "b/0.png": P[0], "c/3.png": P[3]}
    return write_folder(tmp_path / "data", files | {"sets.yaml": json.dumps({"sets": sets})})


def latent(data: bytes, bucket, crop="center", flip=False, background=(255, 255, 255), generator=None) -> np.ndarray:
    prepared = geometry.prepare(data, bucket, crop, "area", background, generator)
    prepared = geometry.mirror(prepared) if flip else prepared
    return vae(as_input(prepared.pixels)[None])[0].astype(np.float16)


def drawn(reader: Reader, view: int, epochs: int = 30) -> set[bytes]:
    """All latents that a view is read as."""
    return {reader.read(np.array([view]), epoch, 5).latents[0].tobytes() for epoch in range(epochs)}


def test_each_set_has_its_own_rows_and_what_two_share_is_encoded_once(tmp_path):
    sets = [
        {"folder": "a", "flip": True, "resolution": 64},  # 64 is the usual one
        {"folder": "b", "resolution": 96},
        {"folder": ".", "crop": "random", "crops": 3},
    ]
    data, out = folder(tmp_path, sets), tmp_path / "out"
    # a: 2 pictures mirrored and not; b: 2 at 96; all: 4 contents, 3 random crops each
    assert run(data, out) == 4 + 2 + 12
    with open_reader(out) as reader:
        assert reader.n == 2 + 2 + 4 == len(np.unique(reader.samples))
        of_set = [row["set"] for row in rows(out / "index/samples.parquet")]
        for view in range(reader.n):
            number = next(n for n, one in enumerate(P) if name(one) == reader.names[view].tobytes())
            bucket = tuple(reader.buckets[view].tolist())
            found = drawn(reader, view)
            if of_set[view] == 1:
                assert found == {latent(P[number], bucket).tobytes()}
            elif of_set[view] == 0:
                assert found == {latent(P[number], bucket, flip=flip).tobytes() for flip in (False, True)}
            else:
                how = USUAL.of(How(crop="random"))
                generators = [
                    geometry.generator(how.row(name(P[number]), False, n, USUAL.fingerprint)) for n in range(3)
                ]
                assert found == {latent(P[number], bucket, "random", generator=g).tobytes() for g in generators}
    sets[0] |= {"flip": False}
    assert run(folder(tmp_path, sets), out) == 0
    sets[0] |= {"flip": True, "resolution": 96}
    assert run(folder(tmp_path, sets), out) == 3  # 1 at 96, and both mirrored; picture 0 at 96 is b's
    assert run(folder(tmp_path, [{"folder": "."}]), out) == 2  # those of b and c alone, at the usual size


def test_a_row_has_the_mask_of_what_it_shows(tmp_path):
    """Mirrored with its picture, and of the part that a random crop took."""
    data, mask = picture(0, 130, 100), picture(20, 130, 100)
    files = {f"{folder}/{name}": one for folder in "ab" for name, one in (("0.png", data), ("0.mask.png", mask))}
    sets = [{"folder": "a", "flip": True}, {"folder": "b", "flip": True, "crop": "random", "crops": 3}]
    out = tmp_path / "out"
    assert run(folder(tmp_path, sets, files), out) == 2 + 6
    content = rows(out / "index/samples.parquet")[0]["image"]
    randomly = USUAL.of(How(flip=True, crop="random", crops=3))
    generators = [geometry.generator(randomly.row(content, False, n, USUAL.fingerprint)) for n in range(3)]
    ways = [[("center", None)], [("random", generator) for generator in generators]]
    with open_reader(out) as reader:
        for view, crops in enumerate(ways):
            bucket = tuple(reader.buckets[view].tolist())
            shown = [
                geometry.prepare(data, bucket, crop, "area", USUAL.background, generator, mask)
                for crop, generator in crops
            ]
            both = [(vae(as_input(one.pixels)[None]).astype(np.float16), one.mask) for one in shown]
            # these show the same part, mirrored
            both += [(vae(as_input(one.pixels[:, ::-1])[None]).astype(np.float16), one.mask[:, ::-1]) for one in shown]
            wanted = {(latent.tobytes(), mask.tobytes()) for latent, mask in both}
            batches = [reader.read(np.array([view]), epoch, 5) for epoch in range(40)]
            found = {(batch.latents.tobytes(), batch.masks.tobytes()) for batch in batches}
            assert found == wanted
            places = {one.crop_top_left for one in shown}
            assert len({mask for _, mask in found}) == 2 * len(places) and (len(places) > 1) == (len(crops) > 1)


def test_sets_that_say_what_is_usual_leave_all_as_it_was(tmp_path):
    data, out = folder(tmp_path, [{"folder": "."}]), tmp_path / "out"
    run(data, out)
    before = {path.name: path.read_bytes() for path in (out / "latents").iterdir()}
    same = {"folder": ".", "flip": False, "crop": "center", "background": [255, 255, 255], "resolution": 64}
    assert run(folder(tmp_path, [same]), out) == 0
    assert {path.name: path.read_bytes() for path in (out / "latents").iterdir()} == before


def test_several_resolutions_and_neighbors_are_further_rows_of_which_an_epoch_has_one(tmp_path):
    files = {f"{n}.png": P[n] for n in range(4)} | {f"{n}.mask.png": picture(20, 130 + n, 100) for n in range(2)}
    data, out = write_folder(tmp_path / "data", files), tmp_path / "out"
    assert run(data, out) == 4
    assert run(data, out, further=(96, 128)) == 8  # 96 and 128; those at 64 are there
    one = {path.name: path.read_bytes() for path in (out / "latents").iterdir()}
    with open_reader(out) as reader:
        assert reader.n == 12 and len(np.unique(reader.samples)) == 4
        sides = np.sqrt(reader.buckets.prod(1)).reshape(4, 3)
        assert (np.diff(sides) > 0).all() and (abs(sides - [64, 96, 128]) < 9).all()  # the usual one first
        total = np.zeros(12, int)
        for epoch in range(30):
            plan = epoch_plan(reader.buckets, reader.repeats, np.arange(12), 1, epoch, 3, reader.samples)
            numbers = plan[plan >= 0]
            assert sorted(reader.samples[numbers]) == [0, 1, 2, 3]
            total += np.bincount(numbers, minlength=12)
            for view in numbers:
                batch = reader.read(np.array([view]), epoch, 1)
                width, height = reader.buckets[view].tolist()
                data_of = next(one for one in P if name(one)[:8] == reader.names[view].tobytes()[:8])
                assert batch.latents[0].tobytes() == latent(data_of, (width, height)).tobytes()
                assert batch.masks.shape == (1, height // 8, width // 8)
        assert total.sum() == 120 and (total > 0).all()
    assert run(data, out, further=(96,)) == 0
    assert run(data, out, neighbors=1) == 4
    assert run(data, out, further=(96, 128)) == 0
    assert {path.name: path.read_bytes() for path in (out / "latents").iterdir()} == one
    sets = [{"folder": ".", "resolution": [96, 128]}]
    write_folder(data, {"sets.yaml": json.dumps({"sets": sets})})
    assert run(data, out) == 0
    with open_reader(out) as reader:
        assert reader.n == 8


def test_a_resolution_that_a_picture_is_too_small_for_is_left_out(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": picture(0, 130, 100), "b.png": picture(1, 300, 300)})
    run(data, tmp_path / "out", further=(256,))
    found = {row["image"]: row["buckets"] for row in rows(tmp_path / "out/index/samples.parquet")}
    assert len(found[name(picture(0, 130, 100))]) == 2 and len(found[name(picture(1, 300, 300))]) == 4


def test_a_background_of_its_own(tmp_path):
    files = {"a/0.png": picture(0, 64, 64, transparent=True), "b/0.png": picture(0, 64, 64, transparent=True)}
    sets = [{"folder": "a", "background": [0, 0, 0]}, {"folder": "b"}]
    assert run(folder(tmp_path, sets, files), tmp_path / "out") == 2
    with open_reader(tmp_path / "out") as reader:
        found = [drawn(reader, view) for view in range(2)]
    wanted = [{latent(files["a/0.png"], (64, 64), background=b).tobytes()} for b in ((0, 0, 0), (255, 255, 255))]
    assert found == wanted


def test_a_picture_too_small_for_one_set_stays_in_the_other(tmp_path):
    files = {"a/0.png": P[0], "a/1.png": P[1], "b/2.png": P[2], "large.png": picture(9, 600, 600)}
    data = folder(tmp_path, [{"folder": "a"}, {"folder": ".", "resolution": 512}], files)
    out, source = tmp_path / "out", open_source(str(data))
    sets, _ = find(str(data), source)
    index(source, out, buckets(64, 32), 16, 1.25, 10**6, 1.0, 1, sets=sets, others={512: buckets(512, 32)})
    used = {row["path"]: row["rejected"] is None for row in rows(out / "images.parquet")}
    assert used == {"a/0.png": True, "a/1.png": True, "b/2.png": False, "large.png": True}
    assert 'a/0.png,picture,"not in the set .: too small' in (out / "unmatched.csv").read_text()
    assert sorted(row["set"] for row in rows(out / "samples.parquet")) == [0, 0, 1]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset.toml", '[general]\nflip_aug = true\nresolution = [96, 96]\n[[datasets]]\n[[datasets.subsets]]\n'
         'image_dir = "a"\nrandom_crop = true\n'),
        ("concepts.json", json.dumps([{"path": "a", "image": {"enable_random_flip": True, "enable_crop_jitter": True,
         "enable_resolution_override": True, "resolution_override": "96"}}])),
        ("sets.yaml", json.dumps({"sets": [{"folder": "a", "flip": True, "crop": "random", "resolution": 96}]})),
    ],
)  # fmt: skip
def test_each_form_says_it(tmp_path, file, text):
    data = write_folder(tmp_path / "data", {"a/0.png": P[0], file: text})
    (one,), notes = find(str(data), open_source(str(data)))
    assert (one.flip, one.crop, one.resolutions) == (True, "random", (96,)) and not notes


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("dataset.toml", '[[datasets]]\nresolution = [96, 64]\n[[datasets.subsets]]\nimage_dir = "a"\n', "twice the same"),
        ("dataset.toml", '[[datasets]]\nresolution = true\n[[datasets.subsets]]\nimage_dir = "a"\n', "resolution"),
        ("concepts.json", json.dumps([{"path": "a", "image": {"enable_random_flip": 1}}]), "true or false"),
        ("concepts.json", json.dumps([{"path": "a", "image": {"enable_resolution_override": True,
         "resolution_override": "big"}}]), "wanted sides in pixels"),
        ("sets.yaml", json.dumps({"sets": [{"folder": "a", "crop": "left"}]}), "crop"),
        ("sets.yaml", json.dumps({"sets": [{"folder": "a", "background": [0, 0]}]}), "background"),
        ("sets.yaml", json.dumps({"sets": [{"folder": "a", "resolution": 0}]}), "resolution"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, file, text, match):
    data = write_folder(tmp_path / "data", {"a/0.png": P[0], file: text})
    with pytest.raises(SetsError, match=match):
        find(str(data), open_source(str(data)))


def test_a_resolution_that_makes_no_buckets_is_refused(tmp_path):
    data = write_folder(
        tmp_path / "data", {"a/0.png": P[0], "sets.yaml": '{"sets": [{"folder": "a", "resolution": 100}]}'}
    )
    sets, _ = find(str(data), open_source(str(data)))
    for several in (True, False):
        with pytest.raises(SetsError, match="set 'a': a resolution of 100"):
            sizes_of(sets, 32, several)
    assert sizes_of((), 32, True) == {}


@pytest.mark.parametrize("ranks_batch", [2, 3, 8])
def test_of_several_views_each_epoch_draws_one(ranks_batch):
    """Each sample exactly as often as its repeats say, its views in turn, and epochs as long as their plans."""
    rng = np.random.default_rng(0)
    views = rng.integers(1, 4, 40)
    samples = np.repeat(np.arange(40), views).astype(np.int32)
    sizes = np.array([(64, 64), (96, 32), (96, 96)], np.int32)[rng.integers(0, 3, len(samples))]
    repeats = np.repeat(rng.choice([0.5, 1.0, 3.0], 40), views)
    subset = np.flatnonzero(samples % 5 != 0)
    epochs = Epochs(sizes, repeats, subset, 3, ranks_batch, samples)
    seen, total = np.zeros(len(samples), int), 0
    for epoch in range(60):
        plan = epoch_plan(sizes, repeats, subset, 3, epoch, ranks_batch, samples)
        assert epochs.start(epoch) == total and epochs.of(total) == epoch
        total += len(plan)
        numbers = plan[plan >= 0]
        assert len(set(numbers.tolist())) == len(numbers)
        for batch in plan:
            assert len(np.unique(sizes[batch[batch >= 0] % len(samples)], axis=0)) == 1
        found = np.bincount(samples[numbers % len(samples)], minlength=40)
        wanted = repeats[np.searchsorted(samples, np.arange(40))] * (np.arange(40) % 5 != 0)
        assert (np.abs(found - wanted) < 1).all()
        np.add.at(seen, numbers % len(samples), 1)
        again = epoch_plan(sizes, repeats, subset, 3, epoch, ranks_batch, samples)
        assert (again == plan).all()
    for sample in np.unique(samples[subset]):
        own = seen[samples == sample]
        assert (own > 0).all() and own.sum() == pytest.approx(60 * repeats[samples == sample][0], abs=1)
    other = epoch_plan(sizes, repeats, subset, 4, 0, ranks_batch, samples)
    assert set((other % len(samples)).ravel()) != set(
        (epoch_plan(sizes, repeats, subset, 3, 0, ranks_batch, samples) % len(samples)).ravel()
    )


def test_without_views_plans_are_as_they_were():
    """blake2b of plans that were made before there were views."""
    sizes = np.array([(64, 64), (96, 32)], np.int32)[np.arange(50) % 2]
    digest = hashlib.blake2b(digest_size=8)
    for repeats in (np.ones(50), np.linspace(0, 3, 50)):
        digest.update(epoch_plan(sizes, repeats, np.arange(3, 50), 7, 2, 4).tobytes())
    assert digest.hexdigest() == "70275850aadc657a"


@pytest.mark.parametrize(
    "usual, how, whose",
    [("center", How(crops=4), "that of cache_latents"), ("random", How(crop="center", crops=4), "its own")],
)
def test_several_crops_of_one_center_are_refused(usual, how, whose):
    """Before: one row was made and four were asked for."""
    with pytest.raises(StageError, match=f"crops: 4, and its crop is center .{whose}"):
        replace(USUAL, crop=usual).of(how)


def test_one_crop_or_random_ones_are_not():
    assert len(replace(USUAL, crop="random").of(How(crops=4)).variants) == 4
    assert len(USUAL.of(How(crop="random", crops=4)).variants) == 4
    assert len(USUAL.of(How(crops=1)).variants) == len(USUAL.of(How(flip=False)).variants) == 1
    # A set may have the one crop of the center where cache_latents has several.
    assert len(replace(USUAL, crop="random", crops=3).of(How(crop="center")).variants) == 1
