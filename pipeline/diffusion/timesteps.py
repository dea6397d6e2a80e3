"""Which timesteps are trained on: a distribution over a range, and a bias on top of it (the reference trainers'
`timestep_bias_*` settings). Both are 1000 numbers, of the timesteps 0 to 999, or for flow of the times between them."""

import numpy as np

from pipeline.diffusion import draws
from pipeline.diffusion.schedule import STEPS


def density(
    distribution: str,
    low: int = 0,
    high: int = STEPS,
    shift: float = 1.0,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    sigmoid_scale: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> np.ndarray:
    """(1000,) float64: weights in proportion to the chances that a number u of 0 to 1, moved by `shift` as flow's times
    are (schedule.shifted) and stretched over the timesteps from `low` to below `high`, falls on each timestep. u is

    "uniform"; "logit_normal": sigmoid(z), z of mean `logit_mean` and deviation `logit_std` (SD3, arXiv 2403.03206,
    3.1); "sigmoid": the same with mean 0 and deviation `sigmoid_scale`, as kohya's and SimpleTuner's option has it;
    "beta": Beta(`alpha`, `beta`). Raises ValueError when the range is empty or out of 0..1000."""
    if not 0 <= low < high <= STEPS:
        raise ValueError(f"a timestep range with 0 <= low < high <= {STEPS} is needed, found {low} and {high}")
    if distribution == "uniform" and shift == 1:
        return np.where((np.arange(STEPS) >= low) & (np.arange(STEPS) < high), 1.0, 0.0)
    from scipy import special  # only now: it takes as long to import as all else here

    ends = np.clip((np.arange(STEPS + 1) - low) / (high - low), 0, 1)
    u = ends / (shift - (shift - 1) * ends)  # what is moved to there
    if distribution == "uniform":
        below = u
    elif distribution == "beta":
        below = special.betainc(alpha, beta, u)
    else:
        mean, deviation = (logit_mean, logit_std) if distribution == "logit_normal" else (0.0, sigmoid_scale)
        below = special.ndtr((special.logit(u) - mean) / deviation)
    return np.diff(below)


def probabilities(
    strategy: str, multiplier: float, begin: int, end: int, portion: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """(1000,) float64, the probability of each timestep, from `weights` (1000,), by default all the same. `strategy`
    "later" gives the last int(portion * 1000) timesteps `multiplier` times their weight, "earlier" the first, "range"
    those in [begin, end); "none" leaves them. Raises ValueError when the multiplier is not above 0 or the range is empty
    or out of 0..1000."""
    weights = np.ones(STEPS) if weights is None else weights.copy()
    if strategy != "none" and multiplier <= 0:
        raise ValueError(f"a timestep bias multiplier above 0 is needed, found {multiplier}")
    if strategy == "range" and not 0 <= begin < end <= STEPS:
        raise ValueError(f"a timestep range with 0 <= begin < end <= {STEPS} is needed, found begin {begin}, end {end}")
    weights[slice(*biased(strategy, begin, end, portion))] *= multiplier
    return weights / weights.sum()


def biased(strategy: str, begin: int, end: int, portion: float) -> tuple[int, int]:
    """The timesteps that a bias of `strategy` is on: the first, and one past the last; (0, 0) for "none"."""
    count = int(portion * STEPS)
    return {"none": (0, 0), "earlier": (0, count), "later": (STEPS - count, STEPS), "range": (begin, end)}[strategy]


def draw(chances: np.ndarray, seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(b,) int32 timesteps for `samples` (b,) int64, drawn anew at each `step` from `chances` (1000,)."""
    return _placed(chances, seed, step, samples)[0].astype(np.int32)


def draw_between(chances: np.ndarray, seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(b,) float64 timesteps of 0 to 1000 for flow. `chances` (1000,) are those of 0 to 1, 1 to 2 and so on; within such
    a part all places are as likely. `draw` gives the same ones without their fractions."""
    parts, rest = _placed(chances, seed, step, samples)
    return parts + np.clip(1 - rest / chances[parts], 0, 1)


def _placed(chances: np.ndarray, seed: int, step: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The timestep on which each sample's number between 0 and the sum of the chances falls, and how much of that
    timestep's chance lies above it."""
    ends = np.cumsum(chances)
    places = draws.uniform(seed, draws.TIMESTEP, step, samples) * ends[-1]
    found = np.searchsorted(ends, places, side="right")
    return found, ends[found] - places
