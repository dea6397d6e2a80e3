"""Pixels → the bucket's size: resize to cover it, then crop. What is cut goes into the crop conditioning.

All functions are pure: the same arguments give the same bytes in any process or thread."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pipeline.data import focus as centres
from pipeline.data.images import Picture, decode, read
from pipeline.data.said import Box

LATENT_SCALE = 8  # pixels to a latent pixel, of both configurations' VAEs
INTERPOLATIONS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Prepared:
    """A picture ready for the encoder, with what SDXL is told about it (SDXL, arXiv 2307.01952, section 2.2)."""

    pixels: np.ndarray  # (bucket height, bucket width, 3) uint8 sRGB
    original_size: tuple[int, int]  # height, width of the upright picture
    resized_size: tuple[int, int]  # height, width after the resize, before the crop
    crop_top_left: tuple[int, int]  # top, left of the crop in the resized picture
    mask: np.ndarray | None = None  # (bucket height / 8, bucket width / 8) uint8, as the latents

    @property
    def target_size(self) -> tuple[int, int]:
        """Height, width of the bucket."""
        return self.pixels.shape[:2]


def prepare(
    data: bytes,
    bucket: tuple[int, int],
    crop: str | tuple[int, int],
    interpolation: str,
    background: tuple[int, int, int],
    generator: np.random.Generator | None = None,
    mask: bytes | None = None,
    focus: Box | None = None,
) -> Prepared:
    """`images.read` and `fit` in one. The bytes must have been let through by the index, which bounds their size.
    `mask`: those of its file; empty for the picture's alpha channel; None for no mask.
    `focus`: as for `fit`.

    Raises images.Rejected."""
    picture = read(data, background)
    return fit(picture.pixels, bucket, crop, interpolation, generator, mask_of(picture, mask), focus)


def mask_of(picture: Picture, mask: bytes | None) -> np.ndarray | None:
    """(height, width) uint8: the grey value, over black. `mask`: as for `prepare`. Raises images.Rejected."""
    if mask is None:
        return None
    if not mask:
        return picture.alpha
    return np.array(Image.fromarray(decode(mask, (0, 0, 0))).convert("L"))


def fit(
    pixels: np.ndarray,
    bucket: tuple[int, int],
    crop: str | tuple[int, int],
    interpolation: str,
    generator: np.random.Generator | None = None,
    mask: np.ndarray | None = None,
    focus: Box | None = None,
) -> Prepared:
    """Resize `pixels` (height, width, 3) uint8 so that they just cover `bucket` (width, height), and crop the rest.

    `crop` is "center", or "random": the top, then the left edge drawn uniformly from `generator`; or both as numbers.
    With a `focus` (shares of width and height), "center" is the crop in whose middle it is, as far as the picture goes, and
    "random" draws among those that hold all of it. `interpolation` is a key of INTERPOLATIONS; all of them average over
    the source when they shrink. Only the part that stays is computed, so that a picture of 32 × 1,000,000 pixels costs no
    more than its bucket.

    `mask` (any height, any width) uint8 covers the same picture. Of it the same part is taken, and each latent pixel has
    the mean of what lies under it."""
    height, width = pixels.shape[:2]
    bucket_width, bucket_height = bucket
    resized_height, resized_width = cover(height, width, bucket)
    axes = (bucket_height, resized_height), (bucket_width, resized_width)
    if focus is None:
        bounds = [((resized - side) // 2, 0, resized - side) for side, resized in axes]
    else:
        bounds = [centres.edge(part, *axis) for part, axis in zip(centres.of_axes(focus), axes)]
    if crop == "center":
        top, left = (middle for middle, _, _ in bounds)
    elif crop == "random":
        top, left = (int(generator.integers(low, high, endpoint=True)) for _, low, high in bounds)
    elif not isinstance(crop, str):
        top, left = crop
    else:
        raise ValueError(f"crop is {crop!r}, wanted center or random")
    scale_x, scale_y = width / resized_width, height / resized_height  # source pixels per resized pixel
    box = (
        left * scale_x,
        top * scale_y,
        min((left + bucket_width) * scale_x, width),
        min((top + bucket_height) * scale_y, height),
    )
    part = Image.fromarray(pixels).resize(bucket, INTERPOLATIONS[interpolation], box=box)
    if mask is not None:
        mask = _fit_mask(mask, (width, height), box, bucket)
    return Prepared(np.array(part), (height, width), (resized_height, resized_width), (top, left), mask)


def _fit_mask(
    mask: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float], bucket: tuple[int, int]
) -> np.ndarray:
    """The part of a mask that lies over `box` (left, top, right, bottom) of a picture of `size` (width, height)."""
    (left, right), (top, bottom) = (
        [edge / side * of_mask for edge in box[axis::2]]
        for axis, (side, of_mask) in enumerate(zip(size, mask.shape[::-1]))
    )
    rows = np.linspace(top, bottom, bucket[1] // LATENT_SCALE + 1)
    columns = np.linspace(left, right, bucket[0] // LATENT_SCALE + 1)
    return np.rint(_means(_means(mask, rows).T, columns).T).astype(np.uint8)


def _means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n, width) float64: means of `values` (height, width) between `edges` (n + 1,), which rise from 0 to height and
    may lie within a row."""
    edges = np.clip(edges, 0, len(values))
    first = int(edges[0])
    exact = np.float64 if values.dtype.kind == "f" else np.uint32
    sums = np.cumsum(values[first : int(np.ceil(edges[-1]))], axis=0, dtype=exact)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    whole = np.minimum((edges - first).astype(int), len(sums) - 2)
    share = (edges - first - whole)[:, None]
    at_edges = sums[whole] * (1 - share) + sums[whole + 1] * share
    return np.diff(at_edges, axis=0) / np.diff(edges)[:, None]


def cover(height: int, width: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture of (height, width), resized to the smallest size that covers `bucket` (width,
    height)."""
    bucket_width, bucket_height = bucket
    if width * bucket_height >= bucket_width * height:  # wider than the bucket: the heights meet
        return bucket_height, max(bucket_width, round(width * bucket_height / height))
    return max(bucket_height, round(height * bucket_width / width)), bucket_width


def enlargement(
    width: np.ndarray, height: np.ndarray, bucket_width: np.ndarray, bucket_height: np.ndarray
) -> np.ndarray:
    """(n,) float64: how many times larger pictures become on the way to their buckets, which they have to cover; below 1
    they shrink."""
    return np.maximum(bucket_width / width, bucket_height / height)


def mirror(prepared: Prepared) -> Prepared:
    """The picture mirrored left to right. It is what the mirrored original would have been cropped to, so the left edge
    of the crop is counted from the other side."""
    top, left = prepared.crop_top_left
    mirrored_left = prepared.resized_size[1] - prepared.target_size[1] - left
    pixels = np.ascontiguousarray(prepared.pixels[:, ::-1])
    mask = prepared.mask if prepared.mask is None else np.ascontiguousarray(prepared.mask[:, ::-1])
    return replace(prepared, pixels=pixels, crop_top_left=(top, mirrored_left), mask=mask)


def generator(row: bytes) -> np.random.Generator:
    """The random numbers of the row with this name (16 bytes): the name is the key of a Philox generator."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(row, "little")))
