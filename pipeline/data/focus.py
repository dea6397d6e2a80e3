"""Centres of interest: a point or a box of a picture that crops keep in sight."""

import numpy as np
import pyarrow as pa

from pipeline.data.said import Box, Focus

_ROUNDED = 1, 1e-3  # pixels, or shares, by which a focus may lie outside: sums of rounded numbers do


def shares(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """(n, 4) float32 shares of the sides of pictures of (n,) widths and heights, from `boxes` (n, 5) float64 as
    said.Focus has them, rows of NaN for none; and why pictures are not used whose focus lies outside, by row. What lies
    outside by no more than a pixel or a thousandth of a side is cut to the edge."""
    sides = np.stack([widths, heights, widths, heights], axis=1).astype(np.float64)
    in_pixels = boxes[:, 4:] == 1
    edges, ends = boxes[:, :4], np.where(in_pixels, sides, 1)
    spare = np.where(in_pixels, *_ROUNDED)
    outside = np.flatnonzero(((edges < -spare) | (edges > ends + spare)).any(axis=1))
    reasons = {
        int(row): f"focus outside: {Focus(*boxes[row].tolist())}, and the upright picture is "
        f"{widths[row]}×{heights[row]}; mend its focus or bbox"
        for row in outside
    }
    return np.clip(edges / ends, 0, 1).astype(np.float32), reasons


def column(found: np.ndarray) -> pa.Array:
    """Shares (n, 4) as a column of images.parquet: lists of four, null for none."""
    is_none = np.isnan(found).any(axis=1)
    rows = [None if none else row for none, row in zip(is_none.tolist(), found.tolist())]
    return pa.array(rows, pa.list_(pa.float32()))


def key(box: list[float] | None) -> bytes:
    """What of a picture's name tells its centre of interest, shares (4,) float32; empty without one."""
    return b"" if box is None else b"focus" + np.array(box, "<f4").tobytes()


def edge(focus: tuple[float, float], side: int, resized: int) -> tuple[int, int, int]:
    """Of crops of `side` out of `resized` pixels: the edge of the one in whose middle the focus (begin, end), shares of
    the resized side, is or nearly so; and the first and last edge of those that hold all of it, or, where it is too large
    for that, nothing beside it."""
    free = resized - side
    begin, end = (min(max(share * resized, 0), resized) for share in focus)
    middle = min(max(round((begin + end) / 2 - side / 2), 0), free)
    low, high = (min(max(int(bound), 0), free) for bound in (np.ceil(end - side), np.floor(begin)))
    return middle, min(low, high), max(low, high)


def of_axes(box: Box) -> tuple[tuple[float, float], tuple[float, float]]:
    """(top, bottom), (left, right)."""
    left, top, right, bottom = box
    return (top, bottom), (left, right)
