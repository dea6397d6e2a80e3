"""Schedules of the learning rate against diffusers' and transformers' (tests/golden/make_objectives.py)."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.training.rates import learning_rate
from tests.golden import objectives_rule as o

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "objectives.npz")


def rates(name: str, steps: int = o.STEPS, **settings) -> list[float]:
    return [learning_rate(step, steps, o.PEAK, name, o.WARMUP, **settings) for step in range(steps)]


@pytest.mark.parametrize("name", o.RATES)
def test_a_schedule_is_diffusers_or_transformers(name):
    np.testing.assert_allclose(rates(name, **o.RATES[name]), GOLDEN[f"lr_{name}"], rtol=1e-12, atol=1e-18)


def test_a_longer_run_has_the_same_rates_up_to_the_decay():
    """So that it can go on from a shorter one's state."""
    short, long = rates("wsd", decay_steps=5), rates("wsd", 100, decay_steps=5)
    assert short[: o.STEPS - 5] == long[: o.STEPS - 5] and short[-1] < long[o.STEPS - 1] == o.PEAK
    assert long[-5:] == short[-5:] and long[94] == long[95] == o.PEAK > long[96]
    assert rates("wsd", decay_steps=0) == rates("constant_with_warmup")
    assert rates("wsd", decay_steps=o.STEPS - o.WARMUP) == pytest.approx(rates("cosine"), rel=1e-12)


def test_one_cycle_is_a_cosine_and_power_one_a_line():
    assert rates("cosine_with_restarts", num_cycles=1) == pytest.approx(rates("cosine"), rel=1e-12)
    assert rates("polynomial") == pytest.approx(rates("linear"), rel=1e-12)
