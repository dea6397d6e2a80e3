"""Which bucket a picture can be brought to, at each resolution, and why some pictures cannot be used."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import focus
from pipeline.data.buckets import choose, nearest
from pipeline.data.geometry import enlargement
from pipeline.data.part import Part
from pipeline.data.views import Choice


def choices(
    part: Part,
    found: pa.Table,
    sizes: dict[int, list[tuple[int, int]]],
    kept: dict[int, list[tuple[int, int]]],
    min_side: int,
    max_enlargement: float | None,
    neighbors: int = 0,
) -> dict[int, Choice]:
    """Of a part's pictures, by resolution. What is too small is judged by the nearest of all `sizes`."""
    by_resolution, sides = {}, [pc.fill_null(found[name], 1).to_numpy() for name in ("width", "height")]
    unfit = focus.shares(part.focus, *sides)[1] | _unfit_masks(part, found)
    for resolution, all_sizes in sizes.items():
        _, reasons = reject(found, all_sizes, min_side, max_enlargement)
        for row in unfit:
            reasons[row] = reasons[row] or unfit[row]
        buckets = np.array(kept[resolution], np.int32)[nearest(*sides, kept[resolution], neighbors + 1)]
        can = np.repeat(np.equal(reasons, None)[:, None], buckets.shape[1], axis=1)
        times = enlargement(*(side[:, None] for side in sides), *buckets.transpose(2, 0, 1))
        can[:, 1:] &= times[:, 1:] <= (np.inf if max_enlargement is None else max_enlargement)
        by_resolution[resolution] = Choice(buckets, can, reasons)
    return by_resolution


def reject(
    found: pa.Table, sizes: list[tuple[int, int]], min_side: int, max_enlargement: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each picture of a memo.FOUND table, (n, 2) int32, and why it is not used, (n,) text or None."""
    width, height = (pc.fill_null(found[name], 1).to_numpy() for name in ("width", "height"))
    chosen = np.array(sizes, np.int32)[choose(width, height, sizes)]
    reasons = found["rejected"].to_numpy(zero_copy_only=False)
    is_decoded = found["width"].is_valid().to_numpy()
    is_small = is_decoded & (np.minimum(width, height) < min_side)
    times = enlargement(width, height, *chosen.T)
    is_blown_up = is_decoded & ~is_small & (times > (np.inf if max_enlargement is None else max_enlargement))
    for row in np.flatnonzero(is_small):
        reasons[row] = f"too small: {width[row]}×{height[row]}, a side is under {min_side}"
    for row in np.flatnonzero(is_blown_up):
        reasons[row] = (
            f"too small: {width[row]}×{height[row]} would be enlarged {shown_times(times[row])} times to "
            f"{chosen[row][0]}×{chosen[row][1]}, above {max_enlargement:g}"
        )
    return chosen, reasons


def _unfit_masks(part: Part, found: pa.Table) -> dict[int, str]:
    """Why pictures are not used for their masks' sake, by row. A mask may have another size than its picture, of the
    same shape to one pixel."""
    reasons = {}
    if part.masks.null_count == len(part.masks):
        return reasons
    sides = ("width", "height", "mask_width", "mask_height")
    width, height, mask_width, mask_height = (pc.fill_null(found[side], 1).to_numpy().astype(float) for side in sides)
    off = np.minimum(abs(mask_width - width * mask_height / height), abs(mask_height - height * mask_width / width))
    is_bad = found["mask_rejected"].is_valid().to_numpy()
    for row in np.flatnonzero(found["mask"].is_valid().to_numpy() & (is_bad | (off > 1))).tolist():
        path, reason = part.masks[row].as_py(), found["mask_rejected"][row].as_py()
        mask, picture = (f"{one[row]:g}×{other[row]:g}" for one, other in ((mask_width, mask_height), (width, height)))
        shape = f"it is {mask} and the picture {picture}; wanted the same size, or one of the same shape"
        reasons[row] = f"mask not read: {path}: {reason or shape}"
    return reasons


def shown_times(enlargement: float) -> str:
    """Two places, rounded up, so that what is above a bound is not shown as the bound."""
    return f"{np.ceil(enlargement * 100 - 1e-6) / 100:g}"
