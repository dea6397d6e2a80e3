"""Bytes of a picture → sRGB pixels, for pictures as they are in the wild.

Everything that a file can do wrong ends in `Rejected` with a reason that holds no memory address, path or time, so that
the report of rejected pictures is a function of the pictures alone."""

import io
import logging
import re
import threading
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.data import png, tiff

# Pillow warns of broken metadata beside whole pixels, and between once and twice its bound of pixels, where `_open`
# rejects.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_UPRIGHT = {  # EXIF 2.32, tag 0x0112: how the stored picture has to be turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers say of bytes that end too early
_CUT_OFF = re.compile("truncated|unpack_from requires a buffer|no more images in GIF", re.IGNORECASE)
_MODE_OF_PROFILE = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


class Rejected(ValueError):
    """The picture cannot be used. The message is the reason: `kind` or `kind: detail`."""

    @property
    def kind(self) -> str:
        return str(self).partition(":")[0]


class Picture(NamedTuple):
    pixels: np.ndarray  # (height, width, 3) uint8, sRGB, upright, contiguous
    profile_ignored: bool  # the colour profile was broken or of another colour model; the numbers were taken as sRGB
    alpha: np.ndarray | None = None  # (height, width) uint8, 255 where it is opaque; None: it is everywhere


def decode(data: bytes, background: tuple[int, int, int], max_pixels: int | None = None) -> np.ndarray:
    """Pixels (height, width, 3) uint8 of a picture, as `read` gives them."""
    return read(data, background, max_pixels).pixels


def read(data: bytes, background: tuple[int, int, int], max_pixels: int | None = None) -> Picture:
    """Decode one picture to upright sRGB pixels.

    Transparent pixels show `background` (red, green, blue in 0..255), as do those of a GIF's canvas that its first
    frame does not cover; of 16 bits the high byte is kept; of an animation or a file of several pages the first
    picture; CMYK and colour profiles become sRGB. A file that claims more than `max_pixels` is rejected from its
    header, before memory is taken; None is for bytes that were let through before.

    Raises Rejected: empty, not an image, too many pixels, broken, unsupported pixels. MemoryError: it may be the
    picture's fault or not."""
    try:
        return _read(data, background, max_pixels)
    except Image.DecompressionBombError:  # while it decodes Pillow asks for its bound again, now another thread's
        with _guard:
            return _read(data, background, max_pixels)


def _read(data: bytes, background: tuple[int, int, int], max_pixels: int | None) -> Picture:
    if not data:
        raise Rejected("empty")
    form = next((name for name, (begins, _) in _READERS.items() if begins(data)), None)
    if form is None:
        raise Rejected(f"not an image: none of {', '.join(FORMATS)}")
    try:
        image = _open(data, form, max_pixels)
        covered = image.tile[0].extents if form == "GIF" else None
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        colour, alpha = _split(image, data, covered)
        rgb, profile_ignored = _to_srgb(colour, image.info)
        if alpha is not None:
            canvas = Image.new("RGB", rgb.size, tuple(background))
            canvas.paste(rgb, mask=alpha)
            rgb = canvas
        upright = [layer and np.array(layer if turn is None else layer.transpose(turn)) for layer in (rgb, alpha)]
        return Picture(upright[0], profile_ignored, upright[1])
    except (Rejected, MemoryError, Image.DecompressionBombError):
        raise
    except NotImplementedError as error:
        raise Rejected(f"unsupported pixels: {form} {_plain(error)}") from None
    except Exception as error:  # Pillow's readers raise nearly anything on broken data
        text = _plain(error)
        kind = "unsupported pixels" if re.match("Unsupported BMP|cannot handle", text) else "broken"
        if _CUT_OFF.search(text) or _lacks(data, form):
            text = "is cut off: its end is missing; get the file again"
        raise Rejected(f"{kind}: {form} {text}") from None


def _lacks(data: bytes, form: str) -> bool:
    """Whether a file is shorter than it says itself."""
    if form == "WEBP":  # RIFF
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    at = 0
    while form == "AVIF" and at < len(data):  # ISO 14496-12, 4.2: boxes, of which size 0 goes to the end
        size = int.from_bytes(data[at : at + 4]) or len(data) - at
        at += max(int.from_bytes(data[at + 8 : at + 16]) if size == 1 else size, 8)
    return at > len(data)


def _begins_avif(data: bytes) -> bool:
    """ISO 14496-12: the box of the file's type names AVIF among its brands. HEIC has the same form and others."""
    size = int.from_bytes(data[:4])
    brands = [data[8:12]] + [data[at : at + 4] for at in range(16, min(size, 256), 4)]
    return data[4:8] == b"ftyp" and bool({b"avif", b"avis"} & set(brands))


def _open_bmp(data: bytes) -> BmpImageFile:
    """Raises NotImplementedError for 16 bits with alpha, which Pillow reads as opaque."""
    header, bits, compression = (int.from_bytes(data[at : at + size], "little") for at, size in _BMP)
    if header >= 56 and bits == 16 and compression == 3 and any(data[66:70]):
        raise NotImplementedError("of 16 bits with alpha")
    return BmpImageFile(io.BytesIO(data))


_BMP = ((14, 4), (28, 2), (30, 4))  # where the header's size, a pixel's bits and the compression stand


def _open_avif(data: bytes) -> AvifImageFile:
    """Raises NotImplementedError for HDR."""
    at = data.find(b"colrnclx", 0, data.find(b"mdat")) + 8  # ISO 14496-12, 12.1.5: primaries, transfer, matrix
    if at >= 8 and (hdr := png.HDR.get(int.from_bytes(data[at + 2 : at + 4]))):
        raise NotImplementedError(f"with {hdr} brightness (HDR)")
    return AvifImageFile(io.BytesIO(data))


# How a file of each format begins, and what reads its header. Other than Image.open, which imports its 40 readers when
# it first needs them and tries one after the other, this is the same in every thread, process and order of pictures.
_READERS = {
    "PNG": (lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), png.open_png),
    "JPEG": (lambda data: data.startswith(b"\xff\xd8\xff"), lambda data: JpegImageFile(io.BytesIO(data))),
    "WEBP": (lambda data: data[:4] + data[8:12] == b"RIFFWEBP", lambda data: WebPImageFile(io.BytesIO(data))),
    "GIF": (lambda data: data.startswith((b"GIF87a", b"GIF89a")), lambda data: GifImageFile(io.BytesIO(data))),
    "BMP": (lambda data: data.startswith(b"BM"), _open_bmp),
    "TIFF": (lambda data: data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")), tiff.open_tiff),
    "AVIF": (_begins_avif, _open_avif),
}
FORMATS = tuple(_READERS)
_guard = threading.RLock()


def _open(data: bytes, form: str, max_pixels: int | None) -> Image.Image:
    """Read the header. Raises Rejected, and whatever Pillow does."""
    with _guard:  # Pillow's bound is the whole process's, and some readers take memory while they open
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            image = _READERS[form][1](data)
        except Image.DecompressionBombError:
            raise Rejected(f"too many pixels: above {max_pixels}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise Rejected(f"too many pixels: {image.width}×{image.height}, above {max_pixels}")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF beside whole pixels; what is wrong with the pixels comes out in load()
        return 1


def _split(
    image: Image.Image, data: bytes, covered: tuple[int, int, int, int] | None
) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB or CMYK, and alpha in mode L or None. `covered` is the part of a GIF's canvas that holds
    pixels. Raises NotImplementedError for modes with no fixed range."""
    alpha = png.transparent_colour(image, data) if image.format == "PNG" else None
    if alpha is None and image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        colour, alpha = rgba.convert("RGB"), rgba.getchannel("A")
        if image.mode in ("LA", "La"):
            colour = rgba.getchannel("R")
    elif image.mode.startswith("I;16"):
        colour = Image.fromarray(_high_bytes(image))
    elif image.mode in ("1", "L"):
        colour = image.convert("L")
    elif image.mode in ("P", "RGB", "RGBX", "YCbCr"):
        colour = image.convert("RGB")
    elif image.mode == "CMYK":
        colour = image
    else:
        raise NotImplementedError(f"of mode {image.mode}")
    if covered not in (None, (0, 0, *image.size)):
        shown = Image.new("L", image.size, 0)
        shown.paste(255 if alpha is None else alpha.crop(covered), covered)
        alpha = shown
    return colour, alpha


def _high_bytes(image: Image.Image) -> np.ndarray:
    """(height, width) uint8 of 12 or 16 bits, as Pillow reads 16-bit RGB."""
    values = np.asarray(image)
    if image.format != "TIFF":
        return (values >> 8).astype(np.uint8)
    high = (values >> (tiff.depth(image) - 8)).astype(np.uint8)
    return ~high if tiff.is_white_zero(image) else high


def _to_srgb(colour: Image.Image, info: dict) -> tuple[Image.Image, bool]:
    """The picture in sRGB, and whether its colour profile had to be ignored."""
    profile = info.get("icc_profile", b"")
    if profile == b"":
        return colour.convert("RGB"), False
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_PROFILE.get(source.profile.xcolor_space.strip())
        if (mode, colour.mode) == ("RGB", "L"):  # common: grey pixels that carry a camera's RGB profile
            colour = colour.convert("RGB")
        if mode == colour.mode:
            return ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB"), False
    except MemoryError:
        raise
    except Exception:  # a broken profile beside whole pixels
        pass
    return colour.convert("RGB"), True


def _plain(error: Exception) -> str:
    """The error's text in one line, without the addresses that change from run to run."""
    text = " ".join(re.sub(r"<[^>]* at 0x[0-9a-f]+>", "the file", str(error)).split())
    return text[:200] or type(error).__name__
