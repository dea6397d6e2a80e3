import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.buckets import BucketError, buckets, choose, common, nearest

# SDXL, arXiv 2307.01952, appendix I: height, width of all training sizes
SDXL = """
512 2048, 512 1984, 512 1920, 512 1856, 576 1792, 576 1728, 576 1664, 640 1600, 640 1536, 704 1472,
704 1408, 704 1344, 768 1344, 768 1280, 832 1216, 832 1152, 896 1152, 896 1088, 960 1088, 960 1024,
1024 1024, 1024 960, 1088 960, 1088 896, 1152 896, 1152 832, 1216 832, 1280 768, 1344 768, 1408 704,
1472 704, 1536 640, 1600 640, 1664 576, 1728 576, 1792 576, 1856 512, 1920 512, 1984 512, 2048 512
"""


def test_the_nearest_buckets_are_those_of_the_nearest_ratios():
    rng = np.random.default_rng(0)
    sizes = buckets(1024, 64)
    widths, heights = rng.integers(100, 5000, (2, 500))
    found = nearest(widths, heights, sizes, 4)
    assert (found[:, 0] == choose(widths, heights, sizes)).all()
    ratios = np.log([width / height for width, height in sizes])
    for row, ratio in zip(found, np.log(widths / heights)):
        assert len(set(row)) == 4 and set(row) == set(np.argsort(abs(ratios - ratio), kind="stable")[:4])
        assert (np.diff(abs(ratios[row] - ratio)) > -1e-9).all()
    assert nearest(widths, heights, sizes[:2], 4).shape == (500, 2)
    assert nearest(widths, heights, sizes[:1], 4).shape == (500, 1)


def test_sdxl_list():
    wanted = [tuple(map(int, size.split()))[::-1] for size in SDXL.replace("\n", " ").split(",")]
    assert len(wanted) == 40
    assert sorted(buckets(1024, 64)) == sorted(wanted)


@pytest.mark.parametrize(
    "resolution, step", [(64, 32), (512, 64), (512, 32), (768, 64), (1024, 32), (1024, 64), (96, 32)]
)
def test_rule(resolution, step):
    sizes = buckets(resolution, step)
    ratios = [width / height for width, height in sizes]
    assert (resolution, resolution) in sizes
    assert ratios == sorted(set(ratios))
    for width, height in sizes:
        assert width % 32 == height % 32 == 0  # latents are divisible by 4
        assert 0.9 * resolution**2 <= width * height <= resolution**2
        assert 0.25 <= width / height <= 4


def test_tiny():
    assert buckets(64, 32) == [(32, 128), (64, 64), (128, 32)]


@pytest.mark.parametrize("resolution, step", [(64, 16), (100, 32), (1024, 96)])
def test_numbers_that_cannot_be(resolution, step):
    with pytest.raises(BucketError, match=f"index.resolution is {resolution} and index.bucket_step {step}"):
        buckets(resolution, step)


def test_choice_is_the_least_log_distance():
    sizes = buckets(1024, 64)
    generator = np.random.default_rng(0)
    widths, heights = generator.integers(1, 6000, (2, 5000))
    chosen = choose(widths, heights, sizes)
    for width, height, index in zip(widths, heights, chosen):
        distances = [abs(math.log(width / height) - math.log(w / h)) for w, h in sizes]
        assert distances[index] <= min(distances) + 1e-12


def test_a_bucket_chooses_itself():
    sizes = buckets(1024, 64)
    widths, heights = np.array(sizes).T
    assert choose(widths, heights, sizes).tolist() == list(range(40))
    assert choose(widths * 3, heights * 3, sizes).tolist() == list(range(40))


def test_extremes_and_ties():
    sizes = buckets(64, 32)  # ratios 1/4, 1, 4: half-way is 1:2 and 2:1
    widths, heights = np.array([[1, 10_000_000], [10_000_000, 1], [1, 2], [2, 1], [3, 2], [201, 100]]).T
    assert [sizes[i] for i in choose(widths, heights, sizes)] == [
        (32, 128),
        (128, 32),
        (32, 128),
        (64, 64),
        (64, 64),
        (128, 32),
    ]


@pytest.mark.parametrize("resolution, step", [(64, 32), (512, 64), (768, 64), (1024, 32), (1024, 64)])
def test_pictures_half_way_go_to_the_taller_bucket(resolution, step):
    """In whole numbers: of two buckets alone, each picture at the geometric mean of their ratios."""
    sizes = buckets(resolution, step)
    for place, tall in enumerate(sizes):
        for wide in sizes[place + 1 :]:
            (width, height), mirrored = (tall[0] * wide[0], tall[1] * wide[1]), tall == wide[::-1]
            root = math.isqrt(width * height)
            if root**2 != width * height:
                continue  # no picture in whole numbers has this ratio
            sides = (np.array([700]), np.array([700])) if mirrored else (np.array([width]), np.array([root]))
            assert choose(*sides, [tall, wide]).tolist() == [0], (tall, wide)
            assert nearest(*sides, [tall, wide], 2).tolist() == [[0, 1]]
            if (resolution, resolution) in sizes[place + 1 :] and mirrored:
                three = [tall, (resolution, resolution), wide]
                assert nearest(*sides, three, 3).tolist() == [[1, 0, 2]]


def test_one_bucket_takes_all():
    assert choose(np.array([5, 1]), np.array([1, 5]), [(64, 64)]).tolist() == [0, 0]


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 9)), min_size=1, max_size=30),
    st.integers(1, 60),
)
def test_rare_buckets_are_given_up_until_all_have_enough(pictures, least):
    widths, heights, counts = np.array(pictures).T
    sizes = buckets(1024, 64)
    kept = common(widths, heights, counts, sizes, least)
    found = np.bincount(choose(widths, heights, kept), counts, len(kept))
    assert found.min() >= least or len(kept) == 1 and found.sum() == counts.sum()
    assert kept == [size for size in sizes if size in kept]
    if least == 1:
        assert set(kept) == {sizes[place] for place in choose(widths, heights, sizes)}


def test_the_rarest_goes_first_and_to_the_nearest():
    sizes = [(32, 128), (64, 64), (128, 64), (128, 32)]
    widths, heights = np.array([(1, 4), (1, 1), (2, 1), (4, 1)]).T
    # 2:1 goes up to 4:1, half-way between 1:1 and 4:1 in logarithms goes to the taller one: here to 1:1
    assert common(widths, heights, np.array([5, 5, 1, 2]), sizes, 3) == [(32, 128), (64, 64)]
    assert common(widths, heights, np.array([5, 5, 1, 3]), sizes, 3) == [(32, 128), (64, 64), (128, 32)]
    assert common(widths, heights, np.array([5, 5, 1, 3]), sizes, 99) == [(64, 64)]
