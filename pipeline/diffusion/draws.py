"""Random numbers that are a function of (seed, purpose, step or epoch, sample): NumPy's Philox, a counter-based
generator.

No state is carried from one draw to the next, so a resumed run and any number of ranks draw the same numbers."""

import numpy as np

# Each purpose has a key of its own: two purposes never share a stream of numbers.
TIMESTEP, NOISE, OFFSET, POSTERIOR, DROPOUT, VALIDATION, PERTURBATION, PYRAMID = range(1, 9)


def generator(seed: int, purpose: int, step: int, sample: int) -> np.random.Generator:
    """The generator of one purpose at one step for one sample (its global index, -1 for padding)."""
    # The lowest counter word counts the numbers drawn; step and sample sit in the two highest.
    counter = np.array([0, 0, step, sample & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, purpose: int, step: int, samples: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(b, *shape) float32 standard normal numbers, a stream for each of the `samples` (b,) int64."""
    return np.stack([generator(seed, purpose, step, int(s)).standard_normal(shape, dtype=np.float32) for s in samples])


def uniform(seed: int, purpose: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(b,) float64 in [0, 1), one for each of the `samples` (b,) int64."""
    return np.array([generator(seed, purpose, step, int(s)).random() for s in samples])
