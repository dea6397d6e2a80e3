"""How much each sample's loss counts, by its timestep's signal-to-noise ratio (of the schedule after any rescaling), and
where a Huber loss turns from square to linear."""

import numpy as np


def weights(
    snr: np.ndarray,
    prediction: str,
    *,
    snr_gamma: float | None = None,
    snr_gamma_soft: float | None = None,
    p2_gamma: float | None = None,
    p2_k: float = 1.0,
    debiased: bool = False,
) -> np.ndarray:
    """(b,) float64 loss weights for samples of the given `snr` (b,). `prediction` is "epsilon" or "v": in terms of the
    error of x_0 the squared error of epsilon is snr and that of v snr + 1 times as large.

    Min-SNR (arXiv 2303.09556): the error of x_0 counts min(snr, gamma).
    Soft Min-SNR (arXiv 2401.11605): the error of x_0 counts snr gamma / (snr + gamma), the same without a kink.
    P2 (arXiv 2204.00227): the error of epsilon counts 1 / (k + snr)^gamma.
    Debiased estimation (arXiv 2310.08442): 1 / sqrt(min(snr, 1000)) for "epsilon", 1 / (snr + 1) for "v".
    With none all are 1. At most one of them may be asked for."""
    if snr_gamma is not None:
        return np.minimum(snr, snr_gamma) / (snr if prediction == "epsilon" else snr + 1)
    if snr_gamma_soft is not None:
        weight = snr_gamma_soft / (snr + snr_gamma_soft)
        return weight if prediction == "epsilon" else weight * snr / (snr + 1)
    if p2_gamma is not None:
        weight = (p2_k + snr) ** -p2_gamma
        return weight if prediction == "epsilon" else weight * snr / (snr + 1)
    if debiased:
        return 1 / np.sqrt(np.minimum(snr, 1000.0)) if prediction == "epsilon" else 1 / (snr + 1)
    return np.ones_like(snr)


def huber_thresholds(c: float, alphas: np.ndarray) -> np.ndarray:
    """(1000,) float64: c of the pseudo-Huber loss at each timestep by the schedule "snr" (sd-scripts; arXiv 2403.16728,
    4.2): 1 where there is no noise, falling to `c`: (1 - c) / (1 + sigma)² + c, with sigma² = (1 - a) / a of
    alphas_cumprod."""
    root = np.sqrt(alphas)
    return (1 - c) * (root / (root + np.sqrt(1 - alphas))) ** 2 + c


def masked(weight: np.ndarray, masks: np.ndarray, floor: float) -> np.ndarray:
    """(b, 1, h, w) float32 weights of the latents' pixels: `weight` (b,) times masks / 255, of `masks` (b, h, w) uint8,
    and no less than `floor` of it. The loss stays the mean over all pixels, whatever share of them a mask covers, as in
    kohya's sd-scripts (apply_masked_loss), SimpleTuner and OneTrainer (masked_losses, whose unmasked_weight the floor
    is)."""
    share = np.maximum(masks[:, None] / np.float32(255), np.float32(floor))
    return share * weight[:, None, None, None].astype(np.float32)


def batch_weights(weight: np.ndarray, real: np.ndarray, real_in_batch: int, batch: int) -> np.ndarray:
    """(b,) float32: `weight` (b,) where `real` (b,) bool, else 0. The real ones are scaled by `batch` / `real_in_batch`
    (counts over the whole global batch), so that the mean over a padded batch is the mean over its real samples."""
    return np.where(real, weight * (batch / real_in_batch), 0.0).astype(np.float32)
