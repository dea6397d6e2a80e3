"""Small pictures of a data set, kept in the store so that a page that shows them again decodes nothing."""

import hashlib
import io
from pathlib import Path

from PIL import Image

from pipeline import store
from pipeline.data import images, memo
from pipeline.data.part import SourceError, replaced
from pipeline.data.sources import Source
from pipeline.report.pictures import Picture

SIDE = 192  # pixels of the longer one
_FOLDER = "thumbnails"
_KEPT = 4096  # files of a few kilobytes
_DIGEST = 16


def thumbnail(source: Source, path: str, image: bytes, max_pixels: int) -> Picture:
    """Of a picture that the index could decode; `image` is the hash of its bytes. Raises SourceError when it is another
    by now."""
    rules = hashlib.blake2b(f"{memo.rules(max_pixels)} {SIDE}".encode(), digest_size=8).hexdigest()
    place = store.root() / _FOLDER / f"{image.hex()}-{rules}"
    kept = _read(place)
    if kept is None:
        kept = _make(source, path, image, max_pixels)
        digest = hashlib.blake2b(kept, digest_size=_DIGEST).digest()
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
    is_whole = hashlib.blake2b(data[_DIGEST:], digest_size=_DIGEST).digest() == data[:_DIGEST]
    return data[_DIGEST:] if is_whole else None


def _make(source: Source, path: str, image: bytes, max_pixels: int) -> bytes:
    data = source.read(path)
    if hashlib.blake2b(data, digest_size=16).digest()[:8] != image[:8]:  # the half that no mask changes (data/masks.py)
        raise SourceError(f"{path} is not the picture that the index read: {replaced(source.file(path))}")
    small = Image.fromarray(images.decode(data, (255, 255, 255), max_pixels))
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return file.getvalue()
