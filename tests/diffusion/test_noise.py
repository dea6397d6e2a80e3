"""Noise of other kinds against sd-scripts' own functions (tests/golden/make_objectives.py) and closed forms."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.diffusion import draws, noise, schedule
from tests.golden import objectives_rule as o

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "objectives.npz")
SAMPLES = np.array([4, -1, 9])


def plain(shape=(4, 12, 20)):
    return draws.normal(3, draws.NOISE, 7, SAMPLES, shape)


@pytest.mark.parametrize("name", o.PYRAMIDS)
def test_a_pyramid_is_kohyas(name, monkeypatch):
    shape, iterations, discount = o.PYRAMIDS[name]
    monkeypatch.setattr(draws, "generator", lambda *_: o.generator())
    found = noise.pyramid(o.noise(shape)[None], iterations, discount, 0, 0, np.array([0]))
    assert found.dtype == np.float32 and found.shape == (1, *shape)
    np.testing.assert_allclose(found[0], GOLDEN[f"pyramid_{name}"], atol=2e-6)


def test_a_pyramid_has_the_deviation_of_noise_and_more_of_it_at_low_frequencies():
    found = noise.pyramid(plain((4, 32, 32)), 8, 0.4, 3, 7, SAMPLES)
    np.testing.assert_allclose(found.std((1, 2, 3), ddof=1), 1, rtol=1e-5)
    blocks = found.reshape(3, 4, 4, 8, 4, 8).mean((3, 5))  # of plain noise the deviation is 1 / 8
    assert blocks.std() > 1.5 / 8


def test_each_samples_noise_is_its_own_whatever_else_is_in_the_batch():
    given = plain()
    for make in (
        lambda values, samples: noise.pyramid(values, 6, 0.3, 3, 7, samples),
        lambda values, samples: noise.perturbed(values, 0.1, 3, 7, samples),
        lambda values, samples: noise.offset(values, 0.1, 3, 7, samples),
    ):
        found = make(given, SAMPLES)
        np.testing.assert_array_equal(make(given[1:2], SAMPLES[1:2]), found[1:2])
        assert not np.array_equal(make(given, SAMPLES[::-1]), found)


def test_no_level_leaves_noise_of_its_own_deviation():
    given = plain()
    np.testing.assert_allclose(
        noise.pyramid(given, 0, 0.3, 3, 7, SAMPLES), given / given.std((1, 2, 3), ddof=1, keepdims=True), rtol=1e-6
    )


def test_a_perturbation_is_noise_of_its_strength_and_independent():
    given = plain((4, 64, 64))
    added = (noise.perturbed(given, 0.25, 3, 7, SAMPLES) - given) / 0.25
    assert added.std() == pytest.approx(1, abs=0.02)
    assert abs((added * given).mean()) < 0.02
    wanted = draws.normal(3, draws.PERTURBATION, 7, SAMPLES, given.shape[1:])
    np.testing.assert_allclose(added, wanted, atol=1e-5)


def test_a_perturbed_input_is_kohyas(monkeypatch):
    """Of its own draws."""
    latents, plain, further = o.perturbation()
    monkeypatch.setattr(draws, "normal", lambda *_: further)
    seen = noise.perturbed(plain, o.PERTURBATION, 0, 0, np.arange(4))
    mixture = schedule.mixture("epsilon", o.HUBER_TIMESTEPS, schedule.alphas_cumprod(False))
    np.testing.assert_allclose(schedule.add_noise(latents, seen, *mixture), GOLDEN["perturbed_input"], atol=2e-6)
    np.testing.assert_array_equal(schedule.target("epsilon", latents, plain, *mixture), GOLDEN["perturbed_noise"])
