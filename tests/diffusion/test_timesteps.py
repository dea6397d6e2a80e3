"""Timestep bias and draws."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.diffusion import draws, schedule, timesteps
from tests.golden import objectives_rule as o

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "objectives.npz")

NONE = {"multiplier": 1.0, "begin": 0, "end": 1000, "portion": 0.25}


def chances(strategy, **changes):
    return timesteps.probabilities(strategy, **(NONE | changes))


def test_without_bias_all_timesteps_are_as_likely():
    np.testing.assert_allclose(chances("none", multiplier=7.0), 1e-3)


@pytest.mark.parametrize(
    ("strategy", "changes", "favoured"),
    [
        ("earlier", {"portion": 0.3}, slice(0, 300)),
        ("later", {"portion": 0.3}, slice(700, 1000)),
        ("range", {"begin": 200, "end": 260}, slice(200, 260)),
    ],
)
def test_bias_multiplies_the_chances_of_its_timesteps(strategy, changes, favoured):
    found = chances(strategy, multiplier=4.0, **changes)
    wanted = np.ones(1000)
    wanted[favoured] = 4
    np.testing.assert_allclose(found, wanted / wanted.sum())


def test_a_portion_of_nothing_and_of_all_is_uniform():
    for portion in (0.0, 1.0):
        np.testing.assert_allclose(chances("later", multiplier=4.0, portion=portion), 1e-3)


@pytest.mark.parametrize("changes", [{"multiplier": 0.0}, {"multiplier": -1.0}, {"begin": 5, "end": 5}, {"end": 1001}])
def test_impossible_biases_are_refused(changes):
    with pytest.raises(ValueError, match="needed, found"):
        chances("range", **changes)


@pytest.mark.parametrize("name", o.DENSITIES)
def test_a_distribution_is_the_one_that_others_draw_from(name):
    """4 million draws by diffusers and torch (tests/golden/make_objectives.py), in 40 parts; six deviations."""
    found = timesteps.density(**o.DENSITIES[name])
    assert found.shape == (1000,) and (found >= 0).all() and found.sum() == pytest.approx(1, abs=1e-12)
    parts = found.reshape(o.PARTS, -1).sum(1)
    np.testing.assert_array_less(np.abs(parts - GOLDEN[f"drawn_{name}"]), 6 * np.sqrt(parts / o.DRAWS) + 1e-9)


def test_a_uniform_distribution_has_the_very_bits_of_none():
    np.testing.assert_array_equal(chances("none", weights=timesteps.density("uniform")), chances("none"))
    biased = {"multiplier": 3.0, "begin": 5, "end": 60}
    np.testing.assert_array_equal(chances("range", weights=timesteps.density("uniform"), **biased),
                                  chances("range", **biased))  # fmt: skip


def test_beta_of_ones_and_a_shift_of_one_change_nothing():
    np.testing.assert_allclose(timesteps.density("beta", alpha=1.0, beta=1.0), 1e-3)
    np.testing.assert_array_equal(
        timesteps.density("logit_normal", shift=1.0), timesteps.density("sigmoid", sigmoid_scale=1.0)
    )


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_a_range_has_all_of_the_distribution(distribution):
    found = timesteps.density(distribution, low=200, high=700)
    assert not found[:200].any() and not found[700:].any() and (found[200:700] > 0).all()
    whole = timesteps.density(distribution)
    np.testing.assert_allclose(found[200:700] / found.sum(), whole.reshape(500, 2).sum(1) / whole.sum(), rtol=1e-9)
    assert timesteps.density(distribution, low=999, high=1000).nonzero()[0].tolist() == [999]
    for low, high in ((5, 5), (-1, 5), (5, 1001)):
        with pytest.raises(ValueError, match="is needed, found"):
            timesteps.density(distribution, low=low, high=high)


@pytest.mark.parametrize("name", o.RANGES)
def test_a_range_is_the_one_that_others_draw_from(name):
    """4 million draws by sd-scripts, OneTrainer and musubi-tuner, of single timesteps; six deviations. Its upper end is
    not drawn."""
    found = chances("none", weights=timesteps.density(**o.RANGES[name], low=o.LOW, high=o.HIGH))
    drawn = GOLDEN[f"range_{name}"]
    assert drawn.sum() == o.DRAWS and not drawn[found == 0].any()
    assert (found > 0).nonzero()[0][[0, -1]].tolist() == [o.LOW, o.HIGH - 1]
    np.testing.assert_array_less(np.abs(found * o.DRAWS - drawn), 6 * np.sqrt(found * o.DRAWS) + 1e-9)


def test_a_bias_comes_on_top():
    weights = timesteps.density("logit_normal")
    found = chances("earlier", multiplier=4.0, portion=0.3, weights=weights)
    ratio = found / weights
    np.testing.assert_allclose(ratio[:300] / ratio[999], 4)
    np.testing.assert_allclose(ratio[300:] / ratio[999], 1)


def test_flows_times_are_between_the_same_timesteps_and_evenly_so():
    weights = chances("range", multiplier=9.0, begin=0, end=100)
    found = timesteps.draw_between(weights, seed=1, step=3, samples=np.arange(20000))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(np.floor(found), timesteps.draw(weights, seed=1, step=3, samples=np.arange(20000)))
    fractions = np.sort(found % 1)
    np.testing.assert_allclose(fractions, (np.arange(20000) + 0.5) / 20000, atol=0.015)  # Kolmogorov's distance


def test_a_shift_of_the_chances_is_one_of_the_times():
    """Drawn from shifted chances, and drawn even and then shifted, are the same times but for the rounding of parts."""
    even = timesteps.draw_between(chances("none"), seed=1, step=3, samples=np.arange(5000))
    found = timesteps.draw_between(
        chances("none", weights=timesteps.density("uniform", shift=3.0)), seed=1, step=3, samples=np.arange(5000)
    )
    np.testing.assert_allclose(found / 1000, schedule.shifted(even / 1000, 3.0), atol=2e-6)


def test_draws_follow_the_chances():
    weights = chances("range", multiplier=9.0, begin=0, end=100)
    found = timesteps.draw(weights, seed=1, step=3, samples=np.arange(20000))
    assert found.dtype == np.int32 and found.min() >= 0 and found.max() < 1000
    assert (found < 100).mean() == pytest.approx(0.5, abs=0.02)  # 100 * 9 of 900 + 900
    low = np.bincount(found[found < 100], minlength=100)
    assert low.min() > 50  # of 100 expected each


def test_draws_are_new_at_each_step_and_a_function_of_their_keys():
    samples = np.arange(64)
    first = timesteps.draw(chances("none"), 0, 1, samples)
    assert (first == timesteps.draw(chances("none"), 0, 1, samples)).all()
    for other in ((0, 2), (1, 1)):
        assert (first != timesteps.draw(chances("none"), *other, samples)).mean() > 0.9
    assert len(set(first.tolist())) > 55
    # whatever else is in the batch
    assert (timesteps.draw(chances("none"), 0, 1, samples[10:20]) == first[10:20]).all()


PURPOSES = (draws.TIMESTEP, draws.NOISE, draws.OFFSET, draws.POSTERIOR, draws.DROPOUT, draws.VALIDATION,
            draws.PERTURBATION, draws.PYRAMID)  # fmt: skip


def test_purposes_do_not_share_numbers():
    found = {draws.generator(0, purpose, 5, 6).random() for purpose in PURPOSES}
    assert len(found) == len(PURPOSES)


def test_padding_has_a_stream_of_its_own():
    noise = draws.normal(0, draws.NOISE, 1, np.array([-1, 0]), (2, 3))
    assert noise.dtype == np.float32 and (noise[0] != noise[1]).all()
