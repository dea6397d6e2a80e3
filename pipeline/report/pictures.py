"""Pictures in the page itself: small PNGs as they are, larger ones as WebP."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

BOX = 2048, 1024  # width and height that a picture is reduced to
_BYTES = 1 << 18  # of a PNG that stays one
_MAX_PIXELS = 1 << 27  # pipeline/data/images.py lifts Pillow's own bound


@dataclass(frozen=True)
class Picture:
    url: str  # data:
    width: int  # of the picture in the page
    height: int

    @classmethod
    def of(cls, kind: str, data: bytes, width: int, height: int) -> "Picture":
        """Of the bytes of a file."""
        return cls(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width, height)


def from_png(data: bytes) -> Picture:
    """Raises ValueError when it is no PNG that can be decoded, or an enormous one."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"a picture of {image.width}×{image.height} pixels")
            image.load()
            return _fit(image.convert("RGB"), data)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a PNG: {error}") from None


def from_pixels(pixels: np.ndarray) -> Picture:
    """Of (H, W, 3) uint8."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return _fit(image, file.getvalue())


def _fit(image: Image.Image, png: bytes) -> Picture:
    if image.width <= BOX[0] and image.height <= BOX[1] and len(png) <= _BYTES:
        return Picture.of("png", png, *image.size)
    file = io.BytesIO()
    image.thumbnail(BOX, Image.Resampling.LANCZOS)
    image.save(file, "WEBP", quality=90)
    return Picture.of("webp", file.getvalue(), *image.size)
