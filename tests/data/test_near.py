"""Near copies: found by their hashes as a comparison of each with each would, listed, remembered and never removed."""

import csv
import io

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline.data import examine, images, memo, near
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from tests.data.data_sets import picture, rows, write_folder


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def photo(seed: int, width: int = 240, height: int = 160) -> Image.Image:
    """Soft shapes, as a photograph has them."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def encoded(image: Image.Image, form: str = "PNG", **how: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def run(folder, out) -> Summary:
    return index(open_source(str(folder)), out, buckets(64, 32), 16, None, 10**6, 1.0, 1)


def listed(out) -> list[list[str]]:
    with open(out / "near.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_scaled_and_recompressed_pictures_are_listed_and_used(tmp_path):
    first = photo(1)
    files = {f"{seed}.png": encoded(photo(seed)) for seed in range(1, 30)}
    files |= {"small.png": encoded(first.resize((120, 80))), "low.jpg": encoded(first, "JPEG", quality=50)}
    files |= {"0_large.webp": encoded(first.resize((480, 320)), "WEBP", quality=60), "copy.png": files["2.png"]}
    summary = run(write_folder(tmp_path / "data", files), tmp_path / "out")
    header, *found = listed(tmp_path / "out")
    assert header == ["path", "near_to", "distance"]
    assert [row[:2] for row in found] == [[name, "0_large.webp"] for name in ("1.png", "low.jpg", "small.png")]
    assert all(0 <= int(row[2]) <= near.DISTANCE for row in found)
    assert summary.used == len(files) and summary.samples == len(files) - 1
    assert "3 pictures look like another one (near.csv) and are used all the same: 0_large.webp ~ 1.png" in str(summary)
    assert (tmp_path / "out/copies.csv").read_text() == "path,copy_of\ncopy.png,2.png\n"  # not among the near ones


def test_a_second_index_decodes_nothing_and_lists_the_same(tmp_path, monkeypatch):
    files = {f"{seed}.png": encoded(photo(seed)) for seed in range(5)} | {"a.jpg": encoded(photo(3), "JPEG")}
    run(write_folder(tmp_path / "data", files), tmp_path / "out")
    first = (tmp_path / "out/near.csv").read_bytes()
    assert first.count(b"\n") == 2
    monkeypatch.setattr(examine, "_look_at", None)
    assert run(tmp_path / "data", tmp_path / "again").read == 0
    assert (tmp_path / "again/near.csv").read_bytes() == first


def test_rejected_and_empty_pictures_are_near_to_none(tmp_path):
    flat = Image.new("RGB", (64, 64), (250, 250, 250))
    files = {"a.png": encoded(flat), "b.png": encoded(Image.new("RGB", (90, 70))), "c.png": encoded(photo(1, 12, 8))}
    files |= {"d.png": encoded(photo(1)), "e.png": b"no picture"}
    run(write_folder(tmp_path / "data", files), tmp_path / "out")
    assert listed(tmp_path / "out") == [["path", "near_to", "distance"]]
    hashes = {row["path"]: row["phash"] for row in rows(tmp_path / "out/images.parquet")}
    assert hashes["a.png"] is hashes["b.png"] is hashes["e.png"] is None and hashes["d.png"] is not None


def test_the_hash_is_imagehashs(tmp_path):
    """Of pictures that need no reducing."""
    for seed in range(20):
        data = encoded(photo(seed, 120, 90))
        pixels = images.decode(data, (0, 0, 0))
        assert f"{near.perceptual_hash(pixels):016x}" == str(imagehash.phash(Image.fromarray(pixels)))
    large = photo(3, 1500, 1001)
    wanted = imagehash.phash(large)
    assert imagehash.hex_to_hash(f"{near.perceptual_hash(np.array(large)):016x}") - wanted <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3000, 2), (129, 127)])
def test_pictures_of_every_shape_have_a_hash(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = near.perceptual_hash(pixels)
    assert found is None or 0 <= found < 2**64


def plain(hashes: list[int]) -> list[set[int]]:
    """Groups, each hash compared with each."""
    left, found = set(range(len(hashes))), []
    while left:
        group, todo = set(), [left.pop()]
        while todo:
            one = todo.pop()
            group.add(one)
            close = {other for other in left if (hashes[one] ^ hashes[other]).bit_count() <= near.DISTANCE}
            left -= close
            todo += close
        found.append(group)
    return sorted(found, key=min)


def grouped(hashes: list[int]) -> list[set[int]]:
    found: dict[int, set[int]] = {}
    for place, number in enumerate(near.groups(np.array(hashes, np.uint64)).tolist()):
        found.setdefault(number, set()).add(place)
    return sorted(found.values(), key=min)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_groups_are_those_of_comparing_each_with_each(seeds, draw):
    """Of hashes with others at distances of 0 to 8 about them."""
    hashes = list(seeds)
    for _ in range(30):
        mask = sum(1 << bit for bit in draw.sample(range(64), draw.randrange(9)))
        hashes.append(draw.choice(hashes) ^ mask)
    assert grouped(hashes) == plain(hashes)


def test_each_way_to_differ_in_four_bits_is_found():
    """Two parts of six are equal wherever the bits lie: all ways to choose four of 64 bits at the parts' borders."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        one = int(draw.integers(0, 2**63))
        other = one ^ sum(1 << int(bit) for bit in draw.choice(64, 4, replace=False))
        assert len(grouped([one, other])) == 1
        assert len(grouped([one, one ^ 0b11111])) == 2


def test_very_many_alike_take_no_quadratic_time():
    """100,000 hashes within three bits of one: each with each would be five thousand million pairs, in Python hours."""
    draw = np.random.default_rng(0)
    hashes = np.full(100_000, 0x0123456789ABCDEF, np.uint64)
    for _ in range(2):
        hashes ^= np.uint64(1) << draw.integers(0, 64, len(hashes), dtype=np.uint64)
    far = draw.integers(0, 2**64, 1000, dtype=np.uint64)
    found = near.groups(np.concatenate([hashes, far]))
    assert len(np.unique(found[: len(hashes)])) == 1 and len(np.unique(found)) == 1001


def test_distance_counts_bits():
    draw = np.random.default_rng(1)
    one, other = draw.integers(0, 2**64, (2, 100), dtype=np.uint64)
    assert near.distance(one, other).tolist() == [(int(a) ^ int(b)).bit_count() for a, b in zip(one, other)]
    assert near.distance(one[:0], other[:0]).tolist() == []


def test_noise_alone_is_near_to_none(tmp_path):
    files = {f"{seed}.png": picture(seed, 64, 64) for seed in range(60)}
    assert run(write_folder(tmp_path / "data", files), tmp_path / "out").near == []
