"""What make_objectives.py and the tests of objectives share."""

import numpy as np

# Scheduler -> its further settings, under the names of rates.learning_rate.
RATES = {
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0, "end": 1e-7},
    "wsd": {"decay_steps": 5},
}
PEAK, WARMUP, STEPS = 2e-3, 4, 24
# Name -> settings of timesteps.density.
DENSITIES = {
    "logit_normal": {"distribution": "logit_normal", "logit_mean": -0.5, "logit_std": 1.3},
    "sigmoid": {"distribution": "sigmoid", "sigmoid_scale": 0.8},
    "beta": {"distribution": "beta", "alpha": 2.0, "beta": 0.7},
    "shifted": {"distribution": "uniform", "shift": 3.0},
    "shifted_logit_normal": {"distribution": "logit_normal", "logit_std": 1.5, "shift": 2.5},
}
DRAWS, PARTS = 4_000_000, 40
LOW, HIGH = 200, 700
RANGES = {  # the same of those in a range
    "kohya": {"distribution": "uniform"},
    "onetrainer_uniform": {"distribution": "uniform"},
    "onetrainer_logit_normal": {"distribution": "logit_normal", "logit_mean": -0.5, "logit_std": 1.3},
    "onetrainer_beta": {"distribution": "beta", "alpha": 0.7, "beta": 1.0},
    "musubi_uniform": {"distribution": "uniform"},
    "musubi_shift": {"distribution": "sigmoid", "sigmoid_scale": 0.8, "shift": 2.5},
}
HUBER_C = 0.1
HUBER_TIMESTEPS = np.array([0, 10, 333, 999])
PERTURBATION = 0.1
PYRAMIDS = {"deep": ((4, 16, 12), 8, 0.4), "shallow": ((4, 9, 32), 2, 0.9)}  # shape, iterations, discount


def errors() -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets, (4, 4, 3, 3) float32."""
    draw = np.random.Generator(np.random.Philox(11))
    return draw.standard_normal((4, 4, 3, 3), np.float32), draw.standard_normal((4, 4, 3, 3), np.float32)


def perturbation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, noise and what perturbs it, (4, 4, 6, 5) float32, at HUBER_TIMESTEPS."""
    draw = np.random.Generator(np.random.Philox(14))
    return tuple(draw.standard_normal((4, 4, 6, 5), np.float32) for _ in range(3))


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(12)).standard_normal(shape, np.float32)


def generator() -> np.random.Generator:
    """Of a pyramid's draws: for each level a ratio and then its values."""
    return np.random.Generator(np.random.Philox(13))
