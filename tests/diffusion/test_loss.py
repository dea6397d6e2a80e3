"""Loss weights against diffusers' `compute_snr`, closed forms, and losses of sd-scripts, OneTrainer, diffusers and
k-diffusion."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import params
from pipeline.diffusion import loss, schedule
from tests.golden import losses_rule
from tests.golden import objectives_rule as o
from tests.golden import training_rule as t
from tests.golden.compare import training

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "objectives.npz")
LOSSES = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


def snr(rescaled=False):
    return schedule.snr(schedule.alphas_cumprod(rescaled))


def test_min_snr_equals_diffusers():
    np.testing.assert_allclose(
        loss.weights(snr(), "epsilon", snr_gamma=t.SNR_GAMMA), training()["min_snr_epsilon"], rtol=1e-4
    )


def test_min_snr_of_v_takes_the_rescaled_schedule():
    found = loss.weights(snr(True), "v", snr_gamma=t.SNR_GAMMA)
    np.testing.assert_allclose(found, training()["min_snr_v"], rtol=1e-4, atol=1e-6)
    assert found[-1] == 0
    assert np.abs(found / loss.weights(snr(), "v", snr_gamma=t.SNR_GAMMA) - 1).max() > 0.5


def test_debiased_estimation():
    values = np.array([1e-4, 1.0, 4.0, 1e6])
    np.testing.assert_allclose(loss.weights(values, "epsilon", debiased=True), [100, 1, 0.5, 1000**-0.5])
    np.testing.assert_allclose(loss.weights(values, "v", debiased=True), 1 / (values + 1))


def test_soft_min_snr_is_k_diffusions():
    """k-diffusion weights v's error, with sigma_data² = 1 / gamma, by (sigma sigma_data)² / (sigma² + sigma_data²)²; here
    the network's scaling is that of sigma_data 1, so the factors are compared that the error of x_0 gets."""
    sigma_squared, gamma = 1 / snr(), 4.0
    of_x_0 = 1 / (sigma_squared + 1 / gamma)  # the former over its c_out²
    np.testing.assert_allclose(loss.weights(snr(), "epsilon", snr_gamma_soft=gamma) * snr(), of_x_0)
    np.testing.assert_allclose(loss.weights(snr(), "v", snr_gamma_soft=gamma) * (snr() + 1), of_x_0)
    np.testing.assert_allclose(
        loss.weights(snr(), "v", snr_gamma_soft=1.0), sigma_squared / (sigma_squared + 1) ** 2, rtol=1e-9
    )
    # it is below Min-SNR and near it away from the kink
    hard = loss.weights(snr(), "epsilon", snr_gamma=gamma)
    ratio = loss.weights(snr(), "epsilon", snr_gamma_soft=gamma) / hard
    assert (ratio <= 1).all() and ratio.min() == pytest.approx(0.5, abs=0.01) and ratio[-1] > 0.99 < ratio[0]


def test_p2_is_the_papers():
    values = np.array([0.25, 1.0, 99.0])
    np.testing.assert_allclose(loss.weights(values, "epsilon", p2_gamma=1.0), [1 / 1.25, 1 / 2, 1 / 100])
    np.testing.assert_allclose(loss.weights(values, "epsilon", p2_gamma=0.5, p2_k=1.0), [1.25**-0.5, 2**-0.5, 0.1])
    np.testing.assert_allclose(loss.weights(values, "epsilon", p2_gamma=1.0, p2_k=3.0), [1 / 3.25, 1 / 4, 1 / 102])


@pytest.mark.parametrize("weighting", [{"snr_gamma": 5.0}, {"snr_gamma_soft": 4.0}, {"p2_gamma": 1.0}])
def test_a_weighting_is_the_same_loss_whatever_is_predicted(weighting):
    """The error of epsilon is sqrt(snr) times that of x_0, and the error of v sqrt(snr + 1) times."""
    of_epsilon = snr() * loss.weights(snr(), "epsilon", **weighting)
    np.testing.assert_allclose(of_epsilon, (snr() + 1) * loss.weights(snr(), "v", **weighting), rtol=1e-9)
    found = loss.weights(snr(True), "v", **weighting)
    assert np.isfinite(found).all() and found[-1] == 0 and (found[:-1] > 0).all()


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_thresholds_of_the_huber_loss_are_kohyas(rescaled):
    found = loss.huber_thresholds(o.HUBER_C, schedule.alphas_cumprod(rescaled))
    wanted = GOLDEN["huber_c_snr" + "_rescaled" * rescaled]
    np.testing.assert_allclose(found[o.HUBER_TIMESTEPS], wanted, rtol=1e-4)
    assert rescaled == (found[-1] == o.HUBER_C) and (np.diff(found) < 0).all()


def test_without_weighting_all_count_the_same():
    assert (loss.weights(snr(), "epsilon") == 1).all()


def test_a_padded_batch_has_the_mean_of_its_real_samples():
    losses, weight = np.array([3.0, 5.0, 100.0, 7.0]), np.array([1.0, 2.0, 1.0, 0.5])
    real = np.array([True, True, False, True])
    found = loss.batch_weights(weight, real, real_in_batch=3, batch=4)
    assert found.dtype == np.float32
    assert (losses * found).mean() == pytest.approx((3 + 10 + 3.5) / 3)


def test_a_white_mask_changes_nothing_and_others_have_their_shares():
    masks = np.array([[[0, 51], [204, 255]], [[255, 255], [255, 255]]], np.uint8)
    found = loss.masked(np.array([2.0, 3.0]), masks, 0.3)
    assert found.dtype == np.float32 and found.shape == (2, 1, 2, 2)
    np.testing.assert_allclose(found[0, 0], 2 * np.array([[0.3, 0.3], [0.8, 1]]), rtol=1e-6)
    assert (found[1] == 3).all()


def of_batch(floor: float | None = None, prediction_of: str = "epsilon", **weighting) -> float:
    """The loss of losses_rule's batch: weights by sample as training.feed has them, by pixel where there is a floor."""
    prediction, target, masks = losses_rule.batch()
    weight = loss.weights(snr()[losses_rule.TIMESTEPS], prediction_of, **weighting) * losses_rule.LOSS_WEIGHTS
    weight = loss.batch_weights(weight, np.ones(4, bool), 4, 4)
    weight = weight[:, None, None, None] if floor is None else loss.masked(weight, masks, floor)
    return float((weight * (prediction - target).astype(np.float64) ** 2).mean())


def test_masks_are_kohyas_and_onetrainers():
    """By sd-scripts' process_batch and OneTrainer's _diffusion_losses (tests/golden/make_losses.py), with the weights of class
    pictures and Min-SNR over them."""
    assert of_batch(0.0) == pytest.approx(LOSSES["sd_scripts"]["masks"], rel=1e-6)
    assert LOSSES["sd_scripts"]["alpha masks"] == LOSSES["sd_scripts"]["masks"]
    assert of_batch(0.0, snr_gamma=losses_rule.SNR_GAMMA) == pytest.approx(
        LOSSES["sd_scripts"]["masks, min_snr_gamma"], rel=1e-5
    )
    assert of_batch(losses_rule.FLOOR) == pytest.approx(LOSSES["onetrainer"]["masks"], rel=1e-6)


def test_the_floor_as_it_comes_is_onetrainers():
    floor = params.load(Path(__file__).parents[2] / "presets/tiny.yaml").train.mask_floor
    assert floor == LOSSES["onetrainer"]["unmasked_weight"]
    assert of_batch(floor) == pytest.approx(LOSSES["onetrainer"]["masks, unmasked_weight as it comes"], rel=1e-6)


def test_class_pictures_count_as_in_prior_preservation():
    """The same as kohya's prior_loss_weight and OneTrainer's loss_weight; diffusers adds the mean over the class pictures to
    the mean over the others, which is twice the mean over a batch that has as many of both."""
    for peer, times in (("sd_scripts", 1), ("onetrainer", 1), ("diffusers", 2)):
        assert times * of_batch() == pytest.approx(LOSSES[peer]["class pictures"], rel=1e-6)


def test_weightings_are_their_peers():
    """By OneTrainer's mixin, sd-scripts' process_batch (whose choice for v is not OneTrainer's) and k-diffusion's Denoiser
    (tests/golden/make_losses.py)."""
    debiased = of_batch(debiased=True)
    assert debiased == pytest.approx(LOSSES["onetrainer"]["debiased"], rel=1e-5)
    assert debiased == pytest.approx(LOSSES["sd_scripts"]["debiased"], rel=1e-5)
    of_v = of_batch(prediction_of="v", debiased=True)
    assert of_v == pytest.approx(LOSSES["sd_scripts"]["debiased, v"], rel=1e-5)
    assert of_batch(p2_gamma=losses_rule.P2_GAMMA) == pytest.approx(LOSSES["onetrainer"]["P2"], rel=1e-5)
    for prediction, wanted in LOSSES["k_diffusion"].items():
        found = of_batch(prediction_of=prediction, snr_gamma_soft=losses_rule.SOFT_GAMMA)
        assert found == pytest.approx(wanted, rel=1e-4), prediction
