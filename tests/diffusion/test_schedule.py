"""Schedule, targets and conditioning against diffusers' numbers and closed forms."""

import numpy as np
import pytest

from pipeline.diffusion import conditioning, schedule
from tests.golden import rule
from tests.golden import training_rule as t
from tests.golden.compare import golden, training


@pytest.mark.parametrize("rescaled", [False, True])
def test_alphas_cumprod_equal_diffusers(rescaled):
    wanted = training()["alphas_cumprod_rescaled" if rescaled else "alphas_cumprod"]
    # diffusers computes them in float32
    np.testing.assert_allclose(schedule.alphas_cumprod(rescaled), wanted, rtol=3e-5, atol=1e-7)


def test_the_rescaled_schedule_starts_as_before_and_ends_in_pure_noise():
    plain, rescaled = schedule.alphas_cumprod(False), schedule.alphas_cumprod(True)
    assert rescaled[-1] == 0 < plain[-1]
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-12)
    assert (np.diff(rescaled) < 0).all()


def test_noise_is_added_by_the_timestep_of_each_sample():
    alphas = np.array([1.0, 0.25, 0.0])
    x_0, noise = np.full((3, 4, 1, 1), 2, np.float32), np.full((3, 4, 1, 1), 3, np.float32)
    found = schedule.add_noise(x_0, noise, *schedule.mixture("v", np.array([0, 1, 2]), alphas))[:, 0, 0, 0]
    np.testing.assert_allclose(found, [2, 0.5 * 2 + 0.75**0.5 * 3, 3], rtol=1e-6)
    found = schedule.add_noise(x_0, noise, *schedule.mixture("flow", np.array([0, 312.5, 1000]), alphas))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0, 0, 0], [2, 0.6875 * 2 + 0.3125 * 3, 3], rtol=1e-6)


def test_the_targets_give_back_the_latents():
    alphas = schedule.alphas_cumprod(False)
    x_0, noise = t.inputs(0)["x_0"], t.inputs(0)["noise"]
    mixture = schedule.mixture("v", t.timesteps(0), alphas)
    x_t = schedule.add_noise(x_0, noise, *mixture)
    a = alphas[t.timesteps(0)].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(schedule.target("epsilon", x_0, noise, *mixture), noise)
    v = schedule.target("v", x_0, noise, *mixture)
    # arXiv 2202.00512, appendix D: x = alpha x_t - sigma v
    np.testing.assert_allclose(np.sqrt(a) * x_t - np.sqrt(1 - a) * v, x_0, atol=1e-5)
    mixture = schedule.mixture("flow", t.timesteps(0), alphas)
    velocity = schedule.target("flow", x_0, noise, *mixture)
    time = t.timesteps(0).reshape(-1, 1, 1, 1) / 1000
    np.testing.assert_allclose(schedule.add_noise(x_0, noise, *mixture) - time * velocity, x_0, atol=1e-5)


def test_a_shift_moves_times_towards_the_noise_as_a_larger_resolution_does():
    """SD3's derivation (arXiv 2403.03206, appendix B.2): with n places for m, the same uncertainty of a constant picture,
    t / (1 - t) / sqrt(places), is at sqrt(n / m) times the odds."""
    times = np.linspace(0.01, 0.99, 7)
    odds = times / (1 - times)
    moved = schedule.shifted(times, 3.0)
    np.testing.assert_allclose(moved / (1 - moved), 3 * odds)
    np.testing.assert_array_equal(schedule.shifted(times, 1.0), times)
    np.testing.assert_allclose(schedule.shifted(np.array([0.0, 1.0]), 3.0), [0, 1])


@pytest.mark.parametrize("label", ["tiny", "small"])
def test_the_vector_equals_diffusers(label):
    pooled = rule.normal("pooled", (rule.BATCH, rule.CONFIGS[label].unet.vector_dim - 6 * 256))
    found = conditioning.vector(pooled, np.array(rule.TIME_IDS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden(label)["vector"], atol=2e-4)  # float32 angles of up to 1024 there
