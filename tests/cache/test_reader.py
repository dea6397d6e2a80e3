"""The reader of both caches: what it joins, draws and refuses."""

import hashlib

import numpy as np
import pytest

from pipeline.cache.format import lookup, shards
from pipeline.cache.format.names import EMPTY_CAPTION
from pipeline.cache.reading.reader import CacheError, Reader
from tests.cache.cache_samples import FINGERPRINT, TEXT_FINGERPRINT, caption, latent, write_cache, write_samples

BUCKETS = [(64, 64), (96, 32)]
IMAGES = [hashlib.blake2b(str(n).encode(), digest_size=16).digest() for n in range(40)]
TEXTS = {image: [f"picture {n}"] + (["the same caption"] if n % 3 == 0 else []) for n, image in enumerate(IMAGES)}


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


@pytest.fixture
def cache(tmp_path):
    rows = [latent(image, BUCKETS[n % 2]) for n, image in enumerate(IMAGES)]
    write_cache(tmp_path / "latents", shards.LATENTS, rows, FINGERPRINT)
    texts = sorted({text for values in TEXTS.values() for text in values} | {""})
    write_cache(tmp_path / "text", shards.TEXT, [caption(text) for text in texts], TEXT_FINGERPRINT)
    write_samples(tmp_path / "samples.parquet", [(image, text) for image, values in TEXTS.items() for text in values])
    return tmp_path


def open_reader(folder, **checks) -> Reader:
    return Reader(folder / "latents", folder / "text", folder / "samples.parquet", **checks)


def values(row: dict, payload: str, dtype=np.float16) -> np.ndarray:
    return np.frombuffer(row[payload], dtype)


def test_a_batch_holds_the_rows_of_its_samples(cache):
    with open_reader(cache) as reader:
        assert reader.n == len(IMAGES)
        assert [name.tobytes() for name in reader.names] == sorted(IMAGES)
        samples = np.flatnonzero((reader.buckets == BUCKETS[0]).all(axis=1))[:5]
        batch = reader.read(samples, epoch=0, seed=0)
        assert (
            batch.latents.shape == (5, 8, 8, 8) and batch.context.shape == (5, 77, 12) and batch.pooled.shape == (5, 6)
        )
        assert batch.pooled.dtype == np.float32 and batch.time_ids.dtype == np.int32
        for index, sample in enumerate(samples):
            image = reader.names[sample].tobytes()
            row = latent(image, BUCKETS[0])
            assert np.array_equal(batch.latents[index].reshape(-1), values(row, "latent"))
            assert batch.time_ids[index].tolist() == [24, 40, 0, 1, 64, 64]
            possible = [caption(text) for text in TEXTS[image]]
            assert any(np.array_equal(batch.context[index].reshape(-1), values(row, "context")) for row in possible)


def test_each_epoch_draws_one_caption_and_all_are_drawn(cache):
    with open_reader(cache) as reader:
        sample = next(s for s in range(reader.n) if len(TEXTS[reader.names[s].tobytes()]) == 2)
        contexts = {caption(text)["context"]: text for text in TEXTS[reader.names[sample].tobytes()]}
        drawn = [contexts[reader.read(np.array([sample]), epoch, seed=1).context.tobytes()] for epoch in range(40)]
        again = [contexts[reader.read(np.array([sample]), epoch, seed=1).context.tobytes()] for epoch in range(40)]
        assert drawn == again
        assert (
            8 <= drawn.count("the same caption") <= 32
        )  # binomial(40, 1/2): outside with probability 2e-4, once and for all


def test_the_pooled_and_hidden_state_are_of_the_same_caption(cache):
    with open_reader(cache) as reader:
        for sample in range(0, reader.n, 7):
            batch = reader.read(np.array([sample]), epoch=3, seed=0)
            rows = [caption(text) for text in TEXTS[reader.names[sample].tobytes()]]
            row = next(row for row in rows if row["context"] == batch.context.tobytes())
            assert row["pooled"] == batch.pooled.tobytes()


def test_flips_and_crops_are_drawn_with_their_own_numbers(tmp_path):
    image = IMAGES[0]
    rows = [latent(image, flip=flip, crop=crop) for flip in (False, True) for crop in range(3)]
    write_cache(tmp_path / "latents", shards.LATENTS, rows, FINGERPRINT)
    write_cache(tmp_path / "text", shards.TEXT, [caption(""), caption("a")], TEXT_FINGERPRINT)
    write_samples(tmp_path / "samples.parquet", [(image, "a")])
    with open_reader(tmp_path) as reader:
        assert reader.n == 1
        seen = set()
        for epoch in range(60):
            batch = reader.read(np.array([0]), epoch, seed=0)
            row = next(row for row in rows if row["latent"] == batch.latents.tobytes())
            assert batch.time_ids[0].tolist() == [24, 40, row["crop_top"], row["crop_left"], 64, 64]
            seen.add(row["row"])
        assert len(seen) == 6


def test_padding_repeats_a_real_sample_and_is_marked(cache):
    with open_reader(cache) as reader:
        batch = reader.read(np.array([-1, 4, -1]), epoch=0, seed=0)
        assert batch.images.tolist() == [-1, 4, -1]
        assert np.array_equal(batch.latents[0], batch.latents[1]) and np.array_equal(batch.latents[2], batch.latents[1])
        with pytest.raises(ValueError, match="not padding"):
            reader.read(np.array([-1, -1]), epoch=0, seed=0)


def test_a_dropped_caption_is_the_empty_one(cache):
    with open_reader(cache) as reader:
        batch = reader.read(np.array([2, 4]), epoch=0, seed=0, drop_caption=np.array([True, False]))
        empty = caption("")
        assert empty["row"] == EMPTY_CAPTION
        assert batch.context[0].tobytes() == empty["context"] and batch.pooled[0].tobytes() == empty["pooled"]
        assert batch.context[1].tobytes() != empty["context"]


def test_a_batch_of_two_buckets_is_refused(cache):
    with open_reader(cache) as reader:
        two = [int(np.flatnonzero((reader.buckets == bucket).all(axis=1))[0]) for bucket in BUCKETS]
        with pytest.raises(ValueError, match="one bucket; these are of 64x64, 96x32"):
            reader.read(np.array(two), epoch=0, seed=0)


@pytest.mark.parametrize("folder, payload", [("latents", "latent"), ("text", "context"), ("text", "pooled")])
def test_a_flipped_byte_is_found_before_training_uses_it(cache, folder, payload):
    kind = shards.KINDS[folder]
    path = next((cache / folder).glob("*.parquet"))
    shard = shards.open_shard(path, kind)
    place = int(shard.offsets[payload][3]) + 5
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with (
        open_reader(cache) as reader,
        pytest.raises(CacheError, match=f"{path.name}: row {shard.columns['row'][3].tobytes().hex()}"),
    ):
        for sample in range(reader.n):
            for epoch in range(8):
                reader.read(np.array([sample]), epoch, seed=0)
                reader.read(np.array([sample]), epoch, seed=0, drop_caption=np.array([True]))


def test_a_file_cut_short_is_found(cache):
    with open_reader(cache) as reader:
        path = next((cache / "latents").glob("*.parquet"))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(CacheError, match="not a whole Parquet file; `python -m pipeline.cache verify`"):
            for sample in range(reader.n):
                reader.read(np.array([sample]), 0, seed=0)


def test_other_encoders_are_refused_by_name(cache, tmp_path):
    checkpoint = tmp_path / "vae.ckpt"
    checkpoint.write_bytes(b"another VAE")
    with pytest.raises(CacheError, match="another vae .*vae.ckpt.*dvc repro cache_latents"):
        open_reader(cache, vae=checkpoint)
    with pytest.raises(CacheError, match="another clip_g .*dvc repro cache_text"):
        open_reader(cache, clip_g=checkpoint)


def test_the_encoders_that_made_the_rows_are_accepted(cache, tmp_path):
    checkpoint = tmp_path / "vae.ckpt"
    checkpoint.write_bytes(b"the VAE")
    made_by = {"vae": hashlib.blake2b(b"the VAE", digest_size=16).hexdigest()}
    (cache / "latents").rename(cache / "old")
    write_cache(
        cache / "latents", shards.LATENTS, [latent(image, BUCKETS[n % 2]) for n, image in enumerate(IMAGES)], made_by
    )
    open_reader(cache, vae=checkpoint).close()


def test_shards_of_two_fingerprints_are_refused(cache):
    rows = [latent(hashlib.blake2b(b"more" + str(n).encode(), digest_size=16).digest()) for n in range(1000)]
    write_cache(cache / "many", shards.LATENTS, rows, FINGERPRINT)
    place = shards.shard_of(lookup.as_names([row["row"] for row in rows]), 2)
    chosen = [row for row, shard in zip(rows, place, strict=True) if shard == 1]
    (cache / "many" / shards.shard_name(1, 2)).unlink()
    shards.write(cache / "many" / shards.shard_name(1, 2), shards.LATENTS, chosen, {"vae": "9" * 32})
    with pytest.raises(CacheError, match="another vae"):
        Reader(cache / "many", cache / "text", cache / "samples.parquet")
    (cache / "many" / shards.shard_name(1, 2)).unlink()
    with pytest.raises(CacheError, match="not a whole cache"):
        Reader(cache / "many", cache / "text", cache / "samples.parquet")


def test_pictures_without_caption_and_captions_without_picture_are_counted(cache):
    write_samples(
        cache / "samples.parquet",
        [(image, "the same caption") for image in IMAGES[3:]] + [(b"x" * 16, "the same caption")],
    )
    with pytest.raises(CacheError, match="1 captions have no latents, 3 pictures have no caption"):
        open_reader(cache)


def test_a_caption_that_is_not_cached_is_named(cache):
    write_samples(cache / "samples.parquet", [(image, "never seen") for image in IMAGES])
    with pytest.raises(CacheError, match="40 captions .*dvc repro cache_text"):
        open_reader(cache)


def test_a_batch_that_is_held_is_never_written_again(cache):
    with open_reader(cache) as reader:
        samples = np.flatnonzero((reader.buckets == BUCKETS[0]).all(axis=1))
        first = reader.read(samples[:2], epoch=0, seed=0)
        part, expected = first.latents[1], first.latents[1].copy()
        del first  # but not the part
        for sample in samples:
            reader.read(np.array([sample, sample]), epoch=0, seed=0)
        assert np.array_equal(part, expected)
        del part
        places = {reader.read(samples[:2], epoch=0, seed=0).latents.__array_interface__["data"][0] for _ in range(12)}
        assert len(places) < 4


def test_a_picture_of_two_sets_is_two_samples_of_the_same_rows(cache):
    """Each with its own captions and numbers, in whatever order the table has them."""
    first, second = sorted(IMAGES)[:2]
    pairs = [(first, "picture 0"), (second, "picture 1"), (first, "picture 2"), (first, "the same caption")]
    pairs += [(image, "picture 3") for image in sorted(IMAGES)[2:]]
    rest = len(pairs) - 4
    write_samples(
        cache / "samples.parquet",
        pairs,
        set=[1, 0, 0, 0] + [0] * rest,
        repeats=[0.5, 1, 2, 2] + [1] * rest,
        loss_weight=[0.25, 1, 1, 1] + [1] * rest,
        caption_dropout=[None, 0.5, 0.0, 0.0] + [None] * rest,
        class_images=[True, False, False, False] + [False] * rest,
    )
    with open_reader(cache) as reader:
        assert reader.n == len(IMAGES) + 1
        assert [image.tobytes() for image in reader.names[:3]] == [first, first, second]
        assert reader.repeats[:3].tolist() == [2, 0.5, 1] and (reader.repeats[3:] == 1).all()
        assert reader.loss_weights[:3].tolist() == [1, 0.25, 1]
        assert reader.caption_dropout[:4].tolist() == [0, -1, 0.5, -1]
        assert reader.class_images.sum() == 1 and reader.class_images[1]
        n, seen = reader.n, {0: set(), 1: set()}
        for sample in (0, 1):
            for epoch in range(20):
                batch = reader.read(np.array([sample, sample + n]), epoch, seed=0)
                row = latent(first, BUCKETS[IMAGES.index(first) % 2])
                assert all(one.tobytes() == row["latent"] for one in batch.latents)
                seen[sample].add(tuple(one.tobytes() for one in batch.context))
        two = [caption(text)["context"] for text in ("picture 2", "the same caption")]
        # of two captions the second time in an epoch has the one that the first has not
        assert seen[0] == {(two[0], two[1]), (two[1], two[0])}
        assert seen[1] == {(caption("picture 0")["context"],) * 2}


def test_captions_are_drawn_by_their_chances(cache):
    """3 to 1: binomial(400, 3/4) outside of 300 ± 45 with probability 2e-7, once and for all."""
    first = sorted(IMAGES)[0]
    pairs = [(first, "picture 0"), (first, "the same caption"), *((image, "picture 1") for image in sorted(IMAGES)[1:])]
    write_samples(cache / "samples.parquet", pairs, chance=[0.75, 0.25] + [1.0] * (len(pairs) - 2))
    contexts = {caption(text)["context"]: text for text in ("picture 0", "the same caption")}
    with open_reader(cache) as reader:
        drawn = [
            contexts[reader.read(np.array([number]), epoch, seed=3).context.tobytes()]
            for epoch in range(200)
            for number in (0, reader.n)
        ]
        again = contexts[reader.read(np.array([reader.n]), 7, seed=3).context.tobytes()]
    assert abs(drawn.count("picture 0") - 300) < 45 and drawn[15] == again
