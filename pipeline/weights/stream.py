"""What writers of checkpoints share: tensors go to a file one after the other, chunk by chunk, none held in memory."""

from pathlib import Path

import numpy as np

from pipeline.weights.direct import DirectFile
from pipeline.weights.tensor import NUMPY, size


class Stream:
    """`begin` a tensor, `write` its bytes in as many chunks as liked, `begin` the next; use it in a `with` block.

    Raises ValueError when a tensor gets more or fewer bytes than its shape needs, or a name comes twice."""

    def __init__(self, path: str | Path):
        self._file = DirectFile(path)
        self._names: dict[str, None] = {}
        self._left = 0

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Start a tensor; dtype is a key of tensor.NUMPY."""
        self._finish_tensor()
        if name in self._names:
            raise ValueError(f"{name} was written already")
        self._names[name] = None
        self._left = size(dtype, shape)

    def write(self, chunk) -> None:
        """Append bytes (any buffer) to the tensor that was begun."""
        view = memoryview(chunk).cast("B")
        if len(view) > self._left:
            raise ValueError(f"{next(reversed(self._names), 'no tensor')} got {len(view) - self._left} bytes too many")
        self._left -= len(view)
        self._put(view)

    def add(self, name: str, values: np.ndarray, dtype: str | None = None) -> None:
        """A whole tensor from an array: float32 or float16; uint16 bits with dtype="bfloat16"."""
        dtype = dtype or values.dtype.name
        if dtype not in NUMPY or NUMPY[dtype] != values.dtype:
            raise ValueError(f"{name}: an array of {values.dtype} cannot be written as {dtype}")
        self.begin(name, dtype, values.shape)
        self.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8))

    def close(self) -> None:
        self._file.close()
        self._finish_tensor()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _finish_tensor(self) -> None:
        if self._left:
            raise ValueError(f"{next(reversed(self._names))} lacks {self._left} bytes")

    def _put(self, view: memoryview) -> None:
        self._file.write(view)
