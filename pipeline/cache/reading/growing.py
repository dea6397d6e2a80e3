"""Columns that are read part by part, in no more memory than they need in the end."""

import numpy as np


class Growing:
    """An array that grows in place, so that its parts never stand in memory beside it."""

    def __init__(self, dtype: type):
        self._array, self.used = np.empty(1 << 10, dtype), 0

    def append(self, part: np.ndarray) -> None:
        end = self.used + len(part)
        if end > len(self._array):
            self._array.resize(end + end // 16, refcheck=False)  # moves no bytes where the system can remap pages
        self._array[self.used : end] = part
        self.used = end

    def whole(self) -> np.ndarray:
        self._array.resize(self.used, refcheck=False)
        return self._array


class Even:
    """A growing array that takes no memory as long as all of it is the usual value."""

    def __init__(self, dtype: type, usual: float | bool):
        self.usual, self._grown, self._count = dtype(usual), Growing(dtype), 0

    @property
    def varies(self) -> bool:
        return self._grown.used > 0

    def append(self, part: np.ndarray) -> None:
        if not self.varies and (part == self.usual).all():
            self._count += len(part)
            return
        if not self.varies:
            self._grown.append(np.full(self._count, self.usual))
        self._grown.append(part)

    def whole(self) -> np.ndarray:
        return self._grown.whole() if self.varies else np.broadcast_to(self.usual, self._count)
