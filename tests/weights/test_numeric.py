"""Bit tricks against NumPy's own float arithmetic, over every 16-bit value and the hard cases of 32."""

import numpy as np
import pytest

from pipeline.weights.numeric import cast, count_nonfinite, finite, largest

ALL = np.arange(1 << 16, dtype=np.uint16)


def widen(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype, values", [("float16", ALL.view(np.float16)), ("bfloat16", widen(ALL))])
def test_finite_on_every_16_bit_value(dtype, values):
    expected = np.isfinite(values)
    assert [finite(ALL[i : i + 1], dtype) for i in range(1 << 16)] == expected.tolist()
    assert count_nonfinite(ALL, dtype) == (np.isnan(values).sum(), np.isinf(values).sum())


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_bad_value_among_good_ones_is_found(dtype, bad):
    info = np.finfo(dtype)
    good = np.array([info.max, info.min, -0.0, 0.0, info.tiny, -info.smallest_subnormal, 1, -1], dtype)
    assert finite(good, np.dtype(dtype).name)
    good[5] = bad
    assert not finite(good, np.dtype(dtype).name)
    assert count_nonfinite(good, np.dtype(dtype).name) == (int(np.isnan(bad)), int(np.isinf(bad)))


def test_bfloat16_rounds_to_nearest_ties_to_even():
    """Against the definition: of the two neighbours the nearer one, of two equally near the even one."""
    rng = np.random.default_rng(0)
    below = rng.integers(0, 0x7F7F, 20_000, np.uint16)  # not the largest, so that `below + 1` is finite
    tail = np.concatenate(
        [rng.integers(0, 1 << 16, 19_000), np.full(500, 0x8000), [0, 1, 0x7FFF, 0x8001, 0xFFFF] * 100]
    )
    bits = (below.astype(np.uint32) << 16) | tail.astype(np.uint32)
    values = bits.view(np.float32).astype(np.float64)
    low, high = widen(below).astype(np.float64), widen(below + 1).astype(np.float64)
    up = (high - values < values - low) | ((high - values == values - low) & (below % 2 == 1))
    for sign in (0, 0x80000000):
        rounded = cast((bits | np.uint32(sign)).view(np.float32), "float32", "bfloat16")
        np.testing.assert_array_equal(rounded, np.where(up, below + 1, below) + (sign >> 16))


def test_widening_is_exact_and_comes_back():
    for dtype, values in (("float16", ALL.view(np.float16)), ("bfloat16", widen(ALL))):
        good = ALL[np.isfinite(values)]
        wide = cast(good, dtype, "float32")
        np.testing.assert_array_equal(wide, values[np.isfinite(values)].astype(np.float32))
        np.testing.assert_array_equal(np.frombuffer(cast(wide, "float32", dtype), np.uint16), good)


def test_casts_between_the_halves():
    half = np.array([1.0, 1 / 3, 65504, 6e-8], np.float16)
    np.testing.assert_array_equal(
        cast(half, "float16", "bfloat16"), cast(half.astype(np.float32), "float32", "bfloat16")
    )
    back = cast(cast(np.array([1.0, -0.5, 2.0], np.float16), "float16", "bfloat16"), "bfloat16", "float16")
    np.testing.assert_array_equal(back, np.array([1.0, -0.5, 2.0], np.float16))


def test_overflow_becomes_infinity():
    assert np.isinf(cast(np.array([65520], np.float32), "float32", "float16")).all()
    assert not np.isinf(cast(np.array([65519], np.float32), "float32", "float16")).any()
    assert count_nonfinite(
        cast(np.array([np.finfo(np.float32).max], np.float32), "float32", "bfloat16"), "bfloat16"
    ) == (0, 1)


def test_same_dtype_is_the_same_buffer():
    chunk = memoryview(bytes(8))
    assert cast(chunk, "bfloat16", "bfloat16") is chunk


def test_largest():
    assert largest(np.array([1, -3, 2], np.float16), "float16") == 3
