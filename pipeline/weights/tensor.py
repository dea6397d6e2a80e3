"""A tensor that lies in a file: its dtype, shape and place. Nothing of it is read before it is asked for.

Whole checkpoints stream by in plain reads rather than through mmap: the pages of a mapping count as this process's
memory, and a file cut short under it ends the process instead of raising an error."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.stage import StageError

# The three dtypes of weights, as NumPy holds their bytes: it has no bfloat16, whose bits stand in uint16.
NUMPY = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
CHUNK = 4 << 20  # bytes; stays in the processor's cache between being read, checked, cast and written


@dataclass(frozen=True)
class Span:
    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Tensor:
    """`spans` hold the little-endian C-order bytes one after the other, or those of the transposed matrix
    (`transposed`); a value that lies in no file has its bytes in `constant`.

    `dtype` is a key of NUMPY, or another format's name for what is not a weight (such as I64) and cannot be read."""

    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    transposed: bool = False
    constant: bytes = b""

    @property
    def nbytes(self) -> int:
        return sum(span.size for span in self.spans) + len(self.constant)

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order, at most CHUNK at a time, each chunk whole elements in memory of its own.

        Raises StageError when the file has become shorter."""
        if self.transposed or self.constant:
            yield memoryview(self.array().tobytes())
            return
        for span in self.spans:
            with open(span.path, "rb", buffering=0) as file:
                file.seek(span.offset)
                for start in range(0, span.size, CHUNK):
                    chunk = memoryview(np.empty(min(CHUNK, span.size - start), np.uint8))
                    _fill(file, chunk, span.path)
                    yield chunk

    def array(self) -> np.ndarray:
        """The values, read-only: float32, float16, or the bits of bfloat16 as uint16.

        A view of the file (mmap), which may be unaligned; a copy where the bytes lie in several spans. Raises
        StageError for a dtype that is not a weight's."""
        if self.dtype not in NUMPY:
            raise StageError(f"{self.spans[0].path} holds a tensor of {self.dtype}; wanted {', '.join(NUMPY)}")
        dtype = NUMPY[self.dtype]
        pieces = [_map(span, dtype) for span in self.spans] or [np.frombuffer(self.constant, dtype)]
        flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        values = flat.reshape(self.shape[::-1]).T if self.transposed else flat.reshape(self.shape)
        values.flags.writeable = False
        return values


def size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of weights."""
    return NUMPY[dtype].itemsize * math.prod(shape)


def _map(span: Span, dtype: np.dtype) -> np.ndarray:
    if not span.size:  # mmap takes no nothing
        return np.empty(0, dtype)
    return np.asarray(np.memmap(span.path, np.uint8, "r", span.offset, (span.size,))).view(dtype)


def _fill(file, buffer: memoryview, path: Path) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise StageError(f"{path} became shorter while it was read; make or download it again")
        done += count
