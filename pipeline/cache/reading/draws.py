"""Counter-based random numbers: each draw is a function of (seed, purpose, epoch, sample), whatever was drawn before.

Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) through NumPy's raw bit stream,
which, unlike NumPy's distributions, stays the same across versions."""

import numpy as np

# Each purpose has a key of its own. They are far from the purposes of pipeline/diffusion/draws.py, whose seed is the
# same.
SAMPLES, BATCHES, ROW, CAPTION, REPEATS, CHANCE, VIEW, CROP = range(1001, 1009)


def raw(seed: int, purpose: int, epoch: int, sample: int = 0, count: int = 1) -> np.ndarray:
    """(count,) uint64, uniform over all values."""
    return _stream(seed, purpose, epoch, sample).random_raw(count)


def generator(seed: int, purpose: int, epoch: int, sample: int) -> np.random.Generator:
    """For code that wants NumPy's distributions."""
    return np.random.Generator(_stream(seed, purpose, epoch, sample))


def _stream(seed: int, purpose: int, epoch: int, sample: int) -> np.random.Philox:
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, purpose], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, epoch, sample], np.uint64))


def permutation(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    """A shuffled (count,) int64 range."""
    return np.argsort(raw(seed, purpose, epoch, count=count), kind="stable")


def choice(seed: int, purpose: int, epoch: int, samples: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each sample one of its `counts` possibilities. Both (b,) int64; returns (b,) int64."""
    chosen = np.zeros(len(samples), np.int64)
    for index in np.flatnonzero(counts > 1):
        chosen[index] = int(raw(seed, purpose, epoch, int(samples[index]))[0]) % int(counts[index])
    return chosen
