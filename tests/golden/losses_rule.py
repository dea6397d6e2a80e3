"""What make_losses.py and tests/diffusion/test_loss.py share: a batch whose samples and pixels count differently."""

import numpy as np

FLOOR = 0.3
PRIOR_WEIGHT = 0.4
SNR_GAMMA = 5.0
SOFT_GAMMA = 4.0
P2_GAMMA = 0.7
TIMESTEPS = np.array([20, 300, 640, 990])
CLASS = np.array([False, False, True, True])  # the second half are class pictures
LOSS_WEIGHTS = np.where(CLASS, PRIOR_WEIGHT, 1.0)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions and targets (4, 4, 6, 5) float32, and masks (4, 6, 5) uint8, the last of them white."""
    draw = np.random.Generator(np.random.Philox(15))
    prediction, target = (draw.standard_normal((4, 4, 6, 5), np.float32) for _ in range(2))
    masks = draw.integers(0, 256, (4, 6, 5)).astype(np.uint8)
    masks[0, :3], masks[-1] = 0, 255
    return prediction, target, masks
