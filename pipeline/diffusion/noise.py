"""The noise that training adds: plain, with an offset, at several resolutions at once; and what the input has beside it.

All draws are keyed by (seed, step, sample), as pipeline/diffusion/draws.py has them."""

import numpy as np

from pipeline.diffusion import draws


def offset(noise: np.ndarray, strength: float, seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """`noise` (b, c, h, w) with one normal value of this strength added per sample and channel."""
    return noise + np.float32(strength) * draws.normal(seed, draws.OFFSET, step, samples, (noise.shape[1], 1, 1))


def perturbed(noise: np.ndarray, strength: float, seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """`noise` (b, c, h, w) as the input has it, further normal noise of this strength added, while the target has the
    noise alone: input perturbation (arXiv 2301.11706)."""
    return noise + np.float32(strength) * draws.normal(seed, draws.PERTURBATION, step, samples, noise.shape[1:])


def pyramid(
    noise: np.ndarray, iterations: int, discount: float, seed: int, step: int, samples: np.ndarray
) -> np.ndarray:
    """`noise` (b, c, h, w) with up to `iterations` coarser levels added, level i at `discount`**i times the strength, and
    all brought back to a deviation of 1 (multi-resolution noise, J. Whitaker 2023, as sd-scripts has it).

    Level i has sides r**i times smaller, r drawn anew from 2 to 4, and is enlarged bilinearly; the last is one value wide
    or high. Both r and the deviation are a sample's own, where sd-scripts takes the batch's: a sample's noise does not
    depend on what else is in its batch."""
    return np.stack(
        [
            _pyramid(one, iterations, discount, draws.generator(seed, draws.PYRAMID, step, int(sample)))
            for one, sample in zip(noise, samples, strict=True)
        ]
    )


def _pyramid(noise: np.ndarray, iterations: int, discount: float, generator: np.random.Generator) -> np.ndarray:
    channels, height, width = noise.shape
    for level in range(iterations):
        ratio = (2 + 2 * generator.random()) ** level
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = generator.standard_normal((channels, rows, columns), dtype=np.float32)
        enlarged = _bilinear(rows, height) @ coarse @ _bilinear(columns, width).T
        noise = noise + enlarged * np.float32(discount**level)
        if 1 in (rows, columns):
            break
    return noise / noise.std(ddof=1)


def _bilinear(count: int, wanted: int) -> np.ndarray:
    """(wanted, count) float32: each of the `wanted` values as a mean of the two of `count` values around its place, both
    rows spread evenly over the same length (torch's interpolate without align_corners)."""
    places = np.clip((np.arange(wanted) + 0.5) * count / wanted - 0.5, 0, count - 1)
    before = np.minimum(places.astype(int), count - 1)
    after = np.minimum(before + 1, count - 1)
    matrix = np.zeros((wanted, count), np.float32)
    np.add.at(matrix, (np.arange(wanted), before), 1 - (places - before))
    np.add.at(matrix, (np.arange(wanted), after), places - before)
    return matrix
