"""SDXL's noise schedule: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with a_t = alphas_cumprod[t] (DDPM, arXiv
2006.11239)."""

import numpy as np

STEPS = 1000


def alphas_cumprod(zero_terminal_snr: bool) -> np.ndarray:
    """(1000,) float64: the share of signal left at each timestep. The square roots of the betas rise evenly (Latent
    Diffusion, arXiv 2112.10752). `zero_terminal_snr` shifts and scales sqrt(a) so that the last timestep is pure noise
    and the first stays (arXiv 2305.08891, algorithm 1)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2
    alphas = np.cumprod(1 - betas)
    if zero_terminal_snr:
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas


def snr(alphas: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio a / (1 - a) of each timestep; 0 at the end of a zero-terminal-SNR schedule."""
    return alphas / (1 - alphas)


def add_noise(x_0: np.ndarray, noise: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """x_t (b, c, h, w) float32 of latents and noise of that shape; `alphas` (b,) are alphas_cumprod of their
    timesteps."""
    a = alphas.astype(np.float32).reshape(-1, 1, 1, 1)
    return np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise


def target(prediction: str, x_0: np.ndarray, noise: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """What the UNet shall predict, (b, c, h, w) float32: the noise for "epsilon", and for "v" the velocity
    sqrt(a) noise - sqrt(1 - a) x_0 (arXiv 2202.00512, appendix D)."""
    if prediction == "epsilon":
        return noise
    a = alphas.astype(np.float32).reshape(-1, 1, 1, 1)
    return np.sqrt(a) * noise - np.sqrt(1 - a) * x_0
