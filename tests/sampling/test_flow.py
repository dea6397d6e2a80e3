"""Sampling in rectified flow against diffusers' FlowMatchEulerDiscreteScheduler (tests/golden/make_flow.py), and against
the exact solution for Gaussian data."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.diffusion import schedule
from pipeline.sampling import draw, euler, flow, samplers
from tests.golden import euler_rule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "flow.npz")


def guided(output):
    """`output` (x_t, timestep) in the UNet's place, without guidance."""

    def unet(x_t, timesteps, context, vector):
        assert timesteps.dtype == np.float32 and (timesteps == timesteps[0]).all()
        once = output(x_t[: len(x_t) // 2], float(timesteps[0]))
        return np.concatenate([once, once])

    context = np.zeros((2, 77, 8), np.float32)
    return draw.guided(unet, context, np.zeros((2, 3), np.float32), 64, 64, 1.0, "flow")


@pytest.mark.parametrize("case", euler_rule.FLOW_CASES)
def test_the_path_is_that_of_diffusers(case):
    shift, count = euler_rule.FLOW_CASES[case]
    x, timesteps, sigmas = samplers.begin("euler", euler_rule.noise(), count, "flow", False, shift)
    assert timesteps.dtype == sigmas.dtype == np.float32
    np.testing.assert_allclose(timesteps, GOLDEN[f"{case}_timesteps"], rtol=1e-6)
    np.testing.assert_allclose(sigmas, GOLDEN[f"{case}_sigmas"], rtol=1e-6)
    xs, denoise = [], guided(euler_rule.output)

    def kept(x, sigma, timestep):
        xs.append(x)
        return denoise(x, sigma, timestep)

    xs.append(euler.sample(kept, x, timesteps, sigmas))
    wanted = GOLDEN[f"{case}_x"]
    assert np.stack(xs).shape == wanted.shape == (count + 1, 2, 4, 3, 2)
    np.testing.assert_allclose(np.stack(xs), wanted, atol=2e-5)
    assert xs[-1].dtype == np.float32


@pytest.mark.parametrize("case", euler_rule.FLOW_CASES)
def test_noise_is_added_as_by_diffusers(case):
    """Whose scheduler has its timesteps shifted already."""
    x_0, noise = euler_rule.latents_and_noise()
    mixture = schedule.mixture("flow", GOLDEN[f"{case}_noised_at"], schedule.alphas_cumprod(False))
    np.testing.assert_allclose(schedule.add_noise(x_0, noise, *mixture), GOLDEN[f"{case}_noised"], atol=2e-6)


def test_gaussian_data_keep_their_quantiles():
    """For data N(0, s²) the velocity is E[noise - x_0 | x], linear in x, and the flow takes N(0, 1) to N(0, s²)."""
    s = 0.5

    def velocity(x, timestep):
        t = timestep / 1000
        return x * (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)

    noise = np.broadcast_to(np.linspace(-2, 2, 9, dtype=np.float32).reshape(1, 1, 3, 3), (2, 4, 3, 3))
    for shift in (1.0, 3.0):
        x, timesteps, sigmas = samplers.begin("euler", noise, 1000, "flow", False, shift)
        end = euler.sample(guided(velocity), x, timesteps, sigmas)
        np.testing.assert_allclose(end, s * noise, atol=0.01)


def test_without_a_step_there_is_no_sampling():
    with pytest.raises(ValueError, match="1 sampling step or more is possible, found 0"):
        flow.steps(0, 1.0)
