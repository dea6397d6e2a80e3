"""Which timesteps are trained on: uniform, or with a bias (the reference trainers' `timestep_bias_*` settings)."""

import numpy as np

from pipeline.diffusion import draws
from pipeline.diffusion.schedule import STEPS


def probabilities(strategy: str, multiplier: float, begin: int, end: int, portion: float) -> np.ndarray:
    """(1000,) float64, the probability of each timestep. `strategy` "none" is uniform; "later" gives the last
    int(portion * 1000) timesteps `multiplier` times the weight of the others, "earlier" the first, "range" those in
    [begin, end). Raises ValueError when the multiplier is not above 0 or the range is empty or out of 0..1000."""
    weights = np.ones(STEPS)
    if strategy != "none" and multiplier <= 0:
        raise ValueError(f"a timestep bias multiplier above 0 is needed, found {multiplier}")
    count = int(portion * STEPS)
    if strategy == "later":
        weights[STEPS - count :] *= multiplier
    elif strategy == "earlier":
        weights[:count] *= multiplier
    elif strategy == "range":
        if not 0 <= begin < end <= STEPS:
            raise ValueError(
                f"a timestep range with 0 <= begin < end <= {STEPS} is needed, found begin {begin}, end {end}"
            )
        weights[begin:end] *= multiplier
    return weights / weights.sum()


def draw(chances: np.ndarray, seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(b,) int32 timesteps for `samples` (b,) int64, drawn anew at each `step` from `chances` (1000,)."""
    ends = np.cumsum(chances)
    places = draws.uniform(seed, draws.TIMESTEP, step, samples) * ends[-1]
    return np.searchsorted(ends, places, side="right").astype(np.int32)


def draw_between(chances: np.ndarray, seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(b,) float64 timesteps of 0 to 1000 for flow. `chances` (1000,) are those of 0 to 1, 1 to 2 and so on; within such
    a part all places are as likely. The same draws as `draw`'s, whose timesteps are these without their fractions."""
    ends = np.cumsum(chances)
    places = draws.uniform(seed, draws.TIMESTEP, step, samples) * ends[-1]
    parts = np.searchsorted(ends, places, side="right")
    return parts + 1 - (ends[parts] - places) / chances[parts]
