"""What make_samplers.py and test_samplers.py share: the cases; noise and the formula in a UNet's place are euler_rule's."""

import numpy as np

from tests.golden.euler_rule import CASES

NAMES = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "unipc")
PATH_STEPS = 20  # of these every x is kept
END_STEPS = (1, 2, 7, 30)  # of these the last; 7 and 30 do not divide 1000
SHAPE = (2, 4, 3, 2)


def fresh(step: int) -> np.ndarray:
    """The noise that an ancestral sampler adds after a step, SHAPE float32."""
    return np.random.Generator(np.random.Philox(key=[11, step])).standard_normal(SHAPE, np.float32)


def key(name: str, case: str, steps: int) -> str:
    assert name in NAMES and case in CASES
    return f"{name}_{case}_{steps}"


RESCALES = (0.3, 0.7, 1.0)


def outputs() -> tuple[np.ndarray, np.ndarray]:
    """What guidance makes of three pictures, and the conditional output alone, each (3, 4, 5, 6) float32."""
    u, c = np.random.Generator(np.random.Philox(12)).standard_normal((2, 3, 4, 5, 6), np.float32)
    c = c * np.array([0.5, 1, 2], np.float32).reshape(3, 1, 1, 1) + 0.2
    return u + 7 * (c - u), c
