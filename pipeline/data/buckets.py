"""Aspect-ratio buckets: the sizes that pictures are brought to, so that a batch has one static shape."""

from fractions import Fraction

import numpy as np

SIDE_MULTIPLE = 32  # the VAE shrinks a side by 8, the UNet by 4 more, and its skip connections have to meet again
LEAST_SHARE = 0.9  # of the square's pixels: what SDXL's list keeps to
_NOT_IN_SDXL = (704, 1344)  # SDXL's list has 1344×704, but not this one, though every other size has its counterpart


class BucketError(ValueError):
    """No buckets can be made of these numbers."""


def buckets(resolution: int, step: int) -> list[tuple[int, int]]:
    """The sizes (width, height) from the tallest to the widest.

    All sizes whose sides are multiples of `step` from resolution/2 to 2·resolution and that hold 90 to 100 % of the
    square's pixels; of those with one aspect ratio the largest. For (1024, 64) these are the 40 sizes of SDXL (arXiv
    2307.01952, appendix I). Raises BucketError when `step` is no multiple of 32 or does not divide `resolution`."""
    if step % SIDE_MULTIPLE or resolution % step:
        raise BucketError(
            f"index.resolution is {resolution} and index.bucket_step {step}; the step has to be a multiple of "
            f"{SIDE_MULTIPLE} and to divide the resolution (SDXL: 1024 and 64)"
        )
    least = -(-resolution // (2 * step)) * step
    sides = range(least, 2 * resolution + 1, step)
    square = resolution**2
    sizes = [(width, height) for width in sides for height in sides if LEAST_SHARE * square <= width * height <= square]
    sizes = [size for size in sizes if (resolution, step, size) != (1024, 64, _NOT_IN_SDXL)]
    largest = {Fraction(*size): size for size in sorted(sizes)}
    return [largest[ratio] for ratio in sorted(largest)]


def sizes(resolution: int, step: int, several: bool) -> list[tuple[int, int]]:
    """What params.yaml's index asks for: the `buckets`, or one square. Raises BucketError as they do."""
    return buckets(resolution, step) if several else [(resolution, resolution)]


def choose(widths: np.ndarray, heights: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
    """For pictures of (n,) widths and heights the indices (n,) into `sizes` of the buckets with the nearest aspect
    ratio.

    Near is the least |log(ratio) - log(bucket's ratio)|, so that 2:1 is as far from the square as 1:2 is. `sizes` go
    from the tallest to the widest, as `buckets` gives them. A picture half-way between two, such as a square one between
    64×128 and 128×64, goes to the taller one. Squares of ratios are compared, each one division of whole numbers and no
    logarithm: equal ones are equal on every machine."""
    sides = np.array(sizes, np.float64).reshape(-1, 2)
    return np.searchsorted(_half_way(sides[:-1], sides[1:]), _squared(widths, heights), side="left")


def _squared(widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Of ratios, exact but for the division."""
    return np.square(np.asarray(widths, np.float64)) / np.square(np.asarray(heights, np.float64))


def _half_way(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The square of the ratio half-way between two sizes (..., 2): of their geometric mean."""
    return left[..., 0] * right[..., 0] / (left[..., 1] * right[..., 1])


def nearest(widths: np.ndarray, heights: np.ndarray, sizes: list[tuple[int, int]], count: int) -> np.ndarray:
    """(n, k) indices into `sizes` of the buckets nearest to each picture: that which `choose` gives, and behind it those
    beside it, each time the nearer one of both sides; k is `count`, or of fewer sizes all."""
    low = high = choose(widths, heights, sizes)
    found = [low]
    squared, sides = _squared(widths, heights), np.array(sizes, np.float64)
    for _ in range(min(count, len(sizes)) - 1):
        below, above = low - 1, high + 1
        between = _half_way(sides[np.maximum(below, 0)], sides[np.minimum(above, len(sizes) - 1)])
        takes_below = (below >= 0) & ((above >= len(sizes)) | (squared <= between))  # as in `choose`
        low, high = np.where(takes_below, below, low), np.where(takes_below, high, above)
        found.append(np.where(takes_below, below, above))
    return np.stack(found, axis=1)


def common(
    widths: np.ndarray, heights: np.ndarray, counts: np.ndarray, sizes: list[tuple[int, int]], least: int
) -> list[tuple[int, int]]:
    """Those of `sizes` that are left when each to which fewer than `least` pictures go is given up, the rarest first
    (of equals the taller), and its pictures go to the nearest of those left. One is always left.

    widths, heights: (n,) of the pictures, `counts` (n,) how many there are of each; `sizes` as for `choose`."""
    while True:
        found = np.bincount(choose(widths, heights, sizes), counts, len(sizes))
        if found.all() and (found.min() >= least or len(sizes) == 1):
            return sizes
        dropped = {int(found.argmin())} if found.all() else set(np.flatnonzero(found == 0).tolist())
        sizes = [size for place, size in enumerate(sizes) if place not in dropped]
