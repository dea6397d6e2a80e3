"""How much each sample's loss counts, by its timestep's signal-to-noise ratio (of the schedule after any rescaling)."""

import numpy as np


def weights(snr: np.ndarray, prediction: str, snr_gamma: float | None, debiased: bool) -> np.ndarray:
    """(b,) float64 loss weights for samples of the given `snr` (b,).

    Min-SNR (arXiv 2303.09556): min(snr, gamma) / snr for "epsilon" and min(snr, gamma) / (snr + 1) for "v".
    Debiased estimation (arXiv 2310.08442): 1 / sqrt(min(snr, 1000)) for "epsilon", 1 / (snr + 1) for "v".
    With neither all are 1. At most one of them may be asked for."""
    if snr_gamma is not None:
        return np.minimum(snr, snr_gamma) / (snr if prediction == "epsilon" else snr + 1)
    if debiased:
        return 1 / np.sqrt(np.minimum(snr, 1000.0)) if prediction == "epsilon" else 1 / (snr + 1)
    return np.ones_like(snr)


def batch_weights(weight: np.ndarray, real: np.ndarray, real_in_batch: int, batch: int) -> np.ndarray:
    """(b,) float32: `weight` (b,) where `real` (b,) bool, else 0. The real ones are scaled by `batch` / `real_in_batch`
    (counts over the whole global batch), so that the mean over a padded batch is the mean over its real samples."""
    return np.where(real, weight * (batch / real_in_batch), 0.0).astype(np.float32)
