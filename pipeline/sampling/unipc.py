"""UniPC of second order (arXiv 2302.04867, B(h) of kind 2, predicting x_0), with the steps of dpmpp.py.

Its predictor is DPM-Solver++(2M)'s step. When the model has been asked at the new x, the corrector mends that x by the
answer, and so costs no further call of it."""

from collections.abc import Callable

import numpy as np

from pipeline.sampling import dpmpp, euler


def corrected(
    x: np.ndarray, denoised: np.ndarray, last: np.ndarray, before: np.ndarray | None, sigmas: np.ndarray
) -> np.ndarray:
    """UniC: x at sigmas[2] from x at sigmas[1], by the model's answers `denoised` at sigmas[2], `last` at sigmas[1] and
    `before` at sigmas[0] (None: there is none; a corrector of first order then)."""
    s_before, s_last, sigma = (float(value) for value in sigmas)
    h = np.log(s_last / sigma)
    b_h = np.expm1(-h)
    difference = denoised - last
    if before is None:
        change = 0.5 * difference
    else:
        r = np.log(s_last / s_before) / h  # of the step before, below 0
        phi_2 = b_h / -h - 1
        phi_3 = phi_2 / -h - 0.5
        # the two equations of the paper's (10): rho_1 r^(k-1) + rho_2 = k! phi_(k+1) / B(h) for k = 1, 2
        first, second = phi_2 / b_h, 2 * phi_3 / b_h
        rho_1 = (first - second) / (1 - r)
        change = rho_1 / r * (before - last) + (first - rho_1) * difference
    return euler.step(x, last + change, s_last, sigma)


def sample(
    denoise: Callable[[np.ndarray, float, float], np.ndarray],
    x: np.ndarray,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """x_0 (b, 4, h, w) float32 from x at sigmas[0]; arguments as euler.sample's."""
    base = last = before = None
    for step, timestep in enumerate(timesteps):
        denoised = denoise(x, sigmas[step], timestep)
        if step:
            x = corrected(base, denoised, last, before, sigmas[[max(step - 2, 0), step - 1, step]])
        base = x
        x = dpmpp.towards(x, denoised, last, sigmas[[max(step - 1, 0), step, step + 1]])
        last, before = denoised, last
        progress()
    return x
