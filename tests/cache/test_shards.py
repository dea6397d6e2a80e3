"""Shards: their bytes, their checks, and that other tools open them."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.format import checksum, lookup, shards
from tests.cache.cache_samples import FINGERPRINT, TEXT_FINGERPRINT, caption, latent, read_all


def images(count: int) -> list[bytes]:
    return [np.random.default_rng([5, n]).bytes(16) for n in range(count)]


def write(path, count=20):
    rows = [latent(image, [(64, 64), (96, 32)][n % 2]) for n, image in enumerate(images(count))]
    shards.write(path, shards.LATENTS, rows, FINGERPRINT)
    return rows


def test_rows_come_back_sorted_and_equal(tmp_path):
    rows = write(tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == sorted(rows, key=lambda row: row["row"])


def test_text_rows_come_back(tmp_path):
    rows = [caption(text) for text in ("a", "b", "")]
    shards.write(tmp_path / "a.parquet", shards.TEXT, rows, TEXT_FINGERPRINT)
    assert read_all(tmp_path / "a.parquet", shards.TEXT) == sorted(rows, key=lambda row: row["row"])


def test_a_shard_without_rows(tmp_path):
    """Few names may all lie in one half of their range."""
    shards.write(tmp_path / "a.parquet", shards.LATENTS, [], FINGERPRINT)
    shard = shards.open_shard(tmp_path / "a.parquet", shards.LATENTS)
    assert len(shard) == 0 and shard.columns["row"].shape == (0, 16) and shard.columns["checksum"].shape == (0, 2)
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


def test_more_rows_than_a_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP", 7)
    rows = write(tmp_path / "a.parquet")
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 3
    assert read_all(tmp_path / "a.parquet") == sorted(rows, key=lambda row: row["row"])


def test_the_bytes_follow_from_the_rows(tmp_path):
    rows = write(tmp_path / "a.parquet")
    code = (
        "import pickle, sys; from pipeline.cache.format import shards; rows, path = pickle.load(sys.stdin.buffer);"
        f"shards.write(path, shards.LATENTS, rows, {FINGERPRINT!r})"
    )
    import pickle

    subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps((rows[::-1], str(tmp_path / "b.parquet"))), check=True
    )
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_payloads_are_stored_raw(tmp_path):
    """So that a shard costs little more than its payloads (done-when: bytes per sample)."""
    rows = [latent(image, (512, 512)) for image in images(40)]
    shards.write(tmp_path / "a.parquet", shards.LATENTS, rows, FINGERPRINT)
    payload = sum(len(row["latent"]) for row in rows)
    assert os.path.getsize(tmp_path / "a.parquet") < 1.01 * payload
    assert rows[0]["latent"] in (tmp_path / "a.parquet").read_bytes()


def test_a_payload_of_the_wrong_length_is_refused(tmp_path):
    row = latent(images(1)[0])
    with pytest.raises(ValueError, match="latent has 1022 bytes, its numbers say 1024"):
        shards.write(tmp_path / "a.parquet", shards.LATENTS, [{**row, "latent": row["latent"][:-2]}], FINGERPRINT)


@pytest.mark.parametrize("rows, count", [(0, 1), (1, 1), (800, 1), (801, 2), (1600, 2), (1601, 4), (10_000_000, 16384)])
def test_shard_count_follows_from_the_rows_alone(rows, count):
    assert shards.shard_count(rows) == count


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=40, unique=True), st.integers(0, 8))
def test_shards_hold_stretches_of_the_sorted_names(names, bits):
    ordered = lookup.as_names(sorted(names))
    place = shards.shard_of(ordered, 1 << bits)
    assert (np.diff(place) >= 0).all() and place.min() >= 0 and place.max() < 1 << bits
    finer = shards.shard_of(ordered, 1 << (bits + 1))
    assert (finer // 2 == place).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_locate_finds_what_is_there(data):
    """Few distinct leading halves, so that names which share eight bytes are the rule."""
    name = st.tuples(st.sampled_from([b"\0" * 8, b"\xff" * 8, b"abcdefgh"]), st.binary(min_size=8, max_size=8)).map(
        b"".join
    )
    names = sorted(data.draw(st.sets(name, max_size=20)))
    wanted = data.draw(st.lists(st.one_of(name, st.sampled_from(names)) if names else name, max_size=20))
    found = lookup.locate(lookup.as_names(names), lookup.as_names(wanted))
    assert found.tolist() == [names.index(one) if one in names else -1 for one in wanted]
    shuffled = data.draw(st.permutations(names))
    assert [shuffled[i] for i in lookup.sort_order(lookup.as_names(shuffled))] == names


@pytest.mark.parametrize("change", ["bit", "byte", "swapped pages", "swapped sectors", "zeroed", "longer"])
def test_the_payload_checksum_sees(change):
    payload = np.frombuffer(np.random.default_rng(0).bytes(262144 + 6), np.uint8)
    changed = payload.copy()
    if change == "bit":
        changed[-3] ^= 1
    elif change == "byte":
        changed[100_000] += 128
    elif change == "swapped sectors":
        changed[7680:8192], changed[8192:8704] = payload[8192:8704], payload[7680:8192]
    elif change == "swapped pages":
        changed[:4096], changed[4096:8192] = payload[4096:8192], payload[:4096]
    elif change == "zeroed":
        changed[4096:8192] = 0
    else:
        changed = np.append(changed, np.uint8(0))
    assert checksum.payload_sum(changed.tobytes()) != checksum.payload_sum(payload.tobytes())
    both = np.stack([payload, payload[::-1]])
    assert checksum.payload_sums(both).tolist() == [checksum.payload_sum(row.tobytes()) for row in both]


def test_two_payloads_do_not_stand_in_for_each_other():
    a, b = bytes(range(64)), bytes(range(64, 128))
    assert len({checksum.payload_sum(a, b), checksum.payload_sum(b, a), checksum.payload_sum(a + b)}) == 3


@pytest.mark.parametrize("column", ["crop_left", "original_height", "row", "image", "checksum"])
def test_a_flipped_bit_in_a_number_is_found_when_the_shard_is_opened(tmp_path, column):
    path = tmp_path / "a.parquet"
    write(path)
    chunk = pq.read_metadata(path).row_group(0).column(shards.LATENTS.schema.names.index(column))
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 16] ^= 4  # of the last row; of checksum its first half
    path.write_bytes(data)
    with pytest.raises(shards.ShardError, match="its numbers do not fit its checksum"):
        shards.open_shard(path, shards.LATENTS)


def test_any_flipped_byte_is_found_or_harmless(tmp_path):
    """Every byte of a small shard in turn: either an error, or the rows come back as they were."""
    path = tmp_path / "a.parquet"
    rows = sorted([latent(image, (16, 8)) for image in images(3)], key=lambda row: row["row"])
    shards.write(path, shards.LATENTS, rows, FINGERPRINT)
    good = path.read_bytes()
    found = 0
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
        try:
            assert read_all(path) == rows
        except shards.ShardError:
            found += 1
    assert found > 0.4 * len(good)


@pytest.mark.parametrize("keep", [0, 3, 100, 2000, -1])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "a.parquet"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(shards.ShardError, match="a.parquet"):
        shards.open_shard(path, shards.LATENTS)


def test_other_kinds_and_other_parquet_files_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write(path)
    with pytest.raises(shards.ShardError, match=f"kind latents, format {shards.FORMAT}; wanted text"):
        shards.open_shard(path, shards.TEXT)
    table = pq.read_table(path)
    pq.write_table(table, tmp_path / "compressed.parquet")  # what another tool would save
    with pytest.raises(shards.ShardError, match="not written by this cache"):
        shards.open_shard(tmp_path / "compressed.parquet", shards.LATENTS)


def expected_numbers(rows):
    return sorted((row["row"], row["latent"], row["crop_left"], row["target_width"]) for row in rows)


def test_pandas_opens_a_shard(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = write(tmp_path / "a.parquet")
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    assert list(
        frame[["row", "latent", "crop_left", "target_width"]].itertuples(index=False, name=None)
    ) == expected_numbers(rows)


def test_polars_opens_a_shard(tmp_path):
    polars = pytest.importorskip("polars")
    rows = write(tmp_path / "a.parquet")
    frame = polars.read_parquet(tmp_path / "a.parquet")
    assert frame.select("row", "latent", "crop_left", "target_width").rows() == expected_numbers(rows)


def test_duckdb_opens_a_shard(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    rows = write(tmp_path / "a.parquet")
    query = f'select "row", latent, crop_left, target_width from \'{tmp_path}/a.parquet\' order by "row"'
    assert duckdb.sql(query).fetchall() == expected_numbers(rows)
