"""Loss weights against diffusers' `compute_snr` and closed forms."""

import numpy as np
import pytest

from pipeline.diffusion import loss, schedule
from tests.golden import training_rule as t
from tests.golden.compare import training


def snr(rescaled=False):
    return schedule.snr(schedule.alphas_cumprod(rescaled))


def test_min_snr_equals_diffusers():
    np.testing.assert_allclose(
        loss.weights(snr(), "epsilon", t.SNR_GAMMA, False), training()["min_snr_epsilon"], rtol=1e-4
    )


def test_min_snr_of_v_takes_the_rescaled_schedule():
    found = loss.weights(snr(True), "v", t.SNR_GAMMA, False)
    np.testing.assert_allclose(found, training()["min_snr_v"], rtol=1e-4, atol=1e-6)
    assert found[-1] == 0
    assert np.abs(found / loss.weights(snr(), "v", t.SNR_GAMMA, False) - 1).max() > 0.5


def test_debiased_estimation():
    values = np.array([1e-4, 1.0, 4.0, 1e6])
    np.testing.assert_allclose(loss.weights(values, "epsilon", None, True), [100, 1, 0.5, 1000**-0.5])
    np.testing.assert_allclose(loss.weights(values, "v", None, True), 1 / (values + 1))


def test_without_weighting_all_count_the_same():
    assert (loss.weights(snr(), "epsilon", None, False) == 1).all()


def test_a_padded_batch_has_the_mean_of_its_real_samples():
    losses, weight = np.array([3.0, 5.0, 100.0, 7.0]), np.array([1.0, 2.0, 1.0, 0.5])
    real = np.array([True, True, False, True])
    found = loss.batch_weights(weight, real, real_in_batch=3, batch=4)
    assert found.dtype == np.float32
    assert (losses * found).mean() == pytest.approx((3 + 10 + 3.5) / 3)
