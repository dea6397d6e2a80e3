"""How picture and noise are mixed at a timestep: x_t = signal x_0 + strength noise.

SDXL's own schedule has 1000 timesteps with signal sqrt(a_t) and strength sqrt(1 - a_t), a_t = alphas_cumprod[t] (DDPM,
arXiv 2006.11239). Rectified flow ("flow", arXiv 2209.03003) has a time t of 0 to 1 with signal 1 - t and strength t; its
timestep is 1000 t, a number with a fraction, as SD3, diffusers' FlowMatchEulerDiscreteScheduler and ComfyUI give it to a
network."""

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


def shifted(t: np.ndarray, shift: float) -> np.ndarray:
    """Flow's times t of 0 to 1, moved towards the noise by `shift` above 1 (SD3, arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def mixture(prediction: str, timesteps: np.ndarray, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(signal, strength), each (b, 1, 1, 1) float32, at `timesteps` (b,): whole numbers from 0 to 999, and for "flow"
    numbers of 0 to 1000. `alphas` (1000,) are alphas_cumprod, which "flow" does not use."""
    if prediction == "flow":
        t = (timesteps / STEPS).reshape(-1, 1, 1, 1)
        return (1 - t).astype(np.float32), t.astype(np.float32)
    a = alphas[timesteps].astype(np.float32).reshape(-1, 1, 1, 1)
    return np.sqrt(a), np.sqrt(1 - a)


def add_noise(x_0: np.ndarray, noise: np.ndarray, signal: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """x_t (b, c, h, w) float32 of latents and noise of that shape, by `mixture`'s numbers."""
    return signal * x_0 + strength * noise


def target(prediction: str, x_0: np.ndarray, noise: np.ndarray, signal: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """What the UNet shall predict, (b, c, h, w) float32: the noise for "epsilon"; for "v" the velocity
    signal noise - strength x_0 (arXiv 2202.00512, appendix D); for "flow" dx_t/dt = noise - x_0."""
    if prediction == "epsilon":
        return noise
    if prediction == "flow":
        return noise - x_0
    return signal * noise - strength * x_0
