"""Rows with a mask: beside the latent, in shards that say so, read with the batch."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cache.format import shards
from pipeline.cache.reading.reader import CacheError, Reader
from pipeline.cache.tools import verify
from tests.cache.cache_samples import (
    FINGERPRINT,
    TEXT_FINGERPRINT,
    caption,
    latent,
    read_all,
    write_cache,
    write_samples,
)

IMAGES = [hashlib.blake2b(str(n).encode(), digest_size=16).digest() for n in range(12)]
BUCKETS = [(64, 64), (96, 32)]
# blake2b of the shard of five rows below, as it was written before there were masks.
BEFORE = "b029cd305f8fab8d9a094e5deeee4edd"


def row(number: int, masked: bool = False) -> dict:
    image, bucket = IMAGES[number], BUCKETS[number % 2]
    return latent(image, bucket) | ({"mask": mask(number).tobytes()} if masked else {})


def mask(number: int) -> np.ndarray:
    width, height = (side // 8 for side in BUCKETS[number % 2])
    return np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)


def test_without_masks_a_shard_has_the_bytes_that_it_had_before(tmp_path):
    shards.write(tmp_path / "a", shards.LATENTS, [row(number) for number in range(5)], FINGERPRINT)
    assert pq.read_schema(tmp_path / "a").names == shards.LATENTS.schema.names
    assert hashlib.blake2b((tmp_path / "a").read_bytes(), digest_size=16).hexdigest() == BEFORE


def test_rows_come_back_and_those_without_a_mask_are_the_same_as_in_a_shard_without(tmp_path):
    rows = sorted((row(number, masked=number % 3 == 0) for number in range(12)), key=lambda one: one["row"])
    path, plain = tmp_path / "a.parquet", tmp_path / "b.parquet"
    shards.write(path, shards.LATENTS, rows[::-1], FINGERPRINT)
    shards.write(plain, shards.LATENTS, [{k: v for k, v in one.items() if k != "mask"} for one in rows], FINGERPRINT)
    shard, bare = shards.open_shard(path, shards.LATENTS), shards.open_shard(plain, shards.LATENTS)
    assert read_all(path) == rows
    has_mask = np.array(["mask" in one for one in rows])
    same = (shard.columns["checksum"] == bare.columns["checksum"]).all(axis=1)
    assert (same == ~has_mask).all() and has_mask.any()
    table = pq.read_table(path)  # any reader of Parquet sees the masks
    assert [len(one) for one in table["mask"].to_pylist()] == [len(one.get("mask", b"")) for one in rows]
    assert verify.damage(path) is None and verify.damage(plain) is None


@pytest.mark.parametrize("column", ["mask", "masked"])
def test_damage_of_a_mask_is_found(tmp_path, column):
    path = tmp_path / "a.parquet"
    shards.write(path, shards.LATENTS, [row(number, number % 2 == 0) for number in range(6)], FINGERPRINT)
    shard, data = shards.open_shard(path, shards.LATENTS), bytearray(path.read_bytes())
    index = int(np.flatnonzero(shard.columns["masked"])[2])
    if column == "mask":
        place = int(shard.offsets["mask"][index])
    else:
        chunk = pq.read_metadata(path).row_group(0).column(shards.LATENTS.whole.schema.names.index("masked"))
        place = chunk.data_page_offset + chunk.total_compressed_size - 4 * len(shard) + 4 * index
    data[place] ^= 1
    path.write_bytes(data)
    assert "damaged" in verify.damage(path) or "plain page" in verify.damage(path)


@pytest.fixture
def cache(tmp_path):
    """Masks in one shard of several, where pictures of both buckets have them."""
    return build(tmp_path, lambda number: number % 4 < 2)


def build(root, is_masked):
    write_cache(root / "latents", shards.LATENTS, [row(n, is_masked(n)) for n in range(12)], FINGERPRINT)
    write_cache(root / "text", shards.TEXT, [caption(""), caption("a")], TEXT_FINGERPRINT)
    write_samples(root / "samples.parquet", [(image, "a") for image in sorted(IMAGES)])
    return root


def open_reader(root) -> Reader:
    return Reader(root / "latents", root / "text", root / "samples.parquet")


def numbers(reader: Reader) -> list[int]:
    return [IMAGES.index(name.tobytes()) for name in reader.names]


@pytest.mark.parametrize("is_masked", [lambda n: n % 4 < 2, lambda n: True, lambda n: n == 3])
def test_the_reader_gives_masks_and_white_where_there_are_none(tmp_path, is_masked):
    with open_reader(build(tmp_path, is_masked)) as reader:
        assert reader.masked
        of = numbers(reader)
        for parity in (0, 1):
            chosen = np.array([sample for sample in range(12) if of[sample] % 2 == parity] + [-1])
            batch = reader.read(chosen, 0, 0)
            assert batch.masks.dtype == np.uint8 and batch.masks.shape == (7, *batch.latents.shape[2:])
            for found, latents, sample in zip(batch.masks, batch.latents, np.where(chosen < 0, chosen[0], chosen)):
                assert latents.tobytes() == row(of[sample])["latent"]
                assert (found == (mask(of[sample]) if is_masked(of[sample]) else 255)).all()


def test_a_cache_without_masks_has_none(tmp_path):
    with open_reader(build(tmp_path, lambda number: False)) as reader:
        assert not reader.masked and reader.read(np.array([0]), 0, 0).masks is None


def test_a_damaged_mask_never_reaches_training(cache):
    path = cache / "latents" / shards.shard_name(0, 1)
    shard, data = shards.open_shard(path, shards.LATENTS), bytearray(path.read_bytes())
    with open_reader(cache) as reader:
        index = int(np.flatnonzero(shard.columns["masked"])[0])
        data[int(shard.offsets["mask"][index]) + 5] ^= 255
        path.write_bytes(data)
        name = shard.columns["image"][index].tobytes()
        sample = sorted(IMAGES).index(name)
        with pytest.raises(CacheError, match=shard.columns["row"][index].tobytes().hex()):
            reader.read(np.array([sample]), 0, 0)
