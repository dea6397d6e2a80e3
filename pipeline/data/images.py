"""Bytes of a picture → sRGB pixels, for pictures as they are in the wild.

Everything that a file can do wrong ends in `Rejected` with a reason that holds no memory address, path or time, so that
the report of rejected pictures is a function of the pictures alone."""

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

# Pillow has 40 more, each a further parser for hostile bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Pillow warns of broken metadata beside whole pixels, and between once and twice its bound of pixels, where `_open`
# rejects.
warnings.filterwarnings("ignore", module=r"PIL\.")

_UPRIGHT = {  # EXIF 2.32, tag 0x0112: how the stored picture has to be turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODE_OF_PROFILE = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


class Rejected(ValueError):
    """The picture cannot be used. The message is the reason: `kind` or `kind: detail`."""

    @property
    def kind(self) -> str:
        return str(self).partition(":")[0]


class Picture(NamedTuple):
    pixels: np.ndarray  # (height, width, 3) uint8, sRGB, upright, contiguous
    profile_ignored: bool  # the colour profile was broken or of another colour model; the numbers were taken as sRGB


def decode(data: bytes, background: tuple[int, int, int], max_pixels: int | None = None) -> np.ndarray:
    """Pixels (height, width, 3) uint8 of a picture, as `read` gives them."""
    return read(data, background, max_pixels).pixels


def read(data: bytes, background: tuple[int, int, int], max_pixels: int | None = None) -> Picture:
    """Decode one picture to upright sRGB pixels.

    Transparent pixels show `background` (red, green, blue in 0..255); of 16 bits the high byte is kept; of an animation
    or a file of several pages the first picture; CMYK and colour profiles become sRGB. A file that claims more than
    `max_pixels` is rejected from its header, before memory is taken; None is for bytes that were let through before.

    Raises Rejected: empty, not an image, too many pixels, broken, unsupported pixels."""
    image = _open(data, max_pixels)
    try:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        profile = image.info.get("icc_profile")
        colour, alpha = _split(image)
        rgb, profile_ignored = _to_srgb(colour, profile)
        if alpha is not None:
            canvas = Image.new("RGB", rgb.size, tuple(background))
            canvas.paste(rgb, mask=alpha)
            rgb = canvas
        return Picture(np.array(rgb if turn is None else rgb.transpose(turn)), profile_ignored)
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on broken data
        raise Rejected(f"broken: {image.format} {_plain(error)}") from None


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    """Read the header. Raises Rejected."""
    if not data:
        raise Rejected("empty")
    Image.MAX_IMAGE_PIXELS = max_pixels  # some readers take memory while opening, and ask Pillow's guard before
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Rejected(f"too many pixels: above {max_pixels}") from None
    except MemoryError:
        raise
    except Exception as error:
        known = [name for name in FORMATS if Image.OPEN[name][1](data[:16]) is True]
        if known:
            raise Rejected(f"broken: {known[0]} {_plain(error)}") from None
        raise Rejected(f"not an image: none of {', '.join(FORMATS)}") from None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise Rejected(f"too many pixels: {image.width}×{image.height}, above {max_pixels}")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF beside whole pixels; what is wrong with the pixels comes out in load()
        return 1


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB or CMYK, and alpha in mode L or None. Raises Rejected for modes with no fixed range."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        key = image.info.get("transparency")
        alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.fromarray((values >> 8).astype(np.uint8)), alpha  # the high byte, as Pillow reads 16-bit RGB
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in ("P", "RGBX", "YCbCr"):
        return image.convert("RGB"), None
    raise Rejected(f"unsupported pixels: {image.format} of mode {image.mode}")


def _to_srgb(colour: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """The picture in sRGB, and whether `profile` had to be ignored."""
    if not profile:
        return colour.convert("RGB"), False
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_PROFILE.get(source.profile.xcolor_space.strip())
        if (mode, colour.mode) == ("RGB", "L"):  # common: grey pixels that carry a camera's RGB profile
            colour = colour.convert("RGB")
        if mode == colour.mode:
            return ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB"), False
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return colour.convert("RGB"), True


def _plain(error: Exception) -> str:
    """The error's text in one line, without the addresses that change from run to run."""
    text = " ".join(re.sub(r"<[^>]* at 0x[0-9a-f]+>", "the file", str(error)).split())
    return text or type(error).__name__
