"""Small pictures of a data set, with their masks and centres of interest drawn over them, kept in the store so that a
page that shows them again decodes nothing."""

import io
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline import store
from pipeline.data import focus, geometry, images, masks, memo
from pipeline.data.part import SourceError, replaced
from pipeline.data.sources import Source
from pipeline.report.pictures import Picture

SIDE = 192  # pixels of the longer one
_FOLDER = "thumbnails"
_KEPT = 4096  # files of a few kilobytes
_DIGEST = 16
_COVER, _MARK = (190, 30, 60), (255, 220, 0)
_ARM = 9  # pixels


def thumbnail(source: Source, row: dict, max_pixels: int) -> Picture:
    """Of a row of images.parquet whose picture the index could decode. Raises SourceError when it, or its mask, is another
    by now."""
    code = blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()
    rules = blake2b(f"{memo.rules(max_pixels)} {code}".encode(), digest_size=8).hexdigest()
    place = store.root() / _FOLDER / f"{row['image'].hex()}-{rules}"
    kept = _read(place)
    if kept is None:
        kept = _make(source, row, max_pixels)
        digest = blake2b(kept, digest_size=_DIGEST).digest()
        store.keep(place, lambda temporary: temporary.write_bytes(digest + kept))
    with Image.open(io.BytesIO(kept), formats=["WEBP"]) as header:
        return Picture.of("webp", kept, *header.size)


def prune() -> None:
    store.keep_newest(store.root() / _FOLDER, _KEPT)


def _read(place: Path) -> bytes | None:
    try:
        data = place.read_bytes()
    except FileNotFoundError:
        return None
    is_whole = blake2b(data[_DIGEST:], digest_size=_DIGEST).digest() == data[:_DIGEST]
    return data[_DIGEST:] if is_whole else None


def _make(source: Source, row: dict, max_pixels: int) -> bytes:
    path, mask_path = row["path"], row["mask"]
    data = source.read(path)
    mask = source.read(mask_path) if mask_path else None if mask_path is None else b""
    of_mask = masks.OF_ALPHA if mask_path == "" else mask_path and blake2b(mask, digest_size=16).digest()
    own = blake2b(data, digest_size=16).digest()
    if masks.content(own, of_mask, focus.key(row["focus"])) != row["image"]:
        files = " or ".join(replaced(source.file(name)) for name in (path, mask_path) if name)
        raise SourceError(f"{path} is not the picture that the index read: {files}")
    picture = images.read(data, (255, 255, 255), max_pixels)
    small = Image.fromarray(picture.pixels)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    try:
        covered = None if mask_path and not mask else geometry.mask_of(picture, mask)  # an empty file is no alpha mask
    except images.Rejected:  # for that the picture is rejected, and said to be
        covered = None
    if covered is not None:
        small = _masked(small, covered)
    if row["focus"] is not None:
        _mark(small, row["focus"])
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return file.getvalue()


def _masked(small: Image.Image, mask: np.ndarray) -> Image.Image:
    """What counts less is the more covered with colour."""
    counts = Image.fromarray(mask).resize(small.size, Image.Resampling.BOX)
    covered = Image.blend(small, Image.new("RGB", small.size, _COVER), 0.65)
    return Image.composite(small, covered, counts)


def _mark(small: Image.Image, box: list[float]) -> None:
    """Draws the box, or of a point a cross."""
    left, top, right, bottom = (share * (side - 1) for share, side in zip(box, small.size * 2))
    draw = ImageDraw.Draw(small)
    for width, color in ((5, "black"), (2, _MARK)):
        if (left, top) == (right, bottom):
            draw.line([left - _ARM, top, left + _ARM, top], color, width)
            draw.line([left, top - _ARM, left, top + _ARM], color, width)
        else:
            draw.rectangle([left, top, right, bottom], outline=color, width=width)
