"""The Euler sampler against diffusers' EulerDiscreteScheduler (tests/golden/make_euler.py) and against closed forms."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.diffusion import schedule
from pipeline.sampling import euler
from tests.golden import euler_rule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "euler.npz")


def run(prediction: str, zero_terminal_snr: bool):
    timesteps, sigmas = euler.steps(schedule.alphas_cumprod(zero_terminal_snr), euler_rule.STEPS, zero_terminal_snr)
    xs = [euler.start(euler_rule.noise(), sigmas, zero_terminal_snr)]

    def denoise(x, sigma, timestep):
        if len(xs) > 1 or x is not xs[0]:
            xs.append(x)
        output = euler_rule.output((x / np.sqrt(sigma**2 + 1)).astype(np.float32), int(timestep))
        return euler.denoised(x, sigma, output, prediction)

    last = euler.sample(denoise, xs[0], timesteps, sigmas)
    return timesteps, sigmas, np.stack([*xs, last])


@pytest.mark.parametrize("case", euler_rule.CASES)
def test_the_path_is_that_of_diffusers(case):
    timesteps, sigmas, xs = run(*euler_rule.CASES[case])
    assert np.array_equal(timesteps, GOLDEN[f"{case}_timesteps"])
    np.testing.assert_allclose(sigmas, GOLDEN[f"{case}_sigmas"], rtol=2e-5)
    wanted = GOLDEN[f"{case}_x"]
    assert xs.shape == wanted.shape == (euler_rule.STEPS + 1, 2, 4, 3, 2)
    for found, want in zip(xs, wanted, strict=True):
        assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()
    assert xs.dtype == np.float32


def test_one_data_point_is_found_exactly():
    """When all data are one point the denoiser gives it, the path is a straight line, and any steps end there."""
    point = np.full((1, 4, 2, 2), 3.0, np.float32)
    timesteps, sigmas = euler.steps(schedule.alphas_cumprod(False), 7, False)
    first = euler.start(np.ones_like(point), sigmas, False)
    x = euler.sample(lambda x, sigma, timestep: point, first, timesteps, sigmas)
    np.testing.assert_allclose(x, point, atol=1e-5)


def test_gaussian_data_keep_their_quantiles():
    """For data N(0, s²) the equation's solution is x(0) = x(sigma) s / sqrt(s² + sigma²); Euler steps come near it."""
    s = 0.5
    timesteps, sigmas = euler.steps(schedule.alphas_cumprod(False), 999, False)
    x = np.linspace(-2, 2, 9, dtype=np.float32) * sigmas[0]
    end = euler.sample(lambda x, sigma, timestep: x * s**2 / (s**2 + sigma**2), x, timesteps, sigmas)
    np.testing.assert_allclose(end, x * s / np.sqrt(s**2 + sigmas[0] ** 2), rtol=0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_denoised_undoes_what_training_adds(prediction):
    alphas = schedule.alphas_cumprod(False)
    rng = np.random.default_rng(0)
    x_0, noise = rng.standard_normal((2, 3, 4, 2, 2), np.float32)
    timesteps = np.array([5, 400, 990])
    mixture = schedule.mixture(prediction, timesteps, alphas)
    x_t = schedule.add_noise(x_0, noise, *mixture)
    target = schedule.target(prediction, x_0, noise, *mixture)
    for index, signal in enumerate(alphas[timesteps]):
        sigma = np.sqrt((1 - signal) / signal)
        x = x_t[index] * np.sqrt(sigma**2 + 1)
        np.testing.assert_allclose(euler.denoised(x, sigma, target[index], prediction), x_0[index], atol=2e-5)


def test_trailing_steps_may_be_all_timesteps():
    """And whatever their number, so many there are, from the last timestep downwards."""
    alphas = schedule.alphas_cumprod(True)
    for count in range(1, 1001):
        timesteps, sigmas = euler.steps(alphas, count, True)
        assert len(timesteps) == count and timesteps[0] == 999 and timesteps[-1] >= 0
        assert np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all()
    assert timesteps.tolist() == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="1 to 1000 sampling steps are possible, found 1001"):
        euler.steps(alphas, 1001, True)


@pytest.mark.parametrize("count", [0, -1, 1000])
def test_impossible_numbers_of_steps_are_refused(count):
    with pytest.raises(ValueError, match=f"1 to 999 sampling steps are possible, found {count}"):
        euler.steps(schedule.alphas_cumprod(False), count, False)
