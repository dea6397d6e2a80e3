"""Float arithmetic on raw chunks of weights: find NaN and infinity, and change the dtype, at the speed of the disk."""

import numpy as np

from pipeline.weights.tensor import NUMPY

# The bits of +infinity: the exponent's bits are all ones in NaN and infinity, and in nothing else (IEEE 754).
_INFINITY = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


def finite(chunk, dtype: str) -> bool:
    """Whether a buffer of this dtype holds neither NaN nor infinity.

    Read as signed integers the positive floats keep their order, so NaN and +infinity are at or above +infinity's bits;
    read as unsigned ones the negative floats stand above all others, with NaN and -infinity at or above -infinity's."""
    bits = _bits(chunk, dtype)
    sign = 1 << (8 * bits.itemsize - 1)
    signed = bits.view(np.dtype(f"<i{bits.itemsize}"))
    return int(signed.max()) < _INFINITY[dtype] and int(bits.max()) < sign + _INFINITY[dtype]


def count_nonfinite(chunk, dtype: str) -> tuple[int, int]:
    """(number of NaN, number of infinities) in a buffer of this dtype."""
    bits = _bits(chunk, dtype)
    magnitude = bits & bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    return int((magnitude > _INFINITY[dtype]).sum()), int((magnitude == _INFINITY[dtype]).sum())


def cast(chunk, source: str, target: str):
    """A buffer of `source` values as one of `target`, rounded to nearest, ties to even; too large becomes infinity."""
    if source == target:
        return chunk
    values = to_float32(chunk, source)
    if target == "float32":
        return values
    if target == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    bits = values.view("<u4")
    # Half of bfloat16's last place, less one where that place is even, carries into it exactly when it rounds up.
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")


def largest(chunk, dtype: str) -> float:
    """The largest magnitude in a buffer of finite values."""
    return float(np.abs(to_float32(chunk, dtype)).max())


def to_float32(chunk, dtype: str) -> np.ndarray:
    values = np.frombuffer(chunk, NUMPY[dtype])
    if dtype == "bfloat16":
        return (values.astype("<u4") << 16).view("<f4")
    return values.astype("<f4", copy=False)


def _bits(chunk, dtype: str) -> np.ndarray:
    return np.frombuffer(chunk, np.dtype(f"<u{NUMPY[dtype].itemsize}"))
