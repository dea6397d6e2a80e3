"""Timestep bias and draws."""

import numpy as np
import pytest

from pipeline.diffusion import draws, timesteps

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


def test_purposes_do_not_share_numbers():
    found = {
        draws.generator(0, purpose, 5, 6).random()
        for purpose in (draws.TIMESTEP, draws.NOISE, draws.OFFSET, draws.POSTERIOR, draws.DROPOUT)
    }
    assert len(found) == 5


def test_padding_has_a_stream_of_its_own():
    noise = draws.normal(0, draws.NOISE, 1, np.array([-1, 0]), (2, 3))
    assert noise.dtype == np.float32 and (noise[0] != noise[1]).all()
