"""Pictures in the page itself: PNGs as they are, large ones reduced."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 1024  # pixels; a longer one is reduced to it


@dataclass(frozen=True)
class Picture:
    url: str  # data:
    width: int  # of the picture in the page
    height: int
    reduced: bool


def from_png(data: bytes) -> Picture:
    """Raises ValueError when it is no PNG that can be decoded, or one that Pillow takes for a bomb."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            if max(image.size) <= SIDE:
                return Picture(_url("png", data), *image.size, reduced=False)
            return _reduced(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a PNG: {error}") from None


def from_pixels(pixels: np.ndarray) -> Picture:
    """Of (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    if max(image.size) > SIDE:
        return _reduced(image)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Picture(_url("png", file.getvalue()), *image.size, reduced=False)


def _reduced(image: Image.Image) -> Picture:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=88)
    return Picture(_url("webp", file.getvalue()), *image.size, reduced=True)


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
