"""Names of rows as arrays, their order, and where one is among others."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def as_names(column: pa.ChunkedArray | pa.Array | Sequence[bytes]) -> np.ndarray:
    """A column of 16-byte names as (n, 16) uint8."""
    if isinstance(column, (pa.ChunkedArray, pa.Array)):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = [
            np.frombuffer(c.buffers()[1], np.uint8).reshape(-1, 16)[c.offset : c.offset + len(c)]
            for c in chunks
            if len(c)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 16), np.uint8)
    return np.frombuffer(b"".join(column), np.uint8).reshape(-1, 16)


def halves(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names (n, 16) uint8 as two numbers (n,) uint64 each, which compare as the byte strings do."""
    both = np.ascontiguousarray(names).view(">u8")
    return both[:, 0].astype(np.uint64), both[:, 1].astype(np.uint64)


def sort_order(names: np.ndarray) -> np.ndarray:
    """Indices that sort names (n, 16) uint8 as byte strings."""
    high, low = halves(names)
    return np.lexsort((low, high))


def locate(names: np.ndarray | tuple[np.ndarray, np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """Position of each wanted name in the sorted names, or -1. Names (n, 16) uint8, or their halves for many look-ups;
    wanted (m, 16) uint8; returns (m,) int64."""
    high, low = names if isinstance(names, tuple) else halves(names)
    wanted_high, wanted_low = halves(wanted)
    position = np.searchsorted(high, wanted_high)
    found = np.full(len(wanted), -1, np.int64)
    looking = np.arange(len(wanted))
    while len(looking):  # runs once more for each name that shares its first eight bytes with the one before it
        looking = looking[position[looking] < len(high)]
        looking = looking[high[position[looking]] == wanted_high[looking]]
        hit = low[position[looking]] == wanted_low[looking]
        found[looking[hit]] = position[looking[hit]]
        looking = looking[~hit]
        position[looking] += 1
    return found


def locate_in_group(
    names: tuple[np.ndarray, np.ndarray], groups: np.ndarray, wanted_names: np.ndarray, wanted_groups: np.ndarray
) -> np.ndarray:
    """`locate` of rows (m, 16) of groups (m, 2) among rows whose halves are `names` and whose groups (n, 2), sorted by
    both."""
    position = locate(names, wanted_names)
    looking = np.flatnonzero(position >= 0)
    while len(looking):  # once more for each row of one name that comes before the wanted one
        looking = looking[(groups[position[looking]] != wanted_groups[looking]).any(axis=1)]
        here, following = position[looking], position[looking] + 1
        same = following < len(groups)
        for half in names:
            same[same] = half[following[same]] == half[here[same]]
        position[looking] = np.where(same, following, -1)
        looking = looking[same]
    return position
