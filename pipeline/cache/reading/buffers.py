"""Memory of batches."""

import math
import sys

import numpy as np

_KEPT = 16  # arrays; a batch has three, with masks four


class Buffers:
    """Memory of earlier batches, used again once nobody holds any array of them: fresh memory costs more, in page
    faults, than it takes to read a row into it."""

    def __init__(self):
        self._kept: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        for place in reversed(range(len(self._kept))):  # the last is likelier in the processor's cache
            # Two references, the list's and this call's, when no view is left.
            if self._kept[place].size == size and sys.getrefcount(self._kept[place]) == 2:
                chosen = self._kept.pop(place)
                break
        else:
            chosen = np.empty(size, np.uint8)
        self._kept = [*self._kept[-_KEPT + 1 :], chosen]
        return chosen.view(dtype).reshape(shape)
