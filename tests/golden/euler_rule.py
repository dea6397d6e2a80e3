"""What make_euler.py, make_flow.py and their tests share: the cases, the first noise, and a formula in a UNet's place."""

import numpy as np

STEPS = 40
# prediction, zero-terminal SNR
CASES = {"epsilon": ("epsilon", False), "v": ("v", False), "zero_terminal_snr": ("v", True)}

# shift, steps
FLOW_CASES = {"even": (1.0, 40), "shifted": (3.0, 28), "two": (2.5, 2), "one": (2.5, 1)}


def latents_and_noise() -> tuple[np.ndarray, np.ndarray]:
    """Each (3, 4, 3, 2) float32."""
    draw = np.random.Generator(np.random.Philox(8))
    return draw.standard_normal((3, 4, 3, 2), np.float32), draw.standard_normal((3, 4, 3, 2), np.float32)


def noise() -> np.ndarray:
    """(2, 4, 3, 2) float32."""
    return np.random.Generator(np.random.Philox(7)).standard_normal((2, 4, 3, 2), np.float32)


def output(x_t: np.ndarray, timestep: float) -> np.ndarray:
    """Of the shape of x_t, smooth, bounded, and different at each timestep and place."""
    place = np.linspace(-1, 1, x_t.size, dtype=np.float32).reshape(x_t.shape)
    return (0.8 * np.tanh(x_t) + 0.3 * np.sin(2 * x_t + timestep / 300) + 0.2 * place).astype(np.float32)
