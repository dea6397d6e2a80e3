"""The samplers against diffusers' schedulers (tests/golden/make_samplers.py) and against closed forms."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.diffusion import schedule
from pipeline.sampling import euler, samplers
from pipeline.sampling.limits import most_steps
from tests.golden import euler_rule, samplers_rule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "samplers.npz")
STEPS = (samplers_rule.PATH_STEPS, *samplers_rule.END_STEPS)


def run(name: str, case: str, steps: int) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """The timesteps; the x that the UNet is given at each, as it is given it; and the last x."""
    prediction, zero_terminal_snr = euler_rule.CASES[case]
    timesteps, xs = [], []

    def denoise(x, sigma, timestep):
        x_t = (x / np.sqrt(sigma**2 + 1)).astype(np.float32)
        timesteps.append(int(timestep))
        xs.append(x_t)
        return euler.denoised(x, sigma, euler_rule.output(x_t, int(timestep)), prediction)

    first = samplers.begin(name, euler_rule.noise(), steps, prediction, zero_terminal_snr, 1.0)
    end = samplers.sample(name, denoise, *first, samplers_rule.fresh)
    return timesteps, xs, end


def test_all_samplers_are_compared():
    assert set(samplers.SAMPLERS) == set(samplers_rule.NAMES)


def tolerance(name: str, case: str, steps: int) -> float:
    """In one or two steps diffusers' ancestral sampler goes from sigma 4096 to near 0 by a subtraction in float32."""
    return 2e-3 if (name, case) == ("euler_ancestral", "zero_terminal_snr") and steps <= 2 else 2e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", euler_rule.CASES)
@pytest.mark.parametrize("name", samplers_rule.NAMES)
def test_the_path_is_that_of_diffusers(name, case, steps):
    key = samplers_rule.key(name, case, steps)
    timesteps, xs, end = run(name, case, steps)
    assert timesteps == GOLDEN[f"{key}_timesteps"].tolist()
    assert end.dtype == np.float32
    found = np.stack([*xs, end]) if steps == samplers_rule.PATH_STEPS else end
    wanted = GOLDEN[key]
    assert found.shape == wanted.shape and found.shape[-4:] == samplers_rule.SHAPE
    assert np.abs(found - wanted).max() <= tolerance(name, case, steps) * np.abs(wanted).max()


def gaussian(spread: float):
    """The denoiser of data N(0, spread²)."""
    return lambda x, sigma, timestep: x * spread**2 / (spread**2 + sigma**2)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_gaussian_data_keep_their_quantiles(name):
    """For data N(0, s²) the equation's solution is x(0) = x(sigma) s / sqrt(s² + sigma²). Methods of second order come
    near it in 200 steps; the ancestral one ends in other numbers of that spread."""
    s, noise = 0.5, np.linspace(-2, 2, 9, dtype=np.float32).reshape(9, 1, 1, 1)
    if name == "euler_ancestral":
        noise = np.random.default_rng(0).standard_normal((4000, 1, 1, 1), np.float32)

    def fresh(step):
        return np.random.default_rng(step + 1).standard_normal(noise.shape, np.float32)

    count = 200 if name.startswith(("dpmpp", "unipc")) else 500
    x, timesteps, sigmas = samplers.begin(name, noise, count, "epsilon", False, 1.0)
    end = samplers.sample(name, gaussian(s), x, timesteps, sigmas, fresh)
    first = sigmas.flat[0]
    if name == "euler_ancestral":
        assert abs(end.std() / s - 1) < 0.05 and abs(np.corrcoef(end.ravel(), noise.ravel())[0, 1]) < 0.05
    else:
        x = x * np.sqrt(first**2 + 1) if name == "ddim" else x
        np.testing.assert_allclose(end, x * s / np.sqrt(s**2 + first**2), atol=0.02)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_every_possible_number_of_steps_has_its_timesteps(name, zero_terminal_snr):
    """Falling, all of the schedule's own, and one more than possible is refused."""
    alphas = schedule.alphas_cumprod(zero_terminal_snr)
    most = most_steps(name, zero_terminal_snr)
    for count in {*range(1, 60), 333, 500, 501, most - 1, most}:
        timesteps, sigmas = samplers.SAMPLERS[name].steps(alphas, count, zero_terminal_snr)
        assert len(timesteps) == count and timesteps.min() >= 0 and timesteps.max() <= 999
        assert (np.diff(timesteps) <= 0).all() and np.isfinite(sigmas).all()
        assert (np.diff(sigmas.reshape(count, -1)[:, 0] if name == "ddim" else sigmas) < 0).all()
    for count in (0, most + 1):
        with pytest.raises(ValueError, match=f"1 to {most} sampling steps are possible, found {count}"):
            samplers.SAMPLERS[name].steps(alphas, count, zero_terminal_snr)


def test_fresh_noise_comes_in_at_every_step_but_the_last():
    asked = []

    def fresh(step):
        asked.append(step)
        return np.ones((1, 1, 1, 1), np.float32)

    for name in samplers.SAMPLERS:
        first = samplers.begin(name, np.ones((1, 1, 1, 1), np.float32), 5, "epsilon", False, 1.0)
        samplers.sample(name, gaussian(1.0), *first, fresh)
    assert asked == [0, 1, 2, 3]


def test_flow_is_drawn_by_euler_alone():
    noise = np.ones((1, 1, 1, 1), np.float32)
    for name in set(samplers.SAMPLERS) - {"euler"}:
        with pytest.raises(ValueError, match=f"{name} draws no flow"):
            samplers.begin(name, noise, 5, "flow", False, 1.0)
    assert len(samplers.begin("euler", noise, 1000, "flow", False, 3.0)[1]) == 1000
