"""SDXL's second conditioning input: the pooled text and the size and crop numbers (arXiv 2307.01952, section 2.2)."""

import numpy as np

WIDTH = 256


def sinusoids(values: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """(..., width) float32 of `values` (...): cosines first, frequencies falling from 1 to 1/10000."""
    half = width // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / half)
    angles = values[..., None].astype(np.float64) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def vector(pooled: np.ndarray, time_ids: np.ndarray) -> np.ndarray:
    """(b, p + 6 * 256) float32 from `pooled` (b, p) and `time_ids` (b, 6): original height and width, crop top and
    left, target height and width, in pixels."""
    return np.concatenate([pooled.astype(np.float32), sinusoids(time_ids).reshape(len(time_ids), -1)], axis=1)
